"""Four drawn pictures twice over, with a question and an answer about each, and a recipe that learns them in seconds."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from train_mllm.recipes import PRESETS

COLOURS = ["red", "green", "blue", "white"]


@pytest.fixture
def recipe(tmp_path, llama_tiny):
    rows = []
    for i in range(8):
        Image.new("RGB", (32, 32), COLOURS[i % 4]).save(tmp_path / f"{i}.png")
        turns = [("<image>\nwhat", COLOURS[i % 4]), ("no", "yes")]
        said = [t for q, a in turns for t in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    (tmp_path / "sft.json").write_text(json.dumps(rows))
    base = replace(PRESETS["tiny-sft"](), encoder="genlip-tiny", llm=str(llama_tiny), data=str(tmp_path / "sft.json"))
    return replace(base, out=str(tmp_path / "run"), max_steps=6, batch=4, workers=0, save_every=3, cache_features=False, standardise=False)
