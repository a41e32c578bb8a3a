"""Conversations to tokens and labels: labels on the answers alone, independent turns equal to each turn alone."""

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from llava_plugin import mllm
from llava_plugin.tower import VisionTower
from train_mllm.data import encode, end_of_turn
from train_mllm.packing import Collator, sequences, use_packed_attention

TWO_TURNS = [
    {"role": "user", "content": "<image>\nwhat is in the picture"},
    {"role": "assistant", "content": "a red circle"},
    {"role": "user", "content": "no"},
    {"role": "assistant", "content": "yes"},
]


@pytest.fixture(scope="module")
def tokenizer(llama_tiny):
    return AutoTokenizer.from_pretrained(llama_tiny)


def labelled(row, tokenizer):
    return tokenizer.decode([label for label in row.labels if label != -100])


def test_dialogue_is_one_sequence_with_labels_on_answers_and_their_end(tokenizer):
    row = encode(TWO_TURNS, tokenizer, image_token_id=3, image_tokens=2, turns="dialogue", max_length=200)
    assert tokenizer.decode(row.ids) == (
        "<|im_start|>user\n<image><image>\nwhat is in the picture<|im_end|>\n<|im_start|>assistant\na red circle<|im_end|>\n"
        "<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )
    assert labelled(row, tokenizer) == "a red circle<|im_end|>yes<|im_end|>"
    assert row.positions == list(range(len(row.ids))) and not any(row.block)


def test_independent_turns_share_their_front_and_see_nothing_else(tokenizer):
    row = encode(TWO_TURNS, tokenizer, image_token_id=3, image_tokens=2, turns="independent", max_length=200)
    front = row.block.index(1)
    assert tokenizer.decode(row.ids[:front]) == "<|im_start|>user\n<image><image>"
    blocks = [[i for i, b in zip(row.ids, row.block) if b == k] for k in (1, 2)]
    assert tokenizer.decode(blocks[1]) == "\nno<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    assert labelled(row, tokenizer) == "a red circle<|im_end|>yes<|im_end|>"
    assert [row.positions[row.block.index(k)] for k in (1, 2)] == [front, front]


@pytest.mark.parametrize("name", ["tokenizer_qwen2.5", "tokenizer_qwen3"])
@pytest.mark.parametrize("turns", ["dialogue", "independent"])
def test_real_tokenizers_train_on_the_prompt_of_evaluation(shared, name, turns):
    """Their templates mark no assistant turns, add a system prompt, put a <think> block in; training must not."""
    tokenizer = AutoTokenizer.from_pretrained(shared / name)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    row = encode(TWO_TURNS, tokenizer, image, 4, turns, 500)
    assert labelled(row, tokenizer) == "a red circle<|im_end|>yes<|im_end|>"
    prompt = mllm.prompt_ids(tokenizer, TWO_TURNS[:1], image, 4)
    assert row.ids[: len(prompt)] == prompt and row.labels[: len(prompt)] == [-100] * len(prompt)
    assert "think" not in tokenizer.decode(row.ids)
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_too_long_is_cut_at_a_turn(tokenizer):
    whole = encode(TWO_TURNS, tokenizer, 3, 2, "dialogue", 200)
    cut = encode(TWO_TURNS, tokenizer, 3, 2, "dialogue", len(whole.ids) - 1)
    assert cut.cut and not whole.cut and labelled(cut, tokenizer) == "a red circle<|im_end|>"
    with pytest.raises(ValueError, match="max-length"):
        encode(TWO_TURNS, tokenizer, 3, 2, "independent", 5)


def test_sequences_of_a_packed_row():
    """A front of one token with two turns of two, then a dialogue of two tokens."""
    assert sequences([[0, 1, 1, 2, 2], [0, 0]]) == [[0, 1, 2], [0, 3, 4], [5, 6]]


@pytest.mark.parametrize("turns", ["independent", "dialogue"])
def test_packed_gives_the_loss_and_gradients_of_each_sequence_alone(llama_tiny, turns):
    """Against transformers' own attention, one sequence at a time, with and without a picture."""
    tower = VisionTower.from_encoder("genlip-tiny")
    model, tokenizer = mllm.build(tower, str(llama_tiny))
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    text_only = [{"role": "user", "content": "what is"}, {"role": "assistant", "content": "a blue triangle"}]
    conversations = [TWO_TURNS, text_only, TWO_TURNS[:2]]
    alone = conversations
    if turns == "independent":
        alone = [TWO_TURNS[:2], [{"role": "user", "content": "<image>\nno"}, TWO_TURNS[3]], *conversations[1:]]

    def samples(conversations):
        rows = [encode(c, tokenizer, model.config.image_token_id, 16, turns, 500) for c in conversations]
        return [{"id": "x", "row": r, "pictures": [picture] * (r.ids.count(model.config.image_token_id) // 16)} for r in rows]

    def gradients():
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    labelled = sum(label != -100 for s in samples(conversations) for label in s["row"].labels)
    losses = 0.0
    for sample in samples(alone):
        batch = Collator(tower.preprocess, model.config)([sample])
        plain = {k: v for k, v in batch.items() if k in ("input_ids", "labels", "pixel_values")}
        loss = model(**plain, num_items_in_batch=labelled).loss
        loss.backward()
        losses += loss.detach()
    single = gradients()
    model.zero_grad()
    use_packed_attention(model)
    packed = model(**Collator(tower.preprocess, model.config)(samples(conversations)), num_items_in_batch=labelled).loss
    packed.backward()
    torch.testing.assert_close(packed.detach(), losses, atol=1e-5, rtol=0)
    found = gradients()
    assert found.keys() == single.keys() and len(found) > 20
    for name, gradient in single.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
