"""lmms-eval's own result files -> cells: what such a file states of its run is held against the column, its samples against its numbers.

Why: a file of lmms-eval looks like a benchmark whatever was asked. With `--offset` 0.7.3 writes the full n after asking ten questions;
shots, sampling, another prompt, OCR tokens, another split all end in a plain number. Here a disagreement with the column's declaration
refuses the cell, in words; what an older file does not state is noted. Samples beside it give standard errors, pairing and ranks.

    python -m eval_suites.results logs/ --json
    python -m eval_suites.tables genlip14 --lmms-eval mine=logs/

Layouts: `*_results.json` with `*_samples_<task>.jsonl` (0.2.1 to 0.7), `results.json` with `<task>.json` (0.1, 0.2.0). Standard library
and numpy; does not import lmms_eval.
"""

import ast
import hashlib
import json
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval_suites import suites
from eval_suites.score import stats
from eval_suites.score.results import Cell, EncoderResult, empty_cell, make_cell, read_row, scores_of, unit
from eval_suites.suites import Column, Suite

_PHRASE = {"pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase."}
_LETTER = {"pre_prompt": "", "post_prompt": "\nAnswer with the option's letter from the given choices directly."}
_CAPTION = {"prompt": "Provide a one-sentence caption for the provided image."}
_LAID_OUT = {"prompt_format": "mcq"}, {"format": "default"}, {"img_token": "<image>"}


@dataclass(frozen=True)
class Declared:
    """What lmms-eval 0.7.3's definition of a task states of its data, its prompt and its decoding. A test holds it to the package."""

    data: str  # on the hub; `lmms-lab-encoder/X` was `lmms-lab/X` up to 0.7.2
    subset: str | None
    prompt: Mapping[str, str | bool]  # the default's lmms_eval_specific_kwargs
    new_tokens: int | None  # max_new_tokens; None: not named, so the model's own default applies
    until: tuple[str, ...] = ("\n\n",)


DECLARED = {
    "chartqa": Declared(
        "lmms-lab-encoder/ChartQA", None, {"pre_prompt": "", "post_prompt": "\nAnswer the question with a single word."}, 16
    ),
    "ocrbench": Declared("echo840/OCRBench", None, {"pre_prompt": "", "post_prompt": ""}, 128),
    "docvqa_val": Declared("lmms-lab-encoder/DocVQA", "DocVQA", _PHRASE, 32),
    "textvqa_val": Declared("lmms-lab-encoder/textvqa", None, _PHRASE | {"ocr": False}, None, ("ASSISTANT:",)),
    "ai2d": Declared("lmms-lab-encoder/ai2d", None, _LAID_OUT[0] | _LETTER, 16),
    "infovqa_val": Declared("lmms-lab-encoder/DocVQA", "InfographicVQA", _PHRASE, 32),
    "seedbench_2_plus": Declared(
        "doolayer/SEED-Bench-2-Plus", None, _LAID_OUT[2] | {"post_prompt": _LETTER["post_prompt"].strip()}, 16, ("ASSISTANT:",)
    ),
    "vqav2_val": Declared("lmms-lab-encoder/VQAv2", None, _PHRASE, 16),
    "gqa": Declared("lmms-lab-encoder/GQA", "testdev_balanced_instructions", _PHRASE, 16),
    "scienceqa_img": Declared("lmms-lab-encoder/ScienceQA", "ScienceQA-IMG", _LAID_OUT[1] | _LETTER, 16),
    "mme": Declared("lmms-lab-encoder/MME", None, _PHRASE, 16),
    "nocaps_val": Declared("lmms-lab-encoder/NoCaps", None, _CAPTION, 64),
    "coco2017_cap_val": Declared("lmms-lab-encoder/COCO-Caption2017", None, {}, 64),  # its prompt is in its code, not in its definition
    "textcaps_val": Declared("lmms-lab-encoder/TextCaps", None, _CAPTION, 64),
}


