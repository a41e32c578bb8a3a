"""A stamp beside every picture: one shape-like fact that all families share.

Text that is read from strokes takes a small encoder millions of pictures; a shape that turns, moves and grows it learns in minutes, and an
untrained one reads it badly. So every picture, chart or form alike, carries a stamp in a strip at one of its sides, captions begin with
it, and `knobs.stamp_share` of the questions are about it: what tells encoders apart then stands in every column.
"""

from dataclasses import replace
from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.scene import Question, Scene, Sketch
from small_data.mini.shapes import draw_shape
from small_data.mini.vocabulary import COLOURS, SHAPES, SIDES, article, without

STRIP = ((252, 252, 252), (226, 226, 230), (250, 240, 216))
PART = -1  # the part number of the stamp's marks: no thing of the scene has it


def apart(scene: Scene) -> tuple[Scene, Question]:
    """(the scene with its own questions alone, the question about its stamp)."""
    *own, stamp = scene.questions
    return replace(scene, questions=tuple(own)), stamp


def stamped(scene: Scene, rng: Random, knobs: Knobs) -> Scene:
    """The scene, moved aside for a strip of `knobs.strip` of its side, with a stamp in it; its questions and captions tell of the stamp."""
    shapes = SHAPES[: knobs.stamps]
    shape, colour, side = rng.choice(shapes), rng.choice(list(COLOURS)), rng.choice(SIDES)
    w, h = scene.size
    upright = side in ("left", "right")  # the strip stands upright
    deep = round(knobs.strip * (w if upright else h))
    width, height = (w + deep, h) if upright else (w, h + deep)
    dx, dy = deep * (side == "left"), deep * (side == "top")
    x0, y0 = {"left": (0, 0), "top": (0, 0), "right": (w, 0), "bottom": (0, h)}[side]
    x1, y1 = (x0 + deep, h) if upright else (w, y0 + deep)

    s = Sketch(rng, knobs, (width, height))
    s.rect(x0, y0, x1, y1, s.noisy(rng.choice(STRIP)))
    short = min(x1 - x0, y1 - y0)
    cx, cy = rng.uniform(x0 + short / 2, x1 - short / 2), rng.uniform(y0 + short / 2, y1 - short / 2)
    turn = rng.uniform(-knobs.turn, knobs.turn)
    draw_shape(s, shape, cx, cy, short * rng.uniform(0.34, 0.45), s.colour(colour), turn)
    marks = [replace(m, points=tuple((round(x + dx, 2), round(y + dy, 2)) for x, y in m.points)) for m in scene.marks]
    marks += [replace(m, part=PART) for m in s.marks]

    question = Question(
        "stamp",
        "What shape is on the stamp?",
        shape,
        without(shapes, shape),
        "Is there a {} on the stamp?",
        f"There is a {shape} on the stamp.",
    )
    thing = f"{article(f'{colour} {shape}')} stamp"
    subjects = tuple(f"{thing} and {subject}" for subject in scene.subjects)
    return replace(
        scene, size=(width, height), marks=tuple(marks), questions=(*scene.questions, question), subjects=subjects,
        details=(*scene.details, f"The stamp is at the {side}."),
    )  # fmt: skip
