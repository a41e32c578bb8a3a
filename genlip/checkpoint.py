"""What a pretraining run keeps: checkpoints that any number of ranks read, and the export; written aside and renamed.

`checkpoints/step-NNNNNN/` holds the tensors of model and optimizer as safetensors, a file for each rank that wrote, and, written last,
state.json: the step, the streams' positions and ledgers, and the size of every file. Nothing is pickled: whoever can write a checkpoint
could run code in the process that reads it. The optimizer's settings (rates, decay) are the recipe's and no part of it. A run goes on
from the newest folder in which all sizes are right; one that a crash cut short is passed over with a sentence. Saving is synchronous:
split over the ranks, the three fp32 copies of So/16 are 10 GB in all, seconds beside the minutes between two checkpoints.
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict

from .common import digests, fingerprint
from .common.files import in_their_sizes, numbered, read_json, remove, require, sha256, write_json, written_aside
from .common.schema import SCHEMA, RunRecord
from .common.versions import git_commit, package_versions
from .recipes import Recipe

LAST_PICKLED = "456f7d2"
STATE = {"step": int, "run": str, "files": dict}  # what state.json says in any case


def save(run: Path, step: int, model, optimizer, state: dict, keep: int = 2, milestone_every: int = 0) -> None:
    """Called on all ranks; `state` is rank 0's. Of the older folders the last `keep` stay, and the milestones.

    Raises ValueError where it cannot be written, on a full disk say: the older checkpoints are whole.
    """
    folder = run / "checkpoints" / f"step-{step:06d}"
    part = folder.with_suffix(".part")
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        remove(part)
        part.mkdir(parents=True)
    _wait()
    tensors, optimizer_state = get_state_dict(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that one process saves alone
            writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
            dcp.save({"model": tensors, "optimizer": optimizer_state["state"]}, storage_writer=writer)
        if first:
            sizes = {file.name: file.stat().st_size for file in part.iterdir()}
            _write(part / "state.json", json.dumps(state | {"step": step, "run": _run_digest(run), "files": sizes}))
            remove(folder)  # cut short, and passed over by `newest`
            part.rename(folder)
    except (OSError, RuntimeError, CheckpointException) as e:
        if first:
            shutil.rmtree(part, ignore_errors=True)
        raise ValueError(
            f"checkpoint {folder} could not be written ({_why(e)}); the earlier ones are whole. Make room and run again"
        ) from e
    if first:
        for each in numbered(folder.parent, "step-")[:-keep]:
            if not milestone_every or step_of(each) % milestone_every:
                remove(each)
        for part in folder.parent.glob("step-*.part"):  # of runs that were killed while they wrote
            remove(part)
    _wait()


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint, the same on all ranks, or None where there is none. OSError where one cannot be read now."""
    found: list[str | None] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        for folder in reversed(numbered(run / "checkpoints", "step-")):
            if whole(folder):
                found = [str(folder)]
                break
            print(f"{folder} is not whole; going on from the one before")
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    return Path(found[0]) if found[0] else None


def whole(folder: Path) -> bool:
    """state.json is there, and every file it names, in its size.

    OSError where the system does not give a file that is there: it may give it next time, and going on from an older one would lose this.
    """
    try:
        return in_their_sizes(folder, read_json(folder / "state.json", fields=STATE)["files"])
    except (FileNotFoundError, ValueError):
        return False


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def position(folder: Path, state: dict, recipe: Recipe) -> tuple[int, list[dict]]:
    """(step, the streams' positions and ledgers) of a loaded state. ValueError where the recipe cannot go on from it."""
    file, mend = str(folder / "state.json"), f"remove {folder} to go on from the one before"
    step = state["step"]
    streams = require(state, {"streams": list}, file, mend)["streams"]
    if step != step_of(folder):
        raise ValueError(f"{file}: step is {step}, and its folder is named for another: {mend}")
    if step > recipe.max_steps:
        raise ValueError(f"{file}: step is {step}, beyond --max-steps {recipe.max_steps}: raise it, or {mend}")
    if len(streams) != recipe.rows:
        raise ValueError(f"{file} has {len(streams)} rows per step, and a position in the data for each: --rows {recipe.rows} cannot go on")
    for number, stream in enumerate(streams):
        where = f"{file}: stream {number}"
        require(stream, {"position": dict, "ledger": dict}, where, mend)
        require(stream["position"], {"places": list, "drawn": list, "waiting": list}, f"{where}, position", mend)
        require(stream["ledger"], {"read": int, "used": int, "skipped": dict, "names": dict}, f"{where}, ledger", mend)
    return step, streams


