"""Anyres is LLaVA-NeXT's, case by case; every view of every family in mixed batches; words of a view that are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlip.image_decoding import picture_size, read_picture
from llava_plugin import llava_next, mllm, pictures, views
from llava_plugin.encoders import KEYS, resolve
from llava_plugin.encoders.families import family_of
from llava_plugin.tower import VisionTower
from tests.llava_plugin import anyres_reference as reference

HERE = Path(__file__).parent
FIVE = "(1x2),(2x1),(2x2),(3x1),(1x3)"


def ours(n: int) -> dict:
    """What anyres_reference.py prints, by our functions."""
    geometry = []
    for case in reference.drawn(n):
        (width, height), tile, side = case["size"], case["tile"], case["side"]
        limit = f"_max_{case['max']}" if case["max"] else ""
        view = views.asked(f"anyres{limit} {case['pinpoints']}", tile, side**2)
        geometry.append([*views.grid_of(view, height, width, tile), *views.map_of(view, height, width, tile, side)])
    view = views.parse("anyres")
    tiles = [[reference.digest(np.array(t)) for t in pictures.tiles(reference.picture(*size), view, 64)] for size in reference.PICTURES]
    return {"geometry": geometry, "tiles": tiles}


def our_losses(folder: Path, view: str) -> list[dict]:
    loaded = mllm.load(reference.tiny(folder, view), device="cpu")
    found = []
    for width, height in reference.PICTURES:
        picture = reference.picture(width, height)
        n = views.tokens(loaded.tower.spec, height, width)
        ids = torch.tensor([[loaded.model.config.image_token_id] * n + reference.WORDS])
        with torch.no_grad():
            logits = loaded.model(input_ids=ids, **loaded.tower.prepare([picture])).logits[0]
            seen = loaded.model.get_image_features(**loaded.tower.prepare([picture])).pooler_output[0]
        loss = torch.nn.functional.cross_entropy(logits[n - 1 : -1], torch.tensor(reference.WORDS)).item()
        newline = loaded.model.model.image_newline
        found.append({"loss": loss, "newlines": (seen == newline).all(dim=1).nonzero()[:, 0].tolist()})
    return found


def hold(theirs: dict, n: int, folder: Path) -> None:
    found = ours(n)
    assert len(theirs["geometry"]) == n and found["geometry"] == theirs["geometry"] and found["tiles"] == theirs["tiles"]
    for i, view in enumerate(reference.VIEWS):
        (folder / str(i)).mkdir()
        for mine, its in zip(our_losses(folder / str(i), view), theirs["losses"][view], strict=True):
            assert mine["newlines"] == its["newlines"] and abs(mine["loss"] - its["loss"]) < 1e-4


def test_grids_maps_tiles_newlines_and_loss_are_llava_nexts(tmp_path):
    hold(json.loads((HERE / "data/anyres.json").read_text()), 400, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("LLAVA_NEXT_ROOT" not in os.environ, reason="$LLAVA_NEXT_ROOT names no LLaVA-NeXT checkout: clone it to run this")
def test_ten_thousand_sizes_beside_llava_next_itself(tmp_path):
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, HERE / "anyres_reference.py", "10000"], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    kept = json.loads((HERE / "data/anyres.json").read_text())
    assert theirs["geometry"][:400] == kept["geometry"]
    hold(theirs, 10_000, tmp_path)


def drawn(seed: int) -> list[list[Image.Image]]:
    draw = np.random.default_rng(seed)
    sizes = [[(64, 64)], [(200, 90), (90, 300)], [], [(33, 500)], [(150, 140)]]
    return [[Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in some] for some in sizes]


TWINS = [spec.key for spec in KEYS.values() if spec.seed is not None]
VIEWS = ("crop", "anyres", "anyres_max_1 (1x1),...,(2x3)", "native_30")
QUICK = {("clip-tiny", VIEWS[1]), ("genlip-tiny", VIEWS[2]), ("siglip2-naflex-tiny", VIEWS[3]), ("dinov3-tiny", VIEWS[1])}


@pytest.mark.parametrize(
    ("key", "view"),
    [pytest.param(key, view, marks=() if (key, view) in QUICK else pytest.mark.slow) for key in TWINS for view in VIEWS],
)
def test_a_mixed_batch_is_seen_and_answered_as_one_by_one(key, view, llama_tiny, tmp_path):
    if view == "native_30" and not family_of(KEYS[key].family).native:
        with pytest.raises(ValueError, match=f"{key} reads squares only"):
            resolve(key, view=view)
        return
    model, tokenizer = mllm.build(VisionTower.from_encoder(key, view=view), str(llama_tiny))
    loaded = mllm.Mllm(model.eval(), tokenizer, mllm_provenance())
    asked = [[{"role": "user", "content": "<image>\n" * len(some) + "what is"}] for some in drawn(0)]
    given = []
    loaded.model.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs), with_kwargs=True)
    together = loaded.answer(asked, drawn(0), max_new_tokens=4)
    placeholders = (given[0]["input_ids"] == loaded.model.config.image_token_id).sum(dim=1).tolist()
    sizes = [[(p.height, p.width) for p in some] for some in drawn(0)]
    assert placeholders == [sum(views.tokens(loaded.tower.spec, *size) for size in some) for some in sizes]
    assert max(views.tokens(loaded.tower.spec, *size) for some in sizes for size in some) <= views.most_tokens(loaded.tower.spec)
    assert together == [loaded.answer([a], [p], max_new_tokens=4)[0] for a, p in zip(asked, drawn(0))]
    found = loaded.features([p for some in drawn(0) for p in some])
    assert all(torch.isfinite(f).all() for f in found)


def mllm_provenance():
    from genlip.common.schema import Provenance

    return Provenance(schema=2, stage="sft", encoder="x", llm="x", weights_digest="0" * 64)


def test_an_export_keeps_its_view_and_its_newline(llama_tiny, tmp_path):
    from genlip.common.fingerprint import of_export

    model, tokenizer = mllm.build(VisionTower.from_encoder("siglip2-tiny", view="anyres_max_4"), str(llama_tiny), projector="pixel_shuffle")
    mllm.save(model, tokenizer, tmp_path, {"stage": "sft", "llm": "x"})
    loaded = mllm.load(tmp_path)
    assert loaded.provenance.view == loaded.tower.spec.view == of_export(tmp_path, "x").parts["view"] == f"anyres_max_4 {FIVE}"
    assert loaded.model.model.image_newline.equal(model.model.image_newline)
    assert abs(model.model.image_newline.std().item() - model.config.text_config.hidden_size**-0.5) < 0.05


def test_what_is_known_of_any_picture_is_an_upper_bound():
    for view in ("anyres", "anyres_max_2", "anyres_max_9 (1x1),...,(6x6)"):
        spec = resolve("clip-l14-336", view=view)
        draw = np.random.default_rng(0)
        found = [views.tokens(spec, *size) for size in draw.integers(1, 3000, (2000, 2)).tolist()]
        assert 0.8 * views.most_tokens(spec) < max(found) <= views.most_tokens(spec)
    assert views.most_tokens(resolve("clip-l14-336", view="anyres")) == 5 * 576 + 48


@pytest.mark.parametrize(
    ("words", "grids"),
    [
        ("anyres", FIVE),
        ("anyres (1x1),...,(2x2)", "(1x1),(1x2),(2x1),(2x2)"),
        ("anyres_max_9 [[336, 672], [672,336]]", "(1x2),(2x1)"),
        ("anyres_max_9 [(336, 672), (1008, 336)]", "(1x2),(3x1)"),
        ("anyres (3x1),(1x1)", "(3x1),(1x1)"),
    ],
)
def test_pinpoints_in_all_their_forms(words, grids):
    text = resolve("clip-l14-336", view=words).view
    assert text == f"{words.split()[0]} {grids}" and str(views.parse(text)) == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pad", "--view 'pad' is not known: square, crop, anyres, anyres_max_N or native_N"),
        ("square_max_3", "is not known"),
        ("square (1x1)", "--pinpoints goes with anyres alone"),
        ("anyres [[336, 700]]", "336 x 700 is no whole number of tiles of 336 pixels"),
        ("anyres (0x1)", "names no grid of at least 1 x 1 tiles"),
        ("anyres large", "is neither a list of sizes in pixels"),
        ("native", "clip-l14-336 reads squares only"),
    ],
)
def test_views_that_cannot_be_are_refused(words, message):
    with pytest.raises(ValueError) as error:
        resolve("clip-l14-336", view=words)
    assert message in str(error.value)


class Config:
    def __init__(self, **fields):
        vars(self).update(fields)


@pytest.mark.parametrize("ratio", ["anyres", "anyres_max_9"])
def test_what_llava_next_says_of_pictures_goes_both_ways(ratio):
    spec = resolve("siglip-l16-384", view=f"{ratio} (1x1),...,(2x3)")
    fields = llava_next.picture_fields(spec)
    assert fields["image_grid_pinpoints"][:3] == [[384, 384], [384, 768], [384, 1152]]
    assert llava_next.view_of(Config(**fields), 384, Path("c")) == spec.view
    ranged = Config(**fields | {"image_grid_pinpoints": "(1x1),(9x9),(2x3)"})  # only its ends count there
    assert llava_next.view_of(ranged, 384, Path("c")) == spec.view
    assert llava_next.view_of(Config(), 384, Path("c")) == "square" == llava_next.view_of(Config(image_aspect_ratio=None), 384, Path("c"))


@pytest.mark.parametrize(
    "fields",
    [
        {"image_aspect_ratio": "pad"},
        {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "flat"},
        {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad_nobase"},
        {"image_aspect_ratio": "square", "mm_patch_merge_type": "spatial_unpad"},
        {"image_aspect_ratio": "highres"},
    ],
)
def test_pictures_that_llava_next_shows_otherwise_are_not_converted(fields):
    with pytest.raises(ValueError, match="square with flat, and anyres or anyres_max_N with spatial_unpad, can be converted"):
        llava_next.view_of(Config(image_grid_pinpoints=[[64, 64]], **fields), 64, Path("checkpoint"))
    with pytest.raises(ValueError, match="no view crop"):
        llava_next.picture_fields(resolve("clip-tiny", view="crop"))


def test_sizes_of_files_are_those_of_what_is_read(tmp_path):
    drawn = Image.effect_noise((50, 30), 90)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        for turn in (1, 3, 6, 8):
            exif = Image.Exif()
            exif[0x0112] = turn
            file = tmp_path / f"{turn}.{form.lower()}"
            drawn.save(file, **({"exif": exif} if form not in ("GIF", "BMP") else {}))
            read = read_picture(file).image
            assert picture_size(file) == picture_size(file.read_bytes()) == (read.height, read.width), (form, turn)
    (tmp_path / "no").write_bytes(b"\xff\xd8no picture")
    with pytest.raises(ValueError, match="undecodable picture"):
        picture_size(tmp_path / "no")
