"""Shared by all tests: nothing reaches a hub, real inputs may be absent."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def known_digests(tmp_path_factory):
    """What is remembered of files goes into a folder of the tests' own, also by the commands that they start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Small real inputs beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no real inputs in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def llama_tiny(tmp_path_factory) -> Path:
    """The folder of a tiny language model with random weights, and its small tokenizer."""
    from llava_plugin.fetch import fetch

    folder = tmp_path_factory.mktemp("weights")
    text = folder / "text.txt"
    text.write_text("what is in the picture\na red circle\nyes\nno\nDescribe the image in detail.\na blue triangle.\n" * 20)
    fetch("llama-tiny", folder, text)
    return folder / "llama-tiny"
