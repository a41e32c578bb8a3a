"""The command line of the report page; see page.py."""

from pathlib import Path

from eval_suites.report.page import SAMPLES, read, write_page
from eval_suites.score import results, seeds
from genlip.common.command import command, new_parser
from genlip.common.flags import bounded
from genlip.common.locks import locked


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m eval_suites.report",
        description="Write one self-contained HTML page of evaluation results.",
        epilog="examples:\n  python -m eval_suites.report results --data-root data --out report.html\n"
        "  python -m eval_suites.report results --suite genlip14 --compare genlip-g16,siglip2-g16-384 --figures figures/\n"
        "  python -m eval_suites.report results/easyvqa elsewhere/results/easyvqa --samples 50",
    )
    parser.add_argument("results", nargs="+", type=Path, help="results folders, as run.py writes them")
    parser.add_argument("--suite", help="which, where there are results of several; a YAML file for a suite of your own")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="the benchmarks' data, for the pictures")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="run folders: curves, ledgers (default: runs)")
    parser.add_argument(
        "--samples", type=bounded(int), default=SAMPLES, metavar="N", help="shown of each benchmark, at most (default: %(default)s)"
    )
    parser.add_argument("--compare", metavar="A,B,...", help="the first encoder against each of the others; NAME@DIGEST for one of several")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write every chart as an SVG file, too")
    parser.add_argument("--noise", type=Path, metavar="FILE", help="spread over training seeds, of eval_suites.compare --seed-noise")
    parser.add_argument("--allow-partial", action="store_true", help="average what lacks nothing but unreadable pictures, marked")
    args = parser.parse_args(argv)
    suite, rows, folders = read(args.results, args.suite)
    picked = [seeds.of(rows, row) for row in results.find_rows(rows, args.compare, suite)]
    pairs = [(picked[0], other) for other in picked[1:]] if picked else None
    compared = [rows[i] for i in picked] or rows
    noise = seeds.read_noise(args.noise, suite, compared) if args.noise else None
    with locked(args.out.parent, args.out.name):
        written = write_page(
            suite, rows, folders, args.out, args.data_root, args.runs, args.samples, pairs, args.figures, args.allow_partial, noise
        )  # fmt: skip
    for path in written:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)" if path.suffix == ".html" else f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
