"""CIDEr by lmms-eval's own function, and the ways in which it silently goes wrong."""

import json
import shutil

import numpy as np
import pytest

from eval_suites.tasks import captions
from tests.eval_suites.helpers.small_data import SHARED

needs_java = pytest.mark.skipif(not shutil.which("java"), reason="CIDEr's tokenizer is a Java program")


def results_of(candidates: list[str], references: list[list[str]]) -> list[dict]:
    return [{"image_id": i, "pred": pred, "answer": answers} for i, (pred, answers) in enumerate(zip(candidates, references))]


@pytest.fixture
def shared_metrics():
    if not (SHARED / "metrics").is_dir():
        pytest.skip("published captions are not here (../shared/data/metrics)")
    return SHARED / "metrics"


@needs_java
@pytest.mark.parametrize(("name", "value"), [("good", 0.5637), ("bad", 0.2790)])
def test_published_values_of_clipscore(shared_metrics, tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    candidates = json.loads((shared_metrics / "clipscore" / f"{name}_captions.json").read_text())
    references = json.loads((shared_metrics / "clipscore" / "refs.json").read_text())
    results = results_of([candidates[key] for key in candidates], [references[key] for key in candidates])
    assert captions.nocaps_cider(results) == pytest.approx(value, abs=5e-5)
    assert np.mean([result["score"] for result in results]) == pytest.approx(value, abs=5e-5)


@needs_java
def test_published_value_of_nlg_eval(shared_metrics, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = {name: (shared_metrics / "nlg_eval" / f"{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2")}
    results = results_of(lines["hyp"], [list(pair) for pair in zip(lines["ref1"], lines["ref2"])])
    assert captions.textcaps_cider(results) == pytest.approx(1.242192, abs=1e-6)


@needs_java
def test_line_breaks_inside_a_caption_shift_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["a cat on a mat", "two dogs in the park", "a red bus in town", "some boats at sea"]
    plain = captions.coco_cider(results_of(words, [[text] for text in words]))
    broken = ["a cat\u2028on a mat", "two dogs\rin the park", "a red\x85bus in town", "some boats at sea"]
    results = results_of(broken, [[text] for text in words])
    assert captions.coco_cider(results) == pytest.approx(plain, abs=1e-9)
    assert [result["cleaned"] for result in results] == [True, True, True, False]
    assert results[0]["pred"] == broken[0]  # the answer is kept as it was given


@needs_java
@pytest.mark.parametrize("place", [0, 3])
def test_an_empty_caption_costs_itself_alone(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    words = ["a cat on a mat", "two dogs in the park", "a red bus in town", "some boats at sea"]
    given = [" " if i == place else text for i, text in enumerate(words)]
    results = results_of(given, [[text] for text in words])
    value = captions.coco_cider(results)
    assert results[place]["score"] == 0.0 and value == pytest.approx(7.5, abs=0.01)


def test_a_picture_that_comes_twice_is_named():
    results = results_of(["a", "b"], [["a"], ["b"]])
    results[1]["image_id"] = 0
    with pytest.raises(ValueError, match="picture id 0 comes more than once"):
        captions.coco_cider(results)
