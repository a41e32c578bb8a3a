"""Results of the size of genlip14, 265,505 answers, as run.py leaves them.

Answers, prompts and scores are drawn; the files' form, their sizes and the tasks' scores are those of real results.
"""

import json
import random
from pathlib import Path

from eval_suites import suites
from eval_suites.score import results
from tests.eval_suites.helpers.small_data import provenance


def write(root: Path, encoder: str, seed: int) -> int:
    """The row of one encoder; how many answers it has."""
    suite, draw, said, written = suites.get("genlip14"), random.Random(seed), provenance(encoder), 0
    row = root / suite.name / encoder / f"{said['llm']}@{said['weights_digest'][:8]}"
    for column in suite.columns:
        folder, metric = row / column.task, column.metric.split(",")[0]
        folder.mkdir(parents=True)
        with (folder / "samples.jsonl").open("w") as stream:
            for i in range(column.n):
                score = float(draw.random() < 0.6)
                if column.aggregate == "mme":
                    score = {"question_id": f"{i // 2}.png", "category": ("existence", "count", "OCR")[i // 2 % 3], "score": score}
                elif column.aggregate == "points":
                    score = {"score": score}
                picture = f"{(i // (3 if column.unit == '%' else 1 if column.unit == 'CIDEr' else 2)) * 2654435761 % 2**64:016x}"
                sample = {
                    "doc_id": i, "image": picture, "prompt": f"What is written on the sign number {i}?\nAnswer the question using a single "
                    "word or phrase.", "target": "stop", "answer": "stop", "filtered": "stop", "scores": {metric: score},
                    "doc": {"question_id": i, "question": f"What is written on the sign number {i}?", "answer": "stop"},
                }  # fmt: skip
                stream.write(json.dumps(sample) + "\n")
        written += column.n
        value = results.read_samples(folder / "samples.jsonl", [column]).scores[column.name].value
        key = {"weights": said["weights_digest"], "task": "t", "data": "d", "limit": None, "lmms_eval": "0.7.3"}
        result = {"suite": suite.name, "task": column.task, "encoder": encoder, "llm": said["llm"], "n": column.n, "n_expected": column.n,
                  "left_out": {}, "results": {column.metric: value}, "key": key, "provenance": said}  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
    return written
