"""Training seeds: rows of one encoder and recipe as one row, what seeds add to a difference, and how much they add where there is but one.

"Better" on the same test pictures says nothing about another training run: one frozen encoder, fine-tuned with seeds 0 and 1, may differ
by more than two encoders do. Rows whose recipes differ in `seed` alone are joined: scores are averaged question by question. The variance
of a difference of two joined rows is that by pictures, of the averaged scores, plus s^2 / k, of the k differences that equal places of the
seeds make; it is read with Student's t at k - 1 degrees of freedom, as of a mean of k differences (which is cautious: the pictures' part
is known better than that). Where the rows have unlike numbers of seeds: s_a^2 / k_a + s_b^2 / k_b, and the smaller number less one (the
cautious degrees of Welch's t).

A noise file holds the spread of each column and average over three or more seeds of a reference encoder. To rows of one seed it gives the
smallest believable difference: t x the root of the pictures' variance + s^2 (1 / k_a + 1 / k_b).
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval_suites.score import stats
from eval_suites.score.averages import average, overall
from eval_suites.score.protocol import protocol, seed_of, seeds_in_words
from eval_suites.score.results import Cell, EncoderResult, make_cell, read_rows
from eval_suites.suites import Column, Suite
from genlip.common.files import read_json, require, write_json

FEWEST_SEEDS = 3  # of a noise file


def values(suite: Suite, row: EncoderResult) -> dict[str, float]:
    """The row's numbers by title: columns in printed units, averages at 100 for full marks; those that there are."""
    said: dict[str, float | None] = {column.title: row.cells[column.name].value for column in suite.columns}
    said |= {title: average(columns, row.cells) for title, columns in suite.averaged.items()}
    said |= {"overall": overall(suite, row)} if suite.overall else {}
    return {title: value for title, value in said.items() if value is not None}


# --- joining ----------------------------------------------------------------------------------------------------------------


def join(suite: Suite, rows: list[EncoderResult]) -> list[EncoderResult]:
    """The rows, those of one encoder and recipe with several seeds as one, at the place of the first; it keeps them as `members`.

    Left alone: rows that were not asked the same questions, that lack different columns, or of which two have one seed.
    """
    groups: dict[str, list[EncoderResult]] = {}
    for row in rows:
        groups.setdefault(_identity(row), []).append(row)
    joined = []
    for group in groups.values():
        distinct = len({seed_of(row) for row in group}) == len(group)
        joined += [_joined(suite, sorted(group, key=seed_of))] if len(group) > 1 and distinct else group
    return joined


def _identity(row: EncoderResult) -> str:
    """What rows of one encoder, one recipe and the same questions have in common, as text; unique where that cannot be known."""
    if row.elsewhere or row.members or not row.results:
        return f"alone {id(row)}"
    return json.dumps([row.encoder, row.llm, protocol(row), _began_with(row), _asked(row), _counts(row)], sort_keys=True, default=str)


def _began_with(row: EncoderResult) -> list[Any]:
    said = row.provenance
    return [said.get("encoder_key"), said.get("encoder_digest_before") or said.get("encoder_digest")]


def _asked(row: EncoderResult) -> dict[str, Any]:
    """Task -> what was asked in it."""
    return {
        task: [{part: value for part, value in result["key"].items() if part not in ("weights", "model")}, result.get("left_out")]
        for task, result in row.results.items()
    }


def _counts(row: EncoderResult) -> dict[str, Any]:
    """Column -> what is there of it."""
    return {name: [cell.n, cell.refused] for name, cell in row.cells.items()}


def unjoined(rows: Sequence[EncoderResult]) -> list[str]:
    """Why rows of one encoder and recipe with several seeds are not one row, in words; a sentence for each such group."""
    groups: dict[str, list[EncoderResult]] = {}
    for row in rows:
        if not row.elsewhere and row.results:
            groups.setdefault(json.dumps([row.encoder, row.llm, protocol(row)], sort_keys=True, default=str), []).append(row)
    return [
        _why_apart(group)
        for group in groups.values()
        if len({seed_of(each) for row in group for each in row.members or (row,)}) > 1 < len(group)
    ]


def _why_apart(group: list[EncoderResult]) -> str:
    first = group[0].first
    why = ["they did not begin with the same encoder"] if any(_began_with(row) != _began_with(first) for row in group) else []
    for of, words in ((_asked, "not asked the same in"), (_counts, "not the same is there of")):
        differing = [name for row in group for name in {**of(first), **of(row)} if of(first).get(name) != of(row).get(name)]
        why += [f"{words} {', '.join(dict.fromkeys(differing))}"] if differing else []
    named = ", ".join(f"{row.digest[:8]} (seed {seeds_in_words(row)})" for row in group)
    return f"{first.encoder}: {named} are of one recipe, and not joined: {'; '.join(why) or 'a seed is there twice'}"


def _joined(suite: Suite, members: list[EncoderResult]) -> EncoderResult:
    first = members[0]
    digest = hashlib.sha256("".join(row.digest for row in members).encode()).hexdigest()
    scores = {}
    for name, own in first.scores.items():
        others = [row.scores[name] for row in members]
        if any(not np.array_equal(own.ids, other.ids) for other in others):
            raise ValueError(f"{first.encoder}: its seeds answered different questions of {name}: run the task again")
        scores[name] = replace(own, values=np.mean([other.values for other in others], axis=0))
    columns = {column.name: column for column in suite.columns}
    cells = {name: _mean_cell(columns[name], [row.cells[name] for row in members], scores.get(name), digest) for name in first.cells}
    return replace(first, digest=digest, cells=cells, scores=scores, members=tuple(members))


