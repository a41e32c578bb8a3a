"""What a recipe costs, before it runs: parameters, tokens, memory per GPU, days. `python -m genlip.train so16-s1 --dry-run`.

FLOP are those of the model, as MFU counts them: 6 per weight and token (forward and backward), the head on supervised tokens alone,
12 n^2 D a layer for the attention of a sample of n tokens; what activation checkpointing computes twice is not counted.
"""

from typing import NamedTuple

from .common.hardware import PEAK_BF16
from .recipes import Recipe


def step_flops(config, tokens: int, squares: int, supervised: int) -> float:
    """FLOP of a step over `tokens`, where `squares` is the sum of the samples' squared lengths."""
    width, text, layers = config.hidden_size, config.text_embed_dim, config.num_hidden_layers
    attention = (5 if config.gated_attention else 4) * width**2
    joined = 2 * width * text if text != width else 0
    per_token = layers * (attention + 3 * width * config.intermediate_size)
    return 6.0 * per_token * tokens + 6.0 * (config.vocab_size * text + joined) * supervised + 12.0 * layers * width * squares


class MemoryEstimate(NamedTuple):
    """Bytes per GPU; their sum is the peak."""

    states: float  # fp32 weights, gradients and two moments
    activations: float  # what is kept of a row
    logits: float  # the head's, and their gradient, with the layer that FSDP gathers


def memory(recipe: Recipe, config, parameters: int, supervised: float, gpus: int) -> MemoryEstimate:
    """Of training, where a share `supervised` of the tokens has a label."""
    from .modeling_genlip import MAX_LOGITS

    shared = gpus if recipe.parallel == "fsdp" else 1
    size = 2 if recipe.bf16 else 4
    layer = recipe.row_tokens * (14 * config.hidden_size + 4 * config.intermediate_size) * size
    kept = config.num_hidden_layers * (recipe.row_tokens * config.hidden_size * size if recipe.gradient_checkpointing else layer)
    held = min(MAX_LOGITS, round(recipe.row_tokens * supervised) * config.vocab_size)
    logits = (6 if recipe.bf16 else 4) * held + 4 * config.vocab_size * config.text_embed_dim
    half = 2 * parameters / config.num_hidden_layers if recipe.parallel == "fsdp" else 0
    return MemoryEstimate(16 * parameters / shared, kept + layer, logits + half)


def estimate(recipe: Recipe, vocab_size: int, gpus: int, mfu: float, peak: float = PEAK_BF16["H100"]) -> list[str]:
    """Lines of plain text; without GPUs, of one process on a CPU. The model is built without memory."""
    import torch

    from .configuration_genlip import GenLIPConfig
    from .modeling_genlip import GenLIPForPretraining, GenLIPVisionModel

    config = GenLIPConfig(**recipe.model | {"vocab_size": vocab_size})
    with torch.device("meta"):
        whole = sum(p.numel() for p in GenLIPForPretraining(config).parameters())
        encoder = sum(p.numel() for p in GenLIPVisionModel(config).parameters())
    tokens = recipe.rows * recipe.row_tokens
    samples = tokens / recipe.mean_tokens
    patches = (recipe.resolution // config.patch_size) ** 2
    words = 0.7 * recipe.mean_tokens if recipe.native else max(recipe.mean_tokens - patches, 1)
    flops = step_flops(config, tokens, round(samples * recipe.mean_tokens**2), round(samples * words))
    where = "not planned on a CPU; --gpus 1 plans it on an H100"
    if gpus:
        days = recipe.max_steps * flops / (gpus * mfu * peak) / 86_400
        where = f"{days:,.2f} days on {gpus} GPU(s) at {mfu:.0%} of {peak / 1e12:,.0f} TFLOP/s"

    planned = memory(recipe, config, whole, words / recipe.mean_tokens, gpus or 1)
    gib = 2**30
    uneven = [f"note         {recipe.rows} rows do not split over {gpus} GPUs: change --rows"] if gpus and recipe.rows % gpus else []
    return [
        f"parameters   {whole:,} in all, {encoder:,} of the encoder",
        f"steps        {recipe.max_steps:,} of {recipe.rows} rows x {recipe.row_tokens:,} tokens",
        f"tokens       {tokens:,} per step, {tokens * recipe.max_steps:,} in all",
        f"samples      about {samples:,.0f} per step, {samples * recipe.max_steps:,.0f} in all (at {recipe.mean_tokens} tokens each)",
        f"memory       about {sum(planned) / gib:.1f} GiB per {'GPU' if gpus else 'process'}: "
        f"{planned.states / gib:.1f} weights, gradients and moments, "
        f"{planned.activations / gib:.1f} activations, {planned.logits / gib:.1f} logits",
        f"time         {where} ({flops * recipe.max_steps:.3g} FLOP)",
        *uneven,
    ]