# --- what a file states ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stated:
    """What one result file says of one of its tasks. Whatever has not the form that lmms-eval gives it counts as not stated."""

    task: str
    config: dict  # of the run: model, limit, offset, gen_kwargs, ...
    definition: dict  # of the task, as it was in effect
    n: int | None  # questions, by the file; with an offset it counts those before it too
    original: int | None  # questions of the data
    shots: int
    version: str  # of the task's definition, "" where none is stated
    instruction: str  # the system's

    @classmethod
    def of(cls, content: dict, task: str) -> "Stated":
        definition = _part(content, "configs", task)
        config = _config(content)
        samples = _part(content, "n-samples", task)
        shots = [_part(content, "n-shot").get(task), definition.get("num_fewshot")]
        metadata = definition.get("metadata")
        metadata = metadata[0] if isinstance(metadata, list) and metadata else metadata
        version = metadata.get("version") if isinstance(metadata, dict) else _part(content, "versions").get(task)
        return cls(
            task, config, definition, _whole(samples.get("effective")), _whole(samples.get("original")),
            max((_whole(shot) or 0 for shot in shots), default=0), str(version) if isinstance(version, int | float) else "",
            str(content.get("system_instruction") or _part(config, "resolved_cli_args").get("system_instruction") or ""),
        )  # fmt: skip

    @property
    def local(self) -> bool:
        """Of a definition of ours over local files (tasks.resolved), which names no set of the hub."""
        return self.task.endswith("_local")

    def against(self, column: Column) -> list[str]:
        """Where the file disagrees with the column's declaration, in words."""
        declared = DECLARED.get(column.task)
        found = [*self._asked(column), *self._decoding(declared)]
        if self.instruction:
            found.append(f"a system instruction, {_quoted(self.instruction)}, where the column has none")
        if declared is not None:
            found += [*self._prompt(declared), *(() if self.local else self._data(declared))]
        split = self.definition.get("test_split")
        if split not in (None, column.split):
            found.append(f"split {split!r} where the column is of {column.split!r}")
        if self.version and float(self.version) != 0:
            found.append(f"version {self.version} of the task where the column is of 0.0")
        return found

    def _asked(self, column: Column) -> Iterator[str]:
        """Which questions, and with how many worked examples."""
        limit, offset = self.config.get("limit"), self.config.get("offset")
        if isinstance(limit, int | float) and limit != -1:
            share, enough = 0 < limit < 1, column.n is not None and limit >= column.n
            counted = self.n is not None and column.n is not None and self.n < column.n  # partial, and shown with its n
            if not counted and (share or not enough):
                yield f"its limit is {limit:g}: not every question was asked"
        if isinstance(offset, int | float) and offset > 0:
            yield f"offset {offset:g}: the questions before it were not asked, though the file says n = {self.n}"
        if self.original is not None and column.n is not None and self.original > column.n:
            yield f"its data have {self.original} questions where {column.n} are declared"
        if self.shots:
            yield f"{self.shots} worked examples before each question where the column is of 0"

    def _decoding(self, declared: Declared | None) -> Iterator[str]:
        settings = {**_part(self.definition, "generation_kwargs"), **_settings(self.config.get("gen_kwargs"))}
        if settings.get("do_sample") is True:
            yield "answers were sampled (do_sample)"
        if (_real(settings.get("temperature")) or 0) > 0:
            yield f"answers were sampled (temperature {settings['temperature']})"
        if (_real(settings.get("num_beams")) or 1) > 1:
            yield f"answers by beam search ({settings['num_beams']} beams) where the column decodes greedily"
        if (_whole(self.definition.get("repeats")) or 1) > 1:
            yield f"each question was asked {self.definition['repeats']} times"
        if declared is None:
            return
        tokens, until = settings.get("max_new_tokens"), settings.get("until")
        if tokens is not None and declared.new_tokens is not None and tokens != declared.new_tokens:
            yield f"answers of up to {tokens} tokens where the column has {declared.new_tokens}"
        if until is not None and tuple([until] if isinstance(until, str) else until) != declared.until:
            yield f"answers end at {_quoted(until)} where the column's end at {_quoted(list(declared.until))}"

    @property
    def prompt(self) -> dict | None:
        """The parts of the prompt in effect: the model's own where the definition has such, else the default. None: not stated."""
        parts = self.definition.get("lmms_eval_specific_kwargs", self.definition.get("model_specific_prompt_kwargs"))  # until 0.2.0
        if not isinstance(parts, dict):
            return None
        own = parts.get(str(self.config.get("model")))
        if isinstance(own, dict):
            return own
        return {**_part(parts, "default"), **{name: part for name, part in parts.items() if not isinstance(part, dict)}}

    def _prompt(self, declared: Declared) -> Iterator[str]:
        if self.prompt is None:
            return
        if self.prompt.get("ocr"):
            yield "TextVQA with OCR tokens in the prompt (ocr: true), another benchmark than without"
        for name in ("pre_prompt", "post_prompt", "prompt", "prompt_format", "format"):
            wanted, there = declared.prompt.get(name, ""), self.prompt.get(name, "")
            if there != wanted and (there or name in ("post_prompt", "prompt")):
                yield f"another prompt: {name} {_quoted(there)} where the column has {_quoted(wanted)}"

    def _data(self, declared: Declared) -> Iterator[str]:
        path, subset = self.definition.get("dataset_path"), self.definition.get("dataset_name")
        names = (declared.data, declared.data.replace("lmms-lab-encoder/", "lmms-lab/"))
        if isinstance(path, str) and not any(path == name or path.rstrip("/").endswith(f"/{name}") for name in names):
            yield f"data set {path!r} where the column is of {declared.data!r}"
        elif path is not None and subset != declared.subset and (subset, declared.subset) != ("default", None):
            yield f"subset {subset!r} where the column is of {declared.subset!r}"

    def silent(self, column: Column) -> list[str]:
        """What the file does not state, and the column would have to believe."""
        declared = DECLARED.get(column.task)
        said = {
            "prompt": self.prompt is not None or declared is None or not declared.prompt,
            "data set": "dataset_path" in self.definition and not self.local,
            "split": "test_split" in self.definition,
            "decoding": "generation_kwargs" in self.definition,
        }
        return [what for what, stated in said.items() if not stated]


