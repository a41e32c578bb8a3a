"""What a fine-tuning run is: a frozen dataclass, presets as functions. Every field is a flag of `python -m train_mllm.train`.

The paper says: LLaVA-NeXT's settings, Qwen2.5-1.5B/7B-Instruct, a 2-layer GELU projector, a projector stage, then SFT on LLaVA-
OneVision's single-image data; frozen means the encoder is frozen in both stages, 576 tokens, no anyres. Where it is silent the
numbers are those of LLaVA-NeXT's published scripts (finetune_ov.sh and its projector stage), one epoch over the mix.
"""

from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from genlip.common.flags import option, takes_effect
from llava_plugin.projectors import PROJECTORS


@dataclass(frozen=True)
class Recipe:
    """One stage of fine-tuning."""

    preset: str = option(MISSING, "the preset that the recipe was made from", "run", kind="name")
    stage: str = option(
        "sft", "what learns: the projector alone, or in SFT the language model too", "model", ("projector", "sft"), kind="derived"
    )
    encoder: str = option(
        "genlip-g16", "encoder key, FOLDER_OR_HUB_ID or NAME=FOLDER: see python -m llava_plugin.encoders", "model", kind="name"
    )
    llm: str = option("Qwen/Qwen2.5-7B-Instruct", "language model: a name under weights/, a folder or hub id", "model", kind="name")
    projector: str = option(
        "mlp2x_gelu", "features to embeddings (mlp2x_gelu: the paper; pixel_shuffle: 4 to 1)", "model", tuple(PROJECTORS), kind="derived"
    )
    data: str = option("", "LLaVA or OpenAI JSON, parquet, a YAML mix, or a folder made by train_mllm.prepare_data", "data", kind="name")
    images: str = option("", "the folder that picture paths start from; empty: the data's own", "data", kind="name")
    out: str = option("", "the run folder: recipe, data, metrics, checkpoints, export", "run", kind="name")
    init: str = option(
        "", "an earlier stage's export to start from: its projector, and its language model if that was trained", "model", kind="name"
    )
    backend: str = option("native", "llava_next: SFT in your own LLaVA-NeXT checkout", "run", ("native", "llava_next"), kind="compared")
    train_encoder: bool = option(False, "the encoder is trained, too", "model", kind="derived")
    resolution: int = option(
        0, "pixels per side of a picture; 0: the encoder's own (paper: what gives 24 x 24 tokens)", "data", kind="derived", most=2**14
    )
    view: str = option(
        "square",
        "what the encoder sees: square (the whole), crop (its own processor's), anyres or anyres_max_N (LLaVA-NeXT's tiles), native or "
        "native_N (at the picture's own aspect ratio, at most N tokens)",
        "data",
        kind="derived",
    )
    feature_layer: int = option(
        -1, "the encoder's block that is read: -1, the last (the paper), or -2 (LLaVA-NeXT)", "model", (-1, -2), kind="derived"
    )
    pinpoints: str = option(
        "",
        "grids of anyres: sizes in pixels [[336, 672], ...], or (1x1),...,(3x3) in tiles; empty: LLaVA-NeXT's five, up to 2 x 2",
        "data",
        kind="derived",
    )
    turns: str = option(
        "dialogue", "independent: a turn sees the picture and itself alone", "data", ("dialogue", "independent"), kind="compared"
    )
    max_length: int = option(
        32_768, "tokens per conversation; a longer one is cut at the end of a turn", "data", kind="compared", least=1, most=2**24
    )
    epochs: float = option(1.0, "passes over the data", "optimisation", needs=("max_steps", 0), kind="compared")
    max_steps: int = option(0, "optimizer steps; 0: as many as --epochs says", "optimisation", kind="compared")
    batch: int = option(
        1,
        "conversations per GPU and micro-step",
        "optimisation",
        needs=("batching", "batch", "padded"),
        kind="derived",
        least=1,
        most=2**20,
    )
    accumulation: int = option(1, "micro-steps per optimizer step", "optimisation", needs=("global_batch", 0), kind="derived", least=1)
    global_batch: int = option(0, "conversations per step on all GPUs; 0: --batch x GPUs x --accumulation", "optimisation", kind="derived")
    batching: str = option(
        "batch", "packed by --batch, packed by --batch-tokens, or padded", "speed", ("batch", "tokens", "padded"), kind="compared"
    )
    batch_tokens: int = option(
        16_384, "tokens per GPU and micro-step", "optimisation", needs=("batching", "tokens"), kind="compared", least=1, most=2**24
    )
    lr: float = option(
        1e-5, "peak learning rate, cosine (LLaVA-NeXT: 1e-3 for the projector, 1e-5 in SFT)", "optimisation", kind="compared"
    )
    encoder_lr: float = option(2e-6, "the encoder's (LLaVA-NeXT: 2e-6)", "optimisation", needs=("train_encoder", True), kind="compared")
    weight_decay: float = option(0.0, "of AdamW (LLaVA-NeXT: 0)", "optimisation", kind="compared")
    warmup: float = option(0.03, "linear warm-up, a share of the steps (LLaVA-NeXT: 0.03)", "optimisation", kind="compared", most=1)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", "optimisation", kind="compared")
    lora_rank: int = option(
        0, "rank of LoRA adapters, merged into the export; 0: the language model itself is trained", "model", kind="compared", most=2**14
    )
    lora_alpha: int = option(0, "scale of the adapters; 0: twice the rank", "model", needs=("lora_rank",), kind="compared")
    zero: int = option(
        -1, "DeepSpeed's ZeRO stage; 0: none, -1: the least that fits (see --dry-run)", "speed", (-1, 0, 2, 3), kind="environment"
    )
    bf16: bool = option(True, "bf16 compute on a GPU", "speed", kind="compared")
    gradient_checkpointing: bool = option(
        True, "recompute each layer in the backward pass: less memory, more time", "speed", kind="environment"
    )
    cache_features: bool = option(
        False, "compute a frozen encoder's features once, keep them; not with --train-encoder", "speed", kind="environment"
    )
    standardise: bool = option(
        False, "cached features at mean 0, standard deviation 1; folded into mlp2x_gelu at the end", "optimisation", kind="compared"
    )
    workers: int = option(
        1, "processes per GPU that decode and tokenise; 0: the training process itself", "speed", kind="environment", most=1024
    )
    report: str = option("none", "where the metrics go beside metrics.jsonl", "run", ("none", "tensorboard", "wandb"), kind="environment")
    save_every: int = option(500, "steps from one checkpoint to the next", "run", kind="environment", least=1)
    max_bad: float = option(0.01, "share of unusable conversations above which nothing is trained", "data", kind="environment", most=1)
    accept_mix: bool = option(False, "take a mix whose data give over 1 % more or fewer rows than it says", "data", kind="environment")
    seed: int = option(0, "of the new weights and the order of the data", "run", kind="seed", most=2**32 - 1)


