"""Family `shapes`: one to three shapes that differ, or several of a kind to be counted."""

import math
from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.scene import Question, Scene, Sketch, fact, pick_size
from small_data.mini.vocabulary import BACKGROUNDS, BESIDE, COLOURS, NUMBERS, OPPOSITE, SHAPES, SIDES, article, without


def draw_shape(s: Sketch, shape: str, cx: float, cy: float, r: float, fill, turn: float = 0.0) -> None:
    """A shape of half-width `r` around (cx, cy), turned by `turn` degrees, as one primitive."""
    s.begin()
    a, b = math.cos(math.radians(turn)), math.sin(math.radians(turn))

    def polygon(corners):
        s.polygon([(cx + r * (a * x - b * y), cy + r * (b * x + a * y)) for x, y in corners], fill)

    match shape:
        case "circle":
            s.ellipse(cx, cy, r, r, fill)
        case "ring":
            s.ring(cx, cy, r, fill, r * 0.36)
        case "square" if not turn:
            s.rect(cx - r * 0.88, cy - r * 0.88, cx + r * 0.88, cy + r * 0.88, fill)
        case "square":
            polygon(((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)))
        case "triangle":
            polygon(((0, -1), (1, 0.8), (-1, 0.8)))
        case "star":
            turns = [(1 if i % 2 == 0 else 0.42, math.pi * (i / 5 - 0.5)) for i in range(10)]
            polygon([(d * math.cos(t), d * math.sin(t)) for d, t in turns])
        case "cross":
            c = 0.34
            polygon(((-c, -1), (c, -1), (c, -c), (1, -c), (1, c), (c, c), (c, 1), (-c, 1), (-c, c), (-1, c), (-1, -c), (-c, -c)))


def compose(rng: Random, knobs: Knobs, kind: str | None = None) -> Scene:
    s = Sketch(rng, knobs, pick_size(rng, knobs, (0.75, 1.35), dense=False))
    ground = rng.choice(list(BACKGROUNDS))
    s.background(BACKGROUNDS[ground])
    kind = kind or rng.choices(("one", "pair", "corners", "crowd"), (13, 39, 13, 35))[0]
    if kind == "crowd":
        return _crowd(s, ground)
    n = {"one": 1, "pair": 2, "corners": 3}[kind]
    return (_one, _pair, _corners)[n - 1](s, ground, rng.sample(SHAPES, n), rng.sample(list(COLOURS), n))


def _named(shape: str, colour: str) -> list[Question]:
    """What is asked of a shape that no other shares its kind or colour with."""
    return [
        fact("color", "What color is", f"the {shape}", colour, COLOURS),
        fact("shape", f"What shape is {colour}?", f"the {colour} shape", shape, SHAPES, link="a"),
    ]


def _total(n: int, most: int = 5) -> Question:
    pool = tuple(str(i) for i in range(1, most + 1))
    return fact("count", "How many shapes are there?", "the number of shapes", str(n), pool)


def _place(s: Sketch, side: str) -> tuple[float, float]:
    w, h = s.size
    x, y = {"left": (0.24, 0.5), "right": (0.76, 0.5), "top": (0.5, 0.24), "bottom": (0.5, 0.76)}[side]
    shake = 0.03 * s.unit
    return x * w + s.rng.uniform(-shake, shake), y * h + s.rng.uniform(-shake, shake)


def _one(s: Sketch, ground: str, shapes, colours) -> Scene:
    (shape,), (colour,) = shapes, colours
    side = s.rng.choice(SIDES)
    x, y = _place(s, side)
    draw_shape(s, shape, x, y, s.rng.uniform(0.15, 0.22) * s.unit, s.colour(colour))
    thing = f"{colour} {shape}"
    where = fact("position", f"Where is the {shape}: left, right, top or bottom?", f"the {shape}", side, SIDES, link="at the")
    questions = (*_named(shape, colour), where, _total(1))
    subjects = (f"{article(thing)} at the {side}", article(thing), article(shape))
    return s.scene("shapes", "one", questions, subjects, f"The background is {ground}.", "There is one shape.")


