"""Cells of result files, printed: each a number with its n, or a reason why it is none.

    python -m eval_suites.results results/ --json

What counts as a score is decided in score/results.py; what of lmms-eval's own files does, in score/lmms_files.py.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from eval_suites.score.lmms_files import read_cells


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval_suites.results",
        description="Print the cells of result files, each a number with its n or a reason why it is none.",
        epilog="examples:\n  python -m eval_suites.results results/ --json\n  python -m eval_suites.results logs/20260101_results.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", type=Path, help="result.json, lmms-eval's *_results.json, or folders that hold such files")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    args = parser.parse_args(argv)
    try:
        cells = read_cells(args.paths)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for cell in cells:
        if args.json:
            print(json.dumps(asdict(cell)))
        else:
            error = "" if cell.stderr is None else f" +- {cell.stderr:.2g}"
            shown = "-" if cell.value is None else f"{cell.value:.4g} {cell.unit}{error}"
            refused = f"  refused: {cell.refused}" if cell.refused else ""
            note = f"  note: {cell.note}" if cell.note else ""
            print(f"{cell.benchmark:<12} {cell.metric:<28} {shown:<24} n={cell.n}/{cell.n_expected}{refused}{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
