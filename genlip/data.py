"""Shards -> samples -> packed rows.

A step has `rows` packed rows, and each of them is a stream of its own: row slot r of every step is filled from the samples dealt to
stream r. What a stream reads is a function of (seed, epoch, shards, rows) alone; ranks and workers only share the streams out. So
the rows of a step, and with them the loss, are the same on 1 GPU and on 512, and a run resumes on another number of them.

An epoch deals the shuffled shards out to the streams (a shard is split where there are more streams than shards) and shuffles the
samples within. A row is filled first fit from up to `look_ahead` waiting samples, the oldest first, so none waits for long. A
position is the place in every source and the names of those that wait.

Decoding and tokenising happen in the loader's processes. Nothing is repaired silently: a sample that cannot be used, or is cut, is
counted by reason, with the first offenders' names, in the ledger that travels with every row.

Shapes: B samples, N patches, T text tokens of a packed row.
"""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .common import model_folder
from .common.conversations import IMAGE, read_turns
from .common.flags import flag
from .common.ledger import Ledger
from .common.processes import die_with
from .common.tokens import text_ids
from .image_decoding import read_picture, unusual
from .image_processing_genlip import native_size, resized
from .shards import Source, open_shard

END_OF_CAPTION = "<|im_end|>\n"  # the two end tokens of the paper's sequence
MAX_CONSECUTIVE_BAD = 1000  # stop after this many unusable samples in a row
IGNORED = -100
SAMPLE_OVERHEAD_BYTES = 4096  # cached bytes per sample besides the pixels: ids, name


@dataclass
class Batch:
    """One packed row. patches (N, 3, p, p) uint8, grid_hw (B, 2), input_ids and labels (1, T), text_lens (B,).

    `names` are the samples'; `stream` is the row slot; `position` is where its next row begins, `ledger` all it met up to here.
    """

    patches: torch.Tensor
    grid_hw: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    text_lens: torch.Tensor
    names: list[str]
    stream: int
    position: dict
    ledger: dict

    @property
    def tokens(self) -> int:
        return len(self.patches) + self.input_ids.numel()


# --- a sample --------------------------------------------------------------------------------------------------------------


def load_tokenizer(name: str):
    from transformers import AutoTokenizer

    if Path(name).is_dir():
        model_folder.check(Path(name))
    try:
        with model_folder.building(Path(name, "tokenizer.json")):
            return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise ValueError(f"no tokenizer in {name!r}: give --tokenizer a folder with tokenizer.json, or a hub id ({e})") from e


def questions_and_answers(text, prompt: str) -> tuple[list[tuple[str, str]], list[str]]:
    """A caption or a conversation -> what is asked and what is to be said to it, turn by turn; notes for the ledger.

    Without words beside its `<image>`, a question is `prompt`. Raises ValueError with the reason under which the sample is counted.
    """
    if text is None:
        raise ValueError("no caption")
    if isinstance(text, str):
        if not text.strip():
            raise ValueError("empty caption")
        try:
            text.encode()
        except UnicodeEncodeError as e:  # half a surrogate pair, which JSON can hold and no text can
            raise ValueError("caption is not text") from e
        return [(prompt, text.strip())], []
    if not isinstance(text, list):
        raise ValueError("caption is not text")
    turns, _ = read_turns(text)
    if turns.markers > 1:  # a sample has one picture
        raise ValueError(f"{IMAGE} markers and pictures do not match")
    spoken = [turn["content"] for turn in turns.messages if turn["role"] != "system"]
    questions = [content.replace(IMAGE, "").strip() or prompt for content in spoken[::2]]
    return list(zip(questions, spoken[1::2])), ["system turn left out"] * (2 * len(questions) != len(turns.messages))


def pixels_of(image: bytes, size: Callable[[int, int], tuple[int, int]]) -> tuple[np.ndarray, str | None]:
    """A picture's bytes -> (H, W, 3) uint8, with (H, W) = size(height, width), and a note for the ledger where it is of an unusual mode.
    Raises ValueError with the reason."""
    picture, mode = read_picture(image)
    try:
        sides = size(picture.height, picture.width)
    except ValueError as e:
        raise ValueError("extreme aspect ratio") from e
    return resized(picture, *sides), unusual(mode)


def size_rule(recipe) -> Callable[[int, int], tuple[int, int]]:
    """(height, width) of a picture -> those it is resized to."""
    if not recipe.native:
        return lambda height, width: (recipe.resolution, recipe.resolution)
    patch = recipe.model.get("patch_size", 16)
    return lambda height, width: native_size(height, width, recipe.min_pixels, recipe.max_pixels, patch)


@dataclass
class Sample:
    """pixels (H, W, 3) uint8; ids: questions and answers, labels: of the answers alone; place: (source, shard, number)."""

    name: str
    place: tuple[int, int, int]
    pixels: np.ndarray
    ids: list[int]
    labels: list[int]
    notes: list[str]
    tokens: int


# --- streams ---------------------------------------------------------------------------------------------------------------

