"""Fine-tune an MLLM around an encoder, frozen unless told otherwise, on transformers' Trainer.

    python -m train_mllm.train tiny-sft --encoder dinov2-s14 --resolution 56 --llm weights/llama-tiny \\
        --data data/easy-vqa/sft/conversations.json --out runs/sft-dinov2-s14
    python -m train_mllm.train sft-qwen7b-frozen --dry-run
    torchrun --nproc-per-node 8 -m train_mllm.train sft-qwen7b-frozen ...      # the scripts do this where there are several GPUs

The run folder holds recipe.json, run.json (what that was resolved to, with the digests of what was loaded), data/ (the prepared
conversations and their ledger), ledger.json (with what cutting left out), metrics.jsonl, checkpoints/ and export/ with provenance.json. The
same command again goes on where the run stopped, from what it began with alone, or says that it is done.

Loss = sum over supervised tokens / their number in the whole step, over all processes and micro-steps (the Trainer hands
`num_items_in_batch` to the model).
"""

import os
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from genlip.common.command import Failed, command, new_parser, sentence
from genlip.common.files import LONG, keep_until, read_json, write_json, written_aside
from genlip.common.flags import add_recipe, bounded, check_choices, flag, read_recipe
from genlip.common.ledger import Ledger
from genlip.common.locks import locked, one_at_a_time
from genlip.common.processes import ranks
from genlip.common.run_folder import claim_run_folder, pin, recorded
from genlip.common.schema import Provenance, RunRecord
from llava_plugin import views

from . import estimate, llava_next
from .model import (
    adamw,
    check_read_alike,
    count_parameters,
    freeze_parts,
    frozen_throughout,
    initialise_from,
    prepare_for_training,
    stages_of,
)
from .prepare_data import check_origin, check_pictures, origin_of, prepare
from .recipes import LAPTOP, PRESETS, Recipe, protocol, seen_as
from .setup import Setup, micro_steps, resolve


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
    setup = resolve(recipe, ranks())
    if lacks := estimate.missing(setup):
        raise ValueError("; ".join(lacks))
    run, first = Path(recipe.out), os.environ.get("RANK", "0") == "0"
    export = run / "export"
    with one_at_a_time(run):
        claim_run_folder(recipe)
        data = prepared_data(recipe, run, first)
        if export.is_dir():
            if first and (began := recorded(run)):
                setup.check_sources(began)
            print(f"{export} exists: this run is done")
            return export
    if recipe.backend == "llava_next":
        return llava_next.train(setup, run, data)

    began = recorded(run)
    zero = estimate.zero_here(setup, began)
    built = build_model(setup)
    with one_at_a_time(run):
        laid = lay_out_data(setup, built, run, data, zero, began)
    trainer = make_trainer(setup, built, laid, run)
    groups = count_parameters(built.model)
    if first:
        learns, total = (sum(group[k] for group in groups.values()) for k in ("trained", "all"))
        how = "trained" if recipe.train_encoder else "frozen"
        print(laid.record.kernels)
        tokens = laid.ledger["tokens"]["sentence"]
        print(f"pictures: {built.tower.spec.size_in_words}")
        if size := estimate.another_size(setup):
            print(f"note: {size}")
        print(f"encoder {built.tower.spec.key}: {how}; {learns:,} of {total:,} parameters learn; {tokens}", flush=True)
    run_trainer(trainer, built.model, run, first, zero)
    if first:
        write_export(setup, built, laid, trainer, groups)
    trainer.accelerator.wait_for_everyone()
    return export


@dataclass(frozen=True)
class Built:
    """The model as it starts: what of it learns, what it is, and what it continues."""

    model: Any  # LlavaForConditionalGeneration
    tokenizer: Any
    dtype: Any  # of what is frozen, and of the export
    guard: Any  # FreezeCheck
    digests: dict[str, str | None]  # RunRecord's, of what was loaded
    before: Provenance | None  # of the stage that --init names

    @property
    def tower(self):
        return self.model.model.vision_tower


