"""Write resolved task definitions for the plain `lmms-eval` command: `python -m eval_suites.tasks DIR --data-root ROOT`."""

from pathlib import Path

from eval_suites import suites, tasks
from genlip.common.command import command, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m eval_suites.tasks",
        description="Write lmms-eval task definitions that read local data.",
        epilog="example: python -m eval_suites.tasks my_tasks --data-root /data/hub --tasks chartqa,gqa\n"
        "         lmms-eval --include_path my_tasks --tasks chartqa_local --model genlip_eval --model_args export=runs/NAME/export",
    )
    parser.add_argument("folder", type=Path, help="where the definitions go, one <task>_local.yaml each")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="ROOT/<org>/<set>/..., as hub snapshots lie (default: data)")
    parser.add_argument("--suite", default="genlip14", help=f"{', '.join(suites.SUITES)}, or a YAML file (default: genlip14)")
    parser.add_argument("--tasks", help="comma-separated tasks or columns of the suite (default: all)")
    args = parser.parse_args(argv)
    names = suites.select(suites.get(args.suite), args.tasks)
    found = [tasks.locate(name, args.data_root) for name in names]  # all of them, before anything is written
    for data in found:
        print(f"{tasks.write_definition(args.folder, data)}: {data.rows} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
