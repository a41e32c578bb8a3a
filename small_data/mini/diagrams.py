"""Families `diagram` (cycles, food chains, the parts of a thing) and `map`."""

import itertools
from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.objects import draw_object
from small_data.mini.scene import INK, Question, Scene, Sketch, fact, pick_size
from small_data.mini.vocabulary import COLOURS, EATERS, NUMBERS, PARTS, SPOTS, STAGES, without

BOX = (222, 234, 246)


def compose(rng: Random, knobs: Knobs, kind: str | None = None) -> Scene:
    kind = kind or rng.choice(("cycle", "chain", "parts"))
    aspect = {"cycle": (0.9, 1.15), "chain": (0.8, 1.1), "parts": (0.9, 1.2)}[kind]
    s = Sketch(rng, knobs, pick_size(rng, knobs, aspect))
    s.background(rng.choice(((252, 252, 250), (246, 250, 240), (250, 246, 238))))
    return {"cycle": _cycle, "chain": _chain, "parts": _parts}[kind](s)


def _box(s: Sketch, cx, cy, bw, bh, text, size) -> None:
    s.begin()
    s.rect(cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2, s.noisy(BOX))
    s.frame(cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2, (70, 100, 140), max(1, 0.01 * s.unit))
    s.text(cx, cy, text, size, fit=bw * 0.9)


def _cycle(s: Sketch) -> Scene:
    """Four stages around a ring. Their order is drawn by lot: it must be read, not known."""
    rng, (w, h) = s.rng, s.size
    title = rng.choice(list(STAGES))
    stages = list(STAGES[title])
    rng.shuffle(stages)
    places = ((0.5, 0.13), (0.8, 0.5), (0.5, 0.87), (0.2, 0.5))
    bw, bh = 0.37 * w, 0.17 * h
    for (x, y), (nx, ny) in zip(places, (*places[1:], places[0])):
        s.begin()
        sx, sy, ex, ey = x + 0.26 * (nx - x), y + 0.3 * (ny - y), x + 0.74 * (nx - x), y + 0.7 * (ny - y)
        s.arrow((w * sx, h * sy), (w * ex, h * ey), (190, 80, 40), max(1.6, 0.018 * s.unit))
    for stage, (x, y) in zip(stages, places):
        _box(s, x * w, y * h, bw, bh, stage, 0.14 * h)
    questions = []
    for i, stage in enumerate(stages):
        after, before = stages[(i + 1) % 4], stages[i - 1]
        questions.append(
            Question(
                "after",
                f"What comes after {stage}?",
                after,
                without(stages, stage, after),
                f"Does {{}} come right after {stage}?",
                f"{after} comes after {stage}.",
            )
        )
        questions.append(
            Question(
                "before",
                f"What comes before {stage}?",
                before,
                without(stages, stage, before),
                f"Does {{}} come right before {stage}?",
                f"{before} comes before {stage}.",
            )
        )
    for place, stage in zip(("top", "right", "bottom", "left"), stages):
        questions.append(
            Question(
                "place",
                f"Which stage is at the {place} of the diagram?",
                stage,
                without(stages, stage),
                f"Is {{}} at the {place} of the diagram?",
                f"{stage} is at the {place}.",
            )
        )
    questions.append(
        Question(
            "what", "What does the diagram show?", title, without(STAGES, title), "Does the diagram show {}?", f"The diagram shows {title}."
        )
    )
    told = " to ".join(stages)
    subjects = (
        f"a diagram of {title}: {told}",
        f"{title} that goes from {told}",
        f"a cycle of {', '.join(stages)}",
        f"a diagram of {title}",
    )
    return s.scene("diagram", "cycle", questions, subjects, "There are four stages.", f"At the top is {stages[0]}.")


