"""One page on which a person sees what the numbers mean: the table, charts, paired differences, the questions themselves, and what was run.

    python -m eval_suites.report results --data-root data --out report.html
    python -m eval_suites.report results --suite genlip14 --figures figures/        # the charts as SVG files, for a paper

The file holds everything: it opens from disk, without a network, on a phone and on a wide screen. Every number comes from the functions
that make the table (results, averages, compare); nothing is computed here but places on a chart. What data sets and models said is carried
as JSON and set as text, never as markup, and the page's policy lets no script run but its own and nothing be fetched.

14 benchmarks x 3 encoders x 200 samples with 2,800 photos of 640 x 480: 22 MB; 11 s of processor time, three quarters of it on the photos,
which all cores share; 0.5 s to open. run.py writes it to tables/<suite>.html at its end. Needs no torch.
"""

import base64
import hashlib
import html
import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from eval_suites import suites
from eval_suites.report import charts, runs, samples, svg, tables
from eval_suites.report.comparison import how
from eval_suites.report.paper import Printed, paper_table
from eval_suites.score import comparison, results, seeds
from eval_suites.score.averages import accept_unreadable, average, average_bounds, overall, overall_bounds
from eval_suites.score.results import Cell, EncoderResult
from eval_suites.score.seeds import NoiseFile
from eval_suites.suites import GROUPS, Column, Suite
from genlip.common.files import write_file

SAMPLES = 200
ALL_PAIRS = 4  # rows; of more, each is compared with the first
ASSETS = Path(__file__).parent / "assets"
MARK = '<!doctype html><meta name="generator" content="genlip-eval report">'


# --- reading ----------------------------------------------------------------------------------------------------------------


def read(paths: list[Path], name: str | None = None) -> tuple[Suite, list[EncoderResult], list[Path]]:
    """(suite, rows, each row's folder) of all results under `paths`: results/, results/SUITE/ or single rows' folders.

    Seeds of one encoder are one row, and its folder is that of the first.

    ValueError where there are none, or of several suites and `name` does not say which.
    """
    found: dict[Path, str] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist: give a results folder, as run.py writes it")
        for file in sorted(path.rglob("result.json")):
            folder = file.parents[1]  # RESULTS/SUITE/ENCODER/LLM@DIGEST8
            found[folder] = folder.absolute().parts[-3]
    if not found:
        where = ", ".join(map(str, paths))
        raise ValueError(f"no result under {where}: evaluate an encoder first, python eval_suites/run.py --encoder KEY")
    there = sorted(set(found.values()))
    suite = suites.get(name) if name else None
    if suite is None and len(there) > 1:
        raise ValueError(f"results of different suites: {', '.join(there)}. A report shows one; say which, as in --suite {there[0]}")
    if suite is None and there[0] not in suites.SUITES:
        raise ValueError(f"suite {there[0]} is none of ours: give its file, --suite {there[0]}.yaml")
    suite = suite or suites.get(there[0])
    folders = [folder for folder in found if found[folder] == suite.name]
    if not folders:
        raise ValueError(f"no results of suite {suite.name} there, but of {', '.join(there)}")
    pairs = [(results.read_row(folder, suite), folder) for folder in folders]
    pairs = sorted((pair for pair in pairs if pair[0]), key=lambda pair: (pair[0].llm, pair[0].encoder, pair[0].digest))
    if not pairs:
        raise ValueError(f"none of the tasks of suite {suite.name} is done there: {', '.join(suite.tasks)}")
    rows = seeds.join(suite, [row for row, _ in pairs])
    return suite, rows, [next(folder for row, folder in pairs if row is joined.first) for joined in rows]


def names(rows: list[EncoderResult]) -> list[str]:
    """What each row is called on the page: its label, with the language model and the digest where labels alone would be the same."""
    labels = [row.label for row in rows]
    longer = [f"{row.label}, {row.llm}" if labels.count(row.label) > 1 else row.label for row in rows]
    return [f"{name} @{row.digest[:8]}" if longer.count(name) > 1 else name for name, row in zip(longer, rows)]


