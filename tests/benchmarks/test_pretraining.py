"""The two comparisons really run, on equal terms, and refuse what is not equal; not how fast anything is."""

import pytest

from benchmarks import pretraining
from genlip.data import load_tokenizer, packed_rows
from genlip.recipes import PRESETS
from genlip.shards import list_sources


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[4:]]


def test_the_mix_reaches_from_small_to_large():
    patches, grids, lens, ids = pretraining.mixed(64, 1000)
    sizes = grids.prod(dim=1)
    assert len(patches) == sizes.sum() and len(ids) == lens.sum() and int(ids.min()) >= 4 > 1  # 1 pads, 2 and 3 begin and end
    assert sizes.min() < 60 and sizes.max() > 600 and lens.min() < 30 and lens.max() > 250
    assert all(a.equal(b) for a, b in zip(pretraining.mixed(64, 1000), (patches, grids, lens, ids)))


def test_both_data_paths_hand_over_the_same_samples(recipe, capsys):
    pytest.importorskip("webdataset")
    tokenizer, sources = load_tokenizer(recipe.tokenizer), list_sources(recipe.data)
    files = [shard.path for shard in sources[0].shards]
    ours = pretraining.contents(packed_rows(recipe, tokenizer, sources), 12)
    theirs = pretraining.contents(pretraining.webdataset_rows(recipe, tokenizer, files), 12)
    assert ours == theirs and len({tuple(words) for _, words, _ in ours.values()}) == 4  # four captions
    flags = ["--tokenizer", recipe.tokenizer, "--preset", "tiny-s1", "--samples", "8", "--rounds", "1"]
    assert pretraining.main(["data", recipe.data, *flags]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["genlip (ours)", "webdataset"] and rows[0][2] == "1.00"


def test_other_samples_are_refused(recipe, monkeypatch, tmp_path, capsys):
    pytest.importorskip("webdataset")
    flags = ["--tokenizer", recipe.tokenizer, "--preset", "tiny-s1", "--samples", "1", "--rounds", "1"]
    real = pretraining.webdataset_rows

    def other(*args):
        for row in real(*args):
            row.patches ^= 1
            yield row

    monkeypatch.setattr(pretraining, "webdataset_rows", other)
    assert pretraining.main(["data", f"{recipe.data}/train-0.tar", *flags]) == 2
    assert "other samples than we do: 00, 01, 02, 03" in capsys.readouterr().err
    assert pretraining.main(["data", str(tmp_path / "none.tar"), *flags]) == 2 and "no shards" in capsys.readouterr().err
    assert pretraining.main(["data", recipe.data, "--tokenizer", "x", "--preset", "so17"]) == 2 and "so16-s1" in capsys.readouterr().err


def test_a_clone_is_needed(capsys):
    assert pretraining.main(["steps", "--open-clip", "nowhere"]) == 2
    assert "89fb801" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pretraining.main(["steps"])


@pytest.mark.parametrize("flags", [["tiny-s1"], ["tiny-s2", "--rows", "2", "--gradient-checkpointing"]])
def test_a_recipes_step_is_measured(flags, capsys):
    assert pretraining.main(["recipe", *flags, "--max-steps", "1", "--row-tokens", "900", "--model", "num_hidden_layers=1"]) == 0
    row = rows_of(capsys.readouterr().out)[0]
    assert float(row[0].replace(",", "")) > 0 and float(row[1]) > 0 and len(row) == 7


def test_rows_are_full_of_samples_as_the_recipe_expects_them():
    for preset, largest in (("so16-s1", 270 * 1.5), ("so16-s2", 1024 + 840 * 1.5)):
        recipe = PRESETS[preset]()
        row = pretraining.full_row(recipe, 1000, seed=0)
        assert recipe.row_tokens - largest < row.tokens <= recipe.row_tokens
        assert len(row.patches) == row.grid_hw.prod(dim=1).sum() and row.input_ids.shape == row.labels.shape == (1, row.text_lens.sum())
        assert recipe.native or (row.grid_hw == 14).all()
        mean = row.tokens / len(row.text_lens)
        assert abs(mean / recipe.mean_tokens - 1) < 0.25
        supervised = row.labels != -100
        assert row.labels[supervised].equal(row.input_ids[supervised]) and 0.5 < supervised.float().mean() < 1


def test_what_a_recipe_cannot_be_measured_with(capsys):
    assert pretraining.main(["recipe", "tiny-s1", "--row-tokens", "9"]) == 2 and "--row-tokens 9" in capsys.readouterr().err
    assert pretraining.main(["recipe", "tiny-s1", "--init", "x"]) == 2 and "--init is not read" in capsys.readouterr().err
