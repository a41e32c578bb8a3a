"""Cells -> tables: ALL AVG by the paper's rule, the paper's own rows beside ours, and whether two encoders can be told apart.

    python -m eval_suites.tables genlip14                                # results/ -> tables/genlip14.{md,csv}, genlip14_cells.csv
    python -m eval_suites.tables easyvqa --compare genlip-tiny,random-tiny
    python -m eval_suites.tables --paper 3 [--csv]                       # a table of the paper: its averages, printed and recomputed

ALL AVG is the plain mean of the columns, each at 100 for full marks (MME-P / 20; CIDEr x 100 as it is): 18 of the 19 averages printed
in the paper's tables 3 and 4 follow this rule to the printed digit. An average is given only where every column of it is complete; a
row says k/n. Without torch: a table of fourteen full benchmarks takes a few seconds, nearly all of it reading answers.
"""

import argparse
import csv
import io
import json
import sys
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from eval_suites import results, stats, suites
from eval_suites.results import Cell, Row
from eval_suites.suites import GROUPS, Column, Suite

PAPER = Path(__file__).parent / "paper" / "tables.json"
CELLS_HEADER = ("encoder", "benchmark", "value", "unit", "n", "n_expected", "stderr", "low", "high", "refused")
# What may differ between two MLLMs without a word in a comparison: what an encoder is, what follows from it, names of files. Digests
# say whether data and language model were the same, so their paths need not.
_ENCODERS_OWN = {"encoder", "encoder_key", "arch", "untrained", "resolution", "weights_digest", "encoder_digest", "encoder_digest_before"}
_NOT_COMPARED = {*_ENCODERS_OWN, "llm_digest", "git_commit", "out", "init", "data", "images", "workers", "cache_features"}


# --- averages ---------------------------------------------------------------------------------------------------------------


def average(columns: tuple[Column, ...], cells: dict[str, Cell]) -> float | None:
    """Plain mean of the columns at 100 for full marks; None unless every one is complete."""
    if not columns or not all(cells[column.name].complete for column in columns):
        return None
    return sum(cells[column.name].value * 100 / column.full_mark for column in columns) / len(columns)


def overall(suite: Suite, row: Row) -> float | None:
    """Micro-average over all samples of the suite, in percent; None unless every column is complete."""
    if not all(cell.complete for cell in row.cells.values()):
        return None
    return 100 * stats.pooled([row.scores[column.name] for column in suite.columns]).value


def admit(row: Row) -> Row:
    """The row with columns that lack nothing but unreadable pictures let into its averages; the table marks both."""
    return replace(row, cells={name: replace(cell, refused=None) if cell.nearly else cell for name, cell in row.cells.items()})


def _weights(columns: tuple[Column, ...]) -> list[float]:
    """Factors that turn lmms-eval's numbers of the columns into their ALL AVG."""
    return [column.scale * 100 / column.full_mark / len(columns) for column in columns]


# --- the paper's tables -----------------------------------------------------------------------------------------------------


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


def paper_table(number: str) -> tuple[str, str, list[Printed]]:
    """(caption, LLM, rows) of a table of the paper, numbered as in version 2 of arXiv 2605.00809."""
    tables = json.loads(PAPER.read_text(encoding="utf-8"), parse_float=Decimal, parse_int=Decimal)
    table = tables[suites.choose(number, tables, "table of the paper (with averages)")]
    rows = []
    for row in table["rows"]:
        marks = [score * 100 / table["mme_p_max"] if name.lower() in ("mme-p", "mme_p") else score for name, score in row["scores"].items()]
        rows.append(Printed(row["model"], row["arch"], row.get("note", ""), row["scores"], row["average"], sum(marks) / len(marks)))
    return table["caption"], table["llm"], rows


def paper_report(number: str, as_csv: bool) -> str:
    """The table's averages, printed and recomputed, as text or as CSV (`model,arch,printed,recomputed,flag`)."""
    caption, _, rows = paper_table(number)
    if as_csv:
        lines = [(row.model, row.arch, row.printed, f"{row.recomputed:.4f}", str(row.flag).lower()) for row in rows]
        return _csv([("model", "arch", "printed", "recomputed", "flag"), *lines])
    head = ("model", "arch", "printed", "recomputed", "")
    lines = [
        (row.model, " ".join((row.arch, row.note)).strip(), str(row.printed), f"{row.recomputed:.3f}", "DOES NOT ADD UP" * row.flag)
        for row in rows
    ]
    count = f"{len(rows)} averages, {sum(row.flag for row in rows)} of them not the mean of their row."
    return f"Table {number} of the paper: {caption}\n\n{_markdown(head, lines)}\n{count}\n"


