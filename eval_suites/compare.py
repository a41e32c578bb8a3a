"""Two encoders' rows against each other: what differs besides the encoder, then the paired table with its verdicts.

    python -m eval_suites.compare genlip-g16 siglip2-g16-384 --suite genlip14
    python -m eval_suites.compare --seed-noise dinov2-s14 --out noise.json        # the spread over three or more training seeds

The rules are those of score/verdicts.py and score/exchange.py; the second command's file is explained in score/seeds.py. Two full rows of
genlip14, 532,000 answers, take 7 s, of which 5 are reading. Exit code: 0 the two may be compared; 3 they may, and differ in more than the
encoder, or files of lmms-eval do not say whether they do; 2 refused.
"""

from pathlib import Path

from eval_suites import suites
from eval_suites.report.comparison import besides, section
from eval_suites.score import comparison, lmms_files, results, seeds
from eval_suites.score.averages import accept_unreadable
from eval_suites.score.results import EncoderResult
from eval_suites.suites import Suite
from genlip.common.command import command, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m eval_suites.compare",
        description="Compare two encoders question by question, and say what differs besides the encoder.",
        epilog="""examples:
  python -m eval_suites.compare genlip-g16 siglip2-g16-384 --suite genlip14
  python -m eval_suites.compare genlip-tiny@1a2b genlip-tiny@3c4d       two of several rows of one encoder, by their digest
  python -m eval_suites.compare --seed-noise dinov2-s14 --out noise.json
  python -m eval_suites.compare genlip-tiny dinov2-s14 --noise noise.json
  python -m eval_suites.compare genlip-g16 mine --lmms-eval mine=logs/ --suite genlip14

exit code: 0 the two may be compared, 3 they differ in more than the encoder or that is not known, 2 refused""",
    )
    parser.add_argument("encoders", nargs="*", metavar="ENCODER", help="two: A B; NAME@DIGEST picks among several rows")
    parser.add_argument("--suite", help="which, where there are results of several; a YAML file for a suite of your own")
    parser.add_argument("--results", type=Path, metavar="DIR", help="the results folder (default: results under --out)")
    parser.add_argument("--out", type=Path, metavar="PATH", help="folder with results/ (default: here); of --seed-noise, the file to write")
    lmms_files.add_flag(parser)
    parser.add_argument("--noise", type=Path, metavar="FILE", help="of --seed-noise: adds the smallest believable difference")
    parser.add_argument("--seed-noise", metavar="KEY", help="write the spread over this encoder's training seeds, three or more")
    parser.add_argument("--allow-partial", action="store_true", help="average what lacks nothing but unreadable pictures")
    args = parser.parse_args(argv)
    if args.seed_noise:
        if args.encoders or not args.out:
            raise ValueError("--seed-noise takes one encoder and a file, as in --seed-noise dinov2-s14 --out noise.json")
        print(_seed_noise(args.seed_noise, args.results or Path("results"), args.suite, args.out))
        return 0
    if len(args.encoders) != 2:
        raise ValueError(f"give two encoders, as in A B; these are {len(args.encoders)}")
    root = args.results or (args.out or Path()) / "results"
    suite = _suite(root, args.suite)
    rows = [*seeds.read_joined(root, suite), *lmms_files.rows_of(args.lmms_eval, suite)]
    if not rows:
        raise ValueError(f"no results of suite {suite.name} under {root}: evaluate with --suite {suite.name}, or give --results DIR")
    text, code = _compared(suite, rows, args.encoders, args.noise, args.allow_partial)
    print(text, end="")
    return code


def _compared(suite: Suite, rows: list[EncoderResult], names: list[str], noise: Path | None, allow_partial: bool) -> tuple[str, int]:
    """(what is printed, the exit code). ValueError where no column of the two can be compared."""
    a, b = (results.find_row(rows, name, suite) for name in names)
    if a is b:
        raise ValueError(f"{names[0]} and {names[1]} are one row")
    if allow_partial:
        a, b = accept_unreadable(a), accept_unreadable(b)
    reasons = {column.title: comparison.incomparable(column, a, b) for column in suite.columns}
    if all(reasons.values()):
        raise ValueError(f"no column of the two can be compared: {'; '.join(f'{title}: {why}' for title, why in reasons.items())}")
    others = comparison.differences(a, b) + comparison.asked_otherwise(a, b)
    text = besides(a, b, others) or f"{comparison.nothing_else(a, b)}\n"
    return text + section(suite, a, b, seeds.read_noise(noise, suite, (a, b)) if noise else None, differing=False), 3 if others else 0


def _seed_noise(name: str, root: Path, suite_name: str | None, path: Path) -> str:
    """What is printed; the file is written."""
    suite = _suite(root, suite_name)
    rows = seeds.read_joined(root, suite)
    joined = [row for row in rows if row.members and row.encoder == name]  # single rows beside it have no spread
    noise = seeds.measure(suite, joined[0] if len(joined) == 1 else results.find_row(rows, name, suite))
    seeds.write_noise(noise, path)
    lines = [f"{title:<14} {spread:.2f}" for title, spread in noise.spread.items()]
    return "\n".join([f"{path}: {suite.name}, standard deviation over {noise.seeds} seeds of {noise.encoder}", *lines])


def _suite(root: Path, name: str | None) -> Suite:
    """The suite named, or the only one that there are results of."""
    if name:
        return suites.get(name)
    there = sorted(folder.name for folder in root.glob("*") if folder.is_dir() and folder.name in suites.SUITES)
    if len(there) != 1:
        raise ValueError(f"results of {', '.join(there) or 'no suite'} under {root}: say which, as in --suite genlip14")
    return suites.get(there[0])


if __name__ == "__main__":
    raise SystemExit(main())
