"""Conversation -> tokens, labels, positions and blocks.

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

Shapes: S tokens of a conversation, N visual tokens per picture, D tower width.
"""

import functools
import hashlib
import itertools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image

from genlip.common.files import file_aside
from genlip.common.ledger import Ledger
from genlip.common.progress import tracked
from genlip.common.tokens import text_ids
from llava_plugin import views
from llava_plugin.mllm import IMAGE, end_of_turn, prompt_ids
from llava_plugin.pictures import picture_size, read_picture
from llava_plugin.projectors import PROJECTORS

from .conversations import open_conversations
from .skipped import Skipped

IGNORED = -100
ROWS_A_MEASURE = 256


@dataclass
class TokenizedConversation:
    """One conversation as tokens: ids, labels, positions and block (0 = seen by all, k = turn k alone), all of length S."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    block: list[int]
    cut: bool  # whether turns were left out because the row was full


# The same question is put to many pictures of a benchmark-like set, and gets few answers: tokenising both anew took a third of a small
# model's step. What is kept is shared, not to be changed.
@functools.lru_cache(maxsize=4096)
def _prompt(tokenizer, said: tuple, image_token_id: int, image_tokens: int | tuple[int, ...]) -> list[int]:
    """Token ids of what was `said` ((role, content), ...), up to where the answer begins."""
    counts = image_tokens if isinstance(image_tokens, int) else list(image_tokens)
    return prompt_ids(tokenizer, [{"role": role, "content": content} for role, content in said], image_token_id, counts)


@functools.lru_cache(maxsize=4096)
def _answer(tokenizer, text: str) -> list[int]:
    """Token ids of an answer and its end."""
    return [*text_ids(tokenizer, text), end_of_turn(tokenizer)]


def encode(
    messages: list[dict], tokenizer, image_token_id: int, image_tokens: int | list[int], turns: str, max_length: int
) -> TokenizedConversation:
    """Tokens of a conversation, cut at a turn's border at `max_length`; `image_tokens` of any picture, or of each. Raises ValueError where
    not even one turn fits, or where the chat template rewrites earlier turns, so that a dialogue is not one sequence."""
    parts = []
    for k in (i for i, m in enumerate(messages) if m["role"] == "assistant"):
        history = messages[:k]  # a system turn stands where it was said
        if turns == "independent":
            system, spoken = ([m for m in history if (m["role"] == "system") == one] for one in (True, False))
            pictures = sum(m["content"].count(IMAGE) for m in spoken[:-1])
            history = [*system, {"role": "user", "content": f"{IMAGE}\n" * pictures + spoken[-1]["content"]}]
        said = tuple((m["role"], m["content"]) for m in history)
        so_far = sum(content.count(IMAGE) for _, content in said)
        counts = image_tokens if isinstance(image_tokens, int) else tuple(image_tokens[:so_far])
        parts.append((_prompt(tokenizer, said, image_token_id, counts), _answer(tokenizer, messages[k]["content"])))
    return (_independent if turns == "independent" else _dialogue)(parts, image_token_id, max_length)


def _dialogue(parts, image_token_id, max_length) -> TokenizedConversation:
    ids: list[int] = []
    labels: list[int] = []
    cut = False
    for prompt, answer in parts:
        if prompt[: len(ids)] != ids:
            raise ValueError("the chat template rewrites earlier turns: train with --turns independent")
        if len(prompt) + len(answer) > max_length:
            cut = True
            break
        labels += [IGNORED] * (len(prompt) - len(ids)) + answer
        ids = prompt + answer
    if not ids:
        raise ValueError("its first turn is longer than --max-length")
    return TokenizedConversation(ids, labels, list(range(len(ids))), [0] * len(ids), cut)


def _independent(parts, image_token_id, max_length) -> TokenizedConversation:
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
        raise ValueError("its first turn is longer than --max-length")
    return TokenizedConversation(ids, labels, positions, block, cut)


def as_text(messages: list[dict], tokenizer, turns: str = "dialogue") -> str:
    """A conversation as the model sees it, what it learns in [[ ]]; a picture stands as one <image>."""
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    image = len(tokenizer) if image in (None, tokenizer.unk_token_id) else image
    row = encode(messages, tokenizer, image, 1, turns, sys.maxsize)
    out, start = "", 0
    for i in range(1, len(row.ids) + 1):
        if i == len(row.ids) or (row.labels[i] == IGNORED) != (row.labels[start] == IGNORED):
            text = IMAGE.join(tokenizer.decode(part) for part in _split(row.ids[start:i], image))
            out, start = out + (text if row.labels[start] == IGNORED else f"[[{text}]]"), i
    return out


def _split(ids: list[int], mark: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for i in ids:
        if i == mark:
            parts.append([])
        else:
            parts[-1].append(i)
    return parts


def open_picture(picture: dict) -> Image.Image:
    """A prepared picture as RGB. ValueError with the reason, under which its conversation is counted."""
    try:
        return read_picture(picture["bytes"] if picture["bytes"] is not None else picture["path"]).image
    except OSError as e:
        raise ValueError("missing picture" if isinstance(e, FileNotFoundError) else "undecodable picture") from e


class Conversations(torch.utils.data.Dataset):
    """Index -> {"id", "row": TokenizedConversation, "pictures": list of PIL pictures, or "features" from the cache and "sizes"}.

    `mean` and `std` (D,), if given, standardise the cached features (see features.py). `sizes` (pictures, 2): height and width of all
    pictures in order, where by the view of `spec` a picture's tokens depend on them. Where a picture cannot be decoded "row" is None,
    there is no picture, and `skipped` keeps the conversation's number.
    """

    skipped: Skipped | None = None  # where conversations that break are kept; without it they stop the run

    def __init__(self, folder: Path, tokenizer, model_config, recipe, features=None, mean=0.0, std=1.0, spec=None, sizes=None):
        self.table = open_conversations(folder)
        self.tokenizer, self.recipe = tokenizer, recipe
        self.features, self.mean, self.std = features, mean, std
        self.spec, self.sizes = spec, sizes
        self.image_token_id, self.image_tokens = model_config.image_token_id, model_config.image_seq_length
        self.first_picture = np.append(0, np.cumsum(pc.list_value_length(self.table["images"]).to_numpy()))

    def __len__(self) -> int:
        return len(self.table)

    def sizes_of(self, i: int) -> list[list[int]]:
        """Height and width of a conversation's pictures; none are known where they do not matter."""
        return [] if self.sizes is None else self.sizes[self.first_picture[i] : self.first_picture[i + 1]].tolist()

    def tokens_of(self, height: int, width: int) -> int:
        """Of a picture of this size. ValueError for one that has none, or too long a shape for the view."""
        if not height:
            raise ValueError("undecodable picture")
        return views.tokens(self.spec, height, width, PROJECTORS[self.recipe.projector].joined)

    def row(self, i: int, record: dict) -> TokenizedConversation:
        """Of conversation `i`, whose texts are in `record`."""
        try:
            tokens = self.image_tokens if self.sizes is None else [self.tokens_of(*size) for size in self.sizes_of(i)]
            return encode(record["messages"], self.tokenizer, self.image_token_id, tokens, self.recipe.turns, self.recipe.max_length)
        except ValueError as e:
            raise type(e)(f"conversation {record['id']!r}: {e}") from e

    def __getitem__(self, i: int) -> dict:
        record = self.table.slice(i, 1).to_pylist()[0]
        name, row = record["id"], self.row(i, record)
        try:
            if self.features is None:
                return {"id": name, "row": row, "pictures": [open_picture(p) for p in record["images"]]}
            first, last = self.first_feature[self.first_picture[i : i + 2]]
            features = (self.features[first:last] - self.mean) / self.std
            if np.isnan(features[..., 0]).any():  # so `cached_features` marks what it could not decode
                raise ValueError("undecodable picture")
            return {"id": name, "row": row, "features": torch.from_numpy(features), "sizes": self.sizes_of(i)}
        except ValueError as e:
            if self.skipped is None:
                raise ValueError(f"conversation {name!r}: {e}") from e
            self.skipped.add(int(i), name, str(e))
        nothing = {"pictures": []} if self.features is None else {"features": torch.from_numpy(features[:0]), "sizes": []}
        return {"id": name, "row": None} | nothing

    @functools.cached_property
    def first_feature(self) -> np.ndarray:
        """Where each picture's features begin in the cache."""
        if self.sizes is None:
            return np.arange(self.first_picture[-1] + 1)
        return feature_starts(self.spec, self.sizes)


