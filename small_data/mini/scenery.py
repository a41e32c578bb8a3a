"""Family `scene`: a place under a sky with a few things, a landmark, a street with a traffic light, a picture in a frame."""

from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.objects import PAINTED, draw_landmark, draw_object, draw_place, draw_sky
from small_data.mini.scene import Question, Scene, Sketch, fact, pick_size, yes_no
from small_data.mini.shapes import draw_shape
from small_data.mini.vocabulary import BESIDE, COLOURS, LANDMARKS, NUMBERS, OBJECTS, OPPOSITE, PLACES, SHAPES, SKIES, article, without

GOLD = (190, 150, 70)


def compose(rng: Random, knobs: Knobs, kind: str | None = None) -> Scene:
    s = Sketch(rng, knobs, pick_size(rng, knobs, (0.85, 1.5), dense=False))
    kind = kind or rng.choices(("place", "count", "landmark", "street", "art"), (45, 20, 13, 12, 10))[0]
    return {"place": _place, "count": _count, "landmark": _landmark, "street": _street, "art": _art}[kind](s)


def _sky_question(sky: str) -> Question:
    told = f"There is {sky} in the sky."
    return Question("sky", "What is in the sky: sun, rain or moon?", sky, without(SKIES, sky), "Is there {} in the sky?", told)


def _around(place: str, sky: str) -> tuple[Question, ...]:
    """What is asked of any outdoor scene."""
    shown = f"the sky shows {sky}"
    return (
        Question("scene", "What place is this?", place, without(PLACES, place), "Is this place a {}?", f"This is a {place} scene."),
        _sky_question(sky),
        yes_no("sense", "Do you need an umbrella here?", sky == "rain", shown),
        yes_no("sense", "Is the air dry here?", sky != "rain", shown),
        yes_no("day", "Is it night?", sky == "moon", shown),
        yes_no("day", "Is it day?", sky != "moon", shown),
    )


WEATHER = {"sun": "on a sunny day", "rain": "in the rain", "moon": "at night"}


def _setting(place: str, sky: str) -> str:
    return WEATHER[sky] + {"snow": " in the snow", "beach": " at the beach"}.get(place, f" in the {place}")


def _fitting(place: str) -> tuple[str, ...]:
    """Objects that a place has none of by itself: nobody could say how many trees stand in a forest, or whether a city has a house."""
    return without(OBJECTS, {"forest": "tree", "city": "house"}.get(place, ""))


def _exists(place: str, present: list[str]) -> list[Question]:
    absent = without(_fitting(place), *present)
    return [
        Question("existence", "Which object is in the picture?", x, absent, "Is there a {} in this picture?", f"There is a {x}.")
        for x in present
    ]


def _place(s: Sketch) -> Scene:
    # Rain half of the time: whether one needs an umbrella cannot be guessed.
    place, sky = s.rng.choice(PLACES), s.rng.choice((*SKIES, "rain"))
    draw_sky(s, sky)
    base = draw_place(s, place)
    n = s.rng.choice((1, 2, 2))
    names = s.rng.sample(_fitting(place), n)
    colours = s.rng.sample(list(COLOURS), n)
    places = (0.5,) if n == 1 else (0.27, 0.73)
    for name, colour, x in zip(names, colours, places):
        draw_object(s, name, x * s.size[0], base, s.rng.uniform(0.2, 0.24) * s.unit, s.colour(colour))
    things = [f"{c} {x}" if x in PAINTED else x for c, x in zip(colours, names)]
    questions = [*_around(place, sky), *(_exists(place, names) if n == 1 else [])]
    for name, colour in zip(names, colours):
        if name in PAINTED:
            questions.append(fact("color", "What color is", f"the {name}", colour, COLOURS))
    setting = _setting(place, sky)
    if n == 2:
        for a, b, side in ((names[0], names[1], "left"), (names[1], names[0], "right")):
            questions.append(
                Question(
                    "relation",
                    f"What is {BESIDE[side]} the {b}?",
                    a,
                    without(_fitting(place), a, b),
                    f"Is there a {{}} {BESIDE[side]} the {b}?",
                    f"The {a} is {BESIDE[side]} the {b}.",
                )
            )
            questions.append(
                fact("position", f"Is the {a} on the left or on the right?", f"the {a}", side, (OPPOSITE[side],), link="on the")
            )
        one, two = map(article, things)
        subjects = (
            f"{one} to the left of {two} {setting}",
            f"{two} to the right of {one} {setting}",
            f"{one} and {two} {setting}",
            f"a {names[0]} and a {names[1]}",
        )
    else:
        one = article(things[0])
        subjects = (
            f"{one} {setting}",
            f"a {place} scene with {one} {WEATHER[sky]}",
            one,
            f"a {names[0]} {setting}",
        )
    details = (f"This is a {place} scene.", f"There is {sky} in the sky.", f"There {'is one object' if n == 1 else 'are two objects'}.")
    return s.scene("scene", "place", questions, subjects, *details)


