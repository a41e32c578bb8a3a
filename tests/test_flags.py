"""Both trainers' command lines: every flag says what it means, a bad value or a flag without effect is refused, a file starts a run."""

import argparse
import hashlib
import json
import re
import shlex
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

import genlip.recipes
import genlip.train
import train_mllm.recipes
import train_mllm.train
from genlip.common.flags import GROUPS, flag
from train_mllm import llava_next

ROOT = Path(__file__).parents[1]
TRAINERS = {"genlip": genlip.train, "train_mllm": train_mllm.train}
# What recipe.json holds, by preset after preset: a run made before goes on only where it stays so.
STORED = {"genlip": "ce159ac20ca17c5f", "train_mllm": "90500d9f377e64b0"}


def resolved(trainer: str, words: list[str], monkeypatch):
    """The recipe that a command would train."""
    found = []
    monkeypatch.setattr(TRAINERS[trainer], "train", lambda recipe, *_: found.append(recipe))
    assert TRAINERS[trainer].main(words) == 0, words
    return found[0]


def refused(trainer: str, words: list[str], capsys) -> str:
    """What a command says that ends with exit code 2."""
    try:
        code = TRAINERS[trainer].main(words)
    except SystemExit as e:
        code = e.code
    assert code == 2, words
    return capsys.readouterr().err


@pytest.mark.parametrize("trainer", TRAINERS)
def test_stored_recipes_are_what_they_were(trainer):
    presets = TRAINERS[trainer].PRESETS.values()
    assert hashlib.sha256("".join(json.dumps(asdict(make())) for make in presets).encode()).hexdigest()[:16] == STORED[trainer]


@pytest.mark.parametrize(
    ("trainer", "words"),
    [("genlip", words) for words in ("save-every 0", "keep -1", "lr nan", "warmup nan", "rows 0", "max-bad 1.5", "seed -1", "gpus -1")]
    + [("genlip", f"save-every {10**400}"), ("genlip", f"gpus {10**400}"), ("train_mllm", f"batch {10**309}")]
    + [("train_mllm", words) for words in ("global-batch -4", "batch 0", "warmup inf", "save-every 0", "epochs nan", "mfu 0", "gpus x")],
)
def test_a_number_beyond_its_bounds_is_refused_by_the_parser(trainer, words, capsys):
    name, value = words.split()
    preset = {"genlip": "tiny-s1", "train_mllm": "tiny-sft"}[trainer]
    said = refused(trainer, [preset, f"--{name}", value], capsys).splitlines()[-1]
    assert f"--{name}" in said and (value in said or "number" in said)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_flag_has_a_meaning_and_a_group(trainer, monkeypatch):
    found = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, argv=None: found.append(self) or exit(0))
    with pytest.raises(SystemExit):
        TRAINERS[trainer].main([])
    groups = {group.title: group._group_actions for group in found[0]._action_groups}
    assert [title for title, actions in groups.items() if actions and title != "options"] == list(GROUPS)
    assert [action.dest for action in groups["options"]] == ["help"]
    said = {action.dest: action.help for title in GROUPS for action in groups[title]}
    recipe = next(iter(TRAINERS[trainer].PRESETS.values()))()
    assert said.keys() >= {f.name for f in fields(recipe)}
    for name, text in said.items():
        assert text and len(re.sub(r"\(.*", "", text)) > 8, f"{name} says nothing: {text!r}"