def _part(content: dict, *names: str) -> dict:
    """A dictionary inside one; empty where there is none."""
    for name in names:
        inner = content.get(name)
        content = inner if isinstance(inner, dict) else {}
    return content


def _config(content: dict) -> dict:
    return _part(content, "config") or _part(content, "model_configs")  # the latter until 0.2.0


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1 else None


def _quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _settings(given: object) -> dict:
    """--gen_kwargs as it was given, `name=value,...`, or as lmms-eval read it."""
    if isinstance(given, dict):
        return given
    found = {}
    for part in given.split(",") if isinstance(given, str) else []:
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = ast.literal_eval(
                value.strip().capitalize() if value.strip().lower() in ("true", "false") else value.strip()
            )
        except (ValueError, SyntaxError):
            found[name.strip()] = value.strip()
    return found


def _release(content: dict) -> str:
    """The span of lmms-eval's releases that wrote the file, by what it holds: `git_hash` is that of the repository that lies around it."""
    config = _config(content)
    if "model_configs" in content and "config" not in content:
        return "0.1 or 0.2.0"
    if "lmms_eval_version" in content or "resolved_cli_args" in config:
        return "0.7"
    return "0.6" if "offset" in config else "0.2.1 to 0.5"


# --- samples --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """One task's samples as lmms-eval keeps them, in the order of their doc_id. ValueError where they cannot be read as such."""

    path: Path
    rows: list[dict] = field(repr=False)
    asked: str  # of documents, prompts and targets: equal where the same was asked; "" where the samples do not say what was

    def scores(self, column: Column) -> tuple[stats.Scores, bool]:
        """(the column's scores, whether every picture is named). A question of no named picture counts as a picture of its own.

        Names hold inside a task: number 7 of one data set is not number 7 of another.
        """
        metric = column.metric.split(",")[0]
        keys = [metric, *(alias.split(",")[0] for alias in column.aliases)]
        found, named = [], True
        for row in self.rows:
            key = next((key for key in keys if key in row), None)
            if key is None:
                continue  # MME's samples have one of its two metrics each
            score = row[key]
            try:
                what, category = unit(column, str(row["doc_id"]), score)
                picture = what if column.aggregate == "mme" else _picture(row, score)
                found.append((what, category, f"{column.task} {picture or what}", _score(score)))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path.name}: doc {row['doc_id']} has no score of {metric} ({error!r})") from error
            named = named and bool(picture)
        if not found:
            raise ValueError(f"{self.path.name} holds no sample with {metric}")
        return scores_of(column, found, self.path), named

    def otherwise(self, column: Column) -> str:
        """Why these samples are not the column's questions: their prompts do not end as declared. "" where they do, or do not say."""
        declared = DECLARED.get(column.task)
        end = str(declared.prompt.get("post_prompt", declared.prompt.get("prompt", ""))).strip() if declared else ""
        prompts = map(_prompt, self.rows)
        other = [prompt for prompt in prompts if isinstance(prompt, str) and not prompt.rstrip().endswith(end)]
        return f"{len(other)} of its samples were asked without the column's prompt, {_quoted(end)}" if other else ""


