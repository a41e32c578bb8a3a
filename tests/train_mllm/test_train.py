"""Fine-tuning on a few drawn pictures: frozen stayed frozen, unfrozen moved, stages chain, broken promises fail the run."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from genlip.common.schema import KINDS
from llava_plugin import mllm
from llava_plugin.encoders import weights_dir
from llava_plugin.tower import VisionTower, digest
from tests.train_mllm.conftest import COLOURS
from train_mllm import features as features_module
from train_mllm import prepare_data
from train_mllm import train as train_module
from train_mllm import trainer as trainer_module
from train_mllm.freeze_check import FreezeCheck
from train_mllm.recipes import PRESETS, protocol
from train_mllm.skipped import Skipped
from train_mllm.train import main, train
from train_mllm.trainer import StrictTrainer, newest_whole

ROOT = Path(__file__).parents[2]


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
    real = train_module.initialise_from

    def spy(model, setup):
        before = real(model, setup)
        started.update({n: p.detach().clone() for n, p in model.model.multi_modal_projector.named_parameters()})
        return before

    monkeypatch.setattr(train_module, "initialise_from", spy)
    tuned = train(replace(recipe, init=str(projector)))
    saved = dict(mllm.load(projector).model.model.multi_modal_projector.named_parameters())
    assert started and all(saved[n].equal(p) for n, p in started.items())
    more = provenance(train(replace(recipe, init=str(tuned), out=recipe.out + "-more")))
    assert more["llm_digest_before"] == said["llm_digest_before"] != provenance(tuned)["llm_digest"], "before the first of the stages"
    first, second = more["earlier"]
    assert (first["stage"], second["stage"]) == ("projector", "sft") and first["data_digest"] == said["data_digest"]
    assert first["recipe"] == said["recipe"] and second["recipe"]["init"] == str(projector)
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


def test_a_stage_about_the_same_pictures_takes_the_features_of_the_one_before(recipe):
    recipe = replace(recipe, cache_features=True)
    before = train(replace(recipe, out=recipe.out + "-a"))
    rows = json.loads(Path(recipe.data).read_text())
    for name, said, own in (("words", [row | {"conversations": row["conversations"][:2]} for row in rows], 0), ("order", rows[::-1], 1)):
        data = Path(recipe.data).parent / f"{name}.json"
        data.write_text(json.dumps(said))
        train(replace(recipe, init=str(before), data=str(data), out=f"{recipe.out}-{name}"))
        assert len(list(Path(f"{recipe.out}-{name}", "data").glob("features-*.npy"))) == own
    Image.new("RGB", (40, 40), "red").save(Path(recipe.data).parent / "3.png")
    train(replace(recipe, init=str(before), out=f"{recipe.out}-drawn"))
    assert list(Path(f"{recipe.out}-drawn", "data").glob("features-*.npy")), "another picture of the same name"


def test_features_are_kept_for_the_very_picture_files(recipe):
    picture, out = Path(recipe.data).parent / "3.png", Path(recipe.data).parent / "prepared"
    prepare_data.prepare(recipe.data, "", str(out), workers=1)
    table = features_module.open_conversations(out)
    before, date, data = features_module._pictures(table, "d"), picture.stat().st_mtime_ns, picture.read_bytes()
    assert features_module._pictures(table, "d") == before
    picture.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    os.utime(picture, ns=(date, date))
    assert features_module._pictures(table, "d") != before


def damage(picture: Path) -> None:
    """Zeros in the middle of its pixels: both ends are as they were."""
    noise = Image.effect_noise((96, 96), 90).convert("RGB")
    noise.save(picture)
    data = bytearray(picture.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 80] = bytes(80)
    picture.write_bytes(bytes(data))


def in_training(run: str) -> dict:
    return json.loads((Path(run) / "ledger.json").read_text())["in_training"]


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("padded", "workers")]


@pytest.mark.parametrize("how", ["decoded", "cached", "alone", *SLOW])
def test_a_picture_that_breaks_in_training_costs_its_conversation_alone_and_on_resume_too(recipe, how, monkeypatch):
    """Damaged between two whole ends, which preparing does not see."""
    changes = {"cached": {"cache_features": True, "standardise": True}, "padded": {"batching": "padded", "turns": "dialogue"}}
    changes |= {"alone": {"batch": 1, "max_steps": 9}, "workers": {"workers": 2}}
    recipe = replace(recipe, max_bad=0.2, **changes.get(how, {}))
    damage(Path(recipe.data).parent / "5.png")
    if how == "decoded":  # stopped at a checkpoint, and on
        real = trainer_module.arguments
        monkeypatch.setattr(trainer_module, "arguments", lambda *args: replace_steps(real(*args), 3))
    export = train(recipe)
    assert in_training(recipe.out) == {"skipped": {"undecodable picture": 1}, "names": {"undecodable picture": ["5"]}}
    if how == "decoded":
        monkeypatch.undo()
        shutil.rmtree(export)
        train(recipe)
        assert in_training(recipe.out)["skipped"] == {"undecodable picture": 1}
    losses = [json.loads(line)["loss"] for line in (Path(recipe.out) / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert losses and all(torch.isfinite(torch.tensor(losses)))


def replace_steps(args, steps: int):
    args.max_steps = steps
    return args


def test_too_many_pictures_that_break_stop_the_run_in_words_and_again(recipe, capsys):
    for i in (2, 5):
        damage(Path(recipe.data).parent / f"{i}.png")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2 conversations broke in training .*'2', '5'.*--max-bad"):
            train(replace(recipe, max_bad=0.2, max_steps=8))


def test_the_list_of_what_broke_is_never_written_through_a_link(tmp_path):
    other, file = tmp_path / "other", tmp_path / "skipped.jsonl"
    file.symlink_to(other)
    with pytest.raises(ValueError, match=r"skipped\.jsonl is no plain file .*: remove it"):
        Skipped(file).add(3, "a", "truncated picture")
    assert not other.exists()


def test_a_conversation_that_the_template_refuses_is_left_out_and_named(recipe):
    rows = json.loads(Path(recipe.data).read_text())
    rows[3]["conversations"][0]["value"] = "<image>\nwhat " + "is in the picture " * 400
    Path(recipe.data).write_text(json.dumps(rows))
    train(replace(recipe, max_bad=0.2, max_length=300))
    counted = json.loads((Path(recipe.out) / "ledger.json").read_text())["tokens"]
    assert counted["left_out"] == {"its first turn is longer than --max-length": 1}
    assert counted["left_out_names"] == {"its first turn is longer than --max-length": ["3"]}
    with pytest.raises(ValueError, match=r"1 of 8 conversations cannot be learned from .*'3'.*--max-length"):
        train(replace(recipe, max_length=300, out=recipe.out + "-strict"))


@pytest.mark.parametrize("what", ["words", "picture", "prepared"])
def test_a_run_whose_data_changed_is_not_said_to_be_done_and_does_not_go_on(recipe, what, capsys):
    """Equal sizes, dates put back; the folder that was prepared beforehand made anew from something else."""
    source, out = Path(recipe.data), Path(recipe.data).parent / "prepared"
    if what == "prepared":
        prepare_data.prepare(str(source), "", str(out))
        recipe = replace(recipe, data=str(out))
    train(recipe)
    train(recipe)
    assert "this run is done" in capsys.readouterr().out
    file = source.parent / "3.png" if what == "picture" else source
    date, data = file.stat().st_mtime_ns, file.read_bytes()
    changed = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:] if what == "picture" else data.replace(b'"red"', b'"sad"')
    file.write_bytes(changed)
    os.utime(file, ns=(date, date))
    assert file.stat().st_size == len(data)
    if what == "prepared":
        shutil.rmtree(out)
        prepare_data.prepare(str(source), "", str(out))
    said = {"words": r"first: sft\.json", "picture": r"first: .*3\.png", "prepared": r"run began with data .{8}, and"}[what]
    with pytest.raises(ValueError, match=rf"export was trained on other data than there are now: .*{said}"):
        train(recipe)
    shutil.rmtree(recipe.out + "/export")
    with pytest.raises(ValueError, match=said):
        train(recipe)
    if what == "words":  # the folder that the first sentence names was removed: the checkpoints are of the data before
        shutil.rmtree(recipe.out + "/data")
        with pytest.raises(ValueError, match=r"run began with data"):
            train(recipe)
    assert "this run is done" not in capsys.readouterr().out


class Killed(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_weights(recipe, monkeypatch):
    undisturbed = provenance(train(replace(recipe, out=recipe.out + "-a")))
    other = replace(recipe, out=recipe.out + "-b")

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Killed

    monkeypatch.setattr(FreezeCheck, "on_step_end", kill)
    with pytest.raises(Killed):
        train(other)
    monkeypatch.undo()
    assert (Path(other.out) / "checkpoints" / "checkpoint-3").is_dir()
    assert provenance(train(other))["weights_digest"] == undisturbed["weights_digest"]


def test_the_newest_checkpoints_are_those_of_the_highest_steps_whatever_the_clock_says(recipe, monkeypatch):
    real = StrictTrainer._save_checkpoint

    def dated_in_the_future(self, *args, **kwargs):
        real(self, *args, **kwargs)
        os.utime(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", (4e9 - self.state.global_step,) * 2)

    monkeypatch.setattr(StrictTrainer, "_save_checkpoint", dated_in_the_future)
    export = train(replace(recipe, save_every=1))
    folder = export.parent / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == ["checkpoint-5", "checkpoint-6"]
    for spoilt in ("whole.json", "trainer_state.json"):
        (folder / "checkpoint-6").mkdir(exist_ok=True)
        (folder / "checkpoint-6" / spoilt).write_text("{")
        assert newest_whole(folder).name == "checkpoint-5" and not (folder / "checkpoint-6").exists()
    state = folder / "checkpoint-5/trainer_state.json"
    said = state.read_text()
    state.unlink()
    state.symlink_to(state.name)  # an error of the system's that is no missing file
    with pytest.raises(OSError, match="trainer_state"):
        newest_whole(folder)
    state.unlink()
    state.write_text(said.replace('"max_steps": 6', '"max_steps": 4'))
    assert newest_whole(folder) is None, "a step beyond the last"


def test_a_run_stopped_before_its_export_takes_no_step_more(recipe, monkeypatch):
    recipe = replace(recipe, save_every=recipe.max_steps)
    undisturbed = provenance(train(replace(recipe, out=recipe.out + "-a")))

    def kill(self):
        raise Killed

    monkeypatch.setattr(FreezeCheck, "check", kill)
    with pytest.raises(Killed):
        train(recipe)
    monkeypatch.undo()
    ended = provenance(train(recipe))
    assert [ended[name] for name in ("steps", "weights_digest")] == [undisturbed[name] for name in ("steps", "weights_digest")]


def test_a_broken_promise_fails_the_run(recipe, monkeypatch):
    monkeypatch.setattr(VisionTower, "freeze", lambda self: self)  # the tower is left trainable
    with pytest.raises(RuntimeError, match="to stay frozen, yet its weights would learn"):
        train(recipe)
    assert not (Path(recipe.out) / "export").exists()


def test_guard_sees_drift_and_standstill():
    tower = VisionTower.from_encoder("genlip-tiny")
    frozen, unfrozen = (FreezeCheck(tower, train, digest(tower)) for train in (False, True))
    with pytest.raises(RuntimeError, match="is it in the optimizer"):
        unfrozen.check()
    with pytest.raises(RuntimeError, match="received gradients"):  # woken up after the start
        frozen.on_pre_optimizer_step(None, None, None)
    with torch.no_grad():
        next(tower.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="to stay frozen, yet its weights changed"):
        frozen.check()


def test_a_tower_that_the_optimizer_does_not_hold_fails_the_run(recipe, monkeypatch):
    real = train_module.adamw

    def empty(model, recipe):
        optimizer = real(model, recipe)
        optimizer.param_groups[1]["params"] = []
        return optimizer

    monkeypatch.setattr(train_module, "adamw", empty)
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


def test_an_encoder_that_transformers_saves_under_older_names_is_exported(recipe):
    export = train(replace(recipe, encoder="dinov2-tiny", max_steps=1))
    assert mllm.load(export).provenance.encoder_digest == digest(VisionTower.from_encoder("dinov2-tiny"))


def test_what_is_missing_is_said_with_the_command(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path / "none"))
    assert main(["sft-qwen7b-frozen", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "384 x 384 pixels, 24 x 24 grid, 576 tokens" in out
    for command in ("fetch genlip-g16", "fetch Qwen/Qwen2.5-7B-Instruct", "no conversations: give --data"):
        assert command in out
    assert main(["sft-qwen7b-frozen", "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="Did you mean 'genlip-tiny'"):
        train(replace(recipe, encoder="genlip-tyni"))


def test_the_protocol_is_equal_at_one_global_batch_and_names_what_is_learned_otherwise():
    base = replace(PRESETS["sft-qwen7b-frozen"](), epochs=2.0)
    eight, four = protocol(base, 8, 8, True), protocol(replace(base, batch=2, workers=0, max_bad=0.5, zero=3), 4, 32, True)
    assert eight == four and eight["per_step"] == "256 conversations" and eight["epochs"] == 2.0
    free = replace(base, global_batch=0, accumulation=8)
    assert protocol(free, 8, 8, True) == eight and protocol(free, 4, 8, True)["per_step"] == "128 conversations"
    assert protocol(replace(base, lr=1.0), 8, 8, True)["lr"] == 1.0 and not protocol(base, 8, 8, False)["bf16"]
    assert "encoder_lr" not in eight and "encoder_lr" in protocol(replace(base, train_encoder=True), 8, 8, True)  # which had no effect
    assert protocol(replace(free, batching="tokens"), 2, 2, True)["per_step"] == f"{4 * base.batch_tokens} tokens"
    assert protocol(replace(base, batching="padded"), 8, 8, True)["batch"] == 4
    assert protocol(replace(base, lora_rank=8), 8, 8, True)["lora_alpha"] == 16


def test_every_field_of_a_recipe_says_what_a_comparison_makes_of_it():
    assert all(f.metadata["kind"] in KINDS for f in fields(PRESETS["tiny-sft"]()))


def test_another_recipe_is_refused(recipe):
    train(recipe)
    with pytest.raises(ValueError, match=r"--lr 0\.001 there, --lr 0\.01 asked"):
        train(replace(recipe, lr=0.01))


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


# --- equal runs for equal maths ---------------------------------------------------------------------------------------------


def weights(export: Path) -> dict[str, torch.Tensor]:
    return load_file(export / "model.safetensors")


def assert_same(one: Path, other: Path, atol: float) -> None:
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=atol, rtol=0, msg=name)


def start(recipe, processes: int = 1, first: str = "") -> subprocess.Popen:
    """The command line of a run, in processes of their own; `first` is Python to run before it."""
    flags = []
    for name, value in asdict(recipe).items():
        name = name.replace("_", "-")
        if name != "preset":
            flags += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    code = f"{first}\nimport sys\nfrom train_mllm.train import main\nsys.exit(main(sys.argv[1:]))"
    script = Path(recipe.out).parent / f"{Path(recipe.out).name}.py"
    script.write_text(code)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launch = [sys.executable, *(torchrun if processes > 1 else [])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, str(script), recipe.preset, *flags], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_accumulated_equals_one_batch(recipe, monkeypatch):
    """By plain gradient descent: AdamW blows the rounding of a gradient near zero up to a whole step."""
    monkeypatch.setattr(
        train_module, "adamw", lambda model, recipe: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    )
    whole = train(replace(recipe, out=recipe.out + "-a", batch=8, max_steps=3))
    parts = train(replace(recipe, out=recipe.out + "-b", batch=2, global_batch=8, max_steps=3))
    assert provenance(parts)["accumulation"] == 4
    assert_same(whole, parts, 1e-5)


def test_two_processes_equal_one(recipe):
    alone = train(replace(recipe, out=recipe.out + "-a", batch=2, accumulation=2, max_steps=3))
    together = replace(recipe, out=recipe.out + "-b", batch=2, max_steps=3)
    process = start(together, 2)
    assert process.communicate() and process.returncode == 0
    export = Path(together.out) / "export"
    assert provenance(export)["processes"] == 2
    assert_same(alone, export, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_zero_on_two_processes_equals_one(recipe, zero):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    alone = train(replace(recipe, out=recipe.out + "-a", batch=2, accumulation=2, max_steps=3))
    shared = replace(recipe, out=recipe.out + "-b", batch=2, max_steps=3, zero=zero)
    process = start(shared, 2)
    assert process.communicate() and process.returncode == 0
    assert_same(alone, Path(shared.out) / "export", 1e-4)


@pytest.mark.parametrize("batching", ["tokens", "padded"])
def test_other_ways_to_batch(recipe, batching):
    said = provenance(train(replace(recipe, batching=batching, batch_tokens=150, turns="dialogue")))
    assert said["llm_digest_before"] != said["llm_digest"] and said["steps"] == 6


def test_adapters_are_merged_into_the_export_and_resumed(recipe, monkeypatch):
    lora = replace(recipe, lora_rank=4, out=recipe.out + "-a")
    export = train(lora)
    said = provenance(export)
    assert said["parameters"]["llm"]["trained"] < said["parameters"]["llm"]["all"] / 4 and said["llm_digest_before"] != said["llm_digest"]
    assert mllm.load(export).answer([[{"role": "user", "content": "what"}]], [[]], 2)
    other = replace(lora, out=recipe.out + "-b")

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(FreezeCheck, "on_pre_optimizer_step", kill)
        with pytest.raises(Killed):
            train(other)
    saved = load_file(Path(other.out) / "checkpoints" / "checkpoint-3" / "model.safetensors")
    assert all("lora" in name or "projector" in name for name in saved)
    assert provenance(train(other))["weights_digest"] == said["weights_digest"]


@pytest.mark.parametrize(
    "when",
    [
        "StrictTrainer.training_step",  # in the middle of a step
        "StrictTrainer._save_rng_state",  # while a checkpoint is being saved
    ],
)
def test_killed_for_good_a_run_goes_on_to_the_same_weights(recipe, when):
    undisturbed = provenance(train(replace(recipe, out=recipe.out + "-a")))
    other = replace(recipe, out=recipe.out + "-b")
    kill = (
        "import os, signal\nfrom train_mllm.trainer import StrictTrainer\nreal = " + when + "\n"
        "def killed(self, *args, **kwargs):\n"
        "    if self.state.global_step >= 5 or ('save' in real.__name__ and self.state.global_step == 6):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, *args, **kwargs)\n" + when + " = killed"
    )
    process = start(other, first=kill)
    assert process.communicate() and process.returncode == -9
    checkpoints = {p.name: (p / "whole.json").is_file() for p in (Path(other.out) / "checkpoints").iterdir()}
    assert checkpoints == ({"checkpoint-3": True, "checkpoint-6": False} if "save" in when else {"checkpoint-3": True})
    metrics = Path(other.out) / "metrics.jsonl"
    with metrics.open("a") as stream:
        stream.write('{"loss": 0.1, "st')  # a line that the kill cut short
    assert provenance(train(other))["weights_digest"] == undisturbed["weights_digest"]
    logged = [[(r["step"], r.get("loss")) for r in map(json.loads, (Path(out) / "metrics.jsonl").read_text().splitlines())] for out in
              (recipe.out + "-a", other.out)]  # fmt: skip
    assert logged[0] == logged[1] and [step for step, _ in logged[1]] == [1, 2, 3, 4, 5, 6, 6]


def test_a_loss_that_is_no_number_stops_the_run(recipe):
    with pytest.raises(RuntimeError, match=r"the loss is (nan|inf) at step \d+: nothing was updated with it"):
        train(replace(recipe, lr=1e30, warmup=0.0, max_grad_norm=1e30))
    assert not (Path(recipe.out) / "export").exists()


def test_conversations_that_do_not_fit_are_counted(recipe):
    with pytest.raises(ValueError, match=r"8 of 8 conversations cannot be learned from .* raise --max-length \(now 20\)"):
        train(replace(recipe, max_length=20))
    train(replace(recipe, out=recipe.out + "-b", max_length=27, max_steps=1))
    counted = json.loads((Path(recipe.out + "-b") / "ledger.json").read_text())["tokens"]
    assert counted["cut"] == 8 and counted["left_out"] == {} and 0 < counted["supervised"] < counted["tokens"]


# --- the five scripts -------------------------------------------------------------------------------------------------------

FEW = "--batch 5 --global-batch 0 --max-steps 2 --workers 0 --no-gradient-checkpointing"


def run_script(shared, out: Path, script: str, flags: str, projector_flags: str, **environment) -> Path:
    """A script to its end: the projector stage on the charts, SFT on the ten conversations about photos. Returns the run folder."""
    environment = os.environ | {
        "OUT": str(out),
        "PROJECTOR_DATA": str(shared / "charts" / "conversations_llava.json"),
        "PROJECTOR_IMAGES": str(shared / "charts" / "images"),
        "PROJECTOR_FLAGS": projector_flags,
        "SFT_DATA": str(shared / "sft" / "conversations_openai.json"),
        "SFT_IMAGES": str(shared / "sft" / "images"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **environment,
    }
    command = ["bash", f"train_mllm/{script}.sh", *flags.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "lora", "zero2", "zero3"])
@pytest.mark.parametrize("script", ["sft_qwen7b_frozen", "sft_qwen7b_unfrozen", "sft_qwen1.5b_frozen", "sft_qwen1.5b_unfrozen"])
def test_scripts_run_to_the_end_on_real_conversations(shared, tmp_path, llama_tiny, script, how):
    """Each with its projector stage; ZeRO on two processes, started by the script itself."""
    flags, environment = {"plain": "", "lora": "--lora-rank 4", "zero2": "--zero 2", "zero3": "--zero 3"}[how], {}
    if how.startswith("zero"):
        pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install deepspeed")
        environment = {"PROCESSES": "2", "DS_ACCELERATOR": "cpu", "MASTER_PORT": str(free_port())}
    few = f"{FEW} {flags}"
    projector_flags = FEW if how == "lora" else few
    run = run_script(shared, tmp_path / "run", script, few, projector_flags, ENCODER="genlip-tiny", LLM=str(llama_tiny), **environment)
    projector, sft = (provenance(folder / "export") for folder in (tmp_path / "run-projector", run))
    assert projector["stage"] == "projector" and sft["frozen"] == ("unfrozen" not in script)
    assert (sft["note"] is None) == sft["frozen"]
    assert (sft["encoder_digest_before"] == sft["encoder_digest"]) == sft["frozen"]
    assert sft["llm_digest_before"] != sft["llm_digest"] and sft["recipe"]["preset"] == script.replace("_", "-")
    assert (sft["processes"], sft["zero"]) == {"zero2": (2, 2), "zero3": (2, 3)}.get(how, (1, 0))
    assert mllm.load(run / "export").answer([[{"role": "user", "content": "what"}]], [[]], 2)


@pytest.mark.slow
def test_the_projector_script_runs_to_the_end_alone(shared, tmp_path, llama_tiny):
    run = run_script(shared, tmp_path / "run", "pretrain_projector", FEW, "", ENCODER="genlip-tiny", LLM=str(llama_tiny))
    said = provenance(run / "export")
    assert said["stage"] == "projector" and said["llm_digest_before"] == said["llm_digest"]


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("localhost", 0))
        return some.getsockname()[1]


@pytest.mark.slow
def test_a_real_language_model_around_a_real_encoder_learns_the_conversations(shared, tmp_path, capsys):
    """SmolLM2-135M around DINOv2-S/14, 64 visual tokens, by the frozen script: before, the projector stage's export; after, the SFT's."""
    for name in ("smollm2-135m", "dinov2-s14"):
        if not (weights_dir() / name).is_dir():
            pytest.skip(f"no {name} here: python -m llava_plugin.fetch {name}")
    few = "--resolution 112 --batch 2 --global-batch 2 --workers 0 --no-gradient-checkpointing"
    own = {"PROJECTOR_DATA": str(shared / "sft" / "conversations_openai.json"), "PROJECTOR_IMAGES": str(shared / "sft" / "images")}
    flags = f"{few} --max-steps 20 --lr 2e-4"
    run = run_script(
        shared, tmp_path / "run", "sft_qwen1.5b_frozen", flags, f"{few} --max-steps 5", ENCODER="dinov2-s14", LLM="smollm2-135m", **own
    )
    losses = [record["loss"] for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in record]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    rows = json.loads((shared / "sft" / "conversations_openai.json").read_text())
    asked = []
    for row in rows[:2]:
        question = next(part["text"].strip() for part in row["messages"][0]["content"] if part["type"] == "text")
        picture = Image.open(shared / "sft" / "images" / f"{row['id']}.jpg")
        asked.append((f"<image>\n{question}", picture, row["messages"][1]["content"][0]["text"]))
    shared_words = {}
    for when, folder in (("before", tmp_path / "run-projector"), ("after", run)):
        model = mllm.load(folder / "export")
        answers = model.answer([[{"role": "user", "content": q}] for q, _, _ in asked], [[p] for _, p, _ in asked], 32)
        with capsys.disabled():
            print(f"\n{when}: loss {losses[0 if when == 'before' else -1]:.3f}", *answers, sep="\n  ")
        words = [(set(said.lower().split()), set(wanted.lower().split())) for said, (_, _, wanted) in zip(answers, asked)]
        shared_words[when] = sum(len(said & wanted) / len(said | wanted) for said, wanted in words)
    assert shared_words["after"] > shared_words["before"] + 0.5


def test_provenance_where_neither_git_nor_the_package_is_installed(monkeypatch):
    from importlib import metadata

    from genlip.common.versions import git_commit, package_versions

    real = metadata.version

    def version(name):
        if name == "genlip-eval":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
    assert package_versions(("torch", "genlip-eval")) == {"torch": real("torch"), "genlip-eval": "not installed"}