def _mean_cell(column: Column, cells: list[Cell], scores: stats.Scores | None, digest: str) -> Cell:
    """The mean of the seeds' numbers, which the averaged scores make; its error and interval are by picture alone."""
    first = cells[0]
    if first.value is None or scores is None:
        return replace(first, digest=digest)
    mean = make_cell(column, {column.metric: scores.value}, first.n, first.n_expected, scores, digest, first.left_out)
    return replace(mean, full_mark=first.full_mark, refused=first.refused)


# --- what seeds add to a difference -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedNoise:
    """`variance` that training seeds add to a difference, by title, at `degrees` of freedom; `counts` are the two rows' seeds."""

    variance: dict[str, float]
    degrees: int
    counts: tuple[int, int]

    @property
    def words(self) -> str:
        a, b = self.counts
        return f"test pictures and training seeds, k = {a}" + (f" and {b}" if a != b else "")


def seed_noise(suite: Suite, a: EncoderResult, b: EncoderResult) -> SeedNoise | None:
    """Of two rows of several seeds each; None where either is of one seed."""
    if not a.members or not b.members:
        return None
    one, two = ([values(suite, member) for member in row.members] for row in (a, b))
    k = (len(one), len(two))
    shared = [title for title in one[0] if all(title in said for said in [*one, *two])]
    if k[0] == k[1]:
        spread = {title: float(np.var([x[title] - y[title] for x, y in zip(one, two)], ddof=1)) / k[0] for title in shared}
    else:
        spread = {title: sum(float(np.var([x[title] for x in row], ddof=1)) / len(row) for row in (one, two)) for title in shared}
    return SeedNoise(spread, min(k) - 1, k)


# --- the noise file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseFile:
    """Spread over seeds of a reference encoder, as a standard deviation by title, with what it was measured under."""

    suite: str
    encoder: str
    seeds: int
    spread: dict[str, float]
    protocol: dict[str, Any]

    def believable(self, title: str, picture_error: float, counts: tuple[int, int]) -> float | None:
        """The smallest difference of two rows that pictures and seeds together would make in fewer than 5 % of cases."""
        if title not in self.spread:
            return None
        variance = picture_error**2 + self.spread[title] ** 2 * sum(1 / k for k in counts)
        return stats.t_quantile(0.05, self.seeds - 1) * math.sqrt(variance)


# An encoder's own, so no part of the recipe that the spread is of.
_OF_THE_ENCODER = ("tokens", "versions")


def _recipe(row: EncoderResult) -> dict[str, Any]:
    return {name: value for name, value in protocol(row).items() if name.rpartition(".")[2] not in _OF_THE_ENCODER}


def measure(suite: Suite, row: EncoderResult) -> NoiseFile:
    """The spread over the seeds of a joined row. ValueError where they are fewer than FEWEST_SEEDS."""
    if len(row.members) < FEWEST_SEEDS:
        raise ValueError(
            f"{row.label} has {max(len(row.members), 1)} seed(s) that may be joined, and their spread wants {FEWEST_SEEDS} or more: train "
            f"it again with --seed 0, 1, 2 and the same recipe, and evaluate each on {suite.name}"
        )
    said = [values(suite, member) for member in row.members]
    titles = [title for title in said[0] if all(title in other for other in said)]
    spread = {title: float(np.std([each[title] for each in said], ddof=1)) for title in titles}
    return NoiseFile(suite.name, row.encoder, len(said), spread, _recipe(row))


def write_noise(noise: NoiseFile, path: Path) -> None:
    write_json(path, {"schema": 1, **vars(noise)})


_NOISE_MEND = "give one written by python -m eval_suites.compare --seed-noise KEY --out noise.json"


def read_noise(path: Path, suite: Suite, rows: Sequence[EncoderResult]) -> NoiseFile:
    """The file's noise, for comparisons of these rows.

    ValueError where it is none of ours, or was measured on another suite or under another recipe than the rows'.
    """
    said = read_json(path, _NOISE_MEND, {"suite": str, "encoder": str, "seeds": int, "spread": dict, "protocol": dict})
    require(said["spread"], dict.fromkeys(said["spread"], float), f"{path}, spread", _NOISE_MEND)
    noise = NoiseFile(said["suite"], said["encoder"], said["seeds"], said["spread"], said["protocol"])
    if noise.suite != suite.name:
        raise ValueError(f"{path} is of suite {noise.suite}, the rows are of {suite.name}")
    for row in rows:
        if row.elsewhere:
            raise ValueError(f"nothing states the recipe of {row.label}: {path} may be of another")
        own = json.loads(json.dumps(_recipe(row)))
        other = [name for name in {**own, **noise.protocol} if own.get(name) != noise.protocol.get(name)]
        if other:
            raise ValueError(f"{path} is of another recipe than {row.label}, for these differ: {', '.join(other)}")
    return noise


def read_joined(root: Path, suite: Suite) -> list[EncoderResult]:
    """All rows under `root` (the results folder), seeds joined."""
    return join(suite, read_rows(root, suite))


def apart(rows: list[EncoderResult]) -> list[EncoderResult]:
    """Joined rows, each followed by its members."""
    return [each for row in rows for each in (row, *row.members)]


def of(rows: list[EncoderResult], row: EncoderResult) -> int:
    """The place of the row among `rows`, or of the joined row that it is a member of."""
    return next(i for i, each in enumerate(rows) if each is row or any(member is row for member in each.members))
