"""The throughput command: the real trainer on random weights; what it counts is what was trained on; what it cannot measure it says."""

import json
import re
from dataclasses import replace

import pytest
import torch

from benchmarks import finetuning
from train_mllm.packing import Collator, packed, padded
from train_mllm.recipes import PRESETS
from train_mllm.setup import resolve

FLAGS = ["--no-cache-features", "--no-standardise", "--turns", "dialogue", "--scale", "16", "--workers", "0", "--accumulation", "2"]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def cells(out: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize(
    "flags", [["--train-encoder", "--gradient-checkpointing"], ["--batching", "padded"], ["--batching", "tokens", "--batch-tokens", "400"]]
)
def test_steps_are_trained_and_counted(llama_tiny, capsys, flags):
    assert finetuning.main(["tiny-sft", "--llm", str(llama_tiny), "--steps", "3", *FLAGS, *flags]) == 0
    out = capsys.readouterr().out
    found = cells(out)
    per_second, seconds = (float(found[name][0].replace(",", "")) for name in ("tokens/s", "seconds per step"))
    assert per_second > 0 and seconds > 0
    lengths = sorted(len(row.ids) for row in finetuning.conversations(3 * 4 * 2, 16, 16, 511, 0))
    if "tokens" not in flags:
        assert f"24 conversations of {lengths[0]} to {lengths[-1]} tokens" in out and "2 steps of 2 micro-steps" in out
        largest = int(re.search(r"the largest of ([\d,]+) tokens", out)[1].replace(",", ""))
        assert max(lengths) < largest <= sum(lengths[-4:])
    if not torch.cuda.is_available():
        assert found["MFU"][0] == "-" and all(row[0] == "-" for name, row in found.items() if "memory" in name)


def test_the_mix_keeps_its_median_and_every_conversation_its_picture():
    rows = finetuning.conversations(4000, 1, 576, 9, seed=0)
    lengths = sorted(len(row.ids) for row in rows)
    assert abs(lengths[2000] / 700 - 1) < 0.05 and abs(lengths[3800] / 2500 - 1) < 0.1 and lengths[0] == 576 + finetuning.TEXT
    for row in rows[:50]:
        assert row.ids.count(9) == 576 and len(row.ids) == len(row.labels) == len(row.positions)
        supervised = [i for i, label in zip(row.ids, row.labels) if label != -100]
        assert len(supervised) == (len(row.ids) - 576) // 2 and 9 not in supervised


@pytest.mark.parametrize("make", [packed, lambda rows: padded(rows, 0)])
def test_lengths_are_read_off_a_batch(make):
    rows = finetuning.conversations(5, 8, 16, 99, seed=1)
    assert finetuning.lengths_of(make(rows)) == [len(row.ids) for row in rows]


@pytest.mark.parametrize(("train_encoder", "lora"), [(False, 0), (True, 0), (False, 4)])
def test_flop_are_those_of_the_shapes(llama_tiny, train_encoder, lora):
    """Llama-tiny: 2 layers, width 128, 256 in the MLP, 4 heads; genlip-tiny: 4 layers, width 128, 352 in the MLP, gated, 16 patches."""
    from train_mllm.model import freeze_parts, prepare_for_training

    recipe = replace(PRESETS["tiny-sft"](), llm=str(llama_tiny), train_encoder=train_encoder, lora_rank=lora)
    model = finetuning.random_mllm(resolve(recipe, 1), torch.float32, "cpu")
    freeze_parts(model, recipe)
    prepare_for_training(model, resolve(recipe, 1), torch.float32, False, False)
    lengths, supervised, pictures = [50, 70], 30, 2
    words = model.config.text_config.vocab_size
    linear, rank = 2 * (4 * 128**2 + 3 * 128 * 256), lora * 2 * (4 * 256 + 3 * 384)
    language = (4 if lora else 6) * (120 * linear + supervised * words * 128) + 6 * 120 * rank + 6 * 2 * 128 * (50**2 + 70**2)
    encoder = 2 * (4 * (5 * 128**2 + 3 * 128 * 352) + 768 * 128) * 32 + 4 * 4 * 128 * 16 * 32
    projector = (6 if train_encoder else 4) * 2 * 128**2 * 32
    assert finetuning.flops(model, recipe, lengths, supervised, pictures) == language + encoder * (3 if train_encoder else 1) + projector


@pytest.mark.parametrize("preset", ["sft-qwen1.5b-frozen", "sft-qwen7b-unfrozen"])
def test_the_papers_models_have_the_sizes_of_the_plan(preset):
    """Without memory: the shapes that a GPU would hold, and what learns in fp32 beside bf16."""
    from train_mllm.model import freeze_parts, prepare_for_training

    recipe = PRESETS[preset]()
    model = finetuning.random_mllm(resolve(recipe, 1), torch.bfloat16, "meta")
    freeze_parts(model, recipe)
    prepare_for_training(model, resolve(recipe, 1), torch.bfloat16, False, False)
    counted = resolve(recipe, 1).parts
    learning = [p for p in model.parameters() if p.requires_grad]
    assert (counted.total, counted.trained) == (model.num_parameters(), sum(p.numel() for p in learning))
    assert {p.dtype for p in learning} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == (set() if recipe.train_encoder else {torch.bfloat16})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "1"], "--steps must be at least 2"),
        (["--cache-features"], "--no-cache-features"),
        (["--encoder", "siglip2-so16-384"], "not known without its folder; those of genlip-l16, genlip-so16, genlip-g16"),
        (["--llm", "nowhere"], "no language model nowhere"),
    ],
)
def test_what_cannot_be_measured_is_said(capsys, flags, message):
    assert finetuning.main(["tiny-sft", *FLAGS, *flags]) == 2
    assert message in capsys.readouterr().err


