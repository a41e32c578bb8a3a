"""What a picture is before it is painted: a display list of primitives, and what the same facts let one ask and say.

A `Scene` is pure data. `paint` draws exactly its marks, so whoever reads the marks knows what is in the picture without trusting the
generator's answers; the tests do so. Coordinates are pixels of the final picture, x to the right, y down.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from small_data.mini import fonts
from small_data.mini.knobs import Knobs
from small_data.mini.vocabulary import COLOURS, without

SMOOTH = 2  # pictures are drawn at twice their size and averaged: smooth edges at every size
INK = (30, 30, 34)
PAPER = (252, 252, 250)

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """One drawn primitive. `points`: two corners (rect, ellipse, slice), vertices (polygon, line), or the centre (text)."""

    kind: str  # rect | ellipse | ring | polygon | line | slice | text
    points: tuple[Point, ...]
    fill: Colour
    part: int = 0  # marks of one thing (a car: body, roof, two wheels) share a number
    width: float = 0  # of a line or a ring
    span: tuple[float, float] = (0, 0)  # of a slice, degrees clockwise from three o'clock
    text: str = ""
    font: str = ""
    size: int = 0
    angle: float = 0  # degrees counter-clockwise
    bend: float = 0  # degrees that a line of text turns from its first letter to its last


@dataclass(frozen=True)
class Question:
    """One fact, in the three ways benchmarks ask for it: openly, among choices, or as a claim to be confirmed.

    `others` are answers that are false of this picture. `claim` has one `{}` for an answer and reads as a yes/no question.
    A question whose own answer is yes or no has no claim.
    """

    kind: str
    text: str
    answer: str
    others: tuple[str, ...] = ()
    claim: str = ""
    sentence: str = ""


def fact(kind: str, text: str, thing: str, answer: str, pool: Iterable[str], link: str = "", told: str = "") -> Question:
    """That `thing` is `link` `answer` ("the pin", "at the", "zoo"): claimed as "Is the pin at the zoo?", said as "The pin is at the zoo.".

    `text` is the question, or its beginning, which the thing completes ("What color is"). `told` names the thing more shortly in the
    sentence. `pool` holds what the answer is confused with.
    """
    told, link = told or thing, f" {link}" if link else ""
    text = text if text.endswith(("?", ".")) else f"{text} {thing}?"
    sentence = f"{told[0].upper()}{told[1:]} is{link} {answer}."
    return Question(kind, text, answer, without(pool, answer), f"Is {thing}{link} {{}}?", sentence)


def yes_no(kind: str, text: str, truth: bool, because: str) -> Question:
    """A question whose answer is yes or no: it has no claim."""
    answer = "yes" if truth else "no"
    return Question(kind, text, answer, sentence=f"{answer.capitalize()}, {because}.")


def extreme(of: str, what: str, answer: str, pool: Iterable[str]) -> Question:
    """Which one (`of`: "Which month") has the `what`: "highest value"."""
    return Question(
        "extreme", f"{of} has the {what}?", answer, without(pool, answer), f"Does {{}} have the {what}?", f"{answer} has the {what}."
    )


@dataclass(frozen=True)
class Scene:
    """A picture to be painted, and what is true of it.

    `subjects`: noun phrases that say the whole picture, from the fullest to the tersest; `details`: sentences for a long description.
    """

    family: str
    kind: str
    size: tuple[int, int]
    marks: tuple[Mark, ...]
    questions: tuple[Question, ...]
    subjects: tuple[str, ...]
    details: tuple[str, ...]


@dataclass
class Sketch:
    """Gathers the marks of one scene. All lengths are pixels."""

    rng: Random
    knobs: Knobs
    size: tuple[int, int]
    marks: list[Mark] = field(default_factory=list)
    part: int = 0

    @property
    def unit(self) -> float:
        """The shorter side: what sizes of things are measured in."""
        return min(self.size)

    def scene(self, family: str, kind: str, questions: Iterable[Question], subjects: tuple[str, ...], *details: str) -> Scene:
        """What has been drawn, and what is true of it."""
        return Scene(family, kind, self.size, tuple(self.marks), tuple(questions), subjects, details)

    def begin(self) -> int:
        """Starts a new thing: the marks that follow belong to it."""
        self.part += 1
        return self.part

    def _add(self, kind: str, points, fill: Colour, **more) -> None:
        rounded = tuple((round(x, 2), round(y, 2)) for x, y in points)
        self.marks.append(Mark(kind, rounded, fill, self.part, **more))

    def rect(self, x0, y0, x1, y1, fill):
        self._add("rect", ((x0, y0), (x1, y1)), fill)

    def ellipse(self, cx, cy, rx, ry, fill):
        self._add("ellipse", ((cx - rx, cy - ry), (cx + rx, cy + ry)), fill)

    def ring(self, cx, cy, r, fill, width):
        self._add("ring", ((cx - r, cy - r), (cx + r, cy + r)), fill, width=round(width, 2))

    def polygon(self, points, fill):
        self._add("polygon", points, fill)

    def line(self, points, fill, width):
        self._add("line", points, fill, width=round(width, 2))

    def slice(self, cx, cy, r, start, end, fill):
        self._add("slice", ((cx - r, cy - r), (cx + r, cy + r)), fill, span=(round(start, 2), round(end, 2)))

    def frame(self, x0, y0, x1, y1, fill, width):
        self.line(((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)), fill, width)

    def arrow(self, start: Point, end: Point, fill, width):
        """A line with a triangular head at its end."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        head = min(3 * width, length / 2)
        bx, by = x1 - dx * head, y1 - dy * head
        self.line((start, (bx, by)), fill, width)
        self.polygon(((x1, y1), (bx - dy * head / 1.5, by + dx * head / 1.5), (bx + dy * head / 1.5, by - dx * head / 1.5)), fill)

    def text(self, cx, cy, text, size, fill=INK, font="sans", fit=None, angle=0.0, bend=0.0) -> float:
        """Text centred on (cx, cy), made smaller where it would be wider than `fit`. Returns its width."""
        if fit:
            size = min(size, fit / fonts.width(font, text))
        size = max(6, round(size))
        self._add("text", ((cx, cy),), fill, text=text, font=font, size=size, angle=round(angle, 2), bend=round(bend, 2))
        return fonts.width(font, text) * size

    def text_left(self, x, cy, text, size, fill=INK, font="sans", fit=None) -> None:
        """Text that starts at x."""
        if fit:
            size = min(size, fit / fonts.width(font, text))
        self.text(x + fonts.width(font, text) * max(6, round(size)) / 2, cy, text, size, fill, font)

    def colour(self, name: str) -> Colour:
        """A named colour with the knob's noise."""
        return self.noisy(COLOURS[name])

    def noisy(self, colour: Colour) -> Colour:
        j = self.knobs.jitter
        red, green, blue = (min(255, max(0, c + self.rng.randint(-j, j))) for c in colour)
        return red, green, blue

    def background(self, colour: Colour) -> None:
        """Paints the ground. It belongs to no thing (part 0)."""
        self._add("rect", ((0, 0), self.size), self.noisy(colour))


