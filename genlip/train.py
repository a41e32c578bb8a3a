"""Pretrain GenLIP: a ViT reads its patches, then speaks the caption with a plain language-model loss (arXiv 2605.00809).

    python -m genlip.train tiny-s1 --data data/easy-vqa/captions --tokenizer weights/llama-tiny --out runs/tiny-s1
    torchrun --nproc-per-node 8 -m genlip.train so16-s1 --data 'shards/*.tar' --out runs/so16-s1 --parallel fsdp
    python -m genlip.train so16-s1 --dry-run --gpus 64

On two cores `tiny-s1` takes about three minutes. The run folder holds recipe.json and run.json (the digests of data,
tokenizer and earlier stage), written before step 0, metrics.jsonl, ledger.json, captions.jsonl (with --eval-data), checkpoints/ and, at
the end, export/: a plain from_pretrained folder. The same command again goes on where the run stopped, from what it began with alone, also
on another number of ranks, or says that it is done.

Differences from the reference: the loss is the sum over supervised tokens over their number in the whole step, not a mean of
means, so ranks and accumulation do not change it; a stop and resume is bit-equal to an undisturbed run; bad samples are counted.
"""

import json
import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .common.command import command, new_parser
from .common.files import read_json, write_json
from .common.flags import add_recipe, bounded, check_choices, read_recipe
from .common.hardware import peak_bf16
from .common.locks import locked, one_at_a_time
from .common.processes import ranks
from .common.run_folder import claim_run_folder, pin
from .recipes import LAPTOP, PRESETS, Recipe

