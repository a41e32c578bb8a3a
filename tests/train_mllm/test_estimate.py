"""The plan: shapes counted as transformers counts them, memory as a run takes it, ZeRO chosen with a reason, what is missing said."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from train_mllm import estimate
from train_mllm import setup as resolving
from train_mllm.recipes import PRESETS
from train_mllm.setup import LLMS, kernels, resolve
from train_mllm.train import check_recipe, explain_error, main

ROOT = Path(__file__).parents[2]
RECIPES = {name: make() for name, make in PRESETS.items()}


@pytest.mark.parametrize("name", LLMS)
def test_parameters_of_the_papers_language_models(name):
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = LLMS[name]
    heads, kv_heads, tied = (12, 2, True) if "1.5B" in name else (28, 4, False)
    with torch.device("meta"):
        config = Qwen2Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=tied,
        )
        assert AutoModelForCausalLM.from_config(config).num_parameters() == shape.parameters


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear", "pixel_shuffle"])
def test_parameters_and_memory_of_a_run_that_fits_here(llama_tiny, projector):
    """Predicted against counted: weights, gradients and AdamW's moments, in bytes."""
    import torch

    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower

    recipe = replace(RECIPES["tiny-sft"], encoder="genlip-tiny", llm=str(llama_tiny), projector=projector, resolution=64)
    tower = VisionTower.from_encoder("genlip-tiny", 64)
    model, _ = mllm.build(tower.freeze(), str(llama_tiny), projector=projector)
    counted = resolve(recipe, 1).parts
    learning = [p for p in model.parameters() if p.requires_grad]
    assert (counted.total, counted.trained) == (model.num_parameters(), sum(p.numel() for p in learning))
    optimizer = torch.optim.AdamW(learning)
    sum(p.sum() for p in learning).backward()
    optimizer.step()
    held = [*model.parameters(), *(p.grad for p in learning), *(t for s in optimizer.state.values() for t in s.values())]
    measured = sum(t.numel() * t.element_size() for t in held)
    predicted = estimate.state_bytes(counted.trained, counted.total - counted.trained, 0, 1, half=False)
    assert abs(predicted / measured - 1) < 0.01


def test_zero_stages_share_what_they_say():
    """One number that learns beside one that does not, on four GPUs, in bf16."""
    assert [estimate.state_bytes(1, 1, stage, 4, half=True) for stage in (0, 2, 3)] == [18, 8, 5]


def test_logits_are_planned_for_the_tokens_that_are_learned():
    """576 visual tokens and 200 of text a conversation: packed, at most the text has logits; padded, all have."""
    recipe = RECIPES["sft-qwen7b-frozen"]
    setups = [resolve(replace(recipe, batching=how), 8) for how in ("batch", "tokens", "padded")]
    assert [estimate.learned_tokens(setup, 776) for setup in setups] == [200, 200, 776]
    shape = LLMS[recipe.llm]
    all_learned, answer_learned = (estimate.activation_bytes(shape, 776, learned, True) for learned in (776, 200))
    assert all_learned - answer_learned == 576 * shape.vocab_size * 12
    packed, _, padded = (estimate.memory(setup, 2) for setup in setups)
    assert abs((padded - packed) * 1e9 - recipe.batch * 576 * shape.vocab_size * 12) < 1


def test_the_plan_is_what_a_gpu_measured():
    """One H100, torch 2.11: `python -m benchmarks.finetuning sft-qwen1.5b-frozen --global-batch 64 --batch N`, N 16 and 4. Tokens and
    supervised tokens of the largest micro-step, and the peak in the passes; the optimizer's step had the same 27.5 GB in both."""
    for tokens, supervised, measured in ((18_361, 4_570, 40.5), (6_808, 2_251, 34.1)):
        passes, update = estimate.peak_bytes(resolve(RECIPES["sft-qwen1.5b-frozen"], 1), 0, tokens, supervised)
        assert passes / 1e9 == pytest.approx(measured, rel=0.05) and update / 1e9 == pytest.approx(27.5, rel=0.03)


@pytest.mark.parametrize(
    ("preset", "gpus", "gb", "stage"),
    [
        ("sft-qwen1.5b-frozen", 8, 80, 0),
        ("sft-qwen7b-frozen", 8, 80, 2),
        ("sft-qwen7b-frozen", 8, 32, 3),
        ("sft-qwen7b-frozen", 1, 80, 0),
        ("projector", 8, 80, 0),
    ],
)
def test_the_least_zero_stage_that_fits(preset, gpus, gb, stage):
    found, why = estimate.zero_stage(resolve(RECIPES[preset], gpus), gb)
    assert found == stage and why
    assert estimate.zero_stage(resolve(replace(RECIPES[preset], zero=3), gpus), gb) == (3, "asked for by --zero")


