"""What a step of a recipe costs at its true sizes, without any file: random weights, synthetic conversations, the real trainer.

    python -m benchmarks.finetuning sft-qwen1.5b-frozen --global-batch 32          # one GPU: a minute
    python -m benchmarks.finetuning sft-qwen7b-frozen --lora-rank 128 --global-batch 32

The model, its precision and kernels, the packing, the collator and the training loop are those of train_mllm.train; only tokenising
(the loader's work) and what a run writes are left out. Lengths are log-normal, median 700, 95th percentile 2,500, cut at 4,096 (the
mix of benchmarks.packing), none shorter than its one picture and TEXT tokens; the second half of a conversation's text is supervised.

FLOP are those of the model, as MFU counts them: 2 a weight and token forward, 2 more where a gradient passes, 2 more where the
weight learns; the head on supervised tokens alone; the pictures through the encoder; attention over each conversation, causal in the
language model. What gradient checkpointing computes twice is not counted. The first step warms up and is left out.
"""

import io
import itertools
import platform
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.packing import mix
from genlip.common.command import command, new_parser
from genlip.common.flags import add_recipe, read_recipe
from genlip.common.hardware import mfu
from llava_plugin import encoders
from train_mllm import estimate
from train_mllm.recipes import PRESETS, Recipe
from train_mllm.setup import LLMS, Setup, resolve

TEXT = 32  # tokens of text beside the picture in the shortest conversation
BEFORE = 8  # of them in front of the picture
SIDES = 640, 480  # pixels of a picture before it is resized


@dataclass
class StepCounts:
    """What went through the model and what memory it took, micro-step by micro-step."""

    lengths: list = field(default_factory=list)  # of the conversations of each micro-step
    supervised: list = field(default_factory=list)  # tokens of each micro-step
    pictures: list = field(default_factory=list)
    gradients: int = 0  # peak bytes of forward and backward passes
    update: int = 0  # peak bytes of the optimizer's step


# --- the parts --------------------------------------------------------------------------------------------------------------


def random_mllm(setup: Setup, dtype, device):
    """The recipe's MLLM with random weights, made on the device. Raises ValueError where the sizes of a part are not known here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower

    recipe = setup.recipe
    torch.manual_seed(recipe.seed)
    with torch.device(device):
        tower = VisionTower.of_random_weights(recipe.encoder, recipe.resolution or None, dtype)
    if recipe.llm in LLMS:
        shape = LLMS[recipe.llm]
        config = Qwen2Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=shape.tied,
        )
    else:
        config = AutoConfig.from_pretrained(encoders.find_llm(recipe.llm))
    with torch.device(device):
        language = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return mllm.assemble(tower, language, config.vocab_size - 1, dtype, recipe.seed, recipe.projector)


def conversations(n: int, scale: float, visual: int, image_token_id: int, seed: int) -> list:
    """n items as train_mllm.data.Conversations gives them, but for the picture, which is one JPEG for all: see `Drawn`."""
    import numpy as np

    from train_mllm.data import IGNORED, TokenizedConversation

    random, out = np.random.default_rng(seed), []
    for length in np.maximum(mix(n, scale, seed), visual + TEXT).tolist():
        text = random.integers(0, image_token_id, length - visual).tolist()
        ids = [*text[:BEFORE], *[image_token_id] * visual, *text[BEFORE:]]
        given = length - len(text) // 2
        out.append(TokenizedConversation(ids, [IGNORED] * given + ids[given:], list(range(length)), [0] * length, False))
    return out


class SyntheticConversations:
    """Index -> one synthetic conversation; its picture is decoded anew each time, as a run's are."""

    def __init__(self, rows: list):
        from PIL import Image

        stream = io.BytesIO()
        Image.effect_noise(SIDES, 60).convert("RGB").save(stream, "JPEG")
        self.rows, self.picture = rows, {"bytes": stream.getvalue()}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        from train_mllm.data import open_picture

        return {"id": str(i), "row": self.rows[i], "pictures": [open_picture(self.picture)]}


# --- counting ---------------------------------------------------------------------------------------------------------------


def lengths_of(batch: dict) -> list[int]:
    """Tokens of each conversation of a packed or padded batch."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(dim=1).tolist()
    positions = batch["position_ids"][0]
    starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
    return [end - start for start, end in itertools.pairwise(starts)]


def weights(module, passes: bool) -> float:
    """FLOP per token of a module's linear maps: forward, the gradient of the input where one passes, and of the weight where it learns."""
    from torch import nn

    linear = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return sum(2 * m.weight.numel() * (1 + passes + m.weight.requires_grad) for m in linear)