HELD_PICTURES = 4  # captioned at every look


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine down to `min_lr` at the last step."""
    warmup = max(1, round(recipe.warmup * recipe.max_steps))
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, recipe.max_steps - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def train(recipe: Recipe, accept_changes: bool = False) -> Path:
    """Run the recipe to its end, from wherever it stands. Returns the export folder.

    Raises ValueError for what the user can mend; FloatingPointError where the loss is not finite, before the optimizer moves.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    from . import checkpoint
    from .common.ledger import Ledger
    from .data import load_tokenizer, packed_rows
    from .estimate import step_flops
    from .log import Log
    from .shards import check_same_data, data_digest, list_sources

    # Process group, data listing, run folder.
    rank, world, device = init_distributed(recipe)
    sources = list_sources(recipe.data)
    tokenizer = load_tokenizer(recipe.tokenizer or recipe.init)
    run = claim_run_folder(recipe, accept_changes) if rank == 0 else Path(recipe.out)
    digest, covers = broadcast(data_digest(sources) if rank == 0 else None, world)
    export = run / "export"
    if export.is_dir():
        if rank == 0:
            provenance = read_json(export / "provenance.json", "remove the export, and the run writes it again", {"data_digest": str})
            check_same_data(provenance["data_digest"], digest, sources, str(run))
        print0(rank, f"{export} exists: this run is done")
        return export

    # The model and what trains it.
    newest = checkpoint.newest(run)
    model = build_model(recipe, len(tokenizer), from_init=newest is None).to(device).train()
    earlier = Path(recipe.init) / "provenance.json"  # a released checkpoint has none
    earlier = read_json(earlier) if recipe.init and earlier.is_file() else None
    with one_at_a_time(run):
        pin(run, checkpoint.run_record(recipe, tokenizer, digest, world))
    config = model.config
    net = wrap_parallel(model, recipe, world)
    optimizer = adamw(model, recipe)

    # Go on from the newest whole checkpoint; what was logged beyond it is forgotten.
    step, streams = 0, None
    if newest is not None:
        step, streams = checkpoint.position(newest, checkpoint.load(newest, model, optimizer), recipe)
        print0(rank, f"going on from step {step}")
    batches = packed_rows(recipe, tokenizer, sources, rank, world, streams)
    mine = {r: streams[r] for r in range(rank, recipe.rows, world)} if streams else {}
    held = eval_row(recipe, tokenizer)
    peak = peak_of(device, rank)
    log = Log(run, recipe, step, rank)

    with log:
        while step < recipe.max_steps:
            started = time.perf_counter()

            # One global step: all its rows are read first, because the loss is over their common number of labels.
            rows = [next(batches) for _ in range(recipe.rows // world)]
            mine |= {row.stream: {"position": row.position, "ledger": row.ledger} for row in rows}
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            lens = [row.grid_hw.prod(dim=1) + row.text_lens for row in rows]
            counts = [sum(int((row.labels != -100).sum()) for row in rows), sum(row.tokens for row in rows), sum(map(len, lens))]
            counts += [sum(int((n**2).sum()) for n in lens)]
            counts += [sum(s["ledger"][k] for s in mine.values()) for k in ("read", "used")]
            supervised, tokens, samples, squares, read, used = map(int, all_reduce_sum(counts, device, world))
            check_ledger(read, read - used, [s["ledger"] for s in mine.values()], recipe)

            losses = backward(net, rows, supervised, step, recipe, world, device)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
            losses = torch.stack(losses).tolist()
            (total,) = all_reduce_sum([sum(losses)], device, world)
            if not math.isfinite(total) or not math.isfinite(norm):
                bad = [row.names for row, loss in zip(rows, losses) if not math.isfinite(loss)] or [row.names for row in rows]
                raise FloatingPointError(
                    f"loss {total}, gradient norm {norm} at step {step}: the weights were not moved. "
                    f"Lower --lr, or look at these samples: {', '.join(name for names in bad for name in names)}"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1

            # Say and keep what happened.
            seconds = time.perf_counter() - started
            record = {"step": step - 1, "loss": total, "grad_norm": norm, "lr": optimizer.param_groups[0]["lr"], "supervised": supervised}
            record |= {"tokens": tokens, "samples": samples, "epoch": rows[-1].position["places"][0]["epoch"]}
            record |= {"waste": 1 - tokens / (recipe.rows * recipe.row_tokens), "tokens_per_second": round(tokens / seconds)}
            if peak:
                record["mfu"] = step_flops(config, tokens, squares, supervised) / seconds / world / peak
            if held and (step % recipe.eval_every == 0 or step == recipe.max_steps):
                record["eval_loss"], said = evaluate_held_out(model, tokenizer, held, recipe, device)
                log.captions(step - 1, said)
            log.step(record)
            if step % recipe.save_every == 0 or step == recipe.max_steps:
                everything = all_gather_dict(mine, world)
                if rank == 0:
                    ledger = Ledger.merged([everything[r]["ledger"] for r in range(recipe.rows)]).as_dict()
                    write_json(run / "ledger.json", ledger)
                state = {"streams": [everything[r] for r in range(recipe.rows)]}
                checkpoint.save(run, step, model, optimizer, state, recipe.keep, recipe.milestone_every)
    checkpoint.write_export(model, tokenizer, recipe, (digest, covers), earlier, export, rank)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return export


# --- ranks -----------------------------------------------------------------------------------------------------------------


def init_distributed(recipe: Recipe):
    """(rank, world, device); under torchrun the process group is made. Raises ValueError for what cannot be split or is unknown."""
    import torch
    import torch.distributed as dist

    check_choices(recipe)
    if recipe.max_steps < 1:
        raise ValueError("--max-steps must be at least 1")
    world, local = ranks(), int(os.environ.get("LOCAL_RANK", 0))
    if recipe.rows % world:
        raise ValueError(f"--rows {recipe.rows} do not split over {world} ranks: give a multiple of {world}")
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank() if world > 1 else 0, world, device


def broadcast(value: Any, world: int) -> Any:
    """Rank 0's value, on all ranks; what one raises before it ends all of them."""
    if world == 1:
        return value
    import torch.distributed as dist

    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def wrap_parallel(model, recipe: Recipe, world: int):
    """The module to call: the model itself on one process, else DDP around it, or FSDP2 in place. Compiles the layers if asked."""
    import torch

    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if recipe.compile:
        for layer in model.visual.layers:
            layer.compile(dynamic=True)
    if world == 1:
        return model
    if recipe.parallel == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inside autocast the layers' inputs and fp32 shards are bf16 where it pays; the policy moves bf16 over the wire.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if recipe.bf16 else MixedPrecisionPolicy()
    for layer in model.visual.layers:
        fully_shard(layer, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def adamw(model, recipe: Recipe):
    import torch

    return torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True
    )


def backward(net, rows: list, supervised: int, step: int, recipe: Recipe, world: int, device) -> list:
    """Forward and backward of this rank's rows of a step with `supervised` labels in all; each row's part of the loss."""
    import torch

    from .data import normalised

    losses = []
    for i, row in enumerate(rows):
        # Drop path is a function of (seed, step, stream), whatever the ranks and the stops.
        torch.manual_seed((recipe.seed * 1_000_003 + step) * 65_537 + row.stream)
        with synchronised(net, i == len(rows) - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
                loss = net(
                    input_ids=row.input_ids.to(device),
                    pixel_values=normalised(row.patches.to(device)),
                    grid_hw=row.grid_hw.to(device),
                    text_lens=row.text_lens.to(device),
                    labels=row.labels.to(device),
                    num_items_in_batch=supervised,
                ).loss
            (loss * world).backward()  # DDP and FSDP average the ranks' gradients
        losses.append(loss.detach())
    return losses


def synchronised(net, last: bool):
    """Gradients travel between the ranks in the last of a step's rows alone."""
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(last)
    return net.no_sync() if isinstance(net, DistributedDataParallel) and not last else nullcontext()


def all_reduce_sum(numbers: list, device, world: int) -> list[float]:
    """Their sums over the ranks."""
    if world == 1:
        return numbers
    import torch
    import torch.distributed as dist

    total = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def all_gather_dict(mine: dict, world: int) -> dict:
    """The ranks' dictionaries as one."""
    if world == 1:
        return mine
    import torch.distributed as dist

    parts = [None] * world
    dist.all_gather_object(parts, mine)
    return {key: value for part in parts for key, value in part.items()}


def peak_of(device, rank: int) -> float | None:
    """Dense bf16 FLOP/s of a GPU, for the MFU in the log; None on a CPU, and where the GPU is not in the table, which is said once."""
    import torch

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = peak_bf16(name)
    if peak is None:
        print0(rank, f"no MFU in the log: {name} is not in genlip/common/hardware.py")
    return peak


def print0(rank: int, text: str) -> None:
    if rank == 0:
        print(text, flush=True)


# --- model, tokenizer, data ------------------------------------------------------------------------------------------------


def vocab_size_of(recipe: Recipe, words: int) -> int:
    """Rows of the word matrices: the recipe's own number, or the tokenizer's `words` rounded up to a multiple of 64."""
    if recipe.vocab_size and recipe.vocab_size < words:
        raise ValueError(f"the tokenizer has {words} words, the model {recipe.vocab_size}: raise --vocab-size")
    return recipe.vocab_size or math.ceil(words / 64) * 64


def build_model(recipe: Recipe, words: int, from_init: bool = True):
    """The model of the recipe, from its seed or from the weights of an earlier stage's export (unless a checkpoint will replace them).

    Raises ValueError where the export is of another shape. Resolution is no part of the weights, so it may differ.
    """
    import torch

    from .configuration_genlip import GenLIPConfig
    from .modeling_genlip import GenLIPForPretraining
    from .pretrained import load_model, read_config

    torch.manual_seed(recipe.seed)
    config = GenLIPConfig(**recipe.model | {"vocab_size": vocab_size_of(recipe, words)})
    if recipe.init:
        if not (Path(recipe.init) / "config.json").is_file():
            raise ValueError(f"no export in {recipe.init!r} to start from: run the earlier stage, or give --init its export folder")
        theirs = read_config(Path(recipe.init))
        shape = [k for k in recipe.model if k not in ("vocab_size", "drop_path_rate", "attention_dropout", "initializer_range")]
        differ = [f"{k} {getattr(theirs, k)!r}, not {getattr(config, k)!r}" for k in shape if getattr(theirs, k) != getattr(config, k)]
        if differ or theirs.vocab_size < words:
            differ += [f"vocab_size {theirs.vocab_size} for {words} words"] if theirs.vocab_size < words else []
            raise ValueError(f"{recipe.init} is another model than the recipe's: {'; '.join(differ)}")
        config.vocab_size = theirs.vocab_size
    if recipe.init and from_init:
        model = load_model(Path(recipe.init), config, dtype=torch.float32)
    else:
        model = GenLIPForPretraining(config)
    if recipe.attention != "sdpa":
        model.set_attn_implementation(recipe.attention)
    return model


def check_ledger(read: int, bad: int, ledgers: list[dict], recipe: Recipe) -> None:
    """Stop where more than `max_bad` of the samples read (and at least 10 of them) could not be used. `ledgers` are this rank's."""
    from .common.ledger import Ledger

    if bad >= 10 and bad > recipe.max_bad * read:
        mine = Ledger.merged(ledgers)
        raise ValueError(
            f"{bad} of {read} samples cannot be used ({dict(mine.skipped)}; first: {mine.names}). "
            f"Mend the data, or allow more with --max-bad"
        )


def eval_row(recipe: Recipe, tokenizer):
    """One packed row of held-out samples, or None: the same at every look."""
    if not recipe.eval_data:
        return None
    from dataclasses import replace

    from .data import packed_rows
    from .shards import list_sources

    alone = replace(recipe, data=recipe.eval_data, rows=1, workers=0, look_ahead=1)
    return next(packed_rows(alone, tokenizer, list_sources(recipe.eval_data)))


def evaluate_held_out(model, tokenizer, row, recipe: Recipe, device) -> tuple[float, list[dict]]:
    """The loss on the held-out row, and what is said of its first pictures beside what was to be said. On all ranks alike."""
    import torch

    from .data import normalised
    from .generation import generate_text

    patches = normalised(row.patches.to(device))
    inputs = {"pixel_values": patches, "grid_hw": row.grid_hw.to(device), "text_lens": row.text_lens.to(device)}
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
        loss = float(model(input_ids=row.input_ids.to(device), labels=row.labels.to(device), **inputs).loss)
        said, patch, word = [], 0, 0
        for name, grid, words in zip(row.names[:HELD_PICTURES], row.grid_hw, row.text_lens.tolist()):
            number, ids, labels = int(grid.prod()), row.input_ids[:, word : word + words], row.labels[0, word : word + words]
            prompt, truth = first_turn(ids, labels)
            limit = max(8, 2 * len(truth))
            picture = {"pixel_values": patches[patch : patch + number], "grid_hw": grid[None]}
            (text,) = generate_text(model, tokenizer, prompt, limit, **picture)
            said.append({"name": name, "said": text, "true": tokenizer.decode(truth, skip_special_tokens=True).strip()})
            patch, word = patch + number, word + words
    model.train()
    return loss, said


def first_turn(ids, labels):
    """(the first question (1, Q), its answer (A,)) of a sample's ids (1, T) and labels (T,), -100 where nothing is learned."""
    start = int((labels != -100).nonzero()[0])
    behind = (labels[start:] == -100).nonzero()
    return ids[:, :start], labels[start : start + int(behind[0]) if len(behind) else None]


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m genlip.train",
        description="Pretrain GenLIP on shards of pictures and captions.",
        epilog="examples:\n"
        "  python -m genlip.train tiny-s1 --data data/easy-vqa/captions --tokenizer weights/llama-tiny --out runs/tiny-s1\n"
        "  python -m genlip.train tiny-s2 --init runs/tiny-s1/export --data shards/ --out runs/tiny-s2\n"
        "  torchrun --nproc-per-node 8 -m genlip.train so16-s1 --data 'shards/*.tar' --out runs/so16-s1\n"
        "  python -m genlip.train so16-s1 --dry-run --gpus 64 --mfu 0.5\n"
        "  python -m genlip.train --config runs/tiny-s1/recipe.json --lr 5e-4 --out runs/tiny-s1-lower",
    )
    run = add_recipe(parser, PRESETS, argv)["run"]
    run.add_argument("--dry-run", action="store_true", help="print the resolved recipe and what it costs; nothing is written")
    run.add_argument(
        "--gpus", type=bounded(int), metavar="N", help=f"--dry-run: H100s to plan for (default: 8; of {', '.join(LAPTOP)}: 0, a CPU)"
    )
    run.add_argument(
        "--mfu", type=bounded(float, 0.001, 1), default=0.4, metavar="X", help="--dry-run: share of an H100's FLOP/s in use (default: 0.4)"
    )
    run.add_argument("--accept-changes", action="store_true", help="go on although the recipe is not the run folder's")
    args = parser.parse_args(argv)
    recipe = read_recipe(parser, PRESETS, args)
    if args.dry_run:
        return dry_run(recipe, 8 * (recipe.preset not in LAPTOP) if args.gpus is None else args.gpus, args.mfu)
    for name in ("data", "out") if recipe.init else ("data", "tokenizer", "out"):
        if not getattr(recipe, name):
            raise ValueError(f"--{name} is needed: see python -m genlip.train --help")
    with locked(Path(recipe.out)) if os.environ.get("RANK", "0") == "0" else nullcontext():
        train(recipe, args.accept_changes)
    return 0


def dry_run(recipe: Recipe, gpus: int, mfu: float) -> int:
    from .data import load_tokenizer
    from .estimate import estimate

    print(json.dumps(asdict(recipe), indent=1))
    words = recipe.vocab_size or vocab_size_of(recipe, len(load_tokenizer(recipe.tokenizer)) if recipe.tokenizer else 512)
    print("\n".join(estimate(recipe, words, gpus, mfu)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