def _pair(s: Sketch, ground: str, shapes, colours) -> Scene:
    side = s.rng.choice(SIDES)
    radii = [s.rng.uniform(0.19, 0.22), s.rng.uniform(0.1, 0.12)]
    s.rng.shuffle(radii)
    for shape, colour, at, r in zip(shapes, colours, (side, OPPOSITE[side]), radii):
        draw_shape(s, shape, *_place(s, at), r * s.unit, s.colour(colour))
    a, b = shapes
    larger = shapes[radii.index(max(radii))]
    smaller = b if larger == a else a
    questions = [q for shape, colour in zip(shapes, colours) for q in _named(shape, colour)]
    for x, y, at in ((a, b, side), (b, a, OPPOSITE[side])):
        questions.append(
            Question(
                "relation",
                f"What shape is {BESIDE[at]} the {y}?",
                x,
                without(SHAPES, x, y),
                f"Is the shape {BESIDE[at]} the {y} a {{}}?",
                f"The {x} is {BESIDE[at]} the {y}.",
            )
        )
    questions.append(
        Question("size", "Which shape is larger?", larger, (smaller,), "Is the {} the larger shape?", f"The {larger} is larger.")
    )
    questions.append(
        Question("size", "Which shape is smaller?", smaller, (larger,), "Is the {} the smaller shape?", f"The {smaller} is smaller.")
    )
    questions.append(_total(2))
    one, two = (f"{c} {x}" for c, x in zip(colours, shapes))
    subjects = (
        f"{article(one)} {BESIDE[side]} {article(two)}",
        f"{article(two)} {BESIDE[OPPOSITE[side]]} {article(one)}",
        f"{article(one)} and {article(two)}",
        f"{article(a)} and {article(b)}",
    )
    details = (f"The {larger} is larger than the {smaller}.", f"The background is {ground}.", "There are two shapes.")
    return s.scene("shapes", "pair", questions, subjects, *details)


def _corners(s: Sketch, ground: str, shapes, colours) -> Scene:
    w, h = s.size
    corners = s.rng.sample(("top left", "top right", "bottom left", "bottom right"), 3)
    shake = 0.03 * s.unit
    for shape, colour, corner in zip(shapes, colours, corners):
        x = (0.27 if "left" in corner else 0.73) * w + s.rng.uniform(-shake, shake)
        y = (0.27 if "top" in corner else 0.73) * h + s.rng.uniform(-shake, shake)
        draw_shape(s, shape, x, y, s.rng.uniform(0.13, 0.17) * s.unit, s.colour(colour))
    questions = [q for shape, colour in zip(shapes, colours) for q in _named(shape, colour)]
    for shape, corner in zip(shapes, corners):
        questions.append(fact("position", f"What shape is at the {corner}?", f"the shape at the {corner}", shape, SHAPES, link="a"))
    questions.append(_total(3))
    things = [f"{c} {x}" for c, x in zip(colours, shapes)]
    placed = [f"{article(t)} at the {c}" for t, c in zip(things, corners)]
    subjects = (
        f"{placed[0]}, {placed[1]} and {placed[2]}",
        f"{placed[2]}, {placed[0]} and {placed[1]}",
        f"{article(things[0])}, {article(things[1])} and {article(things[2])}",
        f"three shapes: {article(shapes[0])}, {article(shapes[1])} and {article(shapes[2])}",
    )
    return s.scene("shapes", "corners", questions, subjects, f"The background is {ground}.", "There are three shapes.")


def _crowd(s: Sketch, ground: str) -> Scene:
    """Several of one shape and colour, on a grid of cells that they share with nothing else."""
    shape, colour = s.rng.choice(SHAPES), s.rng.choice(list(COLOURS))
    n = s.rng.randint(2, s.knobs.count)
    w, h = s.size
    cells = s.rng.sample([(x, y) for x in range(3) for y in range(2)], n)
    r = min(w / 3, h / 2) * s.rng.uniform(0.32, 0.4)
    for x, y in cells:
        draw_shape(s, shape, (x + 0.5) * w / 3, (y + 0.5) * h / 2, r, s.colour(colour))
    pool = tuple(str(i) for i in range(1, s.knobs.count + 1))
    questions = (
        fact("count", f"How many {shape}s are there?".replace("crosss", "crosses"), "the number of shapes", str(n), pool),
        fact("count", f"How many {colour} shapes are there?", f"the number of {colour} shapes", str(n), pool),
        Question(
            "color", "What color are the shapes?", colour, without(COLOURS, colour), "Are the shapes {}?", f"The shapes are {colour}."
        ),
        fact("shape", "Which shape is repeated?", "the repeated shape", shape, SHAPES, link="a"),
    )
    many = f"{shape}s".replace("crosss", "crosses")
    subjects = (
        f"{NUMBERS[n]} {colour} {many}",
        f"a group of {NUMBERS[n]} {many} that are {colour}",
        f"{colour} {many}",
        f"{NUMBERS[n]} {many}",
    )
    return s.scene("shapes", "crowd", questions, subjects, f"The background is {ground}.", f"There are {NUMBERS[n]} shapes.")
