"""The main job: evaluate an encoder's MLLM on a suite, task by task, and put its row into the table.

    python eval_suites/run.py --encoder genlip-g16 --data-root /data/hub

Finds the fine-tuned MLLM of that encoder under runs/, checks everything that can be checked before a model is loaded, runs each task
through lmms-eval's own engine (prompts, filters, metrics), writes each task's result when it is done, and tables/<suite>.{md,csv} at the
end. A task that is done for these weights, this definition and these data is not run again; stopped anywhere, the same command goes on.

Exit code: 0 every asked column is complete; 1 a task failed; 2 refused before anything ran; 3 done, but of fewer samples than declared.
"""

import argparse
import fcntl
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

if not __package__:  # run as a script: the folder above is the package's root, and this folder's files are nobody's top level
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval_suites import results, suites, tables, tasks
from eval_suites.suites import Suite


@dataclass(frozen=True)
class Export:
    """A trained MLLM: its folder and what its provenance.json says."""

    folder: Path
    provenance: dict

    @property
    def encoder(self) -> str:
        return self.provenance["encoder"]

    @property
    def digest(self) -> str:
        return self.provenance["weights_digest"]

    @property
    def llm(self) -> str:
        return Path(self.provenance["llm"]).name


@dataclass(frozen=True)
class Job:
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
        raise ValueError(f"{folder} has no provenance.json: give the export/ folder of a training run of train_mllm")
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in ("stage", "encoder", "llm", "weights_digest") if not provenance.get(name)]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): export the model again") from error
    if missing:
        raise ValueError(f"{path} does not say {', '.join(missing)}: export the model again")
    return Export(folder, provenance)


def find_export(encoder: str, mllm: Path | None, llm: str | None, runs: Path = Path("runs")) -> Export:
    """The given export, or the one fine-tuned export of the encoder under runs/. ValueError says how to make or to pick one.

    An encoder is KEY, PATH_OR_HUB_ID or NAME=PATH; the label that provenance.json carries is KEY, the last folder, or NAME.
    """
    label = encoder.partition("=")[0] if "=" in encoder else Path(encoder).name
    if mllm:
        export = read_export(mllm)
        if label not in (export.encoder, export.provenance.get("encoder_key")):
            raise ValueError(f"{mllm} holds encoder {export.encoder}, not {label}: give --encoder {export.encoder}, or another --mllm")
        return export
    exports = [read_export(path.parent) for path in sorted(runs.glob("*/export/provenance.json"))]
    own = [export for export in exports if label in (export.encoder, export.provenance.get("encoder_key"))]
    tuned = [export for export in own if export.provenance["stage"] == "sft" and llm in (None, export.provenance["llm"], export.llm)]
    if len(tuned) == 1:
        return tuned[0]
    if tuned:
        choices = "".join(f"\n  --mllm {export.folder}   ({export.llm}, {export.digest[:8]})" for export in tuned)
        raise ValueError(f"{len(tuned)} fine-tuned MLLMs of {label}; say which, by --mllm or --llm:{choices}")
    others = {export.llm for export in own if export.provenance["stage"] == "sft"}
    if llm and others:
        raise ValueError(f"no fine-tuned MLLM of {label} with {llm} under {runs}/; there are: {', '.join(sorted(others))}")
    raise NotTrained(_how_to_train(encoder, label, runs, bool(own)))


class NotTrained(ValueError):
    """The encoder exists, its MLLM does not yet: worth reporting together with what else is missing."""


def _how_to_train(encoder: str, label: str, runs: Path, projector_only: bool) -> str:
    """What to do where an encoder has no fine-tuned MLLM; ValueError (did you mean) where it is no encoder at all."""
    from llava_plugin import encoders

    spec = encoders.resolve(encoder)
    first = " (its projector stage is there, which does not count)" if projector_only else ""
    text = f"no fine-tuned MLLM of {label} under {runs}/{first}. Train one: ENCODER={encoder} bash train_mllm/sft_qwen1.5b_frozen.sh"
    try:
        encoders.find_weights(spec)
    except ValueError as error:
        text += f"\nBefore that: {error}"
    return text


# --- pre-flight -------------------------------------------------------------------------------------------------------------


def plan_job(suite: Suite, task: str, args: argparse.Namespace, export: Export | None, folder: Path) -> Job:
    """One task's data found and counted. ValueError where they are not there or not those the suite declares."""
    import importlib.metadata

    data = tasks.locate(task, args.data_root)
    declared = next(column.n for column in suite.columns if column.task == task)
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
        "weights": export.digest if export else "",
        "task": tasks.definition_digest(task),
        "data": data.digest,
        "limit": limit,
        "lmms_eval": importlib.metadata.version("lmms-eval"),
    }
    done = results.read_result(folder)
    # A full result answers a limited request too: a quick look never costs the long run's answers.
    return Job(task, data, expected, key, folder, bool(done) and done["key"] in (key, {**key, "limit": None}))


