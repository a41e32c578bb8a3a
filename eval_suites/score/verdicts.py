"""Which differences are told apart: one primary endpoint, columns corrected for their number, groups as a hint alone.

With fourteen columns and four averages at 5 % each, two equal encoders show at least one "better" or "worse" in half of all comparisons.
Here ALL AVG is the one primary endpoint, at PRIMARY. The p-values of the columns are corrected together by Holm's step-down rule (Holm
1979), and a column is told apart at COLUMNS where ALL AVG is, at COLUMNS_ALONE where it is not. Between equal encoders a false word of
any kind so comes in at most 5 + 1 = 6 % of comparisons (Bonferroni), and whatever is true in at most that many; with both at 5 % it would
be 9 %. Averages of some columns, and the micro-average over samples, are exploratory: a p-value without a correction, and no word.

Where a suite is one column or one group, its ALL AVG is that column's or group's mean and remains the primary endpoint. Where ALL AVG
has no value, for a hole in either row, there is no primary endpoint and nothing takes its place: the columns then have 5 % to themselves.
"""

from dataclasses import dataclass

PRIMARY = 0.05
COLUMNS = 0.05
COLUMNS_ALONE = 0.01
UNDECIDED = "not told apart"
EXPLORATORY = "exploratory"


@dataclass(frozen=True)
class Verdict:
    """A difference, how surprising it is, and what may be said of it.

    `low` and `high` are the 95 % interval, for display; None where it is not to be believed. `p` is two-sided; `p_adjusted` is Holm's of a
    column, `p` itself elsewhere. `pictures` is of the part that has fewest.
    `noise` says what chance the p covers. `believable` is the smallest difference that training seeds too would hardly make.
    """

    difference: float
    low: float | None
    high: float | None
    pictures: int
    p: float
    p_adjusted: float
    role: str  # "primary", "column", "exploratory"
    word: str  # "better", "worse", "not told apart", "exploratory"
    noise: str
    believable: float | None = None


def holm(p: list[float]) -> list[float]:
    """Adjusted p-values, in the order given: p_(i) x (m - i + 1), no smaller than that of a smaller p, at most 1."""
    adjusted, least = [0.0] * len(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, p[i] * (len(p) - place)))
        adjusted[i] = least
    return adjusted


def column_level(primary: float | None) -> float:
    """What a column's adjusted p is held against, by the primary endpoint's p; None: there is no primary endpoint."""
    return COLUMNS if primary is None or primary <= PRIMARY else COLUMNS_ALONE


def word(role: str, difference: float, p: float, level: float, higher_is_better: bool = True) -> str:
    """What may be said of a difference whose (adjusted) p is held against `level`."""
    if role == EXPLORATORY:
        return EXPLORATORY
    if p > level or difference == 0:
        return UNDECIDED
    return "better" if (difference > 0) == higher_is_better else "worse"