def feature_starts(spec, sizes: np.ndarray) -> np.ndarray:
    """(pictures + 1,) Where each picture's features begin among those of all, by the view of `spec`; what cannot be decoded has none."""
    return np.cumsum([0, *(views.parts(spec, height, width) if height else 0 for height, width in sizes.tolist())])


class _Measures(torch.utils.data.Dataset):
    """Index -> (tokens, supervised tokens, 1 if turns were left out | 0); (0, 0, -1) where not even one turn can be had."""

    def __init__(self, conversations: Conversations):
        self.conversations = conversations
        self.texts = conversations.table.select(["id", "messages"])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[int, int, int]:
        try:
            row = self.conversations.row(i, self.texts.slice(i, 1).to_pylist()[0])
        except ValueError:  # too long, or not to be told in the chat template's form: `left_out` says which
            return 0, 0, -1
        return len(row.ids), sum(label != IGNORED for label in row.labels), int(row.cut)


def left_out(conversations: Conversations, lengths: np.ndarray, most: int) -> Ledger:
    """The conversations that `token_lengths` could make nothing of, by reason: each is looked at again, up to `most` of them."""
    ledger = Ledger()
    for i in (lengths[:, 2] < 0).nonzero()[0][:most].tolist():
        record = conversations.table.slice(i, 1).select(["id", "messages"]).to_pylist()[0]
        try:
            conversations.row(i, record)
        except ValueError as e:
            ledger.count(ledger.skipped, str(e.__cause__), record["id"] or f"conversation {i}")
    return ledger


