"""Conversation -> tokens, labels and who sees whom.

Labels stand on the assistant's answers and their end-of-turn token, nowhere else. The prompt in front of an answer is made by the
very function that makes it at evaluation (llava_plugin.mllm.prompt_ids), so no "tokenization mismatch" can exist.

Two ways with several turns:
    dialogue      one causal sequence, as in LLaVA;
    independent   the turns are packed into one row, each seeing the shared front (up to the picture) and itself alone, at the
                  positions it would have alone. Loss and gradients equal those of every turn as a conversation of its own, at the
                  cost of one picture. Plain packing would let earlier turns give later answers away.

            front  turn 1  turn 2
    front     1
    turn 1    1      1               (each block causal)
    turn 2    1              1

A batch is one packed row without padding: the language model's layers run over its tokens alone, and only inside attention does
each sequence (a dialogue, or a front and one turn) become a row of its own, where plain causal attention is the right mask.

Shapes: T tokens of a packed batch, R sequences in it, L the longest of them, N visual tokens a picture, D tower width.
"""

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from llava_plugin.mllm import IMAGE, prompt_ids

IGNORED = -100


@dataclass
class Row:
    """One conversation as tokens: ids, labels, positions and block (0 = seen by all, k = turn k alone), all of length S."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    block: list[int]
    cut: bool  # whether turns were left out because the row was full


@functools.lru_cache(maxsize=4)  # a property of the tokenizer: found once, not for every conversation
def end_of_turn(tokenizer) -> int:
    """The token that the chat template puts behind an assistant's answer. Raises ValueError if that is no special token."""
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "qzq"}, {"role": "user", "content": "c"}]
    text = tokenizer.apply_chat_template(probe, tokenize=False)
    behind = tokenizer(text.split("qzq", 1)[1], add_special_tokens=False).input_ids[0]
    if behind not in tokenizer.all_special_ids and behind not in tokenizer.added_tokens_decoder:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} ends an answer with {tokenizer.decode([behind])!r}, which is no special token"
        )
    return behind


def encode(messages: list[dict], tokenizer, image_token_id: int, image_tokens: int, turns: str, max_length: int) -> Row:
    """Tokens of a conversation, cut at a turn's border at `max_length`. Raises ValueError where not even one turn fits, or where
    the chat template rewrites earlier turns, so that a dialogue is not one sequence."""
    end = end_of_turn(tokenizer)
    system = [m for m in messages if m["role"] == "system"]
    spoken = [m for m in messages if m["role"] != "system"]
    parts = []
    for k in range(1, len(spoken), 2):
        history = spoken[:k]
        if turns == "independent":
            pictures = sum(m["content"].count(IMAGE) for m in history[:-1])
            history = [{"role": "user", "content": f"{IMAGE}\n" * pictures + history[-1]["content"]}]
        prompt = prompt_ids(tokenizer, system + history, image_token_id, image_tokens)
        parts.append((prompt, [*tokenizer(spoken[k]["content"], add_special_tokens=False).input_ids, end]))
    return (_independent if turns == "independent" else _dialogue)(parts, image_token_id, max_length)


def _dialogue(parts, image_token_id, max_length) -> Row:
    ids, labels, cut = [], [], False
    for prompt, answer in parts:
        if prompt[: len(ids)] != ids:
            raise ValueError("the chat template rewrites earlier turns: train with --turns independent")
        if len(prompt) + len(answer) > max_length:
            cut = True
            break
        labels += [IGNORED] * (len(prompt) - len(ids)) + answer
        ids = prompt + answer
    if not ids:
        raise ValueError("longer than --max-length")
    return Row(ids, labels, list(range(len(ids))), [0] * len(ids), cut)


def _independent(parts, image_token_id, max_length) -> Row:
    first = parts[0][0]
    front = len(first) - first[::-1].index(image_token_id) if image_token_id in first else 0
    ids, cut, used = first[:front], False, 0
    labels, positions, block = [IGNORED] * front, list(range(front)), [0] * front
    for k, (prompt, answer) in enumerate(parts, start=1):
        if prompt[:front] != ids[:front]:
            raise ValueError("the turns of a conversation do not share their front")
        own = prompt[front:] + answer
        if len(ids) + len(own) > max_length:
            cut = True
            break
        ids = ids + own
        labels += [IGNORED] * (len(own) - len(answer)) + answer
        positions += range(front, front + len(own))
        block += [k] * len(own)
        used += 1
    if not used:
        raise ValueError("longer than --max-length")
    return Row(ids, labels, positions, block, cut)


def open_conversations(folder: Path) -> pa.Table:
    """The table that train_mllm.prepare_data wrote, mapped into memory: all ranks share its pages."""
    return pa.ipc.open_file(pa.memory_map(str(folder / "conversations.arrow"))).read_all()


