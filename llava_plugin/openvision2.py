"""OpenVision 2 on transformers' CLIP vision tower, and its released files in that form (python -m llava_plugin.fetch openvision2-l14-336).

By its authors' code (UCSC-VLAA/OpenVision: src/models/vit.py, src/models/openvision2_model.py) it is CLIP's vision tower with an
exact GELU, eps 1e-6 and no norm in front of the blocks; its captioner read the final block's patch tokens, without the class token
and before the norm that the pooled output passes. The release is open_clip's layout in a pickle, under names that a plain open_clip
model takes too, its own norm in front left at its start: wrong features without a word. So every name is checked here.

    open_clip's `visual`                          here
    conv1.weight                                  embeddings.patch_embedding.weight
    class_embedding, positional_embedding         embeddings.class_embedding, embeddings.position_embedding.weight
    transformer.resblocks.N.attn.in_proj_*        encoder.layers.N.self_attn.{q,k,v}_proj.*, in this order
    transformer.resblocks.N.mlp.{c_fc,c_proj}     encoder.layers.N.mlp.{fc1,fc2}
    ln_post                                       post_layernorm
    proj                                          left out: it maps the pooled output
"""

import json
import pickle
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from genlip.common.files import read_json


class OpenVision2Config(CLIPVisionConfig):
    """CLIP's fields; the defaults are those of L/14 at 336."""

    model_type = "openvision2"
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6


class OpenVision2VisionModel(CLIPVisionModel):
    """(B, 3, H, W) -> `last_hidden_state` (B, 1 + N, D): the final block's output, class token first."""

    config_class = OpenVision2Config

    def __init__(self, config: OpenVision2Config):
        super().__init__(config)
        self.pre_layrnorm = torch.nn.Identity()


RENAMED = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_post": "post_layernorm",
}
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_open_clip(state: dict[str, torch.Tensor], model_cfg: dict) -> OpenVision2VisionModel:
    """The released state dict and its open_clip_config.json's `model_cfg` -> our model. ValueError names a key that does not fit."""
    vision = model_cfg["vision_cfg"]
    width = vision["width"]
    config = OpenVision2Config(
        hidden_size=width,
        intermediate_size=int(width * vision.get("mlp_ratio", 4)),
        num_hidden_layers=vision["layers"],
        num_attention_heads=width // vision.get("head_width", 64),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        layer_norm_eps=vision["norm_kwargs"]["eps"],
    )
    ours = {}
    for name, tensor in state.items():
        name = name.removeprefix("visual.")
        if name == "proj":
            continue
        if not name.startswith("transformer.resblocks."):
            module, dot, kind = (name, "", "") if name in RENAMED else name.rpartition(".")
            ours[RENAMED.get(module, module) + dot + kind] = tensor
            continue
        _, _, layer, rest = name.split(".", 3)
        block = f"encoder.layers.{layer}."
        if rest.startswith("attn.in_proj_"):
            for part, piece in zip("qkv", tensor.chunk(3)):
                ours[f"{block}self_attn.{part}_proj.{rest.removeprefix('attn.in_proj_')}"] = piece
        else:
            module, _, kind = rest.rpartition(".")
            ours[f"{block}{IN_BLOCK.get(module, module)}.{kind}"] = tensor
    model = OpenVision2VisionModel(config)
    expected = model.state_dict()
    wrong = sorted(ours.keys() ^ expected.keys()) + sorted(k for k in ours.keys() & expected.keys() if ours[k].shape != expected[k].shape)
    if wrong:
        raise ValueError(f"this is no OpenVision 2 as its open_clip_config.json says: {', '.join(wrong[:5])} do not fit")
    model.load_state_dict(ours)
    return model


def convert(released: Path, folder: Path) -> None:
    """A released folder (open_clip_config.json, open_clip_pytorch_model.bin) -> a from_pretrained folder with safetensors.

    The pickle is read with weights_only: nothing in it but tensors is built, and no code of it can run.
    """
    config = read_json(released / "open_clip_config.json")
    weights = released / "open_clip_pytorch_model.bin"
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as e:
        raise ValueError(f"{weights} holds more than tensors, or is cut short: fetch it again ({e})") from e
    from_open_clip(state, config["model_cfg"]).save_pretrained(folder)
    write_preprocessor(folder, config["model_cfg"]["vision_cfg"]["image_size"], resample=2)


def write_preprocessor(folder: Path, side: int, resample: int, **more) -> None:
    """The whole picture as a square of `side` pixels, ImageNet's mean and std; `resample` is PIL's number."""
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        **more,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": resample,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
