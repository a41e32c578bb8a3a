"""Conversations -> batches: packed rows without padding, or padded ones; and who sees whom.

A packed batch is one row: the language model's layers run over its tokens alone, its logits are those of supervised tokens, and
only inside attention is each sequence (a dialogue, or a front and one independent turn) by itself, where plain causal attention is the
right mask. On a GPU in half precision torch's FlashAttention takes sequences of any length one behind another; else each becomes a
row beside those of like length. Packed, padded and one by one give equal loss and gradients. `python -m benchmarks.packing` measures
what it gains.

Which conversations share a batch (`bins`):
    batch    as many as --batch says, in random order, packed
    tokens   as many as fill --batch-tokens, packed: every step of every rank costs about the same
    padded   as many as --batch says, of like length, padded to the longest

Shapes: T tokens of a packed batch, S tokens of its sequences (those of a front count in each), R sequences of like length, L the longest
of them, K supervised tokens, N visual tokens per picture, D tower width.
"""

import bisect
import inspect
import itertools

import numpy as np
import torch
from PIL import Image
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration

from llava_plugin import views
from llava_plugin.projectors import PROJECTORS

from .data import IGNORED, TokenizedConversation
from .setup import Setup

GQA_IS_ASKED_FOR = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch 2.11 groups heads unasked
WINDOW = 1000  # sort only within windows of so many conversations, so that the global order stays random


def bins(lengths: np.ndarray, batching: str, batch: int, budget: int, seed: int) -> list[np.ndarray]:
    """Conversation numbers of every batch. `lengths` (n,) are tokens; in "tokens" one longer than the budget has a bin of its own."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    out: list[np.ndarray] = []
    window = WINDOW if batching == "tokens" else max(1, WINDOW // batch) * batch
    for start in range(0, len(order), window):
        some = order[start : start + window]
        some = some[np.argsort(-lengths[some], kind="stable")]
        out += _best_fit(some, lengths, budget) if batching == "tokens" else [some[i : i + batch] for i in range(0, len(some), batch)]
    return out


def _best_fit(longest_first: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Each conversation goes where the least room is left over; a new bin where none has room."""
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    out: list[list[int]] = []
    for i in longest_first:
        size = int(lengths[i])
        at = bisect.bisect_left(room, (size, -1))
        left, b = room.pop(at) if at < len(room) else (budget, len(out))
        if b == len(out):
            out.append([])
        out[b].append(i)
        bisect.insort(room, (left - size, b))
    return [np.array(b) for b in out]


class Bins(torch.utils.data.Dataset):
    """Index -> the list of a bin's samples: one item is one batch, so that the Trainer's own order, ranks and resume apply to bins."""

    def __init__(self, conversations, chosen: list[np.ndarray]):
        self.conversations, self.chosen = conversations, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> list[dict]:
        return [self.conversations[int(j)] for j in self.chosen[i]]


def in_batches(dataset, lengths: np.ndarray, kept: np.ndarray, setup: Setup) -> tuple[torch.utils.data.Dataset, int]:
    """Returns (dataset for the Trainer, gradient-accumulation steps) of the conversations `kept`; `lengths` (n, 1 or more) begin with
    tokens."""
    recipe, accumulation = setup.recipe, setup.accumulation
    if recipe.batching == "batch":
        return dataset if len(kept) == len(lengths) else torch.utils.data.Subset(dataset, kept.tolist()), accumulation
    chosen = [kept[b] for b in bins(lengths[kept, 0], recipe.batching, recipe.batch, recipe.batch_tokens, recipe.seed)]
    if recipe.batching == "tokens" and recipe.global_batch:
        accumulation = max(1, round(recipe.global_batch * len(chosen) / len(kept) / setup.processes))
    return Bins(dataset, chosen), accumulation


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


