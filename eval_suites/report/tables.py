"""Cells -> tables: ALL AVG by the paper's rule, the paper's own rows beside ours, and whether two encoders can be told apart.

The command is eval_suites/tables.py.

ALL AVG is the plain mean of the columns, each at 100 for full marks (MME-P / 20; CIDEr x 100 as it is): 18 of the 19 averages printed
in the paper's tables 3 and 4 follow this rule to the printed digit; where data state their own maxima (the mini world), full marks are
those, and a footnote names them. An average is given only where every column of it is complete; a
row says k/n. Without torch: a table of fourteen full benchmarks takes a few seconds, nearly all of it reading answers.
"""

from decimal import Decimal
from pathlib import Path

from eval_suites.report.comparison import section
from eval_suites.report.formatting import csv_text, latex, markdown_text
from eval_suites.report.paper import Printed, paper_table
from eval_suites.score import comparison, seeds
from eval_suites.score.averages import accept_unreadable, average, average_bounds, overall, overall_bounds
from eval_suites.score.lmms_files import UNKNOWN
from eval_suites.score.results import Cell, EncoderResult
from eval_suites.score.seeds import NoiseFile
from eval_suites.suites import Column, Suite
from genlip.common.files import write_file

CELLS_HEADER = ("encoder", "benchmark", "value", "unit", "n", "n_expected", "stderr", "low", "high", "refused", "weights_digest")
DAGGER = "\u2020"  # marks values averaged despite unreadable pictures


# --- writing ----------------------------------------------------------------------------------------------------------------


def header(suite: Suite) -> tuple[str, ...]:
    """The CSV's header: what a row is, its benchmarks, its averages."""
    names = [column.name for column in suite.columns]
    last = ["all_avg", *(["overall"] if suite.overall else []), "complete", "digest"]
    return ("encoder", "arch", "llm", "frozen", "resolution", "tokens", "source", *names, *suite.groups, *last)


def complete_columns(row: EncoderResult) -> int:
    """How many columns lack no sample."""
    return sum(cell.complete and not cell.left_out for cell in row.cells.values())


def _measured_line(suite: Suite, row: EncoderResult) -> list:
    cells = [row.cells[column.name] for column in suite.columns]
    averages = [average(columns, row.cells) for columns in suite.averaged.values()]
    averages += [overall(suite, row)] if suite.overall else []
    frozen = "" if row.frozen is None else str(row.frozen).lower()
    complete = f"{complete_columns(row)}/{len(cells)}"
    values = [cell.value if cell.complete else None for cell in cells] + averages
    source = "lmms-eval" if row.elsewhere else "measured"
    return [_csv_name(row), row.arch, row.llm, frozen, row.resolution, row.tokens, source, *map(_plain, values), complete, row.digest]


def _csv_name(row: EncoderResult) -> str:
    return f"{row.encoder} ({row.seeds} seeds)" if row.members else row.encoder


def csv_table(suite: Suite, rows: list[EncoderResult]) -> str:
    """The rows, each followed by its seeds where it joins several, and the paper's below them."""
    printed = [printed_line(suite, table.llm, row) for table in map(paper_table, suite.paper) for row in table.rows]
    return csv_text([header(suite), *(_measured_line(suite, row) for row in seeds.apart(rows)), *printed])


def printed_line(suite: Suite, llm: str, row: Printed) -> list:
    """A row of tables 3 and 4: frozen, 24 x 24 = 576 tokens at 336 (patch 14) or 384 pixels (patch 16)."""
    *groups, _ = suite.averaged.values()
    means = [sum(row.scores[column.name] * 100 / Decimal(column.full_mark) for column in columns) / len(columns) for columns in groups]
    scores = [row.scores[column.name] for column in suite.columns]
    resolution = 336 if row.arch.endswith("/14") else 384
    values = [_plain(float(value)) for value in [*scores, *means, row.printed]]
    return [row.model, row.arch, llm, "true", resolution, 576, "printed", *values, f"{len(scores)}/{len(scores)}", ""]


