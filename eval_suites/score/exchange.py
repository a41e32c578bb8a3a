"""The exchange test: how often a difference at least this large comes about if it does not matter which of the two gave which answer.

Every metric of the suites is factor x the sum over strata of mean scores, and both models answered the same questions. To give one model
the other's answers about a picture is then to turn the sign of what that picture adds to the difference, in every column that shows the
picture at once. Means, ANLS, MME's accuracies of questions and pairs, OCRBench's points and CIDEr's means over pictures (its weights of
words come from the references alone) are recomputed exactly, with one rule and no formula for any of them.

The paired permutation test of Fisher (The Design of Experiments, 1935, section 21) and Pitman (1937). Two-sided; p is the share of all 2^P
exchanges whose difference is as far from 0 as the one seen. Pictures that add equally much are counted together, so all exchanges are
enumerated wherever that makes few cases (1,000 pictures with one right or wrong answer each make 1,001); elsewhere DRAWS exchanges are
drawn with a fixed seed, and p = (1 + as far) / (1 + DRAWS) (Phipson and Smyth 2010: never 0, and valid).

Cost: 5 ms where enumerated; else DRAWS x different amounts, 0.1 s for 5,000 captions.

Shapes: `P` pictures, `V` different amounts, `R` exchanges.
"""

from dataclasses import dataclass

import numpy as np

DRAWS = 9_999  # the error of a p of 0.05 is 0.002
ENUMERATED = 1 << 16  # most cases that are gone through one by one
_ALONE = 16  # pictures of one amount: fewer get a sign each, more are one binomial draw


@dataclass(frozen=True)
class ExchangeTest:
    """`p`, two-sided; `differing`, the pictures whose exchange changes anything; `exact`, whether all exchanges were gone through."""

    p: float
    differing: int
    exact: bool


def exchange_test(amounts: np.ndarray, seed: int = 0) -> ExchangeTest:
    """`amounts` (P,): what each picture adds to the difference of the two models, in any unit."""
    largest = float(np.max(np.abs(amounts), initial=0.0))
    if largest == 0.0:
        return ExchangeTest(1.0, 0, True)
    scaled = np.round(amounts / largest, 12)  # sums of floats that are equal but for their rounding
    size, times = np.unique(np.abs(scaled[scaled != 0.0]), return_counts=True)
    differing = int(times.sum())
    # Equal differences, added up in another order, count as equally far.
    seen = abs(float(scaled.sum())) - 1e-9 * float(size @ times)
    if np.sum(np.log2(times + 1.0)) <= np.log2(ENUMERATED):
        totals, chances = _all_exchanges(size, times)
        return ExchangeTest(min(1.0, float(chances[np.abs(totals) >= seen].sum())), differing, True)
    far = int(np.count_nonzero(np.abs(_drawn_exchanges(size, times, seed)) >= seen))
    return ExchangeTest((1 + far) / (1 + DRAWS), differing, False)


def _all_exchanges(size: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(differences, their chances) of all exchanges: of m pictures of one size, j keep their sign with chance (m over j) / 2^m."""
    totals, chances = np.zeros(1), np.ones(1)
    for each, m in zip(size, times):
        j = np.arange(m + 1)
        logs = np.concatenate([[0.0], np.cumsum(np.log((m - j[:-1]) / (j[:-1] + 1.0)))]) - m * np.log(2.0)
        totals = (totals[:, None] + each * (2.0 * j - m)).ravel()
        chances = (chances[:, None] * np.exp(logs)).ravel()
    return totals, chances


def _drawn_exchanges(size: np.ndarray, times: np.ndarray, seed: int) -> np.ndarray:
    """(R,) differences of DRAWS random exchanges."""
    random = np.random.default_rng(seed)
    many = times > _ALONE
    alone = np.repeat(size[~many], times[~many])
    total = np.zeros(DRAWS)
    for each, m in zip(size[many], times[many]):
        total += each * (2.0 * random.binomial(m, 0.5, DRAWS) - m)
    step = max(1, 4_000_000 // max(len(alone), 1))  # exchanges at a time: 32 MB of signs
    for first in range(0, DRAWS, step) if len(alone) else ():
        rows = min(step, DRAWS - first)
        bits = np.unpackbits(random.integers(0, 256, (rows, -(-len(alone) // 8)), np.uint8), axis=1, count=len(alone))
        total[first : first + rows] += 2.0 * (bits.astype(np.float64) @ alone) - alone.sum()
    return total
