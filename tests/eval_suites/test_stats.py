"""Intervals that hold what they promise, on data whose truth is known."""

import numpy as np
import pytest

from eval_suites.score import stats


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
    for shared in (False, True):
        drawn = stats.bootstrap(parts, [1.0, 2.0], shared, draws=4000)
        assert np.std(drawn) == pytest.approx(stats.stderr(parts, [1.0, 2.0], shared), rel=0.06)
        assert np.mean(drawn) == pytest.approx(parts[0].value + 2 * parts[1].value, abs=0.003)


def test_shared_pictures_are_drawn_together():
    values = np.random.default_rng(0).random(300)
    same = [scores(values), scores(values)]  # two columns that fail on the same pictures: no independent evidence
    assert stats.stderr(same, [0.5, 0.5], True) == pytest.approx(stats.stderr(same[:1], [1.0], False))
    assert stats.stderr(same, [0.5, 0.5], False) == pytest.approx(stats.stderr(same[:1], [1.0], False) / np.sqrt(2))
    ratio = np.std(stats.bootstrap(same, [0.5, 0.5], True)) / np.std(stats.bootstrap(same, [0.5, 0.5], False))
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


def test_few_pictures_never_get_a_word():
    part = scores(np.ones(stats.FEWEST_PICTURES - 1))
    assert stats.judge([part], [100.0], False).word == "not told apart"
    assert stats.judge([scores(np.ones(stats.FEWEST_PICTURES))], [100.0], False).word == "better"
    assert stats.judge([scores(np.ones(stats.FEWEST_PICTURES))], [100.0], False, higher_is_better=False).word == "worse"
    assert stats.judge([scores(-np.ones(50))], [1.0], False).word == "worse"


def test_memory_stays_flat_where_pictures_are_many():
    draw = np.random.default_rng(0)
    part = scores(draw.random(200_000))
    drawn = stats.bootstrap([part], [1.0], False, draws=40)  # in steps of 20 draws
    assert np.std(drawn) == pytest.approx(np.std(part.values) / np.sqrt(200_000), rel=0.4)
    assert len(np.unique(drawn)) == 40


def test_the_interval_covers_a_known_difference_and_no_difference_is_rarely_called_one(monkeypatch):
    draw = np.random.default_rng(1)

    def verdicts(gap):
        for seed in range(1000):  # few draws, but never the same ones
            monkeypatch.setattr(stats.bootstrap, "__defaults__", (400, seed))
            yield stats.judge([pair(draw, pictures=100, gap=gap)], [1.0], False)

    assert 0.93 <= np.mean([verdict.low <= 0.05 <= verdict.high for verdict in verdicts(0.05)]) <= 0.97
    assert np.mean([verdict.word != "not told apart" for verdict in verdicts(0.0)]) <= 0.06


def test_the_tail_of_few_pictures_is_wider():
    assert stats._tail(10**6) == pytest.approx(0.025, abs=1e-5)
    assert stats._tail(30) == pytest.approx(0.0187, abs=2e-4)  # Phi(-sqrt(30/29) x 2.0452)