def test_help_shows_the_presets_values(capsys):
    for preset, shown in (("tiny-s1", "default: 2200)"), ("so16-s1", "default: 257492)")):
        with pytest.raises(SystemExit):
            genlip.train.main([preset, "--help"])
        assert shown in re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("trainer", "words", "said"),
    [
        ("genlip", ["--parallel", "banana", "--dry-run"], "'ddp', 'fsdp'"),
        ("genlip", ["tiny-s1", "--report", "mlflow"], "'tensorboard', 'wandb'"),
        ("train_mllm", ["tiny-sft", "--zero", "1"], "choose from -1, 0, 2, 3"),
        ("train_mllm", ["tiny-sfft"], "Did you mean 'tiny-sft'"),
        ("train_mllm", [], "name a preset (projector, "),
        ("train_mllm", ["tiny-sft", "--epochs", "3"], "--epochs 3 has no effect beside --max-steps 5000 of tiny-sft: give --max-steps 0"),
        ("train_mllm", ["tiny-sft", "--epochs", "1"], "give --max-steps 0"),
        ("train_mllm", ["projector", "--epochs", "2", "--max-steps", "9"], "beside --max-steps 9: give --max-steps 0"),
        (
            "train_mllm",
            ["sft-qwen7b-frozen", "--accumulation", "2"],
            "beside --global-batch 256 of sft-qwen7b-frozen: give --global-batch 0",
        ),
        ("train_mllm", ["tiny-sft", "--batch", "8", "--batching", "tokens"], "give --batching batch or --batching padded"),
        ("train_mllm", ["tiny-sft", "--batch-tokens", "99"], "give --batching tokens"),
        ("train_mllm", ["tiny-sft", "--lora-alpha", "8"], "beside --lora-rank 0 of tiny-sft: give --lora-rank"),
        ("train_mllm", ["tiny-sft", "--encoder-lr", "2e-6"], "beside --no-train-encoder of tiny-sft: give --train-encoder"),
        ("genlip", ["so16-s2", "--resolution", "384"], "--resolution 384 has no effect beside --native of so16-s2: give --no-native"),
        ("genlip", ["tiny-s1", "--min-pixels", "64"], "give --native"),
        ("genlip", ["tiny-s1", "--max-pixels", "64"], "give --native"),
        ("genlip", ["tiny-s1", "--eval-every", "9"], "beside --eval-data '' of tiny-s1: give --eval-data"),
    ],
)
def test_what_cannot_count_is_refused(trainer, words, said, capsys):
    assert said in refused(trainer, words, capsys)


def test_a_recipe_made_in_python_is_refused_too(tmp_path):
    base = {"data": "x", "tokenizer": "x", "out": str(tmp_path / "run")}
    for change, said in (({"parallel": "banana"}, "--parallel is one of ddp, fsdp; not 'banana'"), ({"attention": "flash"}, "--attention")):
        with pytest.raises(ValueError, match=said):
            genlip.train.train(replace(genlip.recipes.tiny_s1(), **base, **change))
    with pytest.raises(ValueError, match=r"unknown name in --model 'hiden_size'. Did you mean 'hidden_size'"):
        genlip.train.train(replace(genlip.recipes.tiny_s1(), **base, model={"hiden_size": 1}))
    with pytest.raises(ValueError, match="--zero is one of -1, 0, 2, 3; not 1"):
        train_mllm.train.train(replace(train_mllm.recipes.tiny_sft(), zero=1))
    assert not (tmp_path / "run").exists()


def test_flags_as_they_are_typed():
    said = [flag("bf16", False), flag("train_encoder", True), flag("betas", (0.9, 0.95)), flag("data", "a b"), flag("lora_rank")]
    assert said == ["--no-bf16", "--train-encoder", "--betas 0.9 0.95", "--data 'a b'", "--lora-rank"]
    assert flag("model", {"gated_attention": False}) == "--model gated_attention=false" and flag("epochs", 3.0) == "--epochs 3"
    with pytest.raises(
        ValueError, match="--backend llava_next goes with --turns dialogue, --no-cache-features, --no-standardise, --bf16 alone"
    ):
        llava_next.check_recipe(train_mllm.recipes.tiny_sft())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_command_that_types_every_field_passes(trainer, monkeypatch):
    """As a report writes it: a field that is overruled says what the preset says, and so misleads nobody."""
    for make in TRAINERS[trainer].PRESETS.values():
        recipe = replace(make(), data="x", out="x")
        typed = {n: v for n, v in asdict(recipe).items() if n not in ("preset", "model") and v != ""}
        words = shlex.split(" ".join(flag(name, value) for name, value in typed.items()))
        if trainer == "genlip" and not recipe.init:
            words, recipe = [*words, "--tokenizer", "x"], replace(recipe, tokenizer="x")
        assert resolved(trainer, [recipe.preset, *words], monkeypatch) == recipe


