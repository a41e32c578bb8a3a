"""Tables of a suite's results in markdown, CSV and LaTeX, or a table of the paper: the command; they are built in report/tables.py.

python -m eval_suites.tables genlip14 --compare genlip-g16,siglip2-g16-384
"""

import argparse
import sys
from pathlib import Path

from eval_suites import suites
from eval_suites.report.paper import paper_report
from eval_suites.report.tables import write_tables
from eval_suites.score import lmms_files, results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval_suites.tables",
        description="Build a suite's table from results, or check a table of the paper.",
        epilog="examples:\n  python -m eval_suites.tables genlip14\n"
        "  python -m eval_suites.tables easyvqa --compare genlip-tiny,random-tiny\n  python -m eval_suites.tables --paper 3 --csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", nargs="?", help=f"{', '.join(suites.SUITES)}, or a YAML file")
    parser.add_argument("--out", type=Path, default=Path(), help="folder with results/; tables/ goes there (default: here)")
    parser.add_argument(
        "--compare", metavar="A,B,...", help="the first encoder against each of the others; NAME@DIGEST picks among several"
    )
    parser.add_argument(
        "--lmms-eval", action="append", default=[], metavar="NAME=PATH",
        help="a row of plain lmms-eval's results: a *_results.json or the folder of them; may be given again",
    )  # fmt: skip
    parser.add_argument("--allow-partial", action="store_true", help="average what lacks nothing but unreadable pictures, marked")
    parser.add_argument("--paper", metavar="N", help="a table of the paper: its averages, printed and recomputed")
    parser.add_argument("--csv", action="store_true", help="with --paper: as CSV")
    args = parser.parse_args(argv)
    try:
        if bool(args.paper) == bool(args.suite):
            raise ValueError("give a suite, or --paper N")
        if args.paper:
            print(paper_report(args.paper, args.csv), end="")
            return 0
        suite = suites.get(args.suite)
        rows = results.read_rows(args.out / "results", suite)
        names = [name.strip() for name in args.compare.split(",")] if args.compare else []
        if len(names) == 1:
            raise ValueError("--compare wants two encoders or more, as in --compare A,B")
        for given in args.lmms_eval:
            name, _, path = given.partition("=")
            if not name or not path:
                raise ValueError(f"--lmms-eval {given}: give NAME=PATH, as in --lmms-eval mine=logs/")
            rows.append(lmms_files.read_elsewhere(name, Path(path), suite))
        picked = [results.find_row(rows, name, suite) for name in names]
        print(write_tables(suite, rows, args.out / "tables", [(picked[0], other) for other in picked[1:]], args.allow_partial), end="")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
