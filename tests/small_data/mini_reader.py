"""Reads a mini-world picture from its display list alone, and answers questions about it: the second opinion in the tests.

It knows what a circle or a car is drawn with and where things stand, never what the generator says: it takes nothing from a scene but
its size and marks. mini_questions.py says which reading answers which question.
"""

import re
from dataclasses import replace

COLOURS = {
    "red": (216, 38, 40), "blue": (35, 90, 205), "green": (40, 155, 60), "yellow": (248, 208, 45),
    "purple": (140, 60, 185), "orange": (250, 130, 25), "black": (28, 28, 28),
}  # fmt: skip
OBJECTS = {  # primitives of a thing, in drawing order: letter and number of vertices
    "r p3 r": "house", "r e": "tree", "p4 r e e": "car", "l2 e e e e e e": "flower", "l2 e": "balloon", "p4 l2 p3": "boat",
}  # fmt: skip
LANDMARKS = {"p4 r p3": "tower", "p3 p3": "pyramid", "p4 l2 l2": "windmill", "r r l3 r l3": "bridge"}
SHAPES = {"e": "circle", "o": "ring", "r": "square", "p3": "triangle", "p10": "star", "p12": "cross"}
STAMP = -1  # the part of the strip beside the picture and of the one shape in it
SPANISH = {"rojo": "red", "azul": "blue", "casa": "house", "agua": "water", "gato": "cat", "pan": "bread", "leche": "milk", "sol": "sun"}
CYCLES = {"egg": "a life cycle", "sea": "the water cycle", "spring": "the seasons"}
LOOKS = {  # (hair, hat, glasses, long hair) -> who it is
    ("yellow", None, False, True): "anna", ("black", None, True, False): "ben", (None, "red", False, False): "carl",
    ("orange", None, False, True): "dora", ("black", None, True, True): "emma", (None, "green", True, False): "finn",
    ("yellow", "blue", False, True): "gina", (None, None, True, False): "hugo",
}  # fmt: skip
NAMES = re.compile(r"\b(anna|ben|carl|dora|emma|finn|gina|hugo)\b", re.I)


def colour(fill) -> str:
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], fill)))


def _code(mark) -> str:
    letter = {"rect": "r", "ellipse": "e", "ring": "o", "polygon": "p", "line": "l", "slice": "s", "text": "t"}[mark.kind]
    return letter + (str(len(mark.points)) if letter in "pl" else "")


class View:
    """The marks of a picture, grouped by the thing they belong to; the stamp and its strip aside, in coordinates without them."""

    def __init__(self, scene):
        strip, self.stamp = [m for m in scene.marks if m.part == STAMP]
        (x0, y0), (x1, y1) = strip.points
        self.w, self.h = scene.size[0] - (x1 - x0) % scene.size[0], scene.size[1] - (y1 - y0) % scene.size[1]
        dx, dy = (x1 if x0 == 0 and x1 < scene.size[0] else 0), (y1 if y0 == 0 and y1 < scene.size[1] else 0)
        inside = [m for m in scene.marks if m.part != STAMP]
        self.marks = [replace(m, points=tuple((x - dx, y - dy) for x, y in m.points)) for m in inside]
        parts: dict[int, list] = {}
        for mark in self.marks:
            parts.setdefault(mark.part, []).append(mark)
        self.parts = [parts[k] for k in sorted(parts) if k]
        self.texts = [m for m in self.marks if m.kind == "text"]
        self.words = [m.text.lower() for m in self.texts]

    def code(self, part) -> str:
        return " ".join(_code(m) for m in part if m.kind != "text")

    def centre(self, thing) -> tuple[float, float]:
        marks = thing if isinstance(thing, list) else [thing]
        xs, ys = zip(*(p for m in marks for p in m.points))
        return (min(xs) + max(xs)) / 2 / self.w, (min(ys) + max(ys)) / 2 / self.h

    def shapes(self) -> list:
        """(name, color, mark) of the things that are one plain shape."""
        single = [p[0] for p in self.parts if len(p) == 1 and _code(p[0]) in SHAPES]
        return [(SHAPES[_code(m)], colour(m.fill), m) for m in single]

    def objects(self) -> list:
        """(name, color or None, part)."""
        painted = {"house": 0, "car": 1, "flower": 1, "balloon": 1, "boat": 0}
        found = [(OBJECTS[self.code(p)], p) for p in self.parts if self.code(p) in OBJECTS and not any(m.text for m in p)]
        return [(name, colour(p[painted[name]].fill) if name in painted else None, p) for name, p in found]


