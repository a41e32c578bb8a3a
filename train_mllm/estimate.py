"""What a fine-tuning run would take, told before the first step and without any file: `python -m train_mllm.train RECIPE --dry-run`.
All of it follows from the run's Setup, which training and throughput use too.

Steps, tokens, time, parameters that learn, memory per GPU, the ZeRO stage and why, disk, and what is missing with the command that
brings it.
Torch-free and a fifth of a second, but for an encoder in a folder, whose parameters are counted on its class.

Memory a GPU is weights + gradients + AdamW's two moments (exact: a test holds it against a real run) + activations with gradient
checkpointing (an estimate: a layer's inputs, one layer at work, and of the supervised tokens, logits and their gradients in fp32).
"""

import math
import shutil
from dataclasses import asdict
from pathlib import Path

from genlip.common import sources
from genlip.common.files import read_json
from genlip.common.hardware import PEAK_BF16
from genlip.common.schema import Provenance, RunRecord, read
from llava_plugin import encoders, llava_next, views

from .recipes import Recipe
from .setup import LlmShape, Setup

NO_ANYRES = "no anyres: not the setting of the paper's unfrozen table"
# LLaVA's pretraining pairs; "3M+" of the paper; LLaVA-NeXT's own data, those of the paper's unfrozen table.
PAPER_ROWS = {"projector": 558_000, "sft": 3_000_000, "anyres": 780_000}
TEXT_TOKENS = {"projector": 30, "sft": 200}  # a conversation, assumed where no data is at hand to look at
DATA = {
    "projector": "python -m train_mllm.fetch llava-pretrain-558k --data-root data",
    "sft": "python -m train_mllm.fetch onevision-single-image --data-root data",
    "anyres": "python -m train_mllm.fetch llava-next-780k --data-root data",
}
SPARE = 0.9  # of a GPU's memory; the rest is the framework's
SHORT = 100  # steps of a run that logs every one of them
LOOKED_AT = 64 << 20  # bytes of JSON that are counted; of more only the beginning is


def state_bytes(trained: int, frozen: int, stage: int, gpus: int, half: bool) -> float:
    """Bytes a GPU of weights, gradients and AdamW's moments. `half`: frozen weights, and ZeRO's working copy, are bf16.

    Without ZeRO what learns is fp32: 4 + 4 + 8 bytes a number. ZeRO keeps a bf16 copy and shares fp32 weights, moments and gradients
    out: all of them in stage 2, the copy and the frozen weights too in stage 3.
    """
    still = frozen * (2 if half else 4)
    if stage == 0:
        return still + trained * 16
    copy = trained * (2 if half else 4)
    shared = trained * (12 + 4) / gpus
    return still + copy + shared if stage == 2 else (still + copy) / gpus + shared


def activation_bytes(shape: LlmShape, tokens: int, supervised: int, half: bool) -> float:
    """Bytes of a micro-step over `tokens` tokens with gradient checkpointing: each layer's input, and the larger of one layer at work and
    the logits. Those are of the `supervised` tokens alone: in the backward pass log-probabilities, their gradient and that of the logits
    stand side by side in fp32. `half`: the layers' inputs are bf16 (see half_stream); else fp32, and a layer holds its products in both.
    """
    width, at_work = (2, 16 * shape.hidden + 8 * shape.ffn) if half else (4, 44 * shape.hidden + 14 * shape.ffn)
    return tokens * shape.layers * shape.hidden * width + max(tokens * at_work, supervised * shape.vocab_size * 12)


def half_stream(recipe: Recipe, stage: int) -> bool:
    """Whether bf16 runs from layer to layer: under ZeRO, and where the language model's own weights are frozen."""
    return recipe.bf16 and bool(stage or recipe.stage == "projector" or recipe.lora_rank)


def peak_bytes(setup: Setup, stage: int, tokens: int, supervised: int) -> tuple[float, float] | None:
    """(in the passes, in the optimizer's step) bytes per GPU, the first the larger; None where the models are not known well enough.

    Without ZeRO autocast keeps a bf16 copy of what learns through the passes; torch's fused AdamW needs nothing beside its state.
    On one H100 `python -m benchmarks.finetuning sft-qwen1.5b-frozen` measured 40.5 and 27.5 GB where this says 41.8 and 27.2.
    """
    counted, bf16 = setup.parts, setup.recipe.bf16
    if counted is None:
        return None
    state = state_bytes(counted.trained, counted.total - counted.trained, stage, setup.processes, bf16)
    copy = 2 * counted.trained if bf16 and not stage else 0
    passes = state + copy + activation_bytes(setup.shape, tokens, supervised, half_stream(setup.recipe, stage))
    return passes, state


