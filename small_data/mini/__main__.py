"""The command line of the mini world; see the package's docstring."""

import errno
from pathlib import Path

from genlip.common.command import command, new_parser
from genlip.common.flags import bounded

EXAMPLES = """examples:
  python -m small_data.mini --out data                            # 20,000 training scenes, 14 sets of 200: minutes
  python -m small_data.mini --out /tmp/mini --train 500 --eval 20 # to look at: seconds
  python -m small_data.mini.sheet sheet.png                       # twelve pictures with a question and its answer each

Stop it at any time: the same command goes on where it stopped. Equal settings give equal bytes."""


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m small_data.mini", description="Makes the mini world: captions, conversations and fourteen benchmark sets.",
        epilog=EXAMPLES,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; lmms-eval's --data-root is the same folder")
    parser.add_argument("--train", type=bounded(int, 1), default=20000, help="training scenes (default %(default)s)")
    parser.add_argument("--eval", type=bounded(int, 1), default=200, help="rows of each benchmark set (default %(default)s)")
    parser.add_argument("--seed", type=bounded(int), default=0, help="another seed is another world (default %(default)s)")
    parser.add_argument("--workers", type=bounded(int, 1), default=None, help="processes (default: one a core)")
    args = parser.parse_args(argv)

    from small_data.mini.build import World, make

    try:
        made = make(World(args.seed, args.train, args.eval), args.out, args.workers)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        again = "run the same command again: it goes on where it stopped"
        raise ValueError(f"no space left under {args.out}; free some and {again}") from error
    rows = sum(told["n"] for told in made["sets"].values())
    print(
        f"{args.out}: {made['train']['n']} training scenes, {rows} rows in {len(made['sets'])} benchmark sets, digest {made['digest'][:16]}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
