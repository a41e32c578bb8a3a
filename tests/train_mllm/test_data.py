"""Conversations to tokens and labels: labels on the answers alone, independent turns equal to each turn alone."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from llava_plugin import mllm
from llava_plugin.tower import VisionTower
from train_mllm.data import Collator, encode, end_of_turn, sequences, use_packed_attention
from train_mllm.prepare_data import main as prepare_main
from train_mllm.prepare_data import normalise, prepare, read_rows

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
        "<|im_start|><image><image>\nwhat is in the picture\na red circle<|im_end|><|im_start|>no\nyes<|im_end|>"
    )
    assert labelled(row, tokenizer) == "a red circle<|im_end|>yes<|im_end|>"
    assert row.positions == list(range(len(row.ids))) and not any(row.block)


def test_independent_turns_share_their_front_and_see_nothing_else(tokenizer):
    row = encode(TWO_TURNS, tokenizer, image_token_id=3, image_tokens=2, turns="independent", max_length=200)
    front = row.block.index(1)
    assert tokenizer.decode(row.ids[:front]) == "<|im_start|><image><image>"
    blocks = [[i for i, b in zip(row.ids, row.block) if b == k] for k in (1, 2)]
    assert tokenizer.decode(blocks[1]) == "\nno\nyes<|im_end|>"
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
        return [{"row": r, "pictures": [picture] * (r.ids.count(model.config.image_token_id) + 1 > 16)} for r in rows]

    def gradients():
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    labelled = sum(label != -100 for s in samples(conversations) for label in s["row"].labels)
    losses = 0.0
    for sample in samples(alone):
        batch = Collator(tower.preprocess)([sample])
        plain = {k: v for k, v in batch.items() if k in ("input_ids", "labels", "pixel_values")}
        loss = model(**plain, num_items_in_batch=labelled).loss
        loss.backward()
        losses += loss.detach()
    single = gradients()
    model.zero_grad()
    use_packed_attention(model)
    packed = model(**Collator(tower.preprocess)(samples(conversations)), num_items_in_batch=labelled).loss
    packed.backward()
    torch.testing.assert_close(packed.detach(), losses, atol=1e-5, rtol=0)
    found = gradients()
    assert found.keys() == single.keys() and len(found) > 20
    for name, gradient in single.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


# --- preparing ------------------------------------------------------------------------------------------------------------


def llava(text="<image>\nwhat", answer="yes", **more):
    return {"id": "a", "image": "red.png", "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]} | more


@pytest.fixture
def images(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    return tmp_path


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (llava(image="gone.png"), "missing picture"),
        (llava(image="broken.png"), "undecodable picture"),
        (llava(text="what"), "<image> markers and pictures do not match"),
        (llava(answer="  "), "empty answer"),
        (llava(conversations=[{"from": "gpt", "value": "yes"}]), "turns do not alternate user, assistant"),
        (llava(conversations=[{"from": "robot", "value": "yes"}]), "malformed turn"),
        (llava(conversations=[]), "turns do not alternate user, assistant"),
    ],
)
def test_bad_rows_have_a_reason(images, row, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        normalise(row, images)


def test_forms_become_one(images):
    expected = normalise(llava(), images)
    openai = {
        "id": "a",
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x/red.png"}}, {"type": "text", "text": "what"}]}
        ],
    }
    openai["messages"].append({"role": "assistant", "content": [{"type": "text", "text": "yes"}]})
    assert normalise(openai, images) == expected
    raw = (images / "red.png").read_bytes()
    from_parquet = normalise(llava(image={"bytes": raw, "path": None}), images)
    assert from_parquet["messages"] == expected["messages"] and from_parquet["images"][0]["bytes"] == raw


def test_bad_rows_are_counted_never_replaced(images, capsys):
    source = images / "sft.json"
    rows = [llava(id=str(i)) for i in range(9)] + [llava(id="bad", image="gone.png")]
    source.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="1 of 10 conversations"):
        prepare(str(source), "", str(images / "out"))
    assert not (images / "out" / "conversations.arrow").exists()
    ledger = prepare(str(source), "", str(images / "out"), max_bad=0.2)
    assert (ledger["read"], ledger["used"], ledger["skipped"], ledger["names"]) == (
        10,
        9,
        {"missing picture": 1},
        {"missing picture": ["bad"]},
    )
    other = images / "other.json"
    other.write_text(json.dumps(rows[:3]))
    assert prepare_main([str(other), "--out", str(images / "out")]) == 2
    assert "was made from" in capsys.readouterr().err


def test_parquet_is_read(images):
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = (images / "red.png").read_bytes()
    pq.write_table(pa.Table.from_pylist([llava(image={"bytes": raw, "path": "red.png"})] * 3), images / "p.parquet")
    assert len(list(read_rows(images / "p.parquet"))) == 3
    pq.write_table(pa.table({"x": [1]}), images / "q.parquet")
    with pytest.raises(ValueError, match="no column 'conversations'"):
        list(read_rows(images / "q.parquet"))
    with pytest.raises(ValueError, match="no conversations at"):
        prepare(str(images / "nothing.json"), "", str(images / "o"))


def test_real_conversations(shared, tmp_path):
    sft = shared / "sft"
    ledger = prepare(str(sft / "conversations_openai.json"), str(sft / "images"), str(tmp_path / "sft"))
    assert (ledger["read"], ledger["used"]) == (10, 10)
    charts = shared / "charts"
    assert prepare(str(charts / "conversations_llava.json"), str(charts / "images"), str(tmp_path / "charts"))["used"] == 3
