"""The main job: evaluate an encoder's MLLM on a suite, task by task, and put its row into the table.

    python eval_suites/run.py --encoder genlip-g16 --data-root /data/hub

Finds the fine-tuned MLLM of that encoder under runs/, checks everything that can be checked before a model is loaded (preflight.py),
runs each task through lmms-eval's own engine (prompts, filters, metrics) in a process of its own (worker.py), every answer in a journal
as it comes (journal.py), each task's result when it is done, and tables/<suite>.{md,csv,tex,html} at the end (report/). A
task that is done for this MLLM, this definition and these data is not run again; stopped anywhere, even by kill -9, the same command
goes on.

Exit code: 0 every asked column is complete; 1 a task failed; 2 refused before anything ran; 3 done, but of fewer samples than declared.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run as a script: the folder above is the package's root, and this folder's files are nobody's top level
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval_suites import suites
from eval_suites.report import tables
from eval_suites.report.page import write_page as write_page
from eval_suites.runner import discover, preflight, worker
from eval_suites.runner.preflight import Export, TaskJob
from eval_suites.score import results, seeds
from eval_suites.suites import Suite
from genlip.common.command import begun, command, new_parser, sentence
from genlip.common.flags import bounded
from genlip.common.locks import locked, one_at_a_time


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = new_parser(
        prog="python eval_suites/run.py",
        description="Evaluate an encoder's MLLM on a suite of benchmarks and put its row into the table.",
        epilog="""examples:
  python eval_suites/run.py --encoder genlip-g16 --data-root /data/hub
  python eval_suites/run.py --encoder genlip-tiny --suite easyvqa --compare random-tiny,dinov2-s14
  python eval_suites/run.py --encoder dinov2-s14 --mllm runs/NAME/export --tasks chartqa --limit 100
  python eval_suites/run.py --encoder genlip-g16 --dry-run          what is there, what is missing, how to bring it

