"""The paper's own tables (arXiv 2605.00809, numbered as in version 2), as data: their averages, printed and recomputed.

    python -m eval_suites.tables --paper 3 [--csv]

Decimal arithmetic: three rows lie exactly on a rounding border.
"""

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from eval_suites.report.formatting import csv_text, markdown_text
from genlip.common.suggest import choose

PAPER = Path(__file__).with_name("paper_tables.json")


@dataclass(frozen=True)
class Printed:
    """One row of a table of the paper, with its printed average and the mean of its own cells."""

    model: str
    arch: str
    note: str
    scores: dict[str, Decimal]
    printed: Decimal
    recomputed: Decimal

    @property
    def flag(self) -> bool:
        """Whether the printed average is not the mean of its row. Decimal, and strictly above: three rows lie on the border."""
        return abs(self.printed - self.recomputed) > Decimal("0.05")


class PaperTable(NamedTuple):
    caption: str
    llm: str
    rows: list[Printed]


def paper_table(number: str) -> PaperTable:
    """A table of the paper, numbered as in version 2 of arXiv 2605.00809."""
    tables = json.loads(PAPER.read_text(encoding="utf-8"), parse_float=Decimal, parse_int=Decimal)
    table = tables[choose(number, tables, "table of the paper (with averages)")]
    rows = []
    for row in table["rows"]:
        marks = [score * 100 / table["mme_p_max"] if name.lower() in ("mme-p", "mme_p") else score for name, score in row["scores"].items()]
        rows.append(Printed(row["model"], row["arch"], row.get("note", ""), row["scores"], row["average"], sum(marks) / len(marks)))
    return PaperTable(table["caption"], table["llm"], rows)


def paper_report(number: str, as_csv: bool) -> str:
    """The table's averages, printed and recomputed, as text or as CSV (`model,arch,printed,recomputed,flag`)."""
    caption, _, rows = paper_table(number)
    if as_csv:
        table = [(row.model, row.arch, row.printed, f"{row.recomputed:.4f}", str(row.flag).lower()) for row in rows]
        return csv_text([("model", "arch", "printed", "recomputed", "flag"), *table])
    head = ("model", "arch", "printed", "recomputed", "")
    lines = [
        (row.model, " ".join((row.arch, row.note)).strip(), str(row.printed), f"{row.recomputed:.3f}", "DOES NOT ADD UP" * row.flag)
        for row in rows
    ]
    count = f"{len(rows)} averages, {sum(row.flag for row in rows)} of them not the mean of their row."
    return f"Table {number} of the paper: {caption}\n\n{markdown_text(head, lines)}\n{count}\n"
