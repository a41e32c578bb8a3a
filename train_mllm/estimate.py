"""What a fine-tuning run would take, told before the first step and without any file: `python -m train_mllm.train RECIPE --dry-run`.

Steps, tokens, time, parameters that learn, memory per GPU, the ZeRO stage and why, disk, and what is missing with the command that
brings it.
Torch-free; a fifth of a second. Shapes of the paper's language models are known here, others are read from their folder.

Memory a GPU is weights + gradients + AdamW's two moments (exact: a test holds it against a real run) + activations with gradient
checkpointing (an estimate: a layer's inputs, one layer at work, and of the supervised tokens, logits and their gradients in fp32).
"""

import json
import math
import os
import shutil
import struct
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from genlip.common.files import read_json
from genlip.common.hardware import PEAK_BF16
from genlip.common.schema import Provenance, read
from llava_plugin import encoders, llava_next
from llava_plugin.projectors import PROJECTORS

from . import sources
from .recipes import Recipe, seen_as

NO_ANYRES = "no anyres: not the setting of the paper's unfrozen table"
PAPER_ROWS = {"projector": 558_000, "sft": 3_000_000}  # LLaVA's pretraining pairs; "3M+" of the paper
TEXT_TOKENS = {"projector": 30, "sft": 200}  # a conversation, assumed where no data is at hand to look at
DATA = {
    "projector": "hf download liuhaotian/LLaVA-Pretrain --repo-type dataset --local-dir data/llava-pretrain (unzip images.zip there)",
    "sft": "hf download lmms-lab/LLaVA-OneVision-Data --repo-type dataset --local-dir data/llava-onevision",
}
SPARE = 0.9  # of a GPU's memory; the rest is the framework's
SHORT = 100  # steps of a run that logs every one of them
LOOKED_AT = 64 << 20  # bytes of JSON that are counted; of more only the beginning is


@dataclass(frozen=True)
class LlmShape:
    """A language model as far as memory depends on it; `parameters` with tied embeddings counted once. The rest only of the table's."""

    layers: int
    hidden: int
    ffn: int
    vocab_size: int
    parameters: int
    heads: int = 0
    kv_heads: int = 0
    tied: bool = False


def _qwen2(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab_size: int, tied: bool) -> LlmShape:
    """Counted from the shape: biases on q, k and v only, SwiGLU, two norms a layer and one at the end."""
    kv = kv_heads * hidden // heads
    attention = hidden * (2 * hidden + 2 * kv) + hidden + 2 * kv
    total = layers * (attention + 3 * hidden * ffn + 2 * hidden) + hidden + vocab_size * hidden * (1 if tied else 2)
    return LlmShape(layers, hidden, ffn, vocab_size, total, heads, kv_heads, tied)


