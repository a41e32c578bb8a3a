"""One tower for every encoder: transformers' own model of the family, driven by an EncoderSpec.

    tower = VisionTower.from_encoder("dinov2-s14", resolution=56)
    features = tower(tower.preprocess(pictures)).last_hidden_state        # (B, tokens, width)

Shapes: B pictures, R pixels a side, N = (R / patch)^2 tokens, D width.
"""

import hashlib
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from . import encoders, register
from .encoders import EncoderSpec

# A tiny twin is the family's real class at this size (about a million parameters), never trained.
_TINY = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 16, "image_size": 64}


def digest(module: torch.nn.Module) -> str:
    """sha256 (hex) over names, shapes, dtypes and bytes of all weights: equal for equal weights, whatever the file."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().contiguous().cpu()
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


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
        self.spec = EncoderSpec(**config.spec)
        inner = dict(config.encoder)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(inner.pop("model_type"), **inner))
        self.frozen = False
        self.post_init()

    def _init_weights(self, module):
        """The family's own class has initialised its weights already."""

    @classmethod
    def from_encoder(cls, name: str, resolution: int | None = None, dtype: torch.dtype = torch.float32) -> "VisionTower":
        """Build the tower of an encoder (key, folder, NAME=PATH, hub id) with its weights.

        Raises ValueError for an unknown name, absent weights (with the command that brings them), or weights that do not fill
        the model.
        """
        register()
        spec = encoders.resolve(name, resolution)
        source = encoders.find_weights(spec)
        if source is None:
            encoder = _tiny_twin(spec).to(dtype)
        else:
            config = AutoConfig.from_pretrained(source)
            config = getattr(config, "vision_config", config)
            try:
                encoder, info = AutoModel.from_pretrained(source, config=config, dtype=dtype, output_loading_info=True)
            except OSError as e:
                raise ValueError(f"{spec.key}: the weights in {source} cannot be read ({e})") from e
            if info["missing_keys"]:
                raise ValueError(f"{spec.key}: {source} lacks {', '.join(sorted(info['missing_keys'])[:5])}; its config.json promises them")
        with torch.device("meta"):
            tower = cls(VisionTowerConfig(spec=asdict(spec), encoder=encoder.config.to_dict(), untrained=source is None))
        tower.encoder = encoder
        return tower.eval()

    def freeze(self) -> "VisionTower":
        """No gradients, and evaluation mode for good: `train()` on the whole MLLM does not wake drop path up."""
        self.requires_grad_(False)
        self.frozen = True
        return self.eval()

    def train(self, mode: bool = True):
        return super().train(mode and not self.frozen)

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        """PIL pictures -> (B, 3, R, R) fp32: turned as EXIF says, RGB, resized to the square, normalised by the spec."""
        side = self.spec.resolution
        resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[self.spec.resample]
        squares = [np.asarray(ImageOps.exif_transpose(image).convert("RGB").resize((side, side), resample)) for image in images]
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255.0
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.spec.mean, self.spec.std))
        return (pixels - mean) / std

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutput:
        """(B, 3, R, R) -> features (B, N, D). A (B, N, D) input is taken for features computed before (the cache of a frozen tower)."""
        if pixel_values.ndim == 3:
            return BaseModelOutput(last_hidden_state=pixel_values, hidden_states=(pixel_values,))
        spec = self.spec
        options = {"output_hidden_states": True} if spec.feature == "block" else {}
        native = self.config.encoder.get("image_size")
        if spec.family in ("clip_vision_model", "siglip_vision_model") and native != spec.resolution:
            options["interpolate_pos_encoding"] = True  # DINOv2 does so by itself, GenLIP has no position table
        out = self.encoder(pixel_values.to(self.encoder.dtype), **options)
        features = out.hidden_states[-1] if spec.feature == "block" else out.last_hidden_state
        features = features[:, spec.prefix_tokens :]
        if features.shape[1] != spec.tokens:
            raise ValueError(f"{spec.key} gave {features.shape[1]} tokens where its spec says {spec.tokens} ({spec.grid} x {spec.grid})")
        return BaseModelOutput(last_hidden_state=features, hidden_states=(features,))


def _tiny_twin(spec: EncoderSpec) -> PreTrainedModel:
    """A randomly initialised model of the family's real class, the same for the same seed, without touching the global RNG."""
    if spec.family == "genlip":
        from genlip.recipes import TINY

        config = AutoConfig.for_model("genlip", **TINY)
    else:
        config = AutoConfig.for_model(spec.family, **_TINY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return AutoModel.from_config(config)
