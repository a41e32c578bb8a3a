"""Cells -> averages, by the paper's rule: each column at 100 for full marks, and no average over a hole.

What full marks are is the column's declaration, and for data that state their own maximum (the mini world) that maximum.
"""

from dataclasses import replace

from eval_suites.score import stats
from eval_suites.score.results import Cell, EncoderResult
from eval_suites.suites import Column, Suite


def average(columns: tuple[Column, ...], cells: dict[str, Cell]) -> float | None:
    """Plain mean of the columns at 100 for full marks; None unless every one is complete."""
    marks = [mark for column in columns if (mark := cells[column.name].mark) is not None]
    return sum(marks) / len(marks) if marks and len(marks) == len(columns) else None


def overall(suite: Suite, row: EncoderResult) -> float | None:
    """Micro-average over all samples of the suite, in percent; None unless every column is complete and its samples are there."""
    if not all(cell.complete for cell in row.cells.values()) or any(column.name not in row.scores for column in suite.columns):
        return None
    return 100 * stats.pooled([row.scores[column.name] for column in suite.columns]).value


def accept_unreadable(row: EncoderResult) -> EncoderResult:
    """The row with columns that lack nothing but unreadable pictures let into its averages; the table marks both."""
    cells = {name: replace(cell, refused=None) if cell.complete_except_unreadable else cell for name, cell in row.cells.items()}
    return replace(row, cells=cells, members=tuple(accept_unreadable(member) for member in row.members))


def weights(columns: tuple[Column, ...], cells: dict[str, Cell]) -> list[float]:
    """Factors that turn lmms-eval's numbers of the columns into their ALL AVG."""
    return [column.scale * 100 / cells[column.name].full_mark / len(columns) for column in columns]


def average_bounds(suite: Suite, columns: tuple[Column, ...], row: EncoderResult) -> tuple[float | None, float | None]:
    """95 % interval of `average`, by picture; (None, None) where there is no average, no sample, or one picture is all there is."""
    value = average(columns, row.cells)
    if value is None or any(column.name not in row.scores for column in columns):
        return None, None
    error = stats.stderr([row.scores[column.name] for column in columns], weights(columns, row.cells))
    return (None, None) if error is None else (value - stats.Z * error, value + stats.Z * error)


def overall_bounds(suite: Suite, row: EncoderResult) -> tuple[float | None, float | None]:
    """95 % interval of `overall`, in percent, likewise."""
    value = overall(suite, row)
    if value is None:
        return None, None
    scores = stats.pooled([row.scores[column.name] for column in suite.columns])
    low, high = stats.interval(value / 100, stats.stderr([scores], [1.0]), len(set(scores.pictures)), (0.0, 1.0))
    return (None, None) if low is None or high is None else (100 * low, 100 * high)
