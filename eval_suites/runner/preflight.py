"""Before anything runs: which MLLM, which data, how many of them, which tools; every problem is found before the first is reported.

Why: a wrong split, data of 4 rows for 12,578, a missing Java cost hours when they show at the end, and a wrong number when they do not.
Nothing here imports torch or lmms_eval: a second for fourteen tasks, once their data have been read (read_data).
Used by run.py; `run.py --dry-run` prints what is found.
"""

import argparse
import importlib.metadata
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval_suites import tasks
from eval_suites.score import results
from eval_suites.suites import Suite
from genlip.common import digests, fingerprint
from genlip.common.files import read_json
from genlip.common.fingerprint import Fingerprint
from genlip.common.schema import Provenance, parse


@dataclass(frozen=True)
class Export:
    """A trained MLLM: its folder, what its provenance.json says, and whose settings of generation answers are decoded by."""

    folder: Path
    provenance: Provenance
    generation: str = "ours"

    @property
    def encoder(self) -> str:
        return self.provenance.encoder

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """As its files lie there when it is first asked for."""
        return fingerprint.of_export(self.folder, self.provenance.weights_digest, generation=self.generation)

    @property
    def digest(self) -> str:
        return self.fingerprint.digest

    @property
    def llm(self) -> str:
        return Path(self.provenance.llm).name


@dataclass(frozen=True)
class TaskJob:
    """One task of this run: its data, how many samples there should be, and what its answers depend on."""

    task: str
    data: tasks.Data
    n_expected: int
    key: dict
    folder: Path
    done: bool


# --- finding the MLLM -------------------------------------------------------------------------------------------------------


def read_export(folder: Path) -> Export:
    """An export and its provenance. ValueError where it has none, or none that can be read."""
    path = folder / "provenance.json"
    if not path.exists():
        hint = f"; of a LLaVA-NeXT checkpoint make one: python -m llava_plugin.llava_next convert {folder} runs/NAME/export"
        raise ValueError(
            f"{folder} has no provenance.json: give the export/ folder of a training run of train_mllm{hint * is_llava_next(folder)}"
        )
    if (export := _mllm_of(path)) is None:
        raise ValueError(f"{folder} holds an encoder, not an MLLM: fine-tune one around it (--encoder NAME={folder}), and give its export")
    return export


def _mllm_of(path: Path) -> Export | None:
    """The export whose provenance.json this is; None for a pretraining's, which is an encoder's."""
    said = read_json(path, "export the model again")
    if isinstance(said, dict) and said.get("stage") == "pretrain":
        return None
    return Export(path.parent, parse(Provenance, said, str(path), "export the model again"))


def exports_in(runs: Path) -> list[Export]:
    """Every MLLM that was exported by the runs in a folder, of whatever stage of fine-tuning; pretraining exports encoders."""
    return [export for path in sorted(runs.glob("*/export/provenance.json")) if (export := _mllm_of(path))]


def is_llava_next(folder: Path) -> bool:
    """Whether a folder is a checkpoint of LLaVA-NeXT, not an export of ours."""
    config = folder / "config.json"
    return not (folder / "provenance.json").exists() and config.exists() and "mm_vision_tower" in read_json(config)


def find_export(encoder: str, mllm: Path | None, llm: str | None, runs: Path = Path("runs")) -> Export:
    """The given export, or the one fine-tuned export of the encoder under runs/. ValueError says how to make or to pick one.

    An encoder is KEY, PATH_OR_HUB_ID or NAME=PATH; the label that provenance.json carries is KEY, the last folder, or NAME.
    """
    label = encoder.partition("=")[0] if "=" in encoder else Path(encoder).name
    if "=" in encoder and folder_of(encoder) is None:
        raise ValueError(f"{encoder.partition('=')[2]} is no folder with a config.json: NAME=FOLDER names a from_pretrained folder")
    if mllm:
        export = read_export(mllm)
        if label not in (export.encoder, export.provenance.encoder_key):
            raise ValueError(f"{mllm} holds encoder {export.encoder}, not {label}: give --encoder {export.encoder}, or another --mllm")
        return export
    own = [export for export in exports_in(runs) if label in (export.encoder, export.provenance.encoder_key)]
    tuned = [export for export in own if export.provenance.stage == "sft" and llm in (None, export.provenance.llm, export.llm)]
    if len(tuned) == 1:
        return tuned[0]
    if tuned:
        choices = "".join(f"\n  --mllm {export.folder}   ({export.llm}, {export.digest[:8]})" for export in tuned)
        raise ValueError(f"{len(tuned)} fine-tuned MLLMs of {label}; say which, by --mllm or --llm:{choices}")
    others = {export.llm for export in own if export.provenance.stage == "sft"}
    if llm and others:
        raise ValueError(f"no fine-tuned MLLM of {label} with {llm} under {runs}/; there are: {', '.join(sorted(others))}")
    raise NotTrained(_how_to_train(encoder, label, runs, bool(own)))


