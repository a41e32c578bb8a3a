"""Verdicts on data whose truth is known: no difference is rarely called one, a real one is found, and what noise is covered is said."""

import numpy as np
import pytest

from eval_suites.score import comparison, stats, verdicts
from eval_suites.score.exchange import DRAWS, exchange_test
from tests.eval_suites.helpers.simulated_rows import SIZES, SUITE, TRUE_SIZES, Benchmarks


def told_apart(lines: list[comparison.ComparisonLine]) -> list[str]:
    return [line.title for line in lines if line.verdict and line.verdict.word in ("better", "worse")]


# --- the exchange test ------------------------------------------------------------------------------------------------------


def test_four_differing_questions_all_one_way_are_no_evidence():
    amounts = np.zeros(1000)
    amounts[:4] = 1 / 1000
    test = exchange_test(amounts)
    assert test.p == pytest.approx(0.125) and test.exact  # 2 of the 16 exchanges are as far
    assert verdicts.word("primary", 0.4, test.p, verdicts.PRIMARY) == "not told apart"
    assert exchange_test(np.ones(6)).p == pytest.approx(2 / 64)


def test_enumerated_by_amount_is_every_exchange_one_by_one():
    draw = np.random.default_rng(0)
    for amounts in (draw.choice([-2.0, -1.0, 0.0, 1.0, 3.0], 12), draw.normal(size=12), np.array([0.1, 0.2, -0.3, 0.0])):
        signs = 1 - 2 * (np.arange(2 ** len(amounts))[:, None] >> np.arange(len(amounts)) & 1)
        far = np.abs(signs @ amounts) >= abs(amounts.sum()) - 1e-9
        assert exchange_test(amounts).p == pytest.approx(far.mean()) and exchange_test(amounts).exact


def test_drawn_exchanges_agree_with_what_is_known_of_many_pictures():
    draw = np.random.default_rng(0)
    amounts = draw.normal(0.03, 1.0, 2000)
    known = stats.t_tails(amounts.sum() / np.sqrt(np.sum(amounts**2)), 10**6)  # the exchanges' own variance; normal for so many
    test = exchange_test(amounts)
    assert not test.exact and test.p == pytest.approx(known, abs=4 * np.sqrt(known * (1 - known) / DRAWS))
    repeated = np.round(amounts, 1)  # many pictures of one amount: binomial draws
    known = stats.t_tails(repeated.sum() / np.sqrt(np.sum(repeated**2)), 10**6)
    assert exchange_test(repeated).p == pytest.approx(known, abs=4 * np.sqrt(known * (1 - known) / DRAWS))
    assert exchange_test(np.ones(60_000)).p < 1e-9  # enumerated: 60,001 cases
    assert exchange_test(np.full(10, 5.0) + draw.random(10)).p == 2 / 1024
    assert exchange_test(np.linspace(1, 2, 1000)).p == 1 / (1 + DRAWS)


def test_nothing_differs_is_p_one():
    assert exchange_test(np.zeros(5)).p == 1.0 and exchange_test(np.zeros(0)).p == 1.0
    assert exchange_test(np.array([1e-18, 0.5, -0.5])).p == 1.0  # rounding is no difference
    sums = np.where(np.arange(200) % 2, 0.1 + 0.2, 0.3)  # one amount, but for the order in which it was added up
    assert exchange_test(sums).exact and exchange_test(sums[:4]).p == pytest.approx(0.125)


