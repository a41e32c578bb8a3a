"""What a fine-tuning run is resolved to, once: by dry run, throughput and training alike. Torch-free.

    setup = resolve(recipe, processes=8)       # encoder and language model found, their shapes, micro-steps
    setup.record(...)                          # with the digests of what was loaded: run.json, to which the run is pinned

A run goes on only from what it began with (`genlip.common.run_folder.pin`), on any number of processes that its step can be split over
(`micro_steps`).
"""

from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from genlip.common import digests, model_folder
from genlip.common.files import read_json
from genlip.common.schema import SCHEMA, RunRecord
from genlip.common.versions import git_commit, package_versions
from llava_plugin import encoders, views
from llava_plugin.encoders import EncoderSpec
from llava_plugin.projectors import PROJECTORS

from .recipes import Recipe, per_step, seen_as


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


def llm_shape(name: str, source: str | None) -> LlmShape | None:
    """From the table, or from a folder's config.json and the headers of its weights; None where neither says."""
    if name in LLMS:
        return LLMS[name]
    if source is None:
        return None
    folder = Path(source)
    try:
        config = read_json(folder / "config.json", fields={})
        layers, hidden, ffn, words = (config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"))
    except (OSError, ValueError, KeyError):
        return None
    if not any(folder.glob("*.safetensors")):
        return None
    model_folder.check(folder)
    return LlmShape(layers, hidden, ffn, words, model_folder.parameters(folder), tied=config.get("tie_word_embeddings", False))


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


# Files of a model's folder that decide what it is.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
SOURCES = {"encoder": "the encoder", "llm": "the language model", "init": "the earlier stage"}


def _read_from(folder: Path) -> list[Path]:
    return sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)} - {folder / "source.json"})  # how it was fetched


