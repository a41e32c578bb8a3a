"""What a fine-tuning run is: a frozen dataclass, presets as functions. Every field is a flag of `python -m train_mllm.train`.

The paper says: LLaVA-NeXT's settings, Qwen2.5-1.5B/7B-Instruct, a 2-layer GELU projector, a projector stage, then SFT on LLaVA-
OneVision's single-image data; frozen means the encoder is frozen in both stages, 576 tokens, no anyres. Where it is silent the
numbers are those of LLaVA-NeXT's published scripts (finetune_ov.sh and its projector stage), one epoch over the mix.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """One stage of fine-tuning. `batch` is conversations a device and micro-step; `warmup` is a share of the steps."""

    preset: str
    stage: str = "sft"  # "projector": only the projector learns; "sft": the language model too
    encoder: str = "genlip-g16"
    llm: str = "Qwen/Qwen2.5-7B-Instruct"
    projector: str = "mlp2x_gelu"  # or "linear", or "pixel_shuffle": 2 x 2 visual tokens to one
    data: str = ""  # LLaVA or OpenAI JSON, parquet, a YAML mix, or a folder made by train_mllm.prepare_data
    images: str = ""  # the folder that the JSON's picture paths start from
    out: str = ""  # the run folder
    init: str = ""  # an earlier stage's export to start from: its projector, and its language model if that learnt too
    backend: str = "native"  # "llava_next": SFT in the user's own LLaVA-NeXT checkout (see train_mllm/llava_next.py)
    train_encoder: bool = False
    resolution: int = 0  # pixels a side; 0: the encoder's own (24 x 24 tokens for the released ones)
    turns: str = "dialogue"  # "independent": each turn sees the picture and itself alone, packed in one row without loss
    max_length: int = 32_768  # tokens; longer conversations are cut at a turn's border
    epochs: float = 1.0
    max_steps: int = 0  # 0: as many as `epochs` says
    batch: int = 1
    accumulation: int = 1
    global_batch: int = 0  # conversations a step, all processes together; not 0: accumulation follows from it
    batching: str = "batch"  # "tokens": packed up to batch_tokens; "padded": `batch` conversations of like length, padded
    batch_tokens: int = 16_384
    lr: float = 1e-5
    encoder_lr: float = 2e-6  # of an encoder that is trained
    weight_decay: float = 0.0
    warmup: float = 0.03
    clip: float = 1.0
    lora_rank: int = 0  # not 0: the language model learns by LoRA adapters of this rank, merged into the export
    lora_alpha: int = 0  # 0: twice the rank
    zero: int = -1  # DeepSpeed's ZeRO stage, 0 for none; -1: the least that fits (see --dry-run)
    bf16: bool = True
    gradient_checkpointing: bool = True
    cache_features: bool = False  # compute a frozen encoder's features once, keep them under the data folder
    standardise: bool = False  # of cached features, while the projector learns; folded into its first layer at the end
    workers: int = 1
    report: str = "none"  # "tensorboard" or "wandb", beside metrics.jsonl
    save_every: int = 500
    max_bad: float = 0.01  # share of unusable conversations above which nothing is trained
    seed: int = 0


def projector() -> Recipe:
    """LLaVA-NeXT's first stage: 558K picture-caption pairs, lr 1e-3, batch 16 a GPU, length 8192. Its number of GPUs is not published:
    256 pairs a step here, as in SFT."""
    return Recipe("projector", stage="projector", lr=1e-3, batch=16, global_batch=256, max_length=8192, workers=4)


def sft_qwen7b_frozen() -> Recipe:
    """Tables 3 and 4 of the paper. Global batch 256: on 8 GPUs 4 x 8 accumulated. One conversation at a time, as LLaVA-NeXT has it, is
    too little work for a GPU: starting the kernels takes longer than they do."""
    return Recipe("sft-qwen7b-frozen", batch=4, global_batch=256, workers=4)


def sft_qwen1_5b_frozen() -> Recipe:
    """One H100 does 2.2 times as many tokens a second at 16 conversations as at 4."""
    return replace(sft_qwen7b_frozen(), preset="sft-qwen1.5b-frozen", llm="Qwen/Qwen2.5-1.5B-Instruct", batch=16)


def sft_qwen7b_unfrozen() -> Recipe:
    """No anyres: not the setting of the paper's unfrozen table."""
    return replace(sft_qwen7b_frozen(), preset="sft-qwen7b-unfrozen", train_encoder=True)


def sft_qwen1_5b_unfrozen() -> Recipe:
    return replace(sft_qwen1_5b_frozen(), preset="sft-qwen1.5b-unfrozen", train_encoder=True, batch=4)


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
    for make in (projector, sft_qwen7b_frozen, sft_qwen1_5b_frozen, sft_qwen7b_unfrozen, sft_qwen1_5b_unfrozen, tiny_sft)
}


def chosen_preset(argv: list[str] | None) -> Callable[[], Recipe]:
    """The preset that a command line names, read before its parser is made, whose flags follow from it; where it names none that exists,
    tiny-sft: the parser says that."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("preset", nargs="?", default="tiny-sft")
    return PRESETS.get(first.parse_known_args(argv)[0].preset, PRESETS["tiny-sft"])
