"""Families `bars`, `lines` and `pie`: charts with a title, axes or labels, and values that are printed on most of them."""

from math import cos, radians, sin
from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.scene import INK, Question, Scene, Sketch, contrast, extreme, fact, pick_size, yes_no
from small_data.mini.vocabulary import COLOURS, MONTHS, NUMBERS, TOPICS, article, without

GRID = (205, 205, 208)


def _values(s: Sketch, n: int, total: int | None = None) -> list[int]:
    """n values, all different, multiples of the step; with `total` they add up to it."""
    step = s.knobs.step
    if total is None:
        return s.rng.sample(range(step, 90 + 1, step), n)
    while True:
        cuts = sorted(s.rng.sample(range(step, total, step), n - 1))
        values = [b - a for a, b in zip((0, *cuts), (*cuts, total))]
        if len(set(values)) == n:
            return values


def _others(values: list[int], value: int, step: int) -> tuple[str, ...]:
    """Other values of the scale, those of the chart first: the likeliest mistakes."""
    mine = [v for v in values if v != value]
    return tuple(map(str, mine + [v for v in range(step, 90 + 1, step) if v != value and v not in mine]))


def _common(topic: str, labels, colours, values, step: int, thing: str, percent: bool = False) -> list[Question]:
    """What is asked of labelled, coloured values."""
    high, low = labels[values.index(max(values))], labels[values.index(min(values))]
    questions = [fact("title", "What is", "the title of the chart", topic, TOPICS, told="the title")]
    for label, colour, value in zip(labels, colours, values):
        unit = "percentage" if percent else "value"
        questions.append(fact("value", "What is", f"the {unit} of {label}", str(value), _others(values, value, step)))
        questions.append(fact("bar color", "What color is", f"the {thing} of {label}", colour, COLOURS))
    for word, label in (("highest", high), ("lowest", low)):
        questions.append(extreme("Which", f"{word} value", label, labels))
        colour = colours[labels.index(label)]
        questions.append(fact("extreme color", "What color is", f"the {thing} with the {word} value", colour, colours, told="it"))
    gap = max(values) - min(values)
    questions.append(
        fact(
            "difference",
            "What is",
            "the difference between the highest and the lowest value",
            str(gap),
            map(str, range(step, 90, step)),
            told="the difference",
        )
    )
    questions.append(fact("count", f"How many {thing}s are there?", f"the number of {thing}s", str(len(values)), "2345"))
    a, b = labels[0], labels[1]
    questions.append(
        yes_no(
            "compare",
            f"Is the value of {a} greater than the value of {b}?",
            values[0] > values[1],
            f"{a} is {values[0]} and {b} is {values[1]}",
        )
    )
    return questions


def _told(labels, values, colours=None) -> str:
    return ", ".join(f"{c + ' ' if c else ''}{label} {v}" for label, v, c in zip(labels, values, colours or [""] * len(labels)))


def compose_bars(rng: Random, knobs: Knobs) -> Scene:
    upright = rng.random() < 0.7
    s = Sketch(rng, knobs, pick_size(rng, knobs, (1.0, 1.5)))
    s.background((252, 252, 250))
    topic = rng.choice(list(TOPICS))
    n = rng.randint(3, knobs.bars)
    labels, colours, values = rng.sample(TOPICS[topic], n), rng.sample(list(COLOURS), n), _values(s, n)
    printed = rng.random() < knobs.printed
    w, h = s.size
    s.text(w / 2, h * 0.08, topic, h * 0.11)
    x0, y0, x1, y1 = (w * 0.13, h * 0.26, w * 0.97, h * 0.84) if upright else (w * 0.25, h * 0.16, w * 0.9, h * 0.86)
    if not printed:
        for tick in (0, 30, 60, 90):
            if upright:
                y = y1 - (y1 - y0) * tick / 90
                s.line(((x0, y), (x1, y)), GRID, 1)
                s.text(x0 * 0.5, y, str(tick), h * 0.075)
            else:
                x = x0 + (x1 - x0) * tick / 90
                s.line(((x, y0), (x, y1)), GRID, 1)
                s.text(x, h * 0.93, str(tick), h * 0.075)
    s.line(((x0, y0), (x0, y1), (x1, y1)), INK, max(1, 0.01 * s.unit))
    for i, (label, colour, value) in enumerate(zip(labels, colours, values)):
        s.begin()
        if upright:
            cell = (x1 - x0) / n
            cx, top = x0 + (i + 0.5) * cell, y1 - (y1 - y0) * value / 90
            s.rect(cx - cell * 0.33, top, cx + cell * 0.33, y1, s.colour(colour))
            s.text(cx, h * 0.92, label, h * 0.1, fit=cell * 0.94)
            if printed:
                s.text(cx, top - h * 0.045, str(value), h * 0.095, fit=cell * 0.9)
        else:
            cell = (y1 - y0) / n
            cy, right = y0 + (i + 0.5) * cell, x0 + (x1 - x0) * value / 90
            s.rect(x0, cy - cell * 0.33, right, cy + cell * 0.33, s.colour(colour))
            s.text(x0 * 0.5, cy, label, h * 0.1, fit=x0 * 0.9)
            if printed:
                s.text(right + w * 0.055, cy, str(value), h * 0.095, fit=w * 0.08)
    questions = _common(topic, labels, colours, values, knobs.step, "bar")
    high = labels[values.index(max(values))]
    subjects = (
        f"a bar chart of {topic}: {_told(labels, values, colours)}",
        f"a chart of {topic} with {_told(labels, values)}",
        f"a bar chart of {topic} in which {high} is highest",
        f"{NUMBERS[n]} bars of {topic}",
    )
    return s.scene(
        "bars", "upright" if upright else "lying", questions, subjects, f"The highest bar is {high}.", f"There are {NUMBERS[n]} bars."
    )


