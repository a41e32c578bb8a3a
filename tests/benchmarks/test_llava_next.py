"""The comparison with LLaVA-NeXT's trainer: both train on the same tokens, the second half of the steps is timed, failures speak."""

import os
import sys

import pytest

from benchmarks import llava_next, packing
from train_mllm.conversations import open_conversations

STEPS = """
import sys, time
print("{'train_loss': 1}"); time.sleep(0.2)
for step in range(4):
    print({'loss': str(4.0 - step)}, flush=True); time.sleep(0.05 if step < 1 else 0.01)
time.sleep(0.2)
sys.exit(SYSTEM)
"""


def script(end: str) -> list[str]:
    return [sys.executable, "-c", STEPS.replace("SYSTEM", end)]


def test_only_the_second_half_of_the_steps_is_timed():
    took, lines = llava_next.timed(script("0"), os.environ, 4)
    assert took >= 0.02 and [llava_next.LOGGED.search(line)[1] for line in lines] == ["4.0", "3.0", "2.0", "1.0"]


@pytest.mark.parametrize(("end", "steps", "message"), [("'no room'", 4, "ended with 1.*no room"), ("0", 6, "after 4 of 6 steps")])
def test_a_trainer_that_fails_is_said(end, steps, message):
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        llava_next.timed(script(end), os.environ, steps)


def test_conversations_have_the_lengths_of_the_mix(tmp_path):
    from train_mllm.data import encode
    from train_mllm.prepare_data import prepare

    tokenizer = llava_next.tiny_qwen(tmp_path / "qwen-tiny", 64, 1, seed=0)
    lengths = packing.mix(12, 8, seed=0)
    file = llava_next.write_conversations(tmp_path, lengths, tokenizer, "genlip-tiny", seed=0)
    ledger = prepare(str(file), str(tmp_path / "images"), str(tmp_path / "data"))
    assert ledger["used"] == 12
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    rows = [encode(m, tokenizer, image, 16, "dialogue", 4096) for m in open_conversations(tmp_path / "data")["messages"].to_pylist()]
    frame = 16 + len("\n") + 6 + 3 + 2 + 3 + 1  # the picture; system turn, user turn around the question, assistant turn around the answer
    assert [len(row.ids) for row in rows] == [max(frame + 2, n) for n in lengths]
    assert tokenizer.convert_tokens_to_ids("Ċ") == 198  # LLaVA-NeXT knows the newline by this number


def test_what_cannot_be_compared_is_said_before_anything_is_measured(tmp_path, capsys):
    assert llava_next.main([str(tmp_path)]) == 2
    assert "is no LLaVA-NeXT checkout: git clone" in capsys.readouterr().err
    (tmp_path / "llava" / "train").mkdir(parents=True)
    (tmp_path / "llava" / "train" / "train.py").touch()
    assert llava_next.count_steps(str(tmp_path), 100, 8) == 26
    assert llava_next.main([str(tmp_path), "--conversations", "1000"]) == 2
    assert "are 250 steps; beside LLaVA-NeXT at most 100: raise --batch" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("LLAVA_NEXT_ROOT" not in os.environ, reason="$LLAVA_NEXT_ROOT names no LLaVA-NeXT checkout: clone it to run this")
def test_both_train_on_the_same_tokens():
    """One conversation a step: no padding, so that theirs computes our tokens and each conversation's last newline, no more, no less."""
    found = {row["way"]: row for row in llava_next.time_trainers(os.environ["LLAVA_NEXT_ROOT"], 3, 16, 1, 64, 1, 1, seed=0)}
    theirs, ours = found["llava_next"], found["ours"]
    assert round(theirs["positions"] * ours["tokens"]) == ours["tokens"] + 3 and ours["positions"] == 1
    assert (theirs["steps"], ours["steps"]) == (3, 3) and theirs["gained"] == [1.0]
    assert ours["tokens_per_second"] / theirs["tokens_per_second"] == pytest.approx(ours["gained"][0])
    assert "gained" in llava_next.table(list(found.values()))
