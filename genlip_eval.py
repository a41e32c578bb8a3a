"""`genlip-eval COMMAND ...`: one name for the commands of all folders. Each is its module's own `main`, imported when it is asked for."""

import argparse
import importlib
import sys

from genlip.common.command import command, new_parser
from genlip.common.suggest import unknown

COMMANDS = {
    "run": ("eval_suites.run", "evaluate an encoder's MLLM on a suite and put its row into the table"),
    "tables": ("eval_suites.tables", "build a suite's table from results"),
    "report": ("eval_suites.report.__main__", "write results as one HTML page"),
    "encoders": ("llava_plugin.encoders.__main__", "list the encoders, or verify weights"),
    "fetch": ("llava_plugin.fetch", "bring or make weights"),
    "fetch-data": ("eval_suites.fetch", "download the benchmark data of a suite"),
    "train": ("train_mllm.train", "fine-tune an MLLM"),
    "pretrain": ("genlip.train", "pretrain a GenLIP encoder"),
    "speak": ("genlip.speak", "caption pictures with a pretrained GenLIP"),
}


@command
def main(argv: list[str] | None = None) -> int:
    commands = "\n".join(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items())
    parser = new_parser(
        prog="genlip-eval",
        description="Tells how good a vision encoder is inside a multimodal LLM.",
        epilog=f"commands:\n{commands}\n\nexample: genlip-eval run --encoder genlip-g16 --data-root /data/hub",
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below; COMMAND --help tells its flags")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what the command takes")
    args = parser.parse_args(argv)
    if args.command not in COMMANDS:
        parser.error(unknown("command", args.command, COMMANDS))
    return importlib.import_module(COMMANDS[args.command][0]).main(args.arguments)


if __name__ == "__main__":
    sys.exit(main())
