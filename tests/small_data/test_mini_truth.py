"""Every answer of the mini world is true of its picture, by a second reading from the drawn primitives; a lie goes red."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from small_data.mini import captions, question_styles, vocabulary
from small_data.mini.families import FAMILIES, compose, stream
from small_data.mini.scene import Sketch

sys.path.append(str(Path(__file__).parent))  # pytest's import mode does not look for helpers beside a test

import mini_questions
import mini_reader as reader

ROWS = 1000


def check(scene, rng) -> int:
    """Holds a scene's questions, claims and choices against the reader. Returns how many rows were read."""
    view, rows = reader.View(scene), 0
    for q in scene.questions:
        where = f"{scene.family}/{scene.kind}: {q.text} {q.answer}"
        assert mini_questions.answer(view, q.text) == q.answer, where
        assert q.answer not in q.others, where
        rows += 1
        if q.claim:
            assert mini_questions.holds(view, question_styles.claim(q, True, rng)), f"{where}: {q.claim}"
            for other in q.others:
                assert not mini_questions.holds(view, q.claim.format(other)), f"{where}: {other} is true as well"
            choices, at = question_styles.options(q, rng)
            assert [choice == q.answer for choice in choices] == [i == at for i in range(len(choices))], where
            rows += 2
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_a_thousand_rows_of_each_family_are_read_the_same_from_the_primitives(family):
    rows = i = 0
    while rows < ROWS or i < 60:
        rng = stream("truth", family, i)
        rows += check(compose(family, rng), rng)
        i += 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_answer_goes_red(family):
    rng = stream("lie", family)
    scene = compose(family, rng)
    q = next(q for q in scene.questions if q.others)
    lie = replace(q, answer=q.others[0], others=(q.answer, *q.others[1:]))
    with pytest.raises(AssertionError):
        check(replace(scene, questions=(lie,)), rng)


def test_a_generator_that_draws_another_color_than_it_says_goes_red(monkeypatch):
    monkeypatch.setattr(Sketch, "colour", lambda self, name: vocabulary.COLOURS["blue" if name == "red" else name])
    with pytest.raises(AssertionError):
        for i in range(200):
            check(compose("shapes", stream("colors", i)), stream("colors", i))


# Words of which a caption may speak only where the picture shows them.
TOLD = {
    *vocabulary.COLOURS,
    *vocabulary.SHAPES,
    *vocabulary.OBJECTS,
    *vocabulary.LANDMARKS,
    *vocabulary.WORDS,
    *vocabulary.PEOPLE,
    *vocabulary.SHOPS,
}
TOLD |= {*vocabulary.ITEMS, *vocabulary.CITIES, *vocabulary.MONTHS, *vocabulary.ANIMALS, *vocabulary.EATERS, *vocabulary.SPOTS}


def shown(view) -> set[str]:
    """Everything that can be named in a picture."""
    words = {w for text in view.words for w in re.findall(r"[a-z0-9]+", text)}
    things = (
        {reader.stamp_shape(view), "stamp"}
        | {n for n, _, _ in view.objects()}
        | {n for n, _, _ in view.shapes()}
        | {reader.LANDMARKS.get(view.code(p)) for p in view.parts}
    )
    colors = {reader.colour(m.fill) for m in (*view.marks, view.stamp)}
    person = (
        {reader.look(view)["who"], "shirt"}
        if any(view.code(p) == "e" and reader._skin(p[0].fill) for p in view.parts) and not words
        else set()
    )
    return (
        words
        | things
        | colors
        | person
        | {part for labels in (reader.labelled(view).values() if "a" in words and "b" in words else ()) for part in labels.split()}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_name_only_what_is_there(family):
    for i in range(150):
        rng = stream("captions", family, i)
        scene = compose(family, rng)
        seen = shown(reader.View(scene))
        for told in (captions.brief(scene), *captions.references(scene, rng)):
            named = {
                word.removesuffix("s") if word.removesuffix("s") in TOLD else word for word in re.findall(r"[a-z]+", told.lower())
            } & TOLD
            strange = {word for word in named - seen if word not in ("orange", "light", "rain", "sunny", "park")}
            assert not strange, f"{family}/{scene.kind}: {told!r} speaks of {strange}, the picture shows {seen}"
            numbers = set(re.findall(r"\d+", told))
            drawn = set(re.findall(r"\d+", " ".join(reader.View(scene).words)))
            assert scene.family in ("bars", "lines", "pie", "formula") or numbers <= drawn, f"{told!r}: {numbers - drawn}"


@pytest.mark.parametrize("family", FAMILIES)
def test_references_differ(family):
    for i in range(50):
        rng = stream("references", family, i)
        told = captions.references(compose(family, rng), rng)
        assert len(set(told)) == 5
