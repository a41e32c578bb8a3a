"""Tar shards -> samples -> packed rows.

A shard is a WebDataset tar: `KEY.jpg|png|webp` beside `KEY.json` with `{"caption": ...}` (or `KEY.txt`). The order of samples is
a function of (seed, epoch, shards) alone: shards are shuffled, then the samples within a shard, which is read whole. A row is
filled in that order until the next sample does not fit, so the position (epoch, samples taken) is all that a resume needs.

Decoding and tokenising happen in the loader's own process, off the training process. Nothing is repaired silently: a sample
that cannot be used is counted by reason, with the first offenders' names, in the ledger that travels with every batch.

Shapes: B samples, N patches, T text tokens of a packed row.
"""

import glob
import io
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from .image_processing_genlip import square

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
END_OF_CAPTION = "<|im_end|>\n"  # the two end tokens of the paper's sequence
MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded
MAX_MEMBER = 256 * 2**20  # bytes of one tar member
NAMED = 10  # offenders named in the ledger, a reason


@dataclass
class Batch:
    """One packed row. patches (N, 3, p, p) fp32, grid_hw (B, 2), input_ids and labels (1, T), text_lens (B,).

    `position` is where the next row begins, `ledger` all that was met up to here.
    """

    patches: torch.Tensor
    grid_hw: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    text_lens: torch.Tensor
    position: dict
    ledger: dict


@dataclass
class Ledger:
    """What was read, used, and skipped for which reason, with the first offenders."""

    read: int = 0
    used: int = 0
    skipped: Counter = field(default_factory=Counter)
    names: dict = field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        self.skipped[reason] += 1
        if len(self.names.setdefault(reason, [])) < NAMED:
            self.names[reason].append(name)

    def as_dict(self) -> dict:
        names = {reason: list(named) for reason, named in self.names.items()}
        return {"read": self.read, "used": self.used, "skipped": dict(self.skipped), "names": names}

    @classmethod
    def from_dict(cls, d: dict) -> "Ledger":
        return cls(d["read"], d["used"], Counter(d["skipped"]), {k: list(v) for k, v in d["names"].items()})


def list_shards(data: str) -> list[str]:
    """The tar files of a folder, a glob, or one file, sorted. Raises ValueError where there are none."""
    path = Path(data)
    found = sorted(map(str, path.glob("*.tar"))) if path.is_dir() else sorted(glob.glob(data))
    if not found:
        raise ValueError(f"no tar shards at {data!r}: give a folder with *.tar, a glob such as 'shards/train-*.tar', or one file")
    return found