@dataclass(frozen=True)
class Setup:
    """A recipe on so many processes, with what its names stand for here. `lacks` says what could not be found, and what brings it."""

    recipe: Recipe
    processes: int
    spec: EncoderSpec | None  # None, as all below, where it cannot be told: a dry run goes on without it
    encoder: str | None  # folder or hub id of the encoder's weights; None also where a twin is made from its seed
    llm: str | None  # folder or hub id
    shape: LlmShape | None
    lacks: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def parts(self) -> Parts | None:
        """None where encoder or language model are not known well enough to count. An encoder in a folder is counted on its class."""
        recipe, spec, llm = self.recipe, self.spec, self.shape
        if llm is None or spec is None:
            return None
        encoder = spec.parameters
        if encoder is None and self.encoder is not None and Path(self.encoder).is_dir():
            from llava_plugin.encoders.measure import count_parameters

            encoder = count_parameters(self.encoder)
        if encoder is None:
            return None
        wide = llm.hidden
        newline = wide if views.parse(spec.view).kind == "anyres" else 0
        projector = PROJECTORS[recipe.projector].parameters(spec.width, wide) + newline
        trained = projector + (encoder if recipe.train_encoder else 0)
        if recipe.lora_rank:  # on q, k, v, o and the SwiGLU's three maps; k and v are narrower where heads share them: an upper bound
            trained += llm.layers * recipe.lora_rank * (4 * 2 * wide + 3 * (wide + llm.ffn))
        elif recipe.stage != "projector":
            trained += llm.parameters
        return Parts(encoder, projector, llm.parameters, trained)

    @property
    def visual_tokens(self) -> int:
        """Of a picture, as the language model sees it; the most where it depends on the picture."""
        return 0 if self.spec is None else views.most_tokens(self.spec, PROJECTORS[self.recipe.projector].joined)

    @property
    def kernels(self) -> Kernels:
        return kernels(self.recipe)

    def computed_with(self, on_gpu: bool) -> str:
        return self.kernels.words if on_gpu else "attention by torch (SDPA), no GPU"

    @property
    def accumulation(self) -> int:
        """Micro-steps per step, before the data are laid out. ValueError where --global-batch does not come out even."""
        recipe = self.recipe
        if not recipe.global_batch or recipe.batching == "tokens":
            return recipe.accumulation
        steps, rest = divmod(recipe.global_batch, recipe.batch * self.processes)
        if rest or not steps:
            raise ValueError(
                f"--global-batch {recipe.global_batch} is no multiple of --batch {recipe.batch} x {self.processes} processes: change "
                "--batch"
            )
        return steps

    @property
    def _sources(self) -> dict[str, Path]:
        """Encoder, language model and earlier stage, where each is a folder."""
        named = {"encoder": self.encoder, "llm": self.llm, "init": self.recipe.init}
        return {name: Path(folder) for name, folder in named.items() if folder and Path(folder).is_dir()}

    @property
    def source_files(self) -> dict[str, dict[str, str]]:
        """Of each source: file -> digest of its bytes, which are read once while untouched."""
        found = {name: _read_from(folder) for name, folder in self._sources.items()}
        return {name: dict(zip((file.name for file in files), digests.of_files(files))) for name, files in found.items()}

    def check_sources(self, began: RunRecord) -> None:
        """ValueError with the first files that are not those that the run began with; of what is a folder then and now."""
        there = self.source_files
        for name in began.source_files.keys() & there.keys():
            before, now = began.source_files[name], there[name]
            if changed := sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file)):
                raise ValueError(
                    f"{self.recipe.out} began with other files of {SOURCES[name]} than {self._sources[name]} holds now "
                    f"({', '.join(changed[:3])}): bring them back, or give another --out"
                )

    def record(self, digests: dict[str, str | None], data_digest: str, accumulation: int, zero: int, dtype: str, on_gpu: bool) -> RunRecord:
        """The run's record. `digests` are RunRecord's fields of that kind, of what was loaded."""
        recipe = self.recipe
        return RunRecord(
            schema=SCHEMA,
            stage=recipe.stage,
            encoder=None if self.spec is None else self.spec.key,
            encoder_source=self.encoder,
            llm=Path(recipe.llm).name,
            llm_source=self.llm,
            tokenizer_source=self.llm,
            projector=recipe.projector,
            init=recipe.init or None,
            data=recipe.data,
            data_digest=data_digest,
            per_step=per_step(recipe, self.processes, accumulation),
            dtype=dtype,
            processes=self.processes,
            accumulation=accumulation,
            zero=zero,
            kernels=self.computed_with(on_gpu),
            versions=package_versions(("torch", "transformers", "accelerate", "genlip-eval")),
            git_commit=git_commit(),
            source_files=self.source_files,
            **digests,
        )


def resolve(recipe: Recipe, processes: int) -> Setup:
    """What the recipe's names stand for on this machine; never raises for what is missing, which `lacks` says."""
    lacks: list[str] = []
    spec = encoder = llm = None
    try:
        spec = encoders.resolve(recipe.encoder, recipe.resolution or None, seen_as(recipe), recipe.feature_layer)
        encoder = encoders.find_weights(spec)
    except ValueError as e:
        lacks.append(str(e))
    try:
        llm = encoders.find_llm(recipe.llm)
        folder = Path(llm)
        if folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            lacks.append(f"{folder} has no tokenizer: copy the model's tokenizer.json and tokenizer_config.json into it")
    except ValueError as e:
        lacks.append(str(e))
    return Setup(recipe, processes, spec, encoder, llm, llm_shape(recipe.llm, llm), tuple(lacks))


def micro_steps(began: RunRecord | None, processes: int, planned: int, run: Path) -> int:
    """Micro-steps per step: `planned`, or of a run that goes on as many as make its step what it was, on however many processes.

    Raises ValueError where its step does not split over them.
    """
    if began is None or began.processes * began.accumulation == processes * planned:
        return planned
    steps, rest = divmod(began.processes * began.accumulation, processes)
    if rest or not steps:
        raise ValueError(
            f"{run} began with {began.per_step} per step on {began.processes} x {began.accumulation} micro-steps, which do not split over "
            f"{processes} processes: go on with PROCESSES={began.processes} (torchrun --nproc-per-node), or give another --out"
        )
    return steps