def like_lengths(lists: list[list[int]]) -> list[list[list[int]]]:
    """The sequences longest first, in groups whose padding is little beside a call of their own: an eighth, or 16 tokens."""
    groups: list[list[list[int]]] = []
    for indices in sorted(lists, key=len, reverse=True):
        longest = len(groups[-1][0]) if groups else 0
        if not groups or longest - len(indices) > max(longest // 8, 16):
            groups.append([])
        groups[-1].append(indices)
    return groups


class Collator:
    """Conversations (or lists of them) -> one batch for LlavaForConditionalGeneration.

    Packed: input_ids, labels, position_ids (1, T); logits_to_keep (K,) and shift_labels (1, K): which tokens' logits are computed, and
    the label of each; and what attention reads. For rows: sequence_index, for each group of like length (R, L) the row's token at each
    place of each sequence (padding repeats token 0, behind all real ones), token_source (T,): where in the groups, flattened one behind
    another, a token's attention is read from. With `flash`: sequence_ends (n+1,), `longest`, and, where fronts are shared,
    sequence_index (S,) and token_source (T,).
    Padded: input_ids, labels, attention_mask (R, L), padding on the right.
    Of the pictures, what `VisionTower.prepare` gives, or `as_input` of cached features. Raises ValueError where nothing in a batch is to be
    learned.
    """

    def __init__(self, tower, config, pad: int = 0, padded: bool = False, flash: bool = False):
        self.tower, self.config, self.pad, self.padded, self.flash = tower, config, pad, padded, flash

    def __call__(self, samples: list) -> dict[str, torch.Tensor]:
        samples = [s for some in samples for s in (some if isinstance(some, list) else [some])]
        rows = [s["row"] for s in samples if s["row"] is not None]  # a conversation that broke is left out, without one in its place
        if rows and not any(label != IGNORED for row in rows for label in row.labels):
            raise ValueError(f"no token of {', '.join(repr(s['id']) for s in samples)} is to be learned: look at the conversation")
        spec = self.tower.spec
        side = spec.resolution
        if "features" in samples[0]:
            features, sizes = [s["features"] for s in samples], [size for s in samples for size in s["sizes"]]
            unseen = not any(map(len, features))
            if unseen:
                features, sizes = [features[0].new_zeros((views.parts(spec, side, side), *features[0].shape[1:]))], [(side, side)]
            seen = self.tower.as_input(features, sizes)
        else:
            pictures = [p for s in samples for p in s["pictures"]]
            unseen = not pictures
            seen = self.tower.prepare(pictures or [Image.new("RGB", (side, side))])
        if unseen:
            # A blank picture that nobody sees and that teaches nothing: so the projector (and a trained encoder) takes part in every
            # step of every rank, which DDP and ZeRO-3 need, and one rank does what two do.
            n = views.tokens(spec, side, side, PROJECTORS[self.config.projector].joined)
            rows.append(TokenizedConversation([self.config.image_token_id] * n, [IGNORED] * n, list(range(n)), [0] * n, False))
        return {**(padded(rows, self.pad) if self.padded else packed(rows, self.flash)), **seen}


def padded(rows: list[TokenizedConversation], pad: int) -> dict[str, torch.Tensor]:
    """The padded batch of some rows: see Collator."""
    longest = max(len(r.ids) for r in rows)
    behind = [longest - len(r.ids) for r in rows]
    return {
        "input_ids": torch.tensor([r.ids + [pad] * n for r, n in zip(rows, behind)]),
        "labels": torch.tensor([r.labels + [IGNORED] * n for r, n in zip(rows, behind)]),
        "attention_mask": torch.tensor([[1] * len(r.ids) + [0] * n for r, n in zip(rows, behind)]),
    }


def packed(rows: list[TokenizedConversation], flash: bool = False) -> dict[str, torch.Tensor | list[torch.Tensor] | int]:
    """The packed batch of some rows: see Collator."""
    labels = torch.tensor([label for r in rows for label in r.labels])
    supervised = (labels[1:] != IGNORED).nonzero()[:, 0]  # a token's logits are for the one behind it
    blocks = [r.block for r in rows]
    return {
        "input_ids": torch.tensor([[i for r in rows for i in r.ids]]),
        "labels": labels[None],
        "position_ids": torch.tensor([[i for r in rows for i in r.positions]]),
        **(_one_behind_another(blocks) if flash else _side_by_side(blocks)),
        "logits_to_keep": supervised,
        "shift_labels": labels[None, supervised + 1],
    }


def _side_by_side(blocks: list[list[int]]) -> dict:
    groups = like_lengths(sequences(blocks))
    index = [torch.tensor([indices + [0] * (len(group[0]) - len(indices)) for indices in group]) for group in groups]
    starts = itertools.accumulate((len(group[0]) for group in groups for _ in group), initial=0)
    return {"sequence_index": index, "token_source": _source(list(itertools.chain(*groups)), starts, blocks)}


def _one_behind_another(blocks: list[list[int]]) -> dict:
    shared = any(map(any, blocks))
    order = sequences(blocks) if shared else blocks  # a dialogue is one sequence, where it stands
    ends = list(itertools.accumulate(map(len, order), initial=0))
    where = {"sequence_ends": torch.tensor(ends, dtype=torch.int32), "longest": max(map(len, order))}
    if shared:
        where |= {"sequence_index": torch.tensor(list(itertools.chain(*order))), "token_source": _source(order, ends, blocks)}
    return where


def _source(order: list[list[int]], starts, blocks: list[list[int]]) -> torch.Tensor:
    """(T,) Where a token stands among the sequences that begin at `starts`: a front is in several and the same in all, the last serves."""
    source = torch.empty(sum(map(len, blocks)), dtype=torch.long)
    for indices, start in zip(order, starts):
        source[indices] = torch.arange(start, start + len(indices))
    return source


def packed_attention(module, query, key, value, attention_mask, sequence_index, token_source, scaling=None, dropout=0.0, **kwargs):
    """transformers' attention interface over a packed batch: query (1, H, T, head_dim), key and value (1, G, T, head_dim)
    -> (1, T, H, head_dim). Every sequence is a row here; padding stands behind it, so the causal mask hides it."""
    parts = []
    for index in sequence_index:
        q, k, v = (t[0][:, index].transpose(0, 1) for t in (query, key, value))  # (R, H or G, L, head_dim)
        out = scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=k.shape[1] != q.shape[1])
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[token_source].unsqueeze(0), None


