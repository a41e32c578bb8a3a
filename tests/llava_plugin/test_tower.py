"""The tower's contract, one set of tests over every family's twin."""

import numpy as np
import pytest
import torch
from PIL import Image

from llava_plugin.encoders import KEYS
from llava_plugin.encoders.families import FAMILIES, family_of
from llava_plugin.tower import VisionTower, digest, digests_as_trained, native_grid, tensor_digests

TWINS = [key for key, spec in KEYS.items() if spec.seed is not None and key != "random-tiny"]
FIRST_LAYER = {  # the parameter that a pixel meets first, by the names of the family's own class
    "genlip": "vision_embeddings.patch_embedding.weight",
    "clip_vision_model": "embeddings.patch_embedding.weight",
    "openvision2": "embeddings.patch_embedding.weight",
    "mlcd_vision_model": "embeddings.patch_embedding.weight",
    "siglip_vision_model": "embeddings.patch_embedding.weight",
    "siglip2_vision_model": "embeddings.patch_embedding.weight",
    "aimv2_vision_model": "embeddings.patch_embed.weight",
    "dinov2": "embeddings.patch_embeddings.projection.weight",
    "dinov3_vit": "embeddings.patch_embeddings.weight",
    "vit": "embeddings.patch_embeddings.projection.weight",
}


@pytest.fixture(params=TWINS)
def tower(request):
    return VisionTower.from_encoder(request.param)


def by_hand(tower, pixels):
    """Features from the family's own model called by its own forward, at the documented layer, without the tower's code."""
    model, family = tower.encoder, tower.spec.family
    if family == "genlip":
        return model(pixels).last_hidden_state
    if family in ("dinov2", "vit"):
        return model(pixels).last_hidden_state[:, 1:]  # class token
    if family == "dinov3_vit":
        return model(pixels).last_hidden_state[:, 5:]  # class token, four registers
    taken = []  # the final block's own output, before any norm behind it
    handle = model.encoder.layers[-1].register_forward_hook(
        lambda module, args, out: taken.append(out[0] if isinstance(out, tuple) else out)
    )
    if family == "siglip2_vision_model":
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

        rows = torch.from_numpy(np.stack([convert_image_to_patches(p.numpy(), 16) for p in pixels]))
        grid = torch.tensor([[4, 4]] * len(pixels))
        model(rows, pixel_attention_mask=torch.ones(len(pixels), 16, dtype=torch.long), spatial_shapes=grid)
    else:
        model(pixels)
    handle.remove()
    return taken[0][:, 1:] if family in ("clip_vision_model", "openvision2", "mlcd_vision_model") else taken[0]


def test_every_family_of_the_table_has_a_twin():
    assert {KEYS[key].family for key in TWINS} | {"dinov2_with_registers"} == set(FAMILIES)


def test_tokens_parameters_and_finite_features_are_the_tables(tower):
    table = KEYS[tower.spec.key]
    features = tower(torch.randn(2, 3, 64, 64)).last_hidden_state
    assert features.shape == (2, table.tokens, table.width) == (2, table.grid**2, 128)
    assert torch.isfinite(features).all()
    assert sum(p.numel() for p in tower.encoder.parameters()) == table.parameters
    assert tower.config.untrained and tower.interpolation is None


@torch.no_grad()
def test_a_batch_is_its_pictures_one_by_one(tower):
    pixels = torch.randn(3, 3, 64, 64)
    alone = torch.cat([tower(p[None]).last_hidden_state for p in pixels])
    torch.testing.assert_close(tower(pixels).last_hidden_state, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


@torch.no_grad()
def test_features_are_those_of_the_familys_own_model(tower):
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(tower(pixels).last_hidden_state, by_hand(tower, pixels), atol=1e-5, rtol=0)


@torch.no_grad()
def test_token_zero_is_the_first_patch_and_the_order_is_row_by_row(tower):
    """A change in one patch moves that patch's token most: no class token or register stands among them."""
    pixels = torch.zeros(1, 3, 64, 64)
    before = tower(pixels).last_hidden_state
    for token, (row, column) in {0: (0, 0), 1: (0, 1), 4: (1, 0), 15: (3, 3)}.items():
        changed = pixels.clone()
        changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = torch.randn(3, 16, 16)
        assert (tower(changed).last_hidden_state - before).norm(dim=-1)[0].argmax() == token


def test_gradients_reach_the_first_layer_or_none_exist(tower):
    pixels = torch.randn(1, 3, 64, 64)
    tower(pixels).last_hidden_state.square().sum().backward()
    assert tower.encoder.get_parameter(FIRST_LAYER[tower.spec.family]).grad.abs().sum() > 0
    tower.zero_grad(set_to_none=True)
    tower.freeze().train()
    assert not tower.training and not tower.encoder.training
    assert not tower(pixels).last_hidden_state.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in tower.parameters())


