"""Batches: packed, padded and one by one are equal in loss and gradients; bins lose nobody; a batch that teaches nothing is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from llava_plugin import mllm
from llava_plugin.tower import VisionTower
from train_mllm import packing
from train_mllm.data import IGNORED, TokenizedConversation, encode
from train_mllm.packing import Bins, Collator, bins, like_lengths, sequences, use_packed_attention

TWO_TURNS = [
    {"role": "user", "content": "<image>\nwhat is in the picture"},
    {"role": "assistant", "content": "a red circle"},
    {"role": "user", "content": "no"},
    {"role": "assistant", "content": "yes"},
]
TEXT_ONLY = [{"role": "user", "content": "what is"}, {"role": "assistant", "content": "a blue triangle"}]
PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")


@pytest.fixture
def parts(llama_tiny):
    tower = VisionTower.from_encoder("genlip-tiny")
    return tower, *mllm.build(tower, str(llama_tiny))


def samples(conversations, model, tokenizer, turns):
    rows = [encode(c, tokenizer, model.config.image_token_id, 16, turns, 500) for c in conversations]
    return [{"id": "x", "row": r, "pictures": [PICTURE] * (r.ids.count(model.config.image_token_id) // 16)} for r in rows]


def step(model, batch, supervised):
    """(loss, gradients) of a batch whose loss counts over `supervised` tokens in all."""
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=supervised).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_sequences_of_like_length_share_a_call():
    lists = [list(range(n)) for n in (30, 400, 30, 390, 300, 12)]
    assert [[len(indices) for indices in group] for group in like_lengths(lists)] == [[400, 390], [300], [30, 30], [12]]


def one_by_one(q, k, v, ends, ends_k, longest, longest_k, scale, window_size, enable_gqa=False):
    """What varlen_attn is documented to do: (all places, H, head_dim), sequences from ends[i] to ends[i + 1]."""
    assert ends is ends_k and longest == longest_k == ends.diff().max() and window_size == (-1, 0) and ends.dtype == torch.int32
    parts = []
    for start, end in zip(ends.tolist(), ends.tolist()[1:]):
        some = (t[start:end].transpose(0, 1)[None] for t in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(*some, is_causal=True, scale=scale, enable_gqa=True)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("turns", ["independent", "dialogue"])
def test_flash_attention_is_called_as_it_is_documented(parts, turns, monkeypatch):
    tower, model, tokenizer = parts
    together = samples([TWO_TURNS, TEXT_ONLY, TWO_TURNS[:2]], model, tokenizer, turns)
    use_packed_attention(model)
    loss, gradients = step(model, Collator(tower, model.config)(together), 20)
    monkeypatch.setattr(packing, "varlen_attn", one_by_one)
    use_packed_attention(model, flash=True)
    batch = Collator(tower, model.config, flash=True)(together)
    assert ("sequence_index" in batch) == (turns == "independent")  # a dialogue is read where it stands
    by_flash, found = step(model, batch, 20)
    torch.testing.assert_close(by_flash, loss, atol=1e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_flash_attention_is_given_half_precision(parts, monkeypatch):
    """It takes nothing else; beside fp32 weights, autocast leaves the rotated queries and keys in fp32."""
    tower, model, tokenizer = parts
    seen = set()

    def flash(q, k, v, *args, **kwargs):
        seen.update(t.dtype for t in (q, k, v))
        return one_by_one(q, k, v, *args, **kwargs)

    monkeypatch.setattr(packing, "varlen_attn", flash)
    use_packed_attention(model, flash=True)
    with torch.autocast("cpu", torch.bfloat16):
        step(model, Collator(tower, model.config, flash=True)(samples([TWO_TURNS], model, tokenizer, "dialogue")), 20)
    assert seen == {torch.bfloat16}


def test_flash_attention_drops_nothing_silently(parts):
    tower, model, tokenizer = parts
    model.config.text_config.attention_dropout = 0.1
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    use_packed_attention(model.train(), flash=True)
    with pytest.raises(ValueError, match="set attention_dropout 0"):
        model(**Collator(tower, model.config, flash=True)(samples([TWO_TURNS], model, tokenizer, "dialogue")))


def test_logits_are_those_of_learned_tokens(parts):
    tower, model, tokenizer = parts
    batch = Collator(tower, model.config)(samples([TWO_TURNS, TEXT_ONLY], model, tokenizer, "dialogue"))
    labels = batch["labels"][0]
    use_packed_attention(model)
    assert model(**batch).logits.shape[1] == (labels != IGNORED).sum() < len(labels) / 2
    assert batch["shift_labels"][0].equal(labels[labels != IGNORED])


def test_sequences_of_a_packed_row():
    """A front of one token with two turns of two, then a dialogue of two tokens."""
    assert sequences([[0, 1, 1, 2, 2], [0, 0]]) == [[0, 1, 2], [0, 3, 4], [5, 6]]


@pytest.mark.parametrize(("turns", "padded"), [("independent", False), ("dialogue", False), ("dialogue", True)])
def test_a_batch_gives_the_loss_and_gradients_of_each_sequence_alone(parts, turns, padded):
    """Against transformers' own attention, one sequence at a time, with and without a picture."""
    tower, model, tokenizer = parts
    conversations = [TWO_TURNS, TEXT_ONLY, TWO_TURNS[:2]]
    alone = conversations
    if turns == "independent":
        alone = [TWO_TURNS[:2], [{"role": "user", "content": "<image>\nno"}, TWO_TURNS[3]], *conversations[1:]]
    together = samples(conversations, model, tokenizer, turns)
    supervised = sum(label != IGNORED for s in together for label in s["row"].labels)
    losses, gradients = 0.0, {}
    for sample in samples(alone, model, tokenizer, turns):
        row = sample["row"]
        batch = {"input_ids": torch.tensor([row.ids]), "labels": torch.tensor([row.labels])}
        if sample["pictures"]:
            batch["pixel_values"] = tower.preprocess(sample["pictures"])
        loss, some = step(model, batch, supervised)
        losses += loss
        gradients = {n: gradients.get(n, 0) + some.get(n, 0) for n in gradients.keys() | some.keys()}
    if not padded:
        use_packed_attention(model)
    loss, found = step(model, Collator(tower, model.config, tokenizer.pad_token_id, padded)(together), supervised)
    torch.testing.assert_close(loss, losses, atol=1e-5, rtol=0)
    assert found.keys() == gradients.keys() and len(found) > 20
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_without_a_picture_takes_the_projector_along_and_teaches_the_same(parts, padded):
    """DDP and ZeRO-3 need every weight in every step: its gradient is there, and zero; the others' are as without it."""
    tower, model, tokenizer = parts
    together = samples([TEXT_ONLY], model, tokenizer, "dialogue")
    row = together[0]["row"]
    expected, gradients = step(model, {"input_ids": torch.tensor([row.ids]), "labels": torch.tensor([row.labels])}, 4)
    if not padded:
        use_packed_attention(model)
    loss, found = step(model, Collator(tower, model.config, tokenizer.pad_token_id, padded)(together), 4)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    of_pictures = {n for n in found if "projector" in n or "vision_tower" in n}
    assert of_pictures and of_pictures.isdisjoint(gradients) and all(not found[n].any() for n in of_pictures)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_cached_features_without_a_picture(parts):
    tower, model, tokenizer = parts
    row = samples([TEXT_ONLY], model, tokenizer, "dialogue")[0]["row"]
    batch = Collator(tower, model.config)([{"id": "x", "row": row, "features": torch.zeros(0, 16, 128), "sizes": []}])
    assert batch["pixel_values"].shape == (1, 16, 128) and not batch["pixel_values"].any()