def compose_lines(rng: Random, knobs: Knobs) -> Scene:
    s = Sketch(rng, knobs, pick_size(rng, knobs, (1.1, 1.6)))
    s.background((252, 252, 250))
    topic = rng.choice(list(TOPICS))
    n = rng.randint(3, knobs.bars)
    first = rng.randint(0, len(MONTHS) - n)
    labels, values = list(MONTHS[first : first + n]), _values(s, n)
    colour = rng.choice(list(COLOURS))
    w, h = s.size
    s.text(w / 2, h * 0.08, topic, h * 0.11)
    x0, y0, x1, y1 = w * 0.13, h * 0.26, w * 0.95, h * 0.8
    printed = rng.random() < knobs.printed
    for tick in (0, 30, 60, 90):
        y = y1 - (y1 - y0) * tick / 90
        s.line(((x0, y), (x1, y)), GRID, 1)
        if not printed:
            s.text(x0 * 0.5, y, str(tick), h * 0.075)
    points = [(x0 + (x1 - x0) * (i + 0.5) / n, y1 - (y1 - y0) * v / 90) for i, v in enumerate(values)]
    fill = s.colour(colour)
    s.begin()
    s.line(points, fill, max(2, 0.02 * s.unit))
    for i, ((x, y), label, value) in enumerate(zip(points, labels, values)):
        s.begin()
        beside = [*values[max(0, i - 1) : i], *values[i + 1 : i + 2]]
        valley = value < min(beside)  # its number stands below: above, the line would cross it
        # On a slope the number stands on the side away from the line.
        aside = 0.0 if len(beside) < 2 or valley or value > max(beside) else 0.03 * w if beside[0] > value else -0.03 * w
        s.ellipse(x, y, 0.03 * s.unit, 0.03 * s.unit, fill)
        s.text(x, h * 0.91, label, h * 0.1)
        if printed:
            s.text(x + aside, y + h * (0.07 if valley else -0.075), str(value), h * 0.09)
    high, low = labels[values.index(max(values))], labels[values.index(min(values))]
    trend = "up" if values[-1] > values[0] else "down"
    questions = [
        fact("title", "What is", "the title of the chart", topic, TOPICS, told="the title"),
        fact("line color", "What color is", "the line", colour, COLOURS),
        extreme("Which month", "highest value", high, labels),
        extreme("Which month", "lowest value", low, labels),
        Question(
            "trend",
            "Does the line go up or down from the first to the last month?",
            trend,
            without(("up", "down"), trend),
            "Does the line go {} from the first to the last month?",
            f"The line goes {trend}.",
        ),
        fact("count", "How many months are shown?", "the number of months", str(n), "2345"),
    ]
    for label, value in zip(labels, values):
        questions.append(fact("value", "What is", f"the value in {label}", str(value), _others(values, value, knobs.step)))
    line = article(f"{colour} line")
    subjects = (
        f"a line chart of {topic} with {line}: {_told(labels, values)}",
        f"{line} for {topic} that goes {trend}, {_told(labels, values)}",
        f"a line chart of {topic} that peaks in {high}",
        f"a line chart with {line}",
    )
    return s.scene("lines", "lines", questions, subjects, f"The highest month is {high}.", f"The line goes {trend}.")


def compose_pie(rng: Random, knobs: Knobs) -> Scene:
    s = Sketch(rng, knobs, pick_size(rng, knobs, (0.85, 1.1)))
    s.background((252, 252, 250))
    topic = rng.choice(list(TOPICS))
    n = rng.randint(3, knobs.bars)
    labels, colours, values = rng.sample(TOPICS[topic], n), rng.sample(list(COLOURS), n), _values(s, n, total=100)
    w, h = s.size
    s.text(w / 2, h * 0.07, topic, h * 0.11)
    cx, cy, r = w * 0.5, h * 0.44, min(w * 0.42, h * 0.29)
    angle = -90.0
    for i, (label, colour, value) in enumerate(zip(labels, colours, values)):
        s.begin()
        fill = s.colour(colour)
        s.slice(cx, cy, r, angle, angle + 3.6 * value, fill)
        middle = radians(angle + 1.8 * value)  # always printed: a pie has no axis to read its values from
        s.text(cx + r * 0.66 * cos(middle), cy + r * 0.66 * sin(middle), str(value), h * 0.085, contrast(fill))
        angle += 3.6 * value
        x, y = w * (0.08 + 0.5 * (i % 2)), h * (0.81 + 0.11 * (i // 2))
        s.rect(x, y - h * 0.035, x + h * 0.07, y + h * 0.035, fill)
        s.text_left(x + h * 0.1, y, label, h * 0.1, fit=w * 0.4 - h * 0.1)
    questions = _common(topic, labels, colours, values, knobs.step, "slice", percent=True)
    high = labels[values.index(max(values))]
    subjects = (
        f"a pie chart of {topic}: {_told(labels, values, colours)}",
        f"a pie of {topic} with {_told(labels, values)}",
        f"a pie chart of {topic} in which {high} is the largest slice",
        f"{NUMBERS[n]} slices of {topic}",
    )
    return s.scene("pie", "pie", questions, subjects, f"The largest slice is {high}.", f"There are {NUMBERS[n]} slices.")
