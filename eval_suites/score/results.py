"""Files -> cells: reads our result folders, and refuses what is not a score. lmms-eval's own files: lmms_files.py.

Why: "N/A", null, [] and NaN have all been averaged as 0 somewhere, a file of a `--limit 8` run looks like a full one, and a wrong split
gives a number of the right shape. Here a cell is a number with its n, its standard error and the digest of the weights behind it, or a
reason why it is none.

    python -m eval_suites.results results/ --json

Standard library and numpy; 260,000 answers are read in about 3 s.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval_suites.score import stats
from eval_suites.suites import Column, Suite
from genlip.common.fingerprint import Fingerprint, of_export
from genlip.common.labels import folder_name, one_line
from genlip.common.schema import SCHEMA, Provenance, Result, read

AGAIN = "delete its result.json and run the task again"  # whose answers are in the journal


@dataclass(frozen=True)
class Cell:
    """One number of one encoder. `value` is in the printed unit (lmms-eval's number x `scale`), as are stderr, low and high (95 %).

    `refused` says why the cell may not be averaged. A partial cell (n below n_expected) is refused and keeps its value, to be shown
    with its n; any other refusal has no value.
    """

    benchmark: str
    task: str
    metric: str
    unit: str
    scale: float
    value: float | None
    n: int | None
    n_expected: int | None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    digest: str = ""  # of the MLLM: its fingerprint's, in schema 1 its weights'
    refused: str | None = None
    left_out: int = 0  # samples whose picture could not be read
    full_mark: float = 100.0  # the printed value that counts as 100 in averages
    note: str = ""  # what has to be believed of a file of lmms-eval's: what it does not state, what its interval leaves out

    @property
    def complete(self) -> bool:
        return self.refused is None and self.value is not None

    @property
    def mark(self) -> float | None:
        """The value at 100 for full marks; None unless complete."""
        return None if self.value is None or not self.complete else self.value * 100 / self.full_mark

    @property
    def complete_except_unreadable(self) -> bool:
        """Complete but for pictures that cannot be read."""
        return self.value is not None and self.left_out > 0 and self.n is not None and self.n + self.left_out == self.n_expected


@dataclass(frozen=True)
class EncoderResult:
    """One encoder's MLLM and its cells, in the suite's order; a column that was never run has a refused cell.

    A row of plain lmms-eval's files (lmms_files.py) has no digest, and scores and results only where samples lie beside them.
    """

    encoder: str
    arch: str
    llm: str
    frozen: bool | None
    resolution: int | None
    tokens: int | None
    digest: str
    untrained: bool
    cells: dict[str, Cell]
    scores: dict[str, stats.Scores]
    results: dict[str, Mapping[str, Any]] = field(repr=False)  # task -> result.json, for what a comparison has to hold equal
    # Of a row that joins several training seeds (seeds.py): the rows it is the mean of, by seed. `results` are then the first one's.
    members: tuple["EncoderResult", ...] = field(default=(), repr=False)
    folder: Path | None = field(default=None, repr=False)  # of its tasks' folders; None in a row of plain lmms-eval's files

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Of the MLLM that answered; {} in a row of plain lmms-eval's files."""
        return next(iter(self.results.values()))["provenance"] if self.results else {}

    @property
    def first(self) -> "EncoderResult":
        """The row itself, or the first of its seeds."""
        return self.members[0] if self.members else self

    @property
    def seeds(self) -> int:
        return max(1, len(self.members))

    @property
    def elsewhere(self) -> bool:
        """Of plain lmms-eval's files, which name no weights."""
        return not self.digest

    @property
    def weights_digest(self) -> str:
        """ "" of a row that joins seeds, of lmms-eval's files, or without a result that is believed."""
        return "" if self.elsewhere or self.members else str(self.provenance.get("weights_digest", ""))

    @property
    def schema(self) -> int:
        """The oldest of what its results and its MLLM's provenance say."""
        if self.elsewhere:
            return SCHEMA
        said = [each for result in self.results.values() for each in (result["schema"], result["provenance"]["schema"])]
        return int(min(said, default=SCHEMA))

    @property
    def by_authors(self) -> bool:
        """Whether answers were decoded by the settings of the MLLM's authors, not by ours."""
        parts: Mapping[str, Any] = {} if self.elsewhere else next((result["fingerprint"] for result in self.results.values()), {})
        return str(parts.get("generation")).startswith("authors")

    @property
    def marks(self) -> list[str]:
        """What a reader has to know of the row at once, in words."""
        stage = self.provenance.get("stage", "sft")
        marks = ["untrained"] * self.untrained + [f"{stage} stage"] * (stage != "sft") + [f"{self.seeds} seeds"] * bool(self.members)
        return marks + ["schema 1"] * (self.schema == 1) + ["authors' generation"] * self.by_authors

    @property
    def label(self) -> str:
        return one_line(self.encoder) + (f" ({', '.join(self.marks)})" if self.marks else "")


def number(metrics: dict, column: Column) -> tuple[float | None, str | None]:
    """(lmms-eval's number for the column, None), or (None, why there is none). Keys match exactly, never by a part."""
    key = next((key for key in (column.metric, *column.aliases) if key in metrics), None)
    if key is None:
        there = ", ".join(sorted(name for name in metrics if "," in name and "_stderr" not in name)) or "none"
        return None, f"no {column.metric!r} among the results (there: {there}); the scored task is {column.task}, split {column.split}"
    value = metrics[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"{key} is {json.dumps(value)}, not a score; the scored task is {column.task}, split {column.split}"
    low, high = column.range
    if not low <= value <= high:  # nan too
        return None, f"{key} is {value}, outside {low:g} to {high:g}"
    return float(value), None


def empty_cell(column: Column) -> Cell:
    """The column's cell without a number."""
    return Cell(column.name, column.task, column.metric, column.unit, column.scale, None, None, None, full_mark=column.full_mark or 100.0)


def _marked(cell: Cell, column: Column, stated: float | dict | None) -> Cell:
    """The cell with the full mark that its data's manifest states, where the column leaves that to it; refused where none is stated."""
    if column.full_mark is not None:
        return cell
    maximum = stated.get(column.name) if isinstance(stated, dict) else stated
    if not maximum:
        return replace(cell, value=None, refused="the data's manifest states no maximum of this column: make the data again")
    return replace(cell, full_mark=maximum * column.scale)


def make_cell(column: Column, metrics: dict, n: int | None, n_expected: int | None, scores: stats.Scores | None, digest: str = "",
              left_out: int = 0) -> Cell:  # fmt: skip
    """The column's cell of one result: checked, scaled, with its standard error where the samples are there."""
    bare = replace(empty_cell(column), n=n, n_expected=n_expected, digest=digest, left_out=left_out)
    value, why = number(metrics, column)
    if value is None:
        return replace(bare, refused=why)
    if n is not None and n_expected is not None and n + left_out > n_expected:
        count = f"{n} samples" + (f" and {left_out} left out" if left_out else "")
        return replace(bare, refused=f"{count} where {n_expected} are declared: other data")
    if column.unit == "CIDEr" and n == 1:
        return replace(bare, refused="CIDEr of a single picture is 0 by definition")
    if scores is not None and not abs(scores.value - value) <= 1e-6 * max(1.0, abs(value)):  # nan too
        return replace(bare, refused=f"the samples give {scores.value:g}, the result says {value:g}")
    partial = f"{n} of {n_expected}" if n is not None and n_expected is not None and n < n_expected else None
    if partial and left_out:
        partial += f", {left_out} left out whose pictures cannot be read"
    error = low = high = None
    if scores is not None:
        error = stats.stderr([scores], [1.0])
        most = scores.factor  # points of a subset end at n / 1000: their interval is that of the share of right answers
        share = None if error is None else error / most
        low, high = stats.interval(value / most, share, len(np.unique(scores.pictures)), column.range)
        low, high = (None, None) if low is None or high is None else (low * most, high * most)
    scaled = [None if x is None else x * column.scale for x in (value, error, low, high)]
    return replace(bare, value=scaled[0], stderr=scaled[1], low=scaled[2], high=scaled[3], refused=partial)


@dataclass(frozen=True)
class Samples:
    """A samples.jsonl of ours: the document of each line, and the scores of each column by its name."""

    docs: list[str] = field(repr=False)
    scores: dict[str, stats.Scores]
    digest: str  # sha256 of the file


def read_samples(path: Path, columns: Sequence[Column]) -> Samples:
    """The samples of one task, whose columns these are. ValueError, with the line, where one is not to be read."""
    docs: list[str] = []
    found: dict[str, list[tuple[str, str, str, float]]] = {column.name: [] for column in columns}
    wanted = [(column.metric.split(",")[0], column, found[column.name]) for column in columns]
    whole = hashlib.sha256()
    with path.open("rb") as stream:
        for line_number, line in enumerate(stream, 1):
            whole.update(line)
            try:
                sample = json.loads(line)
                if type(doc_id := sample["doc_id"]) is not int or not 0 <= doc_id < 2**63:
                    raise TypeError("doc_id is not the number of a document")
                if not isinstance(sample["scores"], dict) or not isinstance(sample["image"], str | None):
                    raise TypeError("scores takes an object, image text")
                doc = str(doc_id)
                docs.append(doc)
                for metric, column, own in wanted:
                    if metric not in sample["scores"]:
                        continue  # MME's samples have one of its two metrics each
                    score = sample["scores"][metric]
                    # The digest of the pictures' decoded pixels, by which one picture is one in every column; without, a question's own.
                    picture = sample["image"] or f"{column.task} {doc}"
                    value = float(score["score"] if isinstance(score, dict) else score)
                    own.append((*unit(column, doc, score), picture, value))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise ValueError(f"{path}, line {line_number}: not a sample of {columns[0].task} ({error!r}); {AGAIN}") from error
    if lacking := [metric for metric, _, own in wanted if not own]:
        raise ValueError(f"{path} holds no sample with {lacking[0]}; {AGAIN}")
    return Samples(docs, {column.name: scores_of(column, found[column.name], path) for column in columns}, whole.hexdigest())


def unit(column: Column, doc: str, score: Any) -> tuple[str, str]:
    """(what is scored, its category) of a sample: the question, or MME's pair of questions about a picture."""
    return (f"{score['category']}/{score['question_id']}", str(score["category"])) if column.aggregate == "mme" else (doc, "")


def scores_of(column: Column, samples: list[tuple[str, str, str, float]], path: Path) -> stats.Scores:
    """The column's scores of (what is scored, category, picture, score), one a sample of the file."""
    ids, categories, pictures, values = zip(*samples)
    strata = np.unique(np.array(categories), return_inverse=True)[1]
    scores = stats.Scores(np.array(ids), np.array(pictures), np.array(values), strata)
    if column.aggregate == "points":
        return replace(scores, factor=len(ids) / 1000)  # lmms-eval divides the points by 1000 on a subset too
    return _pairs(scores, path) if column.aggregate == "mme" else scores


def _pairs(scores: stats.Scores, path: Path) -> stats.Scores:
    """MME's unit: the two questions about a picture, 50 points each and 100 more where both are right."""
    ids, first, pair, count = np.unique(scores.ids, return_index=True, return_inverse=True, return_counts=True)
    if np.any(count != 2):
        raise ValueError(f"{path}: MME counts pairs, and {ids[count != 2][0]} has {count[count != 2][0]} question(s)")
    right = np.bincount(pair, scores.values)
    return stats.Scores(ids, scores.pictures[first], 50.0 * right + 100.0 * (right == 2), scores.strata[first])


def _of_the_answered(cell: Cell, scores: stats.Scores) -> tuple[Cell, stats.Scores]:
    """OCRBench's points without its unreadable pictures, as if these had been answered like the others.

    lmms-eval divides by 1,000 whatever was asked, so that a picture left out would count as a wrong answer here and in no other column.
    """
    assert cell.n and cell.n_expected
    share = cell.n_expected / cell.n
    value, error, low, high = (None if x is None else x * share for x in (cell.value, cell.stderr, cell.low, cell.high))
    return replace(cell, value=value, stderr=error, low=low, high=high), replace(scores, factor=scores.factor * share)


def read_result(folder: Path) -> Result | None:
    """result.json of a task's folder; None where the task is not done. ValueError where the file is no result."""
    path = folder / "result.json"
    if not path.exists():
        return None
    result = read(Result, path, "delete the folder and run the task again")
    if not result.key.get("model", result.key.get("weights")):
        raise ValueError(f"{path}: key does not say model: delete the folder and run the task again")
    return result


def row_folder(root: Path, suite: str, encoder: str, llm: str, digest: str) -> Path:
    """Where a row's tasks lie under the results folder."""
    return root / suite / folder_name(encoder) / f"{folder_name(llm)}@{digest[:8]}"


def misplaced(result: Result, folder: Path) -> str:
    """How a result contradicts the task's folder that it lies in, in words; "" where it does not."""
    own = row_folder(Path(), result.suite, result.encoder, result.llm, result.digest) / result.task
    said = zip(("suite", "encoder", "MLLM", "task"), own.parts, folder.absolute().parts[-4:])
    differing = [f"{name} {inside}, its folder {outside}" for name, inside, outside in said if inside != outside]
    return f"its result says {'; '.join(differing)}: {AGAIN}" if differing else ""


def _mllm(result: Result) -> str:
    """What a result says of the MLLM that answered, as a comparison reads it, as text."""
    return json.dumps([result.digest, result.fingerprint, facts_of(result.provenance)], sort_keys=True, default=str)


def facts_of(said: Provenance) -> dict[str, Any]:
    """What tables and comparisons take from a provenance, by name."""
    names = ("weights_digest", "encoder_digest", "untrained", "seed")
    earlier = {f"stage {i}.{name}": value for i, stage in enumerate(said.earlier, 1) for name, value in stage.compared().items()}
    return {**{name: said[name] for name in names}, **said.compared(), **earlier}


def _believed(folder: Path, found: dict[str, Result]) -> tuple[dict[str, Result], dict[str, str]]:
    """(the results of a row's folder that lie where they belong and are of one MLLM; task -> why another is not believed)."""
    doubts = {task: why for task, result in found.items() if (why := misplaced(result, folder / task))}
    for task, result in found.items():
        parts = result.fingerprint  # results of before there were fingerprints have none
        if parts and (result.digest != Fingerprint(parts).digest or parts.get("weights") != result.weights_digest):
            doubts.setdefault(task, f"its fingerprint is not that of the MLLM that it names: {AGAIN}")
    said = {task: _mllm(result) for task, result in found.items() if task not in doubts}
    ((most, _),) = Counter(said.values()).most_common(1) or [("", 0)]
    doubts |= {task: f"its result is of another MLLM than the row's other tasks: {AGAIN}" for task, each in said.items() if each != most}
    return {task: result for task, result in found.items() if task not in doubts}, doubts


def _disagreeing(result: Result, samples: Samples, columns: Sequence[Column]) -> str:
    """How a task's samples contradict its result, in words; "" where they do not."""
    docs = set(samples.docs)
    if len(docs) != len(samples.docs):
        return f"its samples hold {len(samples.docs) - len(docs)} documents twice: {AGAIN}"
    if result.n != len(docs):
        return f"its result says n = {result.n}, and there are {len(docs)} samples: {AGAIN}"
    if docs & result.left_out.keys():
        return f"its samples hold documents that its result left out: {AGAIN}"
    for column in columns:
        values = samples.scores[column.name].values
        low, high = column.range if column.aggregate == "mean" else (0.0, np.inf)
        if not np.all((low <= values) & (values <= high) & np.isfinite(values)):
            return f"its samples hold scores outside {low:g} to {high:g}: {AGAIN}"
    return ""


def read_row(folder: Path, suite: Suite) -> EncoderResult | None:
    """The row of `results/<suite>/<encoder>/<llm>@<digest8>/`; None where no task of the suite is done.

    The folder names the row. A result that cannot be read, or contradicts it, the row's other tasks or its own samples, is a refused cell,
    and no more.
    """
    found, unread = {}, {}
    for task in suite.tasks:
        try:
            if result := read_result(folder / task):
                found[task] = result
        except ValueError as error:
            unread[task] = str(error)
    if not found and not unread:
        return None
    results, doubts = _believed(folder, found)
    doubts |= unread
    cells, scores = {}, {}
    for task in suite.tasks:
        columns = [column for column in suite.columns if column.task == task]
        if task in results:
            try:
                file = folder / task / "samples.jsonl"
                samples = read_samples(file, columns)
                why = _disagreeing(results[task], samples, columns)
                if not why and results[task].samples_digest not in (None, samples.digest):
                    why = f"{file} is not the file that its result was made from: {AGAIN}"
            except FileNotFoundError as error:
                why = f"{error.filename} is gone, and a result without its samples is no result: {AGAIN}"
            except ValueError as error:
                why = str(error)
            if why:
                doubts[task] = why
                del results[task]
        for column in columns:
            if task not in results:
                cells[column.name] = replace(empty_cell(column), n_expected=column.n, refused=doubts.get(task, "not evaluated"))
            else:
                cells[column.name], scores[column.name] = _cell(column, results[task], samples.scores[column.name])
    llm, _, digest8 = folder.name.rpartition("@")
    first = next(iter(results.values()), None)
    mllm: Mapping[str, Any] = first.provenance if first else {}
    named = (first.encoder, first.llm, first.digest) if first else (folder.parent.name.replace("--", "/"), llm, digest8)
    encoder, llm, digest = named
    return EncoderResult(
        encoder, mllm.get("arch") or "", llm, mllm.get("frozen"), mllm.get("resolution"), mllm.get("tokens"), digest,
        bool(mllm.get("untrained")), {column.name: cells[column.name] for column in suite.columns}, scores, dict(results), folder=folder,
    )  # fmt: skip


def _cell(column: Column, result: Result, scores: stats.Scores) -> tuple[Cell, stats.Scores]:
    """The column's cell of a result, and the scores that it is made of."""
    n_expected = column.n if column.n is not None else result.n_expected
    cell = make_cell(column, result.results, result.n, n_expected, scores, result.digest, len(result.left_out))
    if column.aggregate == "points" and cell.complete_except_unreadable:
        cell, scores = _of_the_answered(cell, scores)
    return _marked(cell, column, result.key.get("maximum")), scores


def read_rows(root: Path, suite: Suite) -> list[EncoderResult]:
    """All rows under `root` (the results folder), ordered by LLM, encoder and digest."""
    folders = sorted(path for path in (root / suite.name).glob("*/*") if path.is_dir())
    rows = [row for folder in folders if (row := read_row(folder, suite))]
    return sorted(rows, key=lambda row: (row.llm, row.encoder, row.digest))


def find_rows(rows: list[EncoderResult], names: str | None, suite: Suite) -> list[EncoderResult]:
    """The rows that --compare names, two or more, by `find_row`; none for None."""
    picked = [find_row(rows, name.strip(), suite) for name in names.split(",")] if names else []
    if len(picked) == 1:
        raise ValueError("--compare wants two encoders or more, as in --compare A,B")
    if any(one is picked[0] for one in picked[1:]):
        raise ValueError(f"--compare {names}: the first is compared with itself")
    return picked


def find_row(rows: list[EncoderResult], name: str, suite: Suite) -> EncoderResult:
    """The row of `ENCODER`, `ENCODER@DIGEST` (its first digits) or `ENCODER@EXPORT` (its folder). ValueError where none or several are.

    Of seeds that are joined into a row, ENCODER is that row and ENCODER@DIGEST one of them.
    """
    encoder, _, which = name.partition("@")
    rows = [each for row in rows for each in (row, *(row.members if which else ()))]
    either = {which}
    if which and (Path(which) / "provenance.json").exists():
        weights = read(Provenance, Path(which) / "provenance.json", "export the model again").weights_digest
        either = {of_export(Path(which), weights).digest, weights}  # rows of schema 1 are known by their weights
    found = [row for row in rows if row.encoder == encoder and row.digest.startswith(tuple(either))]
    if not found:
        there = ", ".join(sorted({row.encoder for row in rows}))
        there = f" (there are: {there})" if there else ", nor of any other encoder"
        raise ValueError(
            f"no results of {name} in suite {suite.name}{there}. Evaluate it: "
            f"python eval_suites/run.py --encoder {encoder} --suite {suite.name}"
        )
    if len(found) > 1:
        choices = ", ".join(f"{encoder}@{row.digest[:8]} ({', '.join(said)})" for row, said in zip(found, _set_apart(found)))
        raise ValueError(f"{len(found)} rows of {name}: say which, one of {choices}")
    return found[0]


def _set_apart(rows: list[EncoderResult]) -> list[list[str]]:
    """What a reader may tell each of several rows of one encoder by: language model, marks of its label, and what of its training is not
    the same in all; five facts at most."""
    facts = []
    for row in rows:
        said: Provenance | None = next((result["provenance"] for result in row.results.values()), None)
        seed = {"seed": said.recipe.get("seed")} if said and not row.members else {}
        facts.append({**(said.compared() if said else {}), **seed})
    names = dict.fromkeys(name for said in facts for name in said)
    differing = [name for name in names if len({json.dumps(said.get(name)) for said in facts}) > 1]
    told = [
        [f"{name.removeprefix('recipe.')} {json.dumps(said[name])}" for name in differing if said.get(name) is not None] for said in facts
    ]
    return [[row.llm, *row.marks, *said][:5] for row, said in zip(rows, told)]