def test_gradient_checkpointing_changes_no_gradient_and_runs_blocks_twice(tower):
    pixels = torch.randn(1, 3, 64, 64)
    first = tower.encoder.get_parameter(FIRST_LAYER[tower.spec.family])
    blocks = next(m for m in tower.encoder.modules() if isinstance(m, torch.nn.ModuleList))
    calls = []
    next(blocks[1].children()).register_forward_pre_hook(lambda *args: calls.append(1))
    gradients = []
    for checkpointing in (False, True):
        tower.train()
        if checkpointing:
            tower.gradient_checkpointing_enable()
        calls.clear()
        tower.zero_grad()
        tower(pixels).last_hidden_state.square().sum().backward()
        gradients.append(first.grad.clone())
        assert len(calls) == 1 + checkpointing
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_saved_and_read_again_is_equal(tower, tmp_path):
    tower.save_pretrained(tmp_path)
    again = VisionTower.from_pretrained(tmp_path)
    assert again.spec == tower.spec and digest(again) == digest(tower)
    pixels = torch.randn(1, 3, 64, 64)
    assert again(pixels).last_hidden_state.equal(tower(pixels).last_hidden_state)


@torch.no_grad()
def test_another_resolution_is_said_or_refused(tower):
    key, family = tower.spec.key, tower.spec.family
    if FAMILIES[family].positions == "fixed":
        with pytest.raises(ValueError, match="use --resolution 64"):
            VisionTower.from_encoder(key, resolution=96)
        return
    larger = VisionTower.from_encoder(key, resolution=96)
    assert larger(torch.randn(1, 3, 96, 96)).last_hidden_state.shape == (1, 36, 128)
    said = {"computed": None, "table": f"positions interpolated from 4 x 4 to 6 x 6 by transformers' rule for {family}"}
    assert larger.interpolation == said[FAMILIES[family].positions]
    with pytest.raises(ValueError, match="takes 96 x 96 pixels"):
        larger(torch.randn(1, 3, 64, 64))


# --- preprocessing ----------------------------------------------------------------------------------------------------------


