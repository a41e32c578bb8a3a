"""Folders that others made: the files that the families' authors publish, every form of a processor file, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

import genlip
from genlip.common.preprocessing import RESAMPLE, read_preprocessing
from llava_plugin.encoders import KEYS, resolve
from llava_plugin.encoders.__main__ import main as encoders_main
from llava_plugin.encoders.families import FAMILIES
from llava_plugin.tower import VisionTower

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published.json").read_text())
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 128, "patch_size": 16, "image_size": 64}


def folder_of(path: Path, config: dict, **files) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in {"config": config, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_its_authors_publish_is_read_as_they_mean_it(name, tmp_path):
    said = PUBLISHED[name]
    folder = folder_of(tmp_path / "it", said["config"], preprocessor_config=said["processor"])
    spec = resolve(str(folder))
    assert [spec.family, spec.resolution, spec.tokens, spec.resample, list(spec.mean)] == said["reads"]


def test_published_files_cover_the_families_of_the_table(tmp_path):
    folders = [folder_of(tmp_path / str(i), each["config"]) for i, each in enumerate(PUBLISHED.values())]
    assert {resolve(str(folder)).family for folder in folders} == set(FAMILIES)


def test_a_patch_embedding_may_leave_a_rest_of_its_own_size_alone(tmp_path):
    """So/14 at 384: its 729 tokens are of 378 pixels a side."""
    config = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    SiglipVisionModel(SiglipVisionConfig(image_size=64, patch_size=14, **config)).save_pretrained(tmp_path)
    tower = VisionTower.from_encoder(f"mine={tmp_path}")
    pixels = torch.rand(1, 3, 64, 64)
    seen = tower(pixels).last_hidden_state
    pixels[:, :, 56:], pixels[..., 56:] = 0, 0
    assert tower.spec.tokens == seen.shape[1] == 16 and tower.interpolation is None and tower(pixels).last_hidden_state.equal(seen)
    with pytest.raises(ValueError, match="resolution 65 is not a multiple of its patch size 14"):
        resolve(f"mine={tmp_path}", 65)
    assert KEYS["siglip-so14-384"].tokens == KEYS["siglip2-so14-384"].tokens == resolve("siglip2-so16-384", 432).tokens == 729


@pytest.mark.parametrize(
    "file",
    [
        {"size": {"height": 64, "width": 64}, "resample": 2, **HALF},
        {"size": {"shortest_edge": 70}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": True, "resample": 3, **HALF},
        {"size": {"shortest_edge": 70}, "crop_size": 64, "resample": 3, **HALF},
        {"size": 64, "resample": 0, **HALF},
        {"size": 64, "resample": 1, **HALF},
        {"size": 64, "resample": 4, **HALF},
        {"size": 64, "resample": 5, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1]},
        {"size": 64, "resample": 2, "do_normalize": False, **HALF},
        {"size": 64, "resample": 2, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"size": 64, "resample": 2, "do_rescale": False, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]},
        {"size": 64, "resample": 2, "do_rescale": False, "do_normalize": False},
    ],
)
def test_the_tower_computes_what_the_file_says(file, tmp_path, shared):
    """Against transformers' own processor made of the same file, asked for the whole picture (no crop)."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    VisionTower.from_encoder("clip-tiny").encoder.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    tower = VisionTower.from_encoder(f"mine={tmp_path}")
    whole = {**file, "size": {"height": 64, "width": 64}, "do_center_crop": False}
    photo = Image.open(min((shared / "sft" / "images").glob("*.jpg")))
    theirs = CLIPImageProcessorPil(**whole)([photo], return_tensors="pt")["pixel_values"].float()
    ours = tower.preprocess([photo])
    scale = torch.tensor(tower.spec.std).view(1, 3, 1, 1)
    assert ours.shape == theirs.shape and ((ours - theirs) * scale).abs().max() <= 1 / 255 + 1e-5
    assert tower.spec.resample == RESAMPLE[file["resample"]] if "resample" in file else True


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", {"height": 64, "width": 96}),
        ("size", {"longest_edge": 800}),
        ("size", {"max_height": 64, "max_width": 64}),
        ("size", "large"),
        ("size", 0),
        ("crop_size", {"height": 64}),
        ("image_mean", "half"),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [1, 2, None]),
        ("image_std", 0),
        ("image_std", [0.5, 0.5, 0.0]),
        ("image_mean", float("nan")),
        ("image_mean", [0.5, 0.5, float("inf")]),
        ("rescale_factor", float("nan")),
        ("resample", 6),
        ("resample", "bilinear"),
        ("rescale_factor", 0),
        ("do_flip_channel_order", True),
        ("rescale_offset", True),
        ("do_pad", True),
        ("do_image_splitting", True),
    ],
)
def test_what_the_table_cannot_express_is_refused_by_file_and_field(field, value, tmp_path, capsys):
    folder_of(tmp_path, CLIP, preprocessor_config={**HALF, "size": 64, field: value})
    assert encoders_main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}/preprocessor_config.json: {field} is {json.dumps(value)}, where this project reads" in err


