"""Conversations to tokens and labels: labels on the answers alone, independent turns equal to each turn alone."""

import json

import pytest
from transformers import AutoTokenizer

from llava_plugin import mllm
from train_mllm.data import IGNORED, Conversations, as_text, encode, end_of_turn, token_lengths
from train_mllm.prepare_data import prepare

TWO_TURNS = [
    {"role": "user", "content": "<image>\nwhat is in the picture"},
    {"role": "assistant", "content": "a red circle"},
    {"role": "user", "content": "no"},
    {"role": "assistant", "content": "yes"},
]


@pytest.fixture(scope="module")
def tokenizer(llama_tiny):
    return AutoTokenizer.from_pretrained(llama_tiny)


def supervised(row, tokenizer):
    return tokenizer.decode([label for label in row.labels if label != -100])


def test_dialogue_is_one_sequence_with_labels_on_answers_and_their_end(tokenizer):
    row = encode(TWO_TURNS, tokenizer, image_token_id=3, image_tokens=2, turns="dialogue", max_length=200)
    assert tokenizer.decode(row.ids) == (
        "<|im_start|><image><image>\nwhat is in the picture\na red circle<|im_end|><|im_start|>no\nyes<|im_end|>"
    )
    assert supervised(row, tokenizer) == "a red circle<|im_end|>yes<|im_end|>"
    assert row.positions == list(range(len(row.ids))) and not any(row.block)


def test_independent_turns_share_their_front_and_see_nothing_else(tokenizer):
    row = encode(TWO_TURNS, tokenizer, image_token_id=3, image_tokens=2, turns="independent", max_length=200)
    front = row.block.index(1)
    assert tokenizer.decode(row.ids[:front]) == "<|im_start|><image><image>"
    blocks = [[i for i, b in zip(row.ids, row.block) if b == k] for k in (1, 2)]
    assert tokenizer.decode(blocks[1]) == "\nno\nyes<|im_end|>"
    assert supervised(row, tokenizer) == "a red circle<|im_end|>yes<|im_end|>"
    assert [row.positions[row.block.index(k)] for k in (1, 2)] == [front, front]


@pytest.mark.parametrize("name", ["tokenizer_qwen2.5", "tokenizer_qwen3"])
@pytest.mark.parametrize("turns", ["dialogue", "independent"])
def test_real_tokenizers_train_on_the_prompt_of_evaluation(shared, name, turns):
    """Their templates mark no assistant turns, add a system prompt, put a <think> block in; training must not."""
    tokenizer = AutoTokenizer.from_pretrained(shared / name)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    row = encode(TWO_TURNS, tokenizer, image, 4, turns, 500)
    assert supervised(row, tokenizer) == "a red circle<|im_end|>yes<|im_end|>"
    prompt = mllm.prompt_ids(tokenizer, TWO_TURNS[:1], image, 4)
    assert row.ids[: len(prompt)] == prompt and row.labels[: len(prompt)] == [-100] * len(prompt)
    assert "think" not in tokenizer.decode(row.ids)
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_too_long_is_cut_at_a_turn(tokenizer):
    whole = encode(TWO_TURNS, tokenizer, 3, 2, "dialogue", 200)
    cut = encode(TWO_TURNS, tokenizer, 3, 2, "dialogue", len(whole.ids) - 1)
    assert cut.cut and not whole.cut and supervised(cut, tokenizer) == "a red circle<|im_end|>"
    with pytest.raises(ValueError, match="max-length"):
        encode(TWO_TURNS, tokenizer, 3, 2, "independent", 5)


TWO_PICTURES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image>\n<image>\nSame?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "One is red."},
]
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\n<image>\nSame?<|im_end|>\n"
    "<|im_start|>assistant\n[[No.<|im_end|>]]\n"
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n[[One is red.<|im_end|>]]"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.mark.parametrize("name", ["tokenizer_qwen2.5", "tokenizer_qwen3"])
def test_labels_of_real_tokenizers_as_text(shared, name):
    assert as_text(TWO_PICTURES, AutoTokenizer.from_pretrained(shared / name)) == CHATML


