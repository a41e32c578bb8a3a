"""Our MLLM as lmms-eval sees it: every answer at its question, whatever the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.eval_suites.helpers.small_data import SHARED, FakeMllm, provenance

pytest.importorskip("lmms_eval")
from eval_suites.runner import lmms_model, preflight
from eval_suites.runner.journal import Journal

ROOT = Path(__file__).parents[2]


def request(doc_id: int, text: str, **generation):
    def messages(doc):
        return [
            {
                "role": "user",
                "content": [*({"type": "image", "url": picture} for picture in doc["pictures"]), {"type": "text", "text": text}],
            }
        ]

    return SimpleNamespace(args=(text, messages, generation, doc_id, "task", "test"))


def model(requests, pictures=None, batch_size=4, reply=lambda prompt: f"re: {prompt}"):
    mllm = FakeMllm(reply, provenance("genlip-tiny"))
    lm = lmms_model.EvaluatedMllm(mllm=mllm, batch_size=batch_size)
    shown = pictures or [[Image.new("RGB", (4, 4), (i, 0, 0))] for i in range(len(requests))]
    lm.task_dict["task"] = {"test": [{"pictures": some} for some in shown]}
    return lm, mllm


def test_answers_come_back_in_the_order_asked_and_batches_are_alike_in_length():
    texts = [f"{'word ' * (7 * i % 50)}{i}" for i in range(50)]
    requests = [request(i, text, max_new_tokens=16) for i, text in enumerate(texts)]
    lm, mllm = model(requests)
    assert [result.text for result in lm.generate_until(requests)] == [f"re: {text}" for text in texts]
    spread = [max(map(len, prompts)) - min(map(len, prompts)) for prompts, *_ in mllm.batches]
    assert len(mllm.batches) == 13 and max(spread) <= 30
    # Each question went with its own picture.
    for prompts, images, *_ in mllm.batches:
        assert [picture[0].pixel[0] for picture in images] == [int(prompt.split()[-1]) for prompt in prompts]


def test_generation_settings_are_honoured_and_never_mixed():
    requests = [request(i, f"{i}", max_new_tokens=16 + i % 2, until=["\n\n", "."]) for i in range(6)]
    lm, mllm = model(requests, reply=lambda prompt: f"one {prompt}. two\n\nthree")
    assert [result.text for result in lm.generate_until(requests)] == [f"one {i}" for i in range(6)]
    for prompts, _, new_tokens, stop in mllm.batches:
        assert stop == ("\n\n", ".") and {16 + int(prompt) % 2 for prompt in prompts} == {new_tokens}


def test_text_alone_and_several_pictures():
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    requests = [request(0, "none"), request(1, "two"), request(2, "one")]
    lm, mllm = model(requests, pictures=[[], [red, blue], [red]])
    lm.generate_until(requests)
    pairs = [pair for prompts, pictures, *_ in mllm.batches for pair in zip(prompts, pictures)]
    shown = {prompt: [picture.pixel for picture in images] for prompt, images in pairs}
    assert shown == {"none": [], "two": [(255, 0, 0), (0, 0, 255)], "one": [(255, 0, 0)]}
    asked = [lm.answers["task", i] for i in range(3)]
    assert asked[0].prompt == "none" and asked[0].image == "" and asked[1].image != asked[2].image != ""
    assert mllm.batches[0][2] == lmms_model.DEFAULT_NEW_TOKENS


def test_what_is_not_greedy_is_refused():
    for generation in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}):
        requests = [request(0, "x", **generation)]
        with pytest.raises(ValueError, match="greedily"):
            model(requests)[0].generate_until(requests)


def test_cleaning_up_keeps_the_model():
    torch = pytest.importorskip("torch")
    lm = lmms_model.EvaluatedMllm(mllm=torch.nn.Linear(1, 1))  # lmms-eval drops every module it finds after a task
    lm.clean()
    assert lm.mllm.in_features == 1 and lm.generate_until([]) == []


def test_lmms_eval_finds_the_model_by_entry_point():
    from lmms_eval import models

    assert "genlip_eval" in models.AVAILABLE_MODELS
    assert models.get_model("genlip_eval") is lmms_model.EvaluatedMllm
    with pytest.raises(ValueError, match="export=runs/NAME/export"):
        models.get_model("genlip_eval").create_from_arg_string("", {"batch_size": 1})


# --- what goes wrong --------------------------------------------------------------------------------------------------------


class Picky:
    """A data set that decodes when asked, as the hub's do; `broken` documents hold no whole picture."""

    def __init__(self, n: int, broken: dict[int, Exception]):
        self.n, self.broken = n, broken

    def __getitem__(self, i: int) -> dict:
        if i in self.broken:
            raise self.broken[i]
        return {"pictures": [Image.new("RGB", (4, 4), (i, 0, 0))]}


