"""Lines of cells as markdown, CSV or LaTeX; and a file written whole or not at all."""

import csv
import io
import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write aside and rename: a reader meets the old file or the new one. Two runs that write one table may end at the same moment,
    so each has an aside of its own and the later one stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    aside.write_bytes(content if isinstance(content, bytes) else content.encode())
    aside.replace(path)


def markdown_text(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(str(line[i])) for line in (head, *lines)) for i in range(len(head))]
    rows = ["| " + " | ".join(str(cell).ljust(width) for cell, width in zip(line, widths)) + " |" for line in (head, *lines)]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]]) + "\n"


def csv_text(lines: list) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", **{c: rf"\{c}" for c in "&%$#_{}"}}


def latex(text: str) -> str:
    """Text as LaTeX sets it, letter by letter."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
