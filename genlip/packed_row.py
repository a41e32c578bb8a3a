"""A packed row of samples: where everything stands in it, which token sees which, and how attention is to be called for that.

Shapes: B samples, T tokens of the row, N patches, R registers per sample, L longest sample of a bucket, P prefix tokens. `modeling_genlip`
says what a row is and who attends to whom; this file says it in indices and masks, without weights.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """A packed row of T tokens, [registers][patches][text] sample by sample. All shapes follow from B, N and T_text alone, so that
    a compiled graph need not look at values.

    sample (T,): whose token it is; positions (3, T): time, row, column; prefix (T,): True for registers and patches;
    source (T,): where the token stands in [R registers][N patches][T_text words], each packed over samples;
    patches (N,), words (T_text,): where in the row they stand; starts, lens (B,): of the samples in the row.
    """

    sample: torch.Tensor
    positions: torch.Tensor
    prefix: torch.Tensor
    source: torch.Tensor
    patches: torch.Tensor
    words: torch.Tensor
    starts: torch.Tensor
    lens: torch.Tensor


def build_layout(grid_hw: torch.Tensor, text_lens: torch.Tensor, patches: int, words: int, registers: int = 0) -> Layout:
    """The row of samples with grids (B, 2) and text_lens (B,), `patches` and `words` in all.

    A patch stands at (0, row, column), word j after an H x W grid at max(H, W) + j on all three axes, a register at 0;
    each sample starts anew.
    """
    device = grid_hw.device
    image_lens = grid_hw.prod(dim=1)
    lens = registers + image_lens + text_lens
    ends = lens.cumsum(0)
    starts = ends - lens
    first_patch, first_word = image_lens.cumsum(0) - image_lens, text_lens.cumsum(0) - text_lens

    t = torch.arange(patches + words + registers * len(grid_hw), device=device)
    sample = torch.searchsorted(ends, t, right=True)
    patch = t - starts[sample] - registers  # index of the patch within its sample; negative for a register
    word = patch - image_lens[sample]  # index of the word within its text; negative before the text
    column = grid_hw[sample, 1]
    text = grid_hw.max(dim=1).values[sample] + word
    is_register, is_text = patch < 0, word >= 0
    positions = torch.stack([torch.zeros_like(t), patch // column, patch % column])
    positions = torch.where(is_text, text, torch.where(is_register, 0, positions))
    source = torch.where(is_text, registers + patches + first_word[sample] + word, registers + first_patch[sample] + patch)
    source = torch.where(is_register, registers + patch, source)

    i, j = torch.arange(patches, device=device), torch.arange(words, device=device)
    of_patch = torch.searchsorted(image_lens.cumsum(0), i, right=True)
    of_word = torch.searchsorted(text_lens.cumsum(0), j, right=True)
    patch_places = (starts + registers - first_patch)[of_patch] + i
    word_places = (starts + registers + image_lens - first_word)[of_word] + j
    return Layout(sample, positions, ~is_text, source, patch_places, word_places, starts, lens)


# --- which token sees which -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """Samples of a packed row that attend in one call: index (b, L) of their tokens in the row (padding points at token 0),
    valid (b, L) or None if all are, mask (b, 1, L, L) or None if all see all, `samples` by number."""

    index: torch.Tensor
    valid: torch.Tensor | None
    mask: torch.Tensor | None
    samples: list[int]


@dataclass(frozen=True)
class Spans:
    """A packed row of B samples for FlashAttention, without padding and without a mask: the prefixes see themselves, the texts their
    samples up to themselves.

    ends (B+1,): where each sample ends in the row, `longest` the longest. With text: order (T,), all prefixes and then all texts,
    back (T,), which undoes it, P prefix tokens, and the ends and longest of prefixes and of texts among themselves.
    """

    ends: torch.Tensor
    longest: int
    order: torch.Tensor | None = None
    back: torch.Tensor | None = None
    prefix_tokens: int = 0
    prefix_ends: torch.Tensor | None = None
    longest_prefix: int = 0
    text_ends: torch.Tensor | None = None
    longest_text: int = 0


@dataclass(frozen=True)
class AttentionPlan:
    """How the tokens of a forward attend, made once, used by every layer.

    Rows (B, T, D): `mask` alone. A packed row (1, T, D): `sample` (T,) of each token and their number, and `buckets` with `back`
    (T,), which undoes their order; or `spans`; or, for transformers' flash attention, `cu_seqlens` (B+1,) and the longest sample; or
    one `mask` over the row.
    """

    mask: object | None = None
    sample: torch.Tensor | None = None
    samples: int = 0
    buckets: tuple[Bucket, ...] = ()
    back: torch.Tensor | None = None
    spans: Spans | None = None
    cu_seqlens: torch.Tensor | None = None
    longest: int = 0


def row_mask(layout: Layout) -> torch.Tensor:
    """(1, 1, T, T) bool of a whole packed row, True where a query (row) sees a key (column)."""
    t = torch.arange(len(layout.sample), device=layout.sample.device)
    same = layout.sample[:, None] == layout.sample
    return (same & (layout.prefix | (t <= t[:, None])))[None, None]


def bucket_lens(lens: list[int], with_text: bool) -> list[list[int]]:
    """Which samples attend together: sample numbers by bucket, the longest first.

    A padded call needs a mask, which on a CPU takes twice the time of a plain one; many short calls cost by their number. So long
    pictures attend with their equals only, the rest is padded as long as this adds no more than WASTE to the work.
    """
    buckets: list[list[int]] = []
    work = 0
    for i in sorted(range(len(lens)), key=lambda i: -lens[i]):
        longest = lens[buckets[-1][0]] if buckets else 0
        joined = buckets and (len(buckets[-1]) + 1) * longest**2 <= WASTE * (work + lens[i] ** 2)
        if joined and (lens[i] == longest or with_text or longest < SHORT):
            buckets[-1].append(i)
        else:
            buckets.append([i])
            work = 0
        work += lens[i] ** 2
    return buckets


WASTE, SHORT = 1.5, 128


def plan_buckets(layout: Layout, with_text: bool) -> AttentionPlan:
    """The plan of a packed row for attention functions that take rows."""
    device, lens = layout.sample.device, layout.lens.tolist()
    buckets = []
    for samples in bucket_lens(lens, with_text):
        start, length = layout.starts[samples, None], layout.lens[samples, None]
        step = torch.arange(lens[samples[0]], device=device)
        valid = step < length
        index = torch.where(valid, start + step, 0)
        equal = lens[samples[-1]] == lens[samples[0]]
        mask = None
        if with_text:
            mask = (layout.prefix[index] & valid)[:, None] | (step <= step[:, None])
        elif not equal:
            mask = valid[:, None].expand(-1, len(step), -1)
        buckets.append(Bucket(index, None if equal else valid, None if mask is None else mask[:, None], samples))
    order = torch.cat([(b.index if b.valid is None else b.index[b.valid]).flatten() for b in buckets])
    return AttentionPlan(sample=layout.sample, samples=len(lens), buckets=tuple(buckets), back=order.argsort())


def plan_spans(layout: Layout, with_text: bool) -> AttentionPlan:
    """The plan of a packed row for torch's FlashAttention over sequences of any length."""
    common = {"sample": layout.sample, "samples": len(layout.lens)}
    if not with_text:
        return AttentionPlan(**common, spans=Spans(ends_of(layout.lens), int(layout.lens.max())))
    prefixes = torch.zeros_like(layout.lens).index_add_(0, layout.sample, layout.prefix.long())
    texts = layout.lens - prefixes
    longest, longest_prefix, longest_text, n = torch.stack([layout.lens.max(), prefixes.max(), texts.max(), prefixes.sum()]).tolist()
    order = (~layout.prefix).to(torch.uint8).argsort(stable=True)
    of_prefix = {"prefix_tokens": n, "prefix_ends": ends_of(prefixes), "longest_prefix": longest_prefix}
    of_text = {"text_ends": ends_of(texts), "longest_text": longest_text}
    return AttentionPlan(**common, spans=Spans(ends_of(layout.lens), longest, order, order.argsort(), **of_prefix, **of_text))


