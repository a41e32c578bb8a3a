"""Picture columns of local parquet files, for lmms-eval's tasks: read by our own rule (llava_plugin/pictures.py) before a task's code sees
them, whether or not a file says what they are.

Files of the hub mostly carry a note that a column holds pictures, and a data set's card carries it otherwise; a copied file may have
neither, and then a picture arrives as a dictionary of bytes.
"""

from functools import lru_cache

from PIL import Image

from llava_plugin.pictures import read_picture


def decoded(rows):
    """The data set with every column of {bytes, path} turned into pictures, alone or in lists, which are decoded when they are asked for:
    what any model of lmms-eval expects."""
    return _as_pictures(rows, decode=True)


def undecoded(rows):
    """The same, left as bytes for `document`: lmms-eval looks at the first row of a data set whatever it is asked, and one picture that
    cannot be decoded would cost the whole column."""
    return _as_pictures(rows, decode=False)


def _as_pictures(rows, decode: bool):
    import datasets

    for name, feature in rows.features.items():
        if _is_picture(feature):
            rows = rows.cast_column(name, datasets.Image(decode=decode))
        elif isinstance(feature, datasets.List) and _is_picture(feature.feature):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=decode)))
    return rows


def _is_picture(feature) -> bool:
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


class UnreadablePicture(ValueError):
    """A document's picture is none, or only a part of one."""


def document(rows, number: int) -> dict:
    """A document of a data set with its pictures as RGB, each with the mode of its file in `info["mode"]`. UnreadablePicture says why one
    cannot be read; a data set's own decoding would do it otherwise, or not at all."""
    import datasets

    return _read(rows.with_format("arrow")[number].to_pylist()[0] if isinstance(rows, datasets.Dataset) else rows[number])


def _read(value):
    if isinstance(value, dict):
        return _picture(**value) if set(value) == {"bytes", "path"} else {name: _read(each) for name, each in value.items()}
    return [_read(each) for each in value] if isinstance(value, list) else value


def _picture(bytes: bytes | None, path: str | None) -> Image.Image:
    if bytes is None:  # a file elsewhere is no part of the data's digest: other pixels would be asked about under the same one
        raise UnreadablePicture(f"no bytes, but the name of a file: {path}" if path else "no picture: neither bytes nor path")
    try:
        image, mode = read_picture(bytes)
    except ValueError as error:
        cause = str(error.__cause__ or "").partition("\n")[0][:200]
        raise UnreadablePicture(f"{error} ({cause})" if cause else str(error)) from error
    image.info = {"mode": mode}  # and nothing else: no EXIF tag that would turn it again
    return image


def gqa_doc_to_visual(doc: dict, lmms_eval_specific_kwargs: dict) -> list:
    """GQA's picture, looked up by id when a question needs it.

    The packaged definition copies every picture into every question that asks about it (500 s and 4 GB at the true size).
    """
    pictures, row_of = _gqa_pictures(tuple(lmms_eval_specific_kwargs["images"]), lmms_eval_specific_kwargs["digest"])
    return [document(pictures, row_of[doc["imageId"]])["image"]]


@lru_cache(maxsize=1)
def _gqa_pictures(files: tuple[str, ...], digest: str):
    """(data set, row of each picture id); memory-mapped. By the digest `datasets` tells the files from what lay there before."""
    import datasets

    pictures = decoded(datasets.load_dataset("parquet", data_files=list(files), split="train", description=digest))
    return pictures, {name: row for row, name in enumerate(pictures["id"])}
