"""The adapter, against the user's real LLaVA-NeXT checkout where $LLAVA_NEXT_ROOT names one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava_plugin import llava_next

ROOT = Path(__file__).parents[2]
NEXT = os.environ.get("LLAVA_NEXT_ROOT")
real = pytest.mark.skipif(not NEXT, reason="$LLAVA_NEXT_ROOT names no LLaVA-NeXT checkout: clone it to run this")


def python(*arguments, check=True):
    """In a process of its own: the shims change transformers for good."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def world(shared, tmp_path_factory):
    """A tiny Qwen2 with Qwen2.5's own tokenizer, and two conversations about real photos."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("next")
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer_qwen2.5")
    torch.manual_seed(0)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=151_936, **tiny, tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    Qwen2ForCausalLM(config).save_pretrained(folder / "qwen-tiny")
    tokenizer.save_pretrained(folder / "qwen-tiny")
    photos = sorted(path.name for path in (shared / "sft" / "images").glob("*.jpg"))[:4]
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A photo."}]
    (folder / "data.json").write_text(json.dumps([{"id": name, "image": name, "conversations": turns} for name in photos]))
    return folder


SQUARE = ("--image_aspect_ratio", "square", "--mm_patch_merge_type", "flat")
ANYRES = (
    "--image_aspect_ratio",
    "anyres_max_2",
    "--mm_patch_merge_type",
    "spatial_unpad",
    "--image_grid_pinpoints",
    "[(64, 128), (128, 128)]",
)


def run_training(world, shared, out, parts, vision_tower="enc:genlip-tiny", seen=SQUARE):
    return python(
        "-m", "llava_plugin.llava_next", "train", "--model_name_or_path", world / "qwen-tiny", "--version", "qwen_1_5",
        "--data_path", world / "data.json", "--image_folder", shared / "sft" / "images", "--vision_tower", vision_tower,
        "--mm_tunable_parts", parts, "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2",
        *seen, "--mm_use_im_start_end", "False", "--mm_use_im_patch_token", "False", "--bf16", "True",
        "--output_dir", out, "--max_steps", "2", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--save_strategy", "no",
        "--logging_steps", "1", "--report_to", "none", "--lazy_preprocess", "True", "--attn_implementation", "sdpa", "--use_cpu", "True",
        "--gradient_checkpointing", "False", "--model_max_length", "512", "--mm_vision_tower_lr", "1e-2", "--dataloader_num_workers", "0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(world, shared):
    folders = {}
    for how, parts in (("frozen", "mm_mlp_adapter,mm_language_model"), ("unfrozen", "mm_vision_tower,mm_mlp_adapter,mm_language_model")):
        folders[how] = world / how
        run_training(world, shared, folders[how], parts)
    return folders


CHECK = """
import sys, torch
from pathlib import Path
from llava_plugin import llava_next
from llava_plugin.tower import VisionTower, digest
model = llava_next.load(Path(sys.argv[1]))
tower = model.get_vision_tower().tower
start = VisionTower.from_encoder("genlip-tiny").to(torch.bfloat16)
print("moved", digest(tower.to(torch.bfloat16)) != digest(start))
tower.float()
pixels = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    ours = model.get_model().mm_projector(tower(pixels).last_hidden_state)
    print("features equal", model.encode_images(pixels).equal(ours))
    ids = torch.tensor([[151644, 872, 198, -200, 198, 3838, 151645]])
    said = model.generate(ids, images=pixels[:1], image_sizes=[[64, 64]], max_new_tokens=5, do_sample=False, pad_token_id=151643)
    other = model(ids, images=pixels[1:]).logits
    print("generated", said.shape[1], "seen", not other.equal(model(ids, images=pixels[:1]).logits))
"""


@real
@pytest.mark.slow
@pytest.mark.parametrize("how", ["frozen", "unfrozen"])
def test_trains_saves_loads_generates(trained, how):
    assert (trained[how] / "encoder_digest.txt").is_file()
    out = python("-c", CHECK, trained[how]).stdout
    assert f"moved {how == 'unfrozen'}" in out
    assert "features equal True" in out and re.search("generated [1-5] seen True", out)


ROUND = """
import sys, torch
from pathlib import Path
from llava_plugin import llava_next, mllm
checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
llava_next.to_native(checkpoint, folder / "export")
llava_next.to_llava_next(folder / "export", folder / "back")
one, two, native = llava_next.load(checkpoint), llava_next.load(folder / "back"), mllm.load(folder / "export", device="cpu")
pixels = torch.randn(1, 3, 64, 64)
ids = [151644, 872, 198, -200, 198, 3838, 151645]
place = [i for t in ids for i in ([native.model.config.image_token_id] * 16 if t == -200 else [t])]
with torch.no_grad():
    a, b = (m(torch.tensor([ids]), images=pixels).logits for m in (one, two))
    c = native.model(input_ids=torch.tensor([place]), pixel_values=pixels).logits
