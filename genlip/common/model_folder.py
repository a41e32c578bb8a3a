"""A folder of a model, whoever made it: whether its files are what they say, before anything is built from them. Without torch.

    check(Path("weights/dinov2-s14"))

Configs and tokenizers that hold no object, sizes that no machine builds (a mistyped digit would be built for an hour), weights that were
cut short: each is a ValueError with file, field, and what was found. A few hundredths of a second, the large tokenizers a fifth.

    with building(Path("weights/dinov2-s14/config.json")): ...      # what the libraries find wrong then is one, too
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import read_json
from .labels import one_line

MEND = "copy, fetch or export the folder again"
OBJECTS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json"),
)
MOST_HEADER = 100 * 2**20  # bytes; safetensors' own bound

# Whole numbers in configs of whatever family, in a part's too; a patch may have two sides.
SIZES = {
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "num_channels": 64,
    "patch_size": 1024,
    "image_size": 2**14,
    "vocab_size": 2**24,
}


def check(folder: Path) -> None:
    """Raises ValueError with the first fault there is."""
    for name in OBJECTS:
        if (file := folder / name).exists():
            content = read_json(file, MEND, fields={})
            if name == "config.json":
                _check_sizes(content, str(file))
    for file in sorted(folder.glob("*.safetensors")):
        safetensors_header(file)


@contextmanager
def building(file: Path, mend: str = MEND) -> Iterator[None]:
    """Around what transformers and tokenizers make of a folder by `file`, its config.json or tokenizer.json: whatever they raise where
    it is odd, or does not fit what lies beside it, is a ValueError that names it.

    They raise KeyError, AttributeError, RuntimeError, errors of their own and bare Exceptions, each with the key or type in words alone.
    A sentence that names the folder already stays as it is.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, ValueError | OSError) and str(file.parent) in str(error):
            raise
        said = one_line(str(error))[:200]
        raise ValueError(f"{file} cannot be read, or does not fit what lies beside it ({type(error).__name__}: {said}): {mend}") from error


def _check_sizes(config: dict[str, Any], where: str) -> None:
    for name, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value, f"{where}, {name}")
        for each in (value if isinstance(value, list) else [value]) if name in SIZES else ():
            if type(each) is not int or not 1 <= each <= SIZES[name]:
                raise ValueError(f"{where}: {name} is {json.dumps(value)[:60]}, and takes a whole number from 1 to {SIZES[name]}: {MEND}")


def safetensors_header(file: Path) -> dict[str, Any]:
    """Name -> dtype, shape and data_offsets, without `__metadata__`. ValueError where the file is none, or not as long as it says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(MOST_HEADER, size - 8):
            raise ValueError(f"{file} holds no safetensors, or only their beginning: {MEND}")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
            end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
            whole = 8 + length + end
            shapes = all(type(n) is int and n >= 0 for tensor in tensors.values() for n in tensor["shape"])
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{file} holds no safetensors ({error!r}): {MEND}") from error
    if size != whole or not shapes:
        raise ValueError(f"{file} is cut short or damaged: it holds {size:,} bytes, and says {whole:,}: {MEND}")
    return tensors


def parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors files, by their headers."""
    return sum(math.prod(tensor["shape"]) for file in folder.glob("*.safetensors") for tensor in safetensors_header(file).values())
