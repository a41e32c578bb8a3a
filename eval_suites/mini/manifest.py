"""What was made: each set's n, its stated maximum and why, the knobs, the fonts, and digests of every file."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from eval_suites.mini import cider, fonts
from eval_suites.mini.benchmarks import COGNITION, PERCEPTION
from eval_suites.mini.knobs import Knobs

CAPTIONS = {
    "nocaps_val": "annotations_captions",
    "coco2017_cap_val": "answer",
    "textcaps_val": "caption_str",
}  # set -> column of references


def maximum(name: str, rows: list[dict]) -> tuple[float | dict | None, str]:
    """(what lmms-eval gives to a model that answers everything rightly, why it is that)."""
    if name == "gqa_images":
        return None, "the pictures of gqa's questions: nothing is scored here"
    if name == "ocrbench":
        return len(rows) / 1000, "OCRBench counts a point a right answer and divides by 1000 whatever the number of rows"
    if name == "mme":
        shown = {row["category"] for row in rows}
        most = {"mme_p": 200.0 * len(shown & set(PERCEPTION)), "mme_c": 200.0 * len(shown & set(COGNITION))}
        return most, "points: 100 for the share of right answers and 100 for the share of pairs with both right, in each category"
    if name in CAPTIONS:
        _, score = cider.best([row[CAPTIONS[name]] for row in rows])
        return round(
            score, 4
        ), "CIDEr has no fixed maximum: this is what the reference that agrees best with the five of its picture scores"
    return 1.0, "the share of right answers"


def build(world: dict, sets: dict[str, dict], train: dict[str, dict], knobs: Knobs) -> dict:
    """The manifest. `digest` is the sha256 of all the rest, file digests included."""
    import PIL

    told = {"world": world, "sets": sets, "train": train, "knobs": knobs.as_dict(), "fonts": fonts.digests(), "pillow": PIL.__version__}
    return {**told, "digest": digest(told)}


def digest(told: dict) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def verify(folder: Path, names: Collection[str] | None = None) -> dict:
    """The manifest of FOLDER (genlip-eval/mini), its benchmark files held against it: those of `names`, or all.

    ValueError for what is missing, changed or edited.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise ValueError(f"no manifest at {path}: make the mini world with `python -m eval_suites.mini --out DIR`")
    again = f"remove {folder} and make the mini world again: python -m eval_suites.mini --out {folder.parent.parent}"
    manifest = json.loads(path.read_text())
    if digest({key: value for key, value in manifest.items() if key != "digest"}) != manifest.get("digest"):
        raise ValueError(f"{path} was edited: its digest is not that of its content; {again}")
    for name in manifest["sets"] if names is None else sorted(names):
        told = manifest["sets"][name]
        file = folder / told["file"]
        if not file.exists() or file_digest(file) != told["sha256"]:
            raise ValueError(f"{file} of {name} is missing or not as it was made; {again}")
    return manifest


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
