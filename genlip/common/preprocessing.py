"""What a folder's processor file says of its pictures, in every form in which transformers, open_clip and timm write it. Torch-free.

    said = read_preprocessing(Path("runs/so16-s2/export"))      # None where there is no such file
    said.size, said.mean, said.std, said.resample

`(x / 255 - mean) / std` is what all of them come to here: a `rescale_factor` of another scale, `do_rescale` or `do_normalize` false are
folded into mean and std. What these four cannot express is refused, naming file and field: a wrong picture says nothing by itself.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from .files import read_json

Triple = tuple[float, float, float]
NATIVE = "native"
SQUASHED = "a larger square"
MIN_PIXELS, MAX_PIXELS = 4096, 262_144  # of GenLIP's pictures at their own aspect ratio, where a file leaves them out
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers, which the files hold
MEND = "copy or fetch the folder again"
# What changes pixels beyond a resize, a crop and a normalisation, where it is switched on.
FOREIGN = ("do_flip_channel_order", "rescale_offset", "include_top", "do_pad", "do_align_long_axis", "do_thumbnail", "do_image_splitting")
SIZES = 'pixels a side: a number, {"height", "width"} that are equal, {"shortest_edge"}, or "native"'
PLACES = ("preprocessor_config.json", "processor_config.json", "open_clip_config.json", "config.json")  # the first that says anything


@dataclass(frozen=True)
class Preprocessing:
    """None: the file does not say it."""

    file: Path
    size: int | str | None = None  # pixels a side of what comes out, or "native": each picture's own shape
    mean: Triple | None = None
    std: Triple | None = None
    resample: str | None = None
    # The shorter side over the side of the centre crop that is cut from it; None: no crop; SQUASHED: cut from a larger square.
    crop: float | str | None = None
    min_pixels: int = MIN_PIXELS  # of a picture at its own shape
    max_pixels: int = MAX_PIXELS


def read_preprocessing(folder: Path) -> Preprocessing | None:
    """Of a from_pretrained folder; None where nothing in it says how pictures are prepared. ValueError names file and field."""
    for name in PLACES:
        file = folder / name
        content = read_json(file, MEND) if file.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds no object: {MEND}")
        if said := _part(name, content, file):
            return _from_transformers(said, file) if name in PLACES[:2] else _from_timm(said, file)
    return None


def _part(name: str, content: dict, file: Path) -> dict[str, Any]:
    """What of a file's content is about pictures: transformers nests it where it saves a whole processor, open_clip and timm always."""
    keys = {"processor_config.json": "image_processor", "open_clip_config.json": "preprocess_cfg", "config.json": "pretrained_cfg"}
    part = content if name == PLACES[0] else content.get(keys[name])
    if part is not None and not isinstance(part, dict):
        raise _refused(file, keys.get(name, ""), part, "an object")
    return part or {}


def _from_transformers(said: dict, file: Path) -> Preprocessing:
    for field in FOREIGN:
        if said.get(field):
            raise _refused(file, field, said[field], "false: pictures are resized and normalised here, nothing else")
    factor = _number(said, "rescale_factor", 1 / 255, file) if said.get("do_rescale") is not False else 1.0
    mean, std = _triple(said, "image_mean", file), _triple(said, "image_std", file)
    if said.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    if said.get("do_rescale") is False and mean is None:
        raise _refused(file, "do_rescale", False, "an image_mean and an image_std beside it, on the scale of 0 to 255")
    size = whole = _size(said, "size", file)
    crop: float | str | None = None
    if said.get("crop_size") is not None and said.get("do_center_crop") is not False:
        size = _size(said, "crop_size", file)
        if isinstance(whole, int) and isinstance(size, int):
            squashed = isinstance(said["size"], dict) and "height" in said["size"]
            crop = (SQUASHED if whole != size else None) if squashed else whole / size
    elif said.get("crop_pct") and isinstance(whole, int) and whole < 384:  # ConvNeXt's rule
        crop = 1 / _number(said, "crop_pct", 1.0, file)
    return Preprocessing(
        file,
        size,
        _scaled(mean, factor),
        _scaled(std, factor),
        _resample(said, file),
        crop,
        *(int(_number(said, field, default, file)) for field, default in (("min_pixels", MIN_PIXELS), ("max_pixels", MAX_PIXELS))),
    )


