"""easy-VQA as captions, conversations and a benchmark: counts, leakage, determinism and floors, read back from what was written."""

import collections
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from small_data import easyvqa

pytestmark = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="package easy-vqa is not installed")

# The colours the set was drawn with, by CSS name but for green, read off the pictures.
RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("easyvqa")
    easyvqa.make(folder, copies=2)
    return folder


def decode(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def shard(path):
    """{key: (pixels, caption)} in the shard's order."""
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    keys = [name.removesuffix(".png") for name in files if name.endswith(".png")]
    return {key: (decode(files[f"{key}.png"]), json.loads(files[f"{key}.json"])["caption"]) for key in keys}


@pytest.fixture(scope="module")
def shards(out):
    tars = sorted((out / "easy-vqa").glob("captions*/*"))
    found = sorted(str(path.relative_to(out / "easy-vqa")) for path in tars)
    assert found == ["captions-held-out/test-000000.tar", "captions/train-000000.tar", "captions/train-000001.tar"]
    return {path.stem: shard(path) for path in tars}


@pytest.fixture(scope="module")
def rows(out):
    import pyarrow.parquet

    root = out / "genlip-eval" / "easy-vqa"
    return {kind: pyarrow.parquet.read_table(root / kind / "test-00000-of-00001.parquet").to_pylist() for kind in easyvqa.SETS}


def packed(pixels):
    """(64, 64) whole numbers, one a colour."""
    return pixels.astype(int) @ [65536, 256, 1]


def inside(pixels):
    """(64, 64) truth: where the picture is not its most common colour, the flat background."""
    values, counts = np.unique(packed(pixels), return_counts=True)
    return packed(pixels) != values[counts.argmax()]


def seen(pixels):
    """(colour, shape) by the pixels alone: the shape's flat colour, and how much of its bounding box it fills."""
    shape = inside(pixels)
    ink = collections.Counter(map(tuple, pixels[shape].tolist())).most_common(1)[0][0]
    rows, columns = np.nonzero(shape)
    filled = shape.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
    kind = "rectangle" if filled == 1 else "circle" if filled > 0.78 else "triangle"
    return next(name for name, rgb in RGB.items() if rgb == ink), kind


def test_counts_of_the_training_side(out, shards):
    assert {name: len(samples) for name, samples in shards.items()} == {
        "test-000000": 880,
        "train-000000": 3542,
        "train-000001": 3542,
    }
    records = json.loads((out / "easy-vqa" / "sft" / "conversations.json").read_text())
    assert len(records) == len({record["id"] for record in records}) == 4000
    questions = [turn["value"] for record in records for turn in record["conversations"] if turn["from"] == "human"]
    answers = [turn["value"] for record in records for turn in record["conversations"] if turn["from"] == "gpt"]
    assert len(questions) == len(answers) == 38575
    assert len(set(answers)) == 13
    assert all(text.endswith("?\nAnswer the question using a single word or phrase.") for text in questions)
    for record in records:
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * (len(record["conversations"]) // 2)
        marked = ["<image>" in turn["value"] for turn in record["conversations"]]
        assert marked == [True] + [False] * (len(marked) - 1) and record["conversations"][0]["value"].startswith("<image>\n")
        assert (out / "easy-vqa" / "sft" / record["image"]).is_file()


def test_counts_of_the_benchmark(out, rows):
    assert {kind: len(rows[kind]) for kind in rows} == {"shape": 1257, "colour": 1280, "yes_no": 7136}
    everything = [row for kind in rows for row in rows[kind]]
    assert len({row["question_id"] for row in everything}) == 9673
    assert {row["image_id"] for row in everything} == set(range(1000))
    for kind, answers in (("shape", easyvqa.SHAPES), ("colour", easyvqa.COLOURS), ("yes_no", ("yes", "no"))):
        assert {row["answer"] for row in rows[kind]} == set(answers)
        assert {row["type"] for row in rows[kind]} == {kind}
    manifest = json.loads((out / "genlip-eval" / "easy-vqa" / "manifest.json").read_text())
    assert set(manifest) == {"sets", "digest"}
    for kind in rows:
        assert manifest["sets"][kind] == {"n": len(rows[kind]), "images": len({row["image_id"] for row in rows[kind]}), "maximum": 1.0}


def test_the_digest_is_that_of_the_rows_read_back(out, rows):
    manifest = json.loads((out / "genlip-eval" / "easy-vqa" / "manifest.json").read_text())
    assert easyvqa.rows_digest(rows) == manifest["digest"]
    first = rows["yes_no"][0]
    changed = {**first, "answer": "yes" if first["answer"] == "no" else "no"}
    assert easyvqa.rows_digest({**rows, "yes_no": [changed, *rows["yes_no"][1:]]}) != manifest["digest"]


def test_floors_are_the_known_ones(out, rows):
    """Always "yes", and the training set's most frequent answer to the question's text."""
    everything = [row for kind in rows for row in rows[kind]]
    assert round(100 * np.mean([row["answer"] == "yes" for row in everything]), 1) == 37.3
    answers = collections.defaultdict(collections.Counter)
    for record in json.loads((out / "easy-vqa" / "sft" / "conversations.json").read_text()):
        turns = [turn["value"] for turn in record["conversations"]]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            answers[question.removeprefix("<image>\n").split("\n")[0]][answer] += 1
    blind = {kind: [answers[row["question"]].most_common(1)[0][0] == row["answer"] for row in rows[kind]] for kind in rows}
    assert {kind: round(100 * np.mean(hits), 1) for kind, hits in blind.items()} == {"shape": 34.8, "colour": 12.0, "yes_no": 82.5}
    assert round(100 * np.mean(np.concatenate(list(blind.values()))), 1) == 67.0


def test_no_test_picture_is_trained_on(out, shards, rows):
    test = {decode(row["image"]["bytes"]).tobytes() for kind in rows for row in rows[kind]}
    assert len(test) == 1000
    shown = {pixels.tobytes() for name in shards if name.startswith("train") for pixels, _ in shards[name].values()}
    shown |= {decode(path.read_bytes()).tobytes() for path in (out / "easy-vqa" / "sft" / "images").iterdir()}
    assert len(shown) > 7_000
    assert not shown & test
    held_out = {pixels.tobytes() for pixels, _ in shards["test-000000"].values()}
    assert len(held_out) == 880 and held_out <= test


def test_captions_say_what_the_pixels_show(shards):
    for samples in shards.values():
        for key, (pixels, caption) in samples.items():
            assert caption == "a {} {}.".format(*seen(pixels)), key


def test_copies_are_the_shape_moved_whole_and_upright(shards):
    exact = {key.split("-")[0]: pixels for key, (pixels, _) in shards["train-000000"].items()}
    assert all(exact[f"{i:04}"].shape == (64, 64, 3) for i in map(int, exact))
    moved = 0
    shifts = set()
    assert [key.split("-")[0] for key in shards["train-000001"]] != list(exact), "every shard has an order of its own"
    for key, (pixels, caption) in shards["train-000001"].items():
        original = exact[key.split("-")[0]]
        moved += not np.array_equal(pixels, original)
        # The same pixels in other places: nothing cut, nothing left behind at the border.
        assert np.array_equal(np.sort(packed(pixels), axis=None), np.sort(packed(original), axis=None)), key
        rows, _ = np.nonzero(inside(pixels))
        if "triangle" in caption:
            widths = np.bincount(rows)[rows.min() :]
            assert widths[: len(widths) // 2].sum() < widths[len(widths) // 2 :].sum(), f"{key} stands on its head"
            shifts.add(int(rows.min() - np.nonzero(inside(original))[0].min()))
    assert moved > 0.99 * 3542
    assert shifts == set(range(-8, 9))


def test_exact_copy_and_benchmark_keep_the_packages_bytes(out, rows):
    root = Path(importlib.util.find_spec("easy_vqa").submodule_search_locations[0]) / "data"
    for i in (0, 17, 3999):
        assert (out / "easy-vqa/sft/images" / f"{i}.png").read_bytes() == (root / "train/images" / f"{i}.png").read_bytes()
    for row in rows["shape"][:20]:
        assert row["image"]["bytes"] == (root / "test/images" / row["image"]["path"]).read_bytes()
    with tarfile.open(out / "easy-vqa/captions/train-000000.tar") as tar:
        for member in tar.getmembers()[:20:2]:
            assert tar.extractfile(member).read() == (root / "train/images" / f"{int(member.name[:4])}.png").read_bytes()


def test_text_is_training_text_only(out):
    lines = (out / "easy-vqa" / "text.txt").read_text().splitlines()
    assert lines[:2] == ["Describe the image in detail.", "Answer the question using a single word or phrase."]
    assert len(lines) == 2 + 3542 + 2 * 38575


def test_same_settings_same_bytes(out, tmp_path):
    def sums(folder):
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}

    easyvqa.make(tmp_path / "again", copies=2)
    assert sums(tmp_path / "again") == sums(out)
    assert not list(tmp_path.rglob(".*")), "nothing is left aside"
    easyvqa.make(tmp_path / "other", copies=2, seed=1)
    here, there = sums(out), sums(tmp_path / "other")
    assert here["easy-vqa/captions/train-000001.tar"] != there["easy-vqa/captions/train-000001.tar"]
    assert here["genlip-eval/easy-vqa/manifest.json"] == there["genlip-eval/easy-vqa/manifest.json"]


def test_datasets_reads_the_benchmark_with_pictures(out, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets comes with the evaluation extra")
    file = str(out / "genlip-eval/easy-vqa/shape/test-00000-of-00001.parquet")
    rows = datasets.load_dataset("parquet", data_files={"test": file}, split="test", cache_dir=str(tmp_path))
    assert rows[0]["image"].size == (64, 64) and rows[0]["question"] == "what is the red shape?" and rows[0]["answer"] == "triangle"


def test_a_folder_of_other_settings_is_refused_and_kept(out, capsys):
    before = (out / "easy-vqa" / "made.json").read_bytes()
    assert easyvqa.main(["--out", str(out), "--copies", "4"]) == 2
    assert "copies 2, seed 0" in capsys.readouterr().err
    assert (out / "easy-vqa" / "made.json").read_bytes() == before
    assert easyvqa.main(["--out", str(out), "--copies", "2"]) == 0
    assert "left alone" in capsys.readouterr().out


def test_a_folder_of_someone_else_is_refused(tmp_path, capsys):
    (tmp_path / "easy-vqa").mkdir()
    (tmp_path / "easy-vqa" / "notes.txt").write_text("mine")
    assert easyvqa.main(["--out", str(tmp_path)]) == 2
    assert "something else" in capsys.readouterr().err
    assert (tmp_path / "easy-vqa" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("where", ["write_conversations", "write_benchmark"])
def test_a_stopped_run_starts_over(where, out, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    manifest = tmp_path / "genlip-eval/easy-vqa/manifest.json"
    with monkeypatch.context() as patch:
        patch.setattr(easyvqa, where, stop)
        with pytest.raises(KeyboardInterrupt):
            easyvqa.make(tmp_path, copies=1)
    assert not manifest.exists(), "the manifest says that all is done"
    assert "captioned pictures" in easyvqa.make(tmp_path, copies=1)
    assert manifest.read_bytes() == (out / "genlip-eval/easy-vqa/manifest.json").read_bytes()
    assert (tmp_path / "easy-vqa/captions/train-000000.tar").read_bytes() == (out / "easy-vqa/captions/train-000000.tar").read_bytes()


def test_absent_package_says_the_command(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "easy_vqa" else find(name, *rest))
    assert easyvqa.main(["--out", str(tmp_path)]) == 2
    assert "pip install --no-deps easy-vqa==1.0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_question_types_are_held_against_the_words():
    assert easyvqa.question_type("what is the color of the shape?", "red") == "colour"
    assert easyvqa.question_type("what is the red shape?", "circle") == "shape"
    assert easyvqa.question_type("is there not a red shape?", "no") == "yes_no"
    for text, answer in (("what is the red shape?", "red"), ("is there a circle?", "circle"), ("what color is the shape?", "purple")):
        with pytest.raises(ValueError, match=r"easy-vqa==1\.0"):
            easyvqa.question_type(text, answer)


def test_captions_need_both_said_outright():
    def picture(*pairs):
        questions = [easyvqa.Question("q", text, answer, easyvqa.question_type(text, answer)) for text, answer in pairs]
        return easyvqa.ImageQuestions(0, b"", tuple(questions))

    assert easyvqa.caption(picture(("what color is the circle?", "blue"))) == "a blue circle."
    assert easyvqa.caption(picture(("is there not a circle?", "no"), ("is no red shape present?", "no"))) == "a red circle."
    assert (
        easyvqa.caption(picture(("is there a circle?", "no"), ("is there a triangle?", "no"), ("is a red shape present?", "yes"))) is None
    )
    assert easyvqa.caption(picture(("what shape is present?", "circle"), ("does the image not contain a red shape?", "yes"))) is None
    with pytest.raises(ValueError, match="contradict"):
        easyvqa.caption(picture(("what shape is present?", "circle"), ("is there a triangle?", "yes")))


def test_help_and_import_without_torch():
    code = "import sys; sys.modules['torch'] = None; from small_data import easyvqa; easyvqa.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--copies" in done.stdout, done.stderr
