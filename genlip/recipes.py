"""What a pretraining run is: frozen dataclasses, presets as functions. Every field is a flag of `python -m genlip.train`.

The loop reads nothing but its Recipe, which is written to the run folder before step 0. The numbers of the presets are the paper's
(arXiv 2605.00809) and its released code's; where a preset needs one that neither gives, a comment says so.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, replace

from .common.flags import option

# 976,000 encoder parameters: 64 x 64 pixels are 4 x 4 patches. Head size 32, so 6/5/5 rotary channels a side.
TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "text_embed_dim": 128,
    "drop_path_rate": 0.0,
    # At the paper's 0.1, made for 24 layers and more, four layers leave the patches almost as they were embedded: the text reads the
    # shape out of them by itself, and an MLLM is given features that do not say it (a linear probe reads 56 % of shapes, here 87 %).
    "ls_init_value": 1.0,
    "mrope_section": [6, 5, 5],
}

B = 1_000_000_000
VOCAB_SIZE = 151_936  # Qwen3's rows in the released checkpoints; its tokenizer knows 151,669 of them
MODEL_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "text_embed_dim",
    "patch_size",
    "drop_path_rate",
    "attention_dropout",
    "ls_init_value",
    "initializer_range",
    "gated_attention",
    "num_register_tokens",
    "mrope_section",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Recipe:
    """One pretraining run."""

    preset: str = option(MISSING, "the preset that the recipe was made from", "run")
    model: dict = option(MISSING, "fields of GenLIPConfig", "model", (*MODEL_FIELDS, "vocab_size"), MODEL_FIELDS)
    data: str = option("", "PATH[@WEIGHT],...: tar or parquet shards; each PATH a folder, a glob, a file or a .txt list", "data")
    tokenizer: str = option("", "a folder or hub id; empty: the tokenizer of --init", "data")
    vocab_size: int = option(0, "rows of the word matrices; 0: the tokenizer's, rounded up to a multiple of 64", "model", most=2**24)
    out: str = option("", "the run folder: recipe, metrics, checkpoints, export", "run")
    init: str = option("", "an earlier stage's export to start from, at any resolution; empty: random weights", "model")
    prompt: str = option("Describe the image in detail.", "instruction before a caption; conversations bring their own", "data")
    image_key: str = option("image", "parquet column with the pictures (tars know them by suffix)", "data")
    text_key: str = option("caption", "JSON key or parquet column with the text: a string is a caption, a list a conversation", "data")
    resolution: int = option(
        224, "pixels per side of the square that pictures become (paper: 224)", "data", needs=("native", False), least=1, most=2**14
    )
    native: bool = option(False, "pictures keep their aspect ratio (paper: stage 2)", "data")
    min_pixels: int = option(4096, "smallest area of a picture; a smaller one is enlarged", "data", needs=("native", True), least=1)
    max_pixels: int = option(
        262_144, "largest area of a picture; a larger one is reduced", "data", needs=("native", True), least=1, most=2**28
    )
    row_tokens: int = option(16_384, "tokens per packed row (paper: 16,384)", "data", least=1, most=2**24)
    rows: int = option(
        1, "packed rows per step, over all ranks; each rank runs its share as micro-steps", "optimisation", least=1, most=2**20
    )
    max_length: int = option(4096, "tokens per sample; longer text is cut, and counted (released code: 4,096)", "data", least=1, most=2**24)
    look_ahead: int = option(
        200, "samples that wait to be packed, first fit (released code: 200); 1: in order", "data", least=1, most=2**20
    )
    max_steps: int = option(0, "optimizer steps of the run", "optimisation")
    lr: float = option(1e-3, "peak learning rate, cosine (paper: 1e-3 in stage 1, 1e-4 in stage 2)", "optimisation")
    min_lr: float = option(1e-6, "learning rate at the last step (paper: 1e-6)", "optimisation")
    warmup: float = option(0.007, "linear warm-up, a share of the steps (paper: 0.007; g/16 in stage 1: 0.02)", "optimisation", most=1)
    betas: tuple[float, float] = option((0.9, 0.95), "of AdamW (paper: 0.9 0.95)", "optimisation", most=1)
    eps: float = option(1e-8, "of AdamW (paper: 1e-8)", "optimisation")
    weight_decay: float = option(0.01, "of AdamW, on all parameters (released code: 0.01)", "optimisation")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm (paper: 1.0)", "optimisation")
    seed: int = option(0, "of the initial weights, the order of the data and drop path", "run", most=2**28)
    bf16: bool = option(False, "bf16 compute on fp32 master weights", "speed")
    parallel: str = option("ddp", "fsdp splits parameters, gradients and optimizer state over the ranks", "speed", ("ddp", "fsdp"))
    gradient_checkpointing: bool = option(False, "recompute each layer in the backward pass instead of keeping its activations", "speed")
    compile: bool = option(False, "torch.compile, layer by layer", "speed")
    attention: str = option("sdpa", "attention kernel; the maths is the same", "speed", ("sdpa", "flex_attention", "eager"))
    workers: int = option(1, "processes per rank that decode and tokenise; 0: the rank itself", "speed", most=1024)
    sample_cache_mib: int = option(128, "MiB of decoded samples that a rank keeps, for small data read epoch after epoch", "speed")
    max_bad: float = option(0.01, "share of unusable samples above which the run stops", "data", most=1)
    save_every: int = option(500, "steps from one checkpoint to the next", "run", least=1)
    keep: int = option(2, "newest checkpoints that are kept", "run", least=1)
    milestone_every: int = option(0, "checkpoints at multiples of so many steps are kept for good; 0: none", "run")
    eval_data: str = option("", "shards, as in --data: a few pictures are captioned, and a loss taken, as the run goes", "run")
    eval_every: int = option(500, "steps from one evaluation on --eval-data to the next", "run", needs=("eval_data",), least=1)
    report: str = option("none", "where the metrics go beside metrics.jsonl", "run", ("none", "tensorboard", "wandb"))
    mean_tokens: int = option(270, "expected tokens per sample, for the plan of --dry-run alone (paper: 270 and 1,200)", "run", least=1)


def steps_for(samples: int, recipe: Recipe) -> int:
    """Steps that see `samples` samples, where rows are full."""
    return round(samples * recipe.mean_tokens / (recipe.rows * recipe.row_tokens))


def _size(name: str) -> dict:
    from .configuration_genlip import PRESETS

    return PRESETS[name]


def _stage1(preset: str, size: str, samples: int = 8_000_000_000, rows: int = 512, warmup: float = 0.007, **model) -> Recipe:
    """8 epochs of Recap-DataComp-1B at 224 x 224. 512 rows are 32 GPUs x 16 rows, and hold the paper's batch of 32K samples."""
    recipe = Recipe(preset, _size(size) | model, vocab_size=VOCAB_SIZE, tokenizer="Qwen/Qwen3-0.6B", rows=rows, warmup=warmup, bf16=True)
    recipe = replace(recipe, gradient_checkpointing=True, workers=8, milestone_every=20_000)
    return replace(recipe, max_steps=steps_for(samples, recipe))


