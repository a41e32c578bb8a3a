"""What a pretraining run is: frozen dataclasses, presets as functions. Every field is a flag of `python -m genlip.train`.

The loop reads nothing but its Recipe, which is written to the run folder before step 0.
"""

from dataclasses import dataclass

# About 0.95 M encoder parameters: 64 x 64 pixels are 4 x 4 patches. Head size 32, so 6/5/5 rotary channels a side.
TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "text_embed_dim": 128,
    "drop_path_rate": 0.0,
    "mrope_section": [6, 5, 5],
}


@dataclass(frozen=True)
class Recipe:
    """One pretraining run. Lengths are in tokens, sizes in pixels a side, `warmup` is a share of `steps`."""

    preset: str
    model: dict  # GenLIPConfig fields; `vocab_size` follows the tokenizer
    data: str = ""  # tar shards: a folder, a glob, or one file
    tokenizer: str = ""  # a folder or hub id
    out: str = ""  # the run folder
    prompt: str = "Describe the image in detail."  # stage 1 of the paper
    resolution: int = 224
    row_tokens: int = 16_384  # a packed row
    rows: int = 1  # packed rows a step
    steps: int = 0
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup: float = 0.007
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01  # on all parameters, as in the released code
    clip: float = 1.0
    seed: int = 0
    workers: int = 1  # processes that decode and tokenise
    max_bad: float = 0.01  # share of unusable samples above which the run stops
    save_every: int = 500


def tiny_s1() -> Recipe:
    """Stage 1 for two cores: `genlip-tiny` on 64 x 64 pictures, a few minutes."""
    return Recipe("tiny-s1", TINY, resolution=64, row_tokens=2048, steps=1500, warmup=0.03)


PRESETS = {"tiny-s1": tiny_s1}