def open_picture(picture: dict) -> Image.Image:
    return Image.open(io.BytesIO(picture["bytes"]) if picture["bytes"] is not None else picture["path"])


class Conversations(torch.utils.data.Dataset):
    """Index -> {"row": Row, "pictures": list of PIL pictures, or "features" (n, N, D) from the cache}.

    `mean` and `std` (D,), if given, standardise the cached features.
    """

    def __init__(self, folder: Path, tokenizer, model_config, recipe, features: np.ndarray | None = None, mean=0.0, std=1.0):
        self.table = open_conversations(folder)
        self.tokenizer, self.recipe = tokenizer, recipe
        self.features, self.mean, self.std = features, mean, std
        self.image_token_id, self.image_tokens = model_config.image_token_id, model_config.image_seq_length
        counts = pc.list_value_length(self.table["images"]).to_numpy()
        self.first_picture = np.cumsum(counts) - counts

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> dict:
        record = self.table.slice(i, 1).to_pylist()[0]
        try:
            row = encode(
                record["messages"], self.tokenizer, self.image_token_id, self.image_tokens, self.recipe.turns, self.recipe.max_length
            )
        except ValueError as e:
            raise ValueError(f"conversation {record['id']!r}: {e}") from e
        if self.features is None:
            return {"row": row, "pictures": [open_picture(p) for p in record["images"]]}
        start = self.first_picture[i]
        features = (self.features[start : start + len(record["images"])] - self.mean) / self.std
        return {"row": row, "features": torch.from_numpy(features)}


def sequences(blocks: list[list[int]]) -> list[list[int]]:
    """For each conversation's blocks, laid out one behind another in a packed row: the row's token indices of every sequence that
    attention must see as one, a dialogue whole, or a front with each of its turns."""
    out, start = [], 0
    for block in blocks:
        front = [start + i for i, b in enumerate(block) if b == 0]
        turns: dict[int, list[int]] = {}
        for i, b in enumerate(block):
            if b:
                turns.setdefault(b, []).append(start + i)
        out += [front + turn for turn in turns.values()] or [front]
        start += len(block)
    return out


class Collator:
    """Conversations -> one packed batch.

    input_ids, labels, position_ids (1, T); sequence_index (R, L): the row's token at each place of each sequence (padding repeats
    token 0, behind all real ones); token_source (T,): where in the flattened (R * L) sequences a token's attention is read from.
    `pixel_values` are pictures (n, 3, R, R), or cached features (n, N, D).
    """

    def __init__(self, preprocess):
        self.preprocess = preprocess

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        rows = [s["row"] for s in samples]
        lists = sequences([r.block for r in rows])
        longest = max(map(len, lists))
        total = sum(len(r.ids) for r in rows)
        source = torch.empty(total, dtype=torch.long)
        for r, indices in enumerate(lists):  # a front is in several sequences and the same in all: the last one serves
            source[indices] = torch.arange(r * longest, r * longest + len(indices))
        batch = {
            "input_ids": torch.tensor([[i for r in rows for i in r.ids]]),
            "labels": torch.tensor([[i for r in rows for i in r.labels]]),
            "position_ids": torch.tensor([[i for r in rows for i in r.positions]]),
            "sequence_index": torch.tensor([indices + [0] * (longest - len(indices)) for indices in lists]),
            "token_source": source,
        }
        if "features" in samples[0]:
            pixels = torch.cat([s["features"] for s in samples])
        else:
            pictures = [p for s in samples for p in s["pictures"]]
            pixels = self.preprocess(pictures) if pictures else None
        if pixels is not None and len(pixels):
            batch["pixel_values"] = pixels
        return batch


def packed_attention(module, query, key, value, attention_mask, sequence_index, token_source, scaling=None, dropout=0.0, **kwargs):
    """transformers' attention interface over a packed batch: query (1, H, T, head_dim), key and value (1, G, T, head_dim)
    -> (1, T, H, head_dim). Every sequence is a row here; padding stands behind it, so the causal mask hides it."""
    query, key, value = (t[0][:, sequence_index].transpose(0, 1) for t in (query, key, value))  # (R, H or G, L, head_dim)
    out = scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
    )
    return out.transpose(1, 2).flatten(0, 1)[token_source].unsqueeze(0), None


def use_packed_attention(model) -> None:
    """Let the language model of a LlavaForConditionalGeneration train on packed batches. Only what is in memory changes: an export
    says nothing of it."""
    AttentionInterface.register("packed_sequences", packed_attention)
    AttentionMaskInterface.register("packed_sequences", lambda *args, **kwargs: None)
    model.set_attn_implementation({"text_config": "packed_sequences"})
