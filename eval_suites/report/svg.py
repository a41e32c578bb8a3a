"""Numbers -> SVG: bars with intervals, paired differences, curves. The same drawings stand in the report and, as files, in a paper.

    python -m eval_suites.report results --figures figures/

Drawn by hand, without a plotting library: three kinds of chart, 360 units wide (a paper's column, a phone's screen), need a few rectangles
and lines; the libraries that draw in a browser are 1 to 4 MB of script in a page that holds none from elsewhere, and most of them evaluate
strings, which the page's policy forbids. A tree of elements is built and serialised, so that a label is text whatever is in it.
Standard library only; a figure takes a millisecond.
"""

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from genlip.common.files import write_file

WIDTH = 360
_LETTER, _LABELS, _VALUE = 6, (12, 24), 58  # width of a letter, fewest and most of a label left of the plot; width right of it
_LINE, _HEAD = 17, 24
# Told apart in greyscale order and by the common kinds of colour blindness (Okabe and Ito), on white and on near-black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5679a", "#8c6d00", "#3a3f9e", "#5b6770", "#a3352c")
COLOURS_DARK = ("#56b4e9", "#f0914d", "#3fcf9f", "#e39bc6", "#e0c04a", "#9aa0f5", "#a9b4bd", "#ee8b82")
_STYLE = """text { font: 11px system-ui, sans-serif; fill: #1c2024 } .title { font-weight: 600; font-size: 13px }
.muted { fill: #5d6670 } .grid { stroke: #d7dce0; stroke-width: 1 } .zero { stroke: #5d6670; stroke-width: 1 }
.whisker { stroke: #1c2024; stroke-width: 1.4; fill: none } .curve { fill: none; stroke-width: 1.8 }
.grey { fill: #8a949c; stroke: #8a949c }
"""
STYLE = _STYLE + "".join(
    f".c{i} {{ fill: {colour}; stroke: {colour} }} .h{i} {{ fill: none; stroke: {colour} }} .curve.c{i} {{ fill: none }}\n"
    for i, colour in enumerate(COLOURS)
)


@dataclass(frozen=True)
class Bar:
    """One bar: where it ends and its interval on the chart's axis, the words beside it; `value` None: a gap, with the reason in `note`."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    colour: int
    note: str = ""
    hollow: bool = False  # printed by a paper, not measured


@dataclass(frozen=True)
class DifferenceBar:
    """One line of a comparison: a difference on the chart's axis with its interval, or nothing but a reason."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    told_apart: bool


@dataclass(frozen=True)
class Series:
    label: str
    colour: int
    points: list[tuple[float, float]]
    bounds: list[tuple[float, float] | None] | None = None


def bars(title: str, blocks: list[tuple[str, list[Bar]]]) -> ET.Element:
    """Horizontal bars from 0, block by block, each with its 95 % interval as a whisker."""
    ends = [x for _, block in blocks for bar in block for x in (bar.value, bar.high) if x is not None]
    step = next(step for step in (5, 10, 25, 50, 100, 250, 500, math.inf) if 4 * step >= max(ends, default=100))
    step = max(ends) / 4 if step == math.inf else step
    top = step * math.ceil(max(ends, default=100) / step) or step
    height = _HEAD + sum(_LINE * len(block) + (20 if name else 4) for name, block in blocks) + 22
    letters = sorted((*_LABELS, max((len(bar.label) for _, block in blocks for bar in block), default=0)))[1]
    svg, left = _svg(title, height), 10 + _LETTER * letters
    width = WIDTH - left - _VALUE
    for i in range(round(top / step) + 1):
        tick, x = i * step, left + width * i * step / top
        _add(svg, "line", "grid", x1=x, x2=x, y1=_HEAD, y2=height - 20)
        _text(svg, x, height - 6, f"{tick:g}", "muted", "middle")
    y = _HEAD
    for name, block in blocks:
        if name:
            _text(svg, 0, y + 15, name, "muted")
        y += 20 if name else 4
        for bar in block:
            group = _add(svg, "g")
            ET.SubElement(group, "title").text = f"{name + ': ' if name else ''}{bar.label} {bar.text} {bar.note}".strip()
            _text(group, left - 6, y + 12, _short(bar.label, letters), "", "end")
            if bar.value is None:
                _text(group, left + 3, y + 12, _short(bar.note or "missing", 34), "muted")
            else:
                kind = f"h{bar.colour}" if bar.hollow else f"c{bar.colour}"
                _add(group, "rect", f"bar {kind}", x=left, y=y + 3, width=max(0.5, width * bar.value / top), height=_LINE - 6)
                if bar.low is not None:
                    _whisker(group, left + width * max(bar.low, 0) / top, left + width * min(bar.high, top) / top, y + _LINE / 2)
                _text(group, WIDTH - _VALUE + 8, y + 12, bar.text)
            y += _LINE
    return svg