def test_out_of_memory_halves_the_batch_and_says_so(capsys):
    torch = pytest.importorskip("torch")
    requests = [request(i, f"{i}") for i in range(8)]
    lm, mllm = model(requests, batch_size=8)
    answer, tried = mllm.answer, []

    def small(conversations, *args, **kwargs):
        tried.append(len(conversations))
        if len(conversations) > 2:
            raise torch.OutOfMemoryError("no more")
        return answer(conversations, *args, **kwargs)

    mllm.answer = small
    assert [result.text for result in lm.generate_until(requests)] == [f"re: {i}" for i in range(8)]
    assert tried == [8, 4, 2, 2, 2, 2] and lm.batch_size == 2
    assert "out of memory with 8 questions at a time: 4 from here on" in capsys.readouterr().out
    mllm.answer = lambda *args, **kwargs: small([None] * 3)
    with pytest.raises(RuntimeError, match="a single question"):
        lm.generate_until(requests)


def test_a_picture_that_cannot_be_read_is_named_and_left_out():
    from PIL import UnidentifiedImageError

    requests = [request(i, f"{i}") for i in range(6)]
    lm, _ = model(requests)
    lm.task_dict["task"] = {"test": Picky(6, {1: UnidentifiedImageError("no picture"), 4: OSError("image file is truncated")})}
    with pytest.raises(ValueError, match=r"2 questions cannot be asked: doc 1 \(no picture\), doc 4 \(image file is truncated\)"):
        lm.generate_until(requests)
    left_out = {}
    lm.leave_out = lambda task, why: left_out.update(why)
    assert [result.text for result in lm.generate_until(requests)] == ["re: 0", "", "re: 2", "re: 3", "", "re: 5"]
    assert left_out == {1: "no picture", 4: "image file is truncated"}
    lm.task_dict["task"] = {"test": Picky(6, {1: OSError(5, "Input/output error")})}  # a disk that fails is no bad picture
    with pytest.raises(OSError, match="Input/output"):
        lm.generate_until(requests)


def test_answers_of_the_journal_are_not_generated_again(tmp_path):
    requests = [request(i, f"{i}", max_new_tokens=16) for i in range(6)]
    lm, _ = model(requests)
    lm.journal = Journal(tmp_path, {"weights": "a"})
    first = [result.text for result in lm.generate_until(requests[:4])]
    again, second = model(requests, reply=lambda prompt: "other")
    again.journal = Journal(tmp_path, {"weights": "a"})
    assert [result.text for result in again.generate_until(requests)] == [*first, "other", "other"]
    assert [prompt for prompts, *_ in second.batches for prompt in prompts] == ["4", "5"]
    assert again.answers["task", 0] == lm.answers["task", 0]
    longer = [request(i, f"{i}", max_new_tokens=17) for i in range(6)]  # other generation settings, other answers
    assert [result.text for result in again.generate_until(longer)] == ["other"] * 6


