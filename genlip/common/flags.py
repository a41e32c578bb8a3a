"""Flags from the fields of a frozen dataclass: each field says in its metadata what it means, what it may be, and when it counts."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import Field, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from .suggest import choose, unknown

GROUPS = ("data", "model", "optimisation", "speed", "run")  # of --help, in this order


def option(
    default: Any,
    help: str,
    group: str,
    choices: tuple[Any, ...] = (),
    keys: tuple[str, ...] = (),
    needs: tuple[Any, ...] = (),
    kind: str = "",
    least: float = 0,
    most: float | None = None,
) -> Any:
    """A field of a recipe and its flag; a number is one from `least` to `most`.

    A dictionary takes `NAME=VALUE` for the names in `keys`, and holds those in `choices`.
    `needs=("max_steps", 0)` says that the field counts only beside that value of another field, or one of several;
    `needs=("lora_rank",)`: beside any value that is not 0 or empty. `kind` is one of schema.KINDS, what a comparison makes of the field.
    """
    metadata = {"help": help, "group": group, "choices": choices, "keys": keys, "needs": needs, "kind": kind, "least": least, "most": most}
    return field(default=default, metadata=metadata)


def takes_effect(recipe: Any, f: Field[Any]) -> bool:
    """Whether a field counts beside the recipe's other ones: see `option`'s `needs`."""
    if not f.metadata["needs"]:
        return True
    other, *values = f.metadata["needs"]
    return getattr(recipe, other) in values if values else bool(getattr(recipe, other))


def flag(name: str, value: Any = None) -> str:
    """A field as it is typed: `--no-bf16`, `--betas 0.9 0.95`, `--data 'a b'`; without a value `--lora-rank`."""
    name = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return name if value else f"--no-{name[2:]}"
    if isinstance(value, dict):
        value = [f"{key}={json.dumps(each)}" for key, each in value.items()]
    words = value if isinstance(value, list | tuple) else [] if value is None else [value]
    words = [int(word) if isinstance(word, float) and word.is_integer() else word for word in words]
    return " ".join([name, *(shlex.quote(str(word)) for word in words)])


def _mend(other: str, *values: object) -> str:
    """What is typed so that a field counts that `needs` these."""
    return " or ".join(flag(other, value) for value in values) or flag(other)


def add_recipe(parser: argparse.ArgumentParser, presets: dict[str, Callable[[], Any]], argv: list[str] | None) -> dict[str, Any]:
    """A preset's name or --config, and a flag for every field; --help shows the values of the preset that `argv` names. Returns the
    groups of the help by name. What is not typed does not reach the arguments: `read_recipe` has the recipe that they change."""
    named = next((word for word in (sys.argv[1:] if argv is None else argv) if word in presets), next(iter(presets)))
    recipe = presets[named]()
    parser.usage = "%(prog)s [PRESET | --config FILE] [--flag VALUE ...]"
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    help = f"the recipe to start from: {', '.join(presets)}. Flags change its fields; the defaults here are those of {named}"
    groups["run"].add_argument("preset", nargs="?", metavar="PRESET", help=help)
    help = "start from a recipe.json, as a run folder holds it: all its fields are taken, --out too, so that run goes on; flags win"
    groups["run"].add_argument("--config", metavar="FILE", help=help)
    for f in fields(recipe):
        default, about = getattr(recipe, f.name), f.metadata
        if f.name == "preset":
            continue
        if isinstance(default, dict):
            how: dict[str, Any] = {"nargs": "+", "type": partial(_pair, about["keys"]), "metavar": "NAME=VALUE"}
        elif isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            how = {"nargs": len(default), "type": type(default[0]), "metavar": "X"}
        else:
            some = "|".join(filter(None, map(str, about["choices"]))) or type(default).__name__.upper()
            how = {"type": type(default), "choices": about["choices"] or None, "metavar": some}
        shown = flag(f.name, default) if isinstance(default, bool) else flag("", default)[3:]
        when = f"only with {_mend(*about['needs'])}; " if about["needs"] else ""
        help = f"{about['help']} ({when}default: {shown})".replace("%", "%%")
        groups[about["group"]].add_argument(flag(f.name), default=argparse.SUPPRESS, help=help, **how)
    return groups


def _pair(known: tuple[str, ...], text: str) -> tuple[str, object]:
    """`name=value`, the value as in JSON. Raises ArgumentTypeError for a field that no model has."""
    name, _, value = text.partition("=")
    if name not in known:
        raise argparse.ArgumentTypeError(unknown("model field", name, known))
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE with the value as in JSON, such as gated_attention=false") from e


def from_args(recipe: Any, args: argparse.Namespace, origin: str) -> Any:
    """The recipe, of the preset or file `origin`, with what the flags say. Raises ValueError for a flag without effect beside another.

    A command that types every field, as a report writes it, passes: a value that repeats the recipe's is let through where the field
    that overrules it is typed too, or empty.
    """
    typed = {f.name: getattr(args, f.name) for f in fields(recipe) if f.name in vars(args) and f.name != "preset"}
    for name, value in typed.items():
        before = getattr(recipe, name)
        typed[name] = before | dict(value) if isinstance(before, dict) else tuple(value) if isinstance(before, tuple) else value
    found = replace(recipe, **typed)
    for name, (other, *values) in [(f.name, f.metadata["needs"]) for f in fields(recipe) if f.name in typed and f.metadata["needs"]]:
        beside = getattr(found, other)
        repeats = typed[name] == getattr(recipe, name) and (other in typed or beside == "")
        if not repeats and not (beside in values if values else beside):
            whose = "" if other in typed else f" of {origin}"
            raise ValueError(f"{flag(name, typed[name])} has no effect beside {flag(other, beside)}{whose}: give {_mend(other, *values)}")
    check_choices(found)
    return found


def bounded(kind: type, least: float = 0, most: float | None = None) -> Callable[[str], Any]:
    """A parser's `type` for a flag of its own: a number (`int` or `float`) from `least` to `most`."""

    def read(text: str) -> Any:
        if _outside(value := kind(text), least, most):
            raise argparse.ArgumentTypeError(f"{text} is not {_range(least, most)}")
        return value

    read.__name__ = kind.__name__  # in the parser's "invalid int value"
    return read


