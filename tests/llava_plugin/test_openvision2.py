"""OpenVision 2 as released (open_clip's layout, a pickle) becomes a tower whose features are those of the authors' own arithmetic."""

import json
import math
import os

import huggingface_hub
import pytest
import torch
from torch.nn.functional import gelu, layer_norm
from transformers import AutoConfig, AutoModel

import llava_plugin
from llava_plugin import fetch, openvision2
from llava_plugin.tower import VisionTower

# The released open_clip_config.json, with smaller numbers.
CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "layers": 2,
            "width": 128,
            "patch_size": 14,
            "image_size": 56,
            "pool_type": "avg",
            "output_tokens": True,
            "norm_kwargs": {"eps": 1e-6},
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    }
}


def released_state() -> dict[str, torch.Tensor]:
    """Names and shapes as in the released file."""
    torch.manual_seed(0)
    d, shapes = 128, {"conv1.weight": (128, 3, 14, 14), "class_embedding": (128,), "positional_embedding": (17, 128), "proj": (128, 128)}
    shapes |= {"ln_post.weight": (d,), "ln_post.bias": (d,)}
    for i in range(2):
        block = f"transformer.resblocks.{i}."
        shapes |= {f"{block}{norm}.{kind}": (d,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"{block}attn.in_proj_weight": (3 * d, d), f"{block}attn.in_proj_bias": (3 * d,)}
        for name, (out, into) in {"attn.out_proj": (d, d), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}.items():
            shapes |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
    return {name: torch.randn(shape) / math.sqrt(shape[-1]) for name, shape in shapes.items()}


def by_hand(state, pixels):
    """Patch tokens behind the last block, from the released tensors alone: no norm before the blocks, none behind."""
    b = pixels.shape[0]
    patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(b, 16, 3 * 14 * 14)
    x = torch.cat([state["class_embedding"].expand(b, 1, 128), patches @ state["conv1.weight"].flatten(1).T], dim=1)
    x = x + state["positional_embedding"]
    for i in range(2):
        own = {k.removeprefix(f"transformer.resblocks.{i}."): v for k, v in state.items() if f"resblocks.{i}." in k}
        y = layer_norm(x, (128,), own["ln_1.weight"], own["ln_1.bias"], 1e-6)
        q, k, v = (y @ own["attn.in_proj_weight"].T + own["attn.in_proj_bias"]).view(b, 17, 3, 2, 64).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-1, -2) / 8).softmax(-1) @ v).transpose(1, 2).reshape(b, 17, 128)
        x = x + y @ own["attn.out_proj.weight"].T + own["attn.out_proj.bias"]
        y = layer_norm(x, (128,), own["ln_2.weight"], own["ln_2.bias"], 1e-6)
        x = x + gelu(y @ own["mlp.c_fc.weight"].T + own["mlp.c_fc.bias"]) @ own["mlp.c_proj.weight"].T + own["mlp.c_proj.bias"]
    return x[:, 1:]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that holds the small release, and an empty weights folder."""
    release = tmp_path / "snapshots" / "0123abcd"
    release.mkdir(parents=True)
    (release / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.save(released_state(), release / "open_clip_pytorch_model.bin")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repository, allow_patterns: str(release))
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path / "weights"))
    return release


@torch.no_grad()
def test_the_release_becomes_the_tower_that_its_tensors_say(hub, tmp_path):
    said = fetch.fetch("openvision2-l14-336", tmp_path / "weights")
    assert "converted from open_clip's layout" in said
    folder = tmp_path / "weights" / "openvision2-l14-336"
    assert not list(folder.glob("*.bin")) and json.loads((folder / "source.json").read_text())["revision"] == "0123abcd"
    tower = VisionTower.from_encoder(f"mine={folder}")
    spec = tower.spec
    assert (spec.family, spec.feature, spec.prefix_tokens, spec.grid, spec.width, spec.resample) == (
        "openvision2",
        "block",
        1,
        4,
        128,
        "bilinear",
    )
    pixels = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(tower(pixels).last_hidden_state, by_hand(released_state(), pixels), atol=1e-5, rtol=1e-5)


def test_l14_has_the_released_number_of_parameters():
    llava_plugin.register()
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("openvision2"))
    released, proj = 304_553_984, 1024 * 1024  # all tensors of the file, and the one that is left out
    assert model.num_parameters() == released - proj == 303_505_408


def test_other_tensors_are_named():
    state = released_state()
    del state["transformer.resblocks.1.ln_2.bias"]
    state["ln_pre.weight"] = torch.ones(128)
    with pytest.raises(ValueError, match=r"encoder\.layers\.1\.layer_norm2\.bias, ln_pre\.weight do not fit"):
        openvision2.from_open_clip(state, CONFIG["model_cfg"])
    state = released_state() | {"positional_embedding": torch.zeros(26, 128)}
    with pytest.raises(ValueError, match=r"embeddings\.position_embedding\.weight do not fit"):
        openvision2.from_open_clip(state, CONFIG["model_cfg"])


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_that_holds_code_is_refused_and_does_not_run(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(released_state() | {"proj": Payload()}, hub / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors, or is cut short: fetch it again"):
        fetch.fetch("openvision2-l14-336", tmp_path / "weights")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "weights" / "openvision2-l14-336").exists()
    whole = hub / "open_clip_pytorch_model.bin"
    torch.save(released_state(), whole)
    whole.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut short"):
        fetch.fetch("openvision2-l14-336", tmp_path / "weights")
