"""Fine-tune an MLLM around an encoder, frozen unless told otherwise, on transformers' Trainer.

    python -m train_mllm.train tiny-sft --encoder dinov2-s14 --resolution 56 --llm weights/llama-tiny \\
        --data data/easy-vqa/sft/conversations.json --out runs/sft-dinov2-s14
    python -m train_mllm.train sft-qwen7b-frozen --dry-run
    torchrun --nproc-per-node 8 -m train_mllm.train sft-qwen7b-frozen ...      # the scripts do this where there are several GPUs

The run folder holds recipe.json, data/ (the prepared conversations and their ledger), ledger.json (with what cutting left out),
metrics.jsonl, checkpoints/ and export/ with provenance.json. The same command again goes on where the run stopped, or says that it is
done.

Loss = sum over supervised tokens / their number in the whole step, over all processes and micro-steps (the Trainer hands
`num_items_in_batch` to the model).
"""

import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from genlip.common.command import Failed, command, new_parser, sentence
from genlip.common.files import keep_until, read_json, write_json, written_aside
from genlip.common.flags import add_recipe, check_choices, flag, read_recipe
from genlip.common.locks import one_at_a_time
from genlip.common.run_folder import claim_run_folder
from genlip.common.versions import git_commit, package_versions
from llava_plugin import encoders, views

from . import estimate, llava_next
from .estimate import missing
from .model import adamw, count_parameters, freeze_parts, frozen_throughout, initialise_from, prepare_for_training
from .prepare_data import check_origin, check_pictures, origin_of, prepare
from .recipes import LAPTOP, PRESETS, Recipe, protocol, seen_as