def test_a_batch_that_teaches_nothing_is_refused_by_name(parts):
    model = parts[1]
    row = TokenizedConversation([5, 6], [IGNORED, IGNORED], [0, 1], [0, 0], False)
    with pytest.raises(ValueError, match="no token of 'odd' is to be learned"):
        Collator(None, model.config)([[{"id": "odd", "row": row, "pictures": []}]])


LENGTHS = np.random.default_rng(0).lognormal(np.log(700), 0.77, 5000).clip(20, 4096).astype(int)


def test_token_bins_are_full_and_hold_everyone_once():
    found = bins(LENGTHS, "tokens", 1, 16_384, seed=0)
    assert sorted(np.concatenate(found)) == list(range(len(LENGTHS)))
    sizes = np.array([LENGTHS[b].sum() for b in found])
    assert sizes.max() <= 16_384 and sizes.mean() / 16_384 > 0.95
    assert [b.tolist() for b in found] == [b.tolist() for b in bins(LENGTHS, "tokens", 1, 16_384, seed=0)]
    assert [len(b) for b in bins(np.array([9, 30, 1]), "tokens", 1, 10, seed=0)] == [1, 2]  # longer than the budget: alone


def test_padded_bins_are_of_like_length():
    found = bins(LENGTHS, "padded", 8, 0, seed=0)
    assert sorted(np.concatenate(found)) == list(range(len(LENGTHS))) and {len(b) for b in found} == {8}
    wasted = 1 - LENGTHS.sum() / sum(LENGTHS[b].max() * len(b) for b in found)
    drawn = np.random.default_rng(1).permutation(len(LENGTHS)).reshape(-1, 8)
    assert wasted < 0.05 < 0.3 < 1 - LENGTHS.sum() / sum(LENGTHS[b].max() * len(b) for b in drawn)


def test_a_bin_is_one_item():
    assert Bins(list("abcd"), [np.array([3, 0]), np.array([1])])[0] == ["d", "a"]
