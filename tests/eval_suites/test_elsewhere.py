"""A row of plain lmms-eval's result files: in the table, averaged where it is whole, never ranked, never with an interval."""

import csv
import json

import pytest

from eval_suites import suites
from eval_suites.report import tables
from eval_suites.score import lmms_files
from eval_suites.tables import main as tables_main
from tests.eval_suites.test_tables import line_of, measured

SUITE = suites.get("genlip14")


def lmms_logs(folder, model="llava_hf", without=(), **changes):
    """Files as `lmms-eval --output_path` leaves them, one a run: every column of the paper's 14 at half its range."""
    folder.mkdir(parents=True)
    for task in SUITE.tasks:
        columns = [column for column in SUITE.columns if column.task == task and column.name not in without]
        metrics = {column.metric: 0.5 * column.full_mark / column.scale for column in columns} | changes.get(task, {})
        n = {task: {"original": columns[0].n, "effective": columns[0].n}} if columns else {}
        content = {"results": {task: metrics}, "n-samples": n, "config": {"model": model, "model_args": "pretrained=x", "limit": None}}
        if columns:
            (folder / f"20260101_{task}_results.json").write_text(json.dumps(content))
    return folder


def test_fourteen_files_make_a_row_with_the_papers_average(tmp_path, capsys):
    logs = lmms_logs(tmp_path / "logs" / "llava_hf")
    assert tables_main(["genlip14", "--lmms-eval", f"mine={logs.parent}", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    line = line_of(out, "mine")
    assert line["ALL AVG"] == "50.0" and line["complete"] == "14/14" and line["MME-P"] == "1000" and "**" not in "".join(line.values())
    assert "mine: of plain lmms-eval's files" in out and "SigLIP2 (paper)" in out
    with (tmp_path / "tables" / "genlip14.csv").open(newline="") as stream:
        rows = {row["encoder"]: row for row in csv.DictReader(stream)}
    assert rows["mine"]["source"] == "lmms-eval" and float(rows["mine"]["all_avg"]) == 50.0 and rows["mine"]["digest"] == ""


def test_it_stands_beside_our_rows_and_is_not_ranked_with_them(tmp_path):
    ours = [measured("a", value=0.6, digest="a" * 64), measured("b", value=0.7, digest="b" * 64)]
    row = lmms_files.read_elsewhere("mine", lmms_logs(tmp_path / "logs"), SUITE)
    text = tables.markdown(SUITE, [*ours, row], [], [])
    assert line_of(text, "b")["ALL AVG"].startswith("**") and not line_of(text, "mine")["ALL AVG"].startswith(("*", "<"))
    assert text == tables.markdown(SUITE, [row, *ours], [], []) or line_of(tables.markdown(SUITE, [row, *ours], [], []), "mine")
    assert tables.tabular(SUITE, [*ours, row], []).count("\n% mine: of plain lmms-eval's files") == 1


def test_what_lacks_or_is_partial_leaves_no_average(tmp_path):
    row = lmms_files.read_elsewhere("mine", lmms_logs(tmp_path / "a", without=("gqa",)), SUITE)
    assert row.cells["gqa"].refused == "not evaluated"
    line = line_of(tables.markdown(SUITE, [row], [], []), "mine")
    assert line["ALL AVG"] == "-" and line["complete"] == "13/14" and line["Caption"] != "-"
    logs = lmms_logs(tmp_path / "b", gqa={"exact_match,none": "N/A"})
    assert '"N/A"' in lmms_files.read_elsewhere("mine", logs, SUITE).cells["gqa"].refused


def test_what_is_no_row_is_refused_with_what_mends_it(tmp_path, capsys):
    lmms_logs(tmp_path / "two" / "x")
    lmms_logs(tmp_path / "two" / "y", model="qwen2_5_vl")
    with pytest.raises(ValueError, match=r"results of 2 models .*give each a NAME=FOLDER"):
        lmms_files.read_elsewhere("mine", tmp_path / "two", SUITE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no results of suite genlip14: its tasks are chartqa, "):
        lmms_files.read_elsewhere("mine", tmp_path / "empty", SUITE)
    with pytest.raises(ValueError, match="manifest, which such files do not name"):
        lmms_files.read_elsewhere("mine", tmp_path / "two", suites.get("mini14"))
    assert tables_main(["genlip14", "--lmms-eval", "logs"]) == 2
    assert tables_main(["genlip14", "--lmms-eval", f"mine={tmp_path}/none"]) == 2
    err = capsys.readouterr().err
    assert "give NAME=PATH" in err and "does not exist: give lmms-eval's --output_path folder" in err
