"""Our MLLM as a model of lmms-eval, found by entry point: batched, greedy, the same answers at any batch size.

Why: lmms-eval's own LLaVA classes want batch size 1 or mix up pictures above it, and none loads an encoder of one's choice.

    lmms-eval --model genlip_eval --model_args export=runs/NAME/export,batch_size=32 --tasks chartqa
    python eval_suites/run.py --encoder genlip-g16      (uses the class below, task by task)

`export` may be a LLaVA-NeXT checkpoint with one of our towers: it is converted in passing and asked as it was trained. With the plain
command keep away from --use_cache, which knows a model by its folder's name and gives new weights the old answers.

Questions go through in windows of 16 batches, sorted by length inside a window: little padding, while questions about one picture stay
near each other, so that its features are computed once. Answers come back in the order asked.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms

from eval_suites.runner import preflight
from eval_suites.runner.journal import Answer, Journal, Settings
from eval_suites.tasks.pictures import UnreadablePicture, document
from llava_plugin.pictures import unusual

WINDOW = 16  # batches: no more pictures than the MLLM keeps features of
# What lmms-eval's own models take where a task names no limit (TextVQA).
DEFAULT_NEW_TOKENS = 1024


def manifest():
    """What the entry point group `lmms_eval.models` wants: the name of the model and where its class stands."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="genlip_eval", chat_class_path="eval_suites.runner.lmms_model.EvaluatedMllm")


