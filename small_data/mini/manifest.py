"""What was made: each set's n, its stated maximum and why, the knobs, the fonts, and digests of every file."""

from eval_suites.tasks.manifest import digest
from small_data.mini import cider, fonts
from small_data.mini.benchmarks import COGNITION, PERCEPTION
from small_data.mini.knobs import Knobs

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


def build(world: dict, sets: dict[str, dict], train: dict, knobs: Knobs) -> dict:
    """The manifest. `digest` is the sha256 of all the rest, file digests included."""
    import PIL

    told = {"world": world, "sets": sets, "train": train, "knobs": knobs.as_dict(), "fonts": fonts.digests(), "pillow": PIL.__version__}
    return {**told, "digest": digest(told)}
