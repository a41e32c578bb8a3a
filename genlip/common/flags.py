"""Flags from the fields of a frozen dataclass."""

import argparse
import json
from dataclasses import fields, replace
from functools import partial

from .suggest import unknown


def add_flags(parser, recipe) -> None:
    """One flag for every field of a recipe, its default the recipe's value. A dictionary takes `--model num_hidden_layers=6 ...`."""
    group = parser.add_argument_group(f"fields of the recipe {recipe.preset}")
    for field in fields(recipe):
        default = getattr(recipe, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "preset":
            continue
        if isinstance(default, dict):
            pair = partial(_pair, field.metadata["keys"])
            group.add_argument(flag, nargs="+", type=pair, default=[], metavar="NAME=VALUE", help=f"over the preset's {default}")
        elif isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, tuple):
            group.add_argument(flag, nargs=len(default), type=type(default[0]), default=default, metavar="X", help=f"default {default}")
        else:
            group.add_argument(
                flag, type=type(default), default=default, metavar=type(default).__name__.upper(), help=f"default {default!r}"
            )


def _pair(known: tuple[str, ...], text: str) -> tuple[str, object]:
    """`name=value`, the value as in JSON. Raises ArgumentTypeError for a field that no model has."""
    name, _, value = text.partition("=")
    if name not in known:
        raise argparse.ArgumentTypeError(unknown("model field", name, known))
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE with the value as in JSON, such as gated_attention=false") from e


def from_args(recipe, args):
    """The recipe with what the flags say."""
    values = {f.name: getattr(args, f.name) for f in fields(recipe) if f.name in vars(args) and f.name != "preset"}
    for name, value in values.items():
        default = getattr(recipe, name)
        if isinstance(default, dict):
            values[name] = default | dict(value)
        elif isinstance(default, tuple):
            values[name] = tuple(value)
    return replace(recipe, **values)
