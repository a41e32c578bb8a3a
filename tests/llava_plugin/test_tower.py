"""The tower's contract, the same for every family."""

import numpy as np
import pytest
import torch
from PIL import Image

from llava_plugin.encoders import KEYS
from llava_plugin.tower import VisionTower, digest

TWINS = ["genlip-tiny", "clip-tiny", "siglip2-tiny", "aimv2-tiny"]


def by_hand(tower, pixels):
    """Features taken from the family's own model at the documented layer, without the tower's code."""
    model = tower.encoder
    if tower.spec.family == "genlip":
        return model(pixels).last_hidden_state
    taken = []
    layers = model.encoder.layers  # the final block's own output, before any norm behind it
    handle = layers[-1].register_forward_hook(lambda module, args, out: taken.append(out[0] if isinstance(out, tuple) else out))
    model(pixels)
    handle.remove()
    return taken[0][:, 1:] if tower.spec.family == "clip_vision_model" else taken[0]


@pytest.mark.parametrize("key", TWINS)
def test_contract(key):
    tower = VisionTower.from_encoder(key)
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features = tower(pixels).last_hidden_state
        assert features.shape == (3, tower.spec.tokens, tower.spec.width) and torch.isfinite(features).all()
        torch.testing.assert_close(features, torch.cat([tower(p[None]).last_hidden_state for p in pixels]), atol=1e-5, rtol=0)
        torch.testing.assert_close(features, by_hand(tower, pixels), atol=0, rtol=0)
    tower(pixels).last_hidden_state.sum().backward()
    first = next(p for name, p in tower.named_parameters() if "patch" in name)
    assert first.grad.abs().sum() > 0
    tower.zero_grad(set_to_none=True)
    tower.freeze().train()
    assert not tower.training and not any(p.requires_grad for p in tower.parameters())


def test_class_token_is_dropped():
    """A change in the first patch moves token 0 most: what stands there is that patch, not a class token."""
    tower = VisionTower.from_encoder("clip-tiny")
    pixels = torch.zeros(1, 3, 64, 64)
    changed = pixels.clone()
    changed[:, :, :16, :16] = 3.0
    with torch.no_grad():
        moved = (tower(changed).last_hidden_state - tower(pixels).last_hidden_state).norm(dim=-1)[0]
    assert moved.argmax() == 0


def test_digest_is_of_names_shapes_dtypes_and_bytes():
    tower = VisionTower.from_encoder("clip-tiny")
    before = digest(tower)
    assert before == digest(VisionTower.from_encoder("clip-tiny")) != digest(VisionTower.from_encoder("siglip2-tiny"))
    assert digest(tower.to(torch.bfloat16)) != before
    tower = VisionTower.from_encoder("clip-tiny")
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-6
    assert digest(tower) != before


def test_features_computed_before_pass_through():
    features = torch.randn(2, 16, 128)
    assert VisionTower.from_encoder("genlip-tiny")(features).last_hidden_state is features


@pytest.mark.parametrize("key", [k for k in KEYS if KEYS[k].seed is not None])
def test_preprocessing_is_the_specs(key):
    tower = VisionTower.from_encoder(key)
    grey = Image.new("L", (30, 90), 128)
    pixels = tower.preprocess([grey, Image.new("RGBA", (7, 5), (255, 0, 0, 255))])
    assert pixels.shape == (2, 3, 64, 64)
    expected = (128 / 255 - np.array(tower.spec.mean)) / np.array(tower.spec.std)
    np.testing.assert_allclose(pixels[0, :, 5, 5], expected, atol=1e-6)


def test_clip_preprocessing_equals_its_own_processor(shared):
    from transformers import CLIPImageProcessor

    tower = VisionTower.from_encoder("clip-tiny")
    size = {"height": 64, "width": 64}
    own = CLIPImageProcessor(size=size, do_center_crop=False)
    image = Image.open(shared / "sft" / "images" / "000000032286.jpg")
    theirs = own(image, return_tensors="pt").pixel_values
    std = torch.tensor(tower.spec.std).view(1, 3, 1, 1)
    assert ((tower.preprocess([image]) - theirs) * std).abs().max() <= 1 / 255 + 1e-6
