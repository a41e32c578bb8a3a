"""What a pretraining run is: frozen dataclasses, presets as functions. Every field is a flag of `python -m genlip.train`.

The loop reads nothing but its Recipe, which is written to the run folder before step 0.
"""

import argparse
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

# About 0.95 M encoder parameters: 64 x 64 pixels are 4 x 4 patches. Head size 32, so 6/5/5 rotary channels a side.
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


def add_flags(parser, recipe) -> None:
    """One flag for every field of a recipe, its default the recipe's value. Dictionaries (the model) come from the preset alone."""
    group = parser.add_argument_group(f"fields of the recipe {recipe.preset}")
    for field in fields(recipe):
        default = getattr(recipe, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "preset" or isinstance(default, dict):
            continue
        if isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, tuple):
            group.add_argument(flag, nargs=len(default), type=type(default[0]), default=default, metavar="X", help=f"default {default}")
        else:
            group.add_argument(
                flag, type=type(default), default=default, metavar=type(default).__name__.upper(), help=f"default {default!r}"
            )


def from_args(recipe, args):
    """The recipe with what the flags say."""
    values = {f.name: getattr(args, f.name) for f in fields(recipe) if f.name in vars(args) and f.name != "preset"}
    return replace(recipe, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def claim_run_folder(recipe) -> Path:
    """Write recipe.json into the run folder before step 0, or check that the run there is of this very recipe.

    Raises ValueError with the fields that differ: a run goes on only as it began.
    """
    folder = Path(recipe.out)
    file = folder / "recipe.json"
    mine = json.loads(json.dumps(asdict(recipe)))
    if file.is_file():
        theirs = json.loads(file.read_text())
        keys = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        if keys:
            changes = "; ".join(f"{k}: {theirs.get(k)!r} there, {mine.get(k)!r} asked" for k in keys)
            raise ValueError(f"{folder} holds a run of another recipe ({changes}). Give another --out, or remove that folder")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json.part").write_text(json.dumps(mine, indent=1) + "\n")
    (folder / "recipe.json.part").replace(file)
    return folder