# --- comparison -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One line of a comparison: two values and what may be said of their difference, or why nothing may."""

    title: str
    a: float | None
    b: float | None
    n: int | None
    verdict: stats.Verdict | None
    reason: str = ""


def compare(suite: Suite, a: Row, b: Row) -> list[Compared]:
    """Every column, ALL AVG and the micro-average of `a` against `b`: paired by question, drawn by picture."""
    lines, paired = [], {}
    for column in suite.columns:
        one, two = a.cells[column.name], b.cells[column.name]
        reason = _incomparable(column, a, b)
        if not reason:
            try:
                paired[column.name] = stats.difference(a.scores[column.name], b.scores[column.name])
            except ValueError as error:
                reason = str(error)
        verdict = None if reason else stats.judge([paired[column.name]], [column.scale], False, column.higher_is_better)
        lines.append(Compared(column.title, one.value, two.value, one.n if not reason else None, verdict, reason or one.refused or ""))
    complete = all(row.cells[column.name].complete for row in (a, b) for column in suite.columns) and len(paired) == len(suite.columns)
    parts = list(paired.values())
    means = [average(suite.columns, row.cells) for row in (a, b)]
    verdict = stats.judge(parts, _weights(suite.columns), suite.shared_pictures) if complete else None
    lines.append(Compared("ALL AVG", *means, None, verdict, "" if complete else "not every column is complete in both"))
    if suite.overall:
        verdict = stats.judge([stats.pooled(parts)], [100.0], True) if complete else None
        n = sum(len(part.ids) for part in parts) if complete else None
        lines.append(Compared("overall", overall(suite, a), overall(suite, b), n, verdict, lines[-1].reason))
    return lines


def _incomparable(column: Column, a: Row, b: Row) -> str:
    for row in (a, b):
        if row.cells[column.name].value is None:
            return f"{row.label}: {row.cells[column.name].refused}"
    one, two = a.results[column.task]["key"], b.results[column.task]["key"]
    for name, what in (("task", "other prompts or metrics"), ("data", "other data")):
        if one[name] != two[name]:
            return f"{what}: evaluate both again with the same {'version' if name == 'task' else 'data'}"
    return ""


def differences(a: Row, b: Row) -> list[str]:
    """What differs between the two rows' MLLMs besides the encoder: language model, data, recipe, token budget, ..."""
    one, two = (next(iter(row.results.values()))["provenance"] for row in (a, b))
    flat = [{**x, **{f"recipe.{k}": v for k, v in (x.get("recipe") or {}).items()}, "recipe": None} for x in (one, two)]
    names = [name for name in {**flat[0], **flat[1]} if name.removeprefix("recipe.") not in _NOT_COMPARED]
    return [
        f"{name}: {_short(flat[0].get(name))} against {_short(flat[1].get(name))}"
        for name in names
        if flat[0].get(name) != flat[1].get(name)
    ]


def _short(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:8]}..."


# --- writing ----------------------------------------------------------------------------------------------------------------


def header(suite: Suite) -> tuple[str, ...]:
    """The CSV's header: what a row is, its benchmarks, its averages."""
    names = [column.name for column in suite.columns]
    last = ["all_avg", *(["overall"] if suite.overall else []), "complete", "digest"]
    return ("encoder", "arch", "llm", "frozen", "resolution", "tokens", "source", *names, *suite.groups, *last)


def _whole(row: Row) -> int:
    """How many columns lack no sample."""
    return sum(cell.complete and not cell.left_out for cell in row.cells.values())


def _group(suite: Suite, group: str) -> tuple[Column, ...]:
    return tuple(column for column in suite.columns if column.group == group)


def _measured_line(suite: Suite, row: Row) -> list:
    cells = [row.cells[column.name] for column in suite.columns]
    averages = [average(_group(suite, group), row.cells) for group in suite.groups] + [average(suite.columns, row.cells)]
    averages += [overall(suite, row)] if suite.overall else []
    frozen = "" if row.frozen is None else str(row.frozen).lower()
    complete = f"{_whole(row)}/{len(cells)}"
    values = [cell.value if cell.complete else None for cell in cells] + averages
    return [row.encoder, row.arch, row.llm, frozen, row.resolution, row.tokens, "measured", *map(_plain, values), complete, row.digest]


def _printed_line(suite: Suite, llm: str, row: Printed) -> list:
    """A row of tables 3 and 4: frozen, 24 x 24 = 576 tokens at 336 (patch 14) or 384 pixels (patch 16)."""
    groups = [sum(row.scores[c.name] * 100 / Decimal(c.full_mark) for c in _group(suite, g)) / len(_group(suite, g)) for g in suite.groups]
    scores = [row.scores[column.name] for column in suite.columns]
    resolution = 336 if row.arch.endswith("/14") else 384
    values = [_plain(float(value)) for value in [*scores, *groups, row.printed]]
    return [row.model, row.arch, llm, "true", resolution, 576, "printed", *values, f"{len(scores)}/{len(scores)}", ""]


