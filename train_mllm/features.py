"""A frozen encoder's features of all pictures, computed once and kept; and standardising them while a projector learns.

Used by `python -m train_mllm.train ... --cache-features`; size: pictures x tokens x width x 4 bytes, said by --dry-run.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from genlip.common import digests
from genlip.common.files import file_aside
from genlip.common.fingerprint import CODE
from genlip.common.progress import tracked
from llava_plugin import views

from .conversations import open_conversations, picture_paths
from .data import feature_starts, open_picture

FEATURE_BATCH = 64


def cached_features(data: Path, tower, encoder_digest: str, data_digest: str, earlier: Path | None, sizes: np.ndarray | None):
    """(pictures, N, D) fp32 features of all pictures in the data's order, computed once, mapped into memory afterwards; NaN for a picture
    that cannot be decoded. Of pictures of these `sizes` by anyres (tiles, N, D), at their own aspect ratio (tokens, D).

    The file is named by the digest of the tower's weights, its preprocessing and the pictures, so that none of them can change unnoticed.
    `earlier` is the data folder of the stage before: where it talks about the same pictures, one after another, its file serves this one.
    """
    table, spec = open_conversations(data), tower.spec
    key = f"{encoder_digest} {replace(spec, why='')} {CODE['pixels']} {_pictures(table, data_digest)}"
    key = hashlib.sha256(key.encode()).hexdigest()[:16]
    file = data / f"features-{key}.npy"
    if not file.is_file() and earlier and (earlier / file.name).is_file():
        file = earlier / file.name
    if not file.is_file():
        pictures = [(i, j) for i, n in enumerate(table["images"].combine_chunks().value_lengths().to_pylist()) for j in range(n)]
        starts = np.arange(len(pictures) + 1) if sizes is None else feature_starts(spec, sizes)
        shape = (int(starts[-1]), spec.width) if views.parse(spec.view).kind == "native" else (int(starts[-1]), spec.tokens, spec.width)
        with file_aside(file) as aside:
            out = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
            with torch.inference_mode():
                batches = range(0, len(pictures), FEATURE_BATCH)
                for start in tracked(batches, "features of the frozen encoder"):
                    batch = pictures[start : start + FEATURE_BATCH]
                    images, at = [], []
                    for k, (i, j) in enumerate(batch, start):
                        try:
                            images.append(open_picture(table.slice(i, 1).to_pylist()[0]["images"][j]))
                            at.append(k)
                        except ValueError:  # no number; its conversation is skipped, and counted, when its turn comes
                            out[starts[k] : starts[k + 1]] = np.nan
                    for k, found in zip(at, tower.features(images) if images else [], strict=True):
                        out[starts[k] : starts[k + 1]] = found.float().cpu().numpy()
            out.flush()
    return np.load(file, mmap_mode="r")


def _pictures(table, data_digest: str) -> str:
    """What tells these pictures from others: path, size, times and inode of each file; the data's digest where they lie in the table."""
    paths = picture_paths(table)
    if paths.null_count:
        return data_digest
    paths = paths.to_pylist()
    return hashlib.sha256(repr(list(zip(paths, digests.signatures(paths)))).encode()).hexdigest()


def channel_statistics(features):
    """Mean and standard deviation (D,) over all tokens of the cached features (..., D), a part at a time."""
    total, squares = np.zeros((2, features.shape[-1]))
    n = 0
    for start in range(0, len(features), 1024):
        part = features[start : start + 1024].reshape(-1, features.shape[-1]).astype(np.float64)
        part = part[~np.isnan(part[:, 0])]  # of pictures that could not be decoded
        total += part.sum(0)
        squares += (part**2).sum(0)
        n += len(part)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 1e-12))
    return mean.astype(np.float32), std.astype(np.float32)


def fold_standardisation(linear, mean, std) -> None:
    """Make `linear` do to plain features what it did to standardised ones: W (x - mean) / std + b, as one matrix and bias.

    A tiny encoder's channels share a mean larger than what tells pictures apart, on which a projector learns slowly; trained on
    standardised features and folded at the end, the export is the plain 2-layer projector all the same.
    """
    with torch.no_grad():
        linear.weight.div_(torch.from_numpy(std).to(linear.weight))
        linear.bias.sub_(linear.weight @ torch.from_numpy(mean).to(linear.weight))