def test_the_scale_of_0_to_255_needs_means_of_its_own(tmp_path):
    folder_of(tmp_path, CLIP, preprocessor_config={"do_rescale": False, "size": 64})
    with pytest.raises(ValueError, match="do_rescale is false, where this project reads an image_mean"):
        resolve(str(tmp_path))


def test_null_leaves_it_to_the_family(tmp_path):
    folder_of(
        tmp_path, CLIP, preprocessor_config={"image_mean": None, "image_std": None, "resample": None, "size": None, "crop_size": None}
    )
    spec, rule = resolve(str(tmp_path)), FAMILIES["clip_vision_model"]
    assert (spec.mean, spec.std, spec.resample, spec.resolution) == (rule.mean, rule.std, rule.resample, 64)


def test_a_whole_processor_as_transformers_saves_it_today(tmp_path):
    nested = {"image_processor": {**HALF, "size": {"height": 64, "width": 64}, "resample": 2}, "processor_class": "CLIPProcessor"}
    folder_of(tmp_path, CLIP, processor_config=nested)
    assert resolve(str(tmp_path)).resample == "bilinear" and resolve(str(tmp_path)).mean == (0.5,) * 3


def test_open_clip_and_timm_name_the_same_things(tmp_path):
    cfg = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    open_clip = folder_of(tmp_path / "a", CLIP, open_clip_config={"model_cfg": {}, "preprocess_cfg": cfg})
    own = {"input_size": [3, 64, 64], **{name: cfg[name] for name in ("mean", "std", "interpolation")}}
    timm = folder_of(tmp_path / "b", {"pretrained_cfg": own})
    for folder in (open_clip, timm):
        said = read_preprocessing(folder)
        assert (said.size, said.mean, said.std, said.resample) == (64, (0.5,) * 3, (0.5,) * 3, "bilinear")
    assert resolve(str(open_clip)).mean == (0.5,) * 3
    (open_clip / "config.json").unlink()
    with pytest.raises(ValueError, match="open_clip's own layout, which transformers cannot load"):
        resolve(str(open_clip))
    folder_of(timm, {"pretrained_cfg": {"input_size": [3, 64, 96]}})
    with pytest.raises(ValueError, match=r"config\.json: input_size is \[64, 96\]"):
        read_preprocessing(timm)
    folder_of(timm, {"pretrained_cfg": {"input_size": [3, 64, 64], "interpolation": "random"}})
    with pytest.raises(ValueError, match='interpolation is "random"'):
        read_preprocessing(timm)


@pytest.mark.parametrize(
    ("processor", "resolution", "why"),
    [
        ({"size": "native"}, 384, "the paper's frozen comparison; it learned at native shapes of up to 262,144 pixels"),
        ({"size": "native", "max_pixels": 147_456}, 384, "the paper's frozen comparison"),
        ({"size": "native", "max_pixels": 147_455}, 368, "the largest square in the 147,455 pixels that it learned at"),
        ({"size": "native", "max_pixels": 4096}, 64, "the largest square"),
        ({"size": 224}, 384, "the paper's frozen comparison; it learned at 224"),
        ({"size": 512}, 384, "the paper's frozen comparison; it learned at 512"),
        ({"size": {"height": 224, "width": 224}}, 384, "the paper's frozen comparison; it learned at 224"),
        ({"size": {"shortest_edge": 64}}, 64, "it learned at that size"),
        (None, 384, "no processor file says what it learned at"),
    ],
)
def test_a_genlip_is_used_at_the_papers_grid_where_it_has_learned_for_it(processor, resolution, why, tmp_path, capsys):
    genlip.register()
    files = {} if processor is None else {"preprocessor_config": {"image_mean": 0.5, "image_std": 0.5, **processor}}
    folder_of(tmp_path, {"model_type": "genlip", "hidden_size": 128, "patch_size": 16}, **files)
    spec = resolve(f"mine={tmp_path}")
    assert (spec.resolution, spec.mean) == (resolution, (0.5,) * 3) and why in spec.why
    grid = resolution // 16
    assert encoders_main([f"mine={tmp_path}"]) == 0
    line = f"mine: {resolution} x {resolution} pixels, {grid} x {grid} grid, {grid**2} tokens: {spec.why}"
    assert line in capsys.readouterr().out.splitlines()
    assert resolve(f"mine={tmp_path}", 512).size_in_words == "512 x 512 pixels, 32 x 32 grid, 1024 tokens: --resolution"