def _chain(s: Sketch) -> Scene:
    """A food chain, from bottom to top or top to bottom; arrows point to who eats."""
    rng, (w, h) = s.rng, s.size
    n = rng.randint(3, s.knobs.chain)
    members = rng.sample(EATERS, n)
    upward = rng.random() < 0.5
    pitch = 1 / n
    centres = [((i + 0.5) if not upward else (n - i - 0.5)) * pitch for i in range(n)]
    cx, bh = w * rng.uniform(0.44, 0.56), h * pitch * 0.62
    for y, ny in itertools.pairwise(centres):
        s.begin()
        step = 0.31 * pitch * (1 if ny > y else -1)
        s.arrow((cx, (y + step) * h), (cx, (ny - step) * h), (60, 130, 60), max(2, 0.022 * s.unit))
    for member, y in zip(members, centres):
        _box(s, cx, y * h, 0.62 * w, bh, member, min(0.17 * h, bh * 0.85))
    questions = [
        Question(
            "first",
            "What is at the start of the food chain?",
            members[0],
            without(members, members[0]),
            "Is {} at the start of the food chain?",
            f"{members[0]} is at the start.",
        ),
        Question(
            "last",
            "What is at the end of the food chain?",
            members[-1],
            without(members, members[-1]),
            "Is {} at the end of the food chain?",
            f"{members[-1]} is at the end.",
        ),
        fact("count", "How many living things are in the food chain?", "the number of living things", str(n), "2345"),
    ]
    for eaten, eater in itertools.pairwise(members):
        questions.append(
            Question(
                "eater",
                f"In the diagram, what eats the {eaten}?",
                eater,
                without(members, eaten, eater),
                f"Does the {{}} eat the {eaten} in the diagram?",
                f"The {eater} eats the {eaten}.",
            )
        )
        questions.append(
            Question(
                "eaten",
                f"In the diagram, what does the {eater} eat?",
                eaten,
                without(members, eaten, eater),
                f"Does the {eater} eat the {{}} in the diagram?",
                f"The {eater} eats the {eaten}.",
            )
        )
    told = ", ".join(f"{a} eaten by {b}" for a, b in itertools.pairwise(members))
    subjects = (
        f"a food chain: {' to '.join(members)}",
        f"a food chain with {told}",
        f"a food chain from {members[0]} to {members[-1]}",
        f"{NUMBERS[n]} living things in a food chain",
    )
    return s.scene("diagram", "chain", questions, subjects, f"It starts with {members[0]}.", f"There are {NUMBERS[n]} members.")


# where the parts of a thing are, in units of its half width from (centre, base): what a label's line points at
POINTS = {
    "flower": {"petal": (0.42, -1.4), "leaf": (0.3, -0.55), "stem": (0.0, -0.3), "root": (0.0, 0.12)},
    "house": {"roof": (0.3, -1.45), "door": (0.0, -0.3), "window": (0.5, -0.8), "wall": (-0.55, -0.35)},
    "car": {"roof": (0.0, -0.97), "door": (0.0, -0.42), "wheel": (0.55, -0.2), "lamp": (-0.97, -0.5)},
}


def _parts(s: Sketch) -> Scene:
    """A thing with two of its parts marked by letters, at the end of lines."""
    rng, (w, h) = s.rng, s.size
    thing = rng.choice(list(PARTS))
    cx, base, r = w * 0.5, h * (0.74 if thing == "car" else 0.8), (0.42 if thing == "car" else 0.36) * min(w * 0.85, h)
    colour = rng.choice(list(COLOURS))
    draw_object(s, thing, cx, base, r, s.colour(colour))
    s.begin()
    if thing == "flower":
        s.ellipse(cx + r * 0.3, base - r * 0.55, r * 0.3, r * 0.12, (30, 120, 55))
        for dx in (-0.2, 0, 0.2):
            s.line(((cx, base), (cx + dx * r, base + r * 0.22)), (120, 78, 45), max(1.2, r * 0.06))
    elif thing == "house":
        s.rect(cx + r * 0.34, base - r * 0.95, cx + r * 0.66, base - r * 0.65, (200, 228, 245))
    else:
        s.rect(cx - r, base - r * 0.58, cx - r * 0.9, base - r * 0.42, (255, 235, 120))
    parts = rng.sample(PARTS[thing], 2)
    questions = []
    for letter, part in zip("AB", parts):
        px, py = cx + POINTS[thing][part][0] * r, base + POINTS[thing][part][1] * r
        left = letter == "A"
        x, y = w * (0.08 if left else 0.92), min(max(py, h * 0.1), h * 0.9)
        s.begin()
        s.line(((x + (0.07 if left else -0.07) * w, y), (px, py)), (150, 30, 120), max(1.4, 0.014 * s.unit))
        s.ellipse(px, py, 0.02 * s.unit, 0.02 * s.unit, (150, 30, 120))
        s.text(x, y, letter, 0.16 * h, INK)
        questions.append(
            fact(
                "part",
                f"Which part of the {thing} is labeled {letter}?",
                f"the part labeled {letter}",
                part,
                PARTS[thing],
                told=f"label {letter}",
                link="the",
            )
        )
        other = "AB"[letter == "A"]
        questions.append(
            Question(
                "label",
                f"Which letter labels the {part}?",
                letter.lower(),
                (other.lower(), "c"),
                f"Does the letter {{}} label the {part}?",
                f"The {part} is labeled {letter.lower()}.",
            )
        )
    questions.append(
        Question(
            "what",
            "What thing does the diagram show?",
            thing,
            without(PARTS, thing),
            "Does the diagram show a {}?",
            f"The diagram shows a {thing}.",
        )
    )
    questions.append(fact("color", "What color is", f"the {thing} in the diagram", colour, COLOURS, told=f"the {thing}"))
    a, b = parts
    subjects = (
        f"a diagram of a {colour} {thing}: a is the {a}, b is the {b}",
        f"the parts of a {thing}: {a} labeled a and {b} labeled b",
        f"a {thing} with its {a} and {b} labeled",
        f"a diagram of a {colour} {thing}",
    )
    return s.scene("diagram", "parts", questions, subjects, "It has two labels.", f"The {thing} is {colour}.")


