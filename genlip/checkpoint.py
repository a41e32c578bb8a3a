"""Checkpoints of a pretraining run: one file a step, written aside and renamed, the last two kept.

A run goes on from the newest file that can be read whole; a file cut short by a crash is passed over with a sentence. Files are
ours, yet read with `weights_only=True`, so that nothing in them can run.
"""

import os
import pickle
from pathlib import Path

import torch

KEPT = 2


def save(run: Path, step: int, state: dict) -> None:
    """Write `checkpoints/step-NNNNNN.pt`. On a full disk the older checkpoints stay and the error says so."""
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    file = folder / f"step-{step:06d}.pt"
    part = file.with_suffix(".part")
    try:
        with open(part, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except (OSError, RuntimeError) as e:
        part.unlink(missing_ok=True)
        raise ValueError(f"checkpoint {file} could not be written ({e}); the earlier ones are whole. Make room and run again") from e
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        old.unlink()


def newest(run: Path) -> dict | None:
    """The state of the newest whole checkpoint, or None where there is none."""
    for file in sorted((run / "checkpoints").glob("step-*.pt"), reverse=True):
        try:
            return torch.load(file, weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as e:
            print(f"{file} is not whole ({type(e).__name__}); going on from the one before")
    return None