def _stage2(preset: str, size: str, stage1: str) -> Recipe:
    """One epoch of BLIP3o-Long-Caption (27M) and Infinity-MM stage 1 (10M), native shapes. 256 rows hold the batch of 3.6K samples."""
    recipe = replace(_stage1(preset, size), init=f"runs/{stage1}/export", text_key="conversations", native=True, lr=1e-4)
    recipe = replace(recipe, rows=256, mean_tokens=1200, milestone_every=2000)
    return replace(recipe, max_steps=steps_for(37_000_000, recipe))


def tiny_s1() -> Recipe:
    """Stage 1 for two cores: `genlip-tiny` on 64 x 64 pictures, a few minutes.

    Many small steps: a linear probe on the patches reads 96 % of easy-VQA's shapes, against 89 % after the time in rows twice as long.
    """
    return Recipe("tiny-s1", TINY, resolution=64, row_tokens=1024, max_steps=2200, warmup=0.03, look_ahead=1)


def tiny_s2() -> Recipe:
    """Stage 2 for two cores, from `tiny-s1`'s export: pictures in their own shape, 16 to 64 patches each."""
    recipe = replace(tiny_s1(), preset="tiny-s2", init="runs/tiny-s1/export", text_key="conversations", native=True)
    return replace(recipe, max_pixels=16_384, row_tokens=2048, look_ahead=50, max_steps=300, lr=1e-4)