def read_shard(shard: str) -> list[dict]:
    """All samples of a shard as {"__key__", suffix: bytes}, in order; members with one stem are one sample.

    Raises ValueError that names a truncated or unreadable shard, or a member of more than MAX_MEMBER bytes.
    """
    samples: list[dict] = []
    try:
        with tarfile.open(shard, "r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.size > MAX_MEMBER:
                    raise ValueError(f"{member.name} has {member.size} bytes, more than {MAX_MEMBER}")
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not samples or samples[-1]["__key__"] != key:
                    samples.append({"__key__": key})
                samples[-1][suffix.lower()] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as e:
        raise ValueError(f"shard {shard} cannot be read to its end ({e}): copy it again, or take it out of --data") from e
    return samples


def decode(sample: dict, resolution: int) -> tuple[np.ndarray, str]:
    """A raw sample -> (R, R, 3) uint8 and its caption. Raises ValueError with the reason under which it is counted."""
    image = next((sample[s] for s in IMAGE_SUFFIXES if s in sample), None)
    if image is None:
        raise ValueError("no picture")
    if "json" in sample:
        try:
            caption = json.loads(sample["json"]).get("caption")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as e:
            raise ValueError("unreadable json") from e
    else:
        caption = sample["txt"].decode("utf-8", "replace") if "txt" in sample else None
    if not isinstance(caption, str):
        raise ValueError("no caption")
    if not caption.strip():
        raise ValueError("empty caption")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is below
            picture = Image.open(io.BytesIO(image))
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError("too many pixels")
            return square(picture, resolution), caption.strip()
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:
        raise ValueError("undecodable picture") from e


class PackedRows(IterableDataset):
    """Endless packed rows from a position on. Built in the training process, iterated in the loader's."""

    def __init__(self, recipe, tokenizer, position: dict, ledger: dict):
        self.recipe, self.shards = recipe, list_shards(recipe.data)
        self.position, self.ledger = position, ledger
        self.prompt = tokenizer(recipe.prompt, add_special_tokens=False).input_ids
        self.end = tokenizer(END_OF_CAPTION, add_special_tokens=False).input_ids
        self.tokenizer = tokenizer
        self.patch_size = recipe.model.get("patch_size", 16)
        self.grid = recipe.resolution // self.patch_size

    def __iter__(self) -> Iterator[Batch | ValueError]:
        """Batches; a ValueError is handed over as the last item, since a loader would bury its sentence in a traceback."""
        try:
            yield from self._rows()
        except ValueError as e:
            yield e

    def _rows(self) -> Iterator[Batch]:
        ledger = Ledger.from_dict(self.ledger)
        epoch, taken = self.position["epoch"], self.position["taken"]
        row: list[tuple[np.ndarray, list[int], int]] = []
        room = self.recipe.row_tokens
        while True:
            for raw in self._epoch(epoch, taken):
                name = f"{raw['__key__']} in {Path(raw['__shard__']).name}"
                sample = None
                ledger.read += 1
                try:
                    pixels, caption = decode(raw, self.recipe.resolution)
                    answer = self.tokenizer(caption, add_special_tokens=False).input_ids + self.end
                    sample = (pixels, self.prompt + answer, len(answer))
                    length = self.grid**2 + len(sample[1])
                    if length > self.recipe.row_tokens:
                        raise ValueError("longer than a row")
                except ValueError as e:
                    ledger.skip(str(e), name)
                    taken += 1
                    continue
                if length > room:  # this sample opens the next row; a resume from here reads it again
                    ledger.read -= 1
                    yield self._batch(row, {"epoch": epoch, "taken": taken}, ledger)
                    ledger.read += 1
                    row, room = [], self.recipe.row_tokens
                row.append(sample)
                room -= length
                taken += 1
                ledger.used += 1
            if taken == 0 or ledger.used == 0:
                raise ValueError(f"no usable sample in {self.recipe.data}: {ledger.as_dict()['skipped'] or 'the shards are empty'}")
            epoch, taken = epoch + 1, 0

    def _epoch(self, epoch: int, skip: int) -> Iterator[dict]:
        """Raw samples of one epoch in its order, without the first `skip`. Shards are read to be counted, samples are not decoded."""
        rng = np.random.default_rng([self.recipe.seed, epoch])
        for i in rng.permutation(len(self.shards)):
            samples = read_shard(self.shards[i])
            for j in rng.permutation(len(samples)):
                if skip:
                    skip -= 1
                    continue
                yield samples[j] | {"__shard__": self.shards[i]}

    def _batch(self, row, position, ledger) -> Batch:
        b, g, p = len(row), self.grid, self.patch_size
        pixels = np.stack([pixels for pixels, _, _ in row])  # (B, R, R, 3)
        patches = pixels.reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, p, p)
        ids = np.concatenate([ids for _, ids, _ in row])
        labels = np.concatenate([[-100] * (len(ids) - answer) + ids[len(ids) - answer :] for _, ids, answer in row])
        return Batch(
            patches=(torch.from_numpy(patches).float() / 255.0 - 0.5) / 0.5,
            grid_hw=torch.full((b, 2), g),
            input_ids=torch.from_numpy(ids)[None],
            labels=torch.from_numpy(labels)[None],
            text_lens=torch.tensor([len(ids) for _, ids, _ in row]),
            position=position,
            ledger=ledger.as_dict(),
        )


def packed_rows(recipe, tokenizer, position: dict | None = None, ledger: dict | None = None) -> Iterator[Batch]:
    """Endless batches from a position on (the beginning, if None)."""
    rows = PackedRows(recipe, tokenizer, position or {"epoch": 0, "taken": 0}, ledger or Ledger().as_dict())
    loader = DataLoader(rows, batch_size=None, num_workers=min(recipe.workers, 1), prefetch_factor=4 if recipe.workers else None)
    for item in loader:
        if isinstance(item, ValueError):
            raise item
        yield item
