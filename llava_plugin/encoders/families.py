"""Everything that is known of a family of encoders, one entry each: layers, prefix tokens, preprocessing, how its class is called and
interpolates, how it reads a picture at its own aspect ratio, its tiny twin. Loads without torch: what is called gets tensors.

Shapes: B pictures, N patches, P patch side, D width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from genlip.common.preprocessing import NATIVE, Preprocessing
from genlip.recipes import TINY as GENLIP_TINY

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
PAPER_GRID = 24  # of the paper's frozen comparison: 576 tokens of every encoder
PAPERS = "the paper's frozen comparison"
# A tiny twin is the family's real class at this size (about a million parameters), never trained.
TINY = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 16, "image_size": 64}


@dataclass(frozen=True)
class Native:
    """How a family reads pictures at their own aspect ratio."""

    grid: Callable[[int, int, int, int], tuple[int, int]]  # (height, width, patch, most tokens) -> rows and columns of patches
    packed: Callable[..., Any]  # (encoder, patches (N, 3, P, P), grids (B, 2)) -> (N, D), no picture seeing another


@dataclass(frozen=True)
class Family:
    """How a family is used, by its authors' code; a folder's own processor file may change mean, std and resample.

    `features`: where features may be taken, "norm" (after the final norm) or "block" (the last block's output), to the call that gives
    them: (encoder, pixels (B, 3, H, W), **options) -> (B, prefix + N, D), or (B, D, rows, columns). The first is the family's own.
    `patch_size`, `resolution`, `width`, `registers` are what the family's config class takes where a config.json leaves a field out.
    `positions`: a "table" that is interpolated to another grid, one that is "fixed", or "computed" for any grid; `interpolate` is what
    the class wants to be told for it.
    """

    features: Mapping[str, Callable[..., Any]]
    prefix_tokens: int = 0  # class token; registers are counted apart
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resample: str = "bicubic"
    positions: str = "computed"
    patch_size: int = 16
    resolution: int = 224
    width: int = 768
    crop: float | None = None  # its own processor's shorter side over its centre crop's; None: it squashes
    registers: int = 0  # behind the class token, dropped with it
    interpolate: Mapping[str, bool] = field(default_factory=dict)
    config_resolution: Callable[[Mapping[str, Any]], int | None] = lambda config: config.get("image_size")
    # (processor file, patch) -> (resolution, why), of a family whose positions fit any grid, so that what it learned at decides.
    learned_resolution: Callable[[Preprocessing, int], tuple[int, str]] | None = None
    position_side: Callable[[Mapping[str, Any]], int | None] = lambda config: config["image_size"] // config["patch_size"]
    native: Native | None = None
    twin: Mapping[str, Any] = field(default_factory=lambda: TINY)  # the config of its tiny twin
    packages: tuple[str, ...] = ()  # that its class needs
    prefix_of: Callable[[Any], int] | None = None  # of a built encoder, where its class says so itself

    @property
    def feature(self) -> str:
        return next(iter(self.features))


def last_hidden_state(encoder, pixels, **options):
    return encoder(pixels, **options).last_hidden_state


def before_last_norm(encoder, pixels, **options):
    """Of classes whose last_hidden_state lies behind one more norm."""
    return encoder.encoder(inputs_embeds=encoder.embeddings(pixels, **options)).last_hidden_state


def unpooled(encoder, pixels, **options):
    """timm's wrapper pools its last features too, unless told not to."""
    return encoder(pixels, do_pooling=False, **options).last_hidden_state


def patches_of(pixels, patch: int):
    """(B, 3, H, W) -> (B, N, 3, P, P), row by row."""
    b, c, h, w = pixels.shape
    return pixels.view(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c, patch, patch)


# --- GenLIP -----------------------------------------------------------------------------------------------------------------


def _genlip_grid(height: int, width: int, patch: int, max_tokens: int) -> tuple[int, int]:
    """Stage 2 of its training: sides to the nearest multiple of the patch, scaled down only above the maximum, up only below 16 patches."""
    from genlip.image_processing_genlip import native_size

    height, width = native_size(height, width, 16 * patch**2, max_tokens * patch**2, patch)
    return height // patch, width // patch


def _genlip_resolution(said: Preprocessing, patch: int) -> tuple[int, str]:
    """The paper compares all sizes and stages at 24 x 24 tokens, whatever they learned at."""
    paper = PAPER_GRID * patch
    if said.size is None:
        return paper, f"{PAPERS}; no processor file says what it learned at"
    if said.size != NATIVE:
        assert isinstance(said.size, int)
        return (said.size, "it learned at that size") if said.size < 224 else (paper, f"{PAPERS}; it learned at {said.size}")
    if said.max_pixels >= paper**2:
        return paper, f"{PAPERS}; it learned at native shapes of up to {said.max_pixels:,} pixels"
    return math.isqrt(said.max_pixels) // patch * patch, f"the largest square in the {said.max_pixels:,} pixels that it learned at"


def _genlip_packed(encoder, patches, grids):
    return encoder(patches, grid_hw=grids).last_hidden_state  # all pictures in one packed row


# --- SigLIP 2 NaFlex --------------------------------------------------------------------------------------------------------


def _naflex(encoder, patches, grids):
    """Patches (B, N, 3, P, P) of grids (B, 2) -> (B, N, D); its patch rows have channels last."""
    rows = patches.permute(0, 1, 3, 4, 2).flatten(2)
    return encoder.encoder(inputs_embeds=encoder.embeddings(rows, grids)).last_hidden_state


def _naflex_square(encoder, pixels):
    patch = encoder.config.patch_size
    grids = pixels.new_tensor(pixels.shape[2:]).long() // patch
    return _naflex(encoder, patches_of(pixels, patch), grids.expand(len(pixels), 2))


def _naflex_packed(encoder, patches, grids):
    import torch

    parts = zip(patches.split(grids.prod(dim=1).tolist()), grids)
    return torch.cat([_naflex(encoder, part[None], grid[None])[0] for part, grid in parts])


def _naflex_grid(height: int, width: int, patch: int, max_tokens: int) -> tuple[int, int]:
    """The largest scale, up or down, whose rounded-up grid keeps within the maximum, searched to 1e-5 as its processor does."""

    def grid(scale: float) -> tuple[int, int]:
        return max(1, math.ceil(height * scale / patch)), max(1, math.ceil(width * scale / patch))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= max_tokens else (low, middle)
    return grid(low)


def _naflex_side(config: Mapping[str, Any]) -> int:
    return round(config.get("num_patches", 256) ** 0.5)  # its positions are a square table of this many entries


# --- the table --------------------------------------------------------------------------------------------------------------

NORM, BLOCK = {"norm": last_hidden_state}, {"block": before_last_norm}
CLIP = {"block": last_hidden_state}  # whose last norm is applied to the class token alone
TOLD = {"interpolate_pos_encoding": True}
FAMILIES = {
    "genlip": Family(
        NORM,
        0,
        HALF,
        HALF,
        "bilinear",
        "computed",
        16,
        384,
        1024,
        native=Native(_genlip_grid, _genlip_packed),
        twin=GENLIP_TINY,
        learned_resolution=_genlip_resolution,
    ),
    "clip_vision_model": Family(CLIP, 1, OPENAI_MEAN, OPENAI_STD, "bicubic", "table", 32, 224, 768, crop=1.0, interpolate=TOLD),
    "mlcd_vision_model": Family(
        CLIP, 1, OPENAI_MEAN, OPENAI_STD, "bicubic", "computed", 14, 336, 1664, crop=1.0, twin=TINY | {"num_key_value_groups": 1}
    ),
    "openvision2": Family(CLIP, 1, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "table", 14, 336, 1024, interpolate=TOLD),
    "siglip_vision_model": Family(BLOCK, 0, HALF, HALF, "bicubic", "table", 16, 224, 768, interpolate=TOLD),
    "siglip2_vision_model": Family(
        {"block": _naflex_square},
        0,
        HALF,
        HALF,
        "bilinear",
        "table",
        16,
        256,
        768,
        config_resolution=lambda config: config.get("patch_size", 16) * _naflex_side(config),
        position_side=_naflex_side,
        native=Native(_naflex_grid, _naflex_packed),
        twin=TINY | {"num_patches": 16},
    ),
    "aimv2_vision_model": Family(
        BLOCK,
        0,
        OPENAI_MEAN,
        OPENAI_STD,
        "bicubic",
        "fixed",
        14,
        224,
        1024,
        crop=1.0,
        position_side=lambda config: None if config.get("is_native") else config["image_size"] // config["patch_size"],
    ),
    "dinov2": Family(NORM, 1, IMAGENET_MEAN, IMAGENET_STD, "bicubic", "table", 14, 224, 768, crop=256 / 224, twin=TINY | {"mlp_ratio": 4}),
    "dinov2_with_registers": Family(NORM, 1, IMAGENET_MEAN, IMAGENET_STD, "bicubic", "table", 16, 224, 768, crop=256 / 224, registers=4),
    "dinov3_vit": Family(
        NORM, 1, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "computed", 16, 224, 384, twin=TINY | {"num_register_tokens": 4}
    ),
    "vit": Family(NORM, 1, HALF, HALF, "bilinear", "table", 16, 224, 768, interpolate=TOLD),
}
# Families whose grid, width and prefix tokens are measured on their own class.
MEASURED = {
    "timm_wrapper": Family(
        {"norm": unpooled},
        packages=("timm", "torchvision"),
        prefix_of=lambda encoder: getattr(encoder.timm_model, "num_prefix_tokens", 0),
    )
}
ANY = Family(NORM)


def family_of(name: str) -> Family:
    """By transformers' model_type; of one that is in neither table, what any class of AutoModel is taken for."""
    return FAMILIES.get(name) or MEASURED.get(name) or ANY


def native_grid(family: str, height: int, width: int, patch: int, max_tokens: int) -> tuple[int, int]:
    """Rows and columns of patches for a picture of `height` x `width` pixels, at most `max_tokens` in all, by the family's own rule; an
    aspect ratio above 200 is refused."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"a picture of {width} x {height} pixels is more than 200 times longer than wide: crop it")
    native = family_of(family).native
    assert native is not None  # asked for before
    return native.grid(height, width, patch, max_tokens)
