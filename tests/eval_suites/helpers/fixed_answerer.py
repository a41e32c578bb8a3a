"""A fixed answering model as a process: our main job, or the plain lmms-eval command, with answers that only prompt and picture decide.

    python tests/eval_suites/helpers/fixed_answerer.py ours DATA SECONDS --encoder ... (arguments of run.py)
    python tests/eval_suites/helpers/fixed_answerer.py plain DATA 0 --tasks ...        (arguments of lmms-eval)

SECONDS are waited in each batch; the task that $FAIL names fails.
About two answers of three are right, captions among them, so that a score is no round number. What is asked goes to asked.jsonl here.
"""

import hashlib
import importlib.util
import io
import json
import os
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
LETTERS = "ABCD"


def _digest(picture: Image.Image) -> str:
    return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def right_answers(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(question -> answer, picture -> caption) over all rows in the hub's schema below `root`."""
    words, captions = {}, {}
    for file in sorted(root.rglob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            references = row.get("annotations_captions") or row.get("caption_str")
            if references is None and "coco" in str(file).lower():
                references = row["answer"]
            if references:
                captions[_digest(Image.open(io.BytesIO(row["image"]["bytes"])))] = references[0]
            elif row.get("question"):
                answer = row.get("multiple_choice_answer") or row.get("answers") or row.get("answer")
                answer = answer[0] if isinstance(answer, list) else answer
                if isinstance(answer, int) or (row.get("options") and str(answer).isdigit()):
                    answer = LETTERS[int(answer)]
                words[row["question"].strip().split("\n")[0].lower()] = str(answer)
    return words, captions


def replies(root: Path):
    words, captions = right_answers(root)

    def reply(prompt: str, pictures: list[Image.Image]) -> str:
        shown = _digest(pictures[0]) if pictures else ""
        draw = int(hashlib.sha256((prompt + shown).encode()).hexdigest(), 16) % 3
        question = prompt.strip().split("\n")[0].lower()
        right = captions.get(shown, "a picture") if "caption" in prompt else words.get(question, "yes")
        return right if draw else {"A": "B", "Yes": "No", "yes": "no"}.get(right, f"a wrong {right[:12]}")

    return reply


def ours(reply, seconds: float, arguments: list[str]) -> int:
    spec = importlib.util.spec_from_file_location("small", Path(__file__).with_name("small_data.py"))
    small = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small)
    import llava_plugin.mllm
    from eval_suites import run
    from eval_suites.runner import worker

    run_job = worker.run_job

    def failing(job, *args):
        if job.task == os.environ.get("FAIL"):
            raise RuntimeError("made to fail")
        run_job(job, *args)

    worker.run_job = failing

    class Slow(small.FakeMllm):
        def answer(self, *args, **kwargs):
            texts = super().answer(*args, **kwargs)
            time.sleep(seconds)  # asked, and not yet in the journal: this batch a kill may cost
            return texts

    def load(export, device=None, dtype=None, generation="ours"):
        model = Slow(reply, json.loads((Path(export) / "provenance.json").read_text()), Path("asked.jsonl"))
        model.fingerprint = small.of_export(Path(export), model.digest, generation=generation)
        return model

    llava_plugin.mllm.load = load
    return run.main(arguments)


def lmms_model(reply, simple: bool = False):
    """The class of a model of lmms-eval as such a model is usually written: one question after the other, in the order given.

    `simple`: of lmms-eval's older kind, which gets text and pictures apart; only for these does its 0.7.3 write worked examples.
    """
    from lmms_eval.api.instance import GenerationResult
    from lmms_eval.api.model import lmms
    from lmms_eval.protocol import ChatMessages

    class Fixed(lmms):
        is_simple = simple

        def __init__(self, pretrained="", batch_size=None, max_batch_size=None, device=None):
            super().__init__()

        def clean(self):
            pass

        def generate_until(self, requests):
            out = []
            for request in requests:
                if simple:
                    text, _, doc_to_visual, doc_id, task, split = request.args
                    out.append(GenerationResult(text=reply(text, doc_to_visual(self.task_dict[task][split][doc_id]))))
                    continue
                _, doc_to_messages, _, doc_id, task, split = request.args
                messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
                pictures, _, _ = messages.extract_media()
                text = "".join(part.text for message in messages.messages for part in message.content if part.type == "text")
                out.append(GenerationResult(text=reply(text, pictures)))
            return out

        def loglikelihood(self, requests):
            raise NotImplementedError

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

    return Fixed


def plain(reply, arguments: list[str]) -> None:
    from lmms_eval import __main__ as command
    from lmms_eval import models

    models.get_model = lambda *_: lmms_model(reply)
    sys.argv = ["lmms-eval", "--model", "genlip_eval", *arguments]
    command.cli_evaluate()


if __name__ == "__main__":
    kind, data, seconds, *rest = sys.argv[1:]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if kind == "plain":
        plain(replies(Path(data)), rest)
    else:
        sys.exit(ours(replies(Path(data)), float(seconds), rest))
