"""Let the ViT speak: captions for pictures, by greedy decoding as in the paper's own test.

python -m genlip.speak runs/tiny-s1/export photo.jpg folder/            # a line each: file, caption
python -m genlip.speak runs/tiny-s1/export shards/test-000000.tar       # also says how many captions match word for word

Pictures of one shape go through the model together. `python -m genlip.readout` shows what patches would say and where words look.
"""

import argparse
import json
import sys
from itertools import islice

from .common.command import command, new_parser
from .common.flags import bounded
from .common.labels import one_line
from .generation import captions, load, pictures

BATCH = 64
CHUNK = 1024  # pictures in memory


def flags(parser: argparse.ArgumentParser) -> None:
    """What this command and genlip.readout have in common."""
    parser.add_argument("export", help="a from_pretrained folder with a tokenizer, such as runs/NAME/export")
    parser.add_argument("pictures", nargs="+", help="picture files, folders of them, or shards (whose captions are compared)")
    parser.add_argument("--prompt", default="Describe the image in detail.", help="default: %(default)s")
    parser.add_argument("--text-key", default="caption", help="JSON key or column of a shard's captions (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=bounded(int, 1), default=256, metavar="N", help="default: %(default)s")


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m genlip.speak",
        description="Caption pictures with a pretrained GenLIP.",
        epilog="example:\n  python -m genlip.speak runs/tiny-s1/export photo.jpg data/easy-vqa/captions-held-out/test-000000.tar",
    )
    flags(parser)
    parser.add_argument("--quiet", action="store_true", help="only the last line of a comparison")
    parser.add_argument("--json", action="store_true", help="a JSON object per line: name, said, true")
    args = parser.parse_args(argv)
    right, total = speak(args)
    if total:
        print(f"{right} of {total} captions word for word ({100 * right / total:.1f} %)", file=sys.stderr if args.json else sys.stdout)
    return 0


def speak(args) -> tuple[int, int]:
    """Print a line for every picture; returns how many of the captions that came with a picture were said word for word."""
    import numpy as np

    model, tokenizer, processor, size = load(args.export)
    right = total = 0
    stream = pictures(args.pictures, size, args.prompt, args.text_key)
    while chunk := list(islice(stream, CHUNK)):
        alike: dict[tuple, list[int]] = {}
        for i, picture in enumerate(chunk):
            alike.setdefault((picture.pixels.shape, picture.prompt), []).append(i)
        said = [""] * len(chunk)
        for (_, prompt), numbers in alike.items():
            for start in range(0, len(numbers), BATCH):
                some = numbers[start : start + BATCH]
                pixels = processor.normalise(np.stack([chunk[i].pixels for i in some]))
                for i, text in zip(some, captions(model, tokenizer, pixels, prompt, args.max_new_tokens)):
                    said[i] = text
        for picture, text in zip(chunk, said):
            right += picture.truth == text
            total += picture.truth is not None
            if args.json:
                print(json.dumps({"name": picture.name, "said": text, "true": picture.truth}, ensure_ascii=False))
            elif not args.quiet:
                true = "" if picture.truth in (None, text) else f"\t(true: {one_line(picture.truth)})"
                print(f"{one_line(picture.name)}\t{one_line(text)}{true}")
    return right, total


if __name__ == "__main__":
    raise SystemExit(main())
