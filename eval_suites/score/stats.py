"""How sure a score is, and a difference of two: clustered standard errors, a paired bootstrap over pictures, Student's t.

Questions about one picture fail together, so the picture is the unit that is drawn, never the question. Two encoders answered the same
questions, so their difference is taken question by question before anything is drawn: most of the noise is common to both and cancels.
A picture that several columns show is one picture in all of them. Whether two encoders are told apart is decided elsewhere: verdicts.py.
Numpy only; 4,000 draws over 1,000 pictures take 0.1 s.

Shapes: `n` scored units (questions; MME: pairs), `C` pictures, `J` parts (columns), `K` strata (MME: categories; else 1),
`R` draws.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

Z = 1.959964  # two-sided 95 %
DRAWS = 4000  # the error that is left in a 2.5 % quantile is 0.25 %
# Below this many pictures the percentile interval of a bootstrap is too narrow to be believed.
FEWEST_PICTURES = 30


@dataclass(frozen=True)
class Scores:
    """One column's scores, unit by unit. Its value is factor x the sum over strata of the mean score."""

    ids: np.ndarray  # (n,) str, to pair two encoders
    pictures: np.ndarray  # (n,) str or int64, the clusters
    values: np.ndarray  # (n,) float64
    strata: np.ndarray  # (n,) int64, 0 .. K-1
    factor: float = 1.0

    @property
    def value(self) -> float:
        count = np.bincount(self.strata)
        return float(self.factor * np.sum(np.bincount(self.strata, self.values) / count))