@pytest.mark.parametrize("texts", [[f"{i}" for i in range(6)], ["describe it"] * 6], ids=["by their text", "by their pictures"])
def test_answers_of_other_questions_in_the_journal_are_said_and_asked_again(tmp_path, texts):
    requests = [request(i, text, max_new_tokens=16) for i, text in enumerate(texts)]
    lm, _ = model(requests)
    lm.journal = Journal(tmp_path, {"weights": "a"})
    lm.generate_until(requests)
    lines = lm.journal.path.read_text().splitlines(keepends=True)
    moved = [json.loads(line) for line in lines[1:]]
    for line in moved[:4]:  # the answers of four questions go round by one
        line["doc_id"] = (line["doc_id"] + 1) % 4
    lm.journal.path.write_text(lines[0] + "".join(json.dumps(line) + "\n" for line in moved))
    again, _ = model(requests, reply=lambda prompt: "again")
    again.journal, said = Journal(tmp_path, {"weights": "a"}), []
    again.note = said.append
    assert [result.text for result in again.generate_until(requests)] == ["again"] * 4 + [f"re: {text}" for text in texts[4:]]
    assert said == [f"4 of 6 answers in {again.journal.path} are of other questions: asked again"]
    assert [again.answers["task", i].image for i in range(6)] == [lm.answers["task", i].image for i in range(6)]
    third, untouched = model(requests)
    third.journal = Journal(tmp_path, {"weights": "a"})  # the new lines count
    assert [result.text for result in third.generate_until(requests)][:4] == ["again"] * 4 and not untouched.batches


def test_a_journal_is_held_against_text_alone_where_that_tells_questions_apart(tmp_path):
    requests = [request(i, f"{i}", max_new_tokens=16) for i in range(6)]
    lm, _ = model(requests)
    lm.journal = Journal(tmp_path, {"weights": "a"})
    lm.generate_until(requests)
    again, _ = model(requests)
    again.journal = Journal(tmp_path, {"weights": "a"})
    again.task_dict["task"] = {"test": []}  # no document is there to be decoded
    assert [result.text for result in again.generate_until(requests)] == [f"re: {i}" for i in range(6)]


# --- exports of runs with LoRA ----------------------------------------------------------------------------------------------


def test_a_merged_lora_export_answers_as_the_adapted_model_in_memory(tmp_path, llama_tiny):
    """As train_mllm makes it: adapters on the language model's linear layers, merged at the end, the whole saved as any other run."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower
    from train_mllm.model import with_adapters

    requests = [request(i, f"what is in picture {'number ' * i}{i}?", max_new_tokens=12) for i in range(5)]
    pictures = [[Image.effect_noise((64, 64), 40 * i + 10).convert("RGB")] for i in range(4)] + [[]]

    def answers(**how) -> list[str]:
        lm = lmms_model.EvaluatedMllm(batch_size=2, **how)
        lm.task_dict["task"] = {"test": [{"pictures": some} for some in pictures]}
        return [result.text for result in lm.generate_until(requests)]

    torch.manual_seed(0)
    built, tokenizer = mllm.build(VisionTower.from_encoder("genlip-tiny"), str(llama_tiny))
    model = mllm.Mllm(built.eval(), tokenizer, None)
    plain = answers(mllm=model)
    built.model.language_model = with_adapters(built.model.language_model, SimpleNamespace(lora_rank=4, lora_alpha=8))
    for name, weight in built.named_parameters():
        if "lora_B" in name:  # which begins at 0: nothing learned
            torch.nn.init.normal_(weight, std=0.3)
    adapted = answers(mllm=model)
    built.model.language_model = built.model.language_model.merge_and_unload()
    mllm.save(built, tokenizer, tmp_path / "export", provenance("genlip-tiny"))
    assert not (tmp_path / "export" / "adapter_config.json").exists()
    assert answers(export=str(tmp_path / "export")) == adapted != plain and len(set(adapted)) > 2 and any(adapted)
    assert (
        lmms_model.EvaluatedMllm(export=str(tmp_path / "export")).mllm.fingerprint == preflight.read_export(tmp_path / "export").fingerprint
    )


# --- checkpoints of LLaVA-NeXT ----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_llava_next_is_converted_in_passing(tmp_path, monkeypatch):
    from llava_plugin import llava_next, mllm

    (tmp_path / "config.json").write_text(json.dumps({"mm_vision_tower": "enc:genlip-tiny"}))
    monkeypatch.setattr(llava_next, "to_native", lambda checkpoint, export: (export / "made-of").write_text(str(checkpoint)))
    monkeypatch.setattr(mllm, "load", lambda folder, device=None: (Path(folder) / "made-of").read_text())
    assert lmms_model._load(tmp_path, None) == str(tmp_path)
    with pytest.raises(ValueError, match=r"LLaVA-NeXT checkpoint.*llava_next convert"):
        preflight.read_export(tmp_path)  # the main job wants a provenance, and says how to come by one
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a LoRA adapter: merge it"):
        lmms_model._load(tmp_path, None)


BY_LLAVA_NEXT = """
import sys, json, torch
from pathlib import Path
from PIL import Image
from llava_plugin import llava_next
model = llava_next.load(Path(sys.argv[1]))
from transformers import AutoTokenizer
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
pixels = model.get_vision_tower().tower.preprocess([Image.open(sys.argv[2])])
for question in sys.argv[3:]:
    talk = conv_templates["qwen_1_5"].copy()
    talk.append_message(talk.roles[0], "<image>\\n" + question)
    talk.append_message(talk.roles[1], None)
    ids = tokenizer_image_token(talk.get_prompt(), tokenizer, return_tensors="pt")[None]
    out = model.generate(ids, images=list(pixels[:, None]), image_sizes=[(64, 64)], modalities=["image"], do_sample=False,
                         temperature=None, top_p=None, top_k=None, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)
    print("answer", json.dumps(tokenizer.batch_decode(out, skip_special_tokens=True)[0].strip()))