def build_model(setup: Setup) -> Built:
    """Encoder, language model and projector, loaded or drawn from the seed, or taken over from an earlier stage; hashed once.

    Trainable weights stay fp32 (bf16 under autocast on a GPU; DeepSpeed keeps its own fp32 copy), frozen ones are bf16.
    """
    import torch
    from transformers import set_seed
    from transformers.utils import logging

    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower

    from .freeze_check import FreezeCheck

    recipe = setup.recipe
    set_seed(recipe.seed)
    logging.disable_progress_bar()  # one for every folder that is read
    dtype = torch.bfloat16 if recipe.bf16 and torch.cuda.is_available() else torch.float32
    tower = VisionTower.from_encoder(recipe.encoder, recipe.resolution or None, view=seen_as(recipe), layer=recipe.feature_layer)
    model, tokenizer = mllm.build(tower, setup.llm, dtype=dtype, seed=recipe.seed, projector=recipe.projector)
    before = initialise_from(model, setup) if recipe.init else None
    freeze_parts(model, recipe)
    digests = mllm.identity(model, tokenizer)
    guard = FreezeCheck(tower, recipe.train_encoder, digests["encoder_digest"])
    if before is not None:
        check_read_alike(before, digests, setup)
        digests |= {"init_digest": before.weights_digest, "projector_made_for": before.encoder_digest}
    return Built(model, tokenizer, dtype, guard, digests, before)


@dataclass(frozen=True)
class LaidOut:
    """The data as the loop draws from them, and the run's record, to which it is pinned."""

    dataset: Any
    collator: Any
    ledger: dict[str, Any]
    record: RunRecord
    skipped: Any  # the callback that watches for conversations that break in training
    mean: Any = 0.0  # (D,) of cached features, where they are standardised
    std: Any = 1.0


def lay_out_data(setup: Setup, built: Built, run: Path, data: Path, zero: int, began: RunRecord | None) -> LaidOut:
    """Conversations in batches, those too long for one turn left out; pictures through the tower in every step, or once and kept. The run
    is pinned before features are computed. The caller holds the folder."""
    import torch

    from .data import Conversations, left_out, picture_sizes, token_lengths
    from .features import cached_features, channel_statistics, fold_standardisation
    from .packing import Collator, in_batches
    from .skipped import Skipped, SkippedCheck

    recipe, tower, config, on_gpu = setup.recipe, built.tower, built.model.config, torch.cuda.is_available()
    ledger = read_json(data / "ledger.json", f"prepare {data} again", {"digest": str, "used": int}, LONG)
    sizes = picture_sizes(data, ledger["digest"]) if views.parse(tower.spec.view).by_size else None
    conversations = Conversations(data, built.tokenizer, config, recipe, spec=tower.spec, sizes=sizes)
    lengths = token_lengths(conversations, data, ledger["digest"])
    kept = (lengths[:, 2] >= 0).nonzero()[0]
    dataset, accumulation = in_batches(conversations, lengths, kept, setup)
    accumulation = micro_steps(began, setup.processes, accumulation, run)
    record = setup.record(built.digests, ledger["digest"], accumulation, zero, str(built.dtype).removeprefix("torch."), on_gpu)
    pin(run, record)
    most = recipe.max_bad * len(lengths)
    ledger = ledger | {"tokens": token_ledger(lengths, left_out(conversations, lengths, int(most) + 10), recipe)}
    write_json(run / "ledger.json", ledger)
    conversations.skipped = Skipped(run / "skipped.jsonl")
    skipped = SkippedCheck(conversations.skipped, most, run / "ledger.json", ledger)
    skipped.check()

    flash = on_gpu and setup.kernels.flash
    collator = Collator(tower, config, built.tokenizer.pad_token_id, recipe.batching == "padded", flash)
    laid = LaidOut(dataset, collator, ledger, record, skipped)
    if recipe.cache_features:
        if on_gpu:  # the Trainer moves the rest later
            tower.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        earlier = Path(recipe.init).parent / "data" if recipe.init else None
        encoder = f"{record.encoder_digest} {record.encoder_config}"
        conversations.features = cached_features(data, tower, encoder, ledger["digest"], earlier, sizes)
    if recipe.standardise:
        conversations.mean, conversations.std = channel_statistics(conversations.features)
        laid = replace(laid, mean=conversations.mean, std=conversations.std)
        if recipe.init:  # its projector was made for plain features: undo, for the time of training, what the end will fold in
            fold_standardisation(built.model.model.multi_modal_projector.linear_1, -laid.mean / laid.std, 1 / laid.std)
    return laid