def _plain(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def write_tables(
    suite: Suite,
    rows: list[EncoderResult],
    folder: Path,
    pairs: list[tuple[EncoderResult, EncoderResult]] = (),
    allow_partial: bool = False,
    noise: NoiseFile | None = None,
) -> str:
    """Write FOLDER/<suite>.md, .csv, .tex and _cells.csv, each whole or not at all; the markdown is returned.

    With `allow_partial` a column that lacks unreadable pictures alone is averaged, and marked. The CSV files have the seeds of a joined
    row below it.
    """
    if allow_partial:
        rows, pairs = [accept_unreadable(row) for row in rows], [(accept_unreadable(a), accept_unreadable(b)) for a, b in pairs]
    printed = [(table.llm, row) for table in map(paper_table, suite.paper) for row in table.rows]
    cells = [(row, cell) for row in seeds.apart(rows) for cell in row.cells.values()]
    long = [
        [_csv_name(row), *("" if getattr(cell, name) is None else getattr(cell, name) for name in CELLS_HEADER[1:-1]), row.weights_digest]
        for row, cell in cells
    ]
    text = markdown(suite, rows, printed, pairs, noise)
    for ending, content in ((".csv", csv_table(suite, rows)), ("_cells.csv", csv_text([CELLS_HEADER, *long])),
                            (".tex", tabular(suite, rows, printed)), (".md", text)):  # fmt: skip
        write_file(folder / f"{suite.name}{ending}", content)
    return text


def markdown(
    suite: Suite,
    rows: list[EncoderResult],
    printed: list[tuple[str, Printed]],
    pairs: list[tuple[EncoderResult, EncoderResult]],
    noise: NoiseFile | None = None,
) -> str:
    """The table for a reader: values with their 95 % intervals, best and second best, k/n, footnotes, comparisons."""
    titles = [*(column.title for column in suite.columns), *suite.averaged]
    overall_title = ["overall"] if suite.overall else []
    head = ("encoder", "arch", "LLM", "frozen", "pixels", "tokens", *titles, *overall_title, "complete", "MLLM")
    rank = [comparison.ranks(suite, rows, columns) for columns in [*((column,) for column in suite.columns), *suite.averaged.values()]]
    lines = []
    for i, row in enumerate(rows):
        values = [_shown(row.cells[column.name]) for column in suite.columns]
        values += [_average_shown(suite, columns, row) for columns in suite.averaged.values()]
        values = [_marked(value, ranks.get(i), "**{}**", "<u>{}</u>") for value, ranks in zip(values, rank)]
        values += [_overall_shown(suite, row)] if suite.overall else []
        frozen = {True: "yes", False: "no", None: ""}[row.frozen]
        made_of = (row.label, row.arch, row.llm, frozen, str(row.resolution or ""), str(row.tokens or ""))
        lines.append((*made_of, *values, f"{complete_columns(row)}/{len(row.cells)}", row.digest[:8]))
    for llm, row in printed:
        line = printed_line(suite, llm, row)
        numbers = [f"{value:.1f}" for value in line[7:-2]]
        lines.append((f"{row.model} (paper)", row.arch, llm, "yes", str(line[4]), str(line[5]), *numbers, line[-2], "printed"))
    legend = " Brackets: 95 % interval, by picture." if any(row.scores for row in rows) else ""
    if any(rank):
        legend += " Bold: best, underlined: second best, among rows that differ in the encoder alone."
    text = f"# {suite.name}\n\n{suite.note[:1].upper()}{suite.note[1:]}.{legend}\n\n{markdown_text(head, lines)}\n"
    text += "".join(f"- {note}\n" for note in footnotes(suite, rows, printed))
    return text + "".join(section(suite, a, b, noise) for a, b in pairs)


def stated_maxima(suite: Suite, rows: list[EncoderResult]) -> list[str]:
    """How averages count columns whose full marks the data state: a note, or one for each world where rows are of several."""
    columns = [column for column in suite.columns if column.full_mark is None]
    measured = [[row.cells[column.name] for column in columns] for row in rows]
    named = (
        ", ".join(f"{column.title} {cell.full_mark:.4g}" for column, cell in zip(columns, cells) if cell.full_mark != 100)
        for cells in measured
        if any(cell.value is not None for cell in cells)
    )
    rule = "Averages count a column as value / maximum x 100, by the maxima that the data's manifest states"
    return [f"{rule}: {maxima or 'all'}{', the others' if maxima else ''} 100." for maxima in dict.fromkeys(named)] if columns else []


def footnotes(suite: Suite, rows: list[EncoderResult], printed: list[tuple[str, Printed]]) -> list[str]:
    """What a reader of the table has to know: what full marks are, what was refused or left out, what differs besides the encoder."""
    notes = stated_maxima(suite, rows)
    for row in rows:
        name = f"{row.label} {row.digest[:8]}".strip()
        refused = [f"{cell.benchmark}: {cell.refused}" for cell in row.cells.values() if cell.refused and cell.refused != "not evaluated"]
        notes += [f"{name}: {'; '.join(refused)}. No average is given of an incomplete row."] if refused else []
        marked = [cell for cell in row.cells.values() if cell.complete and cell.left_out]
        let_in = [f"{cell.benchmark} {cell.left_out} of {cell.n_expected}" for cell in marked]
        notes += [f"{DAGGER} {name}: samples left out whose pictures cannot be read: {', '.join(let_in)}."] if let_in else []
    if old := [row.label for row in rows if row.schema == 1]:
        notes.append(f"{', '.join(old)}: trained or evaluated before exports and results had versions; ranked among themselves alone.")
    if own := [row.label for row in rows if row.by_authors]:
        notes.append(f"{', '.join(own)}: decoded as the MLLM's generation_config.json says, not greedily without penalties as the others.")
    elsewhere = [row for row in rows if row.elsewhere]
    if elsewhere:
        notes.append(
            f"{', '.join(row.label for row in elsewhere)}: of plain lmms-eval's files, which name no weights: no digest, no rank beside "
            f"rows of ours. Nothing states {', '.join(UNKNOWN[1:])}; between such rows a rank says only that they were asked the same."
        )
    for row in elsewhere:
        of_note: dict[str, list[str]] = {}
        for cell in row.cells.values():
            for said in cell.note.split("; ") if cell.note and cell.value is not None else []:
                of_note.setdefault(said, []).append(cell.benchmark)
        notes += [f"{row.label}: {said} ({', '.join(names)})." for said, names in of_note.items()]
    notes += [f"{why}." for why in seeds.unjoined(rows)]
    ours = [row for row in rows if row.results and not row.elsewhere]
    other = f"{ours[0].label} {ours[0].digest[:8]}" if ours else ""
    for row in ours[1:]:
        others = comparison.differences(row, ours[0])
        if others:
            said = "; ".join(others[:6]) + (f"; and {len(others) - 6} more" if len(others) > 6 else "")
            notes.append(f"{row.label} {row.digest[:8]} is not ranked with {other}, for these differ: {said}.")
        asked = comparison.asked_otherwise(row, ours[0])
        if asked:
            notes.append(f"{row.label} {row.digest[:8]} was asked otherwise than {other}, so not ranked there: {'; '.join(asked)}.")
    for llm, row in printed:
        if row.flag:
            notes.append(f"{row.model} {row.arch}, {llm}: the paper prints {row.printed}, its row's mean is {row.recomputed:.2f}.")
    if any(row.arch == "g/16" and row.model == "SigLIP2" and llm == "Qwen2.5-7B" for llm, row in printed):
        notes.append("SigLIP2 g/16, Qwen2.5-7B: five printed cells are those of SigLIP2 So/16 (OCRBench, DocVQA, TextVQA, SEED2+, MME-P).")
    return notes


def tabular(suite: Suite, rows: list[EncoderResult], printed: list[tuple[str, Printed]]) -> str:
    """The table for a paper: LaTeX with booktabs, values alone, best bold and second best underlined, footnotes as comments."""
    titles = [*(column.title for column in suite.columns), *suite.averaged]
    rank = [comparison.ranks(suite, rows, columns) for columns in [*((column,) for column in suite.columns), *suite.averaged.values()]]
    lines = []
    for i, row in enumerate(rows):
        values = [value_text(row.cells[column.name]) for column in suite.columns]
        values += [average_text(columns, row) for columns in suite.averaged.values()]
        marked = [_marked(latex(value), ranks.get(i), r"\textbf{{{}}}", r"\underline{{{}}}") for value, ranks in zip(values, rank)]
        lines.append([latex(row.label), latex(row.arch), latex(row.llm), str(row.tokens or ""), *marked])
    for llm, row in printed:
        line = printed_line(suite, llm, row)
        lines.append([latex(f"{row.model} (paper)"), latex(row.arch), latex(llm), "576", *(f"{value:.1f}" for value in line[7:-2])])
    head = " & ".join(map(latex, ["encoder", "arch", "LLM", "tokens", *titles]))
    body = "".join(" & ".join(line) + " \\\\\n" for line in lines)
    notes = "".join(f"% {note}\n" for note in footnotes(suite, rows, printed))
    top = f"\\begin{{tabular}}{{lllr{'r' * len(titles)}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
    return f"{top}{body}\\bottomrule\n\\end{{tabular}}\n{notes}"


def _marked(text: str, rank: int | None, best: str, second: str) -> str:
    """The value, up to its bracket, marked by rank."""
    if rank is None:
        return text
    value, space, rest = text.partition(" ")
    return (best if rank == 1 else second).format(value) + space + rest


def value_text(cell: Cell) -> str:
    if cell.value is None:
        return "-"
    return f"{cell.value:.{0 if cell.unit == 'points' else 1}f}" + (DAGGER if cell.complete and cell.left_out else "")


def _shown(cell: Cell) -> str:
    """A value with its interval, and with what makes it no full one."""
    partial = f" ({cell.refused})" if cell.value is not None and cell.refused else ""
    return f"{value_text(cell)}{_bracket(cell.low, cell.high, 0 if cell.unit == 'points' else 1)}{partial}"


def _bracket(low: float | None, high: float | None, digits: int = 1) -> str:
    return "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"


def average_text(columns: tuple[Column, ...], row: EncoderResult) -> str:
    value = average(columns, row.cells)
    return "-" if value is None else f"{value:.1f}" + DAGGER * any(row.cells[column.name].left_out for column in columns)


def _average_shown(suite: Suite, columns: tuple[Column, ...], row: EncoderResult) -> str:
    return average_text(columns, row) + _bracket(*average_bounds(suite, columns, row))


def _overall_shown(suite: Suite, row: EncoderResult) -> str:
    value = overall(suite, row)
    return "-" if value is None else f"{value:.1f}" + _bracket(*overall_bounds(suite, row))
