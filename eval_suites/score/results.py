"""Files -> cells: reads our result folders and lmms-eval's own result files, and refuses what is not a score.

Why: "N/A", null, [] and NaN have all been averaged as 0 somewhere, a file of a `--limit 8` run looks like a full one, and a wrong split
gives a number of the right shape. Here a cell is a number with its n, its standard error and the digest of the weights behind it, or a
reason why it is none.

    python -m eval_suites.results results/ --json

Standard library and numpy; 260,000 answers are read in about 3 s.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval_suites import suites
from eval_suites.score import stats
from eval_suites.suites import Column, Suite
from genlip.common.fingerprint import of_export
from genlip.common.schema import Provenance, Result, read


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

    A row of plain lmms-eval's files (`read_elsewhere`) has no scores and no results: no intervals, no rank, no comparison.
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
    results: dict[str, Result] = field(repr=False)  # task -> result.json, for what a comparison has to hold equal

    @property
    def weights_digest(self) -> str:
        return next(iter(self.results.values()))["provenance"].weights_digest if self.results else ""

    @property
    def schema(self) -> int:
        """The oldest of what its results and its MLLM's provenance say."""
        return (
            min(each for result in self.results.values() for each in (result["schema"], result["provenance"].schema)) if self.results else 2
        )

    @property
    def label(self) -> str:
        stage = next(iter(self.results.values()))["provenance"].get("stage", "sft") if self.results else "sft"
        marks = ["untrained"] * self.untrained + [f"{stage} stage"] * (stage != "sft") + ["schema 1"] * (self.schema == 1)
        return self.encoder + (f" ({', '.join(marks)})" if marks else "")


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


def _bare(column: Column) -> Cell:
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
    bare = replace(_bare(column), n=n, n_expected=n_expected, digest=digest, left_out=left_out)
    value, why = number(metrics, column)
    if value is None:
        return replace(bare, refused=why)
    if n is not None and n_expected is not None and n > n_expected:
        return replace(bare, refused=f"{n} samples where {n_expected} are declared: other data")
    if column.unit == "CIDEr" and n == 1:
        return replace(bare, refused="CIDEr of a single picture is 0 by definition")
    if scores is not None and abs(scores.value - value) > 1e-6 * max(1.0, abs(value)):
        return replace(bare, refused=f"the samples give {scores.value:g}, the result says {value:g}")
    partial = f"{n} of {n_expected}" if n is not None and n_expected is not None and n < n_expected else None
    if partial and left_out:
        partial += f", {left_out} left out whose pictures cannot be read"
    error = low = high = None
    if scores is not None:
        error = stats.stderr([scores], [1.0], False)
        most = scores.factor  # points of a subset end at n / 1000: their interval is that of the share of right answers
        share = None if error is None else error / most
        low, high = stats.interval(value / most, share, len(np.unique(scores.pictures)), column.range)
        low, high = (None, None) if low is None or high is None else (low * most, high * most)
    scaled = [None if x is None else x * column.scale for x in (value, error, low, high)]
    return replace(bare, value=scaled[0], stderr=scaled[1], low=scaled[2], high=scaled[3], refused=partial)


def read_scores(path: Path, column: Column) -> stats.Scores:
    """The column's scores, sample by sample, from a samples.jsonl of ours. ValueError, with the line, where one is not to be read."""
    metric = column.metric.split(",")[0]
    ids, pictures, values, categories = [], [], [], []
    with path.open(encoding="utf-8") as stream:
        for line_number, line in enumerate(stream, 1):
            try:
                sample = json.loads(line)
                if metric not in sample["scores"]:
                    continue  # MME's samples have one of its two metrics each
                score = sample["scores"][metric]
                doc = str(sample["doc_id"])
                ids.append(f"{score['category']}/{score['question_id']}" if column.aggregate == "mme" else doc)
                pictures.append(sample["image"] or f"doc {doc}")
                values.append(float(score["score"] if isinstance(score, dict) else score))
                categories.append(score["category"] if column.aggregate == "mme" else "")
            except (ValueError, KeyError, TypeError) as error:
                what = f"{path}, line {line_number}: not a sample of {column.task} ({error!r})"
                raise ValueError(f"{what}; delete the task's folder and run it again") from error
    if not ids:
        raise ValueError(f"{path} holds no sample with {metric}; delete the task's folder and run it again")
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


