"""Shared by all tests: nothing reaches a hub, real inputs may be absent."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side: a thread per worker, in the processes that tests start too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


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


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The main job in a folder of its own."""
    from tests.eval_suites.helpers.small_data import Place

    monkeypatch.chdir(tmp_path)
    for name, folder in (("HF_DATASETS_CACHE", "cache"), ("HF_HUB_CACHE", "hub"), ("LMMS_EVAL_DATASETS_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    return Place(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def cut_pictures_are_unreadable(monkeypatch):
    """lmms-eval switches this on for its whole process, that of the tests behind it too."""
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