class EvaluatedMllm(lmms):
    """lmms-eval's view of an Mllm: `generate_until` on chat messages.

    `answers` keeps, for every (task, doc_id), the text of the prompt, a digest of its pictures ("" for none), their modes where unusual,
    and the answer: what the model was really shown, for the sample record and for clustering by picture. Four things may be given by a
    caller that has them: a `journal` of answers; `report(done, total)`, called after every batch (lmms-eval's kind of bar otherwise);
    `note(text)`, called with what a user should hear (printed otherwise); and `leave_out(task, {doc_id: why})`, called with the questions
    that cannot be asked, since their picture cannot be read or their words hold the marker of one, before anything is scored (an error
    otherwise).
    """

    is_simple = False

    def __init__(self, export: str | None = None, batch_size: int = 16, device: str | None = None, mllm=None) -> None:
        """An export folder to load, or an Mllm that is loaded already."""
        super().__init__()
        if mllm is None:
            if not export:
                raise ValueError("genlip_eval wants --model_args export=runs/NAME/export")
            mllm = _load(Path(export), device)
        self.mllm = mllm
        self.batch_size = int(batch_size)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: 1 or more")
        self.answers: dict[tuple[str, int], Answer] = {}
        self.journal: Journal | None = None
        self.report: Callable[[int, int], None] | None = None
        self.note: Callable[[str], object] = print
        self.leave_out: Callable[[str, dict[int, str]], None] = _refuse

    def clean(self) -> None:
        """Keeps the model: lmms-eval would drop it after the first task, and ours answers all of them."""

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        from tqdm import tqdm

        settings = [_settings(request.args[2]) for request in requests]
        where = [(request.args[4], request.args[3]) for request in requests]  # (task, doc_id)
        known = self._known(requests, where, settings)
        self.answers |= {where[i]: answer for i, answer in known.items()}
        texts = {i: answer.text for i, answer in known.items()}
        order = sorted((i for i in range(len(requests)) if i not in texts), key=lambda i: settings[i])  # stable: in the data's order
        unreadable: dict[str, dict[int, str]] = {}
        done, bar = len(texts), tqdm(total=len(requests), initial=len(texts), disable=self.report is not None)
        report = self.report or (lambda done, total: bar.update(done - bar.n))
        report(done, len(requests))
        for batch in self._batches(order, requests, settings):
            asked = {}
            for i in batch:
                try:
                    asked[i] = self._ask(requests[i])
                except (UnreadablePicture, MarkerInWords) as error:
                    unreadable.setdefault(where[i][0], {})[where[i][1]] = str(error)
            texts |= self._answer(where, asked, settings[batch[0]])
            done += len(batch)
            report(done, len(requests))
        for task, why in unreadable.items():
            self.leave_out(task, why)
        # What has no answer was left out of its task, and nobody scores it.
        return [GenerationResult(text=texts.get(i, "")) for i in range(len(requests))]

    def _known(self, requests: list[Instance], where: list[tuple[str, int]], settings: list[Settings]) -> dict[int, Answer]:
        """The journal's answers to the requests, by their places, each held against what is asked now; what is none of it is said.

        A task's text tells its questions apart. Where it does not (captions are all asked for in the same words), or does not agree,
        the pictures are looked at, which takes as long as decoding them.
        """
        answers = self.journal.answers if self.journal else {}
        found = {i: answers[doc, each] for i, ((_, doc), each) in enumerate(zip(where, settings)) if (doc, each) in answers}
        one_text = len(found) > 1 and len({answer.prompt for answer in found.values()}) == 1
        if not one_text and all(answer.prompt == requests[i].args[0] for i, answer in found.items()):
            return found
        known = {i: answer for i, answer in found.items() if self._is_of(answer, requests[i])}
        if others := len(found) - len(known):
            self.note(f"{others} of {len(found)} answers in {self.journal and self.journal.path} are of other questions: asked again")
        return known

    def _is_of(self, answer: Answer, request: Instance) -> bool:
        try:
            conversation, pictures = self._ask(request)
        except UnreadablePicture:
            return False
        return (answer.prompt, answer.image) == (_text(conversation), _digest(pictures))

    def _answer(self, where: list[tuple[str, int]], asked: dict[int, tuple[list, list]], settings: Settings) -> dict[int, str]:
        """Answer a batch and write it down. Where memory runs out, in halves, and so from there on."""
        import torch

        waiting = list(asked)
        answered: dict[int, str] = {}
        while waiting:
            part = waiting[: self.batch_size]
            conversations, images = zip(*(asked[i] for i in part))
            try:
                texts = self.mllm.answer(list(conversations), list(images), max_new_tokens=settings[0], stop=settings[1])
            except (torch.OutOfMemoryError, MemoryError) as error:
                if len(part) == 1:
                    raise RuntimeError(f"memory does not suffice for a single question ({error}): take a larger device") from error
                self.batch_size = len(part) // 2
                print(f"out of memory with {len(part)} questions at a time: {self.batch_size} from here on", flush=True)
                texts = None
            if texts is None:  # only here, outside the handler, is the memory of the failed try let go
                torch.cuda.empty_cache()
                continue
            task = where[part[0]][0]
            # lmms-eval would pad a short list with '' and score it.
            if len(texts) != len(part) or not all(isinstance(text, str) for text in texts):
                raise RuntimeError(f"{task}: {len(part)} questions were answered by {len(texts)} texts, or by something that is no text")
            new = {
                where[i]: Answer(_until(text, settings[1]), _text(asked[i][0]), _digest(asked[i][1]), tokens, _noted(asked[i][1]))
                for i, text, tokens in zip(part, texts, self.mllm.prompt_digests, strict=True)
            }
            if self.journal:
                self.journal.add(settings, {doc_id: answer for (_, doc_id), answer in new.items()})
            self.answers |= new
            answered |= {i: new[where[i]].text for i in part}
            waiting = waiting[len(part) :]
        return answered

    def _batches(self, order: list[int], requests: list[Instance], settings: list[Settings]) -> Iterator[list[int]]:
        """Indices of requests with equal generation settings, at most a batch at a time, near in length."""
        window = WINDOW * self.batch_size
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=lambda i: (settings[i], len(requests[i].args[0])))
            while near:
                batch = [i for i in near[: self.batch_size] if settings[i] == settings[near[0]]]
                near = near[len(batch) :]
                yield batch

    def _ask(self, request: Instance) -> tuple[list[dict], list]:
        """(conversation, pictures) of one request, from the task's own messages; the document's picture is read here. UnreadablePicture
        or MarkerInWords says why it cannot be asked."""
        from PIL import ImageFile

        from llava_plugin.mllm import IMAGE

        _, doc_to_messages, _, doc_id, task, split = request.args
        # lmms-eval switches this on at import, for all; a picture cut short would then be answered as if it were whole.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        doc = {}
        try:
            doc = document(self.task_dict[task][split], doc_id)
            messages = doc_to_messages(doc)
        except (OSError, SyntaxError) as error:  # what PIL raises in a task's code of bytes that are no picture, or not a whole one
            if getattr(error, "errno", None):
                raise  # the disk's fault, not the picture's
            raise UnreadablePicture(str(error).splitlines()[0][:200]) from error
        except (AttributeError, TypeError) as error:  # the task's code takes a picture for granted
            if empty := [name for name in ("image", "images", "picture") if name in doc and not doc[name]]:
                raise UnreadablePicture(f"no picture: {empty[0]} is empty") from error
            raise
        conversation, pictures = [], []
        for message in messages:
            parts = []
            for part in message["content"]:
                if part["type"] == "image":
                    pictures.append(part["url"])
                    parts.append({"type": "image"})
                elif part["type"] == "text":
                    if IMAGE in part["text"]:
                        raise MarkerInWords(f"its words hold {IMAGE}, which stands for a picture")
                    parts.append({"type": "text", "text": part["text"]})
                else:
                    raise ValueError(f"task {task} asks about {part['type']}; this model sees pictures and text")
            conversation.append({"role": message["role"], "content": parts})
        return conversation, pictures

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("this model answers questions; tasks that compare likelihoods are not among ours")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("this model answers one turn; tasks of several rounds are not among ours")