def flops(model, recipe: Recipe, lengths: list[int], supervised: int, pictures: int) -> float:
    """FLOP of the conversations of `lengths` with so many supervised tokens and pictures in all."""
    tower, language = model.model.vision_tower, model.model.language_model
    spec, own, text = tower.spec, tower.encoder.config, model.config.text_config
    times = 3 if recipe.train_encoder else 1  # forward, and twice as much backward
    heads = text.num_attention_heads * getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
    patches = pictures * spec.tokens
    total = weights(tower, recipe.train_encoder) * patches + 4 * times * own.num_hidden_layers * own.hidden_size * spec.tokens * patches
    total += weights(model.model.multi_modal_projector, recipe.train_encoder) * pictures * model.config.image_seq_length
    total += weights(language, True) * sum(lengths) + 6 * text.num_hidden_layers * heads * sum(n * n for n in lengths)
    return total + weights(model.lm_head, True) * supervised


# --- the run ----------------------------------------------------------------------------------------------------------------


def check_steps(recipe: Recipe, steps: int) -> None:
    """Raises ValueError for what is not measured here."""
    from train_mllm.train import check_recipe as goes_together

    goes_together(recipe)
    if steps < 2:
        raise ValueError("--steps must be at least 2: the first warms up")
    if recipe.backend != "native" or recipe.zero > 0:
        raise ValueError("one process of the native backend is measured: leave --backend and --zero out")
    if recipe.cache_features:
        raise ValueError("the encoder is measured with the rest: give --no-cache-features --no-standardise")