def _count(s: Sketch) -> Scene:
    place, sky = s.rng.choice(PLACES), s.rng.choice(SKIES)
    draw_sky(s, sky)
    base = draw_place(s, place)
    name = s.rng.choice(_fitting(place))
    colour = s.rng.choice(list(COLOURS))
    n = s.rng.randint(1, min(4, s.knobs.count))
    shade = s.colour(colour)
    for slot in sorted(s.rng.sample(range(4), n)):
        draw_object(s, name, (slot + 0.5) * s.size[0] / 4, base, 0.11 * s.size[0], shade)
    pool = ("1", "2", "3", "4")
    many = name if n == 1 else name + "s"
    painted = f"{colour} " if name in PAINTED else ""
    questions = [
        fact("count", f"How many {name}s are there?", f"the number of {name}s", str(n), pool),
        Question(
            "existence",
            "What objects are in the picture?",
            f"{name}s",
            tuple(f"{o}s" for o in without(_fitting(place), name)),
            "Are there any {} in this picture?",
            f"There are {name}s.",
        ),
        *_around(place, sky),
    ]
    setting = _setting(place, sky)
    subjects = (
        f"{NUMBERS[n]} {painted}{many} {setting}",
        f"a {'snowy place' if place == 'snow' else place} with {NUMBERS[n]} {painted}{many}",
        f"{painted}{many} {setting}",
        f"{NUMBERS[n]} {many}",
    )
    details = (f"This is a {place} scene.", f"There is {sky} in the sky.", f"The number of {name}s is {n}.")
    return s.scene("scene", "count", questions, subjects, *details)


def _landmark(s: Sketch) -> Scene:
    name, sky = s.rng.choice(LANDMARKS), s.rng.choice(SKIES)
    draw_sky(s, sky)
    w, h = s.size
    s.begin()
    s.rect(0, h * 0.78, w, h, (150, 175, 110))
    draw_landmark(s, name, w * s.rng.uniform(0.42, 0.58), h * 0.86, 0.27 * s.unit)
    questions = (
        fact("landmark", "Which landmark is shown?", "the landmark in this picture", name, LANDMARKS, told="the landmark", link="a"),
        _sky_question(sky),
    )
    when = WEATHER[sky]
    subjects = (f"a {name} {when}", f"a landmark, the {name}, {when}", f"the {name}", f"a famous {name} {when}")
    return s.scene("scene", "landmark", questions, subjects, f"The landmark is a {name}.", f"There is {sky} in the sky.")


def _street(s: Sketch) -> Scene:
    light = s.rng.choice(("red", "green"))
    sky = s.rng.choice(SKIES)
    draw_sky(s, sky)
    base = draw_place(s, "city")
    w, h = s.size
    x, r = w * 0.75, 0.062 * min(h, 1.2 * w)
    s.begin()
    s.rect(x - r * 0.25, h * 0.5, x + r * 0.25, base, (50, 50, 54))
    s.rect(x - r * 1.6, h * 0.56 - r * 8.4, x + r * 1.6, h * 0.56, (40, 40, 44))
    for i, lamp in enumerate(("red", "yellow", "green")):
        s.ellipse(x, h * 0.56 - r * (6.9 - 2.7 * i), r * 1.2, r * 1.2, s.colour(lamp) if lamp == light else (82, 82, 86))
    colour = s.rng.choice(list(COLOURS))
    draw_object(s, "car", w * 0.3, base, 0.24 * s.unit, s.colour(colour))
    questions = (
        fact("color", "What color is", "the traffic light", light, ("red", "yellow", "green")),
        yes_no("sense", "Must the car stop at the light?", light == "red", f"the light is {light}"),
        yes_no("sense", "May the car drive on?", light != "red", f"the light is {light}"),
        fact("color", "What color is", "the car", colour, COLOURS),
        Question(
            "relation",
            "What is to the left of the traffic light?",
            "car",
            ("flower", "boat", "tree"),
            "Is there a {} to the left of the traffic light?",
            "The car is to the left of the traffic light.",
        ),
    )
    car = article(f"{colour} car")
    subjects = (
        f"{car} at a {light} traffic light",
        f"a {light} traffic light and {car}",
        f"a street with {car}",
        f"a car at a {light} light",
    )
    return s.scene(
        "scene", "street", questions, subjects, f"The traffic light is {light}.", f"There is {sky} in the sky.", "The place is a city."
    )


def _art(s: Sketch) -> Scene:
    """A picture on a wall: one shape in a golden frame."""
    shape, colour = s.rng.choice(SHAPES), s.rng.choice(list(COLOURS))
    s.background((178, 150, 140))
    w, h = s.size
    m = 0.13 * s.unit
    s.begin()
    s.rect(m, m, w - m, h - m, (246, 242, 230))
    s.frame(m, m, w - m, h - m, GOLD, 0.05 * s.unit)
    draw_shape(s, shape, w / 2, h / 2, s.rng.uniform(0.2, 0.25) * s.unit, s.colour(colour))
    questions = (
        Question(
            "artwork",
            "What shape is in the painting?",
            shape,
            without(SHAPES, shape),
            "Does this artwork show a {}?",
            f"The painting shows a {shape}.",
        ),
        fact("color", "What color is", "the shape in the painting", colour, COLOURS, told="the shape"),
    )
    thing = article(f"{colour} {shape}")
    subjects = (
        f"a painting of {thing} in a golden frame",
        f"an artwork that shows {thing}",
        f"a painting of a {shape}",
        f"{thing} in a frame",
    )
    return s.scene("scene", "art", questions, subjects, "The painting hangs on a wall.", "The frame is golden.")
