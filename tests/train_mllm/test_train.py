"""Fine-tuning on a few drawn pictures: frozen stayed frozen, unfrozen moved, stages chain, broken promises fail the run."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_plugin import mllm
from llava_plugin.tower import VisionTower, digest
from train_mllm import features as features_module
from train_mllm import train as train_module
from train_mllm.guard import Guard
from train_mllm.recipes import PRESETS
from train_mllm.train import main, train

COLOURS = ["red", "green", "blue", "white"]


@pytest.fixture
def recipe(tmp_path, llama_tiny):
    rows = []
    for i in range(8):
        Image.new("RGB", (32, 32), COLOURS[i % 4]).save(tmp_path / f"{i}.png")
        turns = [("<image>\nwhat", COLOURS[i % 4]), ("no", "yes")]
        said = [t for q, a in turns for t in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    (tmp_path / "sft.json").write_text(json.dumps(rows))
    base = replace(PRESETS["tiny-sft"](), encoder="genlip-tiny", llm=str(llama_tiny), data=str(tmp_path / "sft.json"))
    return replace(base, out=str(tmp_path / "run"), max_steps=6, batch=4, workers=0, save_every=3, cache_features=False, standardise=False)


def provenance(export: Path) -> dict:
    return json.loads((export / "provenance.json").read_text())


def test_frozen_stays_frozen_and_the_rest_learns(recipe, capsys):
    export = train(recipe)
    said = provenance(export)
    fresh = VisionTower.from_encoder("genlip-tiny")
    assert said["frozen"] and said["untrained"] and said["stage"] == "sft"
    assert digest(fresh) == said["encoder_digest_before"] == said["encoder_digest"] == digest(mllm.load(export).tower)
    assert said["llm_digest_before"] != said["llm_digest"]
    assert "encoder genlip-tiny: frozen" in capsys.readouterr().out
    assert train(recipe) == export and "this run is done" in capsys.readouterr().out


def test_unfrozen_moves_and_is_what_is_saved(recipe):
    export = train(replace(recipe, train_encoder=True, encoder_lr=1e-3))
    said = provenance(export)
    assert not said["frozen"] and said["encoder_digest_before"] != said["encoder_digest"] == digest(mllm.load(export).tower)


def test_projector_stage_trains_the_projector_alone_and_sft_starts_from_it(recipe, monkeypatch):
    projector = train(replace(recipe, stage="projector", out=recipe.out + "-projector"))
    said = provenance(projector)
    assert said["stage"] == "projector" and said["llm_digest_before"] == said["llm_digest"]
    started = {}
    real = train_module.start_from

    def spy(model, recipe):
        real(model, recipe)
        started.update({n: p.detach().clone() for n, p in model.model.multi_modal_projector.named_parameters()})

    monkeypatch.setattr(train_module, "start_from", spy)
    train(replace(recipe, init=str(projector)))
    saved = dict(mllm.load(projector).model.model.multi_modal_projector.named_parameters())
    assert started and all(saved[n].equal(p) for n, p in started.items())
    folder = Path(recipe.out).parent / "wide"
    wide = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    }
    CLIPVisionModel(CLIPVisionConfig(**wide)).save_pretrained(folder)
    with pytest.raises(ValueError, match="is a projector from genlip-tiny"):
        train(replace(recipe, init=str(projector), encoder=str(folder), out=recipe.out + "-x"))


def test_cached_features_give_the_same_weights(recipe):
    plain = provenance(train(replace(recipe, out=recipe.out + "-a")))
    cached = provenance(train(replace(recipe, out=recipe.out + "-b", cache_features=True)))
    assert plain["weights_digest"] == cached["weights_digest"]
    with pytest.raises(ValueError, match="cache-features"):
        train(replace(recipe, cache_features=True, train_encoder=True))


class Killed(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_weights(recipe, monkeypatch):
    undisturbed = provenance(train(replace(recipe, out=recipe.out + "-a")))
    other = replace(recipe, out=recipe.out + "-b")

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Killed

    monkeypatch.setattr(Guard, "on_step_end", kill)
    with pytest.raises(Killed):
        train(other)
    monkeypatch.undo()
    assert (Path(other.out) / "checkpoints" / "checkpoint-3").is_dir()
    assert provenance(train(other))["weights_digest"] == undisturbed["weights_digest"]


def test_a_broken_promise_fails_the_run(recipe, monkeypatch):
    monkeypatch.setattr(VisionTower, "freeze", lambda self: self)  # the tower is left trainable
    with pytest.raises(RuntimeError, match="to stay frozen, yet its weights would learn"):
        train(recipe)
    assert not (Path(recipe.out) / "export").exists()


def test_guard_sees_drift_and_standstill():
    tower = VisionTower.from_encoder("genlip-tiny")
    frozen, unfrozen = Guard(tower, train_encoder=False), Guard(tower, train_encoder=True)
    with pytest.raises(RuntimeError, match="is it in the optimizer"):
        unfrozen.check()
    with pytest.raises(RuntimeError, match="received gradients"):  # woken up after the start
        frozen.on_pre_optimizer_step(None, None, None)
    with torch.no_grad():
        next(tower.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="to stay frozen, yet its weights changed"):
        frozen.check()


def test_a_tower_that_the_optimizer_does_not_hold_fails_the_run(recipe, monkeypatch):
    real = train_module._optimizer

    def empty(model, recipe):
        optimizer = real(model, recipe)
        optimizer.param_groups[1]["params"] = []
        return optimizer

    monkeypatch.setattr(train_module, "_optimizer", empty)
    with pytest.raises(RuntimeError, match="its group is empty"):
        train(replace(recipe, train_encoder=True))


def test_a_tower_that_no_gradient_reaches_fails_the_run(recipe, monkeypatch):
    real = VisionTower.forward
    monkeypatch.setattr(VisionTower, "forward", lambda self, pixels, **k: real(self, real(self, pixels).last_hidden_state.detach()))
    with pytest.raises(RuntimeError, match="no gradient reached it in the first step"):
        train(replace(recipe, train_encoder=True))


def test_a_stale_tower_in_the_export_fails_the_run(recipe, monkeypatch):
    """As in tools that save the encoder as it was loaded."""
    stale = VisionTower.from_encoder("genlip-tiny").state_dict()
    real = mllm.save

    def save(model, tokenizer, export, provenance):
        trained = {name: t.clone() for name, t in model.model.vision_tower.state_dict().items()}
        model.model.vision_tower.load_state_dict(stale)
        real(model, tokenizer, export, provenance)
        model.model.vision_tower.load_state_dict(trained)

    monkeypatch.setattr(mllm, "save", save)
    with pytest.raises(RuntimeError, match="is not the one that was trained"):
        train(replace(recipe, train_encoder=True, encoder_lr=1e-3))
    assert not (Path(recipe.out) / "export").exists()


def test_what_is_missing_is_said_with_the_command(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path / "none"))
    assert main(["sft-qwen7b-frozen", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "384 x 384, 576 tokens" in out
    for command in ("fetch genlip-g16", "fetch Qwen/Qwen2.5-7B-Instruct", "no conversations at"):
        assert command in out
    assert main(["sft-qwen7b-frozen", "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="did you mean genlip-tiny"):
        train(replace(recipe, encoder="genlip-tyni"))


def test_another_recipe_is_refused(recipe):
    train(recipe)
    with pytest.raises(ValueError, match=r"lr: 0\.001 there, 0\.01 asked"):
        train(replace(recipe, lr=0.01))


@pytest.mark.parametrize(
    "script", ["sft_qwen7b_frozen", "sft_qwen7b_unfrozen", "sft_qwen1.5b_frozen", "sft_qwen1.5b_unfrozen", "pretrain_projector"]
)
def test_scripts_plan_without_anything(script):
    root = Path(__file__).parents[2]
    result = subprocess.run(["bash", f"train_mllm/{script}.sh", "--dry-run"], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"preset                  {'projector' if script.startswith('pretrain') else script.replace('_', '-')}" in result.stdout
    assert f"train_encoder           {'unfrozen' in script}" in result.stdout


def test_standardising_is_folded_into_the_projector():
    features = torch.randn(50, 16, 8) * torch.arange(1, 9) + 5
    mean, std = features_module.channel_statistics(features.numpy())
    standardised = (features - torch.from_numpy(mean)) / torch.from_numpy(std)
    torch.testing.assert_close(standardised.mean((0, 1)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised.std((0, 1), correction=0), torch.ones(8), atol=1e-5, rtol=0)
    linear = torch.nn.Linear(8, 4)
    expected = linear(standardised)
    features_module.fold_standardisation(linear, mean, std)
    torch.testing.assert_close(linear(features), expected, atol=1e-4, rtol=0)


def test_an_export_trained_on_standardised_features_answers_from_pictures(recipe):
    """The loss of the exported model on pictures is what training ended with: fold and features belong together."""
    export = train(replace(recipe, cache_features=True, standardise=True, max_steps=40, save_every=20))
    loaded = mllm.load(export)
    question = [{"role": "user", "content": "<image>\nwhat"}]
    answers = [loaded.answer([question], [[Image.new("RGB", (32, 32), colour)]], 10)[0] for colour in COLOURS]
    assert answers == COLOURS
    with pytest.raises(ValueError, match="standardise works on cached features"):
        train(replace(recipe, standardise=True))
