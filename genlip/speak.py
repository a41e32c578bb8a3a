"""Let the ViT speak: captions for pictures, by greedy decoding as in the paper's own test.

python -m genlip.speak runs/tiny-s1/export photo.jpg folder/            # a line each: file, caption
python -m genlip.speak runs/tiny-s1/export shards/test-000000.tar       # also says how many captions match word for word
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

BATCH = 64


def captions(model, tokenizer, pixel_values, prompt: str, max_new_tokens: int = 256) -> list[str]:
    """pixel_values (B, 3, R, R) -> B captions, greedy, each cut at `<|im_end|>`."""
    import torch

    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids] * len(pixel_values), device=model.device)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            pixel_values=pixel_values.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
    return [text.strip() for text in tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


def pictures(paths: list[str], resolution: int) -> Iterator[tuple[str, object, str | None]]:
    """(name, (R, R, 3) uint8, true caption or None) of files, folders and tar shards. Raises ValueError for what is not a picture."""
    from PIL import Image

    from .data import IMAGE_SUFFIXES, decode, read_shard
    from .image_processing_genlip import square

    for path in map(Path, paths):
        if path.suffix == ".tar":
            for sample in read_shard(str(path)):
                yield sample["__key__"], *decode(sample, resolution)
            continue
        files = sorted(f for f in path.iterdir() if f.suffix[1:].lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        for file in files:
            try:
                yield str(file), square(Image.open(file), resolution), None
            except (OSError, SyntaxError) as e:
                raise ValueError(f"{file} is not a picture that can be read ({e})") from e


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m genlip.speak",
        description="Caption pictures with a pretrained GenLIP.",
        epilog="example:\n  python -m genlip.speak runs/tiny-s1/export photo.jpg data/easy-vqa/captions-held-out/test-000000.tar",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("export", help="a from_pretrained folder with a tokenizer, such as runs/NAME/export")
    parser.add_argument("pictures", nargs="+", help="picture files, folders of them, or tar shards (whose captions are compared)")
    parser.add_argument("--prompt", default="Describe the image in detail.", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="only the last line of a comparison")
    args = parser.parse_args(argv)
    try:
        right, total = speak(args)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    if total:
        print(f"{right} of {total} captions word for word ({100 * right / total:.1f} %)")
    return 0


def speak(args) -> tuple[int, int]:
    """Print a line for every picture; returns how many of the captions that came with a picture were said word for word."""
    import numpy as np
    from transformers.utils import logging

    from . import register
    from .image_processing_genlip import GenLIPImageProcessor
    from .modeling_genlip import GenLIPForPretraining
    from .train import load_tokenizer

    if not (Path(args.export) / "config.json").is_file():
        raise ValueError(f"{args.export} has no config.json: give the export/ folder of a run of genlip.train")
    logging.disable_progress_bar()  # of a folder that is read in a moment
    register()
    model = GenLIPForPretraining.from_pretrained(args.export).eval()
    tokenizer = load_tokenizer(args.export)
    processor = GenLIPImageProcessor.from_pretrained(args.export)
    found = list(pictures(args.pictures, processor.size))
    right = total = 0
    for start in range(0, len(found), BATCH):
        batch = found[start : start + BATCH]
        said = captions(model, tokenizer, processor.normalise(np.stack([p for _, p, _ in batch])), args.prompt, args.max_new_tokens)
        for (name, _, truth), text in zip(batch, said):
            right += truth == text
            total += truth is not None
            if not args.quiet:
                print(f"{name}\t{text}" + ("" if truth in (None, text) else f"\t(true: {truth})"))
    return right, total


if __name__ == "__main__":
    sys.exit(main())