def _score(score: Any) -> float:
    if not isinstance(score, dict):
        return float(score)
    if "score" in score:
        return float(score["score"])
    return float(score["pred"].lower().strip() == score["answer"].lower().strip())  # SEED-Bench-2-Plus compares when it aggregates


def _picture(row: dict, score: Any) -> str:
    """What names a sample's picture: an id in its score or its document, or the media of its input; "" where nothing does."""
    for place in (score, row.get("doc")):
        for name in ("image_id", "imageId", "image_path", "img_id"):
            if isinstance(place, dict) and isinstance(place.get(name), str | int):
                return str(place[name])
    media = row.get("input_media")
    return hashlib.sha256(json.dumps(media).encode()).hexdigest()[:16] if media else ""


def _prompt(row: dict) -> Any:
    """The question as lmms-eval gave it to the model; its 0.2.0 keeps it as the first of the request's arguments."""
    if "input" in row:
        return row["input"]
    arguments = row.get("arguments")
    while isinstance(arguments, list) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else None


def _asked(questions: Iterable[tuple[int, object, object]]) -> str:
    """Digest of (doc_id, prompt, target); "" where a prompt is missing. Order, outer blanks and the mark of a picture do not count."""
    digest = hashlib.sha256()
    for doc, prompt, target in sorted(questions, key=lambda question: question[0]):
        if prompt is None:
            return ""
        text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
        digest.update(f"{doc}\0{text.replace('<image>', '').strip()}\0{target}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path.name}, line {number}, is no sample ({error})") from error


def read_samples(results: Path, task: str, metrics: set[str]) -> Samples | None:
    """The task's samples beside a result file, of their scores those in `metrics`; None where there are none."""
    rows: Any
    kept = {"doc_id", "target", "input", "input_media", "arguments", "doc", *metrics}
    lines = results.with_name(f"{results.name.removesuffix('results.json')}samples_{task}.jsonl")
    logs = results.with_name(f"{task}.json")
    if lines.exists():
        path, rows = lines, [{k: v for k, v in row.items() if k in kept} if isinstance(row, dict) else row for row in _lines(lines)]
    elif logs.exists() and results.name == "results.json":
        path, rows = logs, json.loads(logs.read_text(encoding="utf-8"))
        rows = rows.get("logs") if isinstance(rows, dict) else None
    else:
        return None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _whole(row.get("doc_id")) is not None for row in rows):
        raise ValueError(f"{path.name} is not of samples with a doc_id each")
    rows = sorted(rows, key=lambda row: row["doc_id"])
    docs = [row["doc_id"] for row in rows]
    twice = next((doc for doc, after in pairwise(docs) if doc == after), None)
    if twice is not None:
        raise ValueError(f"{path.name} holds doc {twice} twice")
    return Samples(path, rows, _asked((row["doc_id"], _prompt(row), row.get("target")) for row in rows))