def token_lengths(conversations: Conversations, folder: Path, data_digest: str) -> np.ndarray:
    """(n, 3) int32 of all conversations: tokens, supervised tokens, cut (1: turns were left out; -1: not even one turn can be had).

    Done once by all cores, kept in `folder` under the digest of tokenizer, template, lengths and data.
    """
    tokenizer, recipe, tokens = conversations.tokenizer, conversations.recipe, conversations.image_tokens
    if conversations.sizes is not None:
        tokens = [conversations.spec.view, conversations.spec.resolution, conversations.spec.family, tokens]
    key = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, tokens, recipe.turns, recipe.max_length]
    key.append("control tokens that somebody typed are text")
    file = folder / f"lengths-{hashlib.sha256(json.dumps([key, data_digest]).encode()).hexdigest()[:16]}.npy"
    if not file.is_file():
        workers = len(os.sched_getaffinity(0)) if len(conversations) > 4 * ROWS_A_MEASURE else 0
        loader = torch.utils.data.DataLoader(
            _Measures(conversations), batch_size=ROWS_A_MEASURE, num_workers=workers, collate_fn=lambda rows: np.array(rows, dtype=np.int32)
        )
        found = np.concatenate(list(tracked(loader, "lengths in tokens")))
        with file_aside(file) as aside, aside.open("wb") as stream:
            np.save(stream, found)
    return np.load(file)


class _Sizes(torch.utils.data.Dataset):
    """Index of a conversation -> (height, width) of its pictures."""

    def __init__(self, table):
        self.pictures = table["images"]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> list[tuple[int, int]]:
        found = []
        for picture in self.pictures[i].as_py():
            try:
                found.append(picture_size(picture["bytes"] if picture["bytes"] is not None else picture["path"]))
            except (ValueError, OSError):  # its conversation is left out, and counted, where its tokens are
                found.append((0, 0))
        return found


def picture_sizes(folder: Path, data_digest: str) -> np.ndarray:
    """(pictures, 2) int32 height and width of all pictures in the data's order, read once by all cores, kept in `folder` under the data's
    digest; 0 of one that cannot be decoded."""
    file = folder / f"sizes-{data_digest[:16]}.npy"
    if not file.is_file():
        table = open_conversations(folder)
        workers = len(os.sched_getaffinity(0)) if len(table) > 4 * ROWS_A_MEASURE else 0
        loader = torch.utils.data.DataLoader(_Sizes(table), batch_size=ROWS_A_MEASURE, num_workers=workers, collate_fn=list)
        of_rows = itertools.chain.from_iterable(tracked(loader, "sizes of pictures"))
        found = np.array(list(itertools.chain.from_iterable(of_rows)), dtype=np.int32).reshape(-1, 2)
        with file_aside(file) as aside, aside.open("wb") as stream:
            np.save(stream, found)
    return np.load(file)