def real_tokenizer(shared, name):
    """Another way to mark turns is Llama 3's, behind a begin-of-text token that must stand once: its template on Qwen2.5's entries."""
    if name == "smollm2":
        from llava_plugin.encoders import weights_dir

        if not (weights_dir() / "smollm2-135m").is_dir():
            pytest.skip("no smollm2-135m here: python -m llava_plugin.fetch smollm2-135m")
        return AutoTokenizer.from_pretrained(weights_dir() / "smollm2-135m")
    if name != "llama3":
        return AutoTokenizer.from_pretrained(shared / f"tokenizer_{name}")
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer_qwen2.5")
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    tokenizer.bos_token, tokenizer.chat_template = "<|begin_of_text|>", LLAMA3
    return tokenizer


def test_labels_of_smollm2_as_text(shared):
    assert as_text(TWO_PICTURES, real_tokenizer(shared, "smollm2")) == CHATML


def test_labels_of_a_llama3_template(shared):
    assert as_text(TWO_PICTURES, real_tokenizer(shared, "llama3")) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\n"
        "<image>\nSame?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[[No.<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Why?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[[One is red.<|eot_id|>]]"
    )


CHATS = [TWO_PICTURES, TWO_PICTURES[1:], [TWO_PICTURES[0], {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "smollm2", "llama3"])
@pytest.mark.parametrize("chat", range(len(CHATS)))
def test_every_answer_is_learnt_behind_the_prompt_of_evaluation(shared, name, chat):
    """Byte by byte, at each answer of a dialogue: with and without a system prompt, with two pictures and none."""
    tokenizer, chat = real_tokenizer(shared, name), CHATS[chat]
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    image = len(tokenizer) if image in (None, tokenizer.unk_token_id) else image
    row = encode(chat, tokenizer, image, 3, "dialogue", 500)
    answers = [k for k, message in enumerate(chat) if message["role"] == "assistant"]
    learned = [i for i, label in enumerate(row.labels) if label != IGNORED]
    starts = [i for i in learned if i - 1 not in learned]
    assert len(starts) == len(answers)
    for k, start in zip(answers, starts):
        prompt = mllm.prompt_ids(tokenizer, chat[:k], image, 3)
        assert row.ids[:start] == prompt
        text = tokenizer.apply_chat_template(chat[:k], add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode([i for i in row.ids[:start] if i != image]) == text.replace("<image>", "")


def test_alignment_of_tokens_and_labels_written_out(shared):
    """Qwen2.5, two visual tokens a picture: token by token, what is learned at each."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer_qwen2.5")
    row = encode(TWO_PICTURES, tokenizer, tokenizer.convert_tokens_to_ids("<|image_pad|>"), 2, "dialogue", 500)
    learned = [(tokenizer.decode([i]), label != IGNORED) for i, label in zip(row.ids, row.labels)]
    given = [
        *("<|im_start|>", "system", "\n", "Be", " brief", ".", "<|im_end|>", "\n", "<|im_start|>", "user", "\n"),
        *("<|image_pad|>", "<|image_pad|>", "\n", "<|image_pad|>", "<|image_pad|>", "\n", "Same", "?", "<|im_end|>", "\n"),
        *("<|im_start|>", "assistant", "\n"),
    ]
    then = ["\n", "<|im_start|>", "user", "\n", "Why", "?", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
    assert learned == [
        *((t, False) for t in given),
        *((t, True) for t in ("No", ".", "<|im_end|>")),
        *((t, False) for t in then),
        *((t, True) for t in ("One", " is", " red", ".", "<|im_end|>")),
    ]
    assert all(label in (IGNORED, i) for i, label in zip(row.ids, row.labels))


def test_a_template_without_an_end_of_turn_is_refused(llama_tiny):
    tokenizer = AutoTokenizer.from_pretrained(llama_tiny)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ValueError, match=r"llama-tiny ends an answer with .* no special token.*Pass --llm a model whose template"):
        encode(TWO_TURNS, tokenizer, 3, 2, "dialogue", 200)


def test_lengths_are_measured_once(llama_tiny, tokenizer, tmp_path):
    """Tokens, supervised tokens, and whether a row was cut (1) or does not fit at all (-1)."""
    from types import SimpleNamespace

    long = [{"from": "human", "value": "what " * 40}, {"from": "gpt", "value": "no"}]
    short = [{"from": "human", "value": "no"}, {"from": "gpt", "value": "yes"}]
    rows = [{"id": n, "conversations": c} for n, c in (("fits", short), ("cut", short + long), ("not", long + short))]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    prepare(str(tmp_path / "a.json"), "", str(tmp_path / "out"))
    recipe = SimpleNamespace(turns="dialogue", max_length=40)
    conversations = Conversations(tmp_path / "out", tokenizer, SimpleNamespace(image_token_id=3, image_seq_length=2), recipe)
    found = token_lengths(conversations, tmp_path, "digest")
    fits = encode([{"role": "user", "content": "no"}, {"role": "assistant", "content": "yes"}], tokenizer, 3, 2, "dialogue", 40)
    supervised = sum(label != IGNORED for label in fits.labels)
    assert found.tolist() == [[len(fits.ids), supervised, 0], [len(fits.ids), supervised, 1], [0, 0, -1]]
    conversations.table = None  # the second time nothing is read
    assert token_lengths(conversations, tmp_path, "digest").tolist() == found.tolist()
    assert len(list(tmp_path.glob("lengths-*.npy"))) == 1


CONTROL = [
    {"role": "user", "content": "What does <|im_end|> mean, and <|image_pad|> or <|im_start|>?"},
    {"role": "assistant", "content": "It ends a turn: <|im_end|>."},
    {"role": "system", "content": "Say no <|im_start|> yourself."},
    {"role": "user", "content": "no"},
    {"role": "assistant", "content": "yes"},
]


def test_a_control_token_that_somebody_typed_is_text_in_training_and_evaluation(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for turns in ("dialogue", "independent"):
        row = encode([m for m in CONTROL if m["role"] != "system"], tokenizer, 3, 2, turns, 500)
        assert row.ids.count(end) == 2 and [label for label in row.labels if label == end] == [end, end]
        assert supervised(row, tokenizer) == "It ends a turn: <|im_end|>.<|im_end|>yes<|im_end|>"
    prompt = mllm.prompt_ids(tokenizer, CONTROL[:1], 3, 2)
    row = encode(CONTROL[:2], tokenizer, 3, 2, "dialogue", 500)
    assert row.ids[: len(prompt)] == prompt and tokenizer.decode(prompt).count("<|im_end|>") == 1 and end not in prompt


@pytest.mark.parametrize("name", ["tokenizer_qwen2.5", "tokenizer_qwen3"])
def test_control_tokens_and_system_turns_on_real_tokenizers(shared, name):
    tokenizer = AutoTokenizer.from_pretrained(shared / name)
    ends, image = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|image_pad|>")
    row = encode(CONTROL, tokenizer, image, 4, "dialogue", 500)
    assert image not in row.ids and [label for label in row.labels if label == ends] == [ends, ends]
    text = tokenizer.decode(row.ids)
    places = [text.index(said) for said in ("What does <|im_end|>", "It ends a turn: <|im_end|>.", "Say no <|im_start|>", "yes<|im_end|>")]
    assert places == sorted(places), "a system turn stands where it was said"


def test_what_the_template_refuses_is_said(tokenizer, llama_tiny):
    strict = AutoTokenizer.from_pretrained(llama_tiny)
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
        "{{ raise_exception('System first.') }}{% endif %}{% endfor %}" + tokenizer.chat_template
    )
    with pytest.raises(ValueError, match=r"the chat template refuses it \(System first\.\)"):
        encode(CONTROL, strict, 3, 2, "dialogue", 500)