def read_result(folder: Path) -> Result | None:
    """result.json of a task's folder; None where the task is not done. ValueError where the file is no result."""
    path = folder / "result.json"
    return read(Result, path, "delete the folder and run the task again") if path.exists() else None


def read_row(folder: Path, suite: Suite) -> EncoderResult | None:
    """The row of `results/<suite>/<encoder>/<llm>@<digest8>/`; None where no task of the suite is done."""
    results = {task: result for task in suite.tasks if (result := read_result(folder / task))}
    if not results:
        return None
    cells, scores = {}, {}
    for column in suite.columns:
        result = results.get(column.task)
        if result is None:
            cells[column.name] = replace(_bare(column), n_expected=column.n, refused="not evaluated")
            continue
        scores[column.name] = read_scores(folder / column.task / "samples.jsonl", column)
        n_expected = column.n if column.n is not None else result["n_expected"]
        cell = make_cell(column, result["results"], result["n"], n_expected, scores[column.name], result.digest,
                         len(result.get("left_out") or ()))  # fmt: skip
        cells[column.name] = _marked(cell, column, result["key"].get("maximum"))
    first = next(iter(results.values()))
    mllm = first["provenance"]
    digest = first.digest
    return EncoderResult(
        first["encoder"], mllm.get("arch") or "", first["llm"], mllm.get("frozen"), mllm.get("resolution"), mllm.get("tokens"), digest,
        bool(mllm.get("untrained")), cells, scores, results,
    )  # fmt: skip


def read_rows(root: Path, suite: Suite) -> list[EncoderResult]:
    """All rows under `root` (the results folder), ordered by LLM, encoder and digest."""
    folders = sorted(path for path in (root / suite.name).glob("*/*") if path.is_dir())
    rows = [row for folder in folders if (row := read_row(folder, suite))]
    return sorted(rows, key=lambda row: (row.llm, row.encoder, row.digest))


def cells_of_file(path: Path) -> tuple[str, list[Cell]]:
    """(what answered, cells) of a JSON file: a result.json of ours with the samples beside it, or results of lmms-eval 0.2 to 0.7."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(f"{path} holds no results")
    if "key" in content and "suite" in content:
        row = read_row(path.parent.parent, suites.get(content["suite"]))
        if row is None:
            raise ValueError(f"{path} lies away from the results it was written among: give the file where run.py wrote it")
        return row.digest, [cell for cell in row.cells.values() if cell.task == content["task"]]
    config = content.get("config") or content.get("model_configs") or {}
    cells = []
    for task, metrics in content["results"].items():
        n = (content.get("n-samples") or {}).get(task, {}).get("effective")
        cells += [_foreign_cell(column, metrics, n, config) for column in _columns(task)] or [_undeclared(task)]
    return json.dumps([config.get("model"), config.get("model_args")]), cells


def _columns(task: str) -> list[Column]:
    """Columns of any suite that the task fills, under its packaged name or that of a resolved definition."""
    columns = {(column.name, column.task): column for suite in suites.SUITES.values() for column in suite.columns}
    return [column for column in columns.values() if column.task == task.removesuffix("_local")]


def _foreign_cell(column: Column, metrics: dict, n: int | None, config: dict) -> Cell:
    """A cell of lmms-eval's own file. Before 0.3 such a file names no n: then only a limit written down as null speaks for a full run."""
    cell = make_cell(column, metrics, n, column.n, None)
    if n is None and cell.complete and config.get("limit", "not recorded") is not None:
        return replace(cell, value=None, refused=f"the file names no n, and its limit is {config.get('limit', 'not recorded')}")
    return cell


def _undeclared(task: str) -> Cell:
    stem = task.rpartition("_")[0]
    scored = [column for suite in suites.SUITES.values() for column in suite.columns if stem and column.task.rpartition("_")[0] == stem]
    hint = f"; the scored task is {scored[0].task}, split {scored[0].split}" if scored else ""
    return Cell(task, task, "", "", 1.0, None, None, None, refused=f"no column is declared for task {task!r}{hint}")


