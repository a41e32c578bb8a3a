"""Averages by the paper's rule, the paper's own rows, and what a table says where numbers are missing."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas
import pytest
from pandas.testing import assert_frame_equal

import eval_suites
from eval_suites import suites
from eval_suites.report import paper, tables
from eval_suites.score import averages, comparison, results, stats
from eval_suites.tables import main as tables_main
from genlip.common.fingerprint import of_export
from genlip.common.schema import SCHEMA, EarlierStage, Provenance, Result
from tests.eval_suites.helpers import handmade_results as handmade
from tests.eval_suites.helpers.small_data import provenance

ROOT = Path(__file__).parents[2]
SUITE = suites.get("genlip14")


def test_every_printed_average_is_recomputed_and_exactly_the_known_rows_are_flagged():
    flagged, rows = [], 0
    for number in json.loads(paper.PAPER.read_text()):
        for row in paper.paper_table(number).rows:
            rows += 1
            flagged += [(number, row.model, row.arch)] if row.flag else []
    assert flagged == [
        ("3", "CLIP", "L/14"),
        ("7", "GenLIP-S1", "So/16"),
        ("7", "GenLIP-S1", "g/16"),
        ("10", "1 Register", ""),
        ("10", "4 Registers", ""),
    ]
    assert rows == 66


def test_rows_on_the_rounding_border_are_not_flagged():
    border = {row.recomputed for number in ("3", "7") for row in paper.paper_table(number).rows} & {Decimal("61.45"), Decimal("61.55")}
    assert len(border) == 2
    row = paper.Printed("m", "a", "", {}, Decimal("68.6"), Decimal("68.55"))
    assert not row.flag and replace(row, recomputed=Decimal("68.5499")).flag


def test_18_of_the_19_averages_of_tables_3_and_4_follow_the_rule_to_the_printed_digit():
    rows = [row for number in ("3", "4") for row in paper.paper_table(number).rows]
    assert len(rows) == 19 and sum(not row.flag for row in rows) == 18


def test_a_table_of_the_paper_as_csv(capsys):
    assert tables_main(["--paper", "3", "--csv"]) == 0
    lines = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert lines[0] == ["model", "arch", "printed", "recomputed", "flag"]
    assert lines[1] == ["CLIP", "L/14", "53.1", "52.9857", "true"] and [line[-1] for line in lines[2:]] == ["false"] * 9
    assert tables_main(["--paper", "11"]) == 2 and "unknown table of the paper" in capsys.readouterr().err


def measured(encoder="genlip-tiny", suite=SUITE, value=0.5, n=None, **changes) -> results.EncoderResult:
    """A row whose every column has the same share of its range, on 50 pictures with two questions each."""
    cells, scores = {}, {}
    draw = np.random.default_rng(0)
    for column in suite.columns:
        units = np.where(np.arange(100) < 100 * value, 1.0, 0.0) * column.range[1] / {"CIDEr": 10.0}.get(column.unit, 1.0)
        draw.shuffle(units)
        scores[column.name] = stats.Scores(np.arange(100).astype(str), (np.arange(100) // 2).astype(str), units, np.zeros(100, int))
        raw = scores[column.name].value
        cells[column.name] = results.make_cell(column, {column.metric: raw}, n or column.n, column.n, scores[column.name], "a" * 64)
    key = {"task": "t", "data": "d", "model": "a", "limit": None}
    made = Provenance(**provenance(encoder))
    facts = {"schema": SCHEMA, "suite": suite.name, "encoder": encoder, "llm": "llm-tiny", "n": 1, "n_expected": 1, "results": {}}
    keys = {task: Result(**facts, task=task, key=key, provenance=made) for task in suite.tasks}
    row = results.EncoderResult(encoder, "genlip", "llm-tiny", True, 64, 16, "a" * 64, False, cells, scores, keys)
    return replace(row, **changes)


def test_all_avg_is_the_mean_of_columns_at_100_for_full_marks():
    row = measured()  # 50 %, CIDEr 0.5, MME-P 1000 points
    assert row.cells["mme_p"].value == 1000 and row.cells["coco"].value == 50
    assert averages.average(SUITE.columns, row.cells) == pytest.approx(50)
    more = {**row.cells, "mme_p": replace(row.cells["mme_p"], value=1400.0), "coco": replace(row.cells["coco"], value=120.0)}
    assert averages.average(SUITE.columns, more) == pytest.approx(50 + (20 + 70) / 14)


def test_no_average_of_an_incomplete_row_but_of_its_complete_groups(tmp_path):
    row = measured()
    partial = {**row.cells, "chartqa": replace(row.cells["chartqa"], n=8, refused="8 of 2500")}
    text = tables.write_tables(SUITE, [replace(row, cells=partial)], tmp_path)
    (line,) = [line for line in csv.DictReader((tmp_path / "genlip14.csv").open()) if line["source"] == "measured"]
    assert (line["chartqa"], line["doc_ocr"], line["all_avg"], line["complete"]) == ("", "", "", "13/14")
    assert float(line["general_vqa"]) == float(line["caption"]) == pytest.approx(50)
    assert "(8 of 2500)" in text and "chartqa: 8 of 2500. No average" in text


def test_the_papers_rows_stand_beside_ours_and_are_marked(tmp_path):
    text = tables.write_tables(SUITE, [measured()], tmp_path)
    lines = list(csv.DictReader((tmp_path / "genlip14.csv").open()))
    assert ",".join(lines[0]) == (
        "encoder,arch,llm,frozen,resolution,tokens,source,chartqa,ocrbench,docvqa,textvqa,ai2d,infovqa,seed2plus,vqav2,gqa,scienceqa,"
        "mme_p,nocaps,coco,textcaps,doc_ocr,general_vqa,caption,all_avg,complete,digest"
    )
    assert [line["source"] for line in lines] == ["measured"] + ["printed"] * 19
    clip = lines[1]
    assert (clip["encoder"], clip["chartqa"], clip["mme_p"], clip["all_avg"], clip["resolution"]) == (
        "CLIP",
        "24.8",
        "1218.0",
        "53.1",
        "336",
    )
    assert "prints 53.1, its row's mean is 52.99" in text and "(paper)" in text
    header = (tmp_path / "genlip14_cells.csv").read_text().splitlines()[0]
    assert header == "encoder,benchmark,value,unit,n,n_expected,stderr,low,high,refused,weights_digest"


def test_the_table_of_pandas_is_the_csv(tmp_path, monkeypatch):
    root, data = handmade.make(tmp_path, monkeypatch)
    handmade.write_results(root, data, "half", handmade.right_share(3, 0.5), kinds=("shape",))
    tables.write_tables(handmade.SUITE, results.read_rows(root, handmade.SUITE), tmp_path)
    rows = eval_suites.table(root, "easyvqa")
    assert_frame_equal(rows, pandas.read_csv(tmp_path / "easyvqa.csv"), check_dtype=False)
    half = rows.set_index("encoder").loc["half"]
    assert half["shape"] > 0 and half[["colour", "yes_no", "all_avg"]].isna().all() and half["complete"] == "1/3"
    assert {str(rows[name].dtype) for name in ("shape", "colour", "yes_no", "all_avg")} == {"float64"}
    handmade.write_results(root, data, "digits", handmade.right_share(4, 0.5), weights_digest="12345678")
    assert "12345678" in set(eval_suites.table(str(root), "easyvqa")["digest"]), "a word, whatever it looks like"
    (tmp_path / "nothing").mkdir()
    printed = eval_suites.table(tmp_path / "nothing", "genlip14")
    assert len(printed) == 19 and set(printed["source"]) == {"printed"} and printed["digest"].isna().all()
    with pytest.raises(ValueError, match="is no folder of results"):
        eval_suites.table(tmp_path / "elsewhere", "genlip14")


def test_genlip15_averages_15_columns_and_says_whose_the_15th_is(tmp_path):
    suite = suites.get("genlip15")
    row = measured(suite=suite)
    text = tables.write_tables(suite, [row], tmp_path)
    assert row.cells["mme_c"].value == 400 and averages.average(suite.columns, row.cells) == pytest.approx(50)
    assert "15/15" in text and "The 15th is ours" in text and "(paper)" not in text


def test_an_interval_of_all_avg_is_narrower_than_of_a_column():
    row = measured()
    text = tables.markdown(SUITE, [row], [], [])
    cell = next(line for line in text.splitlines() if line.startswith("| genlip-tiny"))
    widths = [[float(x) for x in part.split("[")[1].split("]")[0].split(",")] for part in cell.split("|") if "[" in part]
    chartqa, all_avg = widths[0], widths[-1]
    assert all_avg[1] - all_avg[0] < (chartqa[1] - chartqa[0]) / 2


# --- comparison -------------------------------------------------------------------------------------------------------------


def test_better_worse_and_not_told_apart():
    a, b = measured(), measured("other")
    right = replace(a.scores["chartqa"], values=np.ones(100))
    a = replace(a, scores={**a.scores, "chartqa": right}, cells={**a.cells, "chartqa": replace(a.cells["chartqa"], value=100.0)})
    said = {line.title: line.verdict for line in comparison.compare(SUITE, a, b)}
    assert said["ChartQA"].word == "better" and said["ChartQA"].difference == pytest.approx(50)
    assert said["DocVQA"].word == "not told apart" and said["DocVQA"].difference == 0
    assert said["ALL AVG"].word == "better" and said["ALL AVG"].difference == pytest.approx(50 / 14)
    assert said["Doc & OCR"].word == "exploratory" and said["Doc & OCR"].difference == pytest.approx(50 / 7)
    assert said["Doc & OCR"].p == said["ChartQA"].p < 0.001 and said["ChartQA"].p_adjusted == pytest.approx(14 * said["ChartQA"].p)
    assert said["Caption"].word == "exploratory" and said["Caption"].difference == 0 and said["Caption"].p == 1
    assert {line.title: line.verdict for line in comparison.compare(SUITE, b, a)}["ChartQA"].word == "worse"


def test_other_data_or_other_prompts_are_not_compared():
    a, b = measured(), measured("other")
    for name, reason in (("data", "other data"), ("task", "other prompts")):
        keys = {**b.results, "chartqa": {**b.results["chartqa"], "key": {**b.results["chartqa"]["key"], name: "x"}}}
        lines = comparison.compare(SUITE, a, replace(b, results=keys))
        assert lines[0].verdict is None and reason in lines[0].reason
        said = {line.title: line.verdict for line in lines}
        assert said["DocVQA"] and said["Caption"]  # the other columns stand, and averages without it
        assert said["ChartQA"] is said["Doc & OCR"] is said["ALL AVG"] is None


def test_a_comparison_names_what_differs_besides_the_encoder():
    a, b = measured(), measured("other")
    more = {"parameters": {"encoder": 9}, "interpolation": "bicubic", "protocol": {"lr": 0.1}}
    b = with_provenance(b, data_digest="e" * 64, tokens=576, resolution=384, **more)
    assert comparison.differences(a, b) == ["tokens: 16 against 576", "data_digest: d against eeeeeeee...", "recipe.lr: 0.001 against 0.1"]
    text = tables.markdown(SUITE, [a, b], [], [(a, b)])
    assert "Besides the encoder, these differ:\n- tokens: 16 against 576" in text
    assert "these differ" not in tables.markdown(SUITE, [a], [], [(a, measured("third"))])


def test_no_interval_where_every_category_has_one_picture():
    strata = np.arange(40)
    alone = stats.Scores(strata.astype(str), strata.astype(str), np.ones(40), strata)
    a, b = (replace(row, scores={**row.scores, "mme_p": alone}) for row in (measured(), measured("other")))
    said = {line.title: line.verdict for line in comparison.compare(SUITE, a, b)}
    for title in ("MME-P", "General VQA", "ALL AVG"):  # the exchange needs no drawing of pictures
        assert said[title].low is None and said[title].p == 1
    assert said["Doc & OCR"].low is not None
    text = tables.markdown(SUITE, [a, b], [], [(a, b)])
    assert line_of(text.split("##")[1], "MME-P")["difference [95 %]"] == "+0.00"


def test_it_names_the_earlier_stage_that_differs():
    a, b = measured(), measured("other")
    one, two = (EarlierStage(schema=2, stage="projector", data_digest="d", protocol={"lr": lr}) for lr in (0.001, 0.002))
    a, b = with_provenance(a, earlier=[one]), with_provenance(b, earlier=[two, two])
    assert comparison.differences(a, b) == [
        "stage 1.recipe.lr: 0.001 against 0.002", "stage 2.stage: null against projector", "stage 2.data_digest: null against d",
        "stage 2.recipe.lr: null against 0.002",
    ]  # fmt: skip


def test_data_that_nobody_recorded_are_not_the_same_data():
    a, b = (with_provenance(measured(name, digest=name * 64), data_digest=None, weights_digest=name * 64) for name in "ab")
    assert comparison.differences(a, b) == ["data_digest: not recorded (aaaaaaaa) against not recorded (bbbbbbbb)"]
    assert "**" not in tables.markdown(SUITE, [a, b], [], [])


def test_rows_are_found_by_name_digest_or_export(tmp_path):
    one, two = measured(), measured(digest="b" * 64)
    with pytest.raises(ValueError, match=r"genlip-tiny@aaaaaaaa.*genlip-tiny@bbbbbbbb"):
        results.find_row([one, two], "genlip-tiny", SUITE)
    assert results.find_row([one, two], "genlip-tiny@bbbb", SUITE) is two
    (tmp_path / "provenance.json").write_text(json.dumps(provenance("genlip-tiny", weights_digest="b" * 64)))
    (tmp_path / "config.json").write_text("{}")
    assert results.find_row([one, two], f"genlip-tiny@{tmp_path}", SUITE) is two, "a row of schema 1 is known by its weights"
    new = replace(two, digest=of_export(tmp_path, "b" * 64).digest)
    assert results.find_row([one, new], f"genlip-tiny@{tmp_path}", SUITE) is new
    with pytest.raises(ValueError, match="no results of dinov2-s14"):
        results.find_row([one], "dinov2-s14", SUITE)


# --- without torch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [["eval_suites/run.py", "--help"], ["-m", "eval_suites.run", "--help"], ["-m", "eval_suites.tables", "--help"],
     ["-m", "eval_suites.tables", "--paper", "4"], ["-m", "eval_suites.results", "--help"], ["-m", "eval_suites.tasks", "--help"]],
)  # fmt: skip
def test_commands_answer_without_torch_pandas_and_lmms_eval(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'transformers', 'pandas', 'lmms_eval', 'datasets'):\n    sys.modules[name] = None\n"
    )
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout or "averages" in done.stdout


# --- marks ------------------------------------------------------------------------------------------------------------------


def with_provenance(row: results.EncoderResult, **changes) -> results.EncoderResult:
    return replace(row, results={t: replace(r, provenance=replace(r.provenance, **changes)) for t, r in row.results.items()})


def line_of(text: str, label: str) -> dict[str, str]:
    head, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    (line,) = [line for line in lines if line.split("|")[1].strip() == label]
    return dict(zip((cell.strip() for cell in head.split("|")[1:-1]), (cell.strip() for cell in line.split("|")[1:-1])))


def test_best_and_second_best_are_marked_among_rows_that_differ_in_the_encoder_alone():
    rows = [measured(name, value=value, digest=name[0] * 64) for name, value in (("a", 0.5), ("b", 0.7), ("c", 0.6), ("d", 0.9))]
    rows[3] = replace(with_provenance(rows[3], llm_digest_before="other"), llm="larger")
    text = tables.markdown(SUITE, rows, [], [])
    shown = {name: line_of(text, name)["ALL AVG"].split()[0] for name in "abcd"}
    assert shown == {"a": "50.0", "b": "**70.0**", "c": "<u>60.0</u>", "d": "90.0"}
    assert "- d dddddddd is not ranked with a aaaaaaaa, for these differ: llm_digest_before: larger other against llm-tiny l0" in text
    tied = [measured(name, value=0.5, digest=name * 64) for name in "ab"]
    assert {line_of(tables.markdown(SUITE, tied, [], []), name)["GQA"].split()[0] for name in "ab"} == {"**50.0**"}
    alone = tables.markdown(SUITE, rows[:1], [], [])
    assert "**" not in alone and "Bold" not in alone


def test_other_questions_or_a_hole_are_not_ranked():
    a, b = measured("a", value=0.5, digest="a" * 64), measured("b", value=0.7, digest="b" * 64)
    gqa = {"gqa": {**b.results["gqa"], "key": {**b.results["gqa"]["key"], "data": "other"}}}
    text = tables.markdown(SUITE, [a, replace(b, results={**b.results, **gqa})], [], [])
    assert "- b bbbbbbbb was asked otherwise than a aaaaaaaa, so not ranked there: other data in gqa." in text
    assert line_of(text, "b")["GQA"].startswith("70.0") and line_of(text, "b")["ChartQA"].startswith("**70.0**")
    assert line_of(text, "b")["General VQA"].startswith("70.0") and line_of(text, "b")["Doc & OCR"].startswith("**70.0**")
    hole = {**b.cells, "gqa": replace(b.cells["gqa"], refused="8 of 12578")}
    text = tables.markdown(SUITE, [a, replace(b, cells=hole)], [], [])
    assert "**" not in line_of(text, "b")["GQA"] and line_of(text, "b")["ALL AVG"] == "-"


def test_a_projector_stage_says_so_in_its_row():
    text = tables.markdown(SUITE, [with_provenance(measured("a"), stage="projector")], [], [])
    assert line_of(text, "a (projector stage)")["complete"] == "14/14"


def test_a_column_without_unreadable_pictures_is_averaged_only_where_allowed_and_marked(tmp_path):
    row = measured("a")
    column = next(column for column in SUITE.columns if column.name == "gqa")
    cell = results.make_cell(column, {column.metric: 0.5}, column.n - 1, column.n, row.scores["gqa"], "a" * 64, left_out=1)
    row = replace(row, cells={**row.cells, "gqa": cell})
    refused = line_of(tables.write_tables(SUITE, [row], tmp_path), "a")
    assert refused["ALL AVG"] == "-" and refused["complete"] == "13/14" and "12577 of 12578" in refused["GQA"]
    text = tables.write_tables(SUITE, [row], tmp_path, allow_partial=True)
    allowed = line_of(text, "a")
    assert allowed["GQA"].startswith("50.0\u2020 [") and allowed["ALL AVG"].startswith("50.0\u2020") and allowed["complete"] == "13/14"
    assert "\u2020 a aaaaaaaa: samples left out whose pictures cannot be read: gqa 1 of 12578." in text
    limited = results.make_cell(column, {column.metric: 0.5}, 8, column.n, row.scores["gqa"], left_out=1)
    assert averages.accept_unreadable(replace(row, cells={"gqa": limited})).cells["gqa"].refused  # a limit is no matter of pictures


def test_latex_holds_the_same_numbers_escaped(tmp_path):
    rows = [measured("my_enc&1", value=0.5, digest="a" * 64), measured("b", value=0.7, digest="b" * 64)]
    tables.write_tables(SUITE, rows, tmp_path)
    text = (tmp_path / "genlip14.tex").read_text()
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + 2 + 19 and {line.count(" & ") for line in lines} == {21}
    assert lines[1].startswith(r"my\_enc\&1 & genlip & llm-tiny & 16 & 50.0 &") and r"\textbf{70.0}" in lines[2]
    assert lines[0].count("Doc \\& OCR") == 1 and text.startswith(r"\begin{tabular}{lllr" + "r" * 18)


# --- versions of results ------------------------------------------------------------------------------------------------------


def test_a_row_of_schema_1_is_read_marked_and_never_ranked_with_one_of_schema_2():
    old = with_provenance(measured("old", value=0.7, digest="1" * 64), schema=1)
    rows = [measured("a", value=0.5), measured("b", value=0.6, digest="b" * 64), old]
    text = tables.markdown(SUITE, rows, [], [(rows[0], old)])
    assert line_of(text, "old (schema 1)")["ALL AVG"].startswith("70.0") and line_of(text, "b")["ALL AVG"].startswith("**60.0**")
    assert "- old (schema 1): trained or evaluated before exports and results had versions; ranked among themselves alone." in text
    assert "Besides the encoder, these differ:\n- schema: 2 against 1\n" in text


def test_what_does_not_change_what_is_learned_keeps_no_rows_apart():
    """8 GPUs or 4 at one global batch, the fields that the recipe calls harmless, other seeds."""
    a = measured("a", value=0.5)
    changes = {"processes": 4, "accumulation": 8, "zero": 2, "git_commit": "x", "versions": {"torch": "1"}, "seed": 1}
    recipe = {"lr": 0.001, "max_bad": 0.5, "gradient_checkpointing": False, "a field of tomorrow": 1}
    b = with_provenance(measured("b", value=0.7, digest="b" * 64), **changes, recipe=recipe)
    assert comparison.differences(a, b) == [] and line_of(tables.markdown(SUITE, [a, b], [], []), "b")["GQA"].startswith("**70.0**")
    c = with_provenance(b, protocol={"lr": 0.001, "per_step": "128 conversations"})
    assert comparison.differences(a, c) == ["recipe.per_step: null against 128 conversations"]