exit code: 0 every asked column complete, 1 a task failed, 2 refused before anything ran, 3 done but partial""",
    )
    parser.add_argument("--encoder", help="a key (list: python -m llava_plugin.encoders), a folder, a hub id, or NAME=FOLDER")
    parser.add_argument("--mllm", type=Path, metavar="EXPORT", help="the trained MLLM, runs/NAME/export (default: the encoder's only one)")
    parser.add_argument("--llm", metavar="NAME", help="pick among several MLLMs of the encoder by their language model")
    parser.add_argument("--suite", default="genlip14", help=f"{', '.join(suites.SUITES)}, or a YAML file (default: genlip14)")
    parser.add_argument("--tasks", metavar="A,B,...", help="only these tasks or columns of the suite")
    parser.add_argument(
        "--limit", type=bounded(int, 1), metavar="N", help="only the first N samples of each task: a quick look, no average"
    )
    parser.add_argument("--allow-partial", action="store_true", help="take fewer rows than declared; average despite unreadable pictures")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="DIR/<org>/<set>/..., as hub snapshots lie (default: data)"
    )
    parser.add_argument(
        "--generation", choices=("ours", "authors"), default="ours",
        help="ours: greedy, no penalties; authors: as the MLLM's generation_config.json says, in a row of its own (default: ours)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=bounded(int, 1), default=16, metavar="N", help="questions at a time; changes no fp32 answer (default: 16)"
    )
    parser.add_argument(
        "--gpus", type=bounded(int, 1), default=1, metavar="N", help="tasks at a time, each on a GPU of its own (default: 1)"
    )
    parser.add_argument("--compare", metavar="KEY[@EXPORT],...", help="encoders evaluated before, to compare with, question by question")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="results/ and tables/ go there (default: here)")
    parser.add_argument(
        "--rehash", action="store_true", help="read all data and weights again, whatever is known of files that seem untouched"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, run nothing")
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    plan = plan_run(args)
    if args.dry_run:
        return 0
    with locked(plan.folder):
        todo = [job for job in plan.jobs if not job.done]
        worker.verify_encoder(plan.export, args.encoder, args.rehash)
        worker.verify(plan.export, args.rehash)
        devices = worker.prepare(args.gpus) if todo else []
        with begun():
            return execute(args, plan, todo, devices)


@dataclass(frozen=True)
class EvalPlan:
    """What is going to run, found and checked."""

    suite: Suite
    wanted: tuple[str, ...]
    export: Export
    jobs: list[TaskJob]
    folder: Path
    others: list[results.EncoderResult]


def plan_run(args: argparse.Namespace) -> EvalPlan:
    """The pre-flight: ValueError with every problem there is, a line each or more."""
    if not args.encoder:
        raise ValueError(discover.next_steps(args.data_root))
    suite = suites.get(args.suite)
    wanted = suites.select(suite, args.tasks)
    problems, export, jobs = [], None, []
    try:
        export = replace(preflight.find_export(args.encoder, args.mllm, args.llm), generation=args.generation)
    except preflight.NotTrained as error:
        problems.append(str(error))
    folder = preflight.result_folder(args, suite, export) if export else args.out / "results" / suite.name
    preflight.read_data(wanted, args.data_root, args.rehash)
    for task in wanted:
        try:
            jobs.append(preflight.plan_job(suite, task, args, export, folder / task))
        except ValueError as error:
            problems.append(str(error))
    problems += [] if jobs else discover.other_suites(suite.name, args.data_root)
    problems += preflight.manifest_problem(jobs) + preflight.java_problem(jobs)
    names = [name.strip() for name in args.compare.split(",")] if args.compare else []
    before = seeds.read_joined(args.out / "results", suite) if names else []
    others = []
    for name in names:
        try:
            others.append(results.find_row(before, name, suite))
        except ValueError as error:
            problems.append(str(error))
    problems += preflight.budget_problem(export, others) if export else []
    if args.dry_run:
        _print_plan(args, suite, export, jobs, folder)
    if problems:
        raise ValueError("\n".join(problems))
    return EvalPlan(suite, wanted, export, jobs, folder, others)


def execute(args: argparse.Namespace, plan: EvalPlan, todo: list[TaskJob], devices: list[str | None]) -> int:
    """Run what is not done, write the table, print it; the exit code."""
    suite, export = plan.suite, plan.export
    if export.provenance.stage != "sft":
        print(f"note: {export.folder} is of the {export.provenance.stage} stage, not fine-tuned", file=sys.stderr)
    print(f"pictures: {preflight.size_in_words(export)}", file=sys.stderr)
    if len(todo) < len(plan.jobs):
        print(f"{len(plan.jobs) - len(todo)} of {len(plan.jobs)} tasks are done for this MLLM", file=sys.stderr)
    failed = worker.run_jobs(todo, suite, export, args.batch_size, devices) if todo else []
    rows = seeds.read_joined(args.out / "results", suite)
    own = next((row for row in seeds.apart(rows) if not row.members and row.folder == plan.folder), None)
    row = rows[seeds.of(rows, own)] if own else None  # with its other seeds, where there are any
    pairs = _pairs(rows, row, own, plan.others) if row and own else []
    with one_at_a_time(args.out / "tables", suite.name):  # another encoder's run may write its row at the same moment
        print(tables.write_tables(suite, rows, args.out / "tables", pairs, args.allow_partial), end="")
        _report(args, plan, rows, pairs)
    if failed:
        return 1
    asked = [own.cells[column.name] for column in suite.columns if column.task in plan.wanted]
    refused = [f"{cell.benchmark}: {cell.refused}" for cell in asked if cell.refused]
    if any(cell.value is None for cell in asked):
        print(f"error: {'; '.join(refused)}", file=sys.stderr)
        return 1
    return 3 if refused else 0


def _pairs(
    rows: list[results.EncoderResult], row: results.EncoderResult, own: results.EncoderResult, others: list[results.EncoderResult]
) -> list[tuple[results.EncoderResult, results.EncoderResult]]:
    """This run's row with each of the others as they are now: its own answers may have joined another seed's row, or parted one."""
    pairs = []
    for other in others:
        seen = {each.digest for each in other.members or (other,)}
        now = next((r for r in [*rows, *seeds.apart(rows)] if seen <= {each.digest for each in r.members or (r,)}), None)
        if other.digest in {each.digest for each in row.members}:
            pairs.append((own, other))
        elif now is None or now is row:
            print(f"note: {other.label} is no row of its own any more: compare its seeds by KEY@DIGEST", file=sys.stderr)
        else:
            pairs.append((row, now))
    return pairs


def _report(
    args: argparse.Namespace,
    plan: EvalPlan,
    rows: list[results.EncoderResult],
    pairs: list[tuple[results.EncoderResult, results.EncoderResult]],
) -> None:
    """Write tables/<suite>.html. The results stand whether or not it can be made, so a problem is a note."""
    folders = [row.folder for row in rows if row.folder]
    place = {(each.encoder, each.llm, each.digest): i for i, row in enumerate(rows) for each in (row, *row.members)}
    both = [tuple(place[row.encoder, row.llm, row.digest] for row in pair) for pair in pairs]
    indices = [pair for pair in both if len(set(pair)) == 2]  # two seeds of one row stand in the table alone
    page, runs = args.out / "tables" / f"{plan.suite.name}.html", plan.export.folder.parent.parent
    try:
        write_page(plan.suite, rows, folders, page, args.data_root, runs, pairs=indices or None, allow_partial=args.allow_partial)
    except (ValueError, OSError) as error:
        print(f"note: no report: {sentence(error)}", file=sys.stderr)
    else:
        print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)


def _print_plan(args: argparse.Namespace, suite: Suite, export: Export | None, jobs: list[TaskJob], folder: Path) -> None:
    print(f"suite {suite.name}: {suite.note}")
    if export:
        print(f"MLLM {export.folder}: encoder {export.encoder}, {export.llm}, {export.provenance.stage} stage, {export.digest[:8]}")
        print(f"pictures: {preflight.size_in_words(export)}")
    print(f"results into {folder}")
    for job in jobs:
        samples = args.limit if job.key["limit"] else job.data.rows
        print(f"  {job.task:<18} {samples:>6} of {job.n_expected} samples  {'done' if job.done else 'to run'}  {job.data.files[0].parent}")


if __name__ == "__main__":
    raise SystemExit(main())