def pooled(parts: list[Scores]) -> Scores:
    """All units of several columns as one: its value is the micro-average."""
    return Scores(
        np.concatenate([np.char.add(f"{i}:", part.ids) for i, part in enumerate(parts)]),
        np.concatenate([part.pictures for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.zeros(sum(len(part.ids) for part in parts), np.int64),
    )


def pictures_of(parts: list[Scores]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(the parts' pictures (C,), for each part where among them its units' pictures stand (n,)): a picture is one in whatever column."""
    names, where = np.unique(np.concatenate([part.pictures for part in parts]), return_inverse=True)
    return names, np.split(where, np.cumsum([len(part.ids) for part in parts])[:-1])


def numbered(parts: list[Scores]) -> list[Scores]:
    """The parts with their pictures' names replaced by numbers, the same number for the same picture: ten times as fast to match."""
    _, where = pictures_of(parts)
    return [replace(part, pictures=at) for part, at in zip(parts, where)]


def _influence(scores: Scores, where: np.ndarray, size: int) -> np.ndarray:
    """(C,) first-order influence of each picture on the value: the linearised value is the mean plus the sum of these.

    Widened by C / (C - 1) for the C pictures of this column; nan where it has but one.
    """
    count = np.bincount(scores.strata)
    mean = np.bincount(scores.strata, scores.values) / count
    unit = scores.factor * (scores.values - mean[scores.strata]) / count[scores.strata]
    pictures = np.count_nonzero(np.bincount(where, minlength=size))
    return np.bincount(where, unit, size) * (np.sqrt(pictures / (pictures - 1)) if pictures > 1 else np.nan)


def stderr(parts: list[Scores], weights: list[float]) -> float | None:
    """Standard error of sum(weight x value) by picture; None where a part has one picture alone.

    The influence of a picture that several parts share is added up over them first.
    """
    names, where = pictures_of(parts)
    total = sum(weight * _influence(part, at, len(names)) for weight, part, at in zip(weights, parts, where))
    error = float(np.sqrt(np.sum(np.square(total))))
    return error if math.isfinite(error) else None


def interval(value: float, error: float | None, pictures: int, bounds: tuple[float, float]) -> tuple[float | None, float | None]:
    """95 % interval of a value with its standard error, inside `bounds`.

    Shares (bounds 0 and 1) get Wilson's interval at the effective sample size p(1-p)/error^2, so that 100 % right does not claim
    certainty: with error 0 the number of pictures stands in for it. Other units get value -+ 1.96 errors, cut at the bounds.
    """
    if error is None:
        return None, None
    low, high = bounds
    if bounds != (0.0, 1.0):
        return max(low, value - Z * error), min(high, value + Z * error)
    n = value * (1 - value) / error**2 if error > 0 else pictures
    centre, spread = (value + Z**2 / (2 * n)) / (1 + Z**2 / n), Z / (1 + Z**2 / n) * np.sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    return float(max(0.0, centre - spread)), float(min(1.0, centre + spread))


def difference(a: Scores, b: Scores) -> Scores:
    """a - b, unit by unit. ValueError where the two did not answer the same questions."""
    if len(a.ids) != len(b.ids) or np.any(a.ids != b.ids) or np.any(a.strata != b.strata):
        raise ValueError("the two were not asked the same questions")
    return replace(a, values=a.values - b.values)


def amounts(parts: list[Scores], weights: list[float]) -> np.ndarray:
    """(C,) what each picture adds to sum(weight x value), over all parts that show it: their sum is that value."""
    names, where = pictures_of(parts)
    total = np.zeros(len(names))
    for weight, part, at in zip(weights, parts, where):
        total += np.bincount(at, weight * part.factor * part.values / np.bincount(part.strata)[part.strata], len(names))
    return total


def bootstrap(parts: list[Scores], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(R, J) the parts' values over resampled pictures.

    Each draw takes as many pictures as there are, with replacement, and with a picture all its units in every part. Pictures are drawn
    among those that stand in the same parts, so that no part's number of pictures changes. Draws in which a stratum came out empty are
    nan. Pictures that are alike in all that counts are drawn as one kind, which makes large benchmarks of right and wrong answers cheap.
    """
    random = np.random.default_rng(seed)
    names, where = pictures_of(parts)
    strata = [int(part.strata.max()) + 1 for part in parts]
    tables = []  # (C, 2 K_j): sums and numbers of units by stratum
    for part, at, k in zip(parts, where, strata):
        cell = at * k + part.strata
        both = [np.bincount(cell, each, len(names) * k).reshape(-1, k) for each in (part.values, np.ones(len(part.ids)))]
        tables.append(np.concatenate(both, axis=1))
    within = np.stack([np.bincount(at, minlength=len(names)) > 0 for at in where], axis=1)  # (C, J)
    pattern, group = np.unique(within, axis=0, return_inverse=True)
    totals = [np.zeros((draws, 2 * k)) for k in strata]
    for g, there in enumerate(pattern):
        chosen, inside = np.flatnonzero(group.ravel() == g), np.flatnonzero(there)
        drawn = _resampled(np.concatenate([tables[j][chosen] for j in inside], axis=1), draws, random)
        for j, some in zip(inside, np.split(drawn, np.cumsum([2 * strata[j] for j in inside])[:-1], axis=1)):
            totals[j] += some
    with np.errstate(invalid="ignore", divide="ignore"):
        values = [part.factor * np.sum(t[:, :k] / t[:, k:], axis=1) for part, t, k in zip(parts, totals, strata)]
    return np.stack(values, axis=1)


def _resampled(table: np.ndarray, draws: int, random: np.random.Generator) -> np.ndarray:
    """(R, M) sums over as many rows as the table (C, M) has, drawn with replacement, R times."""
    size = len(table)
    kinds, times = np.unique(table, axis=0, return_counts=True)
    if 8 * len(kinds) < size:
        taken = random.multinomial(size, times / size, draws)
        return np.asarray(taken @ kinds)
    total = np.empty((draws, table.shape[1]))
    step = max(1, 4_000_000 // size)  # draws at a time: 32 MB of counts
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        taken = random.integers(0, size, (rows, size)) + np.arange(rows)[:, None] * size
        counts = np.bincount(taken.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
        total[first : first + rows] = counts @ table
    return total


def _tail(pictures: int) -> float:
    """Share of draws to leave out at either end: 2.5 % for many pictures, less for few.

    A percentile interval is too narrow by sqrt((C-1)/C) and by the normal in place of the t quantile; this widens it by both
    (Hesterberg 2015, "What teachers should know about the bootstrap", the expanded percentile interval).
    """
    degrees = max(pictures - 1, 1)
    t = Z + (Z**3 + Z) / (4 * degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
    return (1 + math.erf(-math.sqrt(pictures / degrees) * t / math.sqrt(2))) / 2


def difference_interval(drawn: np.ndarray, pictures: int) -> tuple[float | None, float | None]:
    """95 % interval of what was drawn (R,) of differences, over so many pictures; for display, not for a verdict.

    (None, None) where there is none to be believed: fewer than FEWEST_PICTURES pictures, or hardly a draw that takes a picture of every
    stratum.
    """
    finite = drawn[np.isfinite(drawn)]
    if pictures < FEWEST_PICTURES or 40 * len(finite) < len(drawn) or not len(finite):
        return None, None
    tail = _tail(pictures)
    low, high = np.percentile(finite, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def t_tails(t: float, degrees: int) -> float:
    """Two-sided p of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    inside = 0.0
    for i in range(1 + odd, degrees, 2):
        inside += term
        term *= cosine**2 * i / (i + 1)
    share = 2 / math.pi * (angle + sine * inside) if odd else sine * inside
    return max(0.0, 1.0 - share)


def t_quantile(p: float, degrees: int) -> float:
    """The t whose two-sided p is `p`, by halving."""
    low, high = 0.0, 1.0
    while t_tails(high, degrees) > p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, degrees) > p else (low, middle)
    return high
