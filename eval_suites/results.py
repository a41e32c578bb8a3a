"""Cells of result files, printed: each a number with its n, or a reason why it is none.

    python -m eval_suites.results results/ --json

What counts as a score is decided in score/results.py; what of lmms-eval's own files does, in score/lmms_files.py.
"""

import json
from dataclasses import asdict
from pathlib import Path

from eval_suites.score.lmms_files import read_cells
from genlip.common.command import command, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m eval_suites.results",
        description="Print the cells of result files, each a number with its n or a reason why it is none.",
        epilog="examples:\n  python -m eval_suites.results results/ --json\n  python -m eval_suites.results logs/20260101_results.json",
    )
    parser.add_argument("paths", nargs="+", type=Path, help="result.json, lmms-eval's *_results.json, or folders that hold such files")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    args = parser.parse_args(argv)
    cells = read_cells(args.paths)
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
    raise SystemExit(main())