# --- cells ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResultFile:
    """What one file gives: who answered, cells, and where samples lie beside it, scores (by column) and records (by task)."""

    path: Path
    model: str
    cells: list[Cell]
    scores: dict[str, stats.Scores] = field(default_factory=dict)
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def _is_result(content: Any) -> bool:
    """Whether JSON is a result of lmms-eval's or ours: by what it holds, since its captions' submissions lie in the same folder."""
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or not all(isinstance(metrics, dict) for metrics in results.values()):
        return isinstance(results, dict) and {"key", "suite"} <= set(content)
    return any(name in content for name in ("config", "configs", "model_configs", "versions", "n-samples"))


def _json(path: Path) -> Any:
    """What the file holds; None of a list, which is a submission and may be long."""
    try:
        with path.open(encoding="utf-8") as stream:
            first = stream.read(64).lstrip()[:1]
            stream.seek(0)
            return None if first == "[" else json.load(stream)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Delete it and evaluate again") from error


def result_files(folder: Path) -> list[Path]:
    """The result files below a folder, by what they hold. ValueError where a file named as one is damaged."""
    found = []
    for path in sorted(path for path in folder.rglob("*.json") if path.is_file()):
        try:
            content = _json(path)
        except ValueError:
            if path.name.endswith(("result.json", "results.json")) and path.parent.name != "submissions":
                raise
            continue
        if _is_result(content):
            found.append(path)
    return found