def test_the_global_batch_comes_out_even():
    recipe = RECIPES["sft-qwen1.5b-frozen"]
    assert [resolve(recipe, n).accumulation for n in (1, 8, 16)] == [16, 2, 1]
    with pytest.raises(ValueError, match="--global-batch 256 is no multiple of --batch 16 x 3 processes"):
        _ = resolve(recipe, 3).accumulation


def test_a_plan_without_any_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path / "none"))
    assert main(["sft-qwen7b-unfrozen", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for line in (
        "11,719 of 256: 4 per GPU x 8 GPUs x 8 accumulated",
        "trained / frozen        8,863,056,896 / 0",
        "ZeRO stage              2: ",
        "no anyres: not the setting of the paper's unfrozen table",
        "kernels on a GPU        attention by ",
        "python -m train_mllm.fetch onevision-single-image",
    ):
        assert line in out
    assert "feature cache" not in out
    assert main(["sft-qwen7b-frozen", "--dry-run", "--gpus", "1", "--lora-rank", "64"]) == 0
    assert "one GPU has nobody to share with" in capsys.readouterr().out


def test_flop_are_two_a_parameter_and_token_and_pass():
    """The paper's 7B recipe, by hand: input embeddings are looked up, not multiplied; a frozen encoder goes forward once."""
    shape, encoder = LLMS["Qwen/Qwen2.5-7B-Instruct"], 1_229_083_136
    multiplied = shape.parameters - 152_064 * 3584
    projector = resolve(RECIPES["projector"], 8).parts.projector
    frozen = 6 * multiplied * 776 + 2 * encoder * 576 + 6 * projector * 576
    assert estimate.conversation_flops(resolve(RECIPES["sft-qwen7b-frozen"], 8)) == frozen
    assert estimate.conversation_flops(resolve(RECIPES["sft-qwen7b-unfrozen"], 8)) == frozen + 4 * encoder * 576
    assert estimate.conversation_flops(resolve(RECIPES["projector"], 8)) == 4 * multiplied * 606 + 2 * encoder * 576 + 6 * projector * 576
    assert estimate.conversation_flops(resolve(replace(RECIPES["projector"], llm="nobody/knows"), 8)) is None


def test_anyres_unfrozen_is_planned_in_tiles_for_llava_nexts_data(capsys):
    """2 x 2 tiles and the whole, of 24 x 24 tokens and a newline behind each of 48 rows; no note that anyres is missing."""
    assert main(["sft-qwen7b-unfrozen-anyres", "--dry-run", "--encoder", "genlip-so16"]) == 0
    out = capsys.readouterr().out
    assert "780,000 (assumed" in out and f"at most {5 * 576 + 48} visual" in out and "6,094 of 128: 2 per GPU x 8 GPUs x 8" in out
    assert "no anyres" not in out and "python -m train_mllm.fetch llava-next-780k" in out and "ZeRO stage              2:" in out
    planned, square = (resolve(RECIPES[f"sft-qwen7b-unfrozen{more}"], 8) for more in ("-anyres", ""))
    assert planned.parts.projector == square.parts.projector + 3584  # the newline
    assert (planned.recipe.lr, planned.recipe.encoder_lr, planned.recipe.feature_layer) == (1e-5, 2e-6, -1)
    encoder = 6 * planned.parts.encoder * 5 * 576
    language = estimate.conversation_flops(planned) - encoder - 6 * planned.parts.projector * (5 * 576 + 48)
    before = estimate.conversation_flops(square) - encoder / 5 - 6 * square.parts.projector * 576
    assert language / before == pytest.approx((5 * 576 + 48 + 200) / 776)


def test_hours_follow_gpus_and_mfu(capsys):
    def hours(*flags):
        assert main(["sft-qwen7b-frozen", "--dry-run", *flags]) == 0
        return float(re.search(r"time +([\d.]+) hours", capsys.readouterr().out)[1])

    assert hours("--gpus", "16") == pytest.approx(hours() / 2, rel=0.02)
    assert hours("--mfu", "0.2") == pytest.approx(2 * hours(), rel=0.02)


def test_kernels_follow_what_can_be_imported(monkeypatch):
    def having(*installed):
        monkeypatch.setattr(resolving, "find_spec", lambda name: name if name in installed else None)
        return kernels(RECIPES["sft-qwen7b-frozen"])

    flash, sdpa = "attention by torch (FlashAttention, packed), layers by ", "attention by torch (SDPA, {}), layers by Liger"
    assert having() == (flash + "transformers (liger-kernel is not installed)", True, False)
    assert having("liger_kernel") == (flash + "Liger", True, True)
    sft = RECIPES["sft-qwen7b-frozen"]
    assert kernels(replace(sft, batching="padded")) == (sdpa.format("padded rows"), False, True)
    assert kernels(replace(sft, bf16=False)) == (sdpa.format("rows of like length"), False, True)


def test_conversations_are_counted_where_they_are(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([{}] * 40))
    (tmp_path / "mix.yaml").write_text("datasets: [{json_path: a.json, sampling_strategy: 'first:50%'}]")
    assert estimate.rows(replace(RECIPES["projector"], data=str(tmp_path / "mix.yaml"))) == (20, "counted")


def test_what_is_missing(tmp_path, llama_tiny):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text("{}")
    recipe = replace(RECIPES["tiny-sft"], llm=str(tmp_path / "llm"), data="gone.json", images=str(tmp_path / "gone"), init="gone")
    found = estimate.missing(resolve(recipe, 1))
    assert len(found) == 4
    for text, line in zip(("llm has no tokenizer", "no conversations at", "no folder of pictures at", "no projector export"), found):
        assert text in line


def test_too_little_disk_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 10**9}))
    lacks = estimate.missing(resolve(replace(RECIPES["sft-qwen7b-frozen"], out=str(tmp_path / "run")), 8))
    assert any("has room for 1 GB; checkpoints and export take 201" in line for line in lacks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "sfft"}, "--stage is one of projector, sft; not 'sfft'"),
        ({"projector": "mlp3"}, "--projector is one of"),
        ({"batching": "packed"}, "--batching is one of"),
        ({"batching": "padded", "turns": "independent"}, "use --batching batch or tokens"),
        ({"standardise": True, "cache_features": True, "projector": "linear"}, "--projector mlp2x_gelu"),
        ({"stage": "projector", "lora_rank": 8}, "use it in the SFT stage"),
        ({"report": "wandb"}, "wandb is not installed: pip install wandb"),
    ],
)
def test_fields_that_do_not_go_together(change, message):
    with pytest.raises(ValueError, match=message):
        check_recipe(replace(RECIPES["sft-qwen7b-frozen"], **change))


