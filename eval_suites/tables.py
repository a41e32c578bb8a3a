"""The command that builds a suite's tables from results, or prints a table of the paper.

    python -m eval_suites.tables genlip14                                # results/ -> tables/genlip14.{md,csv,tex}, genlip14_cells.csv
    python -m eval_suites.tables easyvqa --compare genlip-tiny,random-tiny
    python -m eval_suites.tables genlip14 --lmms-eval mine=logs/          # a row of plain lmms-eval's results beside them
    python -m eval_suites.tables --paper 3 [--csv]                       # a table of the paper: its averages, printed and recomputed

They are built in report/tables.py.
"""

from pathlib import Path

from eval_suites import suites
from eval_suites.report.paper import paper_report
from eval_suites.report.tables import write_tables
from eval_suites.score import lmms_files, results, seeds
from genlip.common.command import command, new_parser
from genlip.common.locks import locked


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m eval_suites.tables",
        description="Build a suite's table from results, or check a table of the paper.",
        epilog="examples:\n  python -m eval_suites.tables genlip14\n"
        "  python -m eval_suites.tables easyvqa --compare genlip-tiny,random-tiny\n  python -m eval_suites.tables --paper 3 --csv",
    )
    parser.add_argument("suite", nargs="?", help=f"{', '.join(suites.SUITES)}, or a YAML file")
    parser.add_argument("--out", type=Path, default=Path(), help="folder with results/; tables/ goes there (default: here)")
    parser.add_argument(
        "--compare", metavar="A,B,...", help="the first encoder against each of the others; NAME@DIGEST picks among several"
    )
    lmms_files.add_flag(parser)
    parser.add_argument("--noise", type=Path, metavar="FILE", help="spread over training seeds, of eval_suites.compare --seed-noise")
    parser.add_argument("--allow-partial", action="store_true", help="average what lacks nothing but unreadable pictures, marked")
    parser.add_argument("--paper", metavar="N", help="a table of the paper: its averages, printed and recomputed")
    parser.add_argument("--csv", action="store_true", help="with --paper: as CSV")
    args = parser.parse_args(argv)
    if bool(args.paper) == bool(args.suite):
        raise ValueError("give a suite, or --paper N")
    if args.paper:
        print(paper_report(args.paper, args.csv), end="")
        return 0
    suite = suites.get(args.suite)
    rows = [*seeds.read_joined(args.out / "results", suite), *lmms_files.rows_of(args.lmms_eval, suite)]
    picked = results.find_rows(rows, args.compare, suite)
    pairs = [(picked[0], other) for other in picked[1:]]
    noise = seeds.read_noise(args.noise, suite, picked) if args.noise else None
    with locked(args.out / "tables", suite.name):
        print(write_tables(suite, rows, args.out / "tables", pairs, args.allow_partial, noise), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
