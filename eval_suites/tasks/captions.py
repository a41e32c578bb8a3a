"""CIDEr of the caption tasks, by lmms-eval's own function, with three guards around it.

1. A line break inside a caption (U+2028, a carriage return, ...) shifts every later line in the tokenizer, a Java program that counts
   lines: CIDEr 0.933 became 0.021. Such characters become spaces before scoring, and the sample says so (`cleaned`).
2. A picture id that comes twice ends in an assertion without a word: refused with the id.
3. The packaged function starts METEOR's Java program for any metric: not here.
Each sample keeps its own picture's CIDEr (`score`), whose mean is the column: standard errors and comparisons need it.
"""

import importlib
from collections import Counter

_PACKAGED = {"coco": "coco_cap", "nocaps": "nocaps", "textcaps": "textcaps"}


def coco_cider(results: list[dict], args=None) -> float:
    return _cider("coco", results, args)


def nocaps_cider(results: list[dict], args=None) -> float:
    return _cider("nocaps", results, args)


def textcaps_cider(results: list[dict], args=None) -> float:
    return _cider("textcaps", results, args)


def one_line(caption: str) -> str:
    """The caption without line breaks of any kind."""
    return " ".join(caption.splitlines())


def _cider(name: str, results: list[dict], args) -> float:
    """lmms-eval's CIDEr of `results` (dicts with `pred`, `answer` list, `image_id`), each of which gets its `score`."""
    twice = [picture for picture, count in Counter(result["image_id"] for result in results).items() if count > 1]
    if twice:
        raise ValueError(f"{name}: picture id {twice[0]!r} comes more than once in the data ({len(twice)} such ids); CIDEr wants each once")
    packaged = importlib.import_module(f"lmms_eval.tasks.{_PACKAGED[name]}.utils")
    scores = {}

    class RecordingCider(packaged.Cider):
        def compute_score(self, gts, res):
            mean, each = super().compute_score(gts, res)
            scores.update(zip(gts, each))
            return mean, each

    clean = [{**result, "pred": one_line(result["pred"]), "answer": [one_line(text) for text in result["answer"]]} for result in results]
    kept = packaged.Cider, packaged.Meteor
    packaged.Cider, packaged.Meteor = RecordingCider, lambda: None
    try:
        value = getattr(packaged, f"{name}_cider")(clean, args)
    finally:
        packaged.Cider, packaged.Meteor = kept
    for result in results:
        result["score"] = float(scores[result["image_id"] if result["image_id"] in scores else int(result["image_id"])])
        result["cleaned"] = len(result["pred"].splitlines()) > 1
    return float(value)
