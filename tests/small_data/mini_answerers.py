"""Three answering models without a network, for lmms-eval on the mini world: one knows all, one says nothing, one sees nothing.

PYTHONPATH=. python tests/small_data/mini_answerers.py DIR    (DIR as `python -m small_data.mini --out DIR` made it) prints their table:
the plain command `lmms-eval --include_path` on the resolved task files, a process for each. `... DIR oracle ARGUMENTS` is one such process.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from eval_suites import suites, tasks
from eval_suites.tasks.manifest import verify
from small_data.mini import cider, manifest

COLUMNS = suites.get("genlip15").columns  # those of mini14, and MME's cognition


class Scripted(lmms):
    """Answers `answer(task, doc, prompt)`. `asked` counts the pictures that a question was given."""

    is_simple = False

    def __init__(self, answer):
        super().__init__()
        self.answer, self.pictures = answer, Counter()

    def clean(self):
        pass

    def generate_until(self, requests):
        replies = []
        for request in requests:
            _, doc_to_messages, _, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            parts = [part for message in doc_to_messages(doc) for part in message["content"]]
            self.pictures[task] += sum(part["type"] == "image" for part in parts)
            prompt = "\n".join(part["text"] for part in parts if part["type"] == "text")
            replies.append(GenerationResult(text=self.answer(task.removeprefix("mini_").removesuffix("_local"), doc, prompt)))
        return replies

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError


def oracle(root: Path):
    """The right answer out of each row; of captions the reference that agrees best with its picture's five."""
    import pyarrow.parquet as pq

    best = {}
    told = json.loads((root / "genlip-eval/mini/manifest.json").read_text())["sets"]
    for name, column in manifest.CAPTIONS.items():
        references = pq.read_table(root / "genlip-eval/mini" / told[name]["file"], columns=[column]).to_pydict()[column]
        best |= {(name, tuple(five)): chosen for five, chosen in zip(references, cider.best(references)[0])}

    def answer(task, doc, prompt):
        match task:
            case "chartqa" | "gqa" | "mme" | "seedbench_2_plus":
                return doc["answer"]
            case "ocrbench":
                return doc["answer"][0]
            case "docvqa_val" | "infovqa_val":
                return doc["answers"][0]
            case "textvqa_val":
                return Counter(doc["answers"]).most_common(1)[0][0]
            case "vqav2_val":
                return doc["multiple_choice_answer"]
            case "ai2d" | "scienceqa_img":
                return "ABCD"[int(doc["answer"])]
        return best[task, tuple(doc[manifest.CAPTIONS[task]])]

    return answer


def empty(root: Path):
    return lambda task, doc, prompt: ""


def blind(root: Path):
    """The commonest training answer to the very words of a prompt; where they were never met, to its first four and last three words, then
    to its last three, which say what kind of answer is wanted."""
    met = defaultdict(Counter)
    for record in json.loads((root / "mini/sft/conversations.json").read_text()):
        turns = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
        for prompt, reply in zip(turns[::2], turns[1::2]):
            for gist in _gists(prompt):
                met[gist][reply] += 1

    def answer(task, doc, prompt):
        return next(met[gist] for gist in _gists(prompt) if gist in met).most_common(1)[0][0]

    return answer


def _gists(prompt: str) -> tuple:
    words = prompt.split()
    return prompt, (*words[:4], *words[-3:]), tuple(words[-3:]), ()


def evaluate(root: Path, make) -> tuple[dict[str, float], Scripted]:
    """column -> lmms-eval's number, through the resolved task files."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    model = Scripted(make(root))
    with tempfile.TemporaryDirectory() as folder:
        for task in suites.get("mini14").tasks:
            tasks.write_definition(Path(folder), tasks.locate(task, root))
        manager = TaskManager(include_path=folder, include_defaults=False)
        options = SimpleNamespace(output_path=folder, process_with_media=False, reasoning_tags=None)
        names = [tasks.local_name(task) for task in suites.get("mini14").tasks]
        out = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0, cli_args=options, process_docs_parallel=1)
    return _numbers(out["results"]), model


def _numbers(results: dict) -> dict[str, float]:
    return {column.name: results[tasks.local_name(f"mini_{column.task}")][column.metric] for column in COLUMNS}


def plain(root: Path, name: str, arguments: list[str]) -> None:
    """lmms-eval's own command with one of the three in place of the model that it would load."""
    from lmms_eval import __main__ as command
    from lmms_eval import models

    class Model(Scripted):
        def __init__(self, batch_size=None, max_batch_size=None, device=None):
            super().__init__(globals()[name](root))

    models.get_model = lambda *_: Model
    sys.argv = ["lmms-eval", "--model", "genlip_eval", *arguments]
    command.cli_evaluate()


def by_command(root: Path, name: str) -> dict[str, float]:
    """column -> the number that `lmms-eval --include_path FOLDER --tasks ...` writes for one of the three."""
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for task in suites.get("mini14").tasks:
            tasks.write_definition(Path(folder), tasks.locate(task, root))
            names.append(tasks.local_name(task))
        asked = ["--include_path", folder, "--tasks", ",".join(names), "--output_path", f"{folder}/out", "--process_docs_parallel", "1"]
        done = subprocess.run([sys.executable, __file__, str(root), name, *asked], capture_output=True, text=True)
        files = list(Path(folder, "out").rglob("*_results.json"))
        if not files:  # the command exits with 0 whatever happens
            raise RuntimeError(done.stderr[-2000:])
        return _numbers(json.loads(files[0].read_text())["results"])


def maxima(root: Path) -> dict[str, float]:
    """column -> the manifest's maximum."""
    told = verify(root / "genlip-eval/mini")["sets"]
    return {c.name: told[c.task]["maximum"][c.name] if c.task == "mme" else told[c.task]["maximum"] for c in COLUMNS}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if len(sys.argv) > 2:
        plain(root, sys.argv[2], sys.argv[3:])
        sys.exit()
    table = {"maximum": maxima(root)} | {name: by_command(root, name) for name in ("oracle", "empty", "blind")}
    print(f"{'column':<12}" + "".join(f"{name:>12}" for name in table))
    for column in COLUMNS:
        print(f"{column.name:<12}" + "".join(f"{scores[column.name] * column.scale:>12.1f}" for scores in table.values()))