def seen_as(recipe: Recipe) -> str:
    """The recipe's view in one string, as llava_plugin/views.py reads it."""
    return f"{recipe.view} {recipe.pinpoints}".strip()


def protocol(recipe: Recipe, processes: int, accumulation: int, on_gpu: bool) -> dict[str, Any]:
    """What of the recipe decides what is learned, by the fields' own `kind`, as it took effect; `per_step` is what a step learns from, on
    however many GPUs."""
    facts = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.metadata["kind"] == "compared" and takes_effect(recipe, f)}
    facts["bf16"] = recipe.bf16 and on_gpu
    if recipe.lora_rank:
        facts["lora_alpha"] = recipe.lora_alpha or 2 * recipe.lora_rank
    if recipe.batching == "padded":  # of so many a row of like length is made
        facts["batch"] = recipe.batch
    return facts | {"per_step": per_step(recipe, processes, accumulation)}


def per_step(recipe: Recipe, processes: int, accumulation: int) -> str:
    """What a step learns from, all processes together."""
    size = recipe.batch_tokens if recipe.batching == "tokens" else recipe.batch
    unit = "tokens" if recipe.batching == "tokens" and not recipe.global_batch else "conversations"
    return f"{recipe.global_batch or size * processes * accumulation} {unit}"


def projector() -> Recipe:
    """LLaVA-NeXT's first stage: 558K picture-caption pairs, lr 1e-3, batch 16 a GPU, length 8192. Its number of GPUs is not published:
    256 pairs per step here, as in SFT."""
    return Recipe("projector", stage="projector", lr=1e-3, batch=16, global_batch=256, max_length=8192, workers=4)


def sft_qwen7b_frozen() -> Recipe:
    """Tables 3 and 4 of the paper. Global batch 256: on 8 GPUs 4 x 8 accumulated. One conversation at a time, as LLaVA-NeXT has it, is
    too little work for a GPU: starting the kernels takes longer than they do."""
    return Recipe("sft-qwen7b-frozen", batch=4, global_batch=256, workers=4)


def sft_qwen1_5b_frozen() -> Recipe:
    """One H100 does 2.2 times as many tokens per second at 16 conversations as at 4."""
    return replace(sft_qwen7b_frozen(), preset="sft-qwen1.5b-frozen", llm="Qwen/Qwen2.5-1.5B-Instruct", batch=16)


def sft_qwen7b_unfrozen() -> Recipe:
    """No anyres: not the setting of the paper's unfrozen table."""
    return replace(sft_qwen7b_frozen(), preset="sft-qwen7b-unfrozen", train_encoder=True)


def sft_qwen1_5b_unfrozen() -> Recipe:
    return replace(sft_qwen1_5b_frozen(), preset="sft-qwen1.5b-unfrozen", train_encoder=True, batch=4)


def sft_qwen7b_unfrozen_anyres() -> Recipe:
    """The paper's unfrozen table: LLaVA-NeXT's tiles, up to 2 x 2 and the whole, 780K conversations. Batch and rates are those of the
    public script of its baselines, which reads at --feature-layer -2; the paper says the final block."""
    preset = "sft-qwen7b-unfrozen-anyres"
    return replace(sft_qwen7b_unfrozen(), preset=preset, view="anyres", batch=2, global_batch=128, lr=1e-5, encoder_lr=2e-6)


def sft_qwen1_5b_unfrozen_anyres() -> Recipe:
    llm = "Qwen/Qwen2.5-1.5B-Instruct"
    return replace(sft_qwen7b_unfrozen_anyres(), preset="sft-qwen1.5b-unfrozen-anyres", llm=llm, batch=4)


def tiny_sft() -> Recipe:
    """A language model of a third of a million parameters from scratch, on two cores: so it takes a pretraining's learning rate."""
    return Recipe(
        "tiny-sft",
        encoder="genlip-tiny",
        llm="llama-tiny",
        turns="independent",
        max_length=2048,
        max_steps=5000,
        batch=4,
        lr=1e-3,
        bf16=False,
        gradient_checkpointing=False,
        cache_features=True,
        standardise=True,
    )


PRESETS = {
    make().preset: make
    for make in (
        projector,
        sft_qwen7b_frozen,
        sft_qwen1_5b_frozen,
        sft_qwen7b_unfrozen,
        sft_qwen1_5b_unfrozen,
        sft_qwen7b_unfrozen_anyres,
        sft_qwen1_5b_unfrozen_anyres,
        tiny_sft,
    )
}
LAPTOP = ("tiny-sft",)  # made for a CPU: a dry run plans one process