def java_problem(jobs: list[Job]) -> list[str]:
    """CIDEr's tokenizer is a Java program that first starts when all captions are written: its absence is found here."""
    wanting = ", ".join(job.task for job in jobs if job.task in tasks.CIDER and not job.done)
    if not wanting or shutil.which("java"):
        return []
    return [f"{wanting}: CIDEr's tokenizer needs Java, and there is no `java` here. Install one: apt-get install default-jre-headless"]


def result_folder(args: argparse.Namespace, suite: Suite, export: Export) -> Path:
    return args.out / "results" / suite.name / export.encoder.replace("/", "--") / f"{export.llm}@{export.digest[:8]}"


@contextmanager
def locked(folder: Path):
    """Hold the folder for this process. ValueError where another run holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing into {folder}: wait for it, or give another --out") from error
        yield


# --- running ----------------------------------------------------------------------------------------------------------------


def run_job(job: Job, lm, suite: Suite, export: Export, log: io.StringIO) -> None:
    """Evaluate one task by lmms-eval, whose own words go to `log`, and write its samples.jsonl, then its result.json."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    name, start = tasks.local_name(job.task), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tasks.write(Path(folder), job.data)
        # Task objects are made anew for every task: some keep sums in their module from one use to the next (OCRBench).
        manager = TaskManager(include_path=folder, include_defaults=False)
        # Read by lmms-eval: where tasks may drop submission files, and that scoring needs no pictures decoded again.
        options = SimpleNamespace(output_path=folder, process_with_media=False, reasoning_tags=None)
        with redirect_stdout(log), redirect_stderr(log):  # its own bars, five a task; ours goes to the real stderr
            out = simple_evaluate(
                model=lm,
                tasks=[name],
                task_manager=manager,
                limit=job.key["limit"],
                bootstrap_iters=0,
                log_samples=True,
                cli_args=options,
                process_docs_parallel=1,
            )
    metrics = {column.metric.split(",")[0] for column in suite.columns if column.task == job.task}
    samples = [_record(sample, lm.asked[name, sample["doc_id"]], metrics) for sample in out["samples"][name]]
    wanted = job.key["limit"] or job.data.rows
    if len(samples) != wanted:
        raise RuntimeError(f"lmms-eval scored {len(samples)} samples of {wanted}")
    result = {
        "suite": suite.name,
        "task": job.task,
        "encoder": export.encoder,
        "llm": export.llm,
        "n": len(samples),
        "n_expected": job.n_expected,
        "cleaned": sum(sample["cleaned"] for sample in out["samples"][name] if "cleaned" in sample),
        "results": {metric: value for metric, value in out["results"][name].items() if "," in metric},
        "generation": out["configs"][name]["generation_kwargs"],
        "key": job.key,
        "provenance": export.provenance,
        "seconds": round(time.monotonic() - start, 1),
    }
    (job.folder / "result.json").unlink(missing_ok=True)  # from here to the last line the task is not done
    _write(job.folder / "samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in sorted(samples, key=lambda s: s["doc_id"])))
    _write(job.folder / "result.json", json.dumps(result, indent=1) + "\n")


def _record(sample: dict, asked: tuple[str, str], metrics: set[str]) -> dict:
    """What is kept of one of lmms-eval's samples: the question as the model saw it, its answer, its scores."""
    prompt, image = asked
    return {
        "doc_id": sample["doc_id"],
        "image": image,
        "prompt": prompt,
        "target": sample["target"],
        "answer": sample["resps"][0][0],
        "filtered": sample["filtered_resps"][0],
        "scores": {metric: _score(sample[metric]) for metric in metrics if metric in sample},
        "doc": {name: value for name, value in sample["doc"].items() if isinstance(value, int | float | str) and len(str(value)) <= 200},
    }


def _score(score):
    """A sample's score as a number, or as what MME needs to form pairs."""
    if not isinstance(score, dict):
        return float(score)
    if "score" in score:
        return {name: score[name] for name in ("question_id", "category", "score") if name in score}
    # SEED-Bench-2-Plus leaves the comparison to its aggregation: the same one here, and results.py holds the mean against lmms-eval's.
    return float(score["pred"].lower().strip() == score["answer"].lower().strip())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def run_jobs(jobs: list[Job], suite: Suite, export: Export, batch_size: int) -> list[str]:
    """Run what is not done; the tasks that failed. A failure is written to <task>/failed.txt and the next task starts."""
    print(f"loading lmms-eval and {export.folder} ...", file=sys.stderr)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # data and weights are local by now: nothing may be fetched behind the user's back
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from eval_suites.lmms_model import EvaluatedMllm
    from llava_plugin import mllm

    lm = EvaluatedMllm(mllm=mllm.load(export.folder), batch_size=batch_size)
    failed = []
    for job in jobs:
        start, log = time.monotonic(), io.StringIO()
        try:
            run_job(job, lm, suite, export, log)
        # Whatever a task's code raises, the other tasks' columns are still worth having; the exit code and the file tell.
        except Exception as error:
            failed.append(job.task)
            _write(job.folder / "failed.txt", f"{traceback.format_exc()}\n{log.getvalue()}")
            cause = getattr(error, "last_attempt", None)  # lmms-eval retries, and wraps what it gave up on
            print(f"error: {job.task} failed: {cause.exception() if cause else error} ({job.folder / 'failed.txt'})", file=sys.stderr)
        else:
            (job.folder / "failed.txt").unlink(missing_ok=True)
            print(f"{job.task}: done in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return failed


# --- command ----------------------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python eval_suites/run.py",
        description="Evaluate an encoder's MLLM on a suite of benchmarks and put its row into the table.",
        epilog="""examples:
  python eval_suites/run.py --encoder genlip-g16 --data-root /data/hub
  python eval_suites/run.py --encoder genlip-tiny --suite easyvqa --compare random-tiny,dinov2-s14
  python eval_suites/run.py --encoder dinov2-s14 --mllm runs/NAME/export --tasks chartqa --limit 100
  python eval_suites/run.py --encoder genlip-g16 --dry-run          what is there, what is missing, how to bring it

exit code: 0 every asked column complete, 1 a task failed, 2 refused before anything ran, 3 done but partial""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--encoder", required=True, help="a key (list: python -m llava_plugin.encoders), a folder, a hub id, or NAME=FOLDER"
    )
    parser.add_argument("--mllm", type=Path, metavar="EXPORT", help="the trained MLLM, runs/NAME/export (default: the encoder's only one)")
    parser.add_argument("--llm", metavar="NAME", help="pick among several MLLMs of the encoder by their language model")
    parser.add_argument("--suite", default="genlip14", help=f"one of {', '.join(suites.SUITES)} (default: genlip14)")
    parser.add_argument("--tasks", metavar="A,B,...", help="only these tasks or columns of the suite")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N samples of each task: a quick look, no average")
    parser.add_argument("--allow-partial", action="store_true", help="evaluate data of fewer rows than declared: no average, exit code 3")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="DIR/<org>/<set>/..., as hub snapshots lie (default: data)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="questions at a time; changes no answer (default: 16)")
    parser.add_argument("--compare", metavar="KEY[@EXPORT],...", help="encoders evaluated before, to compare with, question by question")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="results/ and tables/ go there (default: here)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, run nothing")
    args = parser.parse_args(argv)
    for name in ("limit", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} wants 1 or more")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        return _main(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    suite = suites.get(args.suite)
    wanted = suites.select(suite, args.tasks)
    problems, export, jobs = [], None, []
    try:
        export = find_export(args.encoder, args.mllm, args.llm)
    except NotTrained as error:
        problems.append(str(error))
    folder = result_folder(args, suite, export) if export else args.out / "results" / suite.name
    for task in wanted:  # every problem is found before the first is reported
        try:
            jobs.append(plan_job(suite, task, args, export, folder / task))
        except ValueError as error:
            problems.append(str(error))
    problems += java_problem(jobs)
    names = [name.strip() for name in args.compare.split(",")] if args.compare else []
    before = results.read_rows(args.out / "results", suite) if names else []
    others = [tables.find_row(before, name, suite) for name in names]
    if args.dry_run:
        _print_plan(args, suite, export, jobs, folder)
    if problems:
        raise ValueError("\n".join(problems))
    if args.dry_run:
        return 0
    with locked(folder):
        todo = [job for job in jobs if not job.done]
        if export.provenance["stage"] != "sft":
            print(f"note: {export.folder} is of the {export.provenance['stage']} stage, not fine-tuned", file=sys.stderr)
        if len(todo) < len(jobs):
            print(f"{len(jobs) - len(todo)} of {len(jobs)} tasks are done for these weights", file=sys.stderr)
        failed = run_jobs(todo, suite, export, args.batch_size) if todo else []
        rows = results.read_rows(args.out / "results", suite)
    own = next((row for row in rows if row.digest == export.digest and row.encoder == export.encoder), None)
    print(tables.write(suite, rows, args.out / "tables", [(own, other) for other in others] if own else []), end="")
    if failed:
        return 1
    asked = [own.cells[column.name] for column in suite.columns if column.task in wanted]
    refused = [f"{cell.benchmark}: {cell.refused}" for cell in asked if cell.refused]
    if any(cell.value is None for cell in asked):
        print(f"error: {'; '.join(refused)}", file=sys.stderr)
        return 1
    return 3 if refused else 0


def _print_plan(args: argparse.Namespace, suite: Suite, export: Export | None, jobs: list[Job], folder: Path) -> None:
    print(f"suite {suite.name}: {suite.note}")
    if export:
        print(
            f"MLLM {export.folder}: encoder {export.encoder}, {export.llm}, {export.provenance['stage']} stage, weights {export.digest[:8]}"
        )
    print(f"results into {folder}")
    for job in jobs:
        samples = args.limit if job.key["limit"] else job.data.rows
        print(f"  {job.task:<18} {samples:>6} of {job.n_expected} samples  {'done' if job.done else 'to run'}  {job.data.files[0].parent}")


if __name__ == "__main__":
    sys.exit(main())
