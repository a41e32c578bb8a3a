"""Picture columns of local parquet files, for lmms-eval's tasks: decoded when asked for, whether or not a file says what they are.

Files of the hub mostly carry a note that a column holds pictures, and a data set's card carries it otherwise; a copied file may have
neither, and then a picture arrives as a dictionary of bytes.
"""

from functools import lru_cache


def decoded(rows):
    """The data set with every column of {bytes, path} turned into pictures, alone or in lists. Nothing is decoded or copied here."""
    import datasets

    for name, feature in rows.features.items():
        if _is_picture(feature):
            rows = rows.cast_column(name, datasets.Image())
        elif isinstance(feature, datasets.List) and _is_picture(feature.feature):
            rows = rows.cast_column(name, datasets.List(datasets.Image()))
    return rows


def _is_picture(feature) -> bool:
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def gqa_doc_to_visual(doc: dict, lmms_eval_specific_kwargs: dict) -> list:
    """GQA's picture, looked up by id when a question needs it.

    The packaged definition copies every picture into every question that asks about it (500 s and 4 GB at the true size).
    """
    pictures, row_of = _gqa_pictures(tuple(lmms_eval_specific_kwargs["images"]), lmms_eval_specific_kwargs["digest"])
    return [pictures[row_of[doc["imageId"]]]["image"].convert("RGB")]


@lru_cache(maxsize=1)
def _gqa_pictures(files: tuple[str, ...], digest: str):
    """(data set, row of each picture id); memory-mapped. By the digest `datasets` tells the files from what lay there before."""
    import datasets

    pictures = decoded(datasets.load_dataset("parquet", data_files=list(files), split="train", description=digest))
    return pictures, {name: row for row, name in enumerate(pictures["id"])}
