"""The samples that a report shows: which are chosen, what was answered, and their pictures out of the benchmark's own data.

Why: 260,000 answers are no reading matter, and 200 of them are. Half of the places go to questions on which the encoders disagree, as far
as there are so many, the rest are drawn from all others; drawn with a fixed seed, so that a report made again shows the same. What is shown
is therefore no estimate of a score: the report gives the counts over all samples beside it.

Memory: scores of all samples as numbers, texts and pictures of the chosen ones only. Files are read line by line, pictures row group by row
group and only those of the chosen rows. A picture is shown if the data at hand are, by digest, those that were evaluated.
"""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval_suites import tasks
from eval_suites.score.results import AGAIN, EncoderResult
from eval_suites.suites import Column, Suite
from genlip.common.files import require

PICTURE_BYTES = 16_000_000  # of all pictures together, before base64 makes them a third longer
LARGEST_PICTURE = 60_000  # of one, however few there are
TEXT_LETTERS = 3_000_000  # of all benchmarks together
LONGEST_SIDE, SHORTEST_SIDE = 640, 112  # pixels of a picture's longer side
# Of a sample, what the page shows.
SHOWN = {"prompt": str, "answer": str, "target": str | int | float | bool | list | dict | None, "image": str | None, "doc": dict}
# Fields of the benchmarks' rows that sort them into kinds; the first that tells the shown samples apart is taken.
CATEGORIES = ("category", "question_image_type", "question_type", "type", "answer_type", "subject", "topic", "semanticStr", "dataset")


@dataclass(frozen=True)
class SampleScores:
    """One row's scores of a task by document: `docs` (n,) int64, ascending, `scores` (n,) float64."""

    docs: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class BenchmarkSamples:
    """A benchmark's part of the page: what was chosen and how, `items` as the page reads them, `pictures` as base64 with their type."""

    task: str
    title: str
    total: int
    counts: dict[str, int]
    said: list[str]
    prompt: str
    right_from: float
    rows: list[int]
    items: list[dict] = field(repr=False)
    pictures: list[str] = field(repr=False)


