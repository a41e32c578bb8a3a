"""An encoder is chosen by exact key or by a folder's own config, never by a piece of a name."""

import importlib.util
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel

import genlip
from llava_plugin.encoders import KEYS, find_weights, resolve, same_budget
from llava_plugin.encoders.__main__ import main as encoders_main
from llava_plugin.encoders.families import FAMILIES
from llava_plugin.tower import VisionTower, digest

genlip.register()


UNFROZEN = {"rice-l14-560": 1600, "siglip-so14-384": 729, "siglip2-so14-384": 729}  # of the paper's unfrozen table, at sizes of their own


def test_all_released_encoders_give_576_tokens():
    released = {spec.key: spec.tokens for spec in KEYS.values() if spec.seed is None}
    assert len(released) == 20 and {key: n for key, n in released.items() if n != 576} == UNFROZEN


@pytest.mark.parametrize("name", ["google/siglip2-so400m-patch16-384", "clip-but-genlip", "sam/mae/dinov2"])
@pytest.mark.parametrize("twin", [key for key, spec in KEYS.items() if spec.seed is not None and key != "random-tiny"])
def test_a_folder_is_what_its_config_says(tmp_path, name, twin):
    folder = tmp_path / name
    VisionTower.from_encoder(twin).encoder.save_pretrained(folder)
    spec = resolve(str(folder))
    assert (spec.family, spec.width, spec.prefix_tokens) == (KEYS[twin].family, 128, KEYS[twin].prefix_tokens)
    assert spec.key == folder.name and spec.path == str(folder)
    assert resolve(f"mine={folder}").key == "mine"
    assert type(VisionTower.from_encoder(str(folder), resolution=64).encoder) is type(VisionTower.from_encoder(twin).encoder)


def test_a_dual_tower_checkpoint_gives_its_vision_half(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(vision_config=tiny | {"patch_size": 14, "image_size": 56}, text_config=tiny | {"vocab_size": 64}))
    model.save_pretrained(tmp_path)
    tower = VisionTower.from_encoder(f"mine={tmp_path}")
    assert (tower.spec.family, tower.spec.tokens, tower.spec.width) == ("clip_vision_model", 16, 32)
    ours, theirs = tower.encoder.state_dict(), model.vision_model.state_dict()
    assert len(ours) == len(theirs)
    assert all(theirs[key.removeprefix("vision_model.")].equal(value) for key, value in ours.items())


def test_unknown_names_are_said_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'genlip-g16'"):
        resolve("genlip-g61")
    with pytest.raises(ValueError, match="is not a folder"):
        resolve("mine=/nowhere/at/all")
    with pytest.raises(ValueError, match="not a multiple of its patch size 14"):
        resolve("dinov2-s14", 64)
    with pytest.raises(ValueError, match=r"python -m llava_plugin\.fetch some/encoder"):
        resolve("some/encoder")


def test_folder_without_config_or_of_an_unknown_family(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "my-own"}')
    with pytest.raises(ValueError, match="no family 'my-own' in the table, and this transformers does not know it"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "genlip_eval_tower"}')
    with pytest.raises(ValueError, match=r"is the export of an MLLM; an encoder is a pretraining's export"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "ijepa"}')
    with pytest.raises(ValueError, match="has to say image_mean, image_std and size"):
        resolve(str(tmp_path))


def save_with_processor(model, folder, side):
    model.save_pretrained(folder)
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.3, 0.2], "resample": 2, "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("family", "config", "grid", "prefix"),
    [
        ("vit", TINY | {"patch_size": 8, "image_size": 48}, 6, 1),
        ("ijepa", TINY | {"patch_size": 8, "image_size": 48}, 6, 0),
        ("vit_msn", TINY | {"patch_size": 12, "image_size": 48}, 4, 1),
        ("resnet", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}, 6, 0),
    ],
)
def test_any_automodel_from_its_config(tmp_path, family, config, grid, prefix):
    model = AutoModel.from_config(AutoConfig.for_model(family, **config)).eval()
    save_with_processor(model, tmp_path, 48)
    spec = resolve(f"mine={tmp_path}")
    assert (spec.family, spec.grid, spec.prefix_tokens, spec.mean, spec.resample) == (family, grid, prefix, (0.4, 0.5, 0.6), "bilinear")
    tower = VisionTower.from_encoder(f"mine={tmp_path}")
    assert tower.spec.parameters == model.num_parameters()
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        own = model(pixels).last_hidden_state
        own = own.flatten(2).transpose(1, 2) if family == "resnet" else own[:, prefix:]
        assert tower(pixels).last_hidden_state.equal(own)


def test_an_export_of_a_family_outside_the_table_loads_again(tmp_path):
    model = AutoModel.from_config(AutoConfig.for_model("vit", **TINY, patch_size=8, image_size=48))
    save_with_processor(model, tmp_path / "vit", 48)
    tower = VisionTower.from_encoder(str(tmp_path / "vit"))
    tower.save_pretrained(tmp_path / "tower")
    again = VisionTower.from_pretrained(tmp_path / "tower")
    assert digest(again) == digest(tower) and again.spec == tower.spec