def folder_of(encoder: str) -> Path | None:
    """The folder that FOLDER or NAME=FOLDER names; None for a key, a hub id, or where there is no such folder."""
    folder = Path(encoder.rpartition("=")[2])
    return folder if (folder / "config.json").is_file() else None


class NotTrained(ValueError):
    """The encoder exists, its MLLM does not yet: worth reporting together with what else is missing."""


def _how_to_train(encoder: str, label: str, runs: Path, projector_only: bool) -> str:
    """What to do where an encoder has no fine-tuned MLLM; ValueError (did you mean) where it is no encoder at all."""
    from llava_plugin import encoders

    spec = encoders.resolve(encoder)
    size = f"\nIts pictures will be {spec.size_in_words}"
    first = " (its projector stage is there, which does not count)" if projector_only else ""
    text = f"no fine-tuned MLLM of {label} under {runs}/{first}. Train one: ENCODER={encoder} bash train_mllm/sft_qwen1.5b_frozen.sh{size}"
    there = [export for export in (*exports_in(runs), *exports_in(Path("demo/runs"))) if export.provenance.stage == "sft"]
    named = ", ".join(f"{export.encoder} ({export.folder})" for export in there)
    text += f"\nFine-tuned MLLMs that are here: {named}" if there else ""
    try:
        encoders.find_weights(spec)
    except ValueError as error:
        text += f"\nBefore that: {error}"
    return text


# --- pre-flight -------------------------------------------------------------------------------------------------------------


def read_data(wanted: Sequence[str], root: Path, rehash: bool) -> None:
    """Digest the data of all tasks side by side, before each is asked for its own; what is missing is for `plan_job` to say."""
    files: dict[Path, None] = {}
    for task in wanted:
        with suppress(ValueError):
            data = tasks.locate(task, root)
            files |= dict.fromkeys([*data.files, *data.images])
    digests.of_files(list(files), rehash)


def plan_job(suite: Suite, task: str, args: argparse.Namespace, export: Export | None, folder: Path) -> TaskJob:
    """One task's prompts held against the declared ones, its data found and counted. ValueError where they are not those of the suite."""
    column = next(column for column in suite.columns if column.task == task)
    if column.prompt and tasks.prompt_digest(task) != column.prompt:
        raise ValueError(
            f"{task}: the installed lmms-eval {importlib.metadata.version('lmms-eval')} defines it otherwise than suite {suite.name} "
            f"declares: other prompts or scores. Install the declared one: {tasks.INSTALL}"
        )
    data = tasks.locate(task, args.data_root)
    declared = column.n
    if declared is not None and data.declared is not None and declared != data.declared:
        raise ValueError(f"{task}: {declared} samples by suite {suite.name}, {data.declared} by the data's manifest: build the data again")
    expected = declared if declared is not None else data.declared
    if expected is None:
        raise ValueError(f"{task}: neither suite {suite.name} nor a manifest.json of the data says how many samples there should be")
    if data.rows > expected:
        raise ValueError(f"{task}: {data.rows} rows where {expected} are declared: other data ({data.files[0].parent})")
    if data.rows < expected and not args.allow_partial:
        raise ValueError(
            f"{task}: {data.rows} rows where {expected} are declared ({data.files[0].parent}). Bring all: "
            f"{tasks.fetch_command(task, args.data_root)}; or evaluate what is there with --allow-partial (no average, exit code 3)"
        )
    if tasks.packaged(task) == "mme" and args.limit and args.limit % 2:
        raise ValueError(f"mme counts pairs of questions: --limit {args.limit} is odd")
    limit = args.limit if args.limit and args.limit < data.rows else None
    key = {
        "model": export.digest if export else "",
        "task": tasks.definition_digest(task),
        "data": data.digest,
        "limit": limit,
        "lmms_eval": importlib.metadata.version("lmms-eval"),
    }
    if any(column.full_mark is None for column in suite.columns if column.task == task):
        key["maximum"] = data.maximum
    try:
        done = results.read_result(folder)
        done = None if done is None or results.misplaced(done, folder) else done
    except ValueError:  # no result, or one that was edited: the task runs again, with the journal's answers
        done = None
    # A full result answers a limited request too: a quick look never costs the long run's answers.
    done = done if done and done.key in (key, {**key, "limit": None}) else None
    if done and export:
        one, other = results.facts_of(done.provenance), results.facts_of(export.provenance)
        if differing := [name for name in {**one, **other} if one.get(name) != other.get(name)]:
            raise ValueError(
                f"{task}: {export.folder / 'provenance.json'} says otherwise of these weights than the result does "
                f"({', '.join(differing)}): bring that file back, or remove {folder / 'result.json'}, "
                "and the answers are scored under what it says now"
            )
    return TaskJob(task, data, expected, key, folder, done is not None)