# --- on a GPU ---------------------------------------------------------------------------------------------------------------


@NEEDS_GPU
@pytest.mark.parametrize("way", ["packed", "padded", "flash"])
def test_batches_on_a_gpu_equal_one_by_one(way, tmp_path):
    """bf16 on fp32 weights, Qwen's heads (128 wide, grouped): the loss within bf16's rounding, the gradients in direction and size."""
    from accelerate.utils import send_to_device

    from llava_plugin import mllm
    from train_mllm.packing import use_packed_attention

    config = {"model_type": "qwen2", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "vocab_size": 2048}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4, "num_key_value_heads": 2}))
    recipe = replace(PRESETS["tiny-sft"](), llm=str(tmp_path), encoder="genlip-tiny")
    model = finetuning.random_mllm(resolve(recipe, 1), torch.float32, "cuda").cuda()
    assert isinstance(model, mllm.LlavaForConditionalGeneration)
    tower = model.model.vision_tower.freeze()
    drawn = finetuning.SyntheticConversations(finetuning.conversations(6, 2, 16, model.config.image_token_id, seed=0))
    samples = [drawn[i] for i in range(len(drawn))]
    supervised = sum(label != -100 for sample in samples for label in sample["row"].labels)

    def learnt(batches):
        model.zero_grad()
        total = 0.0
        for batch in batches:
            on_gpu = send_to_device(batch, "cuda")
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**on_gpu, num_items_in_batch=supervised).loss
            loss.backward()
            total += loss.item()
        return total, {n: p.grad.flatten() for n, p in model.named_parameters() if p.grad is not None}

    alone, gradients = learnt([Collator(tower, model.config, padded=True)([sample]) for sample in samples])
    if way != "padded":
        use_packed_attention(model, flash=way == "flash")
    together, found = learnt([Collator(tower, model.config, padded=way == "padded", flash=way == "flash")(samples)])
    assert together == pytest.approx(alone, rel=2e-3)
    for name, gradient in gradients.items():
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert difference < 0.05, f"{name}: {difference:.3f}"


@NEEDS_GPU
def test_a_gpu_is_measured(llama_tiny, capsys):
    assert finetuning.main(["tiny-sft", "--llm", str(llama_tiny), "--steps", "3", "--bf16", *FLAGS]) == 0
    found = cells(capsys.readouterr().out)
    assert all(row[0].endswith(" GB") for name, row in found.items() if "memory" in name or "of it" in name)
