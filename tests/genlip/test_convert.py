"""Both directions of `genlip.convert`, the folder that carries its code, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

import genlip
from genlip.configuration_genlip import GenLIPConfig
from genlip.convert import main
from genlip.modeling_genlip import GenLIPForPretraining, GenLIPVisionModel

genlip.register()
SMALL = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"text_embed_dim": 32, "mrope_section": [4, 4, 4]}


@pytest.fixture
def saved(tmp_path):
    """A saved model of ours, with weights that differ from the initial ones."""
    torch.manual_seed(0)
    GenLIPForPretraining(GenLIPConfig(**SMALL)).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def bytes_of(folder):
    return {key: (t.dtype, tuple(t.shape), t.numpy().tobytes()) for key, t in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("variant", ["with_proj", "no_proj"])
def test_official_to_ours_to_official_keeps_every_byte_and_field(shared, tmp_path, variant):
    source = shared / "golden" / variant
    assert main([str(source), str(tmp_path / "ours"), "--check"]) == 0
    assert main([str(tmp_path / "ours"), str(tmp_path / "official"), "--layout", "official"]) == 0
    assert bytes_of(tmp_path / "ours") == bytes_of(tmp_path / "official") == bytes_of(source)
    assert json.loads((tmp_path / "official" / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    ours = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert ours["architectures"] == ["GenLIPForPretraining"] and ours["mrope_section"][0] in (6, 8)


def test_ours_to_official_opens_by_auto_model_with_the_same_features(saved, tmp_path):
    assert main([str(saved), str(tmp_path / "official"), "--layout", "official"]) == 0
    pixels = torch.randn(1, 3, 32, 48)
    ours, official = (AutoModel.from_pretrained(folder) for folder in (saved, tmp_path / "official"))
    assert type(official) is GenLIPVisionModel
    assert official(pixels).last_hidden_state.equal(ours(pixels).last_hidden_state)


def test_a_folder_with_its_code_opens_where_the_package_is_not_imported(saved, shared, tmp_path):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(shared / "tokenizer_qwen3").save_pretrained(saved)
    assert main([str(saved), str(tmp_path / "own"), "--size", "native", "--code"]) == 0
    code = f"""
import sys, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
folder, options = {str(tmp_path / "own")!r}, {{"trust_remote_code": True}}
pixels = AutoImageProcessor.from_pretrained(folder, **options)(Image.new("RGB", (80, 64), "red"))
encoder = AutoModel.from_pretrained(folder, **options)
print(type(encoder).__name__, encoder(**pixels).last_hidden_state.double().sum().item())
print(type(AutoModelForImageTextToText.from_pretrained(folder, **options)).__name__)
print(type(AutoProcessor.from_pretrained(folder, **options)).__name__)
assert "genlip" not in sys.modules
"""
    env = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin:/bin"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert run.returncode == 0, run.stderr
    name, total, speaker, processor = run.stdout.split()
    assert (name, speaker, processor) == ("GenLIPVisionModel", "GenLIPForPretraining", "GenLIPProcessor")
    from PIL import Image

    here = AutoModel.from_pretrained(saved)(**genlip.GenLIPImageProcessor(size="native")(Image.new("RGB", (80, 64), "red")))
    assert float(total) == pytest.approx(here.last_hidden_state.double().sum().item())


def test_a_saved_folder_opens_in_a_process_that_only_registered(saved, shared):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(shared / "tokenizer_qwen3").save_pretrained(saved)
    genlip.GenLIPImageProcessor(size=64).save_pretrained(saved)
    code = f"""
import genlip
genlip.register()
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
for auto in (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor):
    print(type(auto.from_pretrained({str(saved)!r})).__name__)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    names = ["GenLIPConfig", "GenLIPImageProcessor", "GenLIPVisionModel", "GenLIPForPretraining", "GenLIPProcessor"]
    assert run.stdout.split() == names, run.stderr


def test_processor_joins_pictures_and_qwen_tokens(saved, shared):
    from PIL import Image
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer_qwen3")
    tokenizer.save_pretrained(saved)
    genlip.GenLIPImageProcessor(size="native").save_pretrained(saved)
    processor = AutoProcessor.from_pretrained(saved)
    pictures = [Image.new("RGB", (640, 480)), Image.new("RGB", (224, 224))]
    packed = processor(pictures, ["Hello, world!", "Hello"])
    assert packed["input_ids"].tolist() == [[9707, 11, 1879, 0, 9707]]
    assert packed["text_lens"].tolist() == [4, 1] and packed["grid_hw"].tolist() == [[27, 36], [14, 14]]
    equal = processor(pictures, size=32)
    assert equal["pixel_values"].shape == (2, 3, 32, 32)
    assert equal["input_ids"].tolist() == [tokenizer("Describe the image in detail.").input_ids] * 2
    with pytest.raises(ValueError, match="group pictures by text"):
        processor(pictures, ["Hello, world!", "Hello"], size=32)
    with pytest.raises(ValueError, match="1 texts for 2 pictures"):
        processor(pictures, ["Hello"])


def refused(capsys, *args):
    assert main([str(a) for a in args]) == 2
    return capsys.readouterr().err


def test_nothing_is_written_over_unless_asked(saved, tmp_path, capsys):
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    assert "--overwrite" in refused(capsys, saved, target)
    assert [f.name for f in target.iterdir()] == ["mine.txt"]
    assert "holds the source" in refused(capsys, saved, saved, "--overwrite")
    assert main([str(saved), str(target), "--overwrite"]) == 0
    assert bytes_of(target) == bytes_of(saved)


def test_weights_that_are_not_finite_are_refused_on_request(saved, tmp_path, capsys):
    state = load_file(saved / "model.safetensors")
    state["visual.layers.1.mlp.fc1.weight"][0, 0] = float("nan")
    save_file(state, saved / "model.safetensors", metadata={"format": "pt"})
    assert r"visual.layers.1.mlp.fc1.weight (1)" in refused(capsys, saved, tmp_path / "checked", "--check")
    assert not (tmp_path / "checked").exists() and not (tmp_path / "checked.part").exists()
    assert main([str(saved), str(tmp_path / "unchecked")]) == 0


def test_wrong_folders_are_said(saved, tmp_path, capsys):
    assert "no config.json" in refused(capsys, tmp_path / "nowhere", tmp_path / "x")
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cut short or damaged" in refused(capsys, saved, tmp_path / "x")
    file.unlink()
    torch.save({}, saved / "pytorch_model.bin")
    assert "could run code" in refused(capsys, saved, tmp_path / "x")
    (saved / "pytorch_model.bin").unlink()
    assert "needs config.json and model.safetensors" in refused(capsys, saved, tmp_path / "x")
    (saved / "config.json").unlink()
    for load in (GenLIPVisionModel.from_pretrained, GenLIPForPretraining.from_pretrained):
        with pytest.raises(ValueError, match="not a GenLIP folder"):
            load(saved)


def test_official_layout_refuses_what_the_released_code_cannot_build(tmp_path):
    with pytest.raises(ValueError, match="register tokens"):
        GenLIPForPretraining(GenLIPConfig(**SMALL, num_register_tokens=1)).save_pretrained(tmp_path / "x", layout="official")
    with pytest.raises(ValueError, match="text side"):
        GenLIPVisionModel(GenLIPConfig(**SMALL)).save_pretrained(tmp_path / "x", layout="official")
    assert not (tmp_path / "x").exists()