def manifest_problem(jobs: list[TaskJob]) -> list[str]:
    """The mini world's files, held against their manifest byte by byte: a changed picture is another world."""
    from eval_suites.tasks import manifest

    asked: dict[Path, set[str]] = {}
    for job in jobs:
        if job.task in tasks.MINI:
            for file in (*job.data.files, *job.data.images):
                asked.setdefault(file.parents[1], set()).add(file.parent.name)
    problems = []
    for folder, names in asked.items():
        try:
            manifest.verify(folder, names)
        except ValueError as error:
            problems.append(str(error))
    return problems


def java_problem(jobs: list[TaskJob]) -> list[str]:
    """CIDEr's tokenizer is a Java program that first starts when all captions are written: its absence is found here."""
    wanting = ", ".join(job.task for job in jobs if job.task in tasks.CIDER and not job.done)
    if not wanting or shutil.which("java"):
        return []
    return [f"{wanting}: CIDEr's tokenizer needs Java, and there is no `java` here. Install one: apt-get install default-jre-headless"]


def budget_problem(export: Export, others: list[results.EncoderResult]) -> list[str]:
    """Frozen encoders are compared at an equal number of visual tokens, seen in one way: a difference is refused before anything runs. Of
    square and crop that is a picture's tokens, of anyres a tile's and the grids of tiles, of native the most that a picture may have."""
    from llava_plugin.encoders import same_budget

    said = export.provenance
    sizes = [(export.encoder, said.tokens, said.resolution)] if said.frozen and said.tokens and said.resolution else []
    for row in others if sizes else ():
        theirs = row.provenance.get("view", "square")
        if row.frozen and budget_of(theirs) != budget_of(said.view):
            both = f"{export.encoder} was trained with --view {said.view}, {row.encoder} with {theirs}"
            return [f"{both}: not comparable. Train both with one view"]
    try:
        if sizes:
            same_budget(
                sizes + [(row.encoder, row.tokens, row.resolution) for row in others if row.frozen and row.tokens and row.resolution]
            )
    except ValueError as error:
        return [str(error)]
    return []


def budget_of(view: str) -> str:
    """What of a view has to be equal beside tokens: a cut-out and a squashed picture cost the same."""
    return "square" if view == "crop" else view


def size_in_words(export: Export) -> str:
    """How big a picture is to the MLLM, as every command says it."""
    from llava_plugin.encoders import in_words

    said = export.provenance
    if said.native_tokens:
        return f"each at its own aspect ratio, at most {said.native_tokens} tokens: as the MLLM was made"
    seen = "" if said.view == "square" else f"; view {said.view}"
    return f"{in_words(said.resolution, said.tokens)}: as the MLLM was trained{seen}" if said.resolution and said.tokens else "not recorded"


def result_folder(args: argparse.Namespace, suite: Suite, export: Export) -> Path:
    return results.row_folder(args.out / "results", suite.name, export.encoder, export.llm, export.digest)
