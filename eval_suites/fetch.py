"""Bring a suite's benchmark data to where run.py looks for them: a login node's job, before an air-gapped one computes.

    python -m eval_suites.fetch genlip14 --data-root data --dry-run     # what is there, what is missing; asks no hub
    python -m eval_suites.fetch genlip14 --data-root data               # only the split that is scored; goes on after a stop

Each set lands as its hub snapshot lies, ROOT/<org>/<set>/..., and is counted: a set of fewer rows than declared is said to be so.
"""

from pathlib import Path

from eval_suites import suites, tasks
from eval_suites.suites import Suite
from genlip.common.command import command, new_parser
from genlip.common.hub import offline, snapshot
from genlip.common.locks import locked


def state(suite: Suite, task: str, root: Path) -> tuple[bool, str]:
    """(whether the task's data are whole under `root`, a line about them)."""
    column = next(column for column in suite.columns if column.task == task)
    try:
        data = tasks.locate(task, root)
    except ValueError as error:
        return False, f"missing  {error}"
    expected = column.n if column.n is not None else data.declared
    if expected is None or data.rows == expected:
        return True, f"there    {task}: {data.rows:,} rows in {data.files[0].parent}"
    return False, f"partial  {task}: {data.rows:,} of {expected:,} rows in {data.files[0].parent}: {tasks.fetch_command(task, root)}"


def download(task: str, root: Path) -> None:
    """Download the task's split. ValueError where it is no set of the hub, or cannot be had from there."""
    if tasks.made_here(task):
        raise ValueError(f"{task} is not on the hub but made here: {tasks.fetch_command(task, root)}")
    if offline():
        raise ValueError(f"HF_HUB_OFFLINE is set and {task} comes from the hub: run this where the hub is reached, and copy {root} here")
    repository, pattern = tasks.hub_source(task)
    with locked((root / repository).parent, (root / repository).name):
        snapshot(repository, repo_type="dataset", allow_patterns=pattern, local_dir=root / repository)


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m eval_suites.fetch",
        description="Download the benchmark data of a suite.",
        epilog="example: python -m eval_suites.fetch genlip14 --data-root /data/hub --tasks chartqa,gqa",
    )
    parser.add_argument("suite", help=f"{', '.join(suites.SUITES)}, or a YAML file")
    parser.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR", help="DIR/<org>/<set>/... (default: data)")
    parser.add_argument("--tasks", metavar="A,B,...", help="only these tasks or columns of the suite")
    parser.add_argument("--dry-run", action="store_true", help="say what is there and what is missing, download nothing")
    args = parser.parse_args(argv)
    suite = suites.get(args.suite)
    lacking = 0
    for task in suites.select(suite, args.tasks):
        whole, line = state(suite, task, args.data_root)
        if not whole and not args.dry_run:
            download(task, args.data_root)
            whole, line = state(suite, task, args.data_root)
        lacking += not whole
        print(line, flush=True)
    return 1 if lacking and not args.dry_run else 0


if __name__ == "__main__":
    raise SystemExit(main())
