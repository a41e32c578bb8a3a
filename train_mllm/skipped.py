"""Conversations that break after they were prepared: skipped, counted by reason and named, up to --max-bad, and on resume too.

Preparing looks at a picture's two ends; damage between them shows where it is decoded, in some process of some rank in the middle of a
run. That process writes one line to RUN/skipped.jsonl and its batch does without the conversation; nothing takes its place.
"""

import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from genlip.common.files import open_to_append, write_json
from genlip.common.ledger import Ledger


class Skipped:
    """The list of such conversations, by their number in the data: one file for all processes, and for what went on after a stop."""

    def __init__(self, file: Path):
        self.file = file

    def add(self, number: int, name: str, reason: str) -> None:
        line = json.dumps({"number": number, "id": name, "reason": reason}) + "\n"
        descriptor = open_to_append(self.file)
        try:
            os.write(descriptor, line.encode())  # one write: lines of several processes do not mix
        finally:
            os.close(descriptor)

    def ledger(self) -> Ledger:
        """Each conversation once, however often it was met."""
        found: dict[int, dict] = {}
        for line in self.file.read_bytes().splitlines() if self.file.is_file() else ():
            try:
                one = json.loads(line)
                found[one["number"]] = one
            except (ValueError, KeyError, TypeError):  # cut by a power cut; the conversation is met again
                continue
        ledger = Ledger()
        for number in sorted(found):
            ledger.count(ledger.skipped, found[number]["reason"], found[number]["id"] or f"conversation {number}")
        return ledger


class SkippedCheck(TrainerCallback):
    """Keeps the run's ledger, in `file`, up to what was skipped. ValueError once that is more than `limit` conversations."""

    def __init__(self, skipped: Skipped, limit: float, file: Path, ledger: dict):
        self.skipped, self.limit, self.file, self.ledger, self.size = skipped, limit, file, ledger, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.check()

    def check(self) -> None:
        size = self.skipped.file.stat().st_size if self.skipped.file.is_file() else 0
        if size == self.size:
            return
        self.size, ledger = size, self.skipped.ledger()
        write_json(self.file, self.ledger | {"in_training": {"skipped": dict(ledger.skipped), "names": ledger.names}})
        if (n := ledger.skipped.total()) > self.limit:
            raise ValueError(
                f"{n} conversations broke in training ({dict(ledger.skipped)}; first: {ledger.names}). "
                "Mend them, or allow more with --max-bad; both need another --out"
            )