def test_pixels_of_a_native_export_are_the_pretrainings(tmp_path):
    """The square of a stage-2 encoder by the tower and by GenLIP's own processor."""
    from genlip.image_processing_genlip import GenLIPImageProcessor

    VisionTower.from_encoder("genlip-tiny").encoder.save_pretrained(tmp_path)
    GenLIPImageProcessor(size="native", max_pixels=64 * 64).save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    tower = VisionTower.from_encoder(f"mine={tmp_path}")
    torch.testing.assert_close(tower.preprocess([picture]), GenLIPImageProcessor(size=64)([picture])["pixel_values"])
    assert tower(tower.preprocess([picture])).last_hidden_state.shape == (1, 16, 128)


# --- the encoder's own crop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("clip-tiny", None),
        ("aimv2-tiny", None),
        ("dinov2-tiny", None),
        ("clip-tiny", {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}, "resample": 3, **HALF}),
        ("clip-tiny", {"size": 64, "crop_size": 64, "do_center_crop": True, "resample": 2, **HALF}),
        ("clip-tiny", {"size": {"height": 64, "width": 64}, "resample": 2, "do_center_crop": False, **HALF}),
    ],
)
def test_the_crop_is_the_encoders_own_processors(key, file, tmp_path):
    """Against transformers' own classes with their own defaults, on pictures of every shape."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    name, own = key, {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    if file:
        VisionTower.from_encoder(key).encoder.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
        name, own = f"mine={tmp_path}", file
    tower = VisionTower.from_encoder(name, view="crop")
    if key == "dinov2-tiny":  # its authors' 256 to 224
        imagenet = {"image_mean": tower.spec.mean, "image_std": tower.spec.std}
        theirs = BitImageProcessorPil(size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}, **imagenet)
    else:
        theirs = CLIPImageProcessorPil(**own)
    drawn = np.random.default_rng(0)
    sizes = [(64, 64), (200, 100), (100, 201), (65, 64), (40, 300), (31, 30)]
    pictures = [Image.fromarray(drawn.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    expected = torch.stack([theirs([picture], return_tensors="pt")["pixel_values"][0] for picture in pictures])
    std = torch.tensor(tower.spec.std).view(1, 3, 1, 1)
    assert ((tower.preprocess(pictures) - expected) * std).abs().max() <= 1 / 255 + 1e-6
    assert tower.spec.view == "crop" and VisionTower.from_encoder(name).spec.view == "square"


@pytest.mark.parametrize("key", ["siglip-tiny", "siglip2-tiny", "genlip-tiny", "openvision2-tiny", "vit-tiny"])
def test_a_processor_that_squashes_squashes_in_its_own_view_too(key):
    picture = Image.effect_noise((90, 40), 90)
    crop, square = (VisionTower.from_encoder(key, view=view) for view in ("crop", "square"))
    assert crop.preprocess([picture]).equal(square.preprocess([picture])) and "the whole, squashed" in crop.spec.size_in_words


def test_a_crop_out_of_a_larger_square_is_refused_as_a_view(tmp_path):
    file = {"size": {"height": 80, "width": 80}, "crop_size": {"height": 64, "width": 64}, **HALF}
    folder = folder_of(tmp_path, CLIP, preprocessor_config=file)
    assert resolve(str(folder)).resolution == 64
    with pytest.raises(ValueError, match="cuts the centre out of a larger square, which --view crop does not"):
        resolve(str(folder), view="crop")