def captions32() -> Recipe:
    """A proof on real input: 32 web photos and the real vocabulary of 151,936 words, from random weights to word for word.

    A text width of 64 keeps the two word matrices cheap on two cores. The init is 1 / sqrt(width): the paper's 0.02, made for widths
    of 1,024 and more, enters words of width 64 at 0.003 beside patches of 0.5, and after 150 steps the loss stood at 4.5, not at 0.04.
    """
    model = TINY | {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "text_embed_dim": 64}
    model |= {"initializer_range": 0.0625}
    recipe = Recipe("captions-32", model, vocab_size=VOCAB_SIZE, resolution=96, row_tokens=400, max_steps=300, lr=2e-3, warmup=0.05)
    return replace(recipe, look_ahead=1, betas=(0.9, 0.99), weight_decay=0.0, save_every=100)


def _larger(preset: str, resolution: int) -> Recipe:
    """So/16's stage 1 over 1B samples at another resolution; the text keeps its 74 tokens."""
    recipe = _stage1(preset, "genlip-so16")
    recipe = replace(recipe, resolution=resolution, mean_tokens=recipe.mean_tokens + (resolution // 16) ** 2 - 196)
    return replace(recipe, max_steps=steps_for(B, recipe))


PRESETS: dict[str, Callable[[], Recipe]] = {
    "l16-s1": lambda: _stage1("l16-s1", "genlip-l16"),
    "so16-s1": lambda: _stage1("so16-s1", "genlip-so16"),
    "g16-s1": lambda: _stage1("g16-s1", "genlip-g16", rows=768, warmup=0.02),  # 48K samples per batch
    "l16-s2": lambda: _stage2("l16-s2", "genlip-l16", "l16-s1"),
    "so16-s2": lambda: _stage2("so16-s2", "genlip-so16", "so16-s1"),
    "g16-s2": lambda: _stage2("g16-s2", "genlip-g16", "g16-s1"),
    # Ablations of So/16: registers against the gate at 1B samples, and the scales of stage 1 (whose exports are "stage 1 only").
    "so16-s1-1b": lambda: _stage1("so16-s1-1b", "genlip-so16", B),
    "so16-s1-2b": lambda: _stage1("so16-s1-2b", "genlip-so16", 2 * B),
    "so16-s1-4b": lambda: _stage1("so16-s1-4b", "genlip-so16", 4 * B),
    "so16-s1-nogate": lambda: _stage1("so16-s1-nogate", "genlip-so16", B, gated_attention=False),
    "so16-s1-reg1": lambda: _stage1("so16-s1-reg1", "genlip-so16", B, gated_attention=False, num_register_tokens=1),
    "so16-s1-reg4": lambda: _stage1("so16-s1-reg4", "genlip-so16", B, gated_attention=False, num_register_tokens=4),
    # Stage 1 at 384 x 384: 576 patches instead of 196; the size is that of the frozen evaluation.
    "so16-s1-384": lambda: _larger("so16-s1-384", 384),
    "tiny-s1": tiny_s1,
    "tiny-s2": tiny_s2,
    "captions-32": captions32,
}
LAPTOP = ("tiny-s1", "tiny-s2", "captions-32")  # made for a CPU: a dry run plans one process