@pytest.mark.parametrize(("trainer", "preset"), [("genlip", "tiny-s2"), ("train_mllm", "sft-qwen7b-frozen")])
def test_a_recipe_file_starts_a_run_and_flags_win(trainer, preset, tmp_path, monkeypatch):
    recipe = replace(TRAINERS[trainer].PRESETS[preset](), data="a b", out=str(tmp_path), lr=0.5)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(asdict(recipe)))
    assert resolved(trainer, ["--config", str(file)], monkeypatch) == recipe
    assert resolved(trainer, [preset, "--config", str(file), "--lr", "2", "--out", "y"], monkeypatch) == replace(recipe, lr=2.0, out="y")
    file.write_text(json.dumps({"preset": preset, "data": "c", "out": "z", "lr": 1}))
    assert resolved(trainer, ["--config", str(file)], monkeypatch) == replace(recipe, data="c", out="z", lr=1.0)


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ({"max_stesp": 5}, [], "unknown field of {file}: 'max_stesp'. Did you mean 'max_steps'"),
        ({"max_steps": "5"}, [], 'max_steps of {file} is "5": it takes what 2200 is'),
        ({"max_steps": True}, [], "max_steps of {file} is true"),
        ({"native": 1}, [], "native of {file} is 1"),
        ({"betas": [0.9]}, [], "betas of {file} is [0.9]"),
        ({"betas": [0.9, "x"]}, [], 'betas of {file} is [0.9, "x"]'),
        ({"parallel": "banana"}, [], "--parallel is one of ddp, fsdp; not 'banana'"),
        ({"preset": "tiny"}, [], "--config {file} is no recipe of this command: its preset ('tiny') has to be one of l16-s1"),
        ({}, ["tiny-s2"], "{file} is a recipe of tiny-s1, not of tiny-s2: leave one of them out"),
    ],
)
def test_what_a_recipe_file_cannot_hold(change, words, said, tmp_path, capsys):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(asdict(genlip.recipes.tiny_s1()) | change))
    assert said.format(file=file) in refused("genlip", ["--config", str(file), *words], capsys)


def test_a_file_that_is_no_recipe(tmp_path, capsys):
    for text in (None, "{", "5"):
        if text:
            (tmp_path / "r.json").write_text(text)
        assert f"--config {tmp_path / 'r.json'} is no recipe" in refused("train_mllm", ["--config", str(tmp_path / "r.json")], capsys)


def test_a_preset_may_stand_behind_the_flags(monkeypatch):
    assert resolved("train_mllm", ["--data", "x", "--out", "y", "projector"], monkeypatch).stage == "projector"


@pytest.mark.parametrize(("trainer", "preset"), [("genlip", "tiny-s1"), ("train_mllm", "tiny-sft")])
def test_a_laptop_recipe_is_planned_for_this_machine(trainer, preset, capsys):
    def plan(*words):
        assert TRAINERS[trainer].main([preset, "--dry-run", *words]) == 0
        return capsys.readouterr().out

    here = plan()
    assert "per process" in here and not re.search(r"\d GPU|TFLOP/s|per GPU", here)
    assert re.search(r"per GPU", plan("--gpus", "1"))


def commands() -> list[tuple[str, str, list[str]]]:
    """(place, trainer, words) of every training command in the scripts, the README and the docs; a variable stands for 1."""
    found = []
    places = [*(ROOT / "examples").glob("*.sh"), *(ROOT / "train_mllm").glob("*.sh"), ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]
    for file in sorted(places):
        text = file.read_text().replace("\\\n", " ").replace("launch.sh ", "-m train_mllm.train ").replace('"$recipe"', "projector")
        for trainer, rest in re.findall(r"-m (genlip|train_mllm)\.train ((?:[^\n`|&#;])+)", text):
            rest = re.sub(r'"?\$[@*]"?|"\$\{@[^}]*\}"|\[?--any\S*.*', "", rest)
            rest = re.sub(r"\$\{[^}]*\}|\$\w+", "1", re.sub(r"\$\{([^{}]|\{[^}]*\})*\}", "1", rest))
            if (words := shlex.split(rest)) and words[0].lower() == words[0] and "--help" not in words:
                found.append((file.name, trainer, words))
    return found


def test_every_documented_command_is_taken(monkeypatch):
    seen = commands()
    assert {place for place, _, words in seen if "--dry-run" not in words} >= {
        "demo.sh",
        "demo_real.sh",
        "demo_easyvqa.sh",
        "road.md",
        "measured.md",
    }
    assert len(seen) > 12
    for place, trainer, words in seen:
        monkeypatch.setattr(TRAINERS[trainer], "train", lambda recipe, *_: None)
        assert TRAINERS[trainer].main([*words, "--out", "x", "--data", "x"]) == 0, f"{place}: {words}"


def test_a_file_that_names_a_part_of_the_model_leaves_the_rest_to_its_preset(tmp_path, monkeypatch):
    (tmp_path / "r.json").write_text('\ufeff{"preset": "tiny-s1", "model": {"drop_path_rate": 0.1}, "betas": [0, 1]}', encoding="utf-8")
    recipe = resolved("genlip", ["--config", str(tmp_path / "r.json"), "--data", "x", "--tokenizer", "y", "--out", "z"], monkeypatch)
    assert recipe.model == genlip.recipes.tiny_s1().model | {"drop_path_rate": 0.1} and recipe.betas == (0.0, 1.0)


def test_flags_are_not_abbreviated(capsys):
    assert "unrecognized arguments: --step" in refused("genlip", ["tiny-s1", "--step", "3"], capsys)
