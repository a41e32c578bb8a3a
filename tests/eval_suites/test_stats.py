"""Intervals that hold what they promise, on data whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from eval_suites.score import stats
from eval_suites.score.exchange import exchange_test


def scores(values, pictures=None, strata=None, factor=1.0) -> stats.Scores:
    values = np.asarray(values, float)
    n = len(values)
    names = np.array([f"p{i}" for i in (range(n) if pictures is None else pictures)])
    return stats.Scores(np.arange(n).astype(str), names, values, np.zeros(n, int) if strata is None else np.asarray(strata), factor)


def pair(draw, pictures=200, questions=3, gap=0.0):
    """Two models on the same questions, the first better by `gap` on average. A picture's difficulty is partly common to both and
    partly each model's own, so that its questions do not count as independent."""
    common, picture = draw.uniform(0.25, 0.65, pictures), np.arange(pictures).repeat(questions)
    chances = [(common + draw.uniform(-0.2, 0.2, pictures) + extra)[picture] for extra in (gap, 0.0)]
    return stats.difference(*(scores(draw.random(len(picture)) < chance, picture) for chance in chances))


def test_bootstrap_agrees_with_the_standard_error():
    draw = np.random.default_rng(0)
    parts = [pair(draw, questions=8), pair(draw, questions=8)]
    apart = [parts[0], replace(parts[1], pictures=np.char.add("other ", parts[1].pictures))]
    half = [parts[0], replace(parts[1], pictures=np.where(np.arange(1600) < 800, parts[1].pictures, apart[1].pictures))]
    for pair_ in (parts, apart, half):
        drawn = stats.bootstrap(pair_, draws=4000) @ [1.0, 2.0]
        assert np.std(drawn) == pytest.approx(stats.stderr(pair_, [1.0, 2.0]), rel=0.06)
        assert np.mean(drawn) == pytest.approx(parts[0].value + 2 * parts[1].value, abs=0.003)


def test_shared_pictures_are_drawn_together():
    values = np.random.default_rng(0).random(300)
    same = [scores(values), scores(values)]  # two columns that fail on the same pictures: no independent evidence
    others = [same[0], replace(same[1], pictures=np.char.add("other ", same[1].pictures))]
    assert stats.stderr(same, [0.5, 0.5]) == pytest.approx(stats.stderr(same[:1], [1.0]))
    assert stats.stderr(others, [0.5, 0.5]) == pytest.approx(stats.stderr(same[:1], [1.0]) / np.sqrt(2))
    ratio = np.std(stats.bootstrap(same).mean(1)) / np.std(stats.bootstrap(others).mean(1))
    assert ratio == pytest.approx(np.sqrt(2), rel=0.1)


def test_strata_count_each_for_itself():
    part = scores([1, 1, 1, 0, 0, 0, 0, 1], strata=[0, 0, 0, 0, 0, 0, 1, 1], factor=100)
    assert part.value == pytest.approx(100 * (0.5 + 0.5))


def test_interval_of_a_perfect_score_is_not_certain():
    low, high = stats.interval(1.0, 0.0, 40, (0.0, 1.0))
    assert high == 1.0 and low == pytest.approx(40 / (40 + stats.Z**2))
    low, high = stats.interval(0.5, 0.05, 100, (0.0, 1.0))  # 100 independent answers: Wilson's own interval
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
    assert stats.interval(0.5, None, 1, (0.0, 1.0)) == (None, None)
    assert stats.interval(1990.0, 20.0, 100, (0.0, 2000.0))[1] == 2000.0


def test_a_difference_is_of_the_same_questions_only():
    one, two = scores([1, 0, 1]), scores([0, 0, 1])
    assert list(stats.difference(one, two).values) == [1, 0, 0]
    with pytest.raises(ValueError, match="same questions"):
        stats.difference(one, scores([1, 0]))
    with pytest.raises(ValueError, match="same questions"):
        stats.difference(one, stats.Scores(np.array(["0", "1", "7"]), one.pictures, one.values, one.strata))


def test_few_pictures_have_no_interval():
    drawn = np.random.default_rng(0).normal(size=4000)
    assert stats.difference_interval(drawn, stats.FEWEST_PICTURES - 1) == (None, None)
    low, high = stats.difference_interval(drawn, stats.FEWEST_PICTURES)
    assert low < -1.96 and high > 1.96
    assert stats.difference_interval(np.full(4000, np.nan), 1000) == (None, None)
    assert stats.difference_interval(np.zeros(0), 1000) == (None, None)


def test_students_t_is_the_tables():
    for degrees, t in ((1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (10, 2.22814), (30, 2.04227)):
        assert stats.t_tails(t, degrees) == pytest.approx(0.05, abs=1e-6)
        assert stats.t_quantile(0.05, degrees) == pytest.approx(t, abs=1e-4)
    assert stats.t_tails(0.0, 3) == 1.0 and stats.t_tails(-4.30265, 2) == stats.t_tails(4.30265, 2)


def test_memory_stays_flat_where_pictures_are_many():
    draw = np.random.default_rng(0)
    part = scores(draw.random(200_000))
    drawn = stats.bootstrap([part], draws=40)[:, 0]  # in steps of 20 draws
    assert np.std(drawn) == pytest.approx(np.std(part.values) / np.sqrt(200_000), rel=0.4)
    assert len(np.unique(drawn)) == 40


def test_drawing_kinds_of_pictures_is_drawing_pictures():
    """Right and wrong answers make few kinds, which are drawn by number; a little noise makes every picture a kind of its own."""
    part = pair(np.random.default_rng(0), pictures=300)
    noisy = replace(part, values=part.values + np.random.default_rng(1).normal(0, 1e-6, len(part.values)))
    kinds, alone = (stats.bootstrap([each], draws=20_000)[:, 0] for each in (part, noisy))
    assert np.std(kinds) == pytest.approx(np.std(alone), rel=0.03)
    assert np.quantile(kinds, [0.025, 0.975]) == pytest.approx(np.quantile(alone, [0.025, 0.975]), abs=0.003)


def test_the_interval_covers_a_known_difference_and_no_difference_is_rarely_called_one():
    draw = np.random.default_rng(1)

    def intervals(gap):
        for seed in range(1000):  # few draws, but never the same ones
            yield stats.difference_interval(stats.bootstrap([pair(draw, pictures=100, gap=gap)], 400, seed)[:, 0], 100)

    assert 0.93 <= np.mean([low <= 0.05 <= high for low, high in intervals(0.05)]) <= 0.97
    told = [exchange_test(stats.amounts([pair(draw, pictures=100)], [1.0])).p <= 0.05 for _ in range(1000)]
    assert np.mean(told) <= 0.06


def test_the_tail_of_few_pictures_is_wider():
    assert stats._tail(10**6) == pytest.approx(0.025, abs=1e-5)
    assert stats._tail(30) == pytest.approx(0.0187, abs=2e-4)  # Phi(-sqrt(30/29) x 2.0452)
