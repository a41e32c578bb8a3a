"""Fine-tune an MLLM around an encoder, frozen unless told otherwise, on transformers' Trainer.

    python -m train_mllm.train tiny-sft --encoder dinov2-s14 --resolution 56 --llm weights/llama-tiny \\
        --data data/easy-vqa/sft/conversations.json --out runs/sft-dinov2-s14
    python -m train_mllm.train sft-qwen7b-frozen --dry-run

The run folder holds recipe.json, data/ (the prepared conversations and their ledger), metrics.jsonl, checkpoints/ and export/ with
provenance.json. The same command again goes on where the run stopped, or says that it is done.

Loss = sum over supervised tokens / their number in the whole step (the Trainer hands `num_items_in_batch` to the model).
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from genlip.recipes import add_flags, claim_run_folder, from_args
from llava_plugin import encoders

from .prepare_data import prepare
from .recipes import PRESETS, Recipe

FEATURE_BATCH = 64


def missing(recipe: Recipe) -> list[str]:
    """What stands between this machine and the run, each with the command that brings it. Torch-free."""
    lacks = []
    try:
        encoders.find_weights(encoders.resolve(recipe.encoder, recipe.resolution or None))
    except ValueError as e:
        lacks.append(str(e))
    try:
        encoders.find_llm(recipe.llm)
    except ValueError as e:
        lacks.append(str(e))
    if not recipe.data or not Path(recipe.data).exists():
        lacks.append(f"no conversations at {recipe.data or '--data'!r}: give --data a .json or .parquet file of LLaVA-form conversations")
    if recipe.init and not (Path(recipe.init) / "provenance.json").is_file():
        lacks.append(f"no projector export in {recipe.init}. Make it: python -m train_mllm.train projector --encoder {recipe.encoder} ...")
    return lacks


def train(recipe: Recipe) -> Path:
    """Run the recipe to its end, from wherever it stands. Returns the export folder.

    Raises ValueError for what the user can mend, RuntimeError where the promise on the encoder was broken.
    """
    if recipe.stage not in ("projector", "sft") or recipe.turns not in ("dialogue", "independent"):
        raise ValueError(f"--stage is projector or sft, --turns dialogue or independent; not {recipe.stage!r}, {recipe.turns!r}")
    if recipe.cache_features and recipe.train_encoder:
        raise ValueError("--cache-features keeps a frozen encoder's features; this recipe trains the encoder (--train-encoder)")
    if recipe.standardise and not recipe.cache_features:
        raise ValueError("--standardise works on cached features: give --cache-features too, or --no-standardise")
    if lacks := missing(recipe):
        raise ValueError("; ".join(lacks))
    run = claim_run_folder(recipe)
    export = run / "export"
    if export.is_dir():
        print(f"{export} exists: this run is done")
        return export
    data = Path(recipe.data)
    if not (data / "conversations.arrow").is_file():
        data = run / "data"
        prepare(recipe.data, recipe.images, str(data), recipe.max_bad)
    ledger = json.loads((data / "ledger.json").read_text())
    (run / "ledger.json").write_text(json.dumps(ledger, indent=1) + "\n")

    import torch
    from transformers import Trainer, TrainingArguments, set_seed
    from transformers.utils import logging

    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower, digest

    from .data import Collator, Conversations, use_packed_attention
    from .guard import Guard

    # The model: what learns, what does not.
    set_seed(recipe.seed)
    logging.disable_progress_bar()  # one for every folder that is read
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if recipe.bf16 and on_gpu else torch.float32
    tower = VisionTower.from_encoder(recipe.encoder, recipe.resolution or None)
    model, tokenizer = mllm.build(tower, encoders.find_llm(recipe.llm), dtype=dtype, seed=recipe.seed)
    if recipe.init:
        start_from(model, recipe)
    if not recipe.train_encoder:
        tower.freeze()
    if recipe.stage == "projector":
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    guard = Guard(tower, recipe.train_encoder)
    llm_before = digest(model.model.language_model)
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    how = "trained" if recipe.train_encoder else "frozen"
    print(f"encoder {tower.spec.key}: {how}; {learns:,} of {model.num_parameters():,} parameters learn")

    # The data: pictures through the tower in every step, or once and kept.
    features, mean, std = None, 0.0, 1.0
    if recipe.cache_features:
        features = cached_features(data, tower, ledger["digest"])
        if recipe.standardise:
            mean, std = channel_statistics(features)
            if recipe.init:  # its projector was made for plain features: undo, for the time of training, what the end will fold in
                fold_standardisation(model.model.multi_modal_projector.linear_1, -mean / std, 1 / std)
    dataset = Conversations(data, tokenizer, model.config, recipe, features, mean, std)
    collator = Collator(tower.preprocess)
    use_packed_attention(model)

    class StrictTrainer(Trainer):
        """transformers' own loop. Only: LLaVA's weights are saved under the names of older versions, which `Trainer` then fails to
        find on a resume and passes over with a warning; read by `from_pretrained`, every one of them must be there."""

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            saved = type(self.model).from_pretrained(resume_from_checkpoint)
            self.model.load_state_dict(saved.state_dict())

    args = TrainingArguments(
        output_dir=str(run / "checkpoints"),
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,  # a share below 1 is read as a ratio
        bf16=recipe.bf16 and on_gpu,
        logging_steps=10,
        save_steps=recipe.save_every,
        save_total_limit=2,
        seed=recipe.seed,
        dataloader_num_workers=recipe.workers,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
    )
    optimizers = (_optimizer(model, recipe), None)
    trainer = StrictTrainer(model, args, data_collator=collator, train_dataset=dataset, optimizers=optimizers, callbacks=[guard])
    trainer.train(resume_from_checkpoint=bool(list((run / "checkpoints").glob("checkpoint-*"))) or None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in trainer.state.log_history))

    # The proof, then the export, written aside and renamed.
    proof = guard.check()
    if recipe.standardise:
        fold_standardisation(model.model.multi_modal_projector.linear_1, mean, std)
    provenance = {
        "stage": recipe.stage,
        "encoder": tower.spec.key,
        "encoder_key": tower.spec.key if tower.spec.key in encoders.KEYS and not tower.spec.path else None,
        "arch": tower.spec.family,
        "llm": Path(recipe.llm).name,
        "frozen": not recipe.train_encoder,
        "resolution": tower.spec.resolution,
        "tokens": tower.spec.tokens,
        "untrained": tower.config.untrained,
        **proof,
        "llm_digest_before": llm_before,
        "llm_digest": digest(model.model.language_model),
        "data_digest": ledger["digest"],
        "recipe": asdict(recipe),
        "versions": _versions(),
        "git_commit": _git_commit(),
    }
    part = run / "export.part"
    mllm.save(model, tokenizer, part, provenance)
    part.replace(export)
    print(f"wrote {export}")
    return export


def cached_features(data: Path, tower, data_digest: str):
    """(pictures, N, D) fp32 features of all pictures in the data's order, computed once, mapped into memory afterwards.

    The file is named by the tower's digest, its preprocessing and the data, so that none of them can change unnoticed.
    """
    import hashlib

    import numpy as np
    import torch
    from rich.progress import track

    from llava_plugin.tower import digest

    from .data import open_conversations, open_picture

    key = hashlib.sha256(f"{digest(tower)} {tower.spec} {data_digest}".encode()).hexdigest()[:16]
    file = data / f"features-{key}.npy"
    if not file.is_file():
        table = open_conversations(data)
        pictures = [(i, j) for i, n in enumerate(table["images"].combine_chunks().value_lengths().to_pylist()) for j in range(n)]
        part = file.with_suffix(".part")
        out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(len(pictures), tower.spec.tokens, tower.spec.width))
        with torch.inference_mode():
            for start in track(range(0, len(pictures), FEATURE_BATCH), "features of the frozen encoder", disable=not sys.stderr.isatty()):
                batch = pictures[start : start + FEATURE_BATCH]
                images = [open_picture(table.slice(i, 1).to_pylist()[0]["images"][j]) for i, j in batch]
                pixels = tower.preprocess(images).to(tower.device)
                out[start : start + len(batch)] = tower(pixels).last_hidden_state.float().cpu().numpy()
        out.flush()
        part.replace(file)
    return np.load(file, mmap_mode="r")


def channel_statistics(features):
    """Mean and standard deviation (D,) over all pictures and tokens of the cached features (pictures, N, D), a part at a time."""
    import numpy as np

    total, squares = np.zeros((2, features.shape[-1]))
    for start in range(0, len(features), 1024):
        part = features[start : start + 1024].reshape(-1, features.shape[-1]).astype(np.float64)
        total += part.sum(0)
        squares += (part**2).sum(0)
    mean = total / (features.shape[0] * features.shape[1])
    std = np.sqrt(np.maximum(squares / (features.shape[0] * features.shape[1]) - mean**2, 1e-12))
    return mean.astype(np.float32), std.astype(np.float32)


def fold_standardisation(linear, mean, std) -> None:
    """Make `linear` do to plain features what it did to standardised ones: W (x - mean) / std + b, as one matrix and bias.

    A tiny encoder's channels share a mean larger than what tells pictures apart, on which a projector learns slowly; trained on
    standardised features and folded at the end, the export is the plain 2-layer projector all the same.
    """
    import torch

    with torch.no_grad():
        linear.weight.div_(torch.from_numpy(std).to(linear.weight))
        linear.bias.sub_(linear.weight @ torch.from_numpy(mean).to(linear.weight))


def _optimizer(model, recipe: Recipe):
    """AdamW over what learns, the encoder at its own rate where it is trained."""
    import torch

    of_tower = {id(p) for p in model.model.vision_tower.parameters()}
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in learning if id(p) not in of_tower], "lr": recipe.lr}]
    if recipe.train_encoder:
        groups.append({"params": [p for p in learning if id(p) in of_tower], "lr": recipe.encoder_lr})
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)


def start_from(model, recipe: Recipe) -> None:
    """Take over what an earlier stage taught: the projector, and of an SFT stage the language model too. The encoder stays the recipe's.

    Raises ValueError where the export was made for another encoder or language model.
    """
    from transformers import LlavaForConditionalGeneration

    from llava_plugin import register

    register()
    provenance = json.loads((Path(recipe.init) / "provenance.json").read_text())
    theirs = LlavaForConditionalGeneration.from_pretrained(recipe.init)
    ours, found = model.model.multi_modal_projector, theirs.model.multi_modal_projector
    if [p.shape for p in ours.parameters()] != [p.shape for p in found.parameters()]:
        raise ValueError(
            f"{recipe.init} is a projector from {provenance['encoder']} to {provenance['llm']}, not from {recipe.encoder} to {recipe.llm}"
        )
    ours.load_state_dict(found.state_dict())
    if provenance["stage"] == "sft":
        model.model.language_model.load_state_dict(theirs.model.language_model.state_dict())
        model.lm_head.load_state_dict(theirs.lm_head.state_dict())


def _versions() -> dict:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "accelerate", "genlip-eval")}


def _git_commit() -> str:
    where = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=where, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main(argv: list[str] | None = None) -> int:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("preset", nargs="?", default="tiny-sft")
    chosen = PRESETS.get(first.parse_known_args(argv)[0].preset, PRESETS["tiny-sft"])
    parser = argparse.ArgumentParser(
        prog="python -m train_mllm.train",
        description="Fine-tune an MLLM around a vision encoder.",
        epilog="examples:\n"
        "  python -m train_mllm.train sft-qwen7b-frozen --encoder siglip2-so16-384 --data sft.json --images images/ --out runs/sft\n"
        "  python -m train_mllm.train sft-qwen7b-frozen --dry-run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", choices=sorted(PRESETS), help="which recipe; every field of it is a flag")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and what is missing, run nothing")
    add_flags(parser, chosen())
    args = parser.parse_args(argv)
    recipe = from_args(chosen(), args)
    try:
        if args.dry_run:
            dry_run(recipe)
            return 0
        if not recipe.out:
            raise ValueError(f"--out is needed, for example --out runs/{recipe.preset}")
        train(recipe)
    except (ValueError, RuntimeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2 if isinstance(e, ValueError) else 1
    return 0


def dry_run(recipe: Recipe) -> None:
    """Print the recipe and what stands in its way. Torch is not loaded."""
    for name, value in asdict(recipe).items():
        print(f"{name:24}{value}")
    try:
        spec = encoders.resolve(recipe.encoder, recipe.resolution or None)
        how = "trained" if recipe.train_encoder else "frozen"
        print(f"{'pictures':24}{spec.resolution} x {spec.resolution}, {spec.tokens} tokens of width {spec.width}, {how}")
    except ValueError:
        pass  # said below, with what is missing
    lacks = missing(recipe)
    print("missing:" if lacks else "nothing is missing")
    for line in lacks:
        print(f"  - {line}")


if __name__ == "__main__":
    sys.exit(main())