def forest(title: str, gaps: list[DifferenceBar], left_is: str, right_is: str) -> ET.Element:
    """Differences around 0 with their intervals; what is not told apart is grey."""
    ends = [abs(x) for gap in gaps for x in (gap.value, gap.low, gap.high) if x is not None]
    reach = max([*ends, 0.5]) * 1.05
    height = _HEAD + _LINE * len(gaps) + 40
    svg, left, width = _svg(title, height), 84, WIDTH - 84 - 132
    middle = left + width / 2
    ticks = _ticks(reach)
    for tick in ticks:
        x = middle + width / 2 * tick / reach
        _add(svg, "line", "zero" if tick == 0 else "grid", x1=x, x2=x, y1=_HEAD, y2=height - 36)
        if tick in (ticks[0], 0, ticks[-1]):
            _text(svg, x, height - 24, f"{tick:+g}" if tick else "0", "muted", "middle")
    _text(svg, middle - 6, height - 7, f"\u2190 {_short(left_is, 26)}", "muted", "end")
    _text(svg, middle + 6, height - 7, f"{_short(right_is, 26)} \u2192", "muted")
    for i, gap in enumerate(gaps):
        y = _HEAD + _LINE * i
        group = _add(svg, "g")
        ET.SubElement(group, "title").text = f"{gap.label}: {gap.text}"
        _text(group, left - 6, y + 12, _short(gap.label, 13), "", "end")
        if gap.value is None:
            _text(group, left + 3, y + 12, _short(gap.text, 46), "muted")
            continue
        kind = f"c{0 if gap.value > 0 else 1}" if gap.told_apart else "grey"
        at = [middle + width / 2 * x / reach for x in (gap.low, gap.value, gap.high)]
        _add(group, "line", kind, x1=at[0], x2=at[2], y1=y + 8, y2=y + 8, stroke_width=2.4)
        _add(group, "circle", kind, cx=at[1], cy=y + 8, r=3.6)
        _text(group, WIDTH - 126, y + 12, gap.text, "" if gap.told_apart else "muted")
    return svg


