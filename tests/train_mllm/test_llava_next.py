"""The recipe in LLaVA-NeXT: what goes over, and what is refused; and a whole run in the real checkout where $LLAVA_NEXT_ROOT names one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from llava_plugin import mllm
from train_mllm import estimate, llava_next
from train_mllm.prepare_data import prepare
from train_mllm.recipes import PRESETS
from train_mllm.setup import resolve
from train_mllm.train import check_recipe

ROOT = Path(__file__).parents[2]
RECIPE = replace(PRESETS["sft-qwen7b-frozen"](), backend="llava_next")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"lora_rank": 8}, "goes with --lora-rank 0 alone"), ({"stage": "projector", "resolution": 64}, "--stage sft, --resolution 0 alone")],
)
def test_what_llava_next_cannot_follow_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_recipe(replace(RECIPE, **change))


def test_an_absent_checkout_is_missing(monkeypatch):
    monkeypatch.delenv("LLAVA_NEXT_ROOT", raising=False)
    monkeypatch.setattr(estimate.llava_next.importlib.util, "find_spec", lambda name: None)
    assert "export LLAVA_NEXT_ROOT=" in estimate.missing(resolve(RECIPE, 8))[0]


def said(*turns):
    return [{"from": who, "value": text} for who, text in turns]


def test_data_goes_over_in_llavas_form(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    two, one = said(("human", "<image><image>Same?"), ("gpt", "Yes.")), said(("human", "Hi"), ("gpt", "Ho"))
    rows = [{"id": "two", "image": ["a.png", "b.png"], "conversations": two}, {"id": "none", "conversations": one}]
    (tmp_path / "sft.json").write_text(json.dumps(rows))
    prepare(str(tmp_path / "sft.json"), "", str(tmp_path / "data"))
    llava_next.write_data(tmp_path / "data", tmp_path / "next")
    found = json.loads((tmp_path / "next" / "conversations.json").read_text())
    assert [row["conversations"] for row in found] == [two, one]
    assert found[0]["image"] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")] and "image" not in found[1]
    (tmp_path / "sft.json").write_text(
        json.dumps([{"id": "s", "conversations": said(("system", "Be brief."), ("human", "Hi"), ("gpt", "Ho"))}])
    )
    prepare(str(tmp_path / "sft.json"), "", str(tmp_path / "system"))
    with pytest.raises(ValueError, match="'s' has a system turn, which LLaVA-NeXT does not read"):
        llava_next.write_data(tmp_path / "system", tmp_path / "x")


def test_arguments_are_the_recipes():
    given = llava_next.arguments(replace(RECIPE, train_encoder=True), "qwen", Path("next"), 8, True, 2)
    flags = dict(zip(given[::2], given[1::2]))
    assert flags["--mm_tunable_parts"] == "mm_mlp_adapter,mm_language_model,mm_vision_tower" and flags["--mm_vision_tower_lr"] == "2e-06"
    assert (flags["--learning_rate"], flags["--gradient_accumulation_steps"]) == ("1e-05", "8")
    assert flags["--deepspeed"].endswith("zero2.json")
    assert flags["--vision_tower"] == "enc:genlip-g16" and "--pretrain_mm_mlp_adapter" not in flags


@pytest.mark.slow
@pytest.mark.skipif("LLAVA_NEXT_ROOT" not in os.environ, reason="$LLAVA_NEXT_ROOT names no LLaVA-NeXT checkout: clone it to run this")
@pytest.mark.parametrize("trained", [False, True])
def test_a_run_in_the_real_checkout(shared, tmp_path, trained):
    """Ten real conversations, a tiny Qwen2 with Qwen2.5's own tokenizer; in a process of its own, since the shims change transformers."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer_qwen2.5")
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=151_936, **tiny, tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen-tiny")
    tokenizer.save_pretrained(tmp_path / "qwen-tiny")
    flags = ["--encoder", "genlip-tiny", "--llm", tmp_path / "qwen-tiny", "--data", shared / "sft" / "conversations_openai.json"]
    flags += ["--images", shared / "sft" / "images", "--out", tmp_path / "run", "--backend", "llava_next", "--batch", 1]
    flags += ["--global-batch", 2, "--max-steps", 2, "--lr", "1e-2", "--max-length", 300, "--workers", 1]
    flags += ["--no-gradient-checkpointing", *(["--encoder-lr", "1e-2"] if trained else [])]
    preset = "sft-qwen1.5b-unfrozen" if trained else "sft-qwen1.5b-frozen"
    command = [sys.executable, "-m", "train_mllm.train", preset, *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    export = tmp_path / "run" / "export"
    provenance = json.loads((export / "provenance.json").read_text())
    assert provenance["note"].startswith("trained by LLaVA-NeXT") and provenance["frozen"] != trained
    assert (provenance["encoder_digest_before"] != provenance["encoder_digest"]) == trained
    steps = [record for record in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2]
    model = mllm.load(export)
    text = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert model.answer([[{"role": "user", "content": "Hi"}]], [[]], 2)
