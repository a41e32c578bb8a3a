"""Averages by the paper's rule, the paper's own rows, and what a table says where numbers are missing."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from eval_suites import results, stats, suites, tables
from tests.eval_suites.small import provenance

ROOT = Path(__file__).parents[2]
SUITE = suites.get("genlip14")


def test_every_printed_average_is_recomputed_and_exactly_the_known_rows_are_flagged():
    flagged, rows = [], 0
    for number in json.loads(tables.PAPER.read_text()):
        for row in tables.paper_table(number)[2]:
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
    border = {row.recomputed for number in ("3", "7") for row in tables.paper_table(number)[2]} & {Decimal("61.45"), Decimal("61.55")}
    assert len(border) == 2
    row = tables.Printed("m", "a", "", {}, Decimal("68.6"), Decimal("68.55"))
    assert not row.flag and replace(row, recomputed=Decimal("68.5499")).flag


def test_18_of_the_19_averages_of_tables_3_and_4_follow_the_rule_to_the_printed_digit():
    rows = [row for number in ("3", "4") for row in tables.paper_table(number)[2]]
    assert len(rows) == 19 and sum(not row.flag for row in rows) == 18


def test_a_table_of_the_paper_as_csv(capsys):
    assert tables.main(["--paper", "3", "--csv"]) == 0
    lines = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert lines[0] == ["model", "arch", "printed", "recomputed", "flag"]
    assert lines[1] == ["CLIP", "L/14", "53.1", "52.9857", "true"] and [line[-1] for line in lines[2:]] == ["false"] * 9
    assert tables.main(["--paper", "11"]) == 2 and "unknown table of the paper" in capsys.readouterr().err


def measured(encoder="genlip-tiny", suite=SUITE, value=0.5, n=None, **changes) -> results.Row:
    """A row whose every column has the same share of its range, on 50 pictures with two questions each."""
    cells, scores = {}, {}
    draw = np.random.default_rng(0)
    for column in suite.columns:
        units = np.where(np.arange(100) < 100 * value, 1.0, 0.0) * column.range[1] / {"CIDEr": 10.0}.get(column.unit, 1.0)
        draw.shuffle(units)
        scores[column.name] = stats.Scores(np.arange(100).astype(str), (np.arange(100) // 2).astype(str), units, np.zeros(100, int))
        raw = scores[column.name].value
        cells[column.name] = results.make_cell(column, {column.metric: raw}, n or column.n, column.n, scores[column.name], "a" * 64)
    keys = {
        task: {"key": {"task": "t", "data": "d", "weights": "a", "limit": None}, "provenance": provenance(encoder)} for task in suite.tasks
    }
    row = results.Row(encoder, "genlip", "llm-tiny", True, 64, 16, "a" * 64, False, cells, scores, keys)
    return replace(row, **changes)


def test_all_avg_is_the_mean_of_columns_at_100_for_full_marks():
    row = measured()  # 50 %, CIDEr 0.5, MME-P 1000 points
    assert row.cells["mme_p"].value == 1000 and row.cells["coco"].value == 50
    assert tables.average(SUITE.columns, row.cells) == pytest.approx(50)
    more = {**row.cells, "mme_p": replace(row.cells["mme_p"], value=1400.0), "coco": replace(row.cells["coco"], value=120.0)}
    assert tables.average(SUITE.columns, more) == pytest.approx(50 + (20 + 70) / 14)


def test_no_average_of_an_incomplete_row_but_of_its_complete_groups(tmp_path):
    row = measured()
    partial = {**row.cells, "chartqa": replace(row.cells["chartqa"], n=8, refused="8 of 2500")}
    text = tables.write(SUITE, [replace(row, cells=partial)], tmp_path)
    (line,) = [line for line in csv.DictReader((tmp_path / "genlip14.csv").open()) if line["source"] == "measured"]
    assert (line["chartqa"], line["doc_ocr"], line["all_avg"], line["complete"]) == ("", "", "", "13/14")
    assert float(line["general_vqa"]) == float(line["caption"]) == pytest.approx(50)
    assert "(8 of 2500)" in text and "chartqa: 8 of 2500. No average" in text


def test_the_papers_rows_stand_beside_ours_and_are_marked(tmp_path):
    text = tables.write(SUITE, [measured()], tmp_path)
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
    assert header == "encoder,benchmark,value,unit,n,n_expected,stderr,low,high,refused"


def test_genlip15_averages_15_columns_and_says_whose_the_15th_is(tmp_path):
    suite = suites.get("genlip15")
    row = measured(suite=suite)
    text = tables.write(suite, [row], tmp_path)
    assert row.cells["mme_c"].value == 400 and tables.average(suite.columns, row.cells) == pytest.approx(50)
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
    said = {line.title: line.verdict for line in tables.compare(SUITE, a, b)}
    assert said["ChartQA"].word == "better" and said["ChartQA"].difference == pytest.approx(50)
    assert said["DocVQA"].word == "not told apart" and said["DocVQA"].difference == 0
    assert said["ALL AVG"].word == "better" and said["ALL AVG"].difference == pytest.approx(50 / 14)
    assert {line.title: line.verdict for line in tables.compare(SUITE, b, a)}["ChartQA"].word == "worse"


def test_other_data_or_other_prompts_are_not_compared():
    a, b = measured(), measured("other")
    for name, reason in (("data", "other data"), ("task", "other prompts")):
        keys = {**b.results, "chartqa": {**b.results["chartqa"], "key": {**b.results["chartqa"]["key"], name: "x"}}}
        lines = tables.compare(SUITE, a, replace(b, results=keys))
        assert lines[0].verdict is None and reason in lines[0].reason
        assert lines[1].verdict is not None and lines[-1].verdict is None  # the other columns stand, ALL AVG does not


def test_a_comparison_names_what_differs_besides_the_encoder():
    a, b = measured(), measured("other")
    for result in b.results.values():
        result["provenance"].update(
            data_digest="e" * 64, tokens=576, resolution=384, recipe={"lr": 0.1, "encoder": "other", "out": "runs/b"}
        )
    assert tables.differences(a, b) == ["tokens: 16 against 576", "data_digest: d against eeeeeeee...", "recipe.lr: 0.001 against 0.1"]
    text = tables.markdown(SUITE, [a, b], [], [(a, b)])
    assert "Besides the encoder, these differ:\n- tokens: 16 against 576" in text
    assert "these differ" not in tables.markdown(SUITE, [a], [], [(a, measured("third"))])


def test_rows_are_found_by_name_digest_or_export(tmp_path):
    one, two = measured(), measured(digest="b" * 64)
    with pytest.raises(ValueError, match=r"genlip-tiny@aaaaaaaa.*genlip-tiny@bbbbbbbb"):
        tables.find_row([one, two], "genlip-tiny", SUITE)
    assert tables.find_row([one, two], "genlip-tiny@bbbb", SUITE) is two
    (tmp_path / "provenance.json").write_text(json.dumps({"weights_digest": "b" * 64}))
    assert tables.find_row([one, two], f"genlip-tiny@{tmp_path}", SUITE) is two
    with pytest.raises(ValueError, match="no results of dinov2-s14"):
        tables.find_row([one], "dinov2-s14", SUITE)


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