def step_tokens(setup: Setup) -> int:
    """Tokens of a micro-step: the budget, or as many average conversations as the batch has."""
    recipe = setup.recipe
    return recipe.batch_tokens if recipe.batching == "tokens" else recipe.batch * (setup.visual_tokens + TEXT_TOKENS[recipe.stage])


def learned_tokens(setup: Setup, tokens: int) -> int:
    """Of `tokens` of a micro-step, those whose logits are computed: at most the text; padded rows compute all."""
    text = TEXT_TOKENS[setup.recipe.stage]
    return tokens if setup.recipe.batching == "padded" else math.ceil(tokens * text / (setup.visual_tokens + text))


def memory(setup: Setup, stage: int) -> float | None:
    """GB per GPU; None where the models are not known well enough."""
    tokens = step_tokens(setup)
    peak = peak_bytes(setup, stage, tokens, learned_tokens(setup, tokens))
    return peak and peak[0] / 1e9


def zero_stage(setup: Setup, gpu_memory: float) -> tuple[int, str]:
    """(ZeRO stage, why): the one asked for, or the least whose prediction fits into `gpu_memory` GB."""
    if setup.recipe.zero >= 0:
        return setup.recipe.zero, "asked for by --zero"
    if setup.processes == 1:
        return 0, "one GPU has nobody to share with"
    needed = {stage: memory(setup, stage) for stage in (0, 2, 3)}
    if needed[0] is None:
        return 0, "the models are not known well enough to predict memory"
    for stage, gb in needed.items():
        if gb <= SPARE * gpu_memory:
            before = [f"stage {s} would take {needed[s]:.0f} GB" for s in needed if s < stage]
            return stage, f"{gb:.0f} of {gpu_memory:.0f} GB per GPU" + (
                f"; {', '.join(before)}".replace("stage 0", "no ZeRO") if before else ""
            )
    return 3, f"even so {needed[3]:.0f} GB per GPU are needed where there are {gpu_memory:.0f}: use more GPUs or --lora-rank 128"


def zero_here(setup: Setup, began: RunRecord | None) -> int:
    """The ZeRO stage that a run takes on this machine: the one it began with. ValueError where that run was on other processes, whose
    parts DeepSpeed does not join."""
    import torch

    if began is not None:
        if began.zero and began.processes != setup.processes:
            raise ValueError(
                f"{setup.recipe.out} began on {began.processes} processes with ZeRO stage {began.zero}, whose checkpoints no other number "
                f"reads: go on with PROCESSES={began.processes} (torchrun --nproc-per-node), or give another --out"
            )
        return began.zero
    if not torch.cuda.is_available():
        return max(setup.recipe.zero, 0)
    return zero_stage(setup, torch.cuda.get_device_properties(0).total_memory / 1e9)[0]


def log_every(recipe: Recipe) -> int:
    """Steps from one log to the next."""
    return 1 if 0 < recipe.max_steps <= SHORT else 10


def setting(recipe: Recipe) -> str:
    """The paper's, by which data are assumed where none are at hand."""
    return "anyres" if recipe.stage == "sft" and recipe.view.startswith("anyres") else recipe.stage


def rows(recipe: Recipe) -> tuple[int, str]:
    """(conversations, where the number is from)."""
    path, paper = Path(recipe.data), PAPER_ROWS[setting(recipe)]
    if recipe.data and (path / "ledger.json").is_file():
        return read_json(path / "ledger.json")["used"], "prepared"
    if recipe.data and path.exists():
        files = [f for s in sources.find_sources(path) for f in s.files]
        if not any(f.suffix != ".parquet" and f.stat().st_size > LOOKED_AT for f in files):
            return sum(p.taken for s in sources.find_sources(path) for p in sources.pieces(s, recipe.seed)[0]), "counted"
        said = sources.find_mix(path).obtainable
        return (said, "the mix says so") if said else (paper, "assumed: the JSON is too large to count here")
    return paper, "assumed: no data at hand; 558K pairs, 3M+ conversations in the paper, 780K of LLaVA-NeXT by anyres"