def benchmark(
    suite: Suite, task: str, rows: list[EncoderResult], folders: list[Path], count: int, data_root: Path | None
) -> BenchmarkSamples | None:
    """The task's samples, at most `count`; None where no row has answered it. `folders`: each row's folder, beside it."""
    columns = [column for column in suite.columns if column.task == task]
    done = [i for i, row in enumerate(rows) if task in row.results]
    if not done:
        return None
    data = rows[done[0]].results[task]["key"]["data"]
    same = [i for i in done if rows[i].results[task]["key"]["data"] == data]
    said = [f"{rows[i].label} answered other data of this benchmark; its answers are not shown here." for i in done if i not in same]
    right_from = 1.0 if columns[0].unit == "CIDEr" else 0.5
    said += [f"{rows[i].label}: answers of its first seed are shown." for i in same if rows[i].members]
    metrics = [column.metric.split(",")[0] for column in columns]
    marks = [_marks(rows[i], columns, metrics, folders[i] / task / "samples.jsonl") for i in same]
    docs = np.unique(np.concatenate([mark.docs for mark in marks]))
    table = np.full((len(marks), len(docs)), np.nan)
    for line, mark in zip(table, marks):
        line[np.searchsorted(docs, mark.docs)] = mark.scores
    chosen, counts = choose(docs, table >= right_from, np.isnan(table), count)
    texts, prompt = [], ""
    for i in same:
        found, first = take(folders[i] / task / "samples.jsonl", set(chosen.tolist()))
        texts, prompt = [*texts, found], prompt or first
    budget = TEXT_LETTERS // len(suite.tasks)
    items = _items(chosen.tolist(), texts, metrics, budget)
    pictures, why = _pictures(task, items, data_root, data, PICTURE_BYTES // (len(suite.tasks) * max(count, 1)))
    said += [why] if why else []
    title = " / ".join(column.title for column in columns)
    return BenchmarkSamples(task, title, len(docs), counts, said, prompt, right_from, same, items, pictures)


def _marks(row: EncoderResult, columns: list[Column], metrics: list[str], path: Path) -> SampleScores:
    """Scores by document: those that the cells are made of; MME's cells are made of pairs, so its samples are read once more.

    A sample of MME without a score belongs to the half of MME that is no column of the suite.
    """
    if columns[0].aggregate != "mme":
        scores = row.scores[columns[0].name]
        docs, values = scores.ids.astype(np.int64), scores.values
    else:
        found = []
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                sample = json.loads(line)  # as read_samples of score/results.py has read it before
                found += [(sample["doc_id"], float(score["score"])) for metric, score in sample["scores"].items() if metric in metrics]
        docs, values = np.array([doc for doc, _ in found], np.int64), np.array([score for _, score in found])
    order = np.argsort(docs)
    return SampleScores(docs[order], values[order])


def choose(docs: np.ndarray, right: np.ndarray, missing: np.ndarray, count: int) -> tuple[np.ndarray, dict[str, int]]:
    """(the chosen documents, ascending; how many there are of each kind). docs (n,); right, missing (rows, n)."""
    whole = ~missing.any(0)
    differ = whole & right.any(0) & ~right.all(0)
    counts = {
        "all right": int((whole & right.all(0)).sum()),
        "none right": int((whole & ~right.any(0)).sum()),
        "they differ": int(differ.sum()),
        "not answered by all": int((~whole).sum()),
    }
    draw = np.random.default_rng(0).permutation(len(docs))
    first, rest = draw[differ[draw]], draw[~differ[draw]]
    wanted = min(len(first), max((count + 1) // 2, count - len(rest)))
    taken = np.concatenate([first[:wanted], rest[: max(0, count - wanted)]])
    return np.sort(docs[taken]), counts


def take(path: Path, docs: set[int]) -> tuple[dict[int, dict], str]:
    """(the samples of these documents, the prompt of the file's first), read line by line; other lines are not parsed."""
    found, prompt = {}, ""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            doc = int(line[11 : line.index(b",")]) if line.startswith(b'{"doc_id": ') else json.loads(line)["doc_id"]
            if number == 1 or doc in docs:
                sample = require(json.loads(line), SHOWN, f"{path}, line {number}", AGAIN)
                prompt = sample["prompt"] if number == 1 else prompt
                found |= {doc: sample} if doc in docs else {}
    return found, prompt


def _items(docs: list[int], texts: list[dict[int, dict]], metrics: list[str], budget: int) -> list[dict]:
    """Chosen samples as the page reads them. Texts are whole unless all of them together pass `budget` letters; a cut one says so."""
    chosen = [[found.get(doc) for found in texts] for doc in docs]
    first = [next(sample for sample in samples if sample) for samples in chosen]
    answers = [[None if sample is None else str(sample["answer"]) for sample in samples] for samples in chosen]
    targets = [_target(sample["target"]) for sample in first]
    letters = sorted(len(text) for i, one in enumerate(first) for text in [one["prompt"], targets[i], *answers[i]] if text)
    longest = _limit(letters, budget)
    category = next((name for name in CATEGORIES if _tells_apart([one["doc"].get(name) for one in first])), None)
    return [
        {
            "id": doc,
            "question": _cut(one["prompt"], longest),
            "reference": _cut(target, longest),
            "category": "" if category is None else str(one["doc"].get(category, "")),
            "image": one["image"],
            "answers": [
                None if sample is None else {"text": _cut(text, longest), "score": _score(sample, metrics)}
                for sample, text in zip(samples, replies)
            ],
        }
        for doc, one, target, samples, replies in zip(docs, first, targets, chosen, answers)
    ]


def _tells_apart(values: list) -> bool:
    kinds = {value for value in values if isinstance(value, str) and value}
    return 2 <= len(kinds) <= 40 and len(kinds) * 2 <= len(values)


def _score(sample: dict, metrics: list[str]) -> float:
    score = next(sample["scores"][metric] for metric in metrics if metric in sample["scores"])
    return round(float(score["score"] if isinstance(score, dict) else score), 4)


def _target(target) -> str:
    """The reference, in words; of several, each once, the most frequent first."""
    if isinstance(target, list):
        texts = [str(each) for each in target]
        return " | ".join(sorted(dict.fromkeys(texts), key=lambda text: -texts.count(text)))
    return str(target)


def _limit(letters: list[int], budget: int) -> int:
    """The longest text that may stay whole if all of them are to fit into the budget; `letters` ascending."""
    left = budget
    for i, length in enumerate(letters):
        if length * (len(letters) - i) > left:
            return max(200, left // (len(letters) - i))
        left -= length
    return letters[-1] if letters else 0


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:longest]} [\u2026 {len(text) - longest:,} more of {len(text):,} characters are in samples.jsonl]"


# --- pictures ---------------------------------------------------------------------------------------------------------------


def _pictures(task: str, items: list[dict], root: Path | None, digest: str, size: int) -> tuple[list[str], str]:
    """(pictures as `jpeg;base64,...`, why there are none). Every item gets `picture`, an index, or `why` it has none."""
    try:
        if root is None:
            raise ValueError("No data folder was given: --data-root DIR shows the pictures.")
        data = tasks.locate(task, root)
        if data.digest != digest:
            raise ValueError(f"The data under {root} are not those that were evaluated: no picture is shown for another.")
    except ValueError as error:
        for item in items:
            item["why"] = "picture not at hand"
        return [], str(error)
    found: dict[str, int] = {}  # a picture's digest -> its place: several questions about it share it
    wanted = []
    for item in items:
        if item["image"] and item["image"] in found:
            item["picture"] = found[item["image"]]
        else:
            item["picture"] = found[item["image"]] = len(wanted)
            wanted.append(item["id"])
    pictures: list[str] = [""] * len(wanted)
    place = {doc: i for i, doc in enumerate(wanted)}
    why: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:  # decoding and encoding let go of the interpreter's lock
        for rows in _rows(data, wanted):
            for doc, shown in zip(rows, pool.map(lambda content: _shrunk(content, min(size, LARGEST_PICTURE)), rows.values())):
                pictures[place[doc]], why[place[doc]] = shown
    for item in items:
        if not pictures[item["picture"]]:
            item["why"] = why.get(item["picture"]) or "the data have no such row"
            del item["picture"]
    return pictures, ""


def _rows(data: tasks.Data, docs: list[int]) -> Iterator[dict[int, bytes | None]]:
    """{document: bytes of its picture, or None} for the documents asked for, one row group of the data after the other."""
    import pyarrow.parquet as pq

    row_of, files = {doc: doc for doc in docs}, data.files
    if data.images:  # GQA's questions name their pictures, which lie in files of their own
        names = [name for file in data.files for name in pq.read_table(file, columns=["imageId"])["imageId"].to_pylist()]
        ids = [name for file in data.images for name in pq.read_table(file, columns=["id"])["id"].to_pylist()]
        place = {name: row for row, name in enumerate(ids)}
        row_of, files = {doc: place[names[doc]] for doc in docs if doc < len(names) and names[doc] in place}, data.images
    docs_of: dict[int, list[int]] = {}
    for doc, row in row_of.items():
        docs_of.setdefault(row, []).append(doc)
    start = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            column = _picture_column(file.schema_arrow)
            for group in range(file.metadata.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                rows = [row for row in range(start, stop) if row in docs_of]
                values = [None] * len(rows)
                if rows and column:
                    values = file.read_row_group(group, columns=[column]).column(0).take([row - start for row in rows]).to_pylist()
                yield {doc: _bytes(value) for row, value in zip(rows, values) for doc in docs_of[row]}
                start = stop


def _picture_column(schema) -> str | None:
    """The first column of pictures as the hub stores them: {bytes, path}, or a list of such."""
    import pyarrow.types as kinds

    for entry in schema:
        kind = entry.type.value_type if kinds.is_list(entry.type) or kinds.is_large_list(entry.type) else entry.type
        if kinds.is_struct(kind) and {"bytes", "path"} == {kind.field(i).name for i in range(kind.num_fields)}:
            return entry.name
    return None


def _bytes(value) -> bytes | None:
    value = value[0] if isinstance(value, list) and value else value
    return value["bytes"] if isinstance(value, dict) else None


def _shrunk(content: bytes | None, size: int) -> tuple[str, str]:
    """(the picture as `jpeg;base64,...` of at most about `size` bytes, "") or ("", why there is none).

    JPEG, because WebP takes ten times as long to encode for few bytes less.
    """
    from PIL import Image

    from llava_plugin.pictures import BROKEN, FORMATS, rgb

    if not content:
        return "", "the data have no picture for it"
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        # A JPEG is decoded at a half or a quarter where what it takes now says that no more pixels will fit.
        likely = 0.9 * (size / (0.6 * len(content))) ** 0.5
        share = min(LONGEST_SIDE / max(picture.size), max(SHORTEST_SIDE / max(picture.size), likely))
        picture.draft("RGB", tuple(int(share * side) for side in picture.size))
        picture.load()
        picture = rgb(picture)
    except (*BROKEN, Image.DecompressionBombError) as error:
        return "", f"the picture cannot be read ({str(error).splitlines()[0][:120] if str(error) else type(error).__name__})"
    side = min(LONGEST_SIDE, max(picture.size))
    while True:
        picture.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=70)
        out = stream.getvalue()
        if len(out) <= size or side <= SHORTEST_SIDE:
            return f"jpeg;base64,{base64.b64encode(out).decode()}", ""
        side = max(SHORTEST_SIDE, int(0.92 * side * (size / len(out)) ** 0.5))  # fewer pixels take more bytes each
