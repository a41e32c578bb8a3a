"""The benchmark of batching: its mix is the declared one, each way trains on every conversation, and packing computes no padding."""

import numpy as np
import pytest

from benchmarks import packing


def test_the_mix_is_the_declared_one():
    lengths = packing.mix(50_000, 1, seed=0)
    assert abs(np.median(lengths) / 700 - 1) < 0.02 and abs(np.quantile(lengths, 0.95) / 2500 - 1) < 0.03 and lengths.max() == 4096
    assert abs(np.median(packing.mix(50_000, 8, seed=0)) / (700 / 8) - 1) < 0.02


@pytest.mark.parametrize("way", packing.WAYS)
def test_every_way_trains_on_every_conversation(way):
    lengths = packing.mix(100, 8, seed=0)
    found = packing.batches(way, lengths, 8, seed=0)
    assert sorted(np.concatenate(found)) == list(range(100))


def test_padding_is_counted_and_the_gain_held_against_it(capsys):
    found = {row["way"]: row for row in packing.time_ways(n=24, scale=32, batch=4, hidden=64, layers=1, rounds=1, seed=0)}
    assert found["packed"]["positions"] == 1 < found["grouped"]["positions"] < found["padded"]["positions"]
    assert found["packed"]["allowed"] == found["padded"]["positions"] and found["padded"]["allowed"] == found["padded"]["gained"] == 1
    assert packing.main(["--hidden", "65"]) == 2 and "multiple of 64" in capsys.readouterr().err