def make_trainer(setup: Setup, built: Built, laid: LaidOut, run: Path):
    """The Trainer around the model with its kernels and adapters."""
    import torch

    from .trainer import StrictTrainer, arguments

    on_gpu, zero = torch.cuda.is_available(), laid.record.zero
    prepare_for_training(built.model, setup, built.dtype, bool(zero), on_gpu)
    if zero and not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first; gloo serves as well
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run / "tensorboard"))
    trainer = StrictTrainer(
        built.model,
        arguments(setup.recipe, run, laid.record.accumulation, zero, setup.processes),
        data_collator=laid.collator,
        train_dataset=laid.dataset,
        optimizers=(adamw(built.model, setup.recipe), None),
        callbacks=[built.guard, laid.skipped],
    )
    trainer.metrics = run / "metrics.jsonl"
    return trainer


def run_trainer(trainer, model, run: Path, first: bool, zero: int) -> None:
    """The loop, from the newest whole checkpoint on. Afterwards the first process holds the whole model."""
    from transformers import TrainerState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from .trainer import check_of_this_run, newest_whole

    with one_at_a_time(run):
        checkpoint = newest_whole(run / "checkpoints")
        check_of_this_run(run, checkpoint)
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


def write_export(setup: Setup, built: Built, laid: LaidOut, trainer, groups: dict[str, dict[str, int]]) -> None:
    """The proof, then the export, written aside and renamed. `groups`: how many parameters learned."""
    from llava_plugin import mllm

    from .features import fold_standardisation

    recipe, record, model = setup.recipe, laid.record, built.model
    export = Path(recipe.out) / "export"
    model.to(built.dtype)
    if recipe.lora_rank:
        model.model.language_model = model.model.language_model.merge_and_unload()
    proof = built.guard.check()
    if recipe.standardise:
        fold_standardisation(model.model.multi_modal_projector.linear_1, laid.mean, laid.std)
    earlier = stages_of(built.before)
    provenance = {
        "stage": recipe.stage,
        "llm": record.llm,
        "frozen": frozen_throughout(recipe, earlier),
        "note": estimate.no_anyres(recipe),
        **proof,
        "earlier": earlier,
        **{name: record[name] for name in ("encoder_config", "preprocessing", "llm_config", "tokenizer_digest", "chat_template")},
        "llm_digest_before": (built.before and built.before.llm_digest_before) or record.llm_digest,
        "data_digest": record.data_digest,
        "parameters": groups,
        "steps": trainer.state.global_step,
        "processes": record.processes,
        "accumulation": record.accumulation,
        "zero": record.zero,
        "protocol": protocol(recipe, record.processes, record.accumulation, record.dtype == "bfloat16"),
        "seed": recipe.seed,
        "recipe": asdict(recipe),
        "versions": record.versions,
        "git_commit": record.git_commit,
    }
    with written_aside(export) as part:
        mllm.save(model, built.tokenizer, part, provenance)
        built.guard.check_export(part)
    losses = [f"{entry['loss']:.3f} at step {entry['step']}" for entry in trainer.state.log_history if "loss" in entry]
    print(f"wrote {export}: loss {losses[0]}, {losses[-1]}")


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
            kept = next((read_json(file, "give another --out", {"origin": dict}, LONG) for file in (there, began) if file.is_file()), None)
            if kept:
                check_origin(data, kept["origin"], origin_of(recipe.data, recipe.images, recipe.seed))
        elif own:
            prepare(recipe.data, recipe.images, str(data), recipe.max_bad, seed=recipe.seed, accept_mix=recipe.accept_mix)
        if done or not own:
            check_pictures(data)
        if began.is_file() and there.is_file():
            before, now = (read_json(file, "give another --out", {"digest": str}, LONG)["digest"] for file in (began, there))
            if before != now:
                raise ValueError(f"{run} began with data {before[:8]}, and {data} holds {now[:8]}: bring those back, or give another --out")
    except ValueError as error:
        if not done:
            raise
        raise ValueError(f"{export} was trained on other data than there are now: {error}") from error
    return data