def contrast(fill: Colour) -> Colour:
    """Black or white, whichever is read better on `fill`."""
    return INK if 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2] > 140 else PAPER


def pick_size(rng: Random, knobs: Knobs, aspect: tuple[float, float], dense: bool = True) -> tuple[int, int]:
    """(width, height) in pixels: mostly 100 to 200 a side, one in ten up to `long_side`; width / height lies in `aspect`."""
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    least = knobs.short_side if dense else 64
    draw = rng.random()
    side = rng.randint(least, 160) if draw < 0.7 else rng.randint(160, 256) if draw < 0.9 else rng.randint(256, knobs.long_side)
    w, h = (side, side / ratio) if ratio < 1 else (side * ratio, side)
    shrink = min(1.0, knobs.long_side / max(w, h))
    return max(64, round(w * shrink)), max(64, round(h * shrink))


def paint(scene: Scene):
    """The picture of a scene, RGB, `scene.size` pixels."""
    from PIL import Image, ImageDraw

    w, h = scene.size
    image = Image.new("RGB", (w * SMOOTH, h * SMOOTH), PAPER)
    draw = ImageDraw.Draw(image)
    for m in scene.marks:
        points = [(x * SMOOTH, y * SMOOTH) for x, y in m.points]
        match m.kind:
            case "rect":
                draw.rectangle(points, m.fill)
            case "ellipse":
                draw.ellipse(points, m.fill)
            case "ring":
                draw.ellipse(points, None, m.fill, round(m.width * SMOOTH))
            case "polygon":
                draw.polygon(points, m.fill)
            case "line":
                draw.line(points, m.fill, max(1, round(m.width * SMOOTH)), joint="curve")
            case "slice":
                draw.pieslice(points, *m.span, m.fill)
            case "text":
                _paint_text(image, draw, points[0], m)
    return image.reduce(SMOOTH)


def _paint_text(image, draw, centre: Point, m: Mark) -> None:
    face = fonts.font(m.font, m.size * SMOOTH)
    if not m.angle and not m.bend:
        draw.text(centre, m.text, m.fill, face, anchor="mm")
    elif not m.bend:
        _paste_turned(image, centre, m.text, m.fill, face, m.angle)
    else:  # letters stand on an arc whose length is the text's
        total = face.getlength(m.text)
        radius = total / math.radians(abs(m.bend))
        up = 1 if m.bend > 0 else -1  # a positive bend is a rainbow
        cx, cy = centre[0], centre[1] + up * (radius - total * abs(m.bend) / 1500)
        done = 0.0
        for letter in m.text:
            advance = face.getlength(letter)
            turn = (done + advance / 2 - total / 2) / radius
            at = (cx + radius * math.sin(turn), cy - up * radius * math.cos(turn))
            _paste_turned(image, at, letter, m.fill, face, -up * math.degrees(turn) + m.angle)
            done += advance


def _paste_turned(image, centre: Point, text: str, fill: Colour, face, angle: float) -> None:
    from PIL import Image, ImageDraw

    side = int(face.getlength(text) + face.size) + 4
    high = int(face.size * 1.6)
    mask = Image.new("L", (side, high), 0)
    ImageDraw.Draw(mask).text((side / 2, high / 2), text, 255, face, anchor="mm")
    mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    image.paste(fill, (round(centre[0] - mask.width / 2), round(centre[1] - mask.height / 2)), mask)
