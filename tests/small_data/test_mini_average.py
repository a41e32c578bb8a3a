"""mini14's averages: a column counts as its share of the maximum that its data state, and says so; the paper's suites are as they were."""

from dataclasses import replace

import pytest

from eval_suites import suites
from eval_suites.report import tables
from eval_suites.score import averages, comparison, results
from tests.eval_suites.test_tables import measured

MINI = suites.get("mini14")
MAXIMA = {"ocrbench": 0.2, "mme_p": 2000.0, "nocaps": 4.9, "coco": 5.0, "textcaps": 4.5}  # as lmms-eval counts; the others 1


def row(share: float = 1.0, encoder: str = "a", maxima=MAXIMA) -> results.EncoderResult:
    """A row with `share` of each maximum, as results.read_row makes it of a result whose key carries the manifest's statement."""
    cells = {}
    for column in MINI.columns:
        most = maxima.get(column.name, 1.0)
        cell = results.make_cell(column, {column.metric: share * most}, 200, 200, None)
        cells[column.name] = results._marked(cell, column, {column.name: most} if column.task == "mini_mme" else most)
    paper = measured(encoder)
    return replace(paper, cells=cells, results={f"mini_{task}": result for task, result in paper.results.items()})


def test_full_marks_everywhere_average_a_hundred_and_half_of_them_fifty():
    assert averages.average(MINI.columns, row().cells) == pytest.approx(100)
    for columns in MINI.averaged.values():
        assert averages.average(columns, row(0.5).cells) == pytest.approx(50)
    assert sum(averages.weights(MINI.columns, row().cells)[i] * m for i, m in [(0, 1.0), (1, 0.2), (11, 4.9)]) == pytest.approx(300 / 14)


def test_the_table_says_what_full_marks_are(tmp_path):
    text = tables.write_tables(MINI, [row(0.5)], tmp_path)
    assert "value / maximum x 100" in text and "OCRBench 20, MME-P 2000, NoCaps 490, COCO 500, TextCaps 450, the others 100." in text
    assert text.count("value / maximum") == 1
    two = tables.write_tables(MINI, [row(0.5), row(0.6, "b", {**MAXIMA, "coco": 4.0})], tmp_path)
    assert "COCO 500" in two and "COCO 400" in two, "rows of two worlds have two full marks"
    assert "value / maximum" in (tmp_path / "mini14.tex").read_text()


def test_the_papers_suites_keep_the_papers_rule(tmp_path):
    suite = suites.get("genlip14")
    assert all(column.full_mark is not None for other in ("genlip14", "genlip15", "easyvqa") for column in suites.get(other).columns)
    paper = measured()
    assert averages.average(suite.columns, paper.cells) == pytest.approx(50)
    assert "value / maximum" not in tables.write_tables(suite, [paper], tmp_path)


@pytest.mark.parametrize("stated", [None, 0, {"mme_c": 800.0}])
def test_a_column_without_a_stated_maximum_has_no_number(stated):
    column = next(column for column in MINI.columns if column.name == "mme_p")
    cell = results._marked(results.make_cell(column, {column.metric: 1500.0}, 200, 200, None), column, stated)
    assert cell.value is None and "states no maximum" in cell.refused
    assert averages.average(MINI.columns, row().cells | {"mme_p": cell}) is None


def test_an_encoder_that_wins_a_column_of_few_points_is_told_in_the_average():
    """OCRBench's 20 printed points of full marks count as much as any column: half of them is 50, not 10."""
    half = row().cells["ocrbench"]
    cells = row().cells | {"ocrbench": replace(half, value=half.value / 2)}
    assert averages.average(MINI.columns, cells) == pytest.approx(100 - 50 / 14)
    assert comparison.ranks(MINI, [row(0.9), replace(row(encoder="b"), cells=cells)], MINI.columns) == {1: 1}