def compose_map(rng: Random, knobs: Knobs) -> Scene:
    """Four places around a crossing, north up, and a marker that stands beside one of them."""
    s = Sketch(rng, knobs, pick_size(rng, knobs, (0.9, 1.2)))
    s.background((226, 236, 214))
    w, h = s.size
    spots = rng.sample(SPOTS, 4)
    road, pin = (246, 246, 240), rng.choice(("red", "blue", "purple", "black"))
    s.rect(w * 0.455, 0, w * 0.545, h, road)
    s.rect(0, h * 0.455, w, h * 0.545, road)
    corners = (("north west", 0.23, 0.23), ("north east", 0.77, 0.23), ("south west", 0.23, 0.77), ("south east", 0.77, 0.77))
    for spot, (_, x, y) in zip(spots, corners):
        s.begin()
        s.rect(w * (x - 0.19), h * (y - 0.13), w * (x + 0.19), h * (y + 0.13), s.noisy((236, 214, 190)))
        s.text(w * x, h * y, spot, h * 0.15, fit=0.36 * w)
    at = rng.randrange(4)
    _, x, y = corners[at]
    s.begin()
    s.ellipse(w * x, h * (y - 0.13), 0.062 * s.unit, 0.062 * s.unit, s.colour(pin))
    questions = []
    for spot, (corner, _, _) in zip(spots, corners):
        questions.append(
            Question(
                "corner",
                f"Which place is in the {corner}?",
                spot,
                without(SPOTS, spot),
                f"Is the {{}} in the {corner}?",
                f"The {spot} is in the {corner}.",
            )
        )
    nw, ne, sw, se = spots
    for a, b, way in (
        (nw, sw, "north"),
        (ne, se, "north"),
        (sw, nw, "south"),
        (se, ne, "south"),
        (nw, ne, "west"),
        (sw, se, "west"),
        (ne, nw, "east"),
        (se, sw, "east"),
    ):
        questions.append(
            Question(
                "way",
                f"Which place is directly {way} of the {b}?",
                a,
                without(SPOTS, a, b),
                f"Is the {{}} directly {way} of the {b}?",
                f"The {a} is {way} of the {b}.",
            )
        )
    questions.append(fact("pin color", "What color is", "the marker on the map", pin, COLOURS, told="the marker"))
    questions.append(fact("pin", "Which place is the marker at?", "the marker", spots[at], spots, link="at the"))
    subjects = (
        f"a map with {nw} and {ne} in the north, {sw} and {se} in the south, and a {pin} marker at the {spots[at]}",
        f"a map of {nw}, {ne}, {sw} and {se} with a {pin} marker at the {spots[at]}",
        f"a map with a {pin} marker at the {spots[at]}",
        f"a map of {nw}, {ne}, {sw} and {se}",
    )
    return s.scene("map", "map", questions, subjects, "Two roads cross in the middle.", f"The marker is {pin}.")
