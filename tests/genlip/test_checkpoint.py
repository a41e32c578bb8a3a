"""Checkpoints: whole or not there, the newest kept, a full disk leaves the old one."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genlip import checkpoint
from genlip.train import train


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "run.json").write_text("{}")  # whose digest a checkpoint holds
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def steps(folder):
    return sorted(int(f.name[5:]) for f in (folder / "checkpoints").iterdir())


def test_what_is_loaded_is_what_was_saved(pair, tmp_path):
    model, optimizer = pair
    before = {k: v.clone() for k, v in model.state_dict().items()}
    moment = optimizer.state[model.weight]["exp_avg"].clone()
    checkpoint.save(tmp_path, 3, model, optimizer, {"data": "x"})
    with torch.no_grad():
        model.weight.zero_()
    optimizer.state[model.weight]["exp_avg"].zero_()
    state = checkpoint.load(checkpoint.newest(tmp_path), model, optimizer)
    assert state["step"] == 3 and state["data"] == "x"
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert optimizer.state[model.weight]["exp_avg"].equal(moment)


def test_one_of_another_run_is_refused(pair, tmp_path):
    checkpoint.save(tmp_path, 3, *pair, {})
    (tmp_path / "run.json").write_text('{"stage": "pretrain"}')
    with pytest.raises(ValueError, match=r"step-000003 was written under another run\.json"):
        checkpoint.load(checkpoint.newest(tmp_path), *pair)


def test_the_last_and_the_milestones_are_kept(pair, tmp_path):
    for step in range(1, 8):
        checkpoint.save(tmp_path, step, *pair, {}, keep=2, milestone_every=3)
    assert steps(tmp_path) == [3, 6, 7]
    checkpoint.save(tmp_path, 8, *pair, {}, keep=1, milestone_every=0)
    assert steps(tmp_path) == [8]


def test_one_cut_short_is_passed_over_with_a_sentence(pair, tmp_path, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, *pair, {})
    tensors = next((tmp_path / "checkpoints/step-000002").glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert checkpoint.newest(tmp_path).name == "step-000001"
    assert "step-000002 is not whole" in capsys.readouterr().out
    checkpoint.save(tmp_path, 2, *pair, {})  # written again over what was cut short
    assert checkpoint.newest(tmp_path).name == "step-000002"


def test_a_full_disk_leaves_the_old_checkpoint(recipe, monkeypatch):
    real, run = checkpoint.dcp.save, recipe.out

    def full(*args, **kwargs):
        real(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    def after_the_first(*args, **kwargs):
        real(*args, **kwargs)
        monkeypatch.setattr(checkpoint.dcp, "save", full)

    monkeypatch.setattr(checkpoint.dcp, "save", after_the_first)
    with pytest.raises(ValueError, match=r"No space left on device.*the earlier ones are whole"):
        train(recipe)
    assert [f.name for f in (Path(run) / "checkpoints").iterdir()] == ["step-000003"]
    monkeypatch.setattr(checkpoint.dcp, "save", real)
    train(recipe)


def test_a_checkpoint_of_another_model_is_refused(pair, tmp_path):
    checkpoint.save(tmp_path, 1, *pair, {})
    other = torch.nn.Linear(5, 2)
    with pytest.raises(ValueError, match="does not hold this model"):
        checkpoint.load(checkpoint.newest(tmp_path), other, torch.optim.AdamW(other.parameters()))


def test_other_rows_a_step_cannot_go_on(recipe):
    train(recipe)
    shutil.rmtree(recipe.out + "/export")
    with pytest.raises(ValueError, match="--rows 2 cannot go on"):
        train(replace(recipe, rows=2), accept_changes=True)


def test_one_that_cannot_be_read_now_stops_the_run_and_is_kept(pair, tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, *pair, {})
    state = tmp_path / "checkpoints/step-000002/state.json"
    state.unlink()
    state.symlink_to(state.name)  # an error of the system's that is no missing file
    with pytest.raises(OSError, match=r"step-000002/state\.json"):
        checkpoint.newest(tmp_path)
    assert steps(tmp_path) == [1, 2]


def test_what_is_only_named_like_a_checkpoint_is_none(pair, tmp_path):
    for name in ("step-backup", "step-latest"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints/notes.part").write_text("")
    (tmp_path / "checkpoints/step-000001.part").write_text("")
    (tmp_path / "checkpoints/step-000007.part").symlink_to(tmp_path)
    for step in (1, 999_999, 1_000_000, 1_000_001):
        checkpoint.save(tmp_path, step, *pair, {})
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"step-backup", "step-latest", "notes.part", "step-1000000", "step-1000001"}
    assert checkpoint.newest(tmp_path).name == "step-1000001" and (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"step": 7}, "step is 7, and its folder"),
        ({"step": -1}, "step is -1, and its folder"),
        ({"streams": None}, "streams is null"),
        ({"streams": [7]}, "stream 0 is 7, and takes an object"),
        ({"streams": [{}]}, "stream 0 does not say position"),
        ({"streams": []}, "has 0 rows per step"),
        ({}, "beyond --max-steps 2"),
    ],
)
def test_a_state_that_no_run_goes_on_from_is_refused(changes, why, recipe, tmp_path):
    stream = {"position": {"places": [], "drawn": [], "waiting": []}, "ledger": {"read": 0, "used": 0, "skipped": {}, "names": {}}}
    state, folder = {"step": 3, "streams": [stream]}, tmp_path / "step-000003"
    assert checkpoint.position(folder, state, replace(recipe, rows=1)) == (3, [stream])
    with pytest.raises(ValueError, match=rf"step-000003/state\.json.*{why}"):
        checkpoint.position(folder, state | changes, replace(recipe, rows=1, max_steps=3 if changes else 2))
    with pytest.raises(ValueError, match="does not say streams"):
        checkpoint.position(folder, {"step": 3}, recipe)