def test_a_full_gpu_and_a_workers_error_are_sentences():
    import torch

    said = explain_error(
        torch.OutOfMemoryError("CUDA out of memory"), replace(RECIPES["sft-qwen1.5b-frozen"], gradient_checkpointing=False)
    )
    assert "--batch 8 (" in said and "--gradient-checkpointing" in said and "--zero 3" in said
    caught = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\nValueError: no token of 'a'\n"
    )
    assert explain_error(ValueError(caught), RECIPES["projector"]) == "no token of 'a'"


@pytest.mark.parametrize(
    "script",
    [
        "sft_qwen7b_frozen",
        "sft_qwen7b_unfrozen",
        "sft_qwen1.5b_frozen",
        "sft_qwen1.5b_unfrozen",
        "sft_qwen7b_unfrozen_anyres",
        "pretrain_projector",
    ],
)
def test_scripts_plan_without_anything(script):
    result = subprocess.run(["bash", f"train_mllm/{script}.sh", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"preset                  {'projector' if script.startswith('pretrain') else script.replace('_', '-')}" in result.stdout
    assert f"train_encoder           {'unfrozen' in script}" in result.stdout


@pytest.mark.parametrize("flag", ["--resolution 96", "--resolution=96", ""])
def test_both_stages_of_a_script_have_one_resolution_and_paths_are_the_callers(flag, tmp_path):
    """From another folder, where the encoder lies, and the pictures' size is said by both."""
    from llava_plugin.tower import VisionTower

    VisionTower.from_encoder("clip-tiny").encoder.save_pretrained(tmp_path / "it")
    environment = os.environ | {"ENCODER": "mine=it", "OUT": "out/run", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "train_mllm/sft_qwen1.5b_frozen.sh"), "--dry-run", *flag.split()]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if line.startswith("pictures ")]
    own = "64 x 64 pixels, 4 x 4 grid, 16 tokens: its config.json's own"
    assert lines == ["96 x 96 pixels, 6 x 6 grid, 36 tokens: --resolution" if flag else own] * 2


def test_an_encoder_in_a_folder_is_counted_and_what_was_resolved_is_said(tmp_path, llama_tiny, capsys):
    """Its own class is counted, without its text part, as training counts it."""
    from transformers import CLIPConfig, CLIPModel

    from llava_plugin.tower import VisionTower

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=sizes | {"image_size": 64, "patch_size": 16}, text_config=sizes | {"vocab_size": 100})
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    recipe = replace(RECIPES["tiny-sft"], encoder=f"mine={tmp_path / 'clip'}", llm=str(llama_tiny), train_encoder=True)
    counted = resolve(recipe, 1).parts
    assert counted.encoder == VisionTower.from_encoder(recipe.encoder).num_parameters()
    flags = ["--encoder", recipe.encoder, "--llm", recipe.llm]
    assert main(["tiny-sft", *flags, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"encoder {counted.encoder:,} (frozen)" in out and "memory per process" in out
    assert f"encoder from            {tmp_path / 'clip'}\n" in out and f"language model from     {llama_tiny}\n" in out