def read_cells(paths: list[Path]) -> list[Cell]:
    """Cells of files and of every result below folders. Where two files of one model disagree about a number, neither is taken."""
    files = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        files += sorted([*path.rglob("result.json"), *path.rglob("*_results.json")]) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"no result.json and no *_results.json under {', '.join(map(str, paths))}")
    return _agreed([cells_of_file(file) for file in files])


def _agreed(found: list[tuple[str, list[Cell]]]) -> list[Cell]:
    """The cells of (model, cells) pairs, those refused about whose number two of one model disagree."""
    keyed = [((model, cell.benchmark), cell) for model, cells in found for cell in cells]
    values: dict[tuple, set[float]] = {}
    for key, cell in keyed:
        if cell.complete and cell.value is not None:
            values.setdefault(key, set()).add(cell.value)
    return [
        replace(cell, value=None, refused=f"files disagree: {' and '.join(f'{value:g}' for value in sorted(values[key]))}")
        if cell.complete and len(values[key]) > 1
        else cell
        for key, cell in keyed
    ]


def read_elsewhere(name: str, path: Path, suite: Suite) -> EncoderResult:
    """The row of a model that plain lmms-eval evaluated: `path` is one of its *_results.json files, or a folder of such.

    Such files name neither weights nor answers: the row has no intervals and no digest. ValueError where they hold no column of the
    suite, or are of several models.
    """
    if any(column.n is None or column.full_mark is None for column in suite.columns):
        raise ValueError(
            f"suite {suite.name} takes its n and full marks from its data's manifest, which such files do not name: use run.py"
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist: give lmms-eval's --output_path folder, or a *_results.json")
    files = sorted(path.rglob("*results.json")) if path.is_dir() else [path]
    found = [cells_of_file(file) for file in files]
    models = sorted({model for model, _ in found})
    if len(models) > 1:
        raise ValueError(f"{path} holds results of {len(models)} models ({'; '.join(models)}): give each a NAME=FOLDER of its own")
    cells = {column.name: replace(_bare(column), n_expected=column.n, refused="not evaluated") for column in suite.columns}
    for cell in _agreed(found):
        before = cells.get(cell.benchmark)
        # Of several files the one with a whole number counts; those that disagree are refused by now.
        if before is not None and before.task == cell.task and (before.value is None or cell.complete):
            cells[cell.benchmark] = cell
    if not any(cell.refused != "not evaluated" for cell in cells.values()):
        raise ValueError(f"{path} holds no results of suite {suite.name}: its tasks are {', '.join(suite.tasks)}")
    return EncoderResult(name, "", "", None, None, None, "", False, cells, {}, {})


def find_rows(rows: list[EncoderResult], names: str | None, suite: Suite) -> list[EncoderResult]:
    """The rows that --compare names, two or more, by `find_row`; none for None."""
    picked = [find_row(rows, name.strip(), suite) for name in names.split(",")] if names else []
    if len(picked) == 1:
        raise ValueError("--compare wants two encoders or more, as in --compare A,B")
    return picked


def find_row(rows: list[EncoderResult], name: str, suite: Suite) -> EncoderResult:
    """The row of `ENCODER`, `ENCODER@DIGEST` (its first digits) or `ENCODER@EXPORT` (its folder). ValueError where none or several are."""
    encoder, _, which = name.partition("@")
    either = {which}
    if which and (Path(which) / "provenance.json").exists():
        weights = read(Provenance, Path(which) / "provenance.json", "export the model again").weights_digest
        either = {of_export(Path(which), weights).digest, weights}  # rows of schema 1 are known by their weights
    found = [row for row in rows if row.encoder == encoder and row.digest.startswith(tuple(either))]
    if not found:
        there = ", ".join(sorted({row.encoder for row in rows})) or "none"
        raise ValueError(
            f"no results of {name} in suite {suite.name} (there are: {there}). Evaluate it: "
            f"python eval_suites/run.py --encoder {encoder} --suite {suite.name}"
        )
    if len(found) > 1:
        choices = ", ".join(f"{encoder}@{row.digest[:8]} ({row.llm})" for row in found)
        raise ValueError(f"{len(found)} rows of {name}: say which, one of {choices}")
    return found[0]