from llava.conversation import conv_templates
talk = conv_templates["qwen_1_5"].copy()
said = [("user", "<image>\\nWhat?"), ("assistant", "A cat."), ("user", "Sure?"), ("assistant", None)]
for role, text in said:
    talk.append_message(talk.roles[role == "assistant"], text)
messages = [{"role": role, "content": text} for role, text in said[:-1]]
ours = mllm.prompt_ids(native.tokenizer, messages, -200, 1)
from llava.mm_utils import tokenizer_image_token
print("prompt", ours == tokenizer_image_token(talk.get_prompt(), native.tokenizer))
print("there", (a - c).abs().max().item() < 1e-5, "back", (a - b).abs().max().item() < 1e-5, "size", a.abs().max().item() > 1e-2)
"""


@real
@pytest.mark.slow
def test_a_checkpoint_goes_to_the_native_folder_and_back_with_equal_prompt_and_logits(trained, tmp_path):
    out = python("-c", ROUND, trained["unfrozen"], tmp_path).stdout
    assert "prompt True" in out and "there True back True size True" in out


ANYRES_ROUND = """
import sys, torch
from pathlib import Path
from PIL import Image
from llava_plugin import llava_next, mllm, views
checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
llava_next.to_native(checkpoint, folder / "export")
llava_next.to_llava_next(folder / "export", folder / "back")
one, two, native = llava_next.load(checkpoint), llava_next.load(folder / "back"), mllm.load(folder / "export", device="cpu")
from llava.mm_utils import process_images
print("view", native.provenance.view)
for file in sys.argv[3:]:
    picture = Image.open(file).convert("RGB")
    ids = [151644, 872, 198, -200, 198, 3838, 151645]
    n = views.tokens(native.tower.spec, picture.height, picture.width)
    place = torch.tensor([[i for t in ids for i in ([native.model.config.image_token_id] * n if t == -200 else [t])]])
    tiles = process_images([picture], one.get_vision_tower().image_processor, one.config)
    with torch.no_grad():
        a, b = (m(torch.tensor([ids]), images=list(tiles), image_sizes=[picture.size]).logits for m in (one, two))
        prepared = native.tower.prepare([picture])
        c = native.model(input_ids=place, **prepared).logits
    equal = tiles[0].equal(prepared["pixel_values"]), (a - c).abs().max().item() < 1e-4, (a - b).abs().max().item() < 1e-4
    print(n, "tiles", equal[0], "there", equal[1], "back", equal[2], "size", a.abs().max().item() > 1e-2)
moved = one.get_model().image_newline.equal(native.model.model.image_newline)
print("newline", moved, two.get_model().image_newline.equal(one.get_model().image_newline))
"""


@real
@pytest.mark.slow
def test_a_checkpoint_of_tiles_goes_to_the_native_folder_and_back_with_equal_tiles_and_logits(world, shared, tmp_path):
    parts = "mm_vision_tower,mm_mlp_adapter,mm_language_model"
    run_training(world, shared, tmp_path / "anyres", parts, seen=ANYRES)
    photos = sorted((shared / "sft" / "images").glob("*.jpg"))[:4]
    out = python("-c", ANYRES_ROUND, tmp_path / "anyres", tmp_path, *photos).stdout
    assert "view anyres_max_2 (1x2),(2x2)" in out and "newline True True" in out
    assert len(re.findall(r"\d+ tiles True there True back True size True", out)) == len(photos)


@real
@pytest.mark.slow
def test_an_encoder_that_is_not_the_recorded_one_is_refused(trained, tmp_path):
    import shutil

    copy = shutil.copytree(trained["unfrozen"], tmp_path / "copy")
    (copy / "encoder_digest.txt").write_text("0" * 64)
    done = python("-m", "llava_plugin.llava_next", "convert", copy, tmp_path / "out", check=False)
    assert done.returncode == 2 and "encoder_digest.txt says 00000000: copy the checkpoint again" in done.stderr


OTHERS = """
from types import SimpleNamespace
from llava_plugin import llava_next
llava_next.install()
from llava.model import llava_arch
from llava.model.multimodal_encoder import builder
builder.CLIPVisionTower = lambda name, args, **kwargs: f"the original's {name}"  # whose weights no hub is here to give
for module in (llava_arch, builder):
    for name in ("openai/clip-vit-large-patch14-336", "enc:clip-tiny"):
        config = SimpleNamespace(mm_vision_tower=name, mm_vision_select_layer=-2, unfreeze_mm_vision_tower=False, mm_tunable_parts="")
        built = module.build_vision_tower(config, delay_load=True)
        print(built == f"the original's {name}" if name.startswith("openai/") else type(built).__name__ == "LlavaNextTower")
