"""What is believed of a result: it lies where it says, its row's tasks are of one MLLM, its samples are as many and as good as it says."""

import json
import shutil

import pytest

from eval_suites import compare, tables
from eval_suites.report import page
from eval_suites.score import results
from tests.eval_suites.helpers import handmade_results as handmade


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """(the folder with results/, encoder -> its row's folder) of two encoders with three columns of 40 questions each."""
    root, _ = handmade.make(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path, {folder.parent.name: folder for folder in root.glob("easyvqa/*/*")}


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cells(folder):
    row = results.read_row(folder, handmade.SUITE)
    return row, {name: cell.refused for name, cell in row.cells.items() if cell.refused}


def every_command_ends_without_a_traceback(folder) -> None:
    """Tables with a comparison, the report, the command compare."""
    assert tables.main(["easyvqa", "--compare", "good,poor"]) == 0
    suite, read, folders = page.read([folder / "results"])
    page.write_page(suite, read, folders, folder / "page.html")
    assert compare.main(["good", "poor"]) in (0, 2, 3)


def test_a_task_copied_from_another_row_is_a_refused_cell_and_the_row_keeps_its_name(rows, capsys):
    folder, row = rows
    for task in row["poor"].iterdir():  # the first task of the row among them: by it rows were named
        if task.name in ("easyvqa_shape", "easyvqa_yes_no"):
            shutil.rmtree(row["good"] / task.name)
            shutil.copytree(task, row["good"] / task.name)
    read, refused = cells(row["good"])
    assert read.encoder == "good" and read.cells["colour"].complete and set(read.scores) == {"colour"}
    assert set(refused) == {"shape", "yes_no"} and "its result says encoder poor, its folder good" in refused["shape"]
    every_command_ends_without_a_traceback(folder)
    assert "its result says encoder poor" in capsys.readouterr().out


def test_a_row_copied_under_another_name_is_a_row_without_numbers(rows, capsys):
    folder, row = rows
    shutil.rmtree(row["good"])
    shutil.copytree(row["poor"], row["good"].parent / row["poor"].name)
    read, refused = cells(row["good"].parent / row["poor"].name)
    assert (read.encoder, read.llm, read.digest) == ("good", *row["poor"].name.split("@")) and len(refused) == 3 and not read.results
    every_command_ends_without_a_traceback(folder)
    said = capsys.readouterr()
    assert "Traceback" not in said.err and "its result says encoder poor" in said.err and "of good no result is believed" in said.out


@pytest.mark.parametrize(("name", "value"), [("suite", "mini14"), ("task", "easyvqa_colour"), ("llm", "another")])
def test_every_part_of_the_folders_name_counts(rows, name, value):
    edit(rows[1]["good"] / "easyvqa_shape" / "result.json", **{name: value})
    _, refused = cells(rows[1]["good"])
    assert set(refused) == {"shape"} and f"says {'MLLM' if name == 'llm' else name} {value}" in refused["shape"]


def test_another_mllm_under_the_same_digest_is_told_by_its_provenance_and_fingerprint(rows):
    file = rows[1]["good"] / "easyvqa_shape" / "result.json"
    said = json.loads(file.read_text())
    edit(file, provenance=said["provenance"] | {"frozen": False})
    assert cells(rows[1]["good"])[1] == {"shape": f"its result is of another MLLM than the row's other tasks: {results.AGAIN}"}
    edit(file, provenance=said["provenance"] | {"git_commit": "1" * 40, "processes": 8})  # which makes no other model
    assert not cells(rows[1]["good"])[1]
    edit(file, fingerprint={"weights": "x", "view": "native"})
    assert cells(rows[1]["good"])[1] == {"shape": f"its fingerprint is not that of the MLLM that it names: {results.AGAIN}"}


def changed(lines: list[str], **fields) -> list[str]:
    """The samples, the last with other fields."""
    return [*lines[:-1], json.dumps(json.loads(lines[-1]) | fields) + "\n"]


@pytest.mark.parametrize(
    ("of_result", "of_lines", "why"),
    [
        ({"n": 39}, None, "says n = 39, and there are 40 samples"),
        ({}, lambda lines: lines[:-1], "says n = 40, and there are 39 samples"),
        ({}, lambda lines: [*lines, lines[0]], "hold 1 documents twice"),
        ({"left_out": {"3": "no picture"}}, None, "hold documents that its result left out"),
        ({"left_out": {"99": "no picture"}}, None, "40 samples and 1 left out where 40 are declared"),
        ({}, lambda lines: [lines[0].replace("1.0", "NaN").replace("0.0", "NaN"), *lines[1:]], "scores outside 0 to 1"),
        ({}, lambda lines: [lines[0].replace("1.0", "2.0").replace("0.0", "-1.0"), *lines[1:]], "scores outside 0 to 1"),
        ({}, lambda lines: [*lines[:-1], lines[-1][:20]], "line 40: not a sample of easyvqa_shape"),
        ({}, lambda lines: [*lines[:-1], "[" * 100_000 + "]" * 100_000 + "\n"], "line 40: not a sample of easyvqa_shape (RecursionError"),
        ({}, lambda lines: changed(lines, scores={"exact_match": 10**400}), "line 40: not a sample of easyvqa_shape (OverflowError"),
        ({}, lambda lines: changed(lines, scores=[1.0]), "line 40: not a sample of easyvqa_shape"),
        ({}, lambda lines: changed(lines, image={}), "line 40: not a sample of easyvqa_shape"),
        ({}, lambda lines: changed(lines, image={"bytes": ""}), "line 40: not a sample of easyvqa_shape"),
        ({}, lambda lines: changed(lines, doc_id=[39]), "line 40: not a sample of easyvqa_shape"),
        ({}, lambda lines: changed(lines, doc_id=10**30), "line 40: not a sample of easyvqa_shape"),
        ({"results": {"exact_match,none": float("nan")}}, None, "nan, outside 0 to 1"),
        ({"results": {"exact_match,none": float("inf")}}, None, "inf, outside 0 to 1"),
        ({"results": {"exact_match,none": 0.123}}, None, "the result says 0.123"),
    ],
)
def test_numbers_that_its_samples_do_not_bear_out_are_refused(rows, of_result, of_lines, why):
    folder, row = rows
    task = row["good"] / "easyvqa_shape"
    edit(task / "result.json", **of_result)
    if of_lines:
        lines = (task / "samples.jsonl").read_text().splitlines(keepends=True)
        (task / "samples.jsonl").write_text("".join(of_lines(lines)))
    read, refused = cells(row["good"])
    assert set(refused) == {"shape"} and why in refused["shape"] and read.cells["shape"].value is None
    every_command_ends_without_a_traceback(folder)


def test_a_result_without_its_samples_is_no_result(rows):
    folder, row = rows
    (row["good"] / "easyvqa_shape" / "samples.jsonl").unlink()
    assert "is gone, and a result without its samples is no result" in cells(row["good"])[1]["shape"]
    every_command_ends_without_a_traceback(folder)
