"""A run folder belongs to one recipe and to what that was resolved to: recipe.json and run.json are written before step 0 and held against
every later start."""

import json
import os
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from .files import read_json, write_json
from .flags import flag
from .schema import RunRecord, read, write

# Fields of recipes that an earlier version named otherwise.
RENAMED = {
    "steps": "max_steps",
    "max_tokens": "max_length",
    "vocabulary": "vocab_size",
    "clip": "max_grad_norm",
    "checkpoint_layers": "gradient_checkpointing",
    "kept_mib": "sample_cache_mib",
    "held_out": "eval_data",
    "look_every": "eval_every",
    "tracker": "report",
}
BEFORE_RENAMED = "456f7d2"  # the last commit that knows the old names
BEFORE_RECORDED = "2365cec"  # the last that knows the new ones and writes no run.json
# What a run was pinned to -> in words, and the field that says where it lies. In this order: what stands first explains the rest.
PINNED = {
    "dtype": ("weights in", None),
    "init_digest": ("the export of the earlier stage", "init"),
    "encoder_digest": ("the encoder's weights", "encoder_source"),
    "encoder_config": ("the encoder's config", "encoder_source"),
    "preprocessing": ("the encoder's preprocessing", "encoder_source"),
    "llm_digest": ("the language model's weights", "llm_source"),
    "head_digest": ("the language model's output layer", "llm_source"),
    "llm_config": ("the language model's config", "llm_source"),
    "tokenizer_digest": ("the tokenizer", "tokenizer_source"),
    "chat_template": ("the chat template", "tokenizer_source"),
    "data_digest": ("the data", "data"),
}


def claim_run_folder(recipe: Any, accept_changes: bool | None = None) -> Path:
    """Write recipe.json into the run folder before step 0, or check that the run there is of this very recipe.

    Raises ValueError with the fields that differ: a run goes on only as it began, unless the changes are accepted
    (None: the command has no --accept-changes). One that an earlier version began is refused with the commit that finishes it; where it is
    finished, its recipe may mean the same under other names.
    """
    folder = Path(recipe.out)
    file = folder / "recipe.json"
    mine = json.loads(json.dumps(asdict(recipe)))
    if file.is_file():
        theirs = read_json(file, "give another --out, or remove that folder", {})
        old = sorted((theirs.keys() - mine.keys()) & RENAMED.keys())
        earlier = not (folder / "run.json").is_file() and (old or _has_trained(folder))
        if earlier and (folder / "export").is_dir() and _in_new_names(theirs, recipe) == mine:
            return folder
        if earlier:
            removed = "" if old else ", or whose run.json was removed"
            commit, why = (BEFORE_RENAMED, f"its recipe has {flag(old[0])}") if old else (BEFORE_RECORDED, "it has no run.json")
            raise ValueError(
                f"{folder} holds a run that an earlier version began ({why}){removed}: finish it with that (git checkout {commit}), or "
                "give another --out"
            )
        keys = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        if not keys:
            return folder
        there, asked = ({k: flag(k, r[k]) if k in r else f"no {flag(k)}" for k in keys} for r in (theirs, mine))
        changes = "; ".join(f"{there[k]} there, {asked[k]} asked" for k in keys)
        if not accept_changes:
            more = "" if accept_changes is None else ", or go on as asked with --accept-changes"
            raise ValueError(f"{folder} holds a run of another recipe ({changes}). Give another --out, or remove that folder{more}")
        print(f"going on with a changed recipe ({changes})")
    write_json(file, mine)
    return folder


def _has_trained(folder: Path) -> bool:
    """Whether there are checkpoints, of ours or of LLaVA-NeXT, or an export: a run that stopped before has nothing to lose."""
    return (folder / "export").is_dir() or any((*folder.glob("checkpoints/*"), *folder.glob("llava_next/checkpoint/checkpoint-*")))


def _in_new_names(theirs: dict[str, Any], recipe: Any) -> dict[str, Any]:
    """An earlier version's recipe under today's names; a field that it does not have yet has its default."""
    defaults = {f.name: f.default for f in fields(recipe) if f.default is not MISSING}
    named = {RENAMED[name] if name not in defaults and name in RENAMED else name: value for name, value in theirs.items()}
    if named.get("report") == "":
        named["report"] = "none"
    found: dict[str, Any] = json.loads(json.dumps(defaults | named))
    return found


def recorded(run: Path) -> RunRecord | None:
    """What the run was resolved to when it began; None where it has not begun."""
    file = run / "run.json"
    return read(RunRecord, file, "give another --out") if file.is_file() else None


def pin(run: Path, record: RunRecord) -> None:
    """Write run.json before step 0, or hold what the run would go on with against it: of each process, for each loads by itself.

    Raises ValueError that names what changed, where it lies and both digests.
    """
    began = recorded(run)
    if began is None:
        write(run / "run.json", record)
        return
    changed = [name for name in PINNED if began[name] != record[name]]
    if not changed:
        if began.processes != record.processes and os.environ.get("RANK", "0") == "0":
            was = f"{began.processes} x {began.accumulation}"
            print(f"going on at {began.per_step} per step, now {record.processes} x {record.accumulation} micro-steps where it was {was}")
        return
    if changed[0] == "dtype":
        raise ValueError(
            f"{run} began with weights in {began.dtype} and would go on in {record.dtype}: go on where there is a GPU as there was at the "
            "start, or give another --out"
        )
    what, place = PINNED[changed[0]]
    (there, now), where = (str(each[changed[0]])[:8] for each in (began, record)), (place and (record[place] or began[place])) or "its seed"
    others = [PINNED[name][0] for name in changed[1:]]
    others += [f"{name} {began.versions.get(name)} before" for name in record.versions if record.versions[name] != began.versions.get(name)]
    more = f" (differing too: {', '.join(others)})" if others else ""
    raise ValueError(
        f"{run} began with {what} {there}, and {where} holds {now} now{more}: bring back what it began with, or give another --out"
    )