"""


@pytest.mark.skipif(not os.environ.get("LLAVA_NEXT_ROOT"), reason="$LLAVA_NEXT_ROOT names no LLaVA-NeXT checkout: clone it to run this")
def test_a_real_checkpoint_of_llava_next_is_answered_as_by_llava_next(tmp_path):
    """A Qwen2 of two layers with Qwen2.5's tokenizer, written as LLaVA-NeXT writes it: its own generate under its own template."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower

    if not (SHARED / "tokenizer_qwen2.5").is_dir():
        pytest.skip("Qwen2.5's tokenizer is not here (../shared/data/tokenizer_qwen2.5)")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "tokenizer_qwen2.5")
    torch.manual_seed(0)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=151_936, **tiny, tie_word_embeddings=False, initializer_range=0.3, bos_token_id=None,
                         eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    built, tokenizer = mllm.build(VisionTower.from_encoder("genlip-tiny"), str(tmp_path / "qwen"))
    mllm.save(built, tokenizer, tmp_path / "native", provenance("genlip-tiny"))
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    picture.save(tmp_path / "picture.png")
    questions = ["What is it?\nAnswer the question using a single word or phrase.", "Provide a one-sentence caption."]

    def python(*arguments):  # in a process of its own: the adapter's shims change transformers for good
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=env, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        return [json.loads(line.removeprefix("answer ")) for line in done.stdout.splitlines() if line.startswith("answer ")]

    python("-m", "llava_plugin.llava_next", "convert", tmp_path / "native", tmp_path / "checkpoint")
    theirs = python("-c", BY_LLAVA_NEXT, tmp_path / "checkpoint", tmp_path / "picture.png", *questions)
    mine = python("-c", BY_US, tmp_path / "checkpoint", tmp_path / "picture.png", *questions)
    assert mine == theirs and len(set(mine)) == 2 and all(mine)


BY_US = """
import sys, json
from types import SimpleNamespace
from PIL import Image
from eval_suites.runner.lmms_model import EvaluatedMllm
lm = EvaluatedMllm(export=sys.argv[1], batch_size=2)
lm.task_dict["task"] = {"test": [{"picture": Image.open(sys.argv[2])}] * len(sys.argv[3:])}
def messages(question):
    return lambda doc: [{"role": "user", "content": [{"type": "image", "url": doc["picture"]}, {"type": "text", "text": question}]}]
requests = [SimpleNamespace(args=(q, messages(q), {"max_new_tokens": 12}, i, "task", "test")) for i, q in enumerate(sys.argv[3:])]
for result in lm.generate_until(requests):
    print("answer", json.dumps(result.text))
"""