DEEPSPEED = Path(__file__).parent / "deepspeed"


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError for a recipe whose fields do not go together, with the flag that mends it."""
    from importlib.util import find_spec

    check_choices(recipe)
    views.asked(seen_as(recipe), 1, 1)
    if recipe.cache_features and recipe.train_encoder:
        raise ValueError("--cache-features keeps a frozen encoder's features: give --no-cache-features, or --no-train-encoder")
    if recipe.standardise and not recipe.cache_features:
        raise ValueError("--standardise works on cached features: give --cache-features too, or --no-standardise")
    if recipe.standardise and recipe.projector != "mlp2x_gelu":
        raise ValueError("--standardise is folded into the first layer of --projector mlp2x_gelu: use that, or --no-standardise")
    if recipe.batching == "padded" and recipe.turns == "independent":
        raise ValueError("--turns independent packs the turns behind their front, which padded rows cannot: use --batching batch or tokens")
    if recipe.lora_rank and recipe.stage == "projector":
        raise ValueError("--lora-rank adapts the language model, which the projector stage leaves alone: use it in the SFT stage")
    if recipe.backend == "llava_next":
        llava_next.check_recipe(recipe)
    for field, module, wanted in (
        ("report", recipe.report, recipe.report != "none"),
        ("zero", "deepspeed", recipe.zero > 0),
        ("lora_rank", "peft", recipe.lora_rank),
    ):
        if wanted and find_spec(module) is None:
            raise ValueError(f"{module} is not installed: pip install {module}, or leave {flag(field, getattr(recipe, field))} out")


def train(recipe: Recipe) -> Path:
    """Run the recipe to its end, from wherever it stands. Returns the export folder.

    Raises ValueError for what the user can mend, RuntimeError where the promise on the encoder was broken.
    """
    check_recipe(recipe)
    if lacks := missing(recipe):
        raise ValueError("; ".join(lacks))
    processes, first = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("RANK", "0") == "0"
    run = Path(recipe.out)
    export = run / "export"
    with one_at_a_time(run):
        claim_run_folder(recipe)
        data = prepared_data(recipe, run, first)
        if export.is_dir():
            print(f"{export} exists: this run is done")
            return export
    ledger = read_json(data / "ledger.json")
    if recipe.backend == "llava_next":
        with one_at_a_time(run):
            llava_next.export_for_llava_next(recipe, run, data)
            write_json(run / "ledger.json", ledger)
        return llava_next.train(recipe, run, ledger)

    import torch
    from transformers import TrainerState, set_seed
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config
    from transformers.utils import logging

    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower, digest

    from .data import Conversations, picture_sizes, token_lengths
    from .features import cached_features, channel_statistics, fold_standardisation
    from .freeze_check import FreezeCheck
    from .packing import Collator, in_batches
    from .trainer import StrictTrainer, newest_whole

    # The model. Trainable weights stay fp32 (bf16 under autocast on a GPU; DeepSpeed keeps its own fp32 copy), frozen ones are bf16.
    set_seed(recipe.seed)
    logging.disable_progress_bar()  # one for every folder that is read
    on_gpu = torch.cuda.is_available()
    zero = estimate.zero_here(recipe, processes)
    dtype = torch.bfloat16 if recipe.bf16 and on_gpu else torch.float32
    tower = VisionTower.from_encoder(recipe.encoder, recipe.resolution or None, view=seen_as(recipe))
    model, tokenizer = mllm.build(tower, encoders.find_llm(recipe.llm), dtype=dtype, seed=recipe.seed, projector=recipe.projector)
    handed_on = initialise_from(model, recipe) if recipe.init else {}
    freeze_parts(model, recipe)
    guard = FreezeCheck(tower, recipe.train_encoder)
    llm_before = handed_on.get("llm_digest_before") or digest(model.model.language_model)

    # The data: pictures through the tower in every step, or once and kept; conversations too long for one turn are left out.
    features, mean, std = None, 0.0, 1.0
    with one_at_a_time(run):
        sizes = picture_sizes(data, ledger["digest"]) if views.parse(tower.spec.view).by_size else None
        if recipe.cache_features:
            if on_gpu:  # the Trainer moves the rest later
                tower.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
            earlier = Path(recipe.init).parent / "data" if recipe.init else None
            features = cached_features(data, tower, ledger["digest"], earlier, sizes)
        dataset = Conversations(data, tokenizer, model.config, recipe, features, mean, std, tower.spec, sizes)
        lengths = token_lengths(dataset, data, ledger["digest"])
        checkpoint = newest_whole(run / "checkpoints")
        ledger = ledger | {"tokens": token_ledger(lengths, dataset, recipe)}
        write_json(run / "ledger.json", ledger)
    if recipe.standardise:
        mean, std = channel_statistics(features)
        dataset.mean, dataset.std = mean, std
        if recipe.init:  # its projector was made for plain features: undo, for the time of training, what the end will fold in
            fold_standardisation(model.model.multi_modal_projector.linear_1, -mean / std, 1 / std)
    kept = (lengths[:, 2] >= 0).nonzero()[0]
    dataset, accumulation = in_batches(dataset, lengths, kept, recipe, processes)
    flash = on_gpu and estimate.kernels(recipe).flash
    collator = Collator(tower, model.config, tokenizer.pad_token_id, recipe.batching == "padded", flash)
    prepare_for_training(model, recipe, dtype, bool(zero), on_gpu)
    groups = count_parameters(model)
    if first:
        how = "trained" if recipe.train_encoder else "frozen"
        learns, total = (sum(g[k] for g in groups.values()) for k in ("trained", "all"))
        print(estimate.computed_with(recipe, on_gpu))
        print(f"pictures: {tower.spec.size_in_words}")
        print(f"encoder {tower.spec.key}: {how}; {learns:,} of {total:,} parameters learn; {ledger['tokens']['sentence']}", flush=True)

    # The loop.
    if zero and not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first; gloo serves as well
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run / "tensorboard"))
    args = arguments(recipe, run, accumulation, zero, processes)
    optimizers = (adamw(model, recipe), None)
    trainer = StrictTrainer(model, args, data_collator=collator, train_dataset=dataset, optimizers=optimizers, callbacks=[guard])
    trainer.metrics = run / "metrics.jsonl"
    if first:
        keep_until(trainer.metrics, int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    reached = TrainerState.load_from_json(checkpoint / "trainer_state.json") if checkpoint and not zero else None
    if reached and reached.global_step >= reached.max_steps:  # stopped before the export: resumed, the Trainer would take one step more
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = reached
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if zero == 3:  # each process holds a part: gather it, on the first alone
        state = trainer.accelerator.get_state_dict(trainer.deepspeed)
        unset_hf_deepspeed_config()  # from here on the model is whole and one process's own
        if first:
            model.load_state_dict(state, assign=True)
    if not first:
        trainer.accelerator.wait_for_everyone()
        return export

    # The proof, then the export, written aside and renamed.
    model.to(dtype)
    if recipe.lora_rank:
        model.model.language_model = model.model.language_model.merge_and_unload()
    proof = guard.check()
    if recipe.standardise:
        fold_standardisation(model.model.multi_modal_projector.linear_1, mean, std)
    provenance = {
        "stage": recipe.stage,
        "llm": Path(recipe.llm).name,
        "frozen": frozen_throughout(recipe, handed_on.get("earlier", [])),
        "note": estimate.NO_ANYRES if recipe.train_encoder else None,
        **proof,
        "earlier": handed_on.get("earlier", []),
        "llm_digest_before": llm_before,
        "data_digest": ledger["digest"],
        "parameters": groups,
        "steps": trainer.state.global_step,
        "processes": processes,
        "accumulation": accumulation,
        "zero": zero,
        "protocol": protocol(recipe, processes, accumulation, on_gpu),
        "seed": recipe.seed,
        "recipe": asdict(recipe),
        "versions": package_versions(("torch", "transformers", "accelerate", "genlip-eval")),
        "git_commit": git_commit() or "unknown",
    }
    with written_aside(export) as part:
        mllm.save(model, tokenizer, part, provenance)
        guard.check_export(part)
    losses = [f"{record['loss']:.3f} at step {record['step']}" for record in trainer.state.log_history if "loss" in record]
    print(f"wrote {export}: loss {losses[0]}, {losses[-1]}")
    trainer.accelerator.wait_for_everyone()
    return export


def prepared_data(recipe: Recipe, run: Path, first: bool) -> Path:
    """The folder of the prepared conversations, made where there is none. ValueError where they, the files that they were made of, or
    their pictures are not what the run began with, or ended with. The first process looks for all of them."""
    given, export = Path(recipe.data), run / "export"
    done = export.is_dir()
    own = not (given / "ledger.json").is_file()
    data = run / "data" if own else given
    began, there = (folder / "ledger.json" for folder in (run, data))
    if not first and (done or there.is_file()):
        return data
    try:
        if done and own:
            kept = next((read_json(file) for file in (there, began) if file.is_file()), None)
            if kept:
                check_origin(data, kept["origin"], origin_of(recipe.data, recipe.images, recipe.seed))
        elif own:
            prepare(recipe.data, recipe.images, str(data), recipe.max_bad, seed=recipe.seed)
        if done or not own:
            check_pictures(data)
        if began.is_file() and there.is_file():
            before, now = (read_json(file)["digest"] for file in (began, there))
            if before != now:
                raise ValueError(f"{run} began with data {before[:8]}, and {data} holds {now[:8]}: bring those back, or give another --out")
    except ValueError as error:
        if not done:
            raise
        raise ValueError(f"{export} was trained on other data than there are now: {error}") from error
    return data


def arguments(recipe: Recipe, run: Path, accumulation: int, zero: int, processes: int):
    """The recipe as transformers' TrainingArguments."""
    import torch
    from transformers import TrainingArguments

    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(run / "checkpoints"),
        per_device_train_batch_size=recipe.batch if recipe.batching == "batch" else 1,
        gradient_accumulation_steps=accumulation,
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,  # a share below 1 is read as a ratio
        bf16=recipe.bf16 and on_gpu,
        logging_steps=estimate.log_every(recipe),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_every,
        save_total_limit=2,
        seed=recipe.seed,
        dataloader_num_workers=recipe.workers,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        report_to=recipe.report,
        run_name=run.name,
        use_cpu=not on_gpu,
        ddp_backend="gloo" if processes > 1 and not on_gpu else None,
        ddp_find_unused_parameters=recipe.train_encoder,  # a tower's last norm and pooling head are often not used
        deepspeed=str(DEEPSPEED / f"zero{zero}.json") if zero else None,
        disable_tqdm=not sys.stderr.isatty(),
    )


