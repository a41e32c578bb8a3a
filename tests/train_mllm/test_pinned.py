"""A run goes on from what it began with alone: weights, tokenizer, preprocessing, earlier stage, data and step are pinned before step 0."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genlip.common.run_folder import recorded
from genlip.common.schema import Provenance, RunRecord, json_schema, write
from llava_plugin import mllm, tower
from llava_plugin.tower import VisionTower
from tests.json_schema import complaints
from tests.train_mllm.test_train import assert_same, provenance, start
from train_mllm.freeze_check import FreezeCheck
from train_mllm.model import same_weights
from train_mllm.setup import micro_steps, resolve
from train_mllm.train import main, train
from train_mllm.trainer import run_digest


class Killed(Exception):
    pass


@pytest.fixture
def killed(monkeypatch):
    """Train up to the fifth step, the checkpoint after the third."""

    def until_killed(recipe) -> None:
        def kill(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(FreezeCheck, "on_step_end", kill)
            with pytest.raises(Killed):
                train(recipe)
        assert (Path(recipe.out) / "checkpoints" / "checkpoint-3").is_dir()

    return until_killed


@pytest.fixture
def folders(recipe, tmp_path):
    """The recipe with an encoder and a language model in folders of their own."""
    VisionTower.from_encoder("clip-tiny").encoder.save_pretrained(tmp_path / "encoder")
    shutil.copytree(recipe.llm, tmp_path / "llm")
    return replace(recipe, encoder=str(tmp_path / "encoder"), llm=str(tmp_path / "llm"))


def overwrite(folder: Path, name: str) -> None:
    """Other weights of the same shape under one name."""
    tensors = load_file(folder / "model.safetensors")
    (found,) = [each for each in tensors if each.endswith(name)]
    tensors[found] = tensors[found] + 0.01
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_json(file: Path, change) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | change(content)))


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        file.write_text("Be brief. " + file.read_text())
    else:
        edit_json(folder / "tokenizer_config.json", lambda held: {"chat_template": "Be brief. " + held["chat_template"]})


def other_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content))


CHANGES = {
    "the encoder's weights": ("encoder", lambda folder: overwrite(folder, "patch_embedding.weight")),
    "the encoder's preprocessing": (
        "encoder",
        lambda f: edit_json(f / "preprocessor_config.json", lambda _: {"image_mean": [0.1, 0.2, 0.3]}),
    ),
    "the language model's weights": ("llm", lambda folder: overwrite(folder, "layers.0.mlp.up_proj.weight")),
    "the language model's config": ("llm", lambda folder: edit_json(folder / "config.json", lambda held: {"rms_norm_eps": 0.5})),
    "the tokenizer": ("llm", other_tokenizer),
    "the chat template": ("llm", other_template),
}


@pytest.mark.parametrize(
    ("how", "changes"),
    [
        ({}, list(CHANGES)),
        pytest.param({"lora_rank": 4}, ["the encoder's weights", "the language model's weights"], marks=pytest.mark.slow),
        pytest.param({"stage": "projector"}, ["the language model's weights"], marks=pytest.mark.slow),
    ],
    ids=["sft", "lora", "projector"],
)
def test_a_folder_overwritten_meanwhile_is_refused_and_put_back_the_run_goes_on(folders, tmp_path, killed, how, changes):
    recipe = replace(folders, **how)
    undisturbed = provenance(train(replace(recipe, out=recipe.out + "-a")))
    killed(recipe)
    for what in changes:
        name, change = CHANGES[what]
        shutil.copytree(tmp_path / name, tmp_path / "kept")
        change(tmp_path / name)
        with pytest.raises(ValueError, match=rf"run began with {what} \w{{8}}, and {tmp_path / name} holds \w{{8}} now.*: bring back"):
            train(recipe)
        shutil.rmtree(tmp_path / name)
        (tmp_path / "kept").rename(tmp_path / name)
    ended = provenance(train(recipe))
    assert ended["weights_digest"] == undisturbed["weights_digest"] and ended["frozen"]
    began = json.loads((Path(recipe.out) / "run.json").read_text())
    assert complaints(began, json_schema(RunRecord)) == complaints(ended, json_schema(Provenance)) == []
    assert (began["encoder_digest"], began["llm_digest"]) == (ended["encoder_digest"], ended["llm_digest_before"])


@pytest.mark.parametrize("name", ["llm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("encoder", "init"))])
def test_a_finished_run_and_a_dry_run_look_at_the_files_that_it_began_with(folders, tmp_path, killed, capsys, name):
    """By their bytes, without loading a weight; put back, the run is done."""
    recipe = replace(folders, max_steps=6)
    if name == "init":
        first = train(replace(recipe, stage="projector", max_steps=1, out=recipe.out + "-projector"))
        first.rename(tmp_path / "init")
        recipe = replace(recipe, init=str(tmp_path / "init"))
    killed(recipe)
    ends = {"encoder": "patch_embedding.weight", "llm": "layers.0.mlp.up_proj.weight", "init": "multi_modal_projector.linear_1.weight"}
    said = rf"began with other files of .* than {tmp_path / name} holds now \(model\.safetensors\): bring them back, or give another --out"
    config = tmp_path / "recipe.json"
    config.write_text(json.dumps(asdict(recipe)))
    plan = ["--config", str(config), "--dry-run", "--gpus", "0"]
    for done in (False, True):
        assert main(plan) == 0 and "nothing is missing" in capsys.readouterr().out
        shutil.copytree(tmp_path / name, tmp_path / "kept")
        overwrite(tmp_path / name, ends[name])
        assert main(plan) == 0 and re.search(said, capsys.readouterr().out)
        if done:
            with pytest.raises(ValueError, match=said):
                train(recipe)
        shutil.rmtree(tmp_path / name)
        (tmp_path / "kept").rename(tmp_path / name)
        train(recipe)
    assert "this run is done" in capsys.readouterr().out


def test_the_output_layer_is_pinned_too(folders, tmp_path, killed):
    edit_json(tmp_path / "llm" / "config.json", lambda _: {"tie_word_embeddings": False})
    tensors = load_file(tmp_path / "llm" / "model.safetensors")
    embeddings = next(tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
    save_file(tensors | {"lm_head.weight": embeddings.clone()}, tmp_path / "llm" / "model.safetensors", {"format": "pt"})
    killed(folders)
    overwrite(tmp_path / "llm", "lm_head.weight")
    with pytest.raises(ValueError, match="began with the language model's output layer"):
        train(folders)


def test_an_earlier_stages_export_replaced_meanwhile_is_refused(recipe, killed):
    projector = replace(recipe, stage="projector", out=recipe.out + "-projector")
    init = train(projector)
    recipe = replace(recipe, init=str(init))
    killed(recipe)
    other = train(replace(projector, out=projector.out + "-other", lr=1e-2))
    shutil.rmtree(init)
    shutil.copytree(other, init)
    with pytest.raises(ValueError, match=rf"began with the export of the earlier stage \w{{8}}, and {init} holds \w{{8}} now"):
        train(recipe)


def test_a_projector_belongs_to_the_encoder_that_it_was_made_for(folders, tmp_path):
    """Another one of equal width, the same one changed, and one that is given other pixels; another language model likewise."""
    init = train(replace(folders, stage="projector", out=folders.out + "-projector", max_steps=1))
    recipe = replace(folders, init=str(init), max_steps=1)
    with pytest.raises(ValueError, match="has a projector for encoder with other preprocessing than genlip-tiny has"):
        train(replace(recipe, encoder="genlip-tiny", out=recipe.out + "-a"))
    shutil.copytree(tmp_path / "encoder", tmp_path / "newer")
    overwrite(tmp_path / "newer", "patch_embedding.weight")
    with pytest.raises(
        ValueError, match=rf"projector for the encoder encoder \w{{8}}, and {tmp_path}/newer holds \w{{8}}: give --encoder that"
    ):
        train(replace(recipe, encoder=str(tmp_path / "newer"), out=recipe.out + "-b"))
    train(replace(recipe, resolution=32, seed=1, out=recipe.out + "-c"))  # at another resolution, from another seed
    overwrite(tmp_path / "llm", "layers.0.mlp.up_proj.weight")
    with pytest.raises(
        ValueError, match=rf"trained with the language model llm \w{{8}}, and {tmp_path}/llm holds \w{{8}}: bring that one back"
    ):
        train(replace(recipe, out=recipe.out + "-d"))


def test_weights_are_compared_in_the_coarser_of_two_dtypes():
    torch.manual_seed(0)
    ours, other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    rounded = torch.nn.Linear(4, 3).to(torch.bfloat16)
    rounded.load_state_dict(ours.state_dict())
    assert same_weights(ours, rounded) and same_weights(rounded, ours) and not same_weights(other, rounded)
    assert not same_weights(ours, torch.nn.Linear(5, 3))
    with torch.no_grad():
        other.load_state_dict(ours.state_dict())
        other.weight[1] = 7
    assert same_weights(ours, other, {"weight": 1}) and not same_weights(ours, other, {"weight": 2})


# --- the step ---------------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_on_fewer_processes_keeps_its_step(recipe, killed, capsys):
    """As if it had begun on two processes: what one conversation after another made a step of is pinned, in run.json."""
    killed(recipe)
    began = replace(recorded(Path(recipe.out)), processes=2, per_step="8 conversations")
    write(Path(recipe.out) / "run.json", began)
    edit_json(Path(recipe.out) / "checkpoints/checkpoint-3/whole.json", lambda _: {"run": run_digest(Path(recipe.out))})
    said = provenance(train(recipe))
    assert (said["processes"], said["accumulation"], said["protocol"]["per_step"]) == (1, 2, "8 conversations")
    assert "going on at 8 conversations per step, now 1 x 2 micro-steps where it was 2 x 1" in capsys.readouterr().out


def test_a_step_that_does_not_split_is_refused(recipe):
    run = Path(recipe.out)
    began = resolve(recipe, 2).record({}, "d", 2, 0, "float32", on_gpu=False)
    assert [micro_steps(began, n, planned, run) for n, planned in ((1, 2), (2, 2), (4, 2))] == [4, 2, 1]
    with pytest.raises(ValueError, match=r"on 2 x 2 micro-steps, which do not split over 3 processes: go on with PROCESSES=2"):
        micro_steps(began, 3, 2, run)
    with pytest.raises(ValueError, match="do not split over 8 processes"):
        micro_steps(began, 8, 1, run)


@pytest.mark.slow
def test_two_processes_killed_and_one_that_goes_on_are_one_run(recipe):
    whole = replace(recipe, out=recipe.out + "-a", batch=2)
    process = start(whole, 2)
    assert process.communicate() and process.returncode == 0
    part = replace(recipe, out=recipe.out + "-b", batch=2)
    kill = (
        "import os, signal\nfrom train_mllm.trainer import StrictTrainer\nreal = StrictTrainer.training_step\n"
        "def killed(self, *args, **kwargs):\n"
        "    if self.state.global_step >= 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, *args, **kwargs)\nStrictTrainer.training_step = killed"
    )
    process = start(part, 2, first=kill)
    assert process.communicate() and process.returncode != 0
    export = train(part)
    assert provenance(export)["accumulation"] == 2
    assert_same(Path(whole.out) / "export", export, 1e-4)


def test_weights_are_hashed_once_before_the_first_step(recipe, monkeypatch):
    """For the check on the encoder, the names of cached features and the record alike."""
    hashed, real = [], tower.tensor_digests

    def counted(module):
        hashed.append(sum(t.numel() for t in module.state_dict().values()))
        return real(module)

    for module in (tower, mllm):
        monkeypatch.setattr(module, "tensor_digests", counted)

    def stop(self, args, state, control, model, **kwargs):
        assert sum(hashed) == sum(t.numel() for t in model.state_dict().values())
        raise Killed

    monkeypatch.setattr(FreezeCheck, "on_train_begin", stop)
    with pytest.raises(Killed):
        train(replace(recipe, cache_features=True))
