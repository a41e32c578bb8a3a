"""Pretraining on a few drawn pictures: it learns, it resumes bit-equal, bad samples are counted, bad input is said."""

import io
import json
import tarfile
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from genlip import checkpoint, speak
from genlip import train as train_module
from genlip.data import list_shards, packed_rows, read_shard
from genlip.recipes import PRESETS, claim_run_folder
from genlip.train import load_tokenizer, main, train

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for s in range(3):
        with tarfile.open(folder / f"train-{s}.tar", "w") as tar:
            for i, (name, colour) in enumerate(COLOURS.items()):
                add(tar, f"{s}{i}.png", png(colour))
                add(tar, f"{s}{i}.json", json.dumps({"caption": f"a {name} picture"}).encode())
    return folder


@pytest.fixture
def recipe(shards, llama_tiny, tmp_path):
    base = PRESETS["tiny-s1"]()
    model = base.model | {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "text_embed_dim": 48,
    }
    model["mrope_section"] = [4, 4, 4]
    changes = {"data": str(shards), "tokenizer": str(llama_tiny), "out": str(tmp_path / "run"), "steps": 8, "row_tokens": 150}
    return replace(base, model=model, resolution=32, save_every=3, workers=0, warmup=0.1, **changes)


def first_rows(recipe, number, **position):
    batches = packed_rows(recipe, load_tokenizer(recipe.tokenizer), **position)
    return [next(batches) for _ in range(number)]


def test_rows_hold_whole_samples_in_an_order_of_seed_and_epoch(recipe):
    rows = first_rows(recipe, 4)
    for row in rows:
        assert len(row.patches) == 4 * len(row.text_lens) and row.input_ids.shape[1] == row.text_lens.sum()
        assert len(row.patches) + row.input_ids.shape[1] <= recipe.row_tokens
    again = first_rows(recipe, 4)
    assert all(a.input_ids.equal(b.input_ids) and a.patches.equal(b.patches) for a, b in zip(rows, again))
    other = first_rows(replace(recipe, seed=1), 4)
    assert not all(a.input_ids.equal(b.input_ids) for a, b in zip(rows, other))


def test_labels_stand_on_the_caption_and_its_two_end_tokens(recipe):
    tokenizer = load_tokenizer(recipe.tokenizer)
    row = first_rows(recipe, 1)[0]
    ids, labels = (t[0, : row.text_lens[0]] for t in (row.input_ids, row.labels))
    spoken = tokenizer.decode(ids[labels != -100])
    assert tokenizer.decode(ids) == recipe.prompt + spoken
    assert spoken.startswith("a ") and spoken.endswith(" picture<|im_end|>\n")
    assert labels[labels != -100].equal(ids[labels != -100])


def test_every_sample_once_an_epoch_and_a_position_goes_on_exactly(recipe):
    rows = first_rows(recipe, 6)
    tail = first_rows(recipe, 3, position=rows[2].position, ledger=rows[2].ledger)
    for a, b in zip(rows[3:], tail):
        assert a.input_ids.equal(b.input_ids) and a.patches.equal(b.patches) and a.position == b.position and a.ledger == b.ledger
    epoch_one = next(r for r in rows if r.position["epoch"] == 1)
    assert epoch_one.ledger["read"] == epoch_one.ledger["used"] == 12 + epoch_one.position["taken"]


def test_learns_and_speaks(recipe, capsys):
    export = train(replace(recipe, steps=120, save_every=60, lr=3e-3))
    metrics = [json.loads(line) for line in (export.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 120 and metrics[-1]["loss"] < 0.1 * metrics[0]["loss"]
    assert speak.main([str(export), recipe.data + "/train-0.tar"]) == 0
    assert "4 of 4 captions word for word" in capsys.readouterr().out
    assert main(["tiny-s1", "--data", recipe.data, "--tokenizer", recipe.tokenizer, "--out", str(export.parent)]) == 2  # another recipe


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_bit_equal(recipe, tmp_path, monkeypatch):
    undisturbed = load_file(train(replace(recipe, out=str(tmp_path / "a"))) / "model.safetensors")
    real = checkpoint.save

    def stop_after(run, step, state):
        real(run, step, state)
        if step == 6:
            raise Stop

    monkeypatch.setattr(checkpoint, "save", stop_after)
    other = replace(recipe, out=str(tmp_path / "b"))
    with pytest.raises(Stop):
        train(other)
    monkeypatch.setattr(checkpoint, "save", real)
    (tmp_path / "b/checkpoints/step-000006.pt").write_bytes(b"cut short")  # the crash hit the newest: the one before serves
    resumed = load_file(train(other) / "model.safetensors")
    assert all(undisturbed[key].equal(resumed[key]) for key in undisturbed)
    assert (tmp_path / "a/ledger.json").read_text() == (tmp_path / "b/ledger.json").read_text()
    a, b = ([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()] for run in "ab")
    assert [r | {"tokens_per_s": 0} for r in a] == [r | {"tokens_per_s": 0} for r in b]


def test_bad_samples_are_counted_by_reason(recipe, shards):
    with tarfile.open(shards / "train-9.tar", "w") as tar:
        add(tar, "a.png", png("red"))
        add(tar, "b.png", png("red")[:40])
        add(tar, "b.json", b'{"caption": "x"}')
        add(tar, "c.json", b'{"caption": "no picture"}')
        add(tar, "d.png", png("red"))
        add(tar, "d.json", b'{"caption": "  "}')
        add(tar, "e.png", png("red"))
        add(tar, "e.json", b"{")
    ledger = next(r.ledger for r in first_rows(recipe, 9) if r.position["epoch"] == 1)
    offenders = {"no caption": "a", "undecodable picture": "b", "no picture": "c", "empty caption": "d", "unreadable json": "e"}
    assert {reason: set(names) for reason, names in ledger["names"].items()} == {r: {f"{n} in train-9.tar"} for r, n in offenders.items()}
    assert ledger["read"] == ledger["used"] + sum(ledger["skipped"].values())
    with pytest.raises(ValueError, match="--max-bad"):
        train_module.check_ledger({"read": 100, "skipped": {"no caption": 11}, "names": {}}, recipe)


def test_truncated_shard_is_named(recipe, shards):
    whole = (shards / "train-1.tar").read_bytes()
    (shards / "train-1.tar").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"train-1\.tar cannot be read"):
        train(replace(recipe, workers=1))
    with pytest.raises(ValueError, match="no tar shards"):
        list_shards(str(shards / "nothing"))


def test_a_run_folder_keeps_its_recipe(recipe):
    claim_run_folder(recipe)
    with pytest.raises(ValueError, match=r"lr: 0\.001 there, 0\.5 asked"):
        claim_run_folder(replace(recipe, lr=0.5))


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(recipe):
    with pytest.raises(FloatingPointError, match="weights were not moved"):
        train(replace(recipe, lr=1e30, steps=50))


def test_real_photos(shared, recipe):
    samples = read_shard(str(shared / "captions" / "cc12m-32.tar"))
    assert len(samples) == 32 and all({"jpg", "json", "txt"} <= s.keys() for s in samples)
    row = first_rows(replace(recipe, data=str(shared / "captions" / "cc12m-32.tar"), row_tokens=1000), 1)[0]
    assert torch.isfinite(row.patches).all() and row.patches.std() > 0.1
