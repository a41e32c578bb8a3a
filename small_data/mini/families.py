"""The twelve scene families by name, and how a seed becomes a scene."""

from collections.abc import Callable
from random import Random

from small_data.mini import charts, diagrams, documents, infographics, portraits, scenery, shapes, signs
from small_data.mini.knobs import DEFAULT, Knobs
from small_data.mini.scene import Scene
from small_data.mini.stamp import stamped

FAMILIES: dict[str, Callable[..., Scene]] = {
    "shapes": shapes.compose,
    "scene": scenery.compose,
    "portrait": portraits.compose,
    "sign": signs.compose,
    "formula": signs.compose_formula,
    "bars": charts.compose_bars,
    "lines": charts.compose_lines,
    "pie": charts.compose_pie,
    "document": documents.compose,
    "diagram": diagrams.compose,
    "infographic": infographics.compose,
    "map": diagrams.compose_map,
}
# How often a family is drawn for training: in proportion to how many benchmark columns rest on it.
WEIGHTS = {
    "shapes": 12, "scene": 16, "portrait": 6, "sign": 16, "formula": 6, "bars": 7, "lines": 4, "pie": 4, "document": 10, "diagram": 9,
    "infographic": 8, "map": 4,
}  # fmt: skip


def stream(*where) -> Random:
    """The random numbers of one place of the world, e.g. (seed, "train", 17): equal in every process, disjoint between places."""
    return Random("/".join(map(str, where)))


def compose(family: str, rng: Random, knobs: Knobs = DEFAULT, kind: str | None = None) -> Scene:
    """A scene of a family, stamped; `kind` asks for one of its sub-kinds (only families that have several take it)."""
    return stamped(FAMILIES[family](rng, knobs, kind) if kind else FAMILIES[family](rng, knobs), rng, knobs)


def draw(rng: Random, knobs: Knobs = DEFAULT) -> Scene:
    """A training scene: the family is drawn by weight."""
    return compose(rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0], rng, knobs)