def _plain(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def write(suite: Suite, rows: list[Row], folder: Path, pairs: list[tuple[Row, Row]] = (), allow_partial: bool = False) -> str:
    """Write FOLDER/<suite>.md, .csv and _cells.csv, each whole or not at all; the markdown is returned.

    With `allow_partial` a column that lacks unreadable pictures alone is averaged, and marked.
    """
    if allow_partial:
        rows, pairs = [admit(row) for row in rows], [(admit(a), admit(b)) for a, b in pairs]
    printed = [(llm, row) for number in suite.paper for _, llm, table in [paper_table(number)] for row in table]
    lines = [_measured_line(suite, row) for row in rows] + [_printed_line(suite, llm, row) for llm, row in printed]
    cells = [(row.encoder, cell) for row in rows for cell in row.cells.values()]
    long = [
        [encoder, *("" if getattr(cell, name) is None else getattr(cell, name) for name in CELLS_HEADER[1:])] for encoder, cell in cells
    ]
    text = markdown(suite, rows, printed, pairs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((f"{suite.name}.csv", _csv([header(suite), *lines])), (f"{suite.name}_cells.csv", _csv([CELLS_HEADER, *long])),
                          (f"{suite.name}.md", text)):  # fmt: skip
        aside = folder / f"{name}.partial"
        aside.write_text(content, encoding="utf-8")
        aside.replace(folder / name)
    return text


def markdown(suite: Suite, rows: list[Row], printed: list[tuple[str, Printed]], pairs: list[tuple[Row, Row]]) -> str:
    """The table for a reader: values with their 95 % intervals, k/n, footnotes, comparisons."""
    titles = [column.title for column in suite.columns] + [GROUPS[group] for group in suite.groups] + ["ALL AVG"]
    head = ("encoder", "arch", "LLM", "frozen", "tokens", *titles, *(["overall"] if suite.overall else []), "complete", "weights")
    lines, notes = [], []
    for row in rows:
        cells = [_shown(row.cells[column.name]) for column in suite.columns]
        averages = [_average_shown(suite, _group(suite, group), row) for group in suite.groups] + [
            _average_shown(suite, suite.columns, row)
        ]
        if suite.overall:
            averages.append(_overall_shown(suite, row))
        frozen = {True: "yes", False: "no", None: ""}[row.frozen]
        complete = f"{_whole(row)}/{len(cells)}"
        lines.append((row.label, row.arch, row.llm, frozen, str(row.tokens or ""), *cells, *averages, complete, row.digest[:8]))
        refused = [f"{cell.benchmark}: {cell.refused}" for cell in row.cells.values() if cell.refused and cell.refused != "not evaluated"]
        notes += [f"{row.label} {row.digest[:8]}: {'; '.join(refused)}. No average is given of an incomplete row."] if refused else []
    for llm, row in printed:
        line = _printed_line(suite, llm, row)
        numbers = [f"{value:.1f}" for value in line[7:-2]]
        lines.append((f"{row.model} (paper)", row.arch, llm, "yes", "576", *numbers, line[-2], "printed"))
        notes += (
            [f"{row.model} {row.arch}, {llm}: the paper prints {row.printed}, its row's mean is {row.recomputed:.2f}."] if row.flag else []
        )
    if any(row.arch == "g/16" and row.model == "SigLIP2" and llm == "Qwen2.5-7B" for llm, row in printed):
        notes.append("SigLIP2 g/16, Qwen2.5-7B: five printed cells are those of SigLIP2 So/16 (OCRBench, DocVQA, TextVQA, SEED2+, MME-P).")
    marks = "" if not any(row.scores for row in rows) else " Brackets: 95 % interval, by picture."
    text = f"# {suite.name}\n\n{suite.note[:1].upper()}{suite.note[1:]}.{marks}\n\n{_markdown(head, lines)}\n"
    text += "".join(f"- {note}\n" for note in notes)
    for a, b in pairs:
        text += _comparison(suite, a, b)
    return text


def _shown(cell: Cell) -> str:
    if cell.value is None:
        return "-"
    digits = 0 if cell.unit == "points" else 1
    partial = f" ({cell.refused})" if cell.refused else ""
    return f"{cell.value:.{digits}f}{_bracket(cell.low, cell.high, digits)}{partial}"


def _bracket(low: float | None, high: float | None, digits: int = 1) -> str:
    return "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"


def _average_shown(suite: Suite, columns: tuple[Column, ...], row: Row) -> str:
    value = average(columns, row.cells)
    if value is None:
        return "-"
    error = stats.stderr([row.scores[column.name] for column in columns], _weights(columns), suite.shared_pictures)
    return f"{value:.1f}" + ("" if error is None else _bracket(value - stats.Z * error, value + stats.Z * error))


def _overall_shown(suite: Suite, row: Row) -> str:
    value = overall(suite, row)
    if value is None:
        return "-"
    scores = stats.pooled([row.scores[column.name] for column in suite.columns])
    low, high = stats.interval(value / 100, stats.stderr([scores], [1.0], True), len(set(scores.pictures)), (0.0, 1.0))
    return f"{value:.1f}" + ("" if low is None else _bracket(100 * low, 100 * high))


def _comparison(suite: Suite, a: Row, b: Row) -> str:
    """The section of one pair: values, paired difference with its interval, verdict, and what else differs."""
    lines = []
    for line in compare(suite, a, b):
        values = ["-" if value is None else f"{value:.2f}" for value in (line.a, line.b)]
        verdict = line.verdict
        told = (
            ("-", line.reason)
            if verdict is None
            else (f"{verdict.difference:+.2f} [{verdict.low:+.2f}, {verdict.high:+.2f}]", verdict.word)
        )
        few = f" ({verdict.pictures} pictures: too few to tell)" if verdict and verdict.pictures < stats.FEWEST_PICTURES else ""
        partial = f" ({line.reason})" if verdict and line.reason else ""
        lines.append((line.title, *values, told[0], str(line.n or ""), f"{told[1]}{few}{partial}"))
    head = ("benchmark", a.label, b.label, "difference [95 %]", "n", f"{a.label} is")
    others = differences(a, b)
    text = f"\n## {a.label} ({a.digest[:8]}) against {b.label} ({b.digest[:8]})\n\n"
    text += f"Paired by question, {stats.DRAWS} draws of pictures.\n\n{_markdown(head, lines)}\n"
    return text + ("Besides the encoder, these differ:\n" + "".join(f"- {other}\n" for other in others) if others else "")


def _markdown(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(str(line[i])) for line in (head, *lines)) for i in range(len(head))]
    rows = ["| " + " | ".join(str(cell).ljust(width) for cell, width in zip(line, widths)) + " |" for line in (head, *lines)]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]]) + "\n"


