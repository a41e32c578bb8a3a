"""Any class that AutoModel builds with a grid of features is trained and asked from end to end; GenLIP's own stage 2 too."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel

import llava_plugin
from genlip.image_processing_genlip import GenLIPImageProcessor
from llava_plugin import mllm
from llava_plugin.tower import VisionTower
from train_mllm.recipes import PRESETS
from train_mllm.setup import resolve
from train_mllm.train import main, train

VIT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
NEXT = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}
ENCODERS = {  # family -> its config, and the grid at 64 pixels
    "resnet": ({"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}, 8),
    "swin": (SWIN, 8),
    "vit": (VIT, 4),
    "deit": (VIT, 4),
    "beit": (VIT, 4),
    "ijepa": (VIT, 4),
    "swinv2": (SWIN, 8),
    "convnext": (NEXT, 8),
    "convnextv2": (NEXT, 8),
    "regnet": ({"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}, 8),
}
QUICK = ("resnet",)


@pytest.fixture
def recipe(tmp_path, llama_tiny):
    llava_plugin.register()
    rows = []
    for i, colour in enumerate(("red", "blue", "white", "green")):
        Image.new("RGB", (50, 40), colour).save(tmp_path / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": colour}]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (tmp_path / "sft.json").write_text(json.dumps(rows))
    base = replace(PRESETS["tiny-sft"](), llm=str(llama_tiny), data=str(tmp_path / "sft.json"), out=str(tmp_path / "run"), max_steps=2)
    base = replace(base, workers=0, cache_features=False, standardise=False, gradient_checkpointing=True)
    return replace(base, train_encoder=True, encoder_lr=1e-3)


def asked(export: Path) -> list[str]:
    """Its answers to two pictures of different shape, one by one; equal to those of both at once."""
    loaded = mllm.load(export)
    pictures = [[Image.new("RGB", (90, 30), "red")], [Image.new("L", (20, 50), 90)]]
    question = [{"role": "user", "content": "<image>\nwhat"}]
    alone = [loaded.answer([question], [shown], 4)[0] for shown in pictures]
    assert loaded.answer([question] * 2, pictures, 4) == alone
    return alone


@pytest.mark.parametrize("family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in ENCODERS])
def test_a_folder_of_any_family_is_trained_and_asked(family, recipe, tmp_path, capsys):
    config, grid = ENCODERS[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(family, **config)).save_pretrained(tmp_path / "encoder")
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}}
    (tmp_path / "encoder" / "preprocessor_config.json").write_text(json.dumps(processor))
    export = train(replace(recipe, encoder=f"mine={tmp_path / 'encoder'}"))
    said = json.loads((export / "provenance.json").read_text())
    assert said["encoder_digest_before"] != said["encoder_digest"] and said["tokens"] == grid**2
    assert f"pictures: 64 x 64 pixels, {grid} x {grid} grid, {grid**2} tokens: " in capsys.readouterr().out
    asked(export)


def test_checkpointing_keeps_no_gradient_graph_of_a_frozen_encoder(recipe):
    from train_mllm.model import freeze_parts, prepare_for_training

    frozen = replace(recipe, train_encoder=False, encoder="clip-tiny")
    model, _ = mllm.build(VisionTower.from_encoder("clip-tiny"), recipe.llm)
    freeze_parts(model, frozen)
    prepare_for_training(model, resolve(frozen, 1), torch.float32, False, False)
    features = model.model.vision_tower(torch.randn(1, 3, 64, 64)).last_hidden_state
    assert model.is_gradient_checkpointing and not features.requires_grad


def test_a_stage_2_export_is_an_encoder_at_the_square_of_its_cap(recipe, tmp_path, capsys):
    VisionTower.from_encoder("genlip-tiny").encoder.save_pretrained(tmp_path / "s2")
    GenLIPImageProcessor(size="native", max_pixels=80 * 80 + 100).save_pretrained(tmp_path / "s2")
    mine = replace(recipe, encoder=f"mine={tmp_path / 's2'}", train_encoder=False)
    line = "80 x 80 pixels, 5 x 5 grid, 25 tokens: the largest square in the 6,500 pixels that it learned at"
    flags = ["--encoder", mine.encoder, "--llm", mine.llm, "--data", mine.data]
    assert main(["tiny-sft", *flags, "--dry-run"]) == 0 and line in capsys.readouterr().out
    export = train(mine)
    assert f"pictures: {line}" in capsys.readouterr().out
    assert json.loads((export / "provenance.json").read_text())["resolution"] == 80
    asked(export)
    other = replace(mine, init=str(export), resolution=64, max_steps=1, out=str(tmp_path / "other"))
    train(other)  # a projector works token by token; that its pictures were of another size is said
    then, now = "was trained at 80 x 80 pixels, 5 x 5 grid, 25 tokens", "this stage is at 64 x 64 pixels, 4 x 4 grid, 16 tokens"
    assert f"note: {export} {then}, {now}\n" in capsys.readouterr().out
    again = ["--init", other.init, "--resolution", "64"]
    assert main(["tiny-sft", *flags, *again, "--dry-run"]) == 0 and f"{then}, {now}\n" in capsys.readouterr().out


def test_the_view_is_the_exports_in_both_stages_and_in_evaluation(recipe, tmp_path, capsys):
    from genlip.common.fingerprint import of_export

    cropped = replace(recipe, encoder="clip-tiny", train_encoder=False, view="crop")
    export = train(cropped)
    assert "view crop, its own processor's: the shorter side at 64 pixels, its centre" in capsys.readouterr().out
    said = json.loads((export / "provenance.json").read_text())
    assert said["view"] == "crop" and of_export(export, said["weights_digest"]).parts["view"] == "crop"
    wide = Image.new("RGB", (200, 50), "red")
    wide.paste("blue", (0, 0, 70, 50))  # beside the centre
    tower = mllm.load(export).tower
    assert tower.preprocess([wide]).equal(tower.preprocess([Image.new("RGB", (50, 50), "red")]))
    other = replace(cropped, init=str(export), view="square", out=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="was trained on pictures of view crop: give --view crop"):
        train(other)