def read_file(path: Path, columns: tuple[Column, ...] | None = None) -> ResultFile:
    """The cells of a JSON file: a result.json of ours with the samples beside it, or results of lmms-eval 0.1 to 0.7.

    `columns`: those looked for; None: of all suites.
    """
    content = _json(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(f"{path} holds no results")
    if "key" in content and "suite" in content:
        row = read_row(path.parent.parent, suites.get(content["suite"]))
        if row is None:
            raise ValueError(f"{path} lies away from the results it was written among: give the file where run.py wrote it")
        return ResultFile(path, row.digest, [cell for cell in row.cells.values() if cell.task == path.parent.name])
    config = _config(content)
    cells: list[Cell] = []
    scores: dict[str, stats.Scores] = {}
    records: dict[str, Mapping[str, Any]] = {}
    for task, metrics in content["results"].items():
        if not isinstance(metrics, dict):
            continue
        wanted = _columns(task, columns)
        if not wanted:
            cells.append(_undeclared(task))
            continue
        samples, damaged = None, ""
        try:
            samples = read_samples(path, task, {key.split(",")[0] for column in wanted for key in (column.metric, *column.aliases)})
        except ValueError as error:
            damaged = str(error)
        stated = Stated.of(content, task)
        for column in wanted:
            cell, own = _cell(column, metrics, stated, samples, damaged)
            cells.append(cell)
            if own is not None:
                scores[column.name] = own
        if samples is not None:
            records[wanted[0].task] = _record(content, samples)
    return ResultFile(path, json.dumps([config.get("model"), config.get("model_args")]), cells, scores, records)


def _record(content: dict, samples: Samples) -> dict:
    """What a comparison holds equal, in the place of our result.json."""
    return {"key": {"task": f"lmms-eval {_release(content)}", "data": samples.asked, "limit": None}, "provenance": {}}


def _columns(task: str, columns: tuple[Column, ...] | None) -> list[Column]:
    """Columns that the task fills, under its packaged name or that of a resolved definition."""
    known = columns or {(column.name, column.task): column for suite in suites.SUITES.values() for column in suite.columns}.values()
    return [column for column in known if column.task == task.removesuffix("_local")]


def _undeclared(task: str) -> Cell:
    stem = task.rpartition("_")[0]
    scored = [column for suite in suites.SUITES.values() for column in suite.columns if stem and column.task.rpartition("_")[0] == stem]
    hint = f"; the scored task is {scored[0].task}, split {scored[0].split}" if scored else ""
    return Cell(task, task, "", "", 1.0, None, None, None, refused=f"no column is declared for task {task!r}{hint}")


def _cell(column: Column, metrics: dict, stated: Stated, samples: Samples | None, damaged: str) -> tuple[Cell, stats.Scores | None]:
    """(the column's cell, its scores). Refused: what the file states otherwise, samples that are not its own, a number without its n.

    A file that names no n (before 0.2.1) speaks for a full run only through a limit written down as null.
    """
    against, scores = stated.against(column), None
    note = f"the file does not state its {', '.join(silent)}" if (silent := stated.silent(column)) else ""
    cell = make_cell(column, metrics, stated.n, column.n, None)
    if cell.value is None:
        against.insert(0, cell.refused or "")
    elif damaged:
        against.append(damaged)
    elif samples is None:
        note = _joined(note, "no samples beside it, so no interval and no comparison")
    else:
        against += [why] if (why := samples.otherwise(column)) else []
        if stated.n is not None and len(samples.rows) != stated.n:
            against.append(f"{len(samples.rows)} samples lie beside it, and it says n = {stated.n}")
        if column.unit == "CIDEr":
            note = _joined(note, "lmms-eval keeps captions and no score of each, so no interval and no comparison")
        else:
            try:
                scores, named = samples.scores(column)
                own = "its samples name no pictures: each question counts as a picture of its own, so the interval ignores shared ones"
                note = note if named else _joined(note, own)
            except ValueError as error:
                against.append(str(error))
    if against:
        return replace(cell, value=None, refused="; ".join(against), note=note), None
    cell = replace(make_cell(column, metrics, stated.n, column.n, scores), note=note)
    if stated.n is None and cell.complete and stated.config.get("limit", "not recorded") is not None:
        cell = replace(cell, value=None, refused=f"the file names no n, and its limit is {stated.config.get('limit', 'not recorded')}")
    return cell, None if cell.value is None else scores


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def read_cells(paths: list[Path]) -> list[Cell]:
    """Cells of files and of every result below folders. Where two files of one model disagree about a number, neither is taken."""
    files = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        files += result_files(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"no result of ours or of lmms-eval under {', '.join(map(str, paths))}")
    return _agreed([read_file(file) for file in files])


def _agreed(found: list[ResultFile]) -> list[Cell]:
    """The cells of files, in order; refused are those about whose number two files of one model disagree."""
    keyed = [((file.model, cell.benchmark), cell) for file in found for cell in file.cells]
    values: dict[tuple[str, str], set[float]] = {}
    for key, cell in keyed:
        if cell.complete and cell.value is not None:
            values.setdefault(key, set()).add(cell.value)
    return [
        replace(cell, value=None, refused=f"{_DISAGREE}{' and '.join(f'{value:g}' for value in sorted(values[key]))}")
        if cell.complete and len(values[key]) > 1
        else cell
        for key, cell in keyed
    ]


_DISAGREE = "files disagree: "


def _counts(cell: Cell) -> int:
    """Which of several files' cells is taken: a whole number, then two of them that disagree, then part of one, then none."""
    return 3 if cell.complete else 2 if (cell.refused or "").startswith(_DISAGREE) else 1 if cell.value is not None else 0


def add_flag(parser: ArgumentParser) -> None:
    """--lmms-eval, whose values `rows_of` reads."""
    parser.add_argument(
        "--lmms-eval", action="append", default=[], metavar="NAME=PATH",
        help="a row of plain lmms-eval's results: a *_results.json or the folder of them; may be given again",
    )  # fmt: skip


def rows_of(given: list[str], suite: Suite) -> list[EncoderResult]:
    """The rows of --lmms-eval NAME=PATH, as often as it was given."""
    rows = []
    for each in given:
        name, _, path = each.partition("=")
        if not name or not path:
            raise ValueError(f"--lmms-eval {each}: give NAME=PATH, as in --lmms-eval mine=logs/")
        rows.append(read_elsewhere(name, Path(path), suite))
    return rows


def read_elsewhere(name: str, path: Path, suite: Suite) -> EncoderResult:
    """The row of a model that plain lmms-eval evaluated: `path` is one of its *_results.json files, or a folder of such.

    Such files name no weights: the row has no digest. Where samples lie beside them it has intervals and can be paired. ValueError
    where they hold no column of the suite, or are of several models.
    """
    if any(column.n is None or column.full_mark is None for column in suite.columns):
        raise ValueError(
            f"suite {suite.name} takes its n and full marks from its data's manifest, which such files do not name: use run.py"
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist: give lmms-eval's --output_path folder, or a *_results.json")
    found = [read_file(file, suite.columns) for file in (result_files(path) if path.is_dir() else [path])]
    models = sorted({file.model for file in found})
    if len(models) > 1:
        raise ValueError(f"{path} holds results of {len(models)} models ({'; '.join(models)}): give each a NAME=FOLDER of its own")
    cells = {column.name: replace(empty_cell(column), n_expected=column.n, refused="not evaluated") for column in suite.columns}
    scores: dict[str, stats.Scores] = {}
    records: dict[str, Mapping[str, Any]] = {}
    of_file = [file for file in found for _ in file.cells]
    for cell, file in zip(_agreed(found), of_file):
        before = cells.get(cell.benchmark)
        if before is not None and before.task == cell.task and _counts(cell) >= _counts(before):
            cells[cell.benchmark] = cell
            scores.pop(cell.benchmark, None)
            if cell.value is not None and cell.benchmark in file.scores:
                scores[cell.benchmark] = file.scores[cell.benchmark]
            records.pop(cell.task, None)
            if cell.task in file.records:
                records[cell.task] = file.records[cell.task]
    if not any(cell.refused != "not evaluated" for cell in cells.values()):
        raise ValueError(f"{path} holds no results of suite {suite.name}: its tasks are {', '.join(suite.tasks)}")
    return EncoderResult(name, "", "", None, None, None, "", False, cells, scores, records)


# --- comparison -----------------------------------------------------------------------------------------------------------------

UNKNOWN = ("weights", "language model", "training data and recipe", "whether the encoder was frozen", "pixels and visual tokens")


def asked(row: EncoderResult, task: str) -> str:
    """Digest of what a row was asked in a task, ours or lmms-eval's; "" where nothing says it."""
    result = row.results.get(task)
    if result is None:
        return ""
    if row.folder is None:
        return str(result["key"]["data"])
    return _asked_of_ours(row.folder / task / "samples.jsonl")


@lru_cache(maxsize=64)
def _asked_of_ours(path: Path) -> str:
    return _asked((row["doc_id"], row["prompt"], row["target"]) for row in _lines(path))


def asked_alike(a: EncoderResult, b: EncoderResult, task: str) -> bool:
    """Whether two rows, one of them of lmms-eval's files, were asked the same questions in the same words."""
    one = asked(a, task)
    return bool(one) and one == asked(b, task)


def unpaired(column: Column, a: EncoderResult, b: EncoderResult) -> str:
    """Why a column of two rows, one of them of lmms-eval's files, cannot be compared question by question; "" where it can."""
    for row in (a, b):
        if column.name not in row.scores:
            return f"{row.label}: {row.cells[column.name].note or 'no samples beside its files'}"
    return "" if asked_alike(a, b, column.task) else "the two were not asked the same questions in the same words"


def unknown(a: EncoderResult, b: EncoderResult) -> list[str]:
    """What a comparison with a row of lmms-eval's files cannot know, in words."""
    return [f"of {row.label} nothing states: {', '.join(UNKNOWN)}" for row in (a, b) if row.elsewhere]
