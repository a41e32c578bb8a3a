"""Rows of genlip14 whose truth is known: two models of one ability (or not), drawn answer by answer, for counting what verdicts do.

A picture is as hard for all models as it is, and harder for some than for others; questions about one picture fail together. TextVQA and
TextCaps show the same pictures, and so do VQAv2 and COCO, in part, and a model that reads a picture well does so in both.
"""

import zlib

import numpy as np

from eval_suites import suites
from eval_suites.score import results, seeds, stats
from genlip.common.schema import SCHEMA, Provenance, Result
from tests.eval_suites.helpers.small_data import provenance

SUITE = suites.get("genlip14")
QUESTIONS = {"vqav2": 3, "gqa": 3, "chartqa": 2, "docvqa": 4, "infovqa": 5, "textvqa": 2, "ai2d": 3}  # about each picture
POOLS = {"textcaps": "textvqa", "coco": "vqav2"}  # whose pictures a column shows
SIZES = {column.name: min(240, max(60, column.n // 25)) for column in SUITE.columns}
TRUE_SIZES = {column.name: column.n for column in SUITE.columns}


class Benchmarks:
    """The pictures of one world: their numbers by column and how hard they are."""

    def __init__(self, draw: np.random.Generator, sizes: dict[str, int]):
        self.where, self.hard = {}, {}
        for column in SUITE.columns:
            n = sizes[column.name] // 2 if column.aggregate == "mme" else sizes[column.name]
            self.where[column.name] = np.arange(n) // QUESTIONS.get(column.name, 1)
            self.hard.setdefault(POOLS.get(column.name, column.name), draw.normal(size=n))

    def answers(self, draw: np.random.Generator, ability: float | dict[str, float]) -> dict[str, stats.Scores]:
        """One model's scores. `ability` 0 gets about half of everything right; by column, or one for all."""
        own, scores = {pool: draw.normal(0, 0.7, len(hard)) for pool, hard in self.hard.items()}, {}
        for column in SUITE.columns:
            pool, at = POOLS.get(column.name, column.name), self.where[column.name]
            skill = ability if isinstance(ability, float) else ability[column.name]
            ease = (skill + self.hard[pool] + own[pool])[at]
            chance = 1 / (1 + np.exp(-ease))
            right, strata = (draw.random(len(at)) < chance).astype(float), np.zeros(len(at), int)
            if "anls" in column.metric:
                right = np.where(draw.random(len(at)) < 0.2, 0.5 + draw.random(len(at)) / 2, right)
            if column.aggregate == "mme":
                right += draw.random(len(at)) < chance
                right, strata = 50 * right + 100 * (right == 2), np.arange(len(at)) % 10
            if column.unit == "CIDEr":
                right = draw.gamma(0.8, 1.0, len(at)) * np.exp(0.5 * ease - 0.3)
            names = np.char.add(pool, at.astype(str))
            scores[column.name] = stats.Scores(np.arange(len(at)).astype(str), names, right, strata)
        return scores

    def row(self, draw: np.random.Generator, encoder: str, ability: float | dict[str, float] = 0.0, seed: int = 0) -> results.EncoderResult:
        scores = self.answers(draw, ability)
        cells = {
            column.name: results.make_cell(column, {column.metric: scores[column.name].value}, column.n, column.n, None, encoder)
            for column in SUITE.columns
        }
        assert all(cell.complete for cell in cells.values()), [cell.refused for cell in cells.values()]
        said = provenance(encoder, recipe={"lr": 0.001, "encoder": encoder, "seed": seed})
        key = {"task": "t", "data": "d", "limit": None}
        facts = {"schema": SCHEMA, "suite": SUITE.name, "encoder": encoder, "llm": "llm", "n": 1, "n_expected": 1, "results": {}}
        found = {task: Result(**facts, task=task, key=key, provenance=Provenance(**said)) for task in SUITE.tasks}
        return results.EncoderResult(encoder, "a", "llm", True, 64, 16, said["weights_digest"], False, cells, scores, found)

    def seeded(self, draw: np.random.Generator, encoder: str, k: int, spread: float, ability: float = 0.0) -> results.EncoderResult:
        """k training seeds joined; each shifts the ability, alike in all columns for a half and by column for the other."""
        rows = []
        for seed in range(k):
            common, own = draw.normal(0, spread), draw.normal(0, spread, len(SUITE.columns))
            shifts = {column.name: ability + (common + each) / np.sqrt(2) for column, each in zip(SUITE.columns, own)}
            rows.append(self.row(draw, encoder, shifts, seed))
        if k == 1:
            return rows[0]
        (row,) = seeds.join(SUITE, rows)
        return row


def generator(*names: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(names).encode()))