def token_ledger(lengths, dataset, recipe: Recipe) -> dict:
    """What tokenising did to the conversations, for the run's ledger. Raises ValueError where more than --max-bad of them do not fit."""
    left_out = (lengths[:, 2] < 0).nonzero()[0]
    names = dataset.table["id"].take(left_out[:10]).to_pylist()
    if len(left_out) > recipe.max_bad * len(lengths):
        raise ValueError(
            f"{len(left_out)} of {len(lengths)} conversations have a first turn longer than --max-length {recipe.max_length}: "
            f"{', '.join(names)}. Raise it, or allow more with --max-bad"
        )
    tokens, supervised, cut = int(lengths[:, 0].sum()), int(lengths[:, 1].sum()), int((lengths[:, 2] > 0).sum())
    share = f"{tokens:,} tokens, {supervised / tokens:.1%} of them supervised; {cut} conversations cut at a turn, {len(left_out)} left out"
    return {
        "tokens": tokens,
        "supervised": supervised,
        "longest": int(lengths[:, 0].max()),
        "cut": cut,
        "left_out": len(left_out),
        "left_out_names": names,
        "sentence": share,
    }


@contextmanager
def explained(recipe: Recipe):
    """What stops a run, in words; a RuntimeError or OSError is a failure (exit code 1), a ValueError is the user's to mend (2)."""
    try:
        yield
    except ValueError as e:
        raise ValueError(explain_error(e, recipe)) from e
    except (RuntimeError, OSError) as e:
        raise Failed(explain_error(e, recipe)) from e


