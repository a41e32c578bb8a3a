"""Our MLLM as a model of lmms-eval, found by entry point: batched, greedy, the same answers at any batch size.

Why: lmms-eval's own LLaVA classes want batch size 1 or mix up pictures above it, and none loads an encoder of one's choice.

    lmms-eval --model genlip_eval --model_args export=runs/NAME/export,batch_size=32 --tasks chartqa
    python eval_suites/run.py --encoder genlip-g16      (uses the class below, task by task)

Questions go through in windows of 16 batches, sorted by length inside a window: little padding, while questions about one picture stay
near each other, so that its features are computed once. Answers come back in the order asked.
"""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms

WINDOW = 16  # batches: no more pictures than the MLLM keeps features of
# What lmms-eval's own models take where a task names no limit (TextVQA).
DEFAULT_NEW_TOKENS = 1024


def manifest():
    """What the entry point group `lmms_eval.models` wants: the name of the model and where its class stands."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="genlip_eval", chat_class_path="eval_suites.lmms_model.EvaluatedMllm")


class EvaluatedMllm(lmms):
    """lmms-eval's view of an Mllm: `generate_until` on chat messages.

    `asked` keeps, for every (task, doc_id), the text of the prompt and a digest of its pictures ("" for none): what the model was
    really shown, for the sample record and for clustering by picture.
    """

    is_simple = False

    def __init__(self, export: str | None = None, batch_size: int = 16, device: str | None = None, mllm=None) -> None:
        """An export folder to load, or an Mllm that is loaded already."""
        super().__init__()
        if mllm is None:
            if not export:
                raise ValueError("genlip_eval wants --model_args export=runs/NAME/export")
            from llava_plugin import mllm as loader

            mllm = loader.load(export, device=device)
        self.mllm = mllm
        self.batch_size = int(batch_size)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: 1 or more")
        self.asked: dict[tuple[str, int], tuple[str, str]] = {}

    def clean(self) -> None:
        """Keeps the model: lmms-eval would drop it after the first task, and ours answers all of them."""

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        settings = [_settings(request.args[2]) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: settings[i])  # stable: questions stay in the data's order
        answers: list[str | None] = [None] * len(requests)
        task = requests[0].args[4] if requests else ""
        for batch in _progress(self._batches(order, requests, settings), len(requests), task):
            conversations, images = zip(*(self._ask(requests[i]) for i in batch))
            new_tokens, stop = settings[batch[0]]
            texts = self.mllm.answer(list(conversations), list(images), max_new_tokens=new_tokens, stop=stop)
            # lmms-eval would pad a short list with '' and score it.
            if len(texts) != len(batch) or not all(isinstance(text, str) for text in texts):
                raise RuntimeError(f"{task}: {len(batch)} questions were answered by {len(texts)} texts, or by something that is no text")
            for i, text in zip(batch, texts):
                answers[i] = _until(text, stop)
        return [GenerationResult(text=answer) for answer in answers]

    def _batches(self, order: list[int], requests: list[Instance], settings: list[tuple]) -> Iterator[list[int]]:
        """Indices of requests with equal generation settings, at most a batch at a time, near in length."""
        window = WINDOW * self.batch_size
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=lambda i: (settings[i], len(requests[i].args[0])))
            while near:
                batch = [i for i in near[: self.batch_size] if settings[i] == settings[near[0]]]
                near = near[len(batch) :]
                yield batch

    def _ask(self, request: Instance) -> tuple[list[dict], list]:
        """(conversation, pictures) of one request, from the task's own messages; the document's picture is decoded here."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        conversation, pictures = [], []
        for message in doc_to_messages(self.task_dict[task][split][doc_id]):
            parts = []
            for part in message["content"]:
                if part["type"] == "image":
                    pictures.append(part["url"])
                    parts.append({"type": "image"})
                elif part["type"] == "text":
                    parts.append({"type": "text", "text": part["text"]})
                else:
                    raise ValueError(f"task {task} asks about {part['type']}; this model sees pictures and text")
            conversation.append({"role": message["role"], "content": parts})
        text = "\n".join(part["text"] for message in conversation for part in message["content"] if part["type"] == "text")
        self.asked[task, doc_id] = text, _digest(pictures)
        return conversation, pictures

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("this model answers questions; tasks that compare likelihoods are not among ours")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("this model answers one turn; tasks of several rounds are not among ours")


def _settings(generation: dict) -> tuple[int, tuple[str, ...]]:
    """(max_new_tokens, stop strings) of a task; ValueError where it wants sampling or beams, since this model is greedy."""
    if generation.get("do_sample") or generation.get("temperature") or generation.get("num_beams", 1) > 1:
        raise ValueError(f"this model answers greedily, and the task wants {generation}")
    until = generation.get("until") or ()
    return int(generation.get("max_new_tokens", DEFAULT_NEW_TOKENS)), (until,) if isinstance(until, str) else tuple(until)


def _until(text: str, stop: Iterable[str]) -> str:
    """The text up to the first of the stop strings."""
    return text[: min((at for mark in stop if (at := text.find(mark)) >= 0), default=len(text))]


def _digest(pictures: list) -> str:
    """16 hex digits of the pictures' pixels; "" for no picture."""
    if not pictures:
        return ""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.size}{picture.mode}".encode() + picture.tobytes())
    return digest.hexdigest()[:16]


def _progress(batches: Iterable[list[int]], total: int, task: str) -> Iterator[list[int]]:
    """Pass the batches on and show how far they are: one bar with the time left, or a line now and then where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(file=sys.__stderr__)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    start = said = time.monotonic()
    done = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task(task, total=total)
        for batch in batches:
            yield batch
            done += len(batch)
            bar.advance(row, len(batch))
            now = time.monotonic()
            if not console.is_terminal and now - said > 30:
                said = now
                console.print(f"{task}: {done} of {total} questions, {(now - start) / done * (total - done) / 60:.0f} min left")