def conversation_flops(setup: Setup) -> float | None:
    """FLOP of one average conversation, two a parameter and token; None where the models are not known well enough.

    The encoder goes forward, and backward where it learns; the language model hands gradients back to the projector even where it
    is frozen. Attention's own products (a few percent at these lengths) and what checkpointing computes twice are not counted.
    """
    recipe, counted, shape, visual = setup.recipe, setup.parts, setup.shape, setup.visual_tokens
    if counted is None:
        return None
    tokens = visual + TEXT_TOKENS[recipe.stage]
    passes = 2 if recipe.stage == "projector" or recipe.lora_rank else 3
    looked_up = 0 if shape.tied else shape.vocab_size * shape.hidden
    language = 2 * passes * (counted.llm - looked_up) * tokens
    seen = encoder_tokens(setup.spec)
    return language + 2 * (3 if recipe.train_encoder else 1) * counted.encoder * seen + 6 * counted.projector * visual


def encoder_tokens(spec: encoders.EncoderSpec) -> int:
    """That the encoder goes through for a picture, at most."""
    return views.parse(spec.view).max_tokens or views.most_tiles(spec) * spec.tokens


def no_anyres(recipe: Recipe) -> str | None:
    """What sets an unfrozen run apart from the paper's unfrozen table."""
    return NO_ANYRES if recipe.train_encoder and not recipe.view.startswith("anyres") else None


def disk_bytes(setup: Setup) -> float:
    """Two checkpoints (what learns and its moments, fp32) and the export; 0 where the models are not known."""
    counted = setup.parts
    return 0 if counted is None else 2 * 12 * counted.trained + counted.total * (2 if setup.recipe.bf16 else 4)


def lacks_disk(setup: Setup) -> str | None:
    folder = Path(setup.recipe.out).absolute()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
    if free >= disk_bytes(setup):
        return None
    needed = disk_bytes(setup) / 1e9
    return f"{setup.recipe.out} has room for {free / 1e9:.0f} GB; checkpoints and export take {needed:.0f}: give --out on a larger disk"


def missing(setup: Setup) -> list[str]:
    """What stands between this machine and the run, each with the command that brings it."""
    recipe, lacks = setup.recipe, []
    if recipe.backend == "llava_next":
        try:
            llava_next.find_llava()
        except ValueError as e:
            lacks.append(str(e))
    lacks += setup.lacks
    if not recipe.data or not Path(recipe.data).exists():
        bring = DATA[setting(recipe)]
        lacks.append(f"no conversations{f' at {recipe.data!r}' if recipe.data else ''}: give --data yours, or bring the paper's: {bring}")
    if recipe.images and not Path(recipe.images).is_dir():
        lacks.append(f"no folder of pictures at {recipe.images!r}: give --images the folder that the conversations' paths start from")
    if recipe.init and not (Path(recipe.init) / "provenance.json").is_file():
        lacks.append(f"no projector export in {recipe.init}. Make it: python -m train_mllm.train projector --encoder {recipe.encoder} ...")
    elif recipe.init and (view := read(Provenance, Path(recipe.init) / "provenance.json", "export that stage again").view) != recipe.view:
        lacks.append(f"{recipe.init} was trained on pictures of view {view}: give --view {view}, or train the stage before anew")
    if recipe.out and (short := lacks_disk(setup)):
        lacks.append(short)
    return lacks


def another_size(setup: Setup) -> str | None:
    """What a user should hear where the stage before saw pictures of another size: its projector works token by token, so it goes on."""
    init, spec = setup.recipe.init, setup.spec
    if not init or spec is None or not (Path(init) / "provenance.json").is_file():
        return None
    before = read(Provenance, Path(init) / "provenance.json", "export that stage again")
    native = before.native_tokens or views.parse(spec.view).max_tokens
    if native or not (before.resolution and before.tokens) or (before.resolution, before.tokens) == (spec.resolution, spec.tokens):
        return None
    then, now = encoders.in_words(before.resolution, before.tokens), encoders.in_words(spec.resolution, spec.tokens)
    return f"{init} was trained at {then}, this stage is at {now}"