def ends_of(lens: torch.Tensor) -> torch.Tensor:
    """lens (B,) of samples one behind another -> (B+1,) int32: where each begins, and the end of the last."""
    return F.pad(lens.cumsum(0), (1, 0)).int()


def plan_attention(layout: Layout, implementation: str, with_text: bool, half: bool = False) -> AttentionPlan:
    """The plan of a packed row for one of transformers' attention implementations; `half`: whether it computes in half precision."""
    common = {"sample": layout.sample, "samples": len(layout.lens)}
    if "flash" in implementation:
        return AttentionPlan(**common, cu_seqlens=ends_of(layout.lens), longest=int(layout.lens.max()))
    if implementation == "flex_attention":
        return AttentionPlan(**common, mask=block_mask(layout))
    if torch.compiler.is_compiling():  # shapes that follow from values would break the graph
        return AttentionPlan(**common, mask=row_mask(layout))
    if implementation == "sdpa" and half and layout.sample.is_cuda:  # torch's own kernel, which SDPA calls for rows of one length alone
        return plan_spans(layout, with_text)
    return plan_buckets(layout, with_text)


def block_mask(layout: Layout):
    """FlexAttention's form of `row_mask`: a rule over places and a table of blocks, so that on a GPU nothing is as large as T x T."""
    from torch.nn.attention.flex_attention import create_block_mask

    sample, prefix, tokens = layout.sample, layout.prefix, len(layout.sample)

    def seen(b, h, query, key):
        return (sample[query] == sample[key]) & (prefix[key] | (key <= query))

    # Compiled, the table is filled block by block; else (a CPU, where that costs more than it saves) from the whole matrix once.
    return create_block_mask(seen, None, None, tokens, tokens, device=sample.device, _compile=sample.device.type == "cuda")


def for_function(mask: torch.Tensor | None, implementation: str):
    """A boolean mask (B, 1, T, T_keys), the same for all samples, in the form that the attention function takes."""
    if mask is None or implementation != "flex_attention":
        return mask
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: mask[0, 0, q, k], None, None, *mask.shape[2:], device=mask.device)
