"""Files -> cells: what is a score, what is not, and why."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from eval_suites import suites
from eval_suites.results import main as results_main
from eval_suites.score import lmms_files, results
from tests.eval_suites.helpers import handmade_results as handmade

COLUMN = {column.name: column for column in suites.get("genlip15").columns}


def lmms_file(path, task, metrics, n=None, limit=None, **more):
    content = {"results": {task: {"alias": task, **metrics}}, "config": {"model": "llava", "limit": limit}, **more}
    if n is not None:
        full = next((column.n for column in COLUMN.values() if column.task == task), n)
        content["n-samples"] = {task: {"original": full, "effective": n}}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("value", "why"),
    [("N/A", '"N/A"'), (None, "null"), ([], r"\[\]"), (math.nan, "nan"), (math.inf, "inf"), (True, "true"), (41.2, "outside 0 to 1"),
     (-0.1, "outside 0 to 1"), ("0.4", '"0.4"')],
)  # fmt: skip
def test_what_is_no_score_has_a_reason_and_no_value(value, why):
    cell = results.make_cell(COLUMN["chartqa"], {"relaxed_overall,none": value}, 2500, 2500, None)
    assert cell.value is None and not cell.complete
    pytest.importorskip("re").search(why, cell.refused) or pytest.fail(cell.refused)


def test_a_score_is_scaled_to_what_is_printed():
    assert results.make_cell(COLUMN["chartqa"], {"relaxed_overall,none": 0.412}, 2500, 2500, None).value == pytest.approx(41.2)
    assert results.make_cell(COLUMN["coco"], {"coco_CIDEr,none": 1.242192}, 5000, 5000, None).value == pytest.approx(124.2192)
    assert results.make_cell(COLUMN["mme_p"], {"mme_perception_score,none": 1258.0}, 2374, 2374, None).value == 1258.0


def test_keys_match_exactly_and_old_names_are_known():
    old = results.make_cell(COLUMN["mme_p"], {"mme_percetion_score,none": 1258.0, "mme_cognition_score,none": 300.0}, 2374, 2374, None)
    assert old.value == 1258.0
    look_alike = {"relaxed_overall_acc_score,none": 0.4, "relaxed_overall,strict": 0.4}
    cell = results.make_cell(COLUMN["chartqa"], look_alike, 2500, 2500, None)
    assert cell.value is None and "relaxed_overall_acc_score,none" in cell.refused and "split test" in cell.refused


def test_n_decides_what_is_partial():
    metrics = {"relaxed_overall,none": 0.5}
    partial = results.make_cell(COLUMN["chartqa"], metrics, 8, 2500, None)
    assert (partial.value, partial.refused, partial.complete) == (50.0, "8 of 2500", False)
    assert "other data" in results.make_cell(COLUMN["chartqa"], metrics, 2501, 2500, None).refused
    assert results.make_cell(COLUMN["chartqa"], metrics, 2500, 2500, None).complete


def test_cider_of_one_picture_is_no_score():
    cell = results.make_cell(COLUMN["coco"], {"coco_CIDEr,none": 0.0}, 1, 5000, None)
    assert cell.value is None and "single picture" in cell.refused


# --- samples ----------------------------------------------------------------------------------------------------------------


def samples_file(path, scores, metric, image=lambda i: f"picture {i}"):
    lines = [{"doc_id": i, "image": image(i), "scores": {metric: score}} for i, score in enumerate(scores)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_standard_error_counts_pictures_not_questions(tmp_path):
    scores = [float(i % 4 < 2) for i in range(400)]
    alone = results.read_samples(samples_file(tmp_path / "a.jsonl", scores, "relaxed_overall"), [COLUMN["chartqa"]]).scores["chartqa"]
    # Ten questions about each of 40 pictures, all right or all wrong: the evidence is that of 40, not of 400.
    blocks = [float(i // 10 % 2) for i in range(400)]
    path = samples_file(tmp_path / "b.jsonl", blocks, "relaxed_overall", image=lambda i: f"picture {i // 10}")
    together = results.read_samples(path, [COLUMN["chartqa"]]).scores["chartqa"]
    one, ten = (results.make_cell(COLUMN["chartqa"], {"relaxed_overall,none": 0.5}, 400, 2500, s) for s in (alone, together))
    assert one.stderr == pytest.approx(100 * 0.5 / np.sqrt(399), rel=1e-6)
    assert ten.stderr == pytest.approx(100 * 0.5 / np.sqrt(39), rel=1e-6)
    assert one.low < 50 < one.high and ten.high - ten.low > 3 * (one.high - one.low)


def test_mme_is_scored_by_pair_as_lmms_eval_does(tmp_path):
    utils = pytest.importorskip("lmms_eval.tasks.mme.utils")
    draw = np.random.default_rng(0)
    raw = [
        {"question_id": f"{category}/{i}.png", "category": category, "score": float(draw.integers(0, 2))}
        for category in ("existence", "count", "OCR") for i in range(20) for _ in range(2)
    ]  # fmt: skip
    path = samples_file(tmp_path / "s.jsonl", raw, "mme_perception_score", image=lambda i: f"picture {i // 2}")
    scores = results.read_samples(path, [COLUMN["mme_p"]]).scores["mme_p"]
    assert scores.value == pytest.approx(utils.mme_aggregate_results(raw)) and len(scores.ids) == 60
    (tmp_path / "odd.jsonl").write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="MME counts pairs"):
        results.read_samples(tmp_path / "odd.jsonl", [COLUMN["mme_p"]])


def test_ocrbench_counts_points_of_a_thousand(tmp_path):
    path = samples_file(tmp_path / "s.jsonl", [{"score": float(i < 6)} for i in range(10)], "ocrbench_accuracy")
    scores = results.read_samples(path, [COLUMN["ocrbench"]]).scores["ocrbench"]
    cell = results.make_cell(COLUMN["ocrbench"], {"ocrbench_accuracy,none": 0.006}, 10, 1000, scores)
    assert cell.value == pytest.approx(0.6) and cell.refused == "10 of 1000"


def test_full_marks_on_a_subset_of_ocrbench_have_an_interval_that_ends_there(tmp_path):
    column = replace(COLUMN["ocrbench"], n=None)
    for right, ends in ((200, True), (100, False)):
        path = samples_file(tmp_path / "s.jsonl", [{"score": float(i < right)} for i in range(200)], "ocrbench_accuracy")
        scores = results.read_samples(path, [column]).scores[column.name]
        cell = results.make_cell(column, {column.metric: right / 1000}, 200, 200, scores)
        low, high = (bound / 20 for bound in (cell.low, cell.high))  # 200 questions are 20 of 100 points at most
        assert 0 < low < right / 200 <= high <= 1 and (high == pytest.approx(1)) == ends
        share = results.make_cell(COLUMN["chartqa"], {"relaxed_overall,none": right / 200}, 200, 2500, replace(scores, factor=1.0))
        assert (low, high) == pytest.approx((share.low / 100, share.high / 100)), "that of the share of right answers"


def test_samples_that_say_another_number_refuse_the_cell(tmp_path):
    scores = results.read_samples(samples_file(tmp_path / "s.jsonl", [1.0, 0.0], "relaxed_overall"), [COLUMN["chartqa"]]).scores["chartqa"]
    cell = results.make_cell(COLUMN["chartqa"], {"relaxed_overall,none": 0.9}, 2, 2500, scores)
    assert cell.value is None and "the samples give 0.5, the result says 0.9" in cell.refused


def test_line_separators_inside_an_answer_end_no_line(tmp_path):
    line = json.dumps({"doc_id": 0, "image": "", "answer": "a\u2028b\x85c", "scores": {"relaxed_overall": 1.0}}, ensure_ascii=False)
    (tmp_path / "s.jsonl").write_text(line + "\n" + line.replace('"doc_id": 0', '"doc_id": 1') + "\n", encoding="utf-8")
    scores = results.read_samples(tmp_path / "s.jsonl", [COLUMN["chartqa"]]).scores["chartqa"]
    assert scores.value == 1.0 and len(scores.ids) == 2 and len(set(scores.pictures)) == 2  # no picture: each question for itself


def test_a_damaged_sample_is_named_by_line(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"doc_id": 0, "image": "", "scores": {"relaxed_overall": 1.0}}\n{"doc_id": 1, "im')
    with pytest.raises(ValueError, match="line 2"):
        results.read_samples(tmp_path / "s.jsonl", [COLUMN["chartqa"]])


# --- lmms-eval's own files --------------------------------------------------------------------------------------------------


def test_files_of_lmms_eval(tmp_path):
    full = lmms_file(tmp_path / "new.json", "chartqa", {"relaxed_overall,none": 0.4, "relaxed_overall_stderr,none": "N/A"}, n=2500)
    (cell,) = lmms_files.read_cells([full])
    assert cell.complete and cell.value == 40.0 and cell.n == 2500
    (cell,) = lmms_files.read_cells([lmms_file(tmp_path / "limit.json", "chartqa", {"relaxed_overall,none": 0.4}, n=8, limit=8)])
    assert cell.refused == "8 of 2500"
    (cell,) = lmms_files.read_cells([lmms_file(tmp_path / "ai2d.json", "ai2d", {"exact_match,flexible-extract": 0.7}, n=3088)])
    assert cell.complete and cell.value == pytest.approx(70)
    (cell,) = lmms_files.read_cells([lmms_file(tmp_path / "ai2d-none.json", "ai2d", {"exact_match,none": 0.7}, n=3088)])
    assert cell.value is None and "flexible-extract" in cell.refused


def test_a_file_that_names_no_n_speaks_only_through_its_limit(tmp_path):
    (cell,) = lmms_files.read_cells([lmms_file(tmp_path / "a.json", "chartqa", {"relaxed_overall,none": 0.4}, limit=None)])
    assert cell.complete and cell.n is None
    (cell,) = lmms_files.read_cells([lmms_file(tmp_path / "b.json", "chartqa", {"relaxed_overall,none": 0.4}, limit=8)])
    assert cell.value is None and "limit is 8" in cell.refused
    bare = tmp_path / "c.json"
    bare.write_text(json.dumps({"results": {"chartqa": {"relaxed_overall,none": 0.4}}}))
    assert "not recorded" in lmms_files.read_cells([bare])[0].refused


def test_old_mme_names_and_the_wrong_split(tmp_path):
    metrics = {"mme_percetion_score,none": 1200.0, "mme_cognition_score,none": 250.0}
    cells = lmms_files.read_cells([lmms_file(tmp_path / "mme.json", "mme", metrics, n=2374)])
    assert {cell.benchmark: cell.value for cell in cells} == {"mme_p": 1200.0, "mme_c": 250.0}
    (cell,) = lmms_files.read_cells([lmms_file(tmp_path / "d.json", "docvqa_test", {"anls,none": [], "submission,none": None}, n=5188)])
    assert cell.value is None and "docvqa_val, split validation" in cell.refused


def test_two_files_that_disagree_refuse_the_number(tmp_path):
    paths = [lmms_file(tmp_path / f"{i}.json", "chartqa", {"relaxed_overall,none": value}, n=2500) for i, value in enumerate((0.4, 0.5))]
    assert [cell.value for cell in lmms_files.read_cells(paths)] == [None, None]
    assert "40 and 50" in lmms_files.read_cells(paths)[0].refused
    assert lmms_files.read_cells([paths[0], paths[0]])[0].complete


def test_command_prints_cells_as_json_lines(tmp_path, capsys):
    path = lmms_file(tmp_path / "a.json", "chartqa", {"relaxed_overall,none": "N/A"}, n=2500)
    assert results_main([str(path), "--json"]) == 0
    cell = json.loads(capsys.readouterr().out)
    assert cell["benchmark"] == "chartqa" and cell["value"] is None and "N/A" in cell["refused"]
    assert results_main([str(tmp_path / "nothing")]) == 2 and "does not exist" in capsys.readouterr().err
    path.write_text("{")
    assert results_main([str(path)]) == 2 and "not JSON" in capsys.readouterr().err


def test_a_manifests_n_stands_in_where_the_suite_declares_none():
    column = replace(COLUMN["chartqa"], n=None)
    assert results.make_cell(column, {"relaxed_overall,none": 0.5}, 200, 200, None).complete


def test_a_result_that_was_carried_away_from_its_samples_says_where_to_read_it(tmp_path, monkeypatch):
    root, _ = handmade.make(tmp_path, monkeypatch)
    carried = tmp_path / "carried" / "result.json"
    carried.parent.mkdir()
    carried.write_bytes(next(root.rglob("result.json")).read_bytes())
    with pytest.raises(ValueError, match="lies away from the results"):
        lmms_files.read_file(carried)
