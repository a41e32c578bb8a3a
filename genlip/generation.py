"""What a pretrained GenLIP says of pictures: greedy decoding, as in the paper's own test, and the pictures that are asked about."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .common.labels import one_line
from .common.model_folder import MEND

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from .image_processing_genlip import GenLIPImageProcessor
    from .modeling_genlip import GenLIPForPretraining

MAX_SIDE = 2**14  # pixels; a processor that says more is mistyped


def captions(model, tokenizer, pixel_values, prompt: str, max_new_tokens: int = 256) -> list[str]:
    """pixel_values (B, 3, H, W) -> B captions, greedy, each cut at `<|im_end|>`."""
    import torch

    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids] * len(pixel_values))
    return generate_text(model, tokenizer, ids, max_new_tokens, pixel_values=pixel_values)


def generate_text(model, tokenizer, ids, max_new_tokens: int, **picture) -> list[str]:
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
class PromptedImage:
    """pixels (H, W, 3) uint8, as the model takes them; `truth` is the caption that came with it, if any."""

    name: str
    pixels: "np.ndarray"
    prompt: str
    truth: str | None = None


def pictures(paths: list[str], size, prompt: str, text_key: str = "caption") -> Iterator[PromptedImage]:
    """The pictures of files, folders and shards, resized to size(height, width).

    Raises ValueError for a file that is no picture, and where there is none at all; a sample of a shard that cannot be used is named on
    stderr and left out.
    """
    from .data import pixels_of, questions_and_answers
    from .shards import IMAGE_SUFFIXES, list_sources, open_shard

    used = 0
    for path in map(Path, paths):
        if path.suffix in (".tar", ".parquet"):
            for shard in list_sources(str(path))[0].shards:
                samples = open_shard(shard, "image", text_key)
                for i in range(len(samples)):
                    try:
                        image, text = samples.read(i)
                        ((question, truth), *_), _ = questions_and_answers(text, prompt)
                        picture = PromptedImage(samples.name(i), pixels_of(image, size)[0], question, truth)
                    except ValueError as e:
                        print(f"left out: {one_line(samples.name(i))}: {e}", file=sys.stderr)
                        continue
                    used += 1
                    yield picture
            continue
        files = sorted(f for f in path.iterdir() if f.suffix[1:].lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        for file in files:
            try:
                picture = PromptedImage(str(file), pixels_of(file.read_bytes(), size)[0], prompt)
            except (OSError, ValueError) as e:
                raise ValueError(f"{file} is not a picture that can be read ({e})") from e
            used += 1
            yield picture
    if not used:
        raise ValueError(f"no picture that can be used in {', '.join(paths)}: give picture files, folders of them, or shards")


class LoadedExport(NamedTuple):
    model: "GenLIPForPretraining"
    tokenizer: "PreTrainedTokenizerBase"
    processor: "GenLIPImageProcessor"
    size: Callable[[int, int], tuple[int, int]]  # (height, width) of a picture -> those that it is resized to


def load(export: str, attention: str = "sdpa") -> LoadedExport:
    """What an export folder of genlip.train holds, or any other GenLIP with a tokenizer. ValueError where it is none, and where its
    weights are not finite: they say nothing.

    Pictures are sized as its processor file says, in whatever form; without one, each at its own shape, which rotary positions take.
    """
    from transformers.utils import logging

    from . import register
    from .common.preprocessing import NATIVE, Preprocessing, read_preprocessing
    from .data import load_tokenizer
    from .image_processing_genlip import GenLIPImageProcessor, native_size
    from .pretrained import check_finite, load_model

    logging.disable_progress_bar()  # of a folder that is read in a moment
    register()
    model = load_model(Path(export), attn_implementation=attention).eval()
    check_finite(model)
    said = read_preprocessing(Path(export)) or Preprocessing(Path(export))
    if said.resample not in (None, "bilinear"):
        raise ValueError(f"{said.file}: resample is {said.resample}, and GenLIP's pictures are resized bilinearly: name another folder")
    if isinstance(said.size, int) and said.size > MAX_SIDE:
        raise ValueError(f"{said.file}: size is {said.size}, and takes {MAX_SIDE} pixels at most: {MEND}")
    values = {"image_mean": said.mean or 0.5, "image_std": said.std or 0.5, "patch_size": model.config.patch_size}
    processor = GenLIPImageProcessor(said.size or NATIVE, said.min_pixels, said.max_pixels, **values)
    shape = "each picture at its own shape" if processor.size == NATIVE else f"{processor.size} x {processor.size} pixels"
    print(f"pictures: {shape}: {'as it was trained' if said.size else 'no processor file says how it was trained'}", file=sys.stderr)

    def size(height, width):
        if processor.size != NATIVE:
            return processor.size, processor.size
        return native_size(height, width, processor.min_pixels, processor.max_pixels, processor.patch_size)

    return LoadedExport(model, load_tokenizer(export), processor, size)
