"""One tower for every encoder: transformers' own model of the family, driven by an EncoderSpec.

    tower = VisionTower.from_encoder("dinov2-s14", resolution=56)
    features = tower(tower.preprocess(pictures)).last_hidden_state        # (B, tokens, width)
    features = VisionTower.from_encoder("genlip-tiny").native(pictures)   # a list of (tokens, width), each picture at its own grid

Families read at their final block skip the norm and pooling head behind it.
Shapes: B pictures, R pixels a side, N = (R / patch)^2 tokens, P patch side, D width.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from genlip.common import model_folder

from . import encoders, pictures, register, views
from .encoders import EncoderSpec
from .encoders.families import FAMILIES, family_of, native_grid, patches_of


def tensor_digests(module: torch.nn.Module | dict[str, torch.Tensor]) -> dict[str, str]:
    """Name -> sha256 (hex) over shape, dtype and bytes of each tensor of a module's state dict, or of such a dict.

    Tensors are hashed side by side: hashing and copying from a GPU both let other threads run.
    """

    def of(tensor: torch.Tensor) -> str:
        sha = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
        sha.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
        return sha.hexdigest()

    state = module if isinstance(module, dict) else module.state_dict()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return dict(zip(state, threads.map(of, state.values())))


def digest(weights: torch.nn.Module | dict[str, str], part: str = "") -> str:
    """sha256 (hex) over the names, shapes, dtypes and bytes of all weights: equal for equal weights, whatever the file.

    It is taken over the sorted lines "name tensor-digest", so that the digest of a `part` of an MLLM follows from the
    `tensor_digests` of the whole: those whose names begin with `part`, without it, equal to the digest of that module alone.
    """
    tensors = weights if isinstance(weights, dict) else tensor_digests(weights)
    lines = sorted(f"{name.removeprefix(part)} {own}\n" for name, own in tensors.items() if name.startswith(part))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class VisionTowerConfig(PreTrainedConfig):
    """A spec and the family's own config, as plain dictionaries, so that an export needs nothing else to be built again."""

    model_type = "genlip_eval_tower"

    def __init__(self, spec: dict | None = None, encoder: dict | None = None, untrained: bool = False, **kwargs):
        self.spec, self.encoder, self.untrained = spec, encoder, untrained
        if spec is not None:  # names that transformers' LLaVA reads
            self.hidden_size, self.patch_size, self.image_size = spec["width"], spec["patch_size"], spec["resolution"]
        super().__init__(**kwargs)


