"""What packing gains over padding, measured on a declared mix of lengths: `python -m benchmarks.packing`.

The mix is log-normal with a median of 700 tokens and a 95th percentile of 2,500, cut at 4,096: SFT conversations with one picture.
`--scale` divides all lengths, so that a language model for two cores sees its shape. Three ways to batch the same conversations take
turns, forward, backward and AdamW's step on a randomly initialised Llama:

    padded    as many as --batch, in random order, padded to the longest
    grouped   as many, of like length, padded (--batching padded of train_mllm.train)
    packed    as many as fill --batch times the mean length, no padding (--batching tokens)

The tokens a batch really holds, padding included, say what removing the padding allows; the last column is the share of that which
was reached. Median over the rounds; a minute on two cores.
"""

import argparse
import copy
import math
import time
from statistics import median

from genlip.common.command import command, new_parser

MEDIAN, P95, CUT = 700, 2500, 4096
VOCABULARY = 2048
LEARNED = 0.3  # share of a conversation's tokens, at its end
WAYS = ("padded", "grouped", "packed")


def mix(n: int, scale: float, seed: int):
    """(n,) lengths in tokens of the declared mix, divided by `scale`."""
    import numpy as np

    sigma = math.log(P95 / MEDIAN) / 1.6449  # of a normal distribution, 5 % lie 1.6449 standard deviations above the mean
    lengths = np.random.default_rng(seed).lognormal(math.log(MEDIAN), sigma, n).clip(16, CUT)
    return np.maximum(4, lengths / scale).round().astype(int)


def batches(way: str, lengths, batch: int, seed: int) -> list:
    """Conversation numbers of every batch."""
    import numpy as np

    from train_mllm.packing import bins

    if way == "padded":
        order = np.random.default_rng(seed).permutation(len(lengths))
        return [order[i : i + batch] for i in range(0, len(order), batch)]
    return bins(lengths, "padded" if way == "grouped" else "tokens", batch, int(batch * lengths.mean()), seed)


def conversations(lengths, seed: int) -> list:
    """A row of random tokens for each length, the last ones learned."""
    import numpy as np

    from train_mllm.data import IGNORED, TokenizedConversation

    random, out = np.random.default_rng(seed), []
    for n in lengths.tolist():
        ids, given = random.integers(1, VOCABULARY, n).tolist(), n - max(1, int(n * LEARNED))
        out.append(TokenizedConversation(ids, [IGNORED] * given + ids[given:], list(range(n)), [0] * n, False))
    return out


def time_ways(n: int, scale: float, batch: int, hidden: int, layers: int, rounds: int, seed: int) -> list[dict]:
    """One record for each way: tokens per second (real ones), positions computed for each real token, and the share of what removed padding
    allows, against `padded`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from train_mllm.packing import packed, padded, use_packed_attention

    lengths = mix(n, scale, seed)
    drawn = conversations(lengths, seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=CUT,
    )
    rows, learners = {}, {}
    for way in WAYS:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(copy.deepcopy(config))  # which would take the packed model's attention along
        if way == "packed":
            use_packed_attention(model)
        chosen = [[drawn[i] for i in some] for some in batches(way, lengths, batch, seed)]
        made = [packed(some) if way == "packed" else padded(some, 0) for some in chosen]
        rows[way], learners[way] = made, (model, torch.optim.AdamW(model.parameters()))
    seconds = {way: [] for way in WAYS}
    for r in range(rounds + 1):
        for way in WAYS[r % 3 :] + WAYS[: r % 3]:  # nobody is always first
            start = time.perf_counter()
            model, optimizer = learners[way]
            for made in rows[way][: None if r else 2]:  # the first round warms up
                model(**made).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if r:
                seconds[way].append(time.perf_counter() - start)
    tokens = int(lengths.sum())
    positions = {way: sum(made["input_ids"].numel() for made in rows[way]) / tokens for way in WAYS}
    speeds = {way: [tokens / s for s in seconds[way]] for way in WAYS}
    return [
        {
            "way": way,
            "batches": len(rows[way]),
            "tokens_per_second": median(speeds[way]),
            "positions": positions[way],
            "allowed": positions["padded"] / positions[way],
            "gained": median(own / theirs for own, theirs in zip(speeds[way], speeds["padded"])),
        }
        for way in WAYS
    ]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What this benchmark and the one beside LLaVA-NeXT have in common."""
    parser.add_argument("--conversations", type=int, default=128, help="per round (default 128)")
    parser.add_argument("--scale", type=float, default=8, help="divides the mix's lengths (default 8: a median of 88 tokens, cut at 512)")
    parser.add_argument("--batch", type=int, default=8, help="conversations per batch, or as many tokens (default 8)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the language model, a multiple of 64 (default 256)")
    parser.add_argument("--layers", type=int, default=4, help="its layers (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways, taking turns (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="draws lengths, tokens and order (default 0)")


def asked(args: argparse.Namespace) -> tuple:
    """What `measure` takes, of the flags; ValueError for a number that cannot be."""
    if args.hidden % 64 or min(args.hidden, args.conversations, args.batch, args.layers, args.rounds) < 1 or args.scale <= 0:
        raise ValueError("--hidden must be a multiple of 64, and all numbers positive")
    return args.conversations, args.scale, args.batch, args.hidden, args.layers, args.rounds, args.seed


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m benchmarks.packing",
        description="Tokens per second of packed, length-grouped and padded batches on a declared mix of lengths.",
        epilog="example: OMP_NUM_THREADS=2 python -m benchmarks.packing --rounds 5",
    )
    add_flags(parser)
    args = parser.parse_args(argv)
    print_ways(args, time_ways(*asked(args)))
    return 0


def print_ways(args: argparse.Namespace, found: list[dict]) -> None:
    print(f"{args.conversations} conversations, lengths log-normal (median {MEDIAN}, p95 {P95}, cut {CUT}) / {args.scale:g}")
    print(f"{'':10}{'batches':>8}{'tokens/s':>10}{'positions a token':>19}{'allowed':>9}{'gained':>8}{'reached':>9}")
    for row in found:
        print(
            f"{row['way']:10}{row['batches']:8}{row['tokens_per_second']:10,.0f}{row['positions']:19.2f}{row['allowed']:8.2f}x"
            f"{row['gained']:7.2f}x{row['gained'] / row['allowed']:9.0%}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
