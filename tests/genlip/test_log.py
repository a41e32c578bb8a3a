"""What a run says of itself reaches the tracker that was asked for, and nothing is said twice."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from genlip.train import train


def test_tensorboard_holds_what_metrics_hold(recipe):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(replace(recipe, max_steps=3, report="tensorboard")).parent
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(lines[0])
    for name in ("loss", "grad_norm", "waste", "tokens"):
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (line["step"], pytest.approx(line[name])) for line in lines
        ]


def test_wandb_is_given_the_recipe_and_every_step(recipe, monkeypatch):
    """Against a stand-in of its three calls: the service itself wants a network."""
    begun, logged, finished = {}, [], []
    run = types.SimpleNamespace(log=lambda record, step: logged.append((step, record["loss"])), finish=lambda: finished.append(True))
    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **options: begun.update(options) or run
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    folder = train(replace(recipe, max_steps=3, report="wandb")).parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert logged == [(line["step"], line["loss"]) for line in lines] and finished == [True]
    assert begun["config"]["max_steps"] == 3 and begun["resume"] == "allow" and begun["id"] == Path(recipe.out).name


def test_a_tracker_that_is_not_there_is_said(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        train(replace(recipe, report="wandb"))
    with pytest.raises(ValueError, match="--report is one of none, tensorboard, wandb; not 'mlflow'"):
        train(replace(recipe, report="mlflow"))


def test_the_ledger_and_the_metrics_tell_the_same_story(recipe):
    """Samples counted in the steps are those the ledger calls used."""
    run = train(recipe).parent
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["used"] == sum(line["samples"] for line in lines) and ledger["read"] == ledger["used"] and not ledger["skipped"]