class VisionTower(PreTrainedModel):
    """`forward(pixel_values)`: (B, 3, R, R) -> `last_hidden_state` (B, N, D), taken where the spec says, prefix tokens dropped."""

    config_class = VisionTowerConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VisionTowerConfig):
        super().__init__(config)
        register()
        own = {key: tuple(value) if isinstance(value, list) else value for key, value in config.spec.items()}  # JSON has no tuples
        self.spec = EncoderSpec(**own)
        inner = dict(config.encoder)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(inner.pop("model_type"), **inner))
        self.frozen = False
        self.post_init()

    def _init_weights(self, module):
        """The family's own class has initialised its weights already."""

    @classmethod
    def from_encoder(
        cls, name: str, resolution: int | None = None, dtype: torch.dtype = torch.float32, view: str = "square", layer: int = -1
    ) -> "VisionTower":
        """Build the tower of an encoder (key, folder, NAME=PATH, hub id) with its weights, for pictures of a view (views.py), read at its
        last `layer`, or at -2, the block before.

        Raises ValueError for an unknown name, absent weights (with the command that brings them), or weights that do not fill
        the model.
        """
        register()
        spec = encoders.resolve(name, resolution, view, layer)
        source = encoders.find_weights(spec)
        tower = cls._around(spec, _tiny_twin(spec).to(dtype) if source is None else _load(spec, source, dtype), source is None)
        spec = tower.spec
        if family_of(spec.family).positions == "fixed" and tower.position_grid not in (None, spec.grid):
            own = tower.position_grid * spec.patch_size
            raise ValueError(f"{spec.key} has positions for {own} pixels a side only and is not interpolated: use --resolution {own}")
        return tower

    @classmethod
    def of_random_weights(cls, name: str, resolution: int | None = None, dtype: torch.dtype = torch.float32) -> "VisionTower":
        """The tower of a released GenLIP size (or a tiny twin) with random weights, made on the default device without any file: what
        a model of these sizes costs does not depend on what it learnt. ValueError for an encoder whose config is in its folder alone.
        """
        from genlip.configuration_genlip import PRESETS

        register()
        spec = encoders.resolve(name, resolution)
        size = spec.key.removesuffix("-s1")
        if spec.seed is not None:
            return cls._around(spec, _tiny_twin(spec).to(dtype), True)
        if size not in PRESETS:
            known = ", ".join(key for key in encoders.KEYS if key in PRESETS)
            raise ValueError(f"the sizes of {spec.key} are not known without its folder; those of {known} are")
        return cls._around(spec, AutoModel.from_config(AutoConfig.for_model("genlip", **PRESETS[size]), dtype=dtype), True)

    @classmethod
    def _around(cls, spec: EncoderSpec, encoder: PreTrainedModel, untrained: bool) -> "VisionTower":
        spec = replace(spec, parameters=encoder.num_parameters())
        with torch.device("meta"):
            tower = cls(VisionTowerConfig(spec=asdict(spec), encoder=encoder.config.to_dict(), untrained=untrained))
        tower.encoder = encoder
        return tower.eval()

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch: transformers' LLaVA asks for it where pictures have sizes of their own."""
        return self.spec.patch_size

    @property
    def position_grid(self) -> int | None:
        """Side of the trained position table; None where positions are computed for any grid or nobody can say."""
        family = family_of(self.spec.family)
        return None if family.positions == "computed" else family.position_side(self.config.encoder)

    @property
    def interpolation(self) -> str | None:
        """What was done to the positions, in words for the provenance; None where they are used as trained."""
        own, grid = self.position_grid, self.spec.grid
        if own in (None, grid):
            return None
        return f"positions interpolated from {own} x {own} to {grid} x {grid} by transformers' rule for {self.spec.family}"

    def with_view(self, view: str) -> "VisionTower":
        """The same tower for pictures of another view, as a spec has it."""
        self.spec = replace(self.spec, view=view)
        self.config.spec = asdict(self.spec)
        return self

    def freeze(self) -> "VisionTower":
        """No gradients, and evaluation mode for good: `train()` on the whole MLLM does not wake drop path up."""
        self.requires_grad_(False)
        self.frozen = True
        return self.eval()

    def train(self, mode: bool = True):
        return super().train(mode and not self.frozen)

    def _apply(self, fn, recurse=True):
        """Buffers of float type that no file holds (rotary frequencies) stay as precise as they are made, through `to(bfloat16)` too:
        after a reload they are that again, and features have to be equal before and after it."""
        kept = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in module._non_persistent_buffers_set
            if module._buffers[name] is not None and module._buffers[name].is_floating_point()
        ]
        super()._apply(fn, recurse)
        for module, name, before in kept:
            if not before.is_meta:
                module._buffers[name] = before.to(module._buffers[name].device)
        return self

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        """PIL pictures -> (B, 3, R, R) fp32, by anyres all their tiles: turned as EXIF says, RGB, by the spec's view, normalised."""
        return torch.stack([torch.from_numpy(square) for image in images for square in pictures.squares(image, self.spec)])

    def prepare(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What an MLLM takes of PIL pictures, by the spec's view: `pixel_values`, squares or, at their own aspect ratio, packed patches
        (N, 3, P, P); where a picture's size decides on its tokens, `image_sizes` (B, 2) too: height and width, or what they became.
        """
        view = views.parse(self.spec.view)
        if view.kind == "native":
            patches, sizes = self.preprocess_native(images, view.max_tokens)
            return {"pixel_values": patches, "image_sizes": sizes}
        sizes = {"image_sizes": torch.tensor([pictures.upright_size(image) for image in images])} if view.by_size else {}
        return {"pixel_values": self.preprocess(images), **sizes}

    def features(self, images: list[Image.Image]) -> list[torch.Tensor]:
        """Of each picture, by the spec's view: (1, N, D), by anyres (tiles, N, D), at its own aspect ratio (N, D)."""
        view = views.parse(self.spec.view)
        if view.kind == "native":
            return self.native(images, view.max_tokens)
        counts = [views.parts(self.spec, *pictures.upright_size(image)) for image in images]
        return list(self(self.preprocess(images).to(self.device)).last_hidden_state.split(counts))

    def as_input(self, features: list[torch.Tensor], sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """What an MLLM takes of `features` of pictures of these sizes (height, width), in the place of their pixels."""
        view, together = views.parse(self.spec.view), torch.cat(features)
        if view.kind == "native":
            return {"pixel_values": together[None]}
        return {"pixel_values": together} | ({"image_sizes": torch.tensor(sizes)} if view.by_size else {})

    def _pixels(self, image: Image.Image, height: int, width: int) -> torch.Tensor:
        return torch.from_numpy(pictures.pixels(image, self.spec, height, width))

    def preprocess_native(self, images: list[Image.Image], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """PIL pictures at their own aspect ratio -> packed patches (N, 3, P, P) fp32 and image_sizes (B, 2), height and width in
        pixels: what `forward` takes. ValueError for a family that reads squares only."""
        spec = self.spec
        encoders.require_native(spec)
        grids = [native_grid(spec.family, *pictures.upright_size(image), spec.patch_size, max_tokens) for image in images]
        sizes = torch.tensor(grids) * spec.patch_size
        pixels = [self._pixels(image, height, width) for image, (height, width) in zip(images, sizes.tolist())]
        return torch.cat([patches_of(p[None], spec.patch_size)[0] for p in pixels]), sizes

    def forward(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None = None, **kwargs) -> BaseModelOutput:
        """(B, 3, R, R) -> features (B, N, D). With image_sizes (B, 2), packed patches (N, 3, P, P) of pictures at their own aspect
        ratio -> (1, N, D), which transformers' LLaVA splits again. A (B, N, D) input is
        cached features, which pass through unchanged."""
        spec = self.spec
        if pixel_values.ndim == 3:
            features = pixel_values
        elif image_sizes is not None:
            features = self._packed(pixel_values.to(self.encoder.dtype), torch.as_tensor(image_sizes, device=pixel_values.device))[None]
        elif pixel_values.shape[2:] != (spec.resolution, spec.resolution):
            raise ValueError(
                f"{spec.key} takes {spec.resolution} x {spec.resolution} pixels, not {tuple(pixel_values.shape[2:])}: use preprocess"
            )
        else:
            features = _encode(self.encoder, spec, pixel_values.to(self.encoder.dtype), self.interpolation is not None)
            features = features[:, spec.prefix_tokens :]
            if features.shape[1] != spec.tokens:
                raise ValueError(
                    f"{spec.key} gave {features.shape[1]} tokens where its spec says {spec.tokens} ({spec.grid} x {spec.grid})"
                )
        return BaseModelOutput(last_hidden_state=features, hidden_states=(features,))

    def _packed(self, patches: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """Packed patches (N, 3, P, P) -> (N, D), no picture seeing another."""
        encoders.require_native(self.spec)
        return family_of(self.spec.family).native.packed(self.encoder, patches, image_sizes // self.spec.patch_size)

    def native(self, images: list[Image.Image], max_tokens: int | None = None) -> list[torch.Tensor]:
        """Features at each picture's own aspect ratio: a list of (N_i, D), N_i at most `max_tokens` (default: the square's number).

        Raises ValueError for a family that reads squares only.
        """
        patches, sizes = self.preprocess_native(images, max_tokens or self.spec.tokens)
        features = self(patches.to(self.device), image_sizes=sizes).last_hidden_state[0]
        return list(features.split((sizes // self.spec.patch_size).prod(dim=1).tolist()))


def digests_as_trained(name: str, resolution: int | None = None, layer: int = -1) -> Iterator[str]:
    """The digests that an encoder's tower may have had when a training began with it: in each dtype, and rounded to it but in float32.

    Raises ValueError as `VisionTower.from_encoder` does.
    """
    state = VisionTower.from_encoder(name, resolution, layer=layer).state_dict()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
        yield digest(tensor_digests(cast))
        if dtype != torch.float32:
            yield digest(tensor_digests({key: tensor.to(state[key].dtype) for key, tensor in cast.items()}))


def _encode(encoder: PreTrainedModel, spec: EncoderSpec, pixels: torch.Tensor, interpolate: bool) -> torch.Tensor:
    """(B, 3, H, W) -> (B, prefix + N, D) where the spec says."""
    family = family_of(spec.family)
    features = family.features[spec.feature.removesuffix(" before last")](encoder, pixels, **(family.interpolate if interpolate else {}))
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def never_trained(encoder: torch.nn.Module) -> bool:
    """Whether its weights are as its class makes them: every norm still has one value in all channels, as no training leaves it."""
    norms = [m for m in encoder.modules() if "norm" in type(m).__name__.lower() and isinstance(getattr(m, "weight", None), torch.Tensor)]
    return bool(norms) and all(bool((m.weight == m.weight.flatten()[0]).all()) for m in norms)


def _load(spec: EncoderSpec, source: str, dtype: torch.dtype) -> PreTrainedModel:
    """The encoder's weights in the family's own class. ValueError where they are missing, of another family, or do not fill it."""
    with model_folder.building(Path(source, "config.json")):
        config = AutoConfig.from_pretrained(source)
    config = getattr(config, "vision_config", config)
    mend = f"fetch them again (python -m llava_plugin.fetch {spec.key} --force), or name the folder as it is: --encoder my-name={source}"
    if config.model_type != spec.family:
        raise ValueError(f"{spec.key} is a {spec.family}, but {source} holds a {config.model_type}: {mend}")
    if spec.feature == encoders.BEFORE_LAST:
        config.num_hidden_layers -= 1
    try:
        with model_folder.building(Path(source, "config.json"), mend):
            encoder, info = AutoModel.from_pretrained(source, config=config, dtype=dtype, output_loading_info=True)
    except OSError as e:
        raise ValueError(f"{spec.key}: the weights in {source} cannot be read ({e}): {mend}") from e
    lacking = sorted(set(info["missing_keys"]) | {str(key) for key in info["mismatched_keys"]})
    if lacking:
        raise ValueError(f"{spec.key}: {source} lacks {', '.join(lacking[:5])}, which its config.json promises: {mend}")
    if spec.family in FAMILIES and (config.hidden_size, config.patch_size) != (spec.width, spec.patch_size):
        found = f"width {config.hidden_size} and patch {config.patch_size}"
        raise ValueError(f"{spec.key} has width {spec.width} and patch {spec.patch_size}, but {source} holds {found}: {mend}")
    return encoder


def _tiny_twin(spec: EncoderSpec) -> PreTrainedModel:
    """A randomly initialised model of the family's real class, the same for the same seed, without touching the global RNG."""
    config = AutoConfig.for_model(spec.family, **FAMILIES[spec.family].twin)
    if spec.feature == encoders.BEFORE_LAST:
        config.num_hidden_layers -= 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return AutoModel.from_config(config)