def curves(title: str, x_title: str, y_title: str, series: list[Series]) -> ET.Element:
    """Lines through points, with intervals where there are any; x is logarithmic where it spans more than a factor of 20."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    ys += [y for one in series for pair in one.bounds or () if pair for y in pair]
    log = min(xs) > 0 and max(xs) / min(xs) > 20 and len(xs) < 100
    place = math.log10 if log else float
    x0, x1 = place(min(xs)), place(max(xs))
    x0, x1 = (x0 - 0.5, x1 + 0.5) if x0 == x1 else (x0, x1)
    y0, y1 = min([*ys, 0.0]) if min(ys) < 0.5 * max(ys) else min(ys), max(ys)
    y0, y1 = (y0 - 1, y1 + 1) if y0 == y1 else (y0, y1 + 0.05 * (y1 - y0))
    height, left, bottom = 220 + 16 * len(series), 44, 200
    svg, width, high = _svg(title, height), WIDTH - 44 - 14, 200 - _HEAD - 38
    across = lambda x: left + width * (place(x) - x0) / (x1 - x0)  # noqa: E731
    up = lambda y: bottom - 22 - high * (y - y0) / (y1 - y0)  # noqa: E731
    step = 10 ** math.floor(math.log10((y1 - y0) / 3))
    step = next(step * factor for factor in (5, 2, 1) if step * factor <= (y1 - y0) / 3)
    for tick in [i * step for i in range(math.ceil(y0 / step), math.floor(y1 / step) + 1)]:
        _add(svg, "line", "grid", x1=left, x2=WIDTH - 14, y1=up(tick), y2=up(tick))
        _text(svg, left - 5, up(tick) + 4, f"{tick:.4g}", "muted", "end")
    for x in sorted(set(xs)) if len(set(xs)) <= 5 else [min(xs), max(xs)]:
        _text(svg, across(x), bottom - 8, _count(x), "muted", "start" if x == min(xs) else "end" if x == max(xs) else "middle")
    _text(svg, left + width / 2, bottom + 6, x_title + (" (logarithmic)" if log else ""), "muted", "middle")
    _text(svg, 0, _HEAD + 2, y_title, "muted")
    for i, one in enumerate(series):
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in one.points)
        _add(svg, "polyline", f"curve c{one.colour}", points=line)
        for (x, y), pair in zip(one.points, one.bounds or [None] * len(one.points)):
            if pair:
                _add(svg, "line", f"c{one.colour}", x1=across(x), x2=across(x), y1=up(pair[0]), y2=up(pair[1]), stroke_width=1.2)
            if len(one.points) <= 20:
                _add(svg, "circle", f"c{one.colour}", cx=across(x), cy=up(y), r=3)
        _add(svg, "rect", f"c{one.colour}", x=left, y=bottom + 13 + 16 * i, width=12, height=4)
        _text(svg, left + 18, bottom + 19 + 16 * i, _short(one.label, 48))
    return svg


def markup(svg: ET.Element) -> str:
    """The element as it stands in a page that has styles for its classes."""
    return ET.tostring(svg, encoding="unicode")


def save(svg: ET.Element, path: Path) -> None:
    """A file of its own, with its styles; written aside and renamed."""
    alone = ET.Element("svg", {**svg.attrib, "xmlns": "http://www.w3.org/2000/svg"})
    ET.SubElement(alone, "style").text = STYLE
    alone.extend(list(svg))
    write_file(path, markup(alone) + "\n")


# --- pieces -----------------------------------------------------------------------------------------------------------------


def _svg(title: str, height: float) -> ET.Element:
    svg = ET.Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-label": _text_only(title)})
    _text(svg, 0, 13, title, "title")
    return svg


def _add(parent: ET.Element, tag: str, kind: str = "", **attributes: float | str) -> ET.Element:
    shown = {"class": kind} if kind else {}
    for name, x in attributes.items():
        shown[name.replace("_", "-")] = f"{x:.2f}".rstrip("0").rstrip(".") if isinstance(x, float) else str(x)
    return ET.SubElement(parent, tag, shown)


def _text(parent: ET.Element, x: float, y: float, words: str, kind: str = "", anchor: str = "") -> None:
    _add(parent, "text", kind, x=x, y=y, **({"text_anchor": anchor} if anchor else {})).text = _text_only(words)


def _text_only(words: str) -> str:
    """Without what XML cannot hold: control characters, halves of surrogate pairs."""
    return "".join("\ufffd" if letter < " " or "\ud800" <= letter <= "\udfff" else letter for letter in words)


def _whisker(parent: ET.Element, low: float, high: float, y: float) -> None:
    path = f"M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - 3:.1f}v6M{high:.1f} {y - 3:.1f}v6"
    _add(parent, "path", "whisker", d=path)


def _short(words: str, letters: int) -> str:
    return words if len(words) <= letters else f"{words[: letters - 1]}\u2026"


def _ticks(reach: float) -> list[float]:
    """One or two round numbers on either side of 0, and 0."""
    step = 10 ** math.floor(math.log10(reach / 2))
    step = next(step * factor for factor in (5, 2, 1) if step * factor <= reach / 1.2)
    count = min(2, int(reach / step))
    return [i * step for i in range(-count, count + 1)]


def _count(x: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(x) >= size:
            return f"{x / (1000 if letter == 'k' else size):.3g}{letter}"
    return f"{x:g}"