def explain_error(error: Exception, recipe: Recipe) -> str:
    """The error as a sentence: what a worker process raised without its traceback, a full GPU with the settings that help."""
    if type(error).__name__ == "OutOfMemoryError":
        half = max(1, recipe.batch // 2)
        helps = [f"--batch {half} (with --global-batch the step stays the same)"] * (recipe.batch > 1 and recipe.batching != "tokens")
        helps += ["--gradient-checkpointing"] * (not recipe.gradient_checkpointing)
        helps += [f"--batch-tokens {recipe.batch_tokens // 2}"] * (recipe.batching == "tokens")
        helps += [f"--max-length {recipe.max_length // 2}", "--zero 3", "--lora-rank 128"]
        return f"a GPU is out of memory. What helps, in a run folder of its own (--out): {', or '.join(helps)}; --dry-run says what fits"
    text = sentence(error)
    return text.strip().splitlines()[-1].split(": ", 1)[-1] if "Original Traceback" in text else text


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m train_mllm.train",
        description="Fine-tune an MLLM around a vision encoder.",
        epilog="examples:\n"
        "  python -m train_mllm.train sft-qwen7b-frozen --encoder siglip2-so16-384 --data sft.json --images images/ --out runs/sft\n"
        "  python -m train_mllm.train sft-qwen7b-frozen --dry-run\n"
        "  python -m train_mllm.train --config runs/sft/recipe.json --lr 2e-5 --out runs/sft-higher",
    )
    run = add_recipe(parser, PRESETS, argv)["run"]
    run.add_argument("--dry-run", action="store_true", help="print the resolved recipe, what it costs and what is missing; run nothing")
    run.add_argument("--gpus", type=int, metavar="N", help=f"--dry-run: H100s to plan for (default: 8; of {', '.join(LAPTOP)}: 0, a CPU)")
    run.add_argument("--gpu-memory", type=float, default=80.0, metavar="GB", help="--dry-run: memory per GPU (default: 80)")
    run.add_argument("--mfu", type=float, default=0.4, metavar="X", help="--dry-run: share of an H100's FLOP/s in use (default: 0.4)")
    args = parser.parse_args(argv)
    recipe = read_recipe(parser, PRESETS, args)
    with explained(recipe):
        if args.dry_run:
            check_recipe(recipe)
            gpus = 8 * (recipe.preset not in LAPTOP) if args.gpus is None else args.gpus
            estimate.dry_run(recipe, gpus, args.gpu_memory, args.mfu)
            return 0
        if not recipe.out:
            raise ValueError(f"--out is needed, for example --out runs/{recipe.preset}")
        train(recipe)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