def dry_run(setup: Setup, on_gpu: bool, gpu_memory: float, mfu: float = 0.4) -> None:
    """Print the recipe, what it was resolved to and would take, and what stands in its way."""
    recipe, gpus, spec, counted = setup.recipe, setup.processes, setup.spec, setup.parts

    def say(name: str, text) -> None:
        print(f"{name:24}{text}")

    for name, value in asdict(recipe).items():
        say(name, value)
    print()
    device, units = ("GPU", "GPUs" if gpus > 1 else "GPU") if on_gpu else ("process", "process")
    how = "trained" if recipe.train_encoder else "frozen"
    if spec is not None:
        say("encoder from", setup.encoder or ("its seed" if spec.seed is not None else "nowhere yet: see below"))
        say("pictures", spec.size_in_words)
        say("features", f"of width {spec.width}, {how}")
    if size := another_size(setup):
        say("note", size)
    if note := no_anyres(recipe):
        say("note", note)
    if setup.llm is not None:
        say("language model from", setup.llm)
    if recipe.init and (Path(recipe.init) / "provenance.json").is_file():
        before = read(Provenance, Path(recipe.init) / "provenance.json", "export that stage again")
        encoder = f"{before.encoder} {str(before.encoder_digest)[:8]}"
        say("starts from", f"{before.stage} {before.weights_digest[:8]} of {encoder} and {before.llm}")
    n, origin = rows(recipe)
    visual, text = setup.visual_tokens, TEXT_TOKENS[recipe.stage]
    say("conversations", f"{n:,} ({origin})")
    most = "at most " if spec is not None and views.parse(spec.view).by_size else ""
    say("tokens", f"{most or 'about '}{n * (visual + text):,} an epoch: {most}{visual} visual and an assumed {text} of text a conversation")
    micro = setup.accumulation
    batch = recipe.global_batch or recipe.batch * micro * gpus
    steps = recipe.max_steps or math.ceil(n * recipe.epochs / batch)
    if recipe.batching == "tokens" and not recipe.global_batch:
        steps = recipe.max_steps or math.ceil(n * recipe.epochs * (visual + text) / (recipe.batch_tokens * micro * gpus))
    say(
        "steps",
        f"{steps:,}"
        + ("" if recipe.batching == "tokens" else f" of {batch}: {recipe.batch} per {device} x {gpus} {units} x {micro} accumulated"),
    )
    seen = steps * batch if recipe.batching != "tokens" or recipe.global_batch else n * recipe.epochs
    if flops := conversation_flops(setup):
        peak = PEAK_BF16["H100"]
        hours = f"{seen * flops / (gpus * mfu * peak) / 3600:,.1f} hours on {gpus} {units} at {mfu:.0%} of {peak / 1e12:,.0f} TFLOP/s"
        say("time", f"{hours if on_gpu else 'not planned on a CPU; --gpus 1 plans it on an H100'} ({seen * flops:.2g} FLOP)")
    say("kernels on a GPU" if on_gpu else "kernels", setup.computed_with(on_gpu))
    if counted is None:
        say("parameters", "not known: the encoder or the language model is neither in the table nor here")
    else:
        say("parameters", f"encoder {counted.encoder:,} ({how}), projector {counted.projector:,}, language model {counted.llm:,}")
        say("trained / frozen", f"{counted.trained:,} / {counted.total - counted.trained:,}")
        stage, why = zero_stage(setup, gpu_memory)
        shape, micro_tokens = setup.shape, step_tokens(setup)
        half = half_stream(recipe, stage)
        here = activation_bytes(shape, micro_tokens, learned_tokens(setup, micro_tokens), half) / 1e9
        longest = activation_bytes(shape, recipe.max_length, max(0, recipe.max_length - visual), half) / 1e9  # all of its text learned
        say(
            f"memory per {device}",
            f"{memory(setup, stage):.1f} GB; activations of {micro_tokens:,} tokens have {here:.1f}",
        )
        say("", f"a conversation of --max-length {recipe.max_length:,} tokens alone has {longest:.1f} GB of activations")
        if on_gpu or stage:
            say("ZeRO stage", f"{stage or 'none'}: {why}")
        say("disk", f"{disk_bytes(setup) / 1e9:.1f} GB for two checkpoints and the export")
    if spec is not None and not recipe.train_encoder:
        say(
            "feature cache",
            f"{most}{n * encoder_tokens(spec) * spec.width * 4 / 1e9:.1f} GB with --cache-features, one picture a conversation",
        )
    lacks = missing(setup)
    print("missing:" if lacks else "nothing is missing")
    for line in lacks:
        print(f"  - {line}")
