"""Results of three columns written by hand, in the layout that run.py leaves: no model, no lmms-eval, any answer one likes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval_suites import suites, tasks
from eval_suites.score import results
from genlip.common.schema import SCHEMA, Provenance, Result
from tests.eval_suites.helpers.small_data import EASYVQA, make_easyvqa, provenance

SUITE = replace(suites.get("easyvqa"), columns=tuple(replace(column, n=40) for column in suites.get("easyvqa").columns))
WORDS = {"shape": "circle", "colour": "red", "yes_no": "yes"}


def right_share(seed: int, share: float):
    """(kind, document) -> (answer, score): right for a share of the questions."""
    draw = np.random.default_rng(seed).random((len(EASYVQA), 40))
    return lambda kind, i: (WORDS[kind], 1.0) if draw[list(EASYVQA).index(kind), i] < share else ("no idea", 0.0)


def write_results(root: Path, data: Path, encoder: str, answer, kinds=tuple(EASYVQA), **changes) -> Path:
    """The row's folder under root/easyvqa. `changes` go into its provenance."""
    said = provenance(encoder, **changes)
    row = root / "easyvqa" / encoder / f"{said['llm']}@{said['weights_digest'][:8]}"
    for kind in kinds:
        column = next(column for column in SUITE.columns if column.task == f"easyvqa_{kind}")
        folder = row / column.task
        folder.mkdir(parents=True)
        with (folder / "samples.jsonl").open("w") as stream:
            for i in range(40):
                text, score = answer(kind, i)
                sample = {
                    "doc_id": i, "image": f"{i:016x}", "prompt": f"which {kind}, {i}?", "target": WORDS[kind], "answer": text,
                    "filtered": text, "scores": {"exact_match": score}, "doc": {"image_id": i, "type": "even" if i % 2 == 0 else "odd"},
                }  # fmt: skip
                stream.write(json.dumps(sample) + "\n")
        value = results.read_samples(folder / "samples.jsonl", [column]).scores[column.name].value
        key = {"model": said["weights_digest"], "task": "t", "data": tasks.locate(column.task, data).digest, "limit": None}
        result = Result(
            schema=SCHEMA, suite="easyvqa", task=column.task, encoder=encoder, llm=said["llm"], n=40, n_expected=40,
            results={column.metric: value}, key=key, provenance=Provenance(**said),
        )  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result.as_json()))
    return row


def make(folder: Path, monkeypatch) -> tuple[Path, Path]:
    """(results, data): two encoders of different skill on the small easy-VQA, which is declared to have 40 questions of each kind."""
    monkeypatch.setitem(suites.SUITES, "easyvqa", SUITE)
    data, root = folder / "data", folder / "results"
    make_easyvqa(data)
    write_results(root, data, "good", right_share(1, 0.9))
    write_results(root, data, "poor", right_share(2, 0.3))
    return root, data