def only(values):
    values = list(values)
    assert len(values) == 1, f"not told by the picture: {values}"
    return values[0]


def _side(view, mine, other) -> str:
    (x0, y0), (x1, y1) = view.centre(mine), view.centre(other)
    if abs(x0 - x1) > abs(y0 - y1):
        return "to the left of" if x0 < x1 else "to the right of"
    return "above" if y0 < y1 else "below"


def place_of(x, y) -> str:
    return ("left" if x < 0.5 else "right") if abs(x - 0.5) > abs(y - 0.5) else ("top" if y < 0.5 else "bottom")


def corner_of(x, y) -> str:
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def _area(view, mark) -> float:
    (x0, y0), (x1, y1) = (
        (min(p[0] for p in mark.points), min(p[1] for p in mark.points)),
        (max(p[0] for p in mark.points), max(p[1] for p in mark.points)),
    )
    return (x1 - x0) * (y1 - y0)


def stamp_shape(v):
    return {**SHAPES, "p4": "square"}[_code(v.stamp)]  # four corners: a turned square


# --- shapes


def shape_color(v, name):
    return only(c for n, c, _ in v.shapes() if n == name)


def color_shape(v, name):
    return only(n for n, c, _ in v.shapes() if c == name)


def shape_where(v, name):
    return only(place_of(*v.centre(m)) for n, _, m in v.shapes() if n == name)


def shape_beside(v, side, name):
    other = only(m for n, _, m in v.shapes() if n == name)
    return only(n for n, _, m in v.shapes() if m is not other and _side(v, m, other) == side)


def shape_extent(v, word):
    pick = max if word == "larger" else min
    return pick(v.shapes(), key=lambda s: _area(v, s[2]))[0]


# --- scenes


def sky(v):
    for part in v.parts:
        code = v.code(part)
        if code == "e" and v.centre(part)[1] < 0.3:
            return "sun"
        if code == "e e" and v.centre(part)[1] < 0.3:
            return "moon"
        if code == "l2 " * 6 + "l2":
            return "rain"
    raise AssertionError("no sky")


def scene_place(v):
    grounds = {"r r": "beach", "r r r r r r": "city", "p3 p3 p3 p3 p3 p3 r": "forest", "p3 p3 r": "snow"}
    return only(
        grounds[v.code(p)] for p in v.parts if (v.code(p) in grounds and v.code(p) != "r r") or (v.code(p) == "r r" and p[0].fill[2] > 150)
    )


def lamp(v):
    lamps = only(p for p in v.parts if v.code(p) == "r r e e e")
    return only(colour(m.fill) for m in lamps[2:] if max(m.fill) - min(m.fill) > 60)


def object_beside(v, side, name):
    other = (
        only(p for p in v.parts if v.code(p) == "r r e e e") if name == "traffic light" else only(p for n, _, p in v.objects() if n == name)
    )
    return only(n for n, _, p in v.objects() if p is not other and _side(v, p, other) == side)


def framed(v):
    return only((n, c) for n, c, m in v.shapes())


# --- portraits: shirt, (long hair), face, (hair), (hat), eyes, mouth