LLMS = {
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(28, 1536, 8960, 12, 2, 151_936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(28, 3584, 18_944, 28, 4, 152_064, tied=False),
}


def llm_shape(name: str) -> LlmShape | None:
    """From the table, or from a folder's config.json and the headers of its weights; None where neither says."""
    if name in LLMS:
        return LLMS[name]
    try:
        folder = Path(encoders.find_llm(name))
        config = read_json(folder / "config.json")
        sizes = [config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")]
    except (ValueError, OSError, KeyError):
        return None
    if not any(folder.glob("*.safetensors")):
        return None
    return LlmShape(*sizes, stored_parameters(folder), tied=config.get("tie_word_embeddings", False))


def stored_parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors files, read from their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


@dataclass(frozen=True)
class Parts:
    """Parameters of the three parts, and those that learn."""

    encoder: int
    projector: int
    llm: int
    trained: int

    @property
    def total(self) -> int:
        return self.encoder + self.projector + self.llm


def parts(recipe: Recipe) -> Parts | None:
    """None where the encoder or the language model is not known well enough to count."""
    llm, spec = llm_shape(recipe.llm), _spec(recipe)
    if llm is None or spec is None or spec.parameters is None:
        return None
    wide = llm.hidden
    projector = PROJECTORS[recipe.projector].parameters(spec.width, wide)
    trained = projector + (spec.parameters if recipe.train_encoder else 0)
    if recipe.lora_rank:  # on q, k, v, o and the three maps of the SwiGLU; k and v are narrower where heads share them: an upper bound
        trained += llm.layers * recipe.lora_rank * (4 * 2 * wide + 3 * (wide + llm.ffn))
    elif recipe.stage != "projector":
        trained += llm.parameters
    return Parts(spec.parameters, projector, llm.parameters, trained)


def _spec(recipe: Recipe):
    try:
        return encoders.resolve(recipe.encoder, recipe.resolution or None, seen_as(recipe))
    except ValueError:
        return None  # said with what is missing


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


def peak_bytes(recipe: Recipe, stage: int, gpus: int, tokens: int, supervised: int) -> tuple[float, float] | None:
    """(in the passes, in the optimizer's step) bytes per GPU, the first the larger; None where the models are not known well enough.

    Without ZeRO autocast keeps a bf16 copy of what learns through the passes; torch's fused AdamW needs nothing beside its state.
    On one H100 `python -m benchmarks.finetuning sft-qwen1.5b-frozen` measured 40.5 and 27.5 GB where this says 41.8 and 27.2.
    """
    counted = parts(recipe)
    if counted is None:
        return None
    state = state_bytes(counted.trained, counted.total - counted.trained, stage, gpus, recipe.bf16)
    copy = 2 * counted.trained if recipe.bf16 and not stage else 0
    passes = state + copy + activation_bytes(llm_shape(recipe.llm), tokens, supervised, half_stream(recipe, stage))
    return passes, state


def step_tokens(recipe: Recipe) -> int:
    """Tokens of a micro-step: the budget, or as many average conversations as the batch has."""
    return recipe.batch_tokens if recipe.batching == "tokens" else recipe.batch * (_visual_tokens(recipe) + TEXT_TOKENS[recipe.stage])


def learned_tokens(recipe: Recipe, tokens: int) -> int:
    """Of `tokens` of a micro-step, those whose logits are computed: at most the text; padded rows compute all."""
    text = TEXT_TOKENS[recipe.stage]
    return tokens if recipe.batching == "padded" else math.ceil(tokens * text / (_visual_tokens(recipe) + text))


def _visual_tokens(recipe: Recipe) -> int:
    spec = _spec(recipe)
    return 0 if spec is None else spec.tokens // PROJECTORS[recipe.projector].joined


def memory(recipe: Recipe, stage: int, gpus: int) -> float | None:
    """GB per GPU; None where the models are not known well enough."""
    tokens = step_tokens(recipe)
    peak = peak_bytes(recipe, stage, gpus, tokens, learned_tokens(recipe, tokens))
    return peak and peak[0] / 1e9


def zero_stage(recipe: Recipe, gpus: int, gpu_memory: float) -> tuple[int, str]:
    """(ZeRO stage, why): the one asked for, or the least whose prediction fits into `gpu_memory` GB."""
    if recipe.zero >= 0:
        return recipe.zero, "asked for by --zero"
    if gpus == 1:
        return 0, "one GPU has nobody to share with"
    needed = {stage: memory(recipe, stage, gpus) for stage in (0, 2, 3)}
    if needed[0] is None:
        return 0, "the models are not known well enough to predict memory"
    for stage, gb in needed.items():
        if gb <= SPARE * gpu_memory:
            before = [f"stage {s} would take {needed[s]:.0f} GB" for s in needed if s < stage]
            return stage, f"{gb:.0f} of {gpu_memory:.0f} GB per GPU" + (
                f"; {', '.join(before)}".replace("stage 0", "no ZeRO") if before else ""
            )
    return 3, f"even so {needed[3]:.0f} GB per GPU are needed where there are {gpu_memory:.0f}: use more GPUs or --lora-rank 128"


def zero_here(recipe: Recipe, processes: int) -> int:
    """The ZeRO stage that a run takes on this machine."""
    import torch

    if not torch.cuda.is_available():
        return max(recipe.zero, 0)
    return zero_stage(recipe, processes, torch.cuda.get_device_properties(0).total_memory / 1e9)[0]


def accumulation(recipe: Recipe, processes: int) -> int:
    """Micro-steps per step. Raises ValueError where --global-batch does not come out even."""
    if not recipe.global_batch or recipe.batching == "tokens":
        return recipe.accumulation
    steps, rest = divmod(recipe.global_batch, recipe.batch * processes)
    if rest or not steps:
        raise ValueError(
            f"--global-batch {recipe.global_batch} is no multiple of --batch {recipe.batch} x {processes} processes: change --batch"
        )
    return steps


def log_every(recipe: Recipe) -> int:
    """Steps from one log to the next."""
    return 1 if 0 < recipe.max_steps <= SHORT else 10


class Kernels(NamedTuple):
    words: str
    flash: bool  # FlashAttention of packed rows
    liger: bool


def kernels(recipe: Recipe) -> Kernels:
    """What a GPU will compute with; Liger where it can be imported."""
    flash = recipe.batching != "padded" and recipe.bf16  # it knows half precision alone
    liger = find_spec("liger_kernel") is not None
    rows = "padded rows" if recipe.batching == "padded" else "rows of like length"
    words = f"attention by torch ({'FlashAttention, packed' if flash else f'SDPA, {rows}'}), layers by "
    return Kernels(words + ("Liger" if liger else "transformers (liger-kernel is not installed)"), flash, liger)


def computed_with(recipe: Recipe, on_gpu: bool) -> str:
    return kernels(recipe).words if on_gpu else "attention by torch (SDPA), no GPU"


def rows(recipe: Recipe) -> tuple[int, str]:
    """(conversations, where the number is from)."""
    path = Path(recipe.data)
    if recipe.data and (path / "ledger.json").is_file():
        return read_json(path / "ledger.json")["used"], "prepared"
    if recipe.data and path.exists():
        files = [f for s in sources.find_sources(path) for f in s.files]
        if not any(f.suffix != ".parquet" and f.stat().st_size > LOOKED_AT for f in files):
            return sum(p.taken for s in sources.find_sources(path) for p in sources.pieces(s, recipe.seed)[0]), "counted"
        return PAPER_ROWS[recipe.stage], "assumed: the JSON is too large to count here"
    return PAPER_ROWS[recipe.stage], "assumed: no data at hand; 558K pairs, 3M+ conversations in the paper"


def conversation_flops(recipe: Recipe) -> float | None:
    """FLOP of one average conversation, two a parameter and token; None where the models are not known well enough.

    The encoder goes forward, and backward where it learns; the language model hands gradients back to the projector even where it
    is frozen. Attention's own products (a few percent at these lengths) and what checkpointing computes twice are not counted.
    """
    counted, shape = parts(recipe), llm_shape(recipe.llm)
    if counted is None:
        return None
    visual = _visual_tokens(recipe)
    tokens = visual + TEXT_TOKENS[recipe.stage]
    passes = 2 if recipe.stage == "projector" or recipe.lora_rank else 3
    looked_up = 0 if shape.tied else shape.vocab_size * shape.hidden
    language = 2 * passes * (counted.llm - looked_up) * tokens
    return language + 2 * (3 if recipe.train_encoder else 1) * counted.encoder * _spec(recipe).tokens + 6 * counted.projector * visual


def disk_bytes(recipe: Recipe) -> float:
    """Two checkpoints (what learns and its moments, fp32) and the export; 0 where the models are not known."""
    counted = parts(recipe)
    return 0 if counted is None else 2 * 12 * counted.trained + counted.total * (2 if recipe.bf16 else 4)


def lacks_disk(recipe: Recipe) -> str | None:
    folder = Path(recipe.out).absolute()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
    if free >= disk_bytes(recipe):
        return None
    needed = disk_bytes(recipe) / 1e9
    return f"{recipe.out} has room for {free / 1e9:.0f} GB; checkpoints and export take {needed:.0f}: give --out on a larger disk"


def missing(recipe: Recipe) -> list[str]:
    """What stands between this machine and the run, each with the command that brings it."""
    lacks = []
    if recipe.backend == "llava_next":
        try:
            llava_next.find_llava()
        except ValueError as e:
            lacks.append(str(e))
    try:
        encoders.find_weights(encoders.resolve(recipe.encoder, recipe.resolution or None, seen_as(recipe)))
    except ValueError as e:
        lacks.append(str(e))
    try:
        folder = Path(encoders.find_llm(recipe.llm))
        if folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            lacks.append(f"{folder} has no tokenizer: copy the model's tokenizer.json and tokenizer_config.json into it")
    except ValueError as e:
        lacks.append(str(e))
    if not recipe.data or not Path(recipe.data).exists():
        bring = DATA["sft" if recipe.stage == "sft" else "projector"]
        lacks.append(f"no conversations{f' at {recipe.data!r}' if recipe.data else ''}: give --data yours, or bring the paper's: {bring}")
    if recipe.images and not Path(recipe.images).is_dir():
        lacks.append(f"no folder of pictures at {recipe.images!r}: give --images the folder that the conversations' paths start from")
    if recipe.init and not (Path(recipe.init) / "provenance.json").is_file():
        lacks.append(f"no projector export in {recipe.init}. Make it: python -m train_mllm.train projector --encoder {recipe.encoder} ...")
    elif recipe.init and (other := _another_size(recipe)):
        lacks.append(other)
    if recipe.out and (short := lacks_disk(recipe)):
        lacks.append(short)
    return lacks


def _another_size(recipe: Recipe) -> str | None:
    """Where the stage before was trained on pictures of another size or view: one projector serves one grid of tokens."""
    before, spec = read(Provenance, Path(recipe.init) / "provenance.json", "export that stage again"), _spec(recipe)
    if spec is None:
        return None
    if before.view != spec.view:
        return f"{recipe.init} was trained on pictures of view {before.view}: give --view {before.view}, or train the stage before anew"
    if not (before.resolution and before.tokens) or (before.resolution, before.tokens) == (spec.resolution, spec.tokens):
        return None
    then, now = encoders.in_words(before.resolution, before.tokens), encoders.in_words(spec.resolution, spec.tokens)
    return (
        f"{recipe.init} was trained at {then}, this stage is at {now}: give --resolution {before.resolution}, or train the stage before at "
        f"--resolution {spec.resolution}"
    )


def dry_run(recipe: Recipe, gpus: int, gpu_memory: float, mfu: float = 0.4) -> None:
    """Print the recipe, what it would take, and what stands in its way; without GPUs, of one process on a CPU."""

    def say(name: str, text) -> None:
        print(f"{name:24}{text}")

    for name, value in asdict(recipe).items():
        say(name, value)
    print()
    on_gpu, gpus = gpus > 0, int(os.environ.get("WORLD_SIZE", gpus or 1))
    device, units = ("GPU", "GPUs" if gpus > 1 else "GPU") if on_gpu else ("process", "process")
    spec, counted = _spec(recipe), parts(recipe)
    how = "trained" if recipe.train_encoder else "frozen"
    if spec is not None:
        say("pictures", spec.size_in_words)
        say("features", f"of width {spec.width}, {how}")
    if recipe.train_encoder:
        say("note", NO_ANYRES)
    n, origin = rows(recipe)
    visual, text = _visual_tokens(recipe), TEXT_TOKENS[recipe.stage]
    say("conversations", f"{n:,} ({origin})")
    say("tokens", f"about {n * (visual + text):,} an epoch: {visual} visual and an assumed {text} of text a conversation")
    micro = accumulation(recipe, gpus)
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
    if flops := conversation_flops(recipe):
        peak = PEAK_BF16["H100"]
        hours = f"{seen * flops / (gpus * mfu * peak) / 3600:,.1f} hours on {gpus} {units} at {mfu:.0%} of {peak / 1e12:,.0f} TFLOP/s"
        say("time", f"{hours if on_gpu else 'not planned on a CPU; --gpus 1 plans it on an H100'} ({seen * flops:.2g} FLOP)")
    say("kernels on a GPU" if on_gpu else "kernels", computed_with(recipe, on_gpu))
    if counted is None:
        say("parameters", "not known: the encoder or the language model is neither in the table nor here")
    else:
        say("parameters", f"encoder {counted.encoder:,} ({how}), projector {counted.projector:,}, language model {counted.llm:,}")
        say("trained / frozen", f"{counted.trained:,} / {counted.total - counted.trained:,}")
        stage, why = zero_stage(recipe, gpus, gpu_memory)
        shape = llm_shape(recipe.llm)
        micro_tokens = step_tokens(recipe)
        half = half_stream(recipe, stage)
        here = activation_bytes(shape, micro_tokens, learned_tokens(recipe, micro_tokens), half) / 1e9
        longest = activation_bytes(shape, recipe.max_length, max(0, recipe.max_length - visual), half) / 1e9  # all of its text learned
        say(
            f"memory per {device}",
            f"{memory(recipe, stage, gpus):.1f} GB; activations of {micro_tokens:,} tokens have {here:.1f}",
        )
        say("", f"a conversation of --max-length {recipe.max_length:,} tokens alone has {longest:.1f} GB of activations")
        if on_gpu or stage:
            say("ZeRO stage", f"{stage or 'none'}: {why}")
        say("disk", f"{disk_bytes(recipe) / 1e9:.1f} GB for two checkpoints and the export")
    if spec is not None and not recipe.train_encoder:
        say("feature cache", f"{n * spec.tokens * spec.width * 4 / 1e9:.1f} GB with --cache-features, one picture a conversation")
    lacks = missing(recipe)
    print("missing:" if lacks else "nothing is missing")
    for line in lacks:
        print(f"  - {line}")