def load(folder: Path, model, optimizer) -> dict:
    """Model and optimizer as they were, on however many ranks there are now; returns the state. Called on all ranks.

    Raises ValueError for a checkpoint of another model, and for one of a version that pickled.
    """
    if (folder / ".metadata").exists() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} is of an earlier version, whose checkpoints are pickled and not read any more, since reading one can run code: "
            f"finish that run with commit {LAST_PICKLED} of this project, or give another --out"
        )
    state: dict = read_json(folder / "state.json", fields=STATE)
    if state["run"] != _run_digest(run := folder.parents[1]):
        raise ValueError(f"{folder} was written under another run.json than {run} holds: bring that back, or give another --out")
    tensors, optimizer_state = get_state_dict(model, optimizer)
    both = {"model": tensors, "optimizer": optimizer_state["state"]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that one process loads alone
            dcp.load(both, storage_reader=HuggingFaceStorageReader(str(folder)))
    except (CheckpointException, SafetensorError, RuntimeError, ValueError) as e:
        raise ValueError(f"{folder} does not hold this model ({_why(e)}): remove it to go on from the one before") from e
    optimizer_state["state"] = both["optimizer"]
    set_state_dict(model, optimizer, model_state_dict=both["model"], optim_state_dict=optimizer_state)
    return state


def _run_digest(run: Path) -> str:
    """Of what the run was resolved to; its recipe may change by --accept-changes."""
    return sha256(run / "run.json")


def _why(error: Exception) -> object:
    """What the first of the ranks that failed met, without their tracebacks."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _write(file: Path, text: str) -> None:
    with open(file, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def run_record(recipe: Recipe, tokenizer: Any, data_digest: str, processes: int) -> RunRecord:
    """What the run was resolved to. An earlier stage's weights are hashed as its provenance has them, once for as long as no file moves."""
    words = fingerprint.of_loaded_tokenizer(tokenizer)
    return RunRecord(
        schema=SCHEMA,
        stage="pretrain",
        tokenizer_source=recipe.tokenizer or recipe.init,
        tokenizer_digest=words["tokenizer"],
        chat_template=words["chat_template"],
        init=recipe.init or None,
        init_digest=weights_digest(Path(recipe.init)) if recipe.init else None,
        data=recipe.data,
        data_digest=data_digest,
        per_step=f"{recipe.rows} row{'s' * (recipe.rows > 1)} of {recipe.row_tokens} tokens",
        dtype="float32",
        processes=processes,
        accumulation=recipe.rows // processes,
        zero=0,
        kernels=f"attention {recipe.attention}, {'compiled' if recipe.compile else 'eager'} layers",
        versions=package_versions(("torch", "transformers", "genlip-eval")),
        git_commit=git_commit(),
    )


def weights_digest(export: Path) -> str:
    """Of an export's weights: of the digests of its safetensors files."""
    return hashlib.sha256(b"".join(bytes.fromhex(each) for each in digests.of_files(sorted(export.glob("*.safetensors"))))).hexdigest()


def write_export(
    model, tokenizer, recipe: Recipe, data: tuple[str, str], earlier: dict[str, Any] | None, export: Path, rank: int = 0
) -> None:
    """A plain from_pretrained folder: weights, config, image processor, tokenizer, provenance; written aside and renamed.

    `data`: their digest, and what it covers; `earlier`: provenance of the stage that the run started from.
    """
    from .image_processing_genlip import GenLIPImageProcessor

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank != 0:
        return
    with written_aside(export) as part:
        model.save_pretrained(part, state_dict=state)
        size = (
            {"size": "native", "min_pixels": recipe.min_pixels, "max_pixels": recipe.max_pixels}
            if recipe.native
            else {"size": recipe.resolution}
        )
        GenLIPImageProcessor(**size, patch_size=model.config.patch_size).save_pretrained(part)
        tokenizer.save_pretrained(part)
        provenance = {
            "stage": "pretrain",
            "recipe": asdict(recipe),
            "weights_digest": weights_digest(part),
            "data_digest": data[0],
            "data_digest_covers": data[1],
            "init": earlier,
            "versions": package_versions(("torch", "transformers")),
            "git_commit": git_commit(),
        }
        write_json(part / "provenance.json", provenance)
    print(f"wrote {export}")
