"""Pretrain GenLIP: a ViT reads its patches, then speaks the caption with a plain language-model loss (arXiv 2605.00809).

    python -m genlip.train tiny-s1 --data data/easy-vqa/captions --tokenizer weights/llama-tiny --out runs/tiny-s1

On two cores `tiny-s1` takes about three minutes. The run folder holds recipe.json (written before step 0), metrics.jsonl,
ledger.json, checkpoints/ and, at the end, export/: a plain from_pretrained folder. The same command again goes on where the run
stopped, or says that it is done.

Differences from the reference: the loss is the sum over labelled tokens over their number in the whole step, not a mean of
means; a stop and resume is bit-equal to an undisturbed run; bad samples are counted.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

from .recipes import PRESETS, Recipe, add_flags, claim_run_folder, from_args


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine down to `min_lr` at the last step."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def build_model(recipe: Recipe, vocabulary: int):
    """The model of the recipe from its seed; the vocabulary is the tokenizer's, rounded up to a multiple of 64."""
    import torch

    from .configuration_genlip import GenLIPConfig
    from .modeling_genlip import GenLIPForPretraining

    torch.manual_seed(recipe.seed)
    return GenLIPForPretraining(GenLIPConfig(**recipe.model | {"vocab_size": math.ceil(vocabulary / 64) * 64}))


def load_tokenizer(name: str):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise ValueError(f"no tokenizer in {name!r}: give --tokenizer a folder with tokenizer.json, or a hub id ({e})") from e


def train(recipe: Recipe) -> Path:
    """Run the recipe to its end, from wherever it stands. Returns the export folder.

    Raises ValueError for what the user can mend; FloatingPointError where the loss is not finite, before the optimizer moves.
    """
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from . import checkpoint
    from .data import list_shards, packed_rows

    if recipe.steps < 1:
        raise ValueError("--steps must be at least 1")
    list_shards(recipe.data)
    tokenizer = load_tokenizer(recipe.tokenizer)
    run = claim_run_folder(recipe)
    export = run / "export"
    if export.is_dir():
        print(f"{export} exists: this run is done")
        return export

    # The model and what trains it.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(recipe, len(tokenizer)).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True
    )

    # Go on from the newest whole checkpoint; metrics beyond it are forgotten.
    step, position, ledger = 0, None, None
    state = checkpoint.newest(run)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, position, ledger = state["step"], state["position"], state["ledger"]
        torch.set_rng_state(state["rng"])
        print(f"going on from step {step}")
    metrics_file = run / "metrics.jsonl"
    lines = metrics_file.read_text().splitlines() if metrics_file.is_file() else []
    metrics_file.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] < step))

    batches = packed_rows(recipe, tokenizer, position, ledger)
    columns = (TextColumn("pretrain"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with metrics_file.open("a") as metrics, Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("pretrain", total=recipe.steps, completed=step, note="")
        while step < recipe.steps:
            started = time.perf_counter()

            # One global step: all its rows are read first, because the loss is over their common number of labels.
            rows = [next(batches) for _ in range(recipe.rows)]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            labelled = sum(int((row.labels != -100).sum()) for row in rows)
            total = 0.0
            for row in rows:
                loss = model(
                    input_ids=row.input_ids.to(device),
                    pixel_values=row.patches.to(device),
                    grid_hw=row.grid_hw.to(device),
                    text_lens=row.text_lens.to(device),
                    labels=row.labels.to(device),
                    num_items_in_batch=labelled,
                ).loss
                loss.backward()
                total += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip).item()
            if not math.isfinite(total) or not math.isfinite(norm):
                raise FloatingPointError(
                    f"loss {total}, gradient norm {norm} at step {step}, samples from {rows[0].position}: the weights were not moved. "
                    "Lower --lr, or look at those samples"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1

            # Say and keep what happened.
            position, ledger = rows[-1].position, rows[-1].ledger
            check_ledger(ledger, recipe)
            seconds = time.perf_counter() - started
            tokens = sum(len(row.patches) + row.input_ids.numel() for row in rows)
            record = {"step": step - 1, "loss": total, "grad_norm": norm, "lr": optimizer.param_groups[0]["lr"], "labelled": labelled}
            record |= {"tokens": tokens, "samples": sum(len(row.text_lens) for row in rows), "epoch": position["epoch"]}
            record |= {"waste": 1 - tokens / (recipe.rows * recipe.row_tokens), "tokens_per_s": round(tokens / seconds)}
            metrics.write(json.dumps(record) + "\n")
            progress.update(bar, completed=step, note=f"loss {total:.3f}  {tokens / seconds:,.0f} tokens/s")
            if not sys.stderr.isatty() and (step % 100 == 0 or step == recipe.steps):
                print(f"step {step}/{recipe.steps}  loss {total:.4f}  {tokens / seconds:,.0f} tokens/s", flush=True)
            if step % recipe.save_every == 0 or step == recipe.steps:
                metrics.flush()
                (run / "ledger.json").write_text(json.dumps(ledger, indent=1) + "\n")
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
                checkpoint.save(run, step, state | {"step": step, "position": position, "ledger": ledger})
    return write_export(model, tokenizer, recipe, export)


def check_ledger(ledger: dict, recipe: Recipe) -> None:
    """Stop where more than `max_bad` of the samples read (and at least 10 of them) could not be used."""
    bad = sum(ledger["skipped"].values())
    if bad >= 10 and bad > recipe.max_bad * ledger["read"]:
        raise ValueError(
            f"{bad} of {ledger['read']} samples cannot be used ({ledger['skipped']}; first: {ledger['names']}). "
            f"Mend the data, or allow more with --max-bad"
        )


def write_export(model, tokenizer, recipe: Recipe, export: Path) -> Path:
    """A plain from_pretrained folder: weights, config, image processor, tokenizer, provenance; written aside and renamed."""
    from dataclasses import asdict

    import torch
    import transformers

    from .image_processing_genlip import GenLIPImageProcessor

    part = export.with_suffix(".part")
    model.save_pretrained(part)
    GenLIPImageProcessor(size=recipe.resolution).save_pretrained(part)
    tokenizer.save_pretrained(part)
    provenance = {
        "stage": "pretrain",
        "recipe": asdict(recipe),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (part / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    part.replace(export)
    print(f"wrote {export}")
    return export


def main(argv: list[str] | None = None) -> int:
    presets = argparse.ArgumentParser(add_help=False)
    presets.add_argument("preset", nargs="?", default="tiny-s1")
    chosen = PRESETS.get(presets.parse_known_args(argv)[0].preset)
    parser = argparse.ArgumentParser(
        prog="python -m genlip.train",
        description="Pretrain GenLIP on tar shards of pictures and captions.",
        epilog="example:\n  python -m genlip.train tiny-s1 --data data/easy-vqa/captions --tokenizer weights/llama-tiny --out runs/tiny-s1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", choices=sorted(PRESETS), help="which recipe; every field of it is a flag")
    add_flags(parser, (chosen or PRESETS["tiny-s1"])())
    args = parser.parse_args(argv)
    try:
        recipe = from_args(chosen(), args)
        for name in ("data", "tokenizer", "out"):
            if not getattr(recipe, name):
                raise ValueError(f"--{name} is needed: see python -m genlip.train --help")
        train(recipe)
    except (ValueError, FloatingPointError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