def test_defaults_are_those_of_the_familys_config_class(tmp_path):
    """A config.json may leave out what equals its class' default; hub files of SigLIP do."""
    for family, rule in FAMILIES.items():
        if family == "genlip":
            continue
        own = AutoConfig.for_model(family)
        side = own.patch_size * int(own.num_patches**0.5) if family == "siglip2_vision_model" else own.image_size
        assert (rule.patch_size, rule.resolution, rule.width) == (own.patch_size, side, own.hidden_size), family
        assert rule.registers == getattr(own, "num_register_tokens", 0), family
    (tmp_path / "config.json").write_text('{"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}')
    assert (resolve(str(tmp_path)).tokens, resolve(str(tmp_path)).width) == (196, 768)


def test_registers_of_a_config_are_dropped(tmp_path):
    config = TINY | {"patch_size": 8, "image_size": 48, "num_register_tokens": 3, "mlp_ratio": 2}
    AutoModel.from_config(AutoConfig.for_model("dinov2_with_registers", **config)).save_pretrained(tmp_path)
    tower = VisionTower.from_encoder(f"mine={tmp_path}")
    assert (tower.spec.prefix_tokens, tower(torch.randn(1, 3, 48, 48)).last_hidden_state.shape[1]) == (4, 36)


def test_the_budget_is_one_for_all_released_and_a_difference_is_refused_with_its_cure():
    assert same_budget([spec.size for spec in KEYS.values() if spec.seed is None and spec.key not in UNFROZEN]) == 576
    cure = r"clip-l14-336 256 \(16 x 16\): not comparable. Train clip-l14-336 at --resolution 336, which is 24 x 24"
    with pytest.raises(ValueError, match=cure):
        same_budget([KEYS["siglip-l16-384"].size, resolve("clip-l14-336", 224).size])


def test_weights_of_another_family_or_size_or_absent_are_refused_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path))
    VisionTower.from_encoder("siglip2-tiny").encoder.save_pretrained(tmp_path / "clip-tiny")
    with pytest.raises(
        ValueError, match=r"clip-tiny is a clip_vision_model, but .* holds a siglip_vision_model: fetch them again \(python -m"
    ):
        VisionTower.from_encoder("clip-tiny")
    VisionTower.from_encoder("siglip2-tiny").encoder.save_pretrained(tmp_path / "siglip-l16-384")
    with pytest.raises(ValueError, match=r"has width 1024 and patch 16, but .* holds width 128 and patch 16"):
        VisionTower.from_encoder("siglip-l16-384")
    folder = tmp_path / "bare"
    VisionTower.from_encoder("aimv2-tiny").encoder.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the weights in .*bare cannot be read"):
        VisionTower.from_encoder(f"mine={folder}")


def test_verify_says_what_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path))
    assert encoders_main(["--verify", "clip-tiny"]) == 0
    out = capsys.readouterr().out
    assert "clip-tiny: untrained, from its seed, 894,208 parameters, width 128, digest" in out
    assert "64 x 64 pixels, 4 x 4 grid, 16 tokens: its key's own" in out
    encoder = VisionTower.from_encoder("clip-tiny").encoder
    encoder.save_pretrained(tmp_path / "clip-tiny")
    assert encoders_main(["--verify", "clip-tiny"]) == 0 and "clip-tiny: random weights" in capsys.readouterr().out
    with torch.no_grad():
        encoder.encoder.layers[0].layer_norm1.weight[0] += 0.01  # as any step of training leaves it
    encoder.save_pretrained(tmp_path / "clip-tiny")
    assert encoders_main(["--verify", "clip-tiny"]) == 0 and "clip-tiny: trained weights" in capsys.readouterr().out
    assert encoders_main(["--verify", "genlip-g16"]) == 2 and "python -m llava_plugin.fetch genlip-g16" in capsys.readouterr().err
    assert encoders_main(["--verify"]) == 2


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="this environment has torchvision")
def test_a_timm_folder_says_what_it_needs(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 64, 64]}}')
    with pytest.raises(ValueError, match=r"needs a working torchvision and timm \(absent: timm, torchvision\): pip install"):
        resolve(str(tmp_path))


def test_missing_weights_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"python -m llava_plugin\.fetch genlip-g16"):
        find_weights(resolve("genlip-g16"))
    assert find_weights(resolve("random-tiny")) is None
    VisionTower.from_encoder("genlip-tiny").encoder.save_pretrained(tmp_path / "genlip-tiny")
    assert find_weights(resolve("genlip-tiny")) == str(tmp_path / "genlip-tiny")


def test_the_table_prints_every_key(capsys):
    assert encoders_main([]) == 0
    out = capsys.readouterr().out
    assert all(key in out for key in KEYS)
    assert encoders_main(["siglip3"]) == 2