def own_processor(family, side):
    """The family's own processor, asked for the whole picture at `side` pixels (its crop would hide what a question asks about)."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    import genlip

    whole = {"size": {"height": side, "width": side}, "do_center_crop": False, "do_convert_rgb": True}
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return {
        "genlip": lambda: genlip.GenLIPImageProcessor(size=side),
        "clip_vision_model": lambda: CLIPImageProcessorPil(**whole),
        "aimv2_vision_model": lambda: CLIPImageProcessorPil(**whole),  # the class and values that its authors' folders name
        "mlcd_vision_model": lambda: CLIPImageProcessorPil(**whole),  # likewise
        "siglip_vision_model": lambda: SiglipImageProcessorPil(size=whole["size"], do_convert_rgb=True),
        "dinov2": lambda: BitImageProcessorPil(**whole, **imagenet),
        "openvision2": lambda: BitImageProcessorPil(**whole, **imagenet, resample=2),  # its authors' "vgg_value_range", bilinear
        "vit": lambda: ViTImageProcessorPil(size=whole["size"]),
        "dinov3_vit": lambda: BitImageProcessorPil(**whole, **imagenet, resample=2),  # its own class needs torchvision
    }[family]()


@pytest.mark.parametrize("key", [key for key in TWINS if key not in ("siglip2-tiny", "siglip2-naflex-tiny")])
def test_preprocessing_equals_the_familys_own_processor_on_real_photos(key, shared):
    tower = VisionTower.from_encoder(key)
    photos = [Image.open(path) for path in sorted((shared / "sft" / "images").glob("*.jpg"))]
    theirs = own_processor(tower.spec.family, 64)(photos, return_tensors="pt")["pixel_values"]
    std = torch.tensor(tower.spec.std).view(1, 3, 1, 1)
    assert len(photos) == 10
    assert ((tower.preprocess(photos) - theirs) * std).abs().max() <= 1 / 255 + 1e-6


def test_siglip2_resizes_bilinearly_and_naflex_as_its_own_processor(shared):
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    photos = [Image.open(path) for path in sorted((shared / "sft" / "images").glob("*.jpg"))]
    theirs = Siglip2ImageProcessorPil(max_num_patches=40)(photos, return_tensors="pt")
    tower = VisionTower.from_encoder("siglip2-naflex-tiny")
    for photo, rows, mask, shape in zip(photos, theirs["pixel_values"], theirs["pixel_attention_mask"], theirs["spatial_shapes"].tolist()):
        assert list(native_grid("siglip2_vision_model", photo.height, photo.width, 16, 40)) == shape
        ours = tower._pixels(photo, 16 * shape[0], 16 * shape[1])
        ours = ours.view(3, shape[0], 16, shape[1], 16).permute(1, 3, 2, 4, 0).reshape(-1, 768)
        assert (ours - rows[mask.bool()]).abs().max() * 0.5 <= 1 / 255 + 1e-6
    assert KEYS["siglip2-so16-384"].resample == "bilinear" and KEYS["siglip-l16-384"].resample == "bicubic"


@pytest.mark.parametrize("key", TWINS)
def test_any_mode_and_exif_turn(key):
    tower = VisionTower.from_encoder(key)
    grey = Image.new("L", (30, 90), 128)
    turned = Image.new("RGB", (20, 10), (255, 0, 0))
    turned.paste((0, 0, 255), (0, 0, 20, 5))  # blue above red, to be shown turned by a quarter
    turned.getexif()[274] = 6
    pixels = tower.preprocess([grey, Image.new("RGBA", (7, 5), (255, 0, 0, 255)), turned])
    assert pixels.shape == (3, 3, 64, 64)
    expected = (128 / 255 - np.array(tower.spec.mean)) / np.array(tower.spec.std)
    np.testing.assert_allclose(pixels[0, :, 5, 5], expected, atol=1e-6)
    assert pixels[2, 2, 32, 60] > pixels[2, 2, 32, 3]  # blue at the right


# --- native aspect ratio ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in TWINS if family_of(KEYS[key].family).native])
@torch.no_grad()
def test_native_aspect_gives_lists_and_no_picture_sees_another(key):
    tower = VisionTower.from_encoder(key)
    pictures = [Image.effect_noise(size, 60).convert("RGB") for size in ((200, 100), (64, 64), (90, 300))]
    features = tower.native(pictures, max_tokens=50)
    grids = [native_grid(tower.spec.family, p.height, p.width, 16, 50) for p in pictures]
    assert [f.shape for f in features] == [(h * w, 128) for h, w in grids]
    assert all(h * w <= 50 for h, w in grids) and len({h * w for h, w in grids}) > 1
    for picture, together in zip(pictures, features):
        torch.testing.assert_close(tower.native([picture], max_tokens=50)[0], together, atol=1e-5, rtol=0)
    square = tower.native([pictures[1]], max_tokens=16)[0]
    torch.testing.assert_close(square, tower(tower.preprocess([pictures[1]])).last_hidden_state[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_native_features_are_those_of_the_familys_own_model_and_processor(shared):
    photo = Image.open(sorted((shared / "sft" / "images").glob("*.jpg"))[0])
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    tower = VisionTower.from_encoder("siglip2-naflex-tiny")
    own = Siglip2ImageProcessorPil(max_num_patches=40)([photo], return_tensors="pt")
    rows, columns = own["spatial_shapes"][0].tolist()
    taken = []
    tower.encoder.encoder.layers[-1].register_forward_hook(lambda module, args, out: taken.append(out))
    tower.encoder(**own)  # padded to 40 patches, masked
    ours = tower.native([photo], max_tokens=40)[0]
    assert rows != columns and ours.shape == (rows * columns, 128)
    torch.testing.assert_close(ours, taken[0][0, : rows * columns], atol=0.02, rtol=0)  # the processors differ by up to 1/255

    tower = VisionTower.from_encoder("genlip-tiny")
    rows, columns = native_grid("genlip", photo.height, photo.width, 16, 40)
    own = tower.encoder(tower._pixels(photo, 16 * rows, 16 * columns)[None]).last_hidden_state[0]
    assert rows != columns
    torch.testing.assert_close(tower.native([photo], max_tokens=40)[0], own, atol=1e-5, rtol=0)


def test_native_grids_are_the_published_examples():
    cases = {(640, 480): (36, 27), (1080, 1920): (24, 42), (32, 32): (4, 4), (224, 224): (14, 14), (512, 512): (32, 32)}
    assert {size: native_grid("genlip", *size, 16, 1024) for size in cases} == cases
    with pytest.raises(ValueError, match="200 times"):
        native_grid("genlip", 10, 2010, 16, 1024)
    with pytest.raises(ValueError, match="reads squares only"):
        VisionTower.from_encoder("clip-tiny").native([Image.new("RGB", (20, 20))])


# --- precision --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", TWINS)
@torch.no_grad()
def test_features_in_bf16_are_those_of_a_reload(key, tmp_path):
    """What no file holds (rotary frequencies) is made anew by a reload, so training must not round it. The digest knows nothing of it."""
    tower = VisionTower.from_encoder(key)
    saved = digest(tower.to(torch.bfloat16))
    tower.save_pretrained(tmp_path)
    again = VisionTower.from_pretrained(tmp_path, dtype="auto")
    pixels = tower.preprocess([Image.effect_noise((64, 64), 60).convert("RGB")])
    assert again.dtype == torch.bfloat16 and digest(again) == saved
    assert tower(pixels).last_hidden_state.equal(again(pixels).last_hidden_state)


# --- digest -----------------------------------------------------------------------------------------------------------------


def test_digest_is_of_names_shapes_dtypes_and_bytes():
    tower = VisionTower.from_encoder("clip-tiny")
    before = digest(tower)
    assert before == digest(VisionTower.from_encoder("clip-tiny")) != digest(VisionTower.from_encoder("siglip2-tiny"))
    assert digest(tower.to(torch.bfloat16)) != before
    tower = VisionTower.from_encoder("clip-tiny")
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-6
    assert digest(tower) != before


def test_the_digest_of_a_part_follows_from_the_tensors_of_the_whole():
    tower = VisionTower.from_encoder("clip-tiny")
    whole = torch.nn.ModuleDict({"a": tower, "ab": torch.nn.Linear(2, 2)})
    tensors = tensor_digests(whole)
    assert digest(tensors) == digest(whole) and digest(tensors, part="a.") == digest(tower)
    renamed = torch.nn.ModuleDict({"b": tower, "ab": whole["ab"]})
    assert digest(renamed) != digest(whole)  # names count
    flat, square = (torch.nn.ParameterDict({"p": torch.zeros(shape)}) for shape in (4, (2, 2)))
    assert digest(flat) != digest(square)  # and shapes


def test_digest_is_the_same_whatever_the_file(tmp_path):
    tower = VisionTower.from_encoder("genlip-tiny")
    tower.encoder.save_pretrained(tmp_path / "whole")
    tower.encoder.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    digests = {digest(VisionTower.from_encoder(f"x={tmp_path / name}")) for name in ("whole", "shards")}
    assert digests == {digest(tower)}


def test_an_encoder_is_known_again_in_whatever_dtype_a_training_began(tmp_path):
    tower = VisionTower.from_encoder("genlip-tiny")
    tower.encoder.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert digest(VisionTower.from_encoder("genlip-tiny", dtype=dtype)) in digests_as_trained(f"x={tmp_path}")
    assert digest(VisionTower.from_encoder("genlip-tiny").to(torch.bfloat16).float()) in digests_as_trained("genlip-tiny")
    assert digest(VisionTower.from_encoder("clip-tiny")) not in digests_as_trained("genlip-tiny")


def test_features_computed_before_pass_through():
    features = torch.randn(2, 16, 128)
    assert VisionTower.from_encoder("genlip-tiny")(features).last_hidden_state is features


@pytest.mark.parametrize("key", ["clip-tiny", "siglip-tiny", "aimv2-tiny", "rice-tiny", "siglip2-naflex-tiny"])
def test_the_block_before_the_last_is_what_llava_next_reads_and_the_last_is_not_built(key, tmp_path):
    whole = VisionTower.from_encoder(key)
    whole.encoder.save_pretrained(tmp_path)
    tower = VisionTower.from_encoder(f"mine={tmp_path}", layer=-2)
    pixels, taken = torch.randn(2, 3, 64, 64), []
    whole.encoder.encoder.layers[-2].register_forward_hook(
        lambda module, args, out: taken.append(out[0] if isinstance(out, tuple) else out)
    )
    whole(pixels)
    assert tower(pixels).last_hidden_state.equal(taken[0][:, whole.spec.prefix_tokens :])
    assert len(tower.encoder.encoder.layers) == len(whole.encoder.encoder.layers) - 1
    assert digest(tower) in digests_as_trained(f"mine={tmp_path}", layer=-2)
    with pytest.raises(ValueError, match="genlip-tiny is read behind its final norm"):
        VisionTower.from_encoder("genlip-tiny", layer=-2)
