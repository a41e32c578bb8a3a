"""Which charts a report has: one for each group and one for ALL AVG, paired differences, training curves, scaling and resolution."""

import re
import xml.etree.ElementTree as ET

from eval_suites.report import runs
from eval_suites.report.svg import COLOURS, Bar, DifferenceBar, Series, bars, curves, forest
from eval_suites.score.averages import average, average_bounds
from eval_suites.score.results import EncoderResult
from eval_suites.suites import GROUPS, Suite

Chart = tuple[str, ET.Element]  # a name for its file, the drawing


def charts(suite: Suite, lines: list[dict], chains: list[list[tuple[str, runs.Run]]], rows: list[EncoderResult]) -> list[Chart]:
    """All but the comparisons. `lines` are the page's rows, measured ones first and in the order of `rows`."""
    measured = [line for line in lines if line["source"] == "measured"]
    printed: dict[str, list[dict]] = {}
    for line in lines:
        if line["source"] == "printed":
            printed.setdefault(line["llm"], []).append(line)
    blocks = [("", [_bar(line, "all_avg", 1.0) for line in measured])]
    blocks += [(f"printed in the paper, {llm}", [_bar(line, "all_avg", 1.0) for line in some]) for llm, some in printed.items()]
    found = [("all_avg", bars(f"ALL AVG, {suite.name}", blocks))]
    for group in suite.groups or ("",):
        columns = suite.averaged[GROUPS.get(group, "ALL AVG")]
        blocks = [
            (column.title, [_bar(line, column.name, 100 / row.cells[column.name].full_mark) for line, row in zip(measured, rows)])
            for column in columns
        ]
        if group and len(columns) > 1:
            blocks.insert(0, ("mean of the group", [_bar(line, group, 1.0) for line in measured]))
        found.append((group or "benchmarks", bars(GROUPS.get(group, "Benchmarks"), blocks)))
    return found + _scaling(suite, rows, chains) + _resolutions(suite, rows) + _losses(chains, measured)


def _bar(line: dict, name: str, scale: float) -> Bar:
    """`scale` puts a cell's printed value on an axis that ends at 100 for full marks."""
    cell = line["cells"][name]
    placed = [None if cell[part] is None else cell[part] * scale for part in ("value", "low", "high")]
    label = line["name"].removesuffix(" (paper)")
    if line["source"] == "printed":
        return Bar(f"{label} {line['arch']}", *placed, cell["text"], len(COLOURS) - 2, hollow=True)
    return Bar(label, *placed, cell["text"], line["colour"], cell["why"])


def forests(called: list[str], compared: list[dict]) -> list[Chart]:
    """A chart for each pair, on the scale of ALL AVG in whatever unit a difference is; what is not told apart, or exploratory, is grey."""
    found = []
    for pair in compared:
        gaps = []
        for line in pair["lines"]:
            if line["difference"] is None:
                gaps.append(DifferenceBar(line["title"], None, None, None, line["reason"], False))
                continue
            bounds = [line[part] for part in ("low", "high") if line[part] is not None]
            at = [line["difference"], *(bounds or 2 * [line["difference"]])]  # few pictures have no interval
            digits = 0 if line["unit"] < 0.5 else 1  # points, or percent and CIDEr
            text = f"{line['difference']:+.{digits}f}" + (f" [{bounds[0]:+.{digits}f}, {bounds[1]:+.{digits}f}]" if bounds else "")
            gaps.append(DifferenceBar(line["title"], *(x * line["unit"] for x in at), text, line["word"] in ("better", "worse")))
        a, b = called[pair["a"]], called[pair["b"]]
        found.append((f"compare_{_slug(a)}_{_slug(b)}", forest(f"{a} against {b}", gaps, f"{b} better", f"{a} better")))
    return found


def _losses(chains: list[list[tuple[str, runs.Run]]], lines: list[dict]) -> list[Chart]:
    """A chart for each kind of run, a line for each run."""
    kinds: dict[str, dict[str, Series]] = {}
    for chain, line in zip(chains, lines):
        for what, run in chain:
            points = runs.losses(run)
            if len(points) > 1:
                kinds.setdefault(what, {}).setdefault(run.name, Series(run.name, line["colour"], points))
    return [
        (f"loss_{_slug(what)}", curves(f"{what[:1].upper()}{what[1:]}", "step", "loss", list(series.values())))
        for what, series in kinds.items()
    ]


def _scaling(suite: Suite, rows: list[EncoderResult], chains: list[list[tuple[str, runs.Run]]]) -> list[Chart]:
    """Averages over the samples that the encoder's pretraining had read, where several rows are checkpoints of one pretraining run."""
    by_run: dict[tuple[str, str], list[tuple[float, EncoderResult]]] = {}
    for row, chain in zip(rows, chains):
        said = runs.provenance(row)
        encoder = str(said.recipe.get("encoder") or "") if said else ""
        for what, run in chain:
            seen = runs.samples_seen(run, encoder) if what.startswith("pretraining") else None
            if seen:
                by_run.setdefault((run.name, row.llm), []).append((seen, row))
                break  # a row of several seeds has it once for each
    return [
        (f"scaling_{_slug(name)}_{_slug(llm)}", chart)
        for (name, llm), points in by_run.items()
        if (chart := _over(suite, f"Data scale: checkpoints of {name}, {llm}", "samples seen in pretraining", points)) is not None
    ]


def _resolutions(suite: Suite, rows: list[EncoderResult]) -> list[Chart]:
    """Averages over the resolution, where one encoder's weights were evaluated at several."""
    same: dict[tuple[str, str], list[tuple[float, EncoderResult]]] = {}
    for row in rows:
        said = runs.provenance(row)
        if row.resolution and said:
            weights = said.encoder_digest_before or said.encoder_digest or ""
            same.setdefault((f"{row.encoder}/{weights}", row.llm), []).append((row.resolution, row))
    return [
        (f"resolution_{_slug(points[0][1].encoder)}_{_slug(llm)}", chart)
        for (_, llm), points in same.items()
        if (chart := _over(suite, f"Resolution: {points[0][1].encoder}, {llm}", "pixels a side", points)) is not None
    ]


def _over(suite: Suite, title: str, x_title: str, points: list[tuple[float, EncoderResult]]) -> ET.Element | None:
    """A line for each group and one for ALL AVG over x; None where fewer than two x have an average."""
    series = []
    for i, (name, columns) in enumerate(suite.averaged.items()):
        whole = sorted(((x, row) for x, row in points if average(columns, row.cells) is not None), key=lambda pair: pair[0])
        line = [(x, average(columns, row.cells)) for x, row in whole]
        bounds = [average_bounds(suite, columns, row) for _, row in whole]
        if len({x for x, _ in line}) > 1:
            series.append(Series(name, i, line, [None if low is None else (low, high) for low, high in bounds]))
    return curves(title, x_title, "average", series) if series else None


def _slug(words: str) -> str:
    """Letters, digits, points and dashes: a file's name and an element's id whatever a row is called."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-") or "row"