def _csv(lines: list) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


# --- command ----------------------------------------------------------------------------------------------------------------


def find_row(rows: list[Row], name: str, suite: Suite) -> Row:
    """The row of `ENCODER`, `ENCODER@DIGEST` (its first digits) or `ENCODER@EXPORT` (its folder). ValueError where none or several are."""
    encoder, _, which = name.partition("@")
    if which and (Path(which) / "provenance.json").exists():
        which = json.loads((Path(which) / "provenance.json").read_text(encoding="utf-8"))["weights_digest"]
    found = [row for row in rows if row.encoder == encoder and row.digest.startswith(which)]
    if not found:
        there = ", ".join(sorted({row.encoder for row in rows})) or "none"
        raise ValueError(
            f"no results of {name} in suite {suite.name} (there are: {there}). Evaluate it: "
            f"python eval_suites/run.py --encoder {encoder} --suite {suite.name}"
        )
    if len(found) > 1:
        choices = ", ".join(f"{encoder}@{row.digest[:8]} ({row.llm})" for row in found)
        raise ValueError(f"{len(found)} rows of {name}: say which, one of {choices}")
    return found[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval_suites.tables",
        description="Build a suite's table from results, or check a table of the paper.",
        epilog="examples:\n  python -m eval_suites.tables genlip14\n"
        "  python -m eval_suites.tables easyvqa --compare genlip-tiny,random-tiny\n  python -m eval_suites.tables --paper 3 --csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", nargs="?", help=f"one of {', '.join(suites.SUITES)}")
    parser.add_argument("--out", type=Path, default=Path(), help="folder with results/; tables/ goes there (default: here)")
    parser.add_argument(
        "--compare", metavar="A,B,...", help="the first encoder against each of the others; NAME@DIGEST picks among several"
    )
    parser.add_argument("--paper", metavar="N", help="a table of the paper: its averages, printed and recomputed")
    parser.add_argument("--csv", action="store_true", help="with --paper: as CSV")
    args = parser.parse_args(argv)
    try:
        if bool(args.paper) == bool(args.suite):
            raise ValueError("give a suite, or --paper N")
        if args.paper:
            print(paper_report(args.paper, args.csv), end="")
            return 0
        suite = suites.get(args.suite)
        rows = results.read_rows(args.out / "results", suite)
        names = [name.strip() for name in args.compare.split(",")] if args.compare else []
        if len(names) == 1:
            raise ValueError("--compare wants two encoders or more, as in --compare A,B")
        picked = [find_row(rows, name, suite) for name in names]
        print(write(suite, rows, args.out / "tables", [(picked[0], other) for other in picked[1:]]), end="")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
