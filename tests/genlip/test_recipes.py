"""Presets hold the paper's numbers, every field is a flag, a dry run says what a run costs."""

import argparse
import json
from dataclasses import fields, replace

import pytest

from genlip.common.flags import add_recipe, read_recipe
from genlip.common.hardware import mfu
from genlip.common.run_folder import claim_run_folder
from genlip.estimate import step_flops
from genlip.recipes import PRESETS, Recipe
from genlip.train import main


def parsed(preset, *words):
    parser = argparse.ArgumentParser()
    words = [preset, *words]
    add_recipe(parser, PRESETS, words)
    return read_recipe(parser, PRESETS, parser.parse_args(words))


def test_presets_are_the_papers_numbers():
    for name, make in PRESETS.items():
        assert make().preset == name
    for size, width, layers, drop in (("l16", 1024, 24, None), ("so16", 1152, 27, None), ("g16", 1536, 40, 0.2)):
        s1, s2 = PRESETS[f"{size}-s1"](), PRESETS[f"{size}-s2"]()
        assert (s1.model["hidden_size"], s1.model["num_hidden_layers"]) == (width, layers) and s1.model.get("drop_path_rate") == drop
        assert s1.model == s2.model and s2.init == f"runs/{size}-s1/export" and s2.native and s2.text_key == "conversations"
        assert (s1.lr, s2.lr, s1.min_lr, s2.min_lr) == (1e-3, 1e-4, 1e-6, 1e-6) and s1.row_tokens == s2.row_tokens == 16_384
        assert s1.warmup == (0.02 if size == "g16" else 0.007) and s2.warmup == 0.007
        batch = 48_000 if size == "g16" else 32_000
        assert s1.rows * s1.row_tokens / s1.mean_tokens == pytest.approx(batch, rel=0.05)
        assert s2.rows * s2.row_tokens / s2.mean_tokens == pytest.approx(3600, rel=0.05)
        seen = [r.max_steps * r.rows * r.row_tokens / r.mean_tokens for r in (s1, s2)]
        assert seen == pytest.approx([8e9, 37e6], rel=1e-3)
        for r in (s1, s2):
            assert (r.betas, r.eps, r.weight_decay, r.max_grad_norm, r.vocab_size) == ((0.9, 0.95), 1e-8, 0.01, 1.0, 151_936)
    assert PRESETS["so16-s1-nogate"]().model["gated_attention"] is False
    assert [PRESETS[f"so16-s1-reg{n}"]().model["num_register_tokens"] for n in (1, 4)] == [1, 4]


def test_every_field_is_a_flag():
    assert parsed("tiny-s1") == PRESETS["tiny-s1"]()
    recipe = parsed("tiny-s1", "--betas", "0.8", "0.9", "--native", "--model", "num_hidden_layers=2", "gated_attention=false")
    assert recipe.betas == (0.8, 0.9) and recipe.native
    assert recipe.model == PRESETS["tiny-s1"]().model | {"num_hidden_layers": 2, "gated_attention": False}
    words = []
    counts = {"resolution": "tiny-s1", "min_pixels": "tiny-s2", "max_pixels": "tiny-s2"}  # which preset's pictures have it
    for preset in ("tiny-s1", "tiny-s2"):
        given = {}
        for field in fields(Recipe):
            if field.type in (int, float, str) and field.name != "preset" and counts.get(field.name, preset) == preset:
                given[field.name] = (field.metadata["choices"] or ("0.7" if field.metadata["most"] == 1 else "7",))[-1]
        words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
        changed = parsed(preset, *words)
        assert len(given) > 30 and all(str(getattr(changed, name)).startswith(value) for name, value in given.items())


def test_an_unknown_model_field_says_what_was_meant(capsys):
    for words in (["--model", "num_hiden_layers=2"], ["--model", "hidden_size=wide"], ["--no-such-flag", "1"]):
        with pytest.raises(SystemExit):
            parsed("tiny-s1", *words)
    said = capsys.readouterr().err
    assert "Did you mean 'num_hidden_layers'" in said and "as in JSON" in said and "--no-such-flag" in said


def test_a_run_folder_keeps_its_recipe_unless_changes_are_accepted(recipe, capsys):
    claim_run_folder(recipe)
    claim_run_folder(recipe)
    with pytest.raises(ValueError, match=r"--lr 0\.001 there, --lr 0\.5 asked"):
        claim_run_folder(replace(recipe, lr=0.5))
    folder = claim_run_folder(replace(recipe, lr=0.5), accept_changes=True)
    assert json.loads((folder / "recipe.json").read_text())["lr"] == 0.5 and "--lr 0.001 there" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_counts_right(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["so16-s1", "--dry-run", "--gpus", "64", "--mfu", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "817,301,376 in all, 467,240,832 of the encoder" in said  # the released So/16
    assert "on 64 GPU(s) at 50%" in said and not list(tmp_path.iterdir())


def test_flops_are_those_of_the_matrices():
    """A model without attention cost or head: 6 x the layers' matrix parameters a token."""
    import torch

    from genlip import GenLIPConfig, GenLIPForPretraining

    config = GenLIPConfig(**PRESETS["tiny-s1"]().model | {"text_embed_dim": 64})
    with torch.device("meta"):
        model = GenLIPForPretraining(config)
    matrices = sum(p.numel() for p in model.visual.parameters() if p.ndim == 2)
    head = model.lm_head.weight.numel() + model.proj.weight.numel() + model.in_proj.weight.numel()
    assert step_flops(config, 10, 0, 0) == 60 * matrices and step_flops(config, 0, 0, 1) == 6 * head
    assert step_flops(config, 0, 100, 0) == 12 * 4 * 128 * 100


def test_mfu_of_an_unknown_gpu_says_so():
    assert mfu(98.9e12, "NVIDIA H100 80GB HBM3") == "10.0 %"
    assert mfu(1e12, "NVIDIA T4") == "not known: NVIDIA T4 is not in genlip/common/hardware.py"