def test_exchanged_answers_recompute_every_metric_from_scratch():
    """What a picture adds is what changes when its answers change hands: by the metrics' own sums, on pictures that columns share."""
    draw = np.random.default_rng(0)
    world = Benchmarks(draw, SIZES)
    a, b = world.answers(draw, 0.0), world.answers(draw, 0.0)
    weights = list(draw.random(len(SUITE.columns)))
    parts = [stats.difference(a[c.name], b[c.name]) for c in SUITE.columns]
    amounts, (names, _) = stats.amounts(parts, weights), stats.pictures_of(parts)
    chosen = set(draw.choice(names, len(names) // 2, replace=False))
    value = 0.0
    for weight, column in zip(weights, SUITE.columns):
        one, two = a[column.name], b[column.name]
        swap = np.array([picture in chosen for picture in one.pictures])
        first, second = (np.where(swap, y.values, x.values) for x, y in ((one, two), (two, one)))
        for sign, values in ((1, first), (-1, second)):
            by_stratum = [values[one.strata == k].mean() for k in np.unique(one.strata)]
            value += sign * weight * one.factor * sum(by_stratum)
    signs = np.array([-1.0 if name in chosen else 1.0 for name in names])
    assert value == pytest.approx(float(signs @ amounts))


# --- which p decides --------------------------------------------------------------------------------------------------------


def test_holm_is_the_textbooks():
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm([0.9, 0.8]) == [1.0, 1.0] and verdicts.holm([]) == [] and verdicts.holm([0.04]) == [0.04]


def test_columns_are_held_against_less_where_all_avg_is_not_told_apart():
    assert verdicts.column_level(0.04) == verdicts.column_level(None) == 0.05 and verdicts.column_level(0.06) == 0.01
    assert verdicts.word("column", -1.0, 0.03, 0.05) == "worse" and verdicts.word("column", -1.0, 0.03, 0.01) == "not told apart"
    assert verdicts.word("column", -1.0, 0.03, 0.05, higher_is_better=False) == "better"
    assert verdicts.word("exploratory", 9.0, 1e-9, 0.05) == "exploratory"


# --- no difference, and a real one -------------------------------------------------------------------------------------------


def false_verdicts(count: int, k: int, spread: float) -> int:
    """In how many of so many comparisons of equal models anything is called better or worse."""
    found = 0
    for i in range(count):
        draw = np.random.default_rng((1, k, i))
        world = Benchmarks(draw, SIZES)
        rows = [world.seeded(draw, name, k, spread) for name in ("a", "b")]
        found += bool(told_apart(comparison.compare(SUITE, *rows, draws=0)))
    return found


def test_no_difference_is_rarely_called_one():
    assert false_verdicts(100, 1, 0.0) <= 7


@pytest.mark.slow
@pytest.mark.parametrize(("k", "spread"), [(1, 0.0), (2, 0.15), (4, 0.15)])
def test_no_difference_is_rarely_called_one_in_500(k, spread):
    assert false_verdicts(500, k, spread) <= 35


def test_no_difference_of_several_seeds_is_rarely_called_one():
    assert false_verdicts(25, 2, 0.15) <= 2 and false_verdicts(25, 4, 0.15) <= 2


def test_one_seed_each_is_told_apart_though_the_encoders_are_equal_and_says_what_it_does_not_cover():
    """What the seeds' rule is for: pictures alone find the second training run different."""
    found = []
    for i in range(10):
        draw = np.random.default_rng((2, i))
        world = Benchmarks(draw, SIZES)
        rows = [world.seeded(draw, name, 1, 0.5) for name in ("a", "b")]
        lines = comparison.compare(SUITE, *rows, draws=0)
        assert {line.verdict.noise for line in lines} == {"test pictures"}
        found.append(bool(told_apart(lines)))
    assert sum(found) >= 5


def points_of_all_avg(world: Benchmarks, draw: np.random.Generator, gap: float) -> float:
    """What `gap` in ability is worth in ALL AVG, by the mean of a few pairs."""
    from eval_suites.score.averages import average

    rows = [[world.row(draw, name, ability) for _ in range(3)] for name, ability in (("a", gap), ("b", 0.0))]
    means = [np.mean([average(SUITE.columns, row.cells) for row in some]) for some in rows]
    return float(means[0] - means[1])


@pytest.mark.slow
def test_a_point_and_a_half_of_all_avg_is_found_at_the_benchmarks_true_sizes():
    draw = np.random.default_rng(3)
    world = Benchmarks(draw, TRUE_SIZES)
    gap = 0.08
    worth = points_of_all_avg(world, draw, gap)
    gap *= 1.5 / worth
    found = 0
    for _ in range(20):
        rows = [world.row(draw, "a", gap), world.row(draw, "b", 0.0)]
        found += "ALL AVG" in told_apart(comparison.compare(SUITE, *rows, draws=0))
    assert found >= 16
