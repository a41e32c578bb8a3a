"""The answer journal: every answer of a task on disk as it comes, so that kill -9 costs the batch in flight and nothing else.

Why: lmms-eval writes once, after the last task, and its cache answers for whatever weights lie behind the same words on the command
line. Here a file belongs to one key, the digests of the MLLM, task definition and data; another MLLM has another file. Inside it an
answer is found by document and generation settings, and taken where the question beside it is the one that is asked.

    results/<suite>/<encoder>/<llm>@<digest8>/<task>/answers-<digest of the key>.jsonl      line 1: the key; then one answer a line

An answer is handed to the system before the next batch starts: it outlives the process, not a power cut. Standard library only; 260,000
answers are read in about 1 s.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from genlip.common.files import file_aside, open_to_append, sha256_json

Settings = tuple[int, tuple[str, ...]]  # (max_new_tokens, stop strings)


@dataclass(frozen=True)
class Answer:
    """What was asked (the prompt's words, digests of its pictures and of its token ids, unusual modes of the pictures' files) and what was
    answered."""

    text: str
    prompt: str
    image: str
    tokens: str = ""
    modes: str = ""


def path_of(folder: Path, key: dict) -> Path:
    """Where the key's answers lie in a task's folder."""
    return folder / f"answers-{sha256_json(key)[:12]}.jsonl"


def adopt(folder: Path, key: dict) -> None:
    """Take the key's answers over from the same MLLM's run of another suite, where this one has none: RESULTS/*/ENCODER/LLM/TASK."""
    mine = path_of(folder, key)
    others = sorted(folder.parents[3].glob(str(Path("*", *folder.parts[-3:], mine.name))), key=lambda path: path.stat().st_size)
    if others and not mine.exists():
        with file_aside(mine) as aside:
            shutil.copyfile(others[-1], aside)


class Journal:
    """The answers to one task under one key, in memory and on disk. One process at a time writes it."""

    def __init__(self, folder: Path, key: dict):
        """Open or begin the key's journal. A cut last answer is dropped; ValueError where a whole line is none, or the file a link."""
        self.path = path_of(folder, key)
        self.answers: dict[tuple[int, Settings], Answer] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(open_to_append(self.path), "ab", buffering=0)
        kept = self._read(key)
        self._file.truncate(kept)
        if not kept:
            self._write(json.dumps(key, sort_keys=True) + "\n")

    def _read(self, key: dict) -> int:
        """Take over what is on disk; the number of bytes up to the end of the last whole line."""
        kept = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                kept += len(line)
                try:
                    entry = json.loads(line)
                    if number == 1:
                        if entry != key:
                            raise ValueError("another key")
                        continue
                    settings = (entry["max_new_tokens"], tuple(entry["until"]))
                    answer = Answer(entry["answer"], entry["prompt"], entry["image"], entry["tokens"], entry.get("modes", ""))
                    self.answers[entry["doc_id"], settings] = answer
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise ValueError(f"{self.path}, line {number}: not an answer of this task ({error!r}); delete the file") from error
        return kept

    def add(self, settings: Settings, answers: dict[int, Answer]) -> None:
        """Append a batch's answers by doc id. OSError, with nothing lost but this batch, where the disk is full."""
        new_tokens, until = settings
        lines = []
        for doc_id, answer in answers.items():
            self.answers[doc_id, settings] = answer
            entry = {"doc_id": doc_id, "max_new_tokens": new_tokens, "until": until, "image": answer.image, "tokens": answer.tokens}
            modes = {"modes": answer.modes} if answer.modes else {}
            lines.append(json.dumps({**entry, **modes, "prompt": answer.prompt, "answer": answer.text}) + "\n")
        self._write("".join(lines))

    def _write(self, text: str) -> None:
        left = memoryview(text.encode())
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        self._file.close()
