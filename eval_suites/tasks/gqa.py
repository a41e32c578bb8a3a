"""GQA's pictures for its resolved definition: looked up by id when a question needs one.

The packaged definition copies every picture into every question that asks about it (500 s and 4 GB at the true size).
"""

from functools import lru_cache


@lru_cache(maxsize=1)
def _pictures(files: tuple[str, ...]):
    """(data set, row of each picture id); memory-mapped, nothing is decoded here."""
    import datasets

    pictures = datasets.load_dataset("parquet", data_files=list(files), split="train")
    return pictures, {name: row for row, name in enumerate(pictures["id"])}


def doc_to_visual(doc: dict, lmms_eval_specific_kwargs: dict) -> list:
    pictures, row_of = _pictures(tuple(lmms_eval_specific_kwargs["images"]))
    return [pictures[row_of[doc["imageId"]]]["image"].convert("RGB")]