def _from_timm(said: dict, file: Path) -> Preprocessing:
    """open_clip's `preprocess_cfg` has the names of timm's `pretrained_cfg`, but for `size`, which timm calls `input_size` (C, H, W)."""
    resample = said.get("interpolation")
    if resample not in (None, *RESAMPLE):
        raise _refused(file, "interpolation", resample, f"one of {', '.join(RESAMPLE)}")
    sides = said.get("size", (said.get("input_size") or [None])[-2:])
    sides = sides if isinstance(sides, list) else [sides]
    if len(set(sides)) != 1 or not (sides[0] is None or _whole(sides[0])):
        raise _refused(file, "size" if "size" in said else "input_size", sides, "one number of pixels for both sides")
    kept = _number(said, "crop_pct", 1.0, file)
    crop = 1 / kept if "crop_pct" in said and said.get("crop_mode", "center") == "center" else None
    return Preprocessing(file, sides[0], _triple(said, "mean", file), _triple(said, "std", file), resample, crop)


def _size(said: dict, field: str, file: Path) -> int | str | None:
    """Pixels a side, of `224`, `"native"`, {"height", "width"} or {"shortest_edge"}."""
    size: Any = said.get(field)
    if size is None or isinstance(size, str | int):
        if size is None or size == NATIVE or _whole(size):
            return size
        raise _refused(file, field, size, SIZES)
    edges = {name: value for name, value in size.items() if value is not None} if isinstance(size, dict) else {}
    if set(edges) in ({"height", "width"}, {"shortest_edge"}) and all(map(_whole, edges.values())) and len(set(edges.values())) == 1:
        return int(next(iter(edges.values())))
    raise _refused(file, field, size, SIZES)


def _resample(said: dict, file: Path) -> str | None:
    number = said.get("resample")
    if number is None or (_whole(number, 0) and number < len(RESAMPLE)):
        return None if number is None else RESAMPLE[number]
    raise _refused(file, "resample", number, f"Pillow's number of a filter: {', '.join(f'{i} {name}' for i, name in enumerate(RESAMPLE))}")


def _triple(said: dict, field: str, file: Path) -> Triple | None:
    value = said.get(field)
    if value is None:
        return None
    values: list[Any] = value if isinstance(value, list) else [value]
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(map(_finite, values)):
        raise _refused(file, field, value, "a number, or three")
    if field.endswith("std") and min(values) <= 0:
        raise _refused(file, field, value, "a number above 0, or three")
    return float(values[0]), float(values[1]), float(values[2])


def _scaled(values: Triple | None, factor: float) -> Triple | None:
    """Of pixels multiplied by `factor`, as those of pixels divided by 255."""
    scale = 1.0 if abs(255 * factor - 1) < 1e-6 else 255 * factor  # files hold 1/255 with a few digits fewer
    return None if values is None else (values[0] / scale, values[1] / scale, values[2] / scale)


def _number(said: dict, field: str, default: float, file: Path) -> float:
    value = said.get(field)
    if value is None:
        return default
    if not _finite(value) or value <= 0:
        raise _refused(file, field, value, "a number above 0")
    return value


def _finite(value: object) -> TypeGuard[float]:
    """A number that a float holds, which neither nan nor 10^400 is."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _whole(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _refused(file: Path, field: str, value: object, wanted: str) -> ValueError:
    return ValueError(
        f"{file}: {field} is {json.dumps(value)[:80]}, where this project reads {wanted}. Mend the file, in a copy of the folder"
    )