try:
    builder.build_vision_tower(SimpleNamespace(mm_vision_tower="enc:genlip-g61"))
except ValueError as error:
    print("Did you mean 'genlip-g16'" in str(error))
try:
    builder.build_vision_tower(SimpleNamespace(mm_vision_tower="nothing"))
except ValueError as error:
    print(str(error) == "Unknown vision tower: nothing")
"""


@real
def test_other_names_reach_the_original_function():
    assert python("-c", OTHERS).stdout.strip().splitlines()[-6:] == ["True"] * 6


@real
def test_doctor_names_every_shim():
    out = python("-m", "llava_plugin.llava_next", "doctor").stdout
    assert all(f"{shim.name}: {shim.why}" in out for shim in llava_next.SHIMS) and "mended" in out


def test_a_missing_or_another_llava_is_said_with_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("LLAVA_NEXT_ROOT", raising=False)
    if llava_next.importlib.util.find_spec("llava") is None:
        assert llava_next.main(["doctor"]) == 2
        assert "git clone https://github.com/LLaVA-VL/LLaVA-NeXT" in capsys.readouterr().err
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "__init__.py").touch()
    monkeypatch.setenv("LLAVA_NEXT_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert llava_next.main(["train"]) == 2
    assert "is a llava without Qwen, not LLaVA-NeXT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "llava.train.train of .* has no train, preprocess_qwen, safe_save_model_for_hf_trainer"),
        ("import a_library_of_old", "cannot be imported with the installed libraries \\(No module named 'a_library_of_old'\\)"),
    ],
)
def test_an_unsupported_version_is_said_with_the_commit_that_works(content, said, tmp_path, monkeypatch):
    for name in ("__init__", "train/__init__", "train/train", "model/__init__", "model/language_model/llava_qwen"):
        file = tmp_path / "llava" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if name == "train/train" else "")
    monkeypatch.setenv("LLAVA_NEXT_ROOT", str(tmp_path))
    done = python("-m", "llava_plugin.llava_next", "doctor", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(said, done.stderr) and f"git -C {tmp_path} checkout df17966" in done.stderr


def test_the_tower_stays_fp32_on_a_cpu():
    """Their script casts it to fp16 wherever it does not train in bf16."""
    import torch

    tower = llava_next.tower_class()("enc:genlip-tiny")
    assert tower.to(dtype=torch.float16, device="cpu").dtype == (torch.float16 if torch.cuda.is_available() else torch.float32)
    assert tower.to(dtype=torch.bfloat16).dtype == torch.bfloat16


def test_frozen_is_what_the_weights_say_not_the_last_stages_flags():
    """A checkpoint whose last stage froze an encoder that an earlier one had trained; older flags; rounding by training in bf16."""
    from types import SimpleNamespace

    import torch

    from llava_plugin.tower import VisionTower

    last, name = SimpleNamespace(mm_tunable_parts="mm_mlp_adapter,mm_language_model"), "enc:genlip-tiny"
    tower = VisionTower.from_encoder("genlip-tiny")
    assert llava_next._frozen(last, name, tower) and llava_next._frozen(last, name, tower.to(torch.bfloat16).float())
    assert llava_next._frozen(SimpleNamespace(), name, tower), "flags of neither age"
    for older in ({"unfreeze_mm_vision_tower": True}, {"mm_tunable_parts": None, "tune_vision_tower": True}):
        assert not llava_next._frozen(SimpleNamespace(**older), name, tower)
    with torch.no_grad():
        next(tower.parameters()).add_(1e-2)
    assert not llava_next._frozen(last, name, tower)


@pytest.mark.parametrize("frozen", [True, False, None])
def test_what_is_known_of_frozen_survives_the_way_to_llava_next_and_back(tmp_path, frozen):
    import torch
    from transformers import PreTrainedConfig

    from llava_plugin.tower import VisionTower

    PreTrainedConfig(**llava_next._frozen_fields(frozen)).save_pretrained(tmp_path)
    back, name, tower = PreTrainedConfig.from_pretrained(tmp_path), "enc:genlip-tiny", VisionTower.from_encoder("genlip-tiny")
    assert llava_next._frozen(back, name, tower) is frozen
    back.mm_tunable_parts = "mm_mlp_adapter"  # a stage there that leaves the encoder alone: what was known is still known
    assert llava_next._frozen(back, name, tower) is frozen
    back.mm_tunable_parts = "mm_vision_tower"
    assert llava_next._frozen(back, name, tower) is False
    back.mm_tunable_parts = "mm_mlp_adapter"
    with torch.no_grad():
        next(tower.parameters()).add_(1e-2)
    assert llava_next._frozen(back, name, tower) is False