def look(v):
    parts = v.parts
    face = only(
        p[0]
        for p in parts
        if v.code(p) == "e" and p[0].fill[0] > 200 and 0.3 < v.centre(p)[1] < 0.6 and 0.3 < v.centre(p)[0] < 0.7 and _skin(p[0].fill)
    )
    hair = [p[0] for p in parts if v.code(p) == "s"]
    long = [p[0] for p in parts if v.code(p) == "r"]
    hat = [p[0] for p in parts if v.code(p) == "r r"]
    glasses = any(m.kind == "ring" for m in v.marks)
    (mouth,) = [m for m in v.marks if m.kind == "line"]
    happy = mouth.points[len(mouth.points) // 2][1] > mouth.points[0][1]
    shirt = only(p[0] for p in parts if v.code(p) == "e" and p[0] is not face)
    who = LOOKS[colour(hair[0].fill) if hair else None, colour(hat[0].fill) if hat else None, glasses, bool(long)]
    return {
        "who": who,
        "mood": "happy" if happy else "sad",
        "shirt": colour(shirt.fill),
        "hat": colour(hat[0].fill) if hat else None,
        "glasses": glasses,
    }


def _skin(fill) -> bool:
    return sum((a - b) ** 2 for a, b in zip(fill, (240, 200, 165))) < 2000


# --- text


def word_on(v):
    return only(dict.fromkeys(w for w in v.words if not w.isdigit()))


def number_on(v):
    return only(w for w in v.words if w.isdigit())


def text_color(v):
    return colour(v.texts[-1].fill)


def carrier_color(v, thing):
    for part in v.parts:
        if thing == "shirt" and _code(part[0]) == "p12":
            return colour(part[0].fill)
        if thing == "sign" and v.code(part).startswith("r r l5"):
            return colour(part[1].fill)
        if thing == "bus" and v.code(part) == "r r r e e":
            return colour(part[0].fill)
    raise AssertionError(f"no {thing}")


def printed_sum(v):
    """(first operand, value) of a printed sum or of code."""
    told = " ".join(v.words)
    numbers = {"x": int(found[1])} if (found := re.search(r"x = (\d+)", told)) else {}
    a, sign, b = re.search(r"(\w+) ([+-]) (\d+)", told.split("print")[-1]).groups()
    a = numbers[a] if a in numbers else int(a)
    return a, a + int(b) if sign == "+" else a - int(b)


# --- charts


def chart(v):
    """label -> (value, color), in drawn order; the value is read off the geometry, and where one is printed that must agree."""
    found, slices = {}, [m for m in v.marks if m.kind == "slice"]
    if slices:
        for part in v.parts:
            sector, label = part[0], part[-1].text
            value = (sector.span[1] - sector.span[0]) / 3.6
            found[label] = (round(value), colour(sector.fill), [m.text for m in part if m.kind == "text"][:-1])
    else:
        axes = next((m for m in v.marks if m.kind == "line" and len(m.points) == 3), None)
        for part in v.parts:
            texts = [m for m in part if m.kind == "text"]
            if part[0].kind == "rect":
                (x0, y0), (x1, y1) = part[0].points
                top, corner, right = axes.points
                upright = y1 == corner[1]  # it stands on the lower axis
                value = 90 * (y1 - y0) / (corner[1] - top[1]) if upright else 90 * (x1 - x0) / (right[0] - corner[0])
                found[texts[0].text] = (round(value), colour(part[0].fill), [m.text for m in texts[1:]])
            elif part[0].kind == "ellipse":
                grid = sorted(m.points[0][1] for m in v.marks if m.kind == "line" and m.part == 0 and len(m.points) == 2)
                cy = (part[0].points[0][1] + part[0].points[1][1]) / 2
                value = 90 * (grid[-1] - cy) / (grid[-1] - grid[0])
                found[texts[0].text] = (round(value), colour(part[0].fill), [m.text for m in texts[1:]])
    for label, (value, _, printed) in found.items():
        assert all(abs(int(p) - value) <= 1 for p in printed), f"{label} is drawn as {value} and printed as {printed}"
    return {label: (round(value, -1), c) for label, (value, c, _) in found.items()}


def extreme(v, word):
    data = chart(v)
    return (max if word == "highest" else min)(data, key=lambda label: data[label][0])


def gap(v):
    values = [value for value, _ in chart(v).values()]
    return max(values) - min(values)


def months(v):
    return list(chart(v).items())


# --- documents


def rows(v):
    """Text on a page by lines: [[left text, right text], ...] from top to bottom."""
    lines: dict[float, list] = {}
    for m in v.texts:
        lines.setdefault(m.points[0][1], []).append(m)
    return [[m.text.lower() for m in sorted(line, key=lambda m: m.points[0][0])] for _, line in sorted(lines.items())]


def document_kind(v):
    first = " ".join(v.words)
    return "form" if "form" in v.words else "receipt" if "total" in v.words else "letter" if "dear" in first else None


def letter(v):
    told = {word: text for text in v.words for word in ("dear", "from") if text.startswith(word)}
    (month, day), gift = v.words[0].split(), v.words[3].rstrip(".")
    return {"to": NAMES.search(told["dear"])[1], "from": NAMES.search(told["from"])[1], "month": month, "day": day, "gift": gift}


# --- diagrams and maps


def arrows(v):
    """word -> word, by the boxes nearest to each arrow's two ends."""
    boxes = [(m.text, m.points[0]) for m in v.texts]
    found = {}
    for part in v.parts:
        if v.code(part) == "l2 p3":
            start, end = part[0].points[0], part[1].points[0]
            near = [min(boxes, key=lambda box, at=at: _to_box(v, box[1], at))[0] for at in (start, end)]
            found[near[0]] = near[1]
    return found


def _to_box(v, centre, at) -> float:
    return ((centre[0] - at[0]) / v.w) ** 2 + ((centre[1] - at[1]) / v.h) ** 2


def chain_ends(v, last: bool):
    follows = arrows(v)
    return only(set(follows.values()) - set(follows)) if last else only(set(follows) - set(follows.values()))


def diagram_thing(v):
    return only(n for n, _, _ in v.objects())


def labelled(v):
    """letter -> part, by what the pointer's end touches. The last mark painted there is what one sees."""
    thing, drawn = diagram_thing(v), []
    for part in v.parts:
        if any(m.kind == "text" for m in part):
            continue
        drawn += part
    found = {}
    for part in v.parts:
        texts = [m for m in part if m.kind == "text"]
        if texts:
            x, y = part[0].points[1]
            touched = [(i, m) for i, m in enumerate(drawn) if _inside(m, x, y)]
            found[texts[0].text.lower()] = _part_name(thing, touched[-1][1], drawn) if touched else "root"
    return found


def _inside(m, x, y) -> bool:
    if m.kind in ("rect", "ellipse"):
        (x0, y0), (x1, y1) = m.points
        if m.kind == "rect":
            return x0 <= x <= x1 and y0 <= y <= y1
        return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1
    if m.kind == "line":
        (x0, y0), (x1, y1) = m.points[:2]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length**2
        return 0 <= along <= 1 and abs((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length <= max(m.width, 1)
    inside, pts = False, m.points
    for (x0, y0), (x1, y1) in zip(pts, (*pts[1:], pts[0])):
        if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            inside = not inside
    return inside


def _part_name(thing, mark, drawn) -> str:
    at = drawn.index(mark)
    return {
        "house": ("wall", "roof", "door", "window"),
        "car": ("roof", "door", "wheel", "wheel", "lamp"),
        "flower": ("stem", *("petal",) * 5, "heart", "leaf", "root", "root", "root"),
    }[thing][at]


def map_spots(v):
    """place -> corner."""
    return {
        m.text: ("north" if m.points[0][1] < v.h / 2 else "south") + (" west" if m.points[0][0] < v.w / 2 else " east") for m in v.texts
    }


def map_way(v, way, name):
    spots = map_spots(v)
    ns, ew = spots[name].split()
    wanted = f"{way} {ew}" if way in ("north", "south") else f"{ns} {way}"
    assert wanted != spots[name]
    return only(spot for spot, corner in spots.items() if corner == wanted)


def pin(v):
    return only(p[0] for p in v.parts if v.code(p) == "e" and not any(m.kind == "text" for m in p))


def pinned(v):
    x, y = v.centre(pin(v))
    return min(v.texts, key=lambda m: _to_box(v, m.points[0], (x * v.w, y * v.h))).text


# --- infographics


def panels(v):
    """label -> (percentage, color, shape). A panel's shape is the thing drawn after it."""
    found, shapes = {}, v.shapes()
    for part in v.parts:
        texts = [m.text for m in part if m.kind == "text"]
        if part[0].kind == "rect" and len(texts) == 2:
            (_, y0), (_, y1) = part[0].points
            shape = only(n for n, _, m in shapes if y0 <= v.centre(m)[1] * v.h <= y1)
            found[texts[1]] = (texts[0], colour(part[0].fill), shape)
    return found


def poster_extreme(v, word):
    data = panels(v)
    return (max if word == "highest" else min)(data, key=lambda label: int(data[label][0].rstrip("%")))


def page_bar(v, top: bool):
    bars = sorted((p[0] for p in v.parts if p[0].kind == "rect"), key=lambda m: m.points[0][1])
    return colour(bars[0 if top else -1].fill)


def yes(truth: bool) -> str:
    return "yes" if truth else "no"
