"""Family `portrait`: eight people, each known by hair, hat and glasses, in a mood and a shirt."""

from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.scene import INK, Question, Scene, Sketch, fact, pick_size
from small_data.mini.vocabulary import COLOURS, MOODS, PEOPLE, article

SKIN = (240, 200, 165)
# name -> hair (color name or None), hat (color name or None), glasses, long hair: no two alike
CAST = {
    "anna": ("yellow", None, False, True),
    "ben": ("black", None, True, False),
    "carl": (None, "red", False, False),
    "dora": ("orange", None, False, True),
    "emma": ("black", None, True, True),
    "finn": (None, "green", True, False),
    "gina": ("yellow", "blue", False, True),
    "hugo": (None, None, True, False),
}


def compose(rng: Random, knobs: Knobs) -> Scene:
    s = Sketch(rng, knobs, pick_size(rng, knobs, (0.75, 1.1), dense=False))
    s.background(rng.choice(((225, 232, 240), (240, 234, 220), (222, 240, 224))))
    name, mood, shirt = rng.choice(PEOPLE), rng.choice(MOODS), rng.choice(list(COLOURS))
    hair, hat, glasses, long = CAST[name]
    w, h = s.size
    cx, cy, r = w * rng.uniform(0.46, 0.54), h * 0.46, 0.25 * s.unit
    s.begin()
    s.ellipse(cx, h * 1.02, r * 1.7, h * 0.98 - cy - r * 0.75, s.colour(shirt))
    if hair and long:
        s.begin()
        s.rect(cx - r * 1.22, cy - r * 0.5, cx + r * 1.22, cy + r * 1.15, s.colour(hair))
    s.begin()
    s.ellipse(cx, cy, r, r * 1.12, s.noisy(SKIN))
    if hair:
        s.begin()
        s.slice(cx, cy - r * 0.22, r * 1.22, 180, 360, s.colour(hair))
    if hat:
        s.begin()
        s.rect(cx - r * 1.4, cy - r * 0.8, cx + r * 1.4, cy - r * 0.52, s.colour(hat))
        s.rect(cx - r * 0.85, cy - r * 1.6, cx + r * 0.85, cy - r * 0.6, s.colour(hat))
    s.begin()
    for side in (-1, 1):
        s.ellipse(cx + side * r * 0.4, cy - r * 0.05, r * 0.11, r * 0.11, INK)
        if glasses:
            s.ring(cx + side * r * 0.42, cy - r * 0.05, r * 0.34, INK, max(1.2, r * 0.1))
    s.begin()
    bow = 1 if mood == "happy" else -1
    mouth = [(cx + r * 0.45 * t, cy + r * (0.58 + 0.16 * bow * (1 - 2 * t * t))) for t in (-1, -0.6, -0.2, 0.2, 0.6, 1)]
    s.line(mouth, (170, 40, 50), max(1.5, r * 0.12))
    wears = "yes" if glasses else "no"
    questions = [
        fact("who", "Who is this person?", "the person in the picture", name, PEOPLE, told="this"),
        fact("mood", "Is the person happy or sad?", "the person", mood, MOODS),
        fact("color", "What color is", "the shirt", shirt, COLOURS),
        Question(
            "glasses",
            "Does the person wear glasses?",
            wears,
            (),
            "",
            "The person wears glasses." if glasses else "The person wears no glasses.",
        ),
    ]
    if hat:
        questions.append(fact("color", "What color is", "the hat", hat, COLOURS))
    look = f"{mood} person in {article(shirt)} shirt"
    subjects = (
        f"{name}, {article(look)}",
        f"a portrait of {name}, who is {mood}, in {article(shirt)} shirt",
        f"{article(look)}",
        f"{name} in {article(shirt)} shirt",
    )
    details = (
        "The person wears glasses." if glasses else "The person wears no glasses.",
        f"The hat is {hat}." if hat else "The person wears no hat.",
    )
    return s.scene("portrait", "portrait", questions, subjects, *details)
