"""No file that is read runs code: a pickle that would, in the place of each, with sizes and digests beside it made to fit."""

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from genlip import speak
from genlip import train as pretraining
from genlip.recipes import PRESETS as PRETRAINING
from train_mllm import prepare_data
from train_mllm import train as finetuning
from train_mllm.recipes import PRESETS as FINETUNING

pytestmark = pytest.mark.slow


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def bombs(mark: Path, like: Path) -> list[bytes]:
    """The bomb as a bare pickle and, for what torch.load reads, in the archive that stood there."""
    found = [pickle.dumps(Bomb(mark), 2)]
    if zipfile.is_zipfile(like):
        file = like.with_name("bomb.zip")
        with zipfile.ZipFile(like) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                new.writestr(name, found[0] if name.endswith("data.pkl") else old.read(name))
        found.append(file.read_bytes())
        file.unlink()
    return found


def fits(folder: Path) -> None:
    """Sizes and digests that stand beside the files, of the files as they are now."""
    for name, key in (("state.json", "files"), ("whole.json", None)):
        file = folder / name
        try:
            said = json.loads(file.read_text())
            sizes = said[key] if key else said
            sizes.update({part: (folder / part).stat().st_size for part in sizes})
            file.write_text(json.dumps(said))
        except (OSError, ValueError, KeyError):  # the bomb itself stands there
            pass
    file = folder / "provenance.json"
    try:
        said = json.loads(file.read_text())
        weights = b"".join(hashlib.sha256(part.read_bytes()).digest() for part in sorted(folder.glob("*.safetensors")))
        file.write_text(json.dumps(said | {"weights_digest": hashlib.sha256(weights).hexdigest()}))
    except (OSError, ValueError):
        pass


def each_file_replaced(folder: Path, read) -> int:
    """Call `read` with each of the folder's files replaced in turn; how many times. No bomb may go off, however it is said."""
    mark, kept, tried = folder.parent / "EXPLODED", folder.parent / "kept", 0
    shutil.copytree(folder, kept)
    for file in sorted(file for file in kept.rglob("*") if file.is_file()):
        for bomb in bombs(mark, file):
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            replaced = folder / file.relative_to(kept)
            replaced.write_bytes(bomb)
            fits(replaced.parent)
            with suppress(Exception, SystemExit):
                read()
            assert not mark.exists(), f"{replaced.name} ran a command"
            tried += 1
    shutil.rmtree(folder)
    kept.rename(folder)
    return tried


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path):
    with pytest.raises(AssertionError, match=r"weights.bin ran a command"):
        (tmp_path / "folder").mkdir()
        torch.save({}, tmp_path / "folder/weights.bin")
        each_file_replaced(tmp_path / "folder", lambda: torch.load(tmp_path / "folder/weights.bin", weights_only=False))


@pytest.fixture
def pictures(tmp_path):
    rows = []
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{i}.png")
        said = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": colour}]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    (tmp_path / "sft.json").write_text(json.dumps(rows))
    return tmp_path / "sft.json"


@pytest.fixture
def shards(tmp_path, pictures):
    import tarfile

    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for i in range(4):
            (tmp_path / f"{i}.json").write_text(json.dumps({"caption": f"a picture {i}"}))
            for suffix in ("png", "json"):
                tar.add(tmp_path / f"{i}.{suffix}", f"{i}.{suffix}")
    return folder


def test_pretraining(tmp_path, shards, llama_tiny):
    base = PRETRAINING["tiny-s1"]()
    tokenizer = shutil.copytree(llama_tiny, tmp_path / "tokenizer")
    recipe = replace(base, data=str(shards), tokenizer=str(tokenizer), out=str(tmp_path / "run"), max_steps=2, row_tokens=150, workers=0)
    recipe = replace(recipe, resolution=32, save_every=1)
    export = pretraining.train(recipe)
    words = ["--config", str(tmp_path / "recipe.json")]
    shutil.copy(tmp_path / "run/recipe.json", tmp_path / "recipe.json")
    said = lambda: speak.main([str(export), str(shards / "train-0.tar"), "--max-new-tokens", "2"])  # noqa: E731
    assert each_file_replaced(export, said) >= 5
    kept = export.rename(tmp_path / "export-kept")

    def resumed():
        shutil.rmtree(export, ignore_errors=True)
        return pretraining.main(words)

    newest = tmp_path / "run/checkpoints/step-000002"
    assert each_file_replaced(newest, resumed) >= 2
    (newest / ".metadata").write_bytes(bombs(tmp_path / "EXPLODED", newest)[0])  # what torch's own checkpoints unpickle
    assert resumed() == 2 and not (tmp_path / "EXPLODED").exists()
    (newest / ".metadata").unlink()
    shutil.rmtree(export, ignore_errors=True)
    kept.rename(export)

    def anew():
        shutil.rmtree(tmp_path / "anew", ignore_errors=True)
        return pretraining.main([*words, "--out", str(tmp_path / "anew")])

    assert each_file_replaced(shards, anew) == 1
    assert each_file_replaced(tokenizer, anew) >= 4


def test_finetuning(tmp_path, pictures, llama_tiny):
    llm = shutil.copytree(llama_tiny, tmp_path / "llm")
    base = replace(FINETUNING["tiny-sft"](), encoder="genlip-tiny", llm=str(llm), data=str(pictures), out=str(tmp_path / "run"))
    recipe = replace(base, max_steps=2, save_every=1, batch=2, workers=0, cache_features=False, standardise=False)
    export = finetuning.train(recipe)
    shutil.copy(tmp_path / "run/recipe.json", tmp_path / "recipe.json")
    words = ["--config", str(tmp_path / "recipe.json")]

    from llava_plugin import mllm

    def loaded():
        mllm.load(export)

    assert each_file_replaced(export, loaded) >= 6
    # A checkpoint that stands at the last step gives its weights alone, so one step more is asked for.
    words += ["--max-steps", "3", "--out", str(tmp_path / "other")]

    def longer():
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "other", ignore=shutil.ignore_patterns("export", "recipe.json"))
        return finetuning.main(words)

    assert each_file_replaced(tmp_path / "run/checkpoints/checkpoint-2", longer) >= 8
    assert each_file_replaced(tmp_path / "run/data", longer) >= 2
    assert each_file_replaced(llm, longer) >= 4


def test_preparing(tmp_path, pictures):
    out = tmp_path / "out"
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(pictures, source / "sft.json")

    def prepared():
        shutil.rmtree(out, ignore_errors=True)
        return prepare_data.main([str(source / "sft.json"), "--images", str(tmp_path), "--out", str(out)])

    assert each_file_replaced(source, prepared) == 1


def test_openvision2_is_the_one_release_that_is_pickled(tmp_path):
    from llava_plugin.openvision2 import convert

    folder = tmp_path / "released"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text("{}")
    torch.save({"x": torch.zeros(1)}, folder / "open_clip_pytorch_model.bin")
    assert each_file_replaced(folder, lambda: convert(folder, tmp_path / "out")) == 3
