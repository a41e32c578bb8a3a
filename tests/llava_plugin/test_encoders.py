"""An encoder is chosen by exact key or by a folder's own config, never by a piece of a name."""

import pytest

import genlip
from llava_plugin import encoders
from llava_plugin.encoders import KEYS, find_weights, resolve
from llava_plugin.tower import VisionTower

genlip.register()


def test_all_released_encoders_give_576_tokens():
    released = {spec.key: spec.tokens for spec in KEYS.values() if spec.seed is None}
    assert len(released) == 13 and set(released.values()) == {576}


@pytest.mark.parametrize("name", ["google/siglip2-so400m-patch16-384", "clip-but-genlip", "sam/mae/dinov2"])
@pytest.mark.parametrize("twin", ["genlip-tiny", "clip-tiny", "siglip2-tiny", "aimv2-tiny"])
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
    with pytest.raises(ValueError, match="did you mean genlip-g16"):
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
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="no family 'bert'"):
        resolve(str(tmp_path))


def test_missing_weights_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"python -m llava_plugin\.fetch genlip-g16"):
        find_weights(resolve("genlip-g16"))
    assert find_weights(resolve("random-tiny")) is None
    VisionTower.from_encoder("genlip-tiny").encoder.save_pretrained(tmp_path / "genlip-tiny")
    assert find_weights(resolve("genlip-tiny")) == str(tmp_path / "genlip-tiny")


def test_the_table_prints_every_key(capsys):
    assert encoders.main([]) == 0
    out = capsys.readouterr().out
    assert all(key in out for key in KEYS)
    assert encoders.main(["siglip3"]) == 2