def time_recipe(recipe: Recipe, steps: int, scale: float) -> list[str]:
    """Some steps of the recipe, counted; returns the lines of a Markdown table. Raises ValueError for what cannot be measured."""
    check_steps(recipe, steps)
    import numpy as np
    import torch
    from transformers import TrainerCallback
    from transformers.utils import logging

    from llava_plugin.tower import digest
    from train_mllm.freeze_check import FreezeCheck
    from train_mllm.model import adamw, count_parameters, freeze_parts, prepare_for_training
    from train_mllm.packing import Collator, in_batches
    from train_mllm.trainer import StrictTrainer, arguments

    logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if recipe.bf16 and on_gpu else torch.float32
    recipe = replace(recipe, max_steps=steps, report="none")
    setup = resolve(recipe, processes=1)
    model = random_mllm(setup, dtype, device)
    tower = model.model.vision_tower
    freeze_parts(model, recipe)
    guard = FreezeCheck(tower, recipe.train_encoder, digest(tower))
    n = max(steps * (recipe.global_batch or recipe.batch * recipe.accumulation), recipe.batch)
    drawn = conversations(n, scale, model.config.image_seq_length, model.config.image_token_id, recipe.seed)
    lengths = np.array([[len(row.ids)] for row in drawn])
    dataset, accumulation = in_batches(SyntheticConversations(drawn), lengths, np.arange(n), setup)
    prepare_for_training(model, setup, dtype, False, on_gpu)
    learns = sum(group["trained"] for group in count_parameters(model).values())

    seen, kept = StepCounts(), []

    def look(module, args, batch):  # without waiting for the device: read when all is done
        kept.append({k: batch[k] for k in ("position_ids", "attention_mask", "labels") if k in batch} | {"n": len(batch["pixel_values"])})

    class Memory(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            seen.gradients = max(seen.gradients, peak_bytes())

        def on_optimizer_step(self, *args, **kwargs):
            seen.update = max(seen.update, peak_bytes())

    def peak_bytes() -> int:
        if not on_gpu:
            return 0
        bytes_ = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return bytes_

    model.register_forward_pre_hook(look, with_kwargs=True)
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(recipe, Path(folder), accumulation, 0, 1)
        args.set_save("no")
        flash = on_gpu and setup.kernels.flash
        collator = Collator(tower, model.config, padded=recipe.batching == "padded", flash=flash)
        optimizers = (adamw(model, recipe), None)
        callbacks = [guard, Memory()]
        trainer = StrictTrainer(model, args, data_collator=collator, train_dataset=dataset, optimizers=optimizers, callbacks=callbacks)
        peak_bytes()
        trainer.train()
    guard.check()

    for batch in kept:
        seen.lengths.append(lengths_of(batch))
        seen.supervised.append(int((batch["labels"] != -100).sum()))
        seen.pictures.append(batch["n"])
    rates = [record["tokens_per_second"] for record in trainer.state.log_history if "loss" in record]
    return table(setup, model, seen, rates, accumulation, learns, on_gpu)


def table(setup: Setup, model, seen: StepCounts, rates: list[float], accumulation: int, learns: int, on_gpu: bool) -> list[str]:
    """The Markdown table; what could not be measured or is not known stands as "-"."""
    import torch

    recipe = setup.recipe
    steps = [slice(i, i + accumulation) for i in range(accumulation, len(seen.lengths), accumulation)]  # but the first
    tokens = [sum(map(sum, seen.lengths[s])) for s in steps]
    seconds = sum(t / rate for t, rate in zip(tokens, rates[1:]))
    counted = list(itertools.chain(*seen.lengths[accumulation:]))
    work = flops(model, recipe, counted, sum(seen.supervised[accumulation:]), sum(seen.pictures[accumulation:]))
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads of {platform.machine()}"

    every = sorted(n for some in seen.lengths for n in some)
    largest, supervised = max((sum(lengths), supervised) for lengths, supervised in zip(seen.lengths, seen.supervised))
    planned = estimate.memory(setup, 0)
    passes = update = measured = None
    if peak_planned := estimate.peak_bytes(setup, 0, largest, supervised):
        passes, update = (value / 1e9 for value in peak_planned)
    if on_gpu:
        measured = max(seen.gradients, seen.update) / 1e9

    def gb(value) -> str:
        return "-" if value is None else f"{value:.1f} GB"

    def ratio(value) -> str:
        return "-" if None in (value, measured) else f"{measured / value:.2f}"

    kernels = setup.computed_with(on_gpu)
    padding = "padded" if recipe.batching == "padded" else "packed"
    return [
        f"{recipe.preset}: {recipe.encoder} ({'trained' if recipe.train_encoder else 'frozen'}) and {recipe.llm}, random weights, "
        f"{learns:,} parameters learn; {where}, torch {torch.__version__}, {padding}, {kernels}; gradient checkpointing "
        f"{'on' if recipe.gradient_checkpointing else 'off'}.",
        f"{len(every)} conversations of {every[0]:,} to {every[-1]:,} tokens (median {every[len(every) // 2]:,}, 95 % up to "
        f"{every[int(0.95 * (len(every) - 1))]:,}), {model.config.image_seq_length} of them visual; {len(steps)} steps of {accumulation} "
        f"micro-steps after one that warmed up.",
        "",
        "| | measured | planned | measured / planned |",
        "|---|---:|---:|---:|",
        f"| tokens/s | {sum(tokens) / seconds:,.0f} | | |",
        f"| seconds per step | {seconds / len(steps):.2f} | | |",
        f"| FLOP per token | {work / sum(tokens):.3g} | | |",
        f"| TFLOP/s | {work / seconds / 1e12:.3g} | | |",
        f"| MFU | {mfu(work / seconds, where) if on_gpu else '-'} | | |",
        f"| peak memory, as --dry-run plans it ({estimate.step_tokens(setup):,} tokens per micro-step) | {gb(measured)} | {gb(planned)} "
        f"| {ratio(planned)} |",
        f"| in forward and backward passes, the largest of {largest:,} tokens, {supervised:,} of them supervised "
        f"| {gb(seen.gradients / 1e9 if on_gpu else None)} | {gb(passes)} | |",
        f"| in the optimizer's step | {gb(seen.update / 1e9 if on_gpu else None)} | {gb(update)} | |",
        f"| reserved by the allocator | {gb(torch.cuda.max_memory_reserved() / 1e9 if on_gpu else None)} | | |",
    ]


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m benchmarks.finetuning",
        description="Tokens/s, MFU and peak memory of some real training steps on random weights of the true sizes, beside the plan. "
        "Data and folders are not read.",
        epilog="examples:\n"
        "  python -m benchmarks.finetuning sft-qwen1.5b-frozen --global-batch 32\n"
        "  python -m benchmarks.finetuning sft-qwen7b-frozen --lora-rank 128 --global-batch 32",
    )
    run = add_recipe(parser, PRESETS, argv)["run"]
    run.add_argument("--steps", type=int, default=4, metavar="N", help="optimizer steps, the first of which warms up (default 4)")
    run.add_argument("--scale", type=float, default=1.0, metavar="X", help="divides the lengths of the mix (default 1)")
    args = parser.parse_args(argv)
    recipe = read_recipe(parser, PRESETS, args)
    from train_mllm.train import explained

    with explained(recipe):
        print("\n".join(time_recipe(recipe, args.steps, args.scale)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
