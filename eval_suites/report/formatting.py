"""Lines of cells as markdown, CSV or LaTeX."""

import csv
import io
from collections.abc import Sequence

from genlip.common.labels import csv_cell, markdown_cell


def markdown_text(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    head, *lines = [tuple(markdown_cell(str(cell)) for cell in line) for line in (head, *lines)]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    rows = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in (head, *lines)]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]]) + "\n"


def p_text(p: float) -> str:
    """A p-value with three decimals, two leading figures where it is smaller."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}" if p >= 0.0001 else "<0.0001"


def csv_text(lines: list) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[csv_cell(cell) for cell in line] for line in lines])
    return out.getvalue()


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", **{c: rf"\{c}" for c in "&%$#_{}"}}


def latex(text: str) -> str:
    """Text as LaTeX sets it, letter by letter."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
