"""How fast pretraining is beside open_clip's GenLIP task, and how fast its data comes beside plain webdataset; each pair in one run.

    git clone https://github.com/mlfoundations/open_clip && git -C open_clip checkout 89fb801
    python -m benchmarks.pretraining steps --open-clip open_clip    # tokens/s of training steps, about three minutes on two cores
    python -m benchmarks.pretraining data 'shards/*.tar' --tokenizer Qwen/Qwen3-0.6B    # samples/s of read, decode, resize, tokenise, pack
    python -m benchmarks.pretraining recipe g16-s1 --attention flex_attention    # tokens/s, MFU and memory on one GPU, half a minute

`steps`: the same pictures of mixed shapes and captions of mixed lengths, ours packed into one row, open_clip's padded to the longest
as its task does, and once more by its own `pack_prefix`, which moves a row's padding to its end. Both models hold the same weights,
and what they say of every word is compared before anything is timed. A step is forward, loss, backward and AdamW. Only real tokens
are counted. `data`: the same shards, pictures and words through `webdataset` as its users write it; that both hand over the same
samples is checked first. All take turns; medians of the rounds. `recipe`: the training step of genlip.train at a preset's true sizes
on random weights and synthetic full rows, on a GPU where there is one; --rows is what this one process does a step (1 by default).
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.encoder import number_flags
from genlip.common.command import command, new_parser
from genlip.common.flags import add_recipe, read_recipe
from genlip.common.hardware import mfu
from genlip.recipes import PRESETS

WORDS = (20, 400)  # of a caption
AGREE = 1e-4  # of the logits of models that hold the same weights


# --- training steps --------------------------------------------------------------------------------------------------------


def mixed(batch: int, vocab_size: int):
    """patches (N, 3, 16, 16), grids (B, 2), text_lens (B,), ids (T,): seeded noise in the shapes of stage 2, 16 to 1,024 patches."""
    import torch

    torch.manual_seed(0)
    grids = torch.randint(4, 33, (batch, 2))
    lens = torch.exp(torch.empty(batch).uniform_(*torch.tensor(WORDS).log().tolist())).long()  # many short ones, some long
    return torch.randn(int(grids.prod(dim=1).sum()), 3, 16, 16), grids, lens, torch.randint(4, vocab_size, (int(lens.sum()),))


def training_steps(args) -> list[str]:
    """Time a training step of each; returns the lines of a Markdown table."""
    import torch

    from benchmarks.encoder import genlip_sizes, import_open_clip, interleaved_timing, open_clip_twin, padded_picture
    from genlip.configuration_genlip import GenLIPConfig
    from genlip.modeling_genlip import GenLIPForPretraining

    import_open_clip(args.open_clip)
    from open_clip.task.genlip_task import GenLipTask

    width, sizes = args.width, genlip_sizes(args.width, args.depth, args.heads)
    config = GenLIPConfig(**sizes, vocab_size=args.vocab_size, text_embed_dim=width, drop_path_rate=0.0)
    torch.manual_seed(0)
    model = GenLIPForPretraining(config).train()
    patches, grids, lens, ids = mixed(args.batch, args.vocab_size)
    row = {"input_ids": ids[None], "pixel_values": patches, "grid_hw": grids, "text_lens": lens}
    text = torch.nn.utils.rnn.pad_sequence(ids.split(lens.tolist()), batch_first=True, padding_value=1)
    batch = {"image": padded_picture(patches, grids), "text": text, "text_valid": text != 1}
    with torch.no_grad():
        theirs = open_clip_twin(model, args.vocab_size)(**batch)["logits"][:, -text.shape[1] :][batch["text_valid"]]
        difference = (model(**row).logits[0] - theirs).abs().max().item()
    if not difference < AGREE:
        raise ValueError(f"open_clip's logits differ from ours by {difference:.2g}: is its clone at 89fb801?")

    losses = {"genlip (ours), packed": (model, lambda: model(**row, labels=row["input_ids"]).loss)}
    for name, packed in (("open_clip task, padded", False), ("open_clip task, pack_prefix", True)):
        twin = open_clip_twin(model, args.vocab_size, pack_prefix=packed).train()
        task = GenLipTask(twin, verbose=False)
        losses[name] = twin, lambda task=task: task.training_forward(batch)[0]["loss"]

    def step(model, loss) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

        def call():
            loss().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return call

    seconds = interleaved_timing({name: step(*each) for name, each in losses.items()}, args.rounds, "cpu")
    tokens, longest = len(patches) + len(ids), int((grids.prod(dim=1) + lens).max())
    lines = [
        f"Width {width}, {args.depth} layers, {args.vocab_size:,} words; {args.batch} samples of {len(patches) // args.batch} patches and "
        f"{len(ids) // args.batch} words in the mean, the longest {longest:,} tokens; {torch.get_num_threads()} threads, fp32, torch "
        f"{torch.__version__}; logits agree to {difference:.1g}.",
        "",
        "| a training step | ms | tokens/s | of ours |",
        "|---|---:|---:|---:|",
    ]
    ours = next(iter(seconds.values()))
    return lines + [f"| {name} | {1e3 * s:.0f} | {tokens / s:,.0f} | {ours / s:.2f} |" for name, s in seconds.items()]


# --- the data path ---------------------------------------------------------------------------------------------------------


def webdataset_rows(recipe, tokenizer, files: list[str]) -> Iterator:
    """Endless packed rows by webdataset: its stream of the tars, then the same decoding, words, packing and joining as ours."""
    import json

    import webdataset

    from genlip.data import END_OF_CAPTION, IGNORED, PackedRows, Sample, first_fit, pixels_of, size_rule
    from genlip.shards import IMAGE_SUFFIXES

    size, patch, rows = size_rule(recipe), recipe.model.get("patch_size", 16), PackedRows(recipe, tokenizer, [], [])

    def sample(record) -> Sample:
        pixels, _ = pixels_of(next(record[suffix] for suffix in IMAGE_SUFFIXES if suffix in record), size)
        text = json.loads(record["json"])[recipe.text_key] if "json" in record else record["txt"].decode()
        question = tokenizer(recipe.prompt, add_special_tokens=False).input_ids
        answer = tokenizer(text.strip() + END_OF_CAPTION, add_special_tokens=False).input_ids
        ids, labels = question + answer, [IGNORED] * len(question) + answer
        tokens = pixels.shape[0] * pixels.shape[1] // patch**2 + len(ids)
        return Sample(record["__key__"], (0, 0, 0), pixels, ids, labels, [], tokens)

    samples = iter(webdataset.WebDataset(files, shardshuffle=False, empty_check=False).repeat().map(sample))
    waiting: list[Sample] = []
    while True:
        yield rows._batch(first_fit(waiting, samples, recipe.row_tokens, recipe.look_ahead), 0, {}, {})


def contents(rows: Iterator, number: int) -> dict[str, tuple]:
    """The first `number` different samples of packed rows: name -> its grid, words, and the sum of its pixels."""
    found: dict[str, tuple] = {}
    while len(found) < number:
        row = next(rows)
        patches = row.patches.split(row.grid_hw.prod(dim=1).tolist())
        words = row.input_ids[0].split(row.text_lens.tolist())
        for name, grid, picture, ids in zip(row.names, row.grid_hw.tolist(), patches, words):
            found[name.split(" in ")[0]] = (grid, ids.tolist(), int(picture.long().sum()))
    return found


def data_path(args) -> list[str]:
    """Time the two data paths in one process; returns the lines of a Markdown table."""
    from genlip.data import load_tokenizer, packed_rows
    from genlip.shards import list_sources, open_shard

    if args.preset not in PRESETS:
        raise ValueError(f"no preset {args.preset!r}: there are {', '.join(PRESETS)}")
    if importlib.util.find_spec("webdataset") is None:
        raise ValueError("webdataset is not installed: pip install webdataset")
    recipe = replace(PRESETS[args.preset](), data=args.shards, rows=1, workers=0, sample_cache_mib=0)
    tokenizer = load_tokenizer(args.tokenizer)
    sources = list_sources(args.shards)
    files = [shard.path for source in sources for shard in source.shards]
    if not all(file.endswith(".tar") for file in files):
        raise ValueError("webdataset reads tar shards only: give those")

    number = len(open_shard(sources[0].shards[0], recipe.image_key, recipe.text_key))
    ours, theirs = (
        contents(packed_rows(recipe, tokenizer, list_sources(files[0])), number),
        contents(webdataset_rows(recipe, tokenizer, files[:1]), number),
    )
    differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differ:
        raise ValueError(f"webdataset hands over other samples than we do: {', '.join(differ[:5])}")

    paths = {"genlip (ours)": packed_rows(recipe, tokenizer, sources), "webdataset": webdataset_rows(recipe, tokenizer, files)}
    rates: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(args.rounds + 1):
        for name, rows in paths.items():
            started, samples = time.perf_counter(), 0
            while samples < args.samples:
                samples += len(next(rows).names)
            rates[name].append(samples / (time.perf_counter() - started))
    medians = {name: statistics.median(taken[1:]) for name, taken in rates.items()}
    lines = [
        f"{args.preset}, rows of {recipe.row_tokens:,} tokens, {len(files)} shard(s), one process, {args.rounds} rounds of {args.samples} "
        f"samples in turn; the {number} samples of the first shard are the same.",
        "",
        "| read, decode, resize, tokenise, pack | samples/s | of ours |",
        "|---|---:|---:|",
    ]
    return lines + [f"| {name} | {rate:,.1f} | {rate / medians['genlip (ours)']:.2f} |" for name, rate in medians.items()]


# --- a recipe at its true sizes --------------------------------------------------------------------------------------------


def full_row(recipe, vocab_size: int, seed: int):
    """One packed row of samples as the recipe expects them: pictures of its size or of mixed shapes, captions around its mean length."""
    import numpy as np
    import torch

    from genlip.data import Batch

    random, patch = np.random.default_rng(seed), recipe.model.get("patch_size", 16)
    side, largest = recipe.resolution // patch, int(recipe.max_pixels**0.5) // patch
    mean = round(0.7 * recipe.mean_tokens) if recipe.native else max(recipe.mean_tokens - side**2, 8)
    grids, lens, room = [], [], recipe.row_tokens
    while True:
        grid = random.integers(max(1, largest // 8), largest + 1, 2).tolist() if recipe.native else [side, side]
        words = int(random.integers(mean // 2, mean * 3 // 2 + 1))
        if grid[0] * grid[1] + words > room:
            break
        room -= grid[0] * grid[1] + words
        grids.append(grid)
        lens.append(words)
    if not grids:
        raise ValueError(f"no sample fits into --row-tokens {recipe.row_tokens}: raise it")
    ids = torch.from_numpy(random.integers(4, vocab_size, sum(lens)))[None]
    labels, start = ids.clone(), 0
    for words in lens:
        labels[0, start : start + min(6, words // 2)] = -100  # the prompt
        start += words
    patches = torch.from_numpy(random.integers(0, 256, (sum(r * c for r, c in grids), 3, patch, patch), dtype=np.uint8))
    return Batch(patches, torch.tensor(grids), ids, labels, torch.tensor(lens), [], 0, {}, {})


def recipe_steps(recipe, steps: int) -> list[str]:
    """Some steps of the recipe after two that warm up; returns the lines of a Markdown table. ValueError for what cannot be measured."""
    import torch

    from genlip.estimate import memory, step_flops
    from genlip.train import adamw, backward, build_model, init_distributed, wrap_parallel

    if recipe.init or steps < 1:
        raise ValueError("--max-steps must be at least 1, and --init is not read: the weights are random")
    recipe = replace(recipe, max_steps=steps)
    _, world, device = init_distributed(recipe)
    if world > 1:
        raise ValueError("one process is measured: start it without torchrun")
    with torch.device(device):
        model = build_model(recipe, recipe.vocab_size or 512).train()
    net, optimizer, on_gpu = wrap_parallel(model, recipe, world), adamw(model, recipe), device.type == "cuda"
    config, vocab_size = model.config, model.config.vocab_size
    drawn = [[full_row(recipe, vocab_size, recipe.rows * i + j) for j in range(recipe.rows)] for i in range(steps + 2)]

    # Two to warm up: a compiled graph is made for the first row's shape, then once more for all others'.
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, work, tokens = [], 0.0, 0
    for i, rows in enumerate(drawn):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        supervised = sum(int((row.labels != -100).sum()) for row in rows)
        backward(net, rows, supervised, i, recipe, world, device)
        float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm))  # waits for the device, as training does
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        if i > 1:
            lens = [row.grid_hw.prod(dim=1) + row.text_lens for row in rows]
            tokens += sum(row.tokens for row in rows)
            work += step_flops(config, sum(row.tokens for row in rows), sum(int((n**2).sum()) for n in lens), supervised)
    supervised_share = sum(int((r.labels != -100).sum()) for rows in drawn for r in rows) / sum(r.tokens for rows in drawn for r in rows)
    parts = memory(recipe, config, model.num_parameters(), supervised_share, 1)
    taken = sum(seconds[2:])
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    measured = torch.cuda.max_memory_allocated() if on_gpu else None
    return [
        f"{recipe.preset}, {model.num_parameters():,} parameters, {recipe.rows} row(s) of {recipe.row_tokens:,} tokens per step, "
        f"{recipe.attention}, layers {'' if recipe.compile else 'not '}compiled, "
        f"{'' if recipe.gradient_checkpointing else 'no '}activation checkpointing, {'bf16 on fp32 weights' if recipe.bf16 else 'fp32'}; "
        f"{where}, torch {torch.__version__}; {steps} steps after two of {seconds[0]:.1f} and {seconds[1]:.1f} s.",
        "",
        "| tokens/s | seconds per step | TFLOP/s | MFU | peak memory, GiB | planned | measured / planned |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        f"| {tokens / taken:,.0f} | {taken / steps:.3f} | {work / taken / 1e12:.3g} | {mfu(work / taken, where) if on_gpu else '-'} "
        f"| {f'{measured / 2**30:.1f}' if measured else '-'} | {sum(parts) / 2**30:.1f} "
        f"| {f'{measured / sum(parts):.2f}' if measured else '-'} |",
    ]


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m benchmarks.pretraining",
        description="Time training steps beside open_clip's GenLIP task, the data path beside webdataset, or a recipe; prints Markdown.",
        epilog="examples:\n"
        "  python -m benchmarks.pretraining steps --open-clip ../open_clip\n"
        "  python -m benchmarks.pretraining data 'shards/*.tar' --tokenizer Qwen/Qwen3-0.6B --preset so16-s2\n"
        "  python -m benchmarks.pretraining recipe g16-s1 --attention flex_attention --compile",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    steps = commands.add_parser("steps", help="tokens/s of training steps, beside open_clip's task")
    steps.add_argument("--open-clip", type=Path, metavar="CLONE", required=True, help="a clone of open_clip at 89fb801")
    number_flags(
        steps,
        ("width", 256, "of both models"),
        ("depth", 6, "layers of both models"),
        ("heads", 4, "of both models"),
        ("vocab-size", 8192, "words: at this width the head takes the share of a step that Qwen's takes at So/16's"),
        ("batch", 16, "samples per step"),
        ("rounds", 5, "turns of each"),
    )
    data = commands.add_parser("data", help="samples/s of the data path, beside webdataset")
    data.add_argument("shards", help="tar shards: a folder, a glob or one file")
    data.add_argument("--tokenizer", required=True, help="a folder or hub id")
    data.add_argument("--preset", default="so16-s1", help="the recipe whose sizes and rows count (default: %(default)s)")
    data.add_argument("--samples", type=int, default=200, metavar="N", help="a turn (default: %(default)s)")
    data.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default: %(default)s)")
    full = commands.add_parser("recipe", help="tokens/s, MFU and memory of a recipe's training step at its true sizes")
    one_process = {name: lambda make=make: replace(make(), rows=1, max_steps=4, init="") for name, make in PRESETS.items()}
    add_recipe(full, one_process, argv)
    args = parser.parse_args(argv)
    if args.command == "recipe":
        recipe = read_recipe(full, one_process, args)
        print("\n".join(recipe_steps(recipe, recipe.max_steps)))
    else:
        print("\n".join(training_steps(args) if args.command == "steps" else data_path(args)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