def flash_packed_attention(
    module, query, key, value, attention_mask, sequence_ends, longest, sequence_index=None, token_source=None, scaling=None, **kwargs
):
    """`packed_attention` as one varlen FlashAttention call; fp16 and bf16 only. Raises ValueError for dropout."""
    if kwargs.get("dropout"):
        raise ValueError("FlashAttention of packed rows has no dropout: set attention_dropout 0 in the language model's config.json")
    # It takes half precision alone, and no autocast sees to that: rotated beside fp32 weights, queries and keys are fp32.
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    q, k, v = (t[0].transpose(0, 1).to(dtype) for t in (query, key, value))
    if sequence_index is not None:
        q, k, v = (t.index_select(0, sequence_index) for t in (q, k, v))
    grouped = {"enable_gqa": True} if GQA_IS_ASKED_FOR else {}
    out = varlen_attn(q, k, v, sequence_ends, sequence_ends, longest, longest, scale=scaling, window_size=(-1, 0), **grouped)
    return (out if token_source is None else out[token_source]).unsqueeze(0), None


def use_packed_attention(model, flash: bool = False) -> None:
    """Let a language model, bare or of a LlavaForConditionalGeneration, train on packed batches. Only what is in memory changes: an export
    says nothing of it, and the encoder, which may have no attention at all, is left alone."""
    AttentionInterface.register("packed_sequences", flash_packed_attention if flash else packed_attention)
    AttentionMaskInterface.register("packed_sequences", lambda *args, **kwargs: None)
    language = model.model.language_model if isinstance(model, LlavaForConditionalGeneration) else model
    language.set_attn_implementation("packed_sequences")