def refusals(setup: Setup) -> list[str]:
    """Why a run that was begun would not go on, as far as that can be told without loading weights; nothing is written."""
    recipe, run = setup.recipe, Path(setup.recipe.out)
    if not recipe.out or not (run / "recipe.json").is_file() or not Path(recipe.data).exists():
        return []
    try:
        claim_run_folder(recipe)
        if any((folder / "ledger.json").is_file() for folder in (run / "data", Path(recipe.data))):
            prepared_data(recipe, run, True)
        if began := recorded(run):
            setup.check_sources(began)
    except ValueError as error:
        return [str(error)]
    return []


def token_ledger(lengths, left_out: Ledger, recipe: Recipe) -> dict:
    """What tokenising did to the conversations, for the run's ledger. Raises ValueError where more than --max-bad of them were left out."""
    if (n := int((lengths[:, 2] < 0).sum())) > recipe.max_bad * len(lengths):
        raise ValueError(
            f"{n} of {len(lengths)} conversations cannot be learned from (first: {left_out.names}). "
            f"Mend them, raise --max-length (now {recipe.max_length}), or allow more with --max-bad"
        )
    tokens, supervised, cut = int(lengths[:, 0].sum()), int(lengths[:, 1].sum()), int((lengths[:, 2] > 0).sum())
    share = f"{tokens:,} tokens, {supervised / tokens:.1%} of them supervised; {cut} conversations cut at a turn, {n} left out"
    return {
        "tokens": tokens,
        "supervised": supervised,
        "longest": int(lengths[:, 0].max()),
        "cut": cut,
        "left_out": dict(left_out.skipped),
        "left_out_names": left_out.names,
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
    run.add_argument(
        "--gpus", type=bounded(int), metavar="N", help=f"--dry-run: H100s to plan for (default: 8; of {', '.join(LAPTOP)}: 0, a CPU)"
    )
    run.add_argument("--gpu-memory", type=bounded(float, 1), default=80.0, metavar="GB", help="--dry-run: memory per GPU (default: 80)")
    run.add_argument(
        "--mfu", type=bounded(float, 0.001, 1), default=0.4, metavar="X", help="--dry-run: share of an H100's FLOP/s in use (default: 0.4)"
    )
    args = parser.parse_args(argv)
    recipe = read_recipe(parser, PRESETS, args)
    with explained(recipe):
        if args.dry_run:
            check_recipe(recipe)
            gpus = 8 * (recipe.preset not in LAPTOP) if args.gpus is None else args.gpus
            setup = resolve(recipe, ranks(gpus or 1))
            setup = replace(setup, lacks=(*setup.lacks, *refusals(setup)))
            estimate.dry_run(setup, gpus > 0, args.gpu_memory, args.mfu)
            return 0
        if not recipe.out:
            raise ValueError(f"--out is needed, for example --out runs/{recipe.preset}")
        with locked(Path(recipe.out)) if os.environ.get("RANK", "0") == "0" else nullcontext():
            train(recipe)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