START = {"epoch": 0, "unit": 0, "taken": 0, "rng": None}


def iterate_stream(
    shards: int, length: Callable[[int], int], seed: int, stream: int, streams: int, place: dict
) -> Iterator[tuple[int, int, dict]]:
    """Endless (shard, sample in it, place behind it) of one stream. `length(shard)` counts a shard's samples.

    Units are whole shards, or equal parts of shards where these are fewer than the streams; each unit belongs to one stream, so
    an epoch of all streams together holds every sample once. `rng` in a place is the generator's state where its unit begins.
    """
    parts = -(-streams // shards)
    epoch, first, taken, state = (place[k] for k in ("epoch", "unit", "taken", "rng"))
    while True:
        rng = np.random.default_rng([seed, epoch])
        mine = rng.permutation(shards * parts)[stream::streams]
        if state is not None:
            rng.bit_generator.state = state
        met = first + taken
        for unit in range(first, len(mine)):
            state = rng.bit_generator.state
            shard, part = divmod(int(mine[unit]), parts)
            samples = np.arange(length(shard))[part::parts]
            order = samples[rng.permutation(len(samples))]
            met += len(samples)
            for k in range(taken, len(order)):
                yield shard, int(order[k]), {"epoch": epoch, "unit": unit, "taken": k + 1, "rng": state}
            taken = 0
        if not met and not any(map(length, range(shards))):
            raise ValueError("the shards hold no sample")
        epoch, first, state = epoch + 1, 0, None


def first_fit(waiting: list[Sample], draws: Iterator[Sample], room: int, look_ahead: int) -> list[Sample]:
    """The samples of the next row of `room` tokens: first fit, the oldest waiting one first, `look_ahead` of them looked at. `waiting`
    is filled up from `draws` and keeps what did not fit.
    """
    row, i = [], 0
    while i < look_ahead:
        if i == len(waiting):
            waiting.append(next(draws))
        if waiting[i].tokens <= room:
            row.append(waiting.pop(i))
            room -= row[-1].tokens
        else:
            i += 1
    return row


class PackedRows(IterableDataset):
    """Endless packed rows of one rank's streams, in the order of the steps. Built in the training process, iterated in the loader's."""

    def __init__(self, recipe, tokenizer, sources: list[Source], streams: list[int], states: list[dict] | None = None):
        self.recipe, self.sources, self.tokenizer, self.streams, self.states = recipe, sources, tokenizer, streams, states
        self.end = tokenizer(END_OF_CAPTION, add_special_tokens=False).input_ids
        self.patch_size = recipe.model.get("patch_size", 16)
        self._most = min(recipe.max_length, recipe.row_tokens)  # tokens of a sample

    def __iter__(self) -> Iterator[Batch | ValueError]:
        """Batches; a ValueError is handed over as the last item, since a loader would bury its sentence in a traceback."""
        worker = get_worker_info()
        mine = self.streams if worker is None else self.streams[worker.id :: worker.num_workers]
        self.size = size_rule(self.recipe)
        largest = 3 * (self.recipe.max_pixels if self.recipe.native else self.recipe.resolution**2) + SAMPLE_OVERHEAD_BYTES
        kept = self.recipe.sample_cache_mib * 2**20 // (worker.num_workers if worker else 1) // largest
        self.load = functools.lru_cache(maxsize=kept)(self._load)
        self.tokenize_prompt = functools.lru_cache(maxsize=1024)(self._tokenize)  # captions share one question, and conversations many
        # A shard in work for every stream and source; a resume opens a few more for what waits.
        self.opened = functools.lru_cache(maxsize=len(mine) * len(self.sources) + 4)(self._open)
        rows = [self.rows(stream) for stream in mine]
        try:
            while True:
                for each in rows:
                    yield next(each)
        except ValueError as e:
            yield e

    def _open(self, source: int, shard: int):
        return open_shard(self.sources[source].shards[shard], self.recipe.image_key, self.recipe.text_key)

    def _tokenize(self, text: str) -> list[int]:
        return text_ids(self.tokenizer, text)

    def rows(self, stream: int) -> Iterator[Batch]:
        """The rows of one stream, one after another."""
        recipe, state = self.recipe, self.states and self.states[stream]
        ledger = Ledger.from_dict(state["ledger"]) if state else Ledger()
        new: dict = {"places": [START] * len(self.sources), "drawn": [0] * len(self.sources), "waiting": []}
        position = state["position"] if state else new
        places, drawn = list(position["places"]), list(position["drawn"])
        draws = self._draw(stream, places, drawn, ledger)
        waiting = [self.load(*place) for place in position["waiting"]]
        while True:
            row = first_fit(waiting, draws, recipe.row_tokens, recipe.look_ahead)
            for sample in row:
                ledger.used += 1
                for note in sample.notes:
                    ledger.count(ledger.noted, note, sample.name)
            position = {"places": list(places), "drawn": list(drawn), "waiting": [sample.place for sample in waiting]}
            yield self._batch(row, stream, position, ledger.as_dict())

    def _draw(self, stream: int, places: list[dict], drawn: list[int], ledger: Ledger) -> Iterator[Sample]:
        """Usable samples in order, each from the source that is furthest behind its weight; `places` and `drawn` are kept up."""
        lengths = [lambda shard, s=s: len(self.opened(s, shard)) for s in range(len(self.sources))]
        walks = [
            iterate_stream(len(source.shards), length, self.recipe.seed, stream, self.recipe.rows, place)
            for source, length, place in zip(self.sources, lengths, places)
        ]
        failures = 0
        while failures < MAX_CONSECUTIVE_BAD:
            total = sum(drawn) + 1
            s = max(range(len(walks)), key=lambda s: self.sources[s].weight * total - drawn[s])
            shard, number, places[s] = next(walks[s])
            drawn[s] += 1
            try:
                sample, failures = self.load(s, shard, number), 0
            except Unusable as e:
                ledger.count(ledger.skipped, e.reason, e.name)
                failures += 1
                continue
            yield sample
        short = [name for name in ("max_length", "row_tokens") if getattr(self.recipe, name) == self._most]
        full = "picture and question fill a row" in ledger.skipped
        helps = f": raise {' and '.join(flag(name, self._most) for name in short)}" if full else ""
        raise ValueError(
            f"{MAX_CONSECUTIVE_BAD} unusable samples in turn in {self.recipe.data}: {dict(ledger.skipped)}; first: {ledger.names}{helps}"
        )

    def _load(self, source: int, shard: int, number: int) -> Sample:
        """One sample, decoded and tokenised; shared where it is kept, not to be changed. Raises Unusable with the reason."""
        reader = self.opened(source, shard)
        try:
            image, text = reader.read(number)
            turns, notes = questions_and_answers(text, self.recipe.prompt)
            pixels, note = pixels_of(image, self.size)
            notes = [*notes, note] if note else notes
            ids: list[int] = []
            labels: list[int] = []
            for question, answer in turns:  # one behind another, as the released code has them; the end tokens stand at the very end
                asked, said = self.tokenize_prompt(question), self._tokenize(answer)
                ids += asked + said
                labels += [IGNORED] * len(asked) + said
            ids += self.end
            labels += self.end
            patches = pixels.shape[0] * pixels.shape[1] // self.patch_size**2
            most = self._most - patches
            if most <= len(self.tokenize_prompt(turns[0][0])):
                raise ValueError("picture and question fill a row")
            if len(ids) > most:  # the end tokens go too: the caption does not end here
                ids, labels = ids[:most], labels[:most]
                notes.append("cut")
        except ValueError as e:
            raise Unusable(str(e), reader.name(number)) from e
        return Sample(reader.name(number), (source, shard, number), pixels, ids, labels, notes, patches + len(ids))

    def _batch(self, row: list[Sample], stream: int, position: dict, ledger: dict) -> Batch:
        p = self.patch_size
        grids = [(s.pixels.shape[0] // p, s.pixels.shape[1] // p) for s in row]
        patches = [s.pixels.reshape(r, p, c, p, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, p, p) for s, (r, c) in zip(row, grids)]
        ids = np.concatenate([s.ids for s in row])
        labels = np.concatenate([s.labels for s in row])
        return Batch(
            patches=torch.from_numpy(np.concatenate(patches)),
            grid_hw=torch.tensor(grids),
            input_ids=torch.from_numpy(ids)[None],
            labels=torch.from_numpy(labels)[None],
            text_lens=torch.tensor([len(s.ids) for s in row]),
            names=[s.name for s in row],
            stream=stream,
            position=position,
            ledger=ledger,
        )


class Unusable(ValueError):
    def __init__(self, reason: str, name: str):
        super().__init__(f"{name}: {reason}")
        self.reason, self.name = reason, name


def normalised(patches: torch.Tensor) -> torch.Tensor:
    """uint8 -> fp32 with the mean and std of the image processor, on whatever device."""
    return (patches.float() / 255.0 - 0.5) / 0.5


def packed_rows(
    recipe, tokenizer, sources: list[Source], rank: int = 0, world: int = 1, states: list[dict] | None = None
) -> Iterator[Batch]:
    """Endless rows of this rank's streams rank, rank + world, ... in turn, from the streams' states on (the beginning, if None)."""
    streams = list(range(rank, recipe.rows, world))
    # Each worker has whole streams and the loader takes from the workers in turn, so their number must divide that of the streams.
    workers = max((w for w in range(1, recipe.workers + 1) if len(streams) % w == 0), default=0)
    rows = PackedRows(recipe, tokenizer, sources, streams, states)
    parent = os.getpid()  # torch's own workers look every five seconds whether it is still there, and are stopped by Ctrl-C themselves
    loader = DataLoader(rows, None, num_workers=workers, prefetch_factor=4 if workers else None, worker_init_fn=lambda _: die_with(parent))
    for item in loader:
        if isinstance(item, ValueError):
            raise item
        yield item
