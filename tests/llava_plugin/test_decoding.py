"""Decoding is ours: what a language model's folder says of generation changes no answer.

And what our code gives for equal input today: where one of these changes, raise the number of its part in genlip/common/fingerprint.py, so
that older results are not taken for new ones.
"""

import hashlib
import json
import shutil
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from genlip.common.fingerprint import CODE
from llava_plugin import mllm
from llava_plugin.tower import VisionTower

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = [[{"role": "user", "content": text}] for text in ("what is in the picture", "yes", "no", "a red circle", "x")]


@pytest.fixture(scope="module")
def export(llama_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    mllm.save(*mllm.build(VisionTower.from_encoder("genlip-tiny"), str(llama_tiny)), folder, {"stage": "sft", "llm": "llama-tiny"})
    return folder


def answers(folder):
    return mllm.load(folder, device="cpu").answer(ASKED, [[] for _ in ASKED], 24)


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 20, "eos_token_id": 2}, {"num_beams": 3},
     {"do_sample": True, "temperature": 9.0}, {"eos_token_id": list(range(300))}, {"suppress_tokens": list(range(100))}],
)  # fmt: skip
def test_a_generation_config_in_the_folder_changes_no_answer(export, tmp_path, settings):
    copy = shutil.copytree(export, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps(settings))
    assert answers(copy) == answers(export) and len(set(answers(export))) > 2


def test_where_the_authors_word_is_asked_for_it_decides_and_is_in_the_fingerprint(export, tmp_path):
    copy = shutil.copytree(export, tmp_path / "copy")

    def asked(settings):
        (copy / "generation_config.json").write_text(json.dumps(settings))
        loaded = mllm.load(copy, device="cpu", generation="authors")
        return loaded.answer(ASKED, [[] for _ in ASKED], 24), loaded.fingerprint

    plain, of_plain = asked({"temperature": 0.6, "transformers_version": "5", "max_length": 20})  # which decide nothing
    assert plain == answers(export) and asked({})[1] == of_plain
    penalised, of_penalised = asked({"repetition_penalty": 3.0})
    assert penalised != plain and answers(copy) == plain
    assert of_penalised.differing(of_plain) == ["generation"] == of_plain.differing(mllm.load(copy, device="cpu").fingerprint)
    ended, _ = asked({"eos_token_id": list(range(300))})
    assert ended != plain
    with pytest.raises(ValueError, match=r"generation_config\.json samples \(do_sample\), and a benchmark's answers are not drawn"):
        asked({"do_sample": True, "temperature": 0.7})
    (copy / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=r"generation_config\.json is missing, and --generation authors goes by it"):
        mllm.load(copy, device="cpu", generation="authors")


def test_a_language_models_own_settings_are_not_exported(llama_tiny, tmp_path):
    llm = shutil.copytree(llama_tiny, tmp_path / "llm")
    (llm / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "eos_token_id": 0}))
    mllm.save(*mllm.build(VisionTower.from_encoder("genlip-tiny"), str(llm)), tmp_path / "export", {"stage": "sft", "llm": "llm"})
    said = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert not {"repetition_penalty", "no_repeat_ngram_size"} & {name for name, value in said.items() if value is not None}
    assert said["eos_token_id"] == [2]


