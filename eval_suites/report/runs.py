"""What lies behind a row: its training run's folder, the runs that it started from, their ledgers, curves, commands and captions.

A row knows the digest of its weights; the run whose export has that digest is its own, wherever under the runs folder it stands. Where
none has, the report says so and shows what the results themselves carry. Standard library only.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eval_suites.score.results import EncoderResult
from genlip.common.files import read_json, require
from genlip.common.flags import flag
from genlip.common.schema import Provenance, parse

AWAY = "mend it or move its run folder away"  # what ends an error
NUMBERS = {"step": float, "loss": float, "samples": int}  # of a record, where it has them
POINTS = 300  # of a curve: more cannot be seen; each is the mean of the steps it stands for
SPOKEN = 60  # captions of a run that are shown, the last step's and those of steps before it
DRAWINGS, DRAWING_BYTES = 12, 400_000  # attention and read-out pictures of a run, and the largest file that is taken


@dataclass(frozen=True)
class Run:
    """A run folder with what it holds of recipe and ledger, {} for what it does not, and its export's provenance where it is an MLLM's."""

    folder: Path
    recipe: dict
    provenance: Provenance | None
    ledger: dict

    @property
    def name(self) -> str:
        return self.folder.name


def find(root: Path) -> list[Run]:
    """The run folders right under `root`. ValueError where a file in one cannot be read."""
    folders = sorted(path for path in root.glob("*") if (path / "recipe.json").exists() or (path / "export").is_dir())
    return [
        Run(
            folder,
            _json(folder / "recipe.json"),
            _provenance(folder / "export" / "provenance.json"),
            _json(folder / "ledger.json") or _json(folder / "data" / "ledger.json"),
        )
        for folder in folders
    ]


def _json(path: Path) -> dict:
    return read_json(path, AWAY, fields={}) if path.exists() else {}


def _provenance(path: Path) -> Provenance | None:
    content = _json(path)  # pretraining's says so, and has fields of its own
    return parse(Provenance, content, str(path), AWAY) if content.get("stage", "pretrain") != "pretrain" else None


def chain(row: EncoderResult, runs: list[Run]) -> list[tuple[str, Run]]:
    """(what it was, run), from the row's own run back to the encoder's pretraining; [] where the own one is not at hand."""
    own = next((run for run in runs if run.provenance and run.provenance.weights_digest == row.weights_digest), None)
    found: list[tuple[str, Run]] = []
    run = own
    while run is not None and run not in [one for _, one in found]:
        found.append((f"{(run.provenance or run.recipe).get('stage') or 'sft'} stage", run))
        recipe = _recipe(run)
        run = _run_of(str(recipe.get("init") or ""), runs)
    said = provenance(row)
    recipe = _recipe(own) if own else said.recipe if said else {}
    pretrained = _run_of(str(recipe.get("encoder") or "").rpartition("=")[2], runs)
    return [*found, *([("pretraining of the encoder", pretrained)] if pretrained else [])]


def _recipe(run: Run) -> dict:
    return run.recipe or (run.provenance.recipe if run.provenance else {})


def provenance(row: EncoderResult) -> Provenance | None:
    """None where none of the row's results is believed."""
    return next((result["provenance"] for result in row.results.values()), None)


def _run_of(path: str, runs: list[Run]) -> Run | None:
    """The run that a path into it names, by its folder's name."""
    parts = Path(path).parts
    return next((run for run in runs if len(parts) > 1 and run.name in parts), None) if path else None


# --- curves -----------------------------------------------------------------------------------------------------------------


def losses(run: Run) -> list[tuple[float, float]]:
    """(step, loss) of the run's metrics.jsonl, thinned to POINTS means. ValueError where a line is no record."""
    records = _records(run.folder / "metrics.jsonl")
    points = [(float(record["step"]), float(record["loss"])) for record in records if "loss" in record and "step" in record]
    size = -(-len(points) // POINTS) if points else 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def samples_seen(run: Run, path: str) -> int | None:
    """Samples that pretraining had read at the checkpoint that `path` names (`step-N` in it; the whole run otherwise)."""
    named = re.search(r"step-(\d+)", path)
    last = int(named[1]) if named else None
    records = _records(run.folder / "metrics.jsonl")
    seen = [record["samples"] for record in records if "samples" in record and (last is None or record["step"] < last)]
    return sum(seen) or None


def _records(path: Path) -> Iterator[dict]:
    """The objects of a file of JSON lines, none where it is not there. ValueError that names the line where one is none."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return  # being written
                raise ValueError(f"{path}, line {number}: not a record ({error}); {AWAY}") from error
            kinds = {name: kind for name, kind in NUMBERS.items() if isinstance(record, dict) and name in record}
            yield require(record, kinds, f"{path}, line {number}", AWAY)


# --- what the encoder said ----------------------------------------------------------------------------------------------------


def spoken(run: Run) -> list[dict]:
    """Captions that the encoder spoke while it learned: the last SPOKEN of RUN/captions.jsonl, `{"step", "name", "said", "true"}`.

    `python -m genlip.train --eval-data SHARDS` writes them.
    """
    records = _records(run.folder / "captions.jsonl")
    said = [{"step": r.get("step"), **{name: str(r.get(name) or "") for name in ("name", "said", "true")}} for r in records]
    return said[-SPOKEN:]


def drawings(run: Run) -> list[tuple[str, bytes]]:
    """(name, PNG) of the pictures of `python -m genlip.readout --out RUN/speak`, the first DRAWINGS that are small enough."""
    files = sorted((run.folder / "speak").rglob("*.png"))
    small = [file for file in files if file.stat().st_size <= DRAWING_BYTES]
    return [(str(file.relative_to(run.folder)), file.read_bytes()) for file in small[:DRAWINGS]]


# --- commands ---------------------------------------------------------------------------------------------------------------


def commands(row: EncoderResult, suite: str, found: list[tuple[str, Run]]) -> list[str]:
    """What reproduces the row, first things first: each run's command with every field of its recipe, then the evaluation's."""
    lines = [_training(run) for _, run in reversed(found)]
    export = next(
        (
            str(Path("runs", run.name, "export"))
            for _, run in found
            if run.provenance and run.provenance.weights_digest == row.weights_digest
        ),
        "",
    )
    evaluation = ["python", "eval_suites/run.py", "--encoder", row.encoder, "--suite", suite]
    evaluation += ["--generation", "authors"] if row.by_authors else []
    lines.append(shlex.join([*evaluation, *(["--mllm", export] if export else [])]))
    return [line for line in lines if line]


def _training(run: Run) -> str:
    recipe = _recipe(run)
    if not recipe.get("preset"):
        return ""
    module = "train_mllm.train" if "llm" in recipe else "genlip.train"
    # A dictionary comes with the preset; an empty text is every such field's default.
    said = {name: value for name, value in recipe.items() if name != "preset" and not isinstance(value, dict) and value not in ("", None)}
    return " ".join(["python -m", module, shlex.quote(str(recipe["preset"])), *(flag(name, value) for name, value in said.items())])
