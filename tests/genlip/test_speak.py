"""Captions of files, folders and shards; what patches would say; where words look."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from genlip import generation, readout, speak
from genlip.train import train


@pytest.fixture
def export(recipe):
    return train(replace(recipe, max_steps=120, save_every=200, lr=3e-3))


@pytest.fixture
def novice(recipe):
    return train(replace(recipe, max_steps=1))


def test_captions_of_files_folders_and_shards(export, recipe, tmp_path, capsys, tar, draw):
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in ("red", "blue"):
        (folder / f"{colour}.png").write_bytes(draw(colour))
    (folder / "notes.txt").write_text("no picture")
    assert speak.main([str(export), str(folder), str(folder / "red.png")]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["a blue picture", "a red picture", "a red picture"]
    tar(tmp_path / "mixed.tar", {"a.png": draw("blue"), "a.txt": b"a red picture", "b.png": b"x", "b.txt": b"x"})
    assert speak.main([str(export), str(tmp_path / "mixed.tar"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "a in mixed.tar", "said": "a blue picture", "true": "a red picture"}
    assert "0 of 1 captions word for word" in captured.err and "left out: b in mixed.tar: undecodable picture" in captured.err
    assert speak.main([str(export), str(folder / "notes.txt")]) == 2 and speak.main([str(folder), str(folder)]) == 2
    assert "not a picture" in (said := capsys.readouterr().err) and "has no config.json" in said


def test_names_and_captions_of_a_shard_command_no_terminal(novice, tmp_path, tar, capsys, draw):
    odd, caption = "a\x1b[2J", b"a\x1b]0;title\x07 caption"
    tar(tmp_path / "odd.tar", {f"{odd}.png": draw("red"), f"{odd}.txt": caption, f"{odd}b.png": b"x", f"{odd}b.txt": b"x"})
    assert speak.main([str(novice), str(tmp_path / "odd.tar"), "--max-new-tokens", "2"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\x07" not in said.out
    assert "[2J in odd.tar\t" in said.out and "]0;title" in said.out and "left out: " in said.err


def test_nothing_to_say_is_no_success(novice, tmp_path, tar, capsys):
    (tmp_path / "empty").mkdir()
    tar(tmp_path / "bad.tar", {"a.png": b"x", "a.txt": b"x"})
    for given in ("empty", "bad.tar"):
        assert speak.main([str(novice), str(tmp_path / given)]) == 2
        assert "no picture that can be used" in capsys.readouterr().err
        assert readout.main([str(novice), str(tmp_path / given), "--out", str(tmp_path / "looks")]) == 2
        assert not (tmp_path / "looks").exists()
    weights = load_file(novice / "model.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, novice / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert speak.main([str(novice), str(tmp_path / "empty")]) == 2 and "weights are not finite" in capsys.readouterr().err


def test_a_readout_writes_pictures_and_numbers(export, tmp_path, draw, capsys):
    file = tmp_path / "red.png"
    file.write_bytes(draw("red"))
    assert readout.main([str(export), str(file), "--out", str(tmp_path / "looks")]) == 0
    record = json.loads((tmp_path / "looks/red.json").read_text())
    assert record["said"] == "a red picture" and record["grid"] == [2, 2] and len(record["words"]) == 4
    for words in record["words"]:
        shares = [share for _, share in words]
        assert len(words) == readout.TOP and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.0001
    sinks = record["sinks"]
    assert 0 < sinks["first_token"] < sinks["vision"] < 1 and len(sinks["by_layer"]) == 2 and sinks["registers"] == 0
    assert sum(record["attention"]) <= 1.0001 and len(record["attention"]) == 4
    together = json.loads((tmp_path / "looks/sinks.json").read_text())
    assert together["pictures"] == 1 and together["vision"] == sinks["vision"]
    for name in ("red-words.png", "red-attention.png"):
        assert np.asarray(Image.open(tmp_path / "looks" / name)).std() > 5
    assert "falls on the first picture token" in capsys.readouterr().out


def test_shares_of_attention_are_those_of_a_known_matrix():
    """One register, two patches, two words, two layers."""
    first = torch.tensor([[0.1, 0.3, 0.2, 0.4, 0.0], [0.1, 0.1, 0.4, 0.2, 0.2]])
    second = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    shares = readout.sinks(torch.stack([first, second]), patches=2, registers=1)
    assert shares.first_token == pytest.approx((0.2 + 0.75) / 2) and shares.vision == pytest.approx((0.5 + 0.75) / 2)
    assert shares.registers == pytest.approx((0.1 + 0.25) / 2) and shares.by_layer[1]["first_token"] == pytest.approx(0.75)


def test_attention_of_the_words_is_the_models_own(novice):
    loaded = generation.load(str(novice), "eager")
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = torch.tensor([tokenizer("a red picture", add_special_tokens=False).input_ids])
    patches, grid = torch.zeros(6, 3, 16, 16), torch.tensor([[2, 3]])
    attention = readout.text_attention(model, patches, grid, ids)
    assert attention.shape == (2, ids.shape[1], 6 + ids.shape[1])
    assert torch.allclose(attention.sum(dim=-1), torch.ones(2, ids.shape[1]))  # a distribution, mean over heads
    future = attention[:, 0, 7:]
    assert (future == 0).all()  # the first word sees the picture and itself alone


@pytest.mark.slow
def test_real_captions_come_back_word_for_word(shared, tmp_path, capsys):
    """32 web photos, Qwen's own vocabulary, from random weights: some minutes on two cores."""
    import subprocess
    import sys

    from genlip.train import main

    tokenizer = shared / "tokenizer"
    tar = str(shared / "captions" / "cc12m-32.tar")
    if not tokenizer.is_dir():
        pytest.skip("no Qwen tokenizer")
    assert main(["captions-32", "--data", tar, "--tokenizer", str(tokenizer), "--out", str(tmp_path / "run")]) == 0
    said = subprocess.run(
        [sys.executable, "-m", "genlip.speak", str(tmp_path / "run/export"), tar, "--quiet"], capture_output=True, text=True, check=True
    ).stdout
    assert int(said.split(" of 32 captions word for word")[0].split()[-1]) >= 30


@pytest.mark.parametrize(
    ("processor", "shape", "said"),
    [
        ({"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (32, 32, 3), "32 x 32 pixels: as it was"),
        ({"size": {"shortest_edge": 40}, "crop_size": 48, "image_mean": None}, (48, 48, 3), "48 x 48 pixels: as it was"),
        ({"size": "native", "max_pixels": 4096}, (48, 80, 3), "each picture at its own shape: as it was"),
        (None, (64, 96, 3), "each picture at its own shape: no processor file"),
    ],
)
def test_any_processor_file_says_how_pictures_are_shown_and_none_leaves_their_shape(novice, processor, shape, said, tmp_path, capsys):
    file = novice / "preprocessor_config.json"
    file.unlink()
    if processor:
        file.write_text(json.dumps(processor))
    picture = tmp_path / "a.png"
    Image.new("RGB", (100, 60), "red").save(picture)
    assert speak.main([str(novice), str(picture), "--max-new-tokens", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{picture}\t") and f"pictures: {said}" in err
    (seen,) = generation.pictures([str(picture)], generation.load(str(novice)).size, "x")
    assert seen.pixels.shape == shape