def _outside(value: float, least: float, most: float | None) -> bool:
    """Whole numbers too that no float holds: what is computed from them would overflow."""
    return not abs(value) <= sys.float_info.max or value < least or (most is not None and value > most)  # `not`: nan


def _range(least: float, most: float | None) -> str:
    return f"a number of {least} or more" if most is None else f"a number from {least} to {most}"


def check_choices(recipe: Any) -> None:
    """Raises ValueError for a field whose value is none of its choices, or a number beyond its bounds."""
    for f in fields(recipe):
        value, choices = getattr(recipe, f.name), f.metadata["choices"]
        if f.metadata["kind"] == "name" and not str(value).isprintable():
            raise ValueError(f"{flag(f.name)} {value!r}: a name or a place holds no control characters")
        for each in value if isinstance(value, tuple) else [value]:
            number = type(each) in (int, float) and not choices
            if number and _outside(each, f.metadata["least"], f.metadata["most"]):
                raise ValueError(f"{flag(f.name)} takes {_range(f.metadata['least'], f.metadata['most'])}, not {each}")
        for each in value if isinstance(value, dict) else [value]:
            if choices and each not in choices:
                if isinstance(value, dict):
                    raise ValueError(unknown(f"name in {flag(f.name)}", each, choices))
                raise ValueError(f"{flag(f.name)} is one of {', '.join(shlex.quote(str(choice)) for choice in choices)}; not {each!r}")


def read_recipe(parser: argparse.ArgumentParser, presets: dict[str, Callable[[], Any]], args: argparse.Namespace) -> Any:
    """The recipe of a command line that `add_recipe` was given; what is wrong with it ends the command as the parser's own errors do."""
    try:
        if not args.config and not args.preset:
            raise ValueError(f"name a preset ({', '.join(presets)}), or give --config a recipe.json")
        recipe = recipe_from_file(args.config, presets) if args.config else presets[choose(args.preset, presets, "preset")]()
        if args.preset not in (None, recipe.preset):
            raise ValueError(f"{args.config} is a recipe of {recipe.preset}, not of {args.preset}: leave one of them out")
        return from_args(recipe, args, args.config or recipe.preset)
    except ValueError as e:
        parser.error(str(e))


def recipe_from_file(file: str, presets: dict[str, Callable[[], Any]]) -> Any:
    """A recipe as recipe.json holds it; what it leaves out is its preset's. Raises ValueError with file and field for all else."""
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as e:
        raise ValueError(f"--config {file} is no recipe.json: {e}") from e
    if not isinstance(values, dict) or values.get("preset") not in list(presets):
        found = repr(values["preset"]) if isinstance(values, dict) and "preset" in values else "it names none"
        raise ValueError(f"--config {file} is no recipe of this command: its preset ({found}) has to be one of {', '.join(presets)}")
    recipe = presets[values["preset"]]()
    for name, value in values.items():
        like = getattr(recipe, choose(name, [f.name for f in fields(recipe)], f"field of {file}:"))
        if isinstance(like, float | tuple) and not isinstance(value, bool):
            value = [*map(_float, value)] if isinstance(value, list) else _float(value)
        if _kinds(value) != _kinds(json.loads(json.dumps(like))):
            raise ValueError(f"{name} of {file} is {json.dumps(value)}: it takes what {json.dumps(like)} is, a value of that type")
        values[name] = like | value if isinstance(like, dict) else type(like)(value)
    return replace(recipe, **values)


def _float(value: object) -> object:
    """A whole number as a float, unless none holds it."""
    return float(value) if type(value) is int and abs(value) <= sys.float_info.max else value


def _kinds(value: object) -> list[type]:
    """The type of a value as JSON gives it, and of a list's values."""
    return [type(value), *map(type, value if isinstance(value, list) else ())]