def _load(folder: Path, device: str | None):
    """An export of ours, or a LLaVA-NeXT checkpoint turned into one for this run. ValueError for a LoRA adapter without its base."""
    from llava_plugin import llava_next, mllm

    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} is a LoRA adapter: merge it into its base model first (peft: merge_and_unload), and give what that saves"
        )
    if not preflight.is_llava_next(folder):
        return mllm.load(folder, device=device)
    with tempfile.TemporaryDirectory() as native:
        llava_next.to_native(folder, Path(native))
        return mllm.load(native, device=device)


class MarkerInWords(ValueError):
    """A question's own words hold what stands for a picture: it would be asked with one too many."""


def _refuse(task: str, unreadable: dict[int, str]) -> None:
    named = ", ".join(f"doc {doc_id} ({why})" for doc_id, why in list(unreadable.items())[:5])
    raise ValueError(f"{task}: {len(unreadable)} questions cannot be asked: {named}")


def _text(conversation: list[dict]) -> str:
    """The words of a conversation, as the record shows them."""
    return "\n".join(part["text"] for message in conversation for part in message["content"] if part["type"] == "text")


def _settings(generation: dict) -> Settings:
    """(max_new_tokens, stop strings) of a task; ValueError where it wants sampling or beams, since this model is greedy."""
    if generation.get("do_sample") or generation.get("temperature") or generation.get("num_beams", 1) > 1:
        raise ValueError(f"this model answers greedily, and the task wants {generation}")
    until = generation.get("until") or ()
    return int(generation.get("max_new_tokens", DEFAULT_NEW_TOKENS)), (until,) if isinstance(until, str) else tuple(until)


def _until(text: str, stop: Iterable[str]) -> str:
    """The text up to the first of the stop strings."""
    return text[: min((at for mark in stop if (at := text.find(mark)) >= 0), default=len(text))]


def _noted(pictures: list) -> str:
    """The unusual modes of the pictures' files, as `RGBA, I;16`; "" for none."""
    return ", ".join(sorted({picture.info["mode"] for picture in pictures if unusual(picture.info.get("mode", "RGB"))}))


def _digest(pictures: list) -> str:
    """16 hex digits of the pictures' pixels; "" for no picture."""
    if not pictures:
        return ""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.size}{picture.mode}".encode() + picture.tobytes())
    return digest.hexdigest()[:16]
