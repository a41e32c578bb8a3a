"""Let the ViT speak: captions for pictures, by greedy decoding as in the paper's own test.

python -m genlip.speak runs/tiny-s1/export photo.jpg folder/            # a line each: file, caption
python -m genlip.speak runs/tiny-s1/export shards/test-000000.tar       # also says how many captions match word for word

Pictures of one shape go through the model together. `python -m genlip.readout` shows what patches would say and where words look.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

BATCH = 64
CHUNK = 1024  # pictures in memory


def captions(model, tokenizer, pixel_values, prompt: str, max_new_tokens: int = 256) -> list[str]:
    """pixel_values (B, 3, H, W) -> B captions, greedy, each cut at `<|im_end|>`."""
    import torch

    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids] * len(pixel_values))
    return say_on(model, tokenizer, ids, max_new_tokens, pixel_values=pixel_values)


def say_on(model, tokenizer, ids, max_new_tokens: int, **picture) -> list[str]:
    """What follows the words `ids` (B, L) about B pictures: `pixel_values`, and `grid_hw` where these are the patches of one."""
    import torch

    with torch.no_grad():  # not inference_mode: a training run looks at itself with weights that it goes on to train
        out = model.generate(
            input_ids=ids.to(model.device),
            **{name: value.to(model.device) for name, value in picture.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=tokenizer.pad_token_id,
        )
    return [text.strip() for text in tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


@dataclass(frozen=True)
class Picture:
    """pixels (H, W, 3) uint8, as the model takes them; `truth` is the caption that came with it, if any."""

    name: str
    pixels: object
    prompt: str
    truth: str | None = None


def pictures(paths: list[str], size, prompt: str, text_key: str = "caption") -> Iterator[Picture]:
    """The pictures of files, folders and shards, resized to size(height, width).

    Raises ValueError for a file that is no picture; a sample of a shard that cannot be used is named on stderr and left out.
    """
    from .data import pixels_of, spoken
    from .shards import IMAGE_SUFFIXES, list_sources, open_shard

    for path in map(Path, paths):
        if path.suffix in (".tar", ".parquet"):
            for shard in list_sources(str(path))[0].shards:
                samples = open_shard(shard, "image", text_key)
                for i in range(len(samples)):
                    try:
                        image, text = samples.read(i)
                        question, truth, _ = spoken(text, prompt)
                        yield Picture(samples.name(i), pixels_of(image, size), question, truth)
                    except ValueError as e:
                        print(f"left out: {samples.name(i)}: {e}", file=sys.stderr)
            continue
        files = sorted(f for f in path.iterdir() if f.suffix[1:].lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        for file in files:
            try:
                yield Picture(str(file), pixels_of(file.read_bytes(), size), prompt)
            except (OSError, ValueError) as e:
                raise ValueError(f"{file} is not a picture that can be read ({e})") from e


def load(export: str, attention: str = "sdpa"):
    """(model, tokenizer, image processor, the processor's size rule) of an export folder."""
    from transformers.utils import logging

    from . import register
    from .image_processing_genlip import GenLIPImageProcessor, native_size
    from .modeling_genlip import GenLIPForPretraining
    from .train import load_tokenizer

    if not (Path(export) / "config.json").is_file():
        raise ValueError(f"{export} has no config.json: give the export/ folder of a run of genlip.train")
    logging.disable_progress_bar()  # of a folder that is read in a moment
    register()
    model = GenLIPForPretraining.from_pretrained(export, attn_implementation=attention).eval()
    processor = GenLIPImageProcessor.from_pretrained(export)

    def size(height, width):
        if processor.size != "native":
            return processor.size, processor.size
        return native_size(height, width, processor.min_pixels, processor.max_pixels, processor.patch_size)

    return model, load_tokenizer(export), processor, size


def flags(parser: argparse.ArgumentParser) -> None:
    """What this command and genlip.readout have in common."""
    parser.add_argument("export", help="a from_pretrained folder with a tokenizer, such as runs/NAME/export")
    parser.add_argument("pictures", nargs="+", help="picture files, folders of them, or shards (whose captions are compared)")
    parser.add_argument("--prompt", default="Describe the image in detail.", help="default: %(default)s")
    parser.add_argument("--text-key", default="caption", help="JSON key or column of a shard's captions (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: %(default)s")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m genlip.speak",
        description="Caption pictures with a pretrained GenLIP.",
        epilog="example:\n  python -m genlip.speak runs/tiny-s1/export photo.jpg data/easy-vqa/captions-held-out/test-000000.tar",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags(parser)
    parser.add_argument("--quiet", action="store_true", help="only the last line of a comparison")
    parser.add_argument("--json", action="store_true", help="a JSON object a line: name, said, true")
    args = parser.parse_args(argv)
    try:
        right, total = speak(args)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
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
                print(f"{picture.name}\t{text}" + ("" if picture.truth in (None, text) else f"\t(true: {picture.truth})"))
    return right, total


if __name__ == "__main__":
    sys.exit(main())