def test_an_answer_stops_where_the_template_ends_a_turn_though_the_folder_calls_another_token_the_end(llama_tiny, tmp_path):
    """A base model with a ChatML template: its eos is <|endoftext|>, what it learns to say at the end of a turn is <|im_end|>."""
    llm = shutil.copytree(llama_tiny, tmp_path / "llm")
    settings = json.loads((llm / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    (llm / "tokenizer_config.json").write_text(json.dumps(settings | {"extra_special_tokens": ["<|im_start|>", "<|im_end|>", "<image>"]}))
    (llm / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    (llm / "chat_template.jinja").write_text(CHATML)
    model, tokenizer = mllm.build(VisionTower.from_encoder("genlip-tiny"), str(llm))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == "<|endoftext|>" and mllm.end_of_turn(tokenizer) == end
    with torch.no_grad():  # it says the end of turn first of all
        model.model.language_model.norm.weight.zero_()
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    with torch.no_grad():
        model.lm_head.bias.zero_()[end] = 9.0
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    assert mllm.Mllm(model.eval(), tokenizer, None).answer(ASKED[:1], [[]], 24) == [""] and len(steps) == 1


def test_a_template_that_prints_the_date_gives_one_prompt_on_every_day(llama_tiny, monkeypatch):
    from transformers.utils import chat_template_utils

    tokenizer = AutoTokenizer.from_pretrained(llama_tiny)
    tokenizer.chat_template = "{% set date = strftime_now('%d %b %Y') %}Today: {{ date }}\n" + CHATML
    prompts = []
    for day in (1, 2):
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda day=day: datetime(2031, 1, day)))
        prompts.append(tokenizer.decode(mllm.prompt_ids(tokenizer, ASKED[0], 3, 1)))
        assert f"0{day} Jan 2031" in tokenizer.apply_chat_template(ASKED[0], tokenize=False), "the clock is the one that templates read"
    assert "Today: 26 Jul 2024" in prompts[0] and prompts[0] == prompts[1]


def test_each_questions_token_ids_are_digested(export):
    loaded = mllm.load(export, device="cpu")
    loaded.answer(ASKED, [[] for _ in ASKED], 1)
    ids = mllm.prompt_ids(loaded.tokenizer, ASKED[0], 3, 1)
    assert loaded.prompt_digests[0] == hashlib.sha256(str(ids).encode()).hexdigest()[:16] and len(set(loaded.prompt_digests)) == len(ASKED)


def test_an_export_that_changes_while_it_is_read_is_refused(export, tmp_path, monkeypatch):
    copy = shutil.copytree(export, tmp_path / "copy")
    real = mllm.AutoTokenizer.from_pretrained

    def replaced(folder, **options):
        (copy / "chat_template.jinja").write_text("another")
        return real(folder, **options)

    monkeypatch.setattr(mllm.AutoTokenizer, "from_pretrained", replaced)
    with pytest.raises(ValueError, match=r"was replaced while it was read \(chat_template\): run the same command again"):
        mllm.load(copy)


# --- frozen outputs ---------------------------------------------------------------------------------------------------------


def pixels() -> str:
    """Of a picture with edges and ramps, as squares by both ways of resampling, and at its own aspect ratio; and of a 16-bit ramp."""
    picture = Image.linear_gradient("L").resize((90, 50)).convert("RGB")
    picture.paste((250, 10, 120), (20, 10, 50, 31))
    found = [VisionTower.from_encoder(key).preprocess([picture]) for key in ("genlip-tiny", "clip-tiny")]
    found += [VisionTower.from_encoder(key).preprocess_native([picture], 30)[0] for key in ("genlip-tiny", "siglip2-naflex-tiny")]
    ramp = Image.fromarray(np.linspace(0, 65_535, 64 * 64, dtype=np.uint16).reshape(64, 64))
    found.append(VisionTower.from_encoder("genlip-tiny").preprocess([ramp]))
    return digest([(tensor * 1000).round().int().tolist() for tensor in found])  # rounded: a last bit may differ between processors


def prompts(tokenizer) -> str:
    tokenizer.chat_template = CHATML
    pictures = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what is it\n"}]}]
    long = [
        {"role": "system", "content": "yes"},
        *pictures,
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "<image>\nwhy"},
    ]
    asked = [mllm.prompt_ids(tokenizer, messages, -1, counts) for messages, counts in ((ASKED[0], 4), (pictures, 4), (long, [1, 2, 3]))]
    return digest([[tokenizer.decode([t]) if t >= 0 else "<>" for t in ids] for ids in asked])


def decoding(tokenizer) -> str:
    said = {name: value for name, value in mllm.decoding(tokenizer, 3).to_diff_dict().items() if name != "transformers_version"}
    return digest(said)


def cleaning() -> str:
    cases = [(" a \n", ()), ("a\n\nb", ("\n\n",)), ("a. b\n\nc", ("\n\n", ".")), ("", ("x",)), ("\n\na", ("\n\n",)), ("<|im_end|>a", ())]
    return digest([mllm.cleaned(*case) for case in cases])


def digest(content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


FROZEN = {  # part -> (its number, digest of what it gives)
    "pixels": (2, "891ffa7a9d06"),
    "prompt": (1, "4a8e7a7840cc"),
    "decoding": (1, "89dc6654362a"),
    "cleaning": (1, "2bcb57283958"),
}


def test_what_shapes_answers_gives_what_its_number_stands_for(llama_tiny):
    tokenizer = AutoTokenizer.from_pretrained(llama_tiny)
    found = {"pixels": pixels(), "decoding": decoding(tokenizer), "prompt": prompts(tokenizer), "cleaning": cleaning()}
    assert {name: (CODE[name], found[name]) for name in CODE} == FROZEN, "raise the number in CODE of what changed, and note both here"