def _unfinished(folder: Path, task: str) -> str:
    """What is there of a task that has no result."""
    answered = [max(0, sum(1 for _ in file.open("rb")) - 1) for file in (folder / task).glob("answers-*.jsonl")]
    said = "not evaluated"
    if answered:
        said = f"half done: {max(answered)} answers, no result yet; the same run command goes on from there"
    if (folder / task / "failed.txt").exists():
        lines = (folder / task / "failed.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said += f"; it failed ({lines[-1][:160] if lines else 'no reason given'})"
    return said


# --- the page's data --------------------------------------------------------------------------------------------------------


def _columns(suite: Suite) -> list[dict]:
    """The table's columns: averages first, since they are what one looks for, then the benchmarks."""
    averages = [{"name": "all_avg", "title": "ALL AVG", "kind": "average"}]
    averages += [{"name": "overall", "title": "overall", "kind": "average"}] if suite.overall else []
    averages += [{"name": group, "title": GROUPS[group], "kind": "average"} for group in suite.groups]
    said = ("name", "title", "task", "metric", "unit", "split")
    return averages + [
        {"kind": "benchmark", "group": GROUPS.get(column.group, ""), **{name: getattr(column, name) for name in said}}
        for column in suite.columns
    ]


def _averaged(suite: Suite) -> list[tuple[str, tuple[Column, ...]]]:
    *groups, everything = suite.averaged.values()
    return [("all_avg", everything), *zip(suite.groups, groups)]


def _measured(suite: Suite, rows: list[EncoderResult], folders: list[Path], called: list[str]) -> list[dict]:
    rank = {name: comparison.ranks(suite, rows, columns) for name, columns in _averaged(suite)}
    rank |= {column.name: comparison.ranks(suite, rows, (column,)) for column in suite.columns}
    lines = []
    for i, (row, folder) in enumerate(zip(rows, folders)):
        cells = {}
        for name, columns in _averaged(suite):
            value = average(columns, row.cells)
            why = "" if value is not None else f"no average over a hole: {_holes(columns, row)}"
            cells[name] = _shown(value, average_bounds(suite, columns, row), tables.average_text(columns, row), why)
        if suite.overall:
            value = overall(suite, row)
            text = "-" if value is None else f"{value:.1f}"
            cells["overall"] = _shown(value, overall_bounds(suite, row), text, "" if value is not None else "not every column is complete")
        for column in suite.columns:
            cells[column.name] = _cell(row.cells[column.name], folder)
        for name, ranks in rank.items():
            cells[name]["rank"] = ranks.get(i)
        lines.append(
            {
                "name": called[i], "encoder": row.encoder, "arch": row.arch, "llm": row.llm, "frozen": row.frozen, "pixels": row.resolution,
                "tokens": row.tokens, "digest": row.digest, "source": "measured", "colour": i % len(svg.COLOURS),
                "complete": f"{tables.complete_columns(row)}/{len(row.cells)}", "cells": cells,
                "provenance": _told(row),
                **(_besides(row, rows[0]) if i else {"differs": [], "alone": ""}),
            }
        )  # fmt: skip
    return lines


def _told(row: EncoderResult) -> dict:
    """What the MLLM's provenance says, of a row that joins seeds what all of theirs say; {} where no result is believed."""
    said = [told.as_json() for member in row.members or (row,) if (told := runs.provenance(member))]
    return _merged(said) if said else {}


def _merged(values: list):
    """Several seeds' values as one: what all have in common, objects part by part, and else each of them, in words."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, dict) for value in values):
        return {name: _merged([value.get(name) for value in values]) for name in dict.fromkeys(name for value in values for name in value)}
    return ", ".join(dict.fromkeys(value if isinstance(value, str) else json.dumps(value) for value in values))


def _holes(columns: tuple[Column, ...], row: EncoderResult) -> str:
    return ", ".join(column.title for column in columns if not row.cells[column.name].complete)


def _shown(value, bounds, text: str, why: str) -> dict:
    low, high = bounds
    return {"value": value, "low": low, "high": high, "text": text, "why": why}


def _cell(cell: Cell, folder: Path) -> dict:
    why = cell.refused or ""
    if why == "not evaluated":
        why = _unfinished(folder, cell.task)
    facts = {name: value for name, value in asdict(cell).items() if name in ("n", "n_expected", "stderr", "digest", "left_out")}
    return {**_shown(cell.value, (cell.low, cell.high), tables.value_text(cell), why), **facts}


def _printed(suite: Suite, printed: list[tuple[str, Printed]]) -> list[dict]:
    lines, order = [], [*(c.name for c in suite.columns), *suite.groups, "all_avg"]
    for llm, row in printed:
        line = tables.printed_line(suite, llm, row)
        cells = {name: _shown(value, (None, None), f"{value:.1f}", "") for name, value in zip(order, line[7:-2])}
        if row.flag:
            cells["all_avg"]["why"] = f"the paper prints {row.printed}, its row's mean is {row.recomputed:.2f}"
        lines.append(
            {"name": f"{row.model} (paper)", "encoder": row.model, "arch": row.arch, "llm": llm, "frozen": True, "pixels": line[4],
             "tokens": line[5], "digest": "", "source": "printed", "colour": None, "complete": line[-2], "cells": cells, "differs": []}
        )  # fmt: skip
    return lines


def _pairs(rows: list[EncoderResult], wanted: list[tuple[int, int]] | None) -> list[tuple[int, int]]:
    if wanted is not None:
        return wanted
    return list(combinations(range(len(rows)), 2)) if len(rows) <= ALL_PAIRS else [(i, 0) for i in range(1, len(rows))]


def _besides(a: EncoderResult, b: EncoderResult) -> dict:
    """`differs`: what differs besides the encoder; `alone`: where nothing does, what the two differ in."""
    differs = comparison.differences(a, b)
    return {"differs": differs, "alone": "" if differs else comparison.nothing_else(a, b)}


def _compared(suite: Suite, rows: list[EncoderResult], pairs: list[tuple[int, int]], noise: NoiseFile | None) -> list[dict]:
    """Every pair's lines, and `how` they were judged; `unit` turns a difference into one on the scale of ALL AVG, for the charts alone."""
    unit = [{column.title: 100 / row.cells[column.name].full_mark for column in suite.columns} for row in rows]
    found = [(a, b, comparison.compare(suite, rows[a], rows[b], noise)) for a, b in pairs]
    return [
        {
            "a": a, "b": b, **_besides(rows[a], rows[b]), "how": how(rows[a], rows[b], compared, noise),
            "lines": [
                {"title": line.title, "a": line.a, "b": line.b, "n": line.n, "reason": line.reason, "average": line.average,
                 "unit": unit[a].get(line.title, 1.0),
                 **(asdict(line.verdict) if line.verdict else {"difference": None})}
                for line in compared
            ],
        }
        for a, b, compared in found
    ]  # fmt: skip


def _behind(suite: Suite, rows: list[EncoderResult], root: Path | None) -> tuple[list[dict], list[list[tuple[str, runs.Run]]]]:
    """What was run, row by row, and each row's chain of runs."""
    there = runs.find(root) if root else []
    chains = [[each for member in row.members or (row,) for each in runs.chain(member, there)] for row in rows]
    said = [
        {
            "runs": [{"what": what, "name": run.name, "recipe": run.recipe, "ledger": run.ledger} for what, run in found],
            "commands": list(dict.fromkeys(line for member in row.members or (row,)
                                           for line in runs.commands(member, suite.name, runs.chain(member, there)))),
            "spoken": [{"run": run.name, "lines": lines} for _, run in found if (lines := runs.spoken(run))],
            "drawings": [
                {"name": f"{run.name}/{name}", "png": base64.b64encode(content).decode()}
                for _, run in found for name, content in runs.drawings(run)
            ],
        }
        for row, found in zip(rows, chains)
    ]  # fmt: skip
    return said, chains


# --- writing ----------------------------------------------------------------------------------------------------------------


def write_page(
    suite: Suite,
    rows: list[EncoderResult],
    folders: list[Path],
    out: Path,
    data_root: Path | None = None,
    run_root: Path | None = None,
    sample_count: int = SAMPLES,
    pairs: list[tuple[int, int]] | None = None,
    figure_folder: Path | None = None,
    allow_partial: bool = False,
    noise: NoiseFile | None = None,
) -> list[Path]:
    """Write the page to `out`, and the charts as SVG files into `figure_folder`; what was written. `pairs`: indices of rows to compare.

    ValueError where `out` is something that is no report of ours.
    """
    if out.is_dir() or (out.exists() and not out.read_bytes().startswith(MARK.encode())):
        raise ValueError(f"{out} is there and is no report: it is not overwritten; give another --out")
    rows = [accept_unreadable(row) for row in rows] if allow_partial else rows
    called = names(rows)
    printed = [(table.llm, row) for table in map(paper_table, suite.paper) for row in table.rows]
    lines = _measured(suite, rows, folders, called) + _printed(suite, printed)
    compared = _compared(suite, rows, _pairs(rows, pairs), noise)
    behind, chains = _behind(suite, rows, run_root)
    shown = [samples.benchmark(suite, task, rows, folders, sample_count, data_root) for task in suite.tasks]
    shown = [each for each in shown if each]
    drawn = charts.charts(suite, lines, chains, rows)
    forests = charts.forests(called, compared)
    data = {
        "suite": {"name": suite.name, "note": suite.note},
        "columns": _columns(suite),
        "rows": lines,
        "notes": tables.footnotes(suite, rows, printed),
        "compared": compared,
        "behind": behind,
        "prompts": {each.task: each.prompt for each in shown},
        "benchmarks": [{"task": each.task, "title": each.title} for each in shown],
    }
    page = _page(f"{suite.name} report", data, [vars(each) for each in shown], drawn)
    write_file(out, page)
    written = [out]
    for name, chart in [*drawn, *forests] if figure_folder else []:
        written.append(figure_folder / f"{suite.name}_{name}.svg")
        svg.save(chart, written[-1])
    return written


def _page(title: str, data: dict, benchmarks: list[dict], charts: list[tuple[str, object]]) -> bytes:
    """The file: styles and script with their digests in the policy, charts as markup of ours, everything else as JSON."""
    colours = "".join(f"--c{i}:{colour};" for i, colour in enumerate(svg.COLOURS))
    dark = "".join(f"--c{i}:{colour};" for i, colour in enumerate(svg.COLOURS_DARK))
    classes = "".join(
        f".c{i}{{fill:var(--c{i});stroke:var(--c{i});background:var(--c{i})}}.h{i}{{fill:none;stroke:var(--c{i})}}"
        for i in range(len(svg.COLOURS))
    )
    style, script, text = ((ASSETS / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    style = f":root{{{colours}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}{style}"
    allowed = f"img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    groups: dict[str, str] = {}
    for name, chart in charts:
        place = "training" if name.startswith("loss_") else "charts"
        groups[place] = groups.get(place, "") + f'<figure id="chart-{name}">{svg.markup(chart)}</figure>\n'
    parts = {
        "POLICY": f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        "TITLE": html.escape(title),
        "STYLE": style,
        "SCRIPT": script,
        "CHARTS": groups.get("charts", ""),
        "TRAINING": groups.get("training", ""),
        "DATA": "\n".join([_json("data", data), *(_json(f"s{i}", each) for i, each in enumerate(benchmarks))]),
    }
    parts["SIZE"] = f"{(len(text) + sum(len(part.encode('utf-8', 'backslashreplace')) for part in parts.values())) / 1e6:.1f}"
    pieces = text.split("%%")  # every second piece names what stands in its place: no text is searched after it was put in
    # Halves of surrogate pairs, which UTF-8 cannot hold, only stand in JSON: there \ud800 is how they are written.
    return (MARK + "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))).encode("utf-8", "backslashreplace")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(name: str, content) -> str:
    """Data in a page: `<` is written \\u003c, so that no text can end the element or begin another."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{name}">{text}</script>'
