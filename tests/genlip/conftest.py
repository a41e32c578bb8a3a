"""A few drawn pictures with captions as shards, and a recipe that learns them in seconds."""

import io
import json
import tarfile
from dataclasses import replace

import pytest
from PIL import Image

from genlip.recipes import PRESETS

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def png(colour, size=(20, 20)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def draw():
    return png


@pytest.fixture
def tar():
    return write_tar


@pytest.fixture
def shards(tmp_path):
    """Three tars of four pictures each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for s in range(3):
        members = {}
        for i, (name, colour) in enumerate(COLOURS.items()):
            members |= {f"{s}{i}.png": png(colour), f"{s}{i}.json": json.dumps({"caption": f"a {name} picture"}).encode()}
        write_tar(folder / f"train-{s}.tar", members)
    return folder


@pytest.fixture
def recipe(shards, llama_tiny, tmp_path):
    base = PRESETS["tiny-s1"]()
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "text_embed_dim": 48}
    model = base.model | sizes | {"mrope_section": [4, 4, 4]}
    changes = {"data": str(shards), "tokenizer": str(llama_tiny), "out": str(tmp_path / "run"), "max_steps": 8, "row_tokens": 150}
    return replace(base, model=model, resolution=32, save_every=3, workers=0, warmup=0.1, look_ahead=4, **changes)
