"""Long commands that are killed or stopped, and given again: equal results, no process that outlives them, nothing left behind."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from small_data.mini import __main__ as mini
from tests.eval_suites.helpers.handmade_results import SUITE, right_share, write_results
from tests.eval_suites.helpers.small_data import make_easyvqa

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PATIENCE = 20  # seconds that the last worker may take
# (signal, when: of the time that the undisturbed run takes)
MOMENTS = [(signal.SIGKILL, 0.55), (signal.SIGKILL, 0.85), (signal.SIGINT, 0.7), (signal.SIGTERM, 0.8)]
CODES = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Long:
    """A command, run in a folder with what it reads, and the files that are its results."""

    words: str
    results: tuple[str, ...]
    lasts: bool = True  # long enough for all moments, and for a second one to come meanwhile


LONG = {
    "pretraining": Long("-m genlip.train tiny-s1 --data shards --tokenizer tokenizer --out out --max-steps 30 --workers 1 --resolution 32"
                        " --row-tokens 400 --save-every 5", ("out/export/model.safetensors", "out/metrics.jsonl", "out/ledger.json")),
    "preparation": Long("-m train_mllm.prepare_data many.json --out out --decode --workers 2",
                        ("out/ledger.json",)),
    "SFT": Long("-m train_mllm.train tiny-sft --encoder genlip-tiny --llm tokenizer --data sft.json --out out --max-steps 30 --batch 2"
                " --workers 1 --no-cache-features --no-standardise --save-every 5", ("out/export/*.safetensors", "out/metrics.jsonl")),
    "evaluation": Long("eval_suites/run.py --encoder genlip-tiny --mllm ../sft/export --suite mini14 --tasks chartqa,ocrbench"
                       " --batch-size 1 --out out", ("out/results/**/samples.jsonl", "out/tables/mini14.csv")),
    "mini world": Long("-m small_data.mini --out out --train 600 --eval 3 --workers 2", ("out/**/*.*",)),
    "fetch": Long("-m llava_plugin.fetch llama-tiny --text text.txt --weights out", ("out/llama-tiny/*",)),
    "tables": Long(f"-m eval_suites.tables {SUITE.name} --out out", ("out/tables/*",), lasts=False),
    "report": Long("-m eval_suites.report out/results --data-root easyvqa --out out/page/report.html --figures out/page",
                   ("out/page/*",), lasts=False),
}  # fmt: skip


def begin(long: Long, folder: Path, most: int = resource.RLIM_INFINITY) -> subprocess.Popen:
    """The command, which may write files of at most so many bytes each."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing on is an OSError then, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    words = [str(ROOT / word) if word.startswith("eval_suites/") else word for word in long.words.split()]
    return subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=limited,
    )  # fmt: skip


def plain(content: bytes, name: str) -> bytes | list:
    """A result; of metrics the losses, since speeds are others each time."""
    if name != "metrics.jsonl":
        return content
    return [(line["step"], line["loss"]) for line in map(json.loads, content.splitlines()) if "loss" in line]


def results(long: Long, folder: Path) -> dict[str, object]:
    files = {file for pattern in long.results for file in folder.glob(pattern) if file.is_file()}
    assert files
    return {str(file.relative_to(folder)): plain(file.read_bytes(), file.name) for file in files}


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, llama_tiny):
    """What all of them read."""
    import tarfile

    from train_mllm.train import main

    folder = tmp_path_factory.mktemp("inputs")
    rows = []
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{i}.png")
        said = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": colour}]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": said})
        (folder / f"{i}.json").write_text(json.dumps({"caption": f"a {colour} picture"}))
    (folder / "sft.json").write_text(json.dumps(rows))
    (folder / "many.json").write_text(json.dumps(rows * 10_000))
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/train-0.tar", "w") as tar:
        for i in range(4):
            for suffix in ("png", "json"):
                tar.add(folder / f"{i}.{suffix}", f"{i}.{suffix}")
    (folder / "text.txt").write_text("a red picture of a thing\n" * 20_000)
    (folder / "tokenizer").symlink_to(llama_tiny)
    assert mini.main(["--out", str(folder / "data"), "--train", "1", "--eval", "6", "--workers", "1"]) == 0
    words = f"tiny-sft --encoder genlip-tiny --max-steps 1 --batch 2 --workers 0 --llm {llama_tiny} --data {folder / 'sft.json'}"
    assert main(f"{words} --no-cache-features --no-standardise --out {folder / 'sft'}".split()) == 0
    make_easyvqa(folder / "easyvqa")
    for seed in range(12):
        write_results(folder / "results", folder / "easyvqa", f"encoder-{seed}", right_share(seed, 0.5))
    return folder


def place(inputs: Path, name: str) -> Path:
    folder = inputs / name
    folder.mkdir()
    for file in inputs.iterdir():
        if file.name in ("shards", "tokenizer", "data", "sft.json", "many.json", "text.txt", "easyvqa") or file.suffix == ".png":
            (folder / file.name).symlink_to(file)
    if name.startswith(("tables", "report")):
        shutil.copytree(inputs / "results", folder / "out/results")
    return folder


@pytest.mark.parametrize("name", LONG)
def test_killed_or_stopped_and_given_again(name, inputs):
    long = LONG[name]
    if name == "evaluation":
        pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    undisturbed = place(inputs, f"{name}-a")
    began = time.monotonic()
    process = begin(long, undisturbed)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    took, expected = time.monotonic() - began, results(long, undisturbed)
    for number, (sent, when) in enumerate(MOMENTS if long.lasts else MOMENTS[1:2]):
        folder = place(inputs, f"{name}-{number}")
        process = begin(long, folder)
        time.sleep(took * when)
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send_signal(sent)
        said = process.communicate()[1]
        assert process.returncode in (CODES[sent], 0, -sent), said  # 0 or -sent: its work was done by then
        assert "Traceback" not in said
        end = time.monotonic() + PATIENCE
        while alive(process.pid):
            assert time.monotonic() < end, f"{name} left processes behind after {sent.name}"
            time.sleep(0.1)
        again = begin(long, folder)
        said = again.communicate()[1]
        assert again.returncode == 0, said
        assert results(long, folder) == expected, f"{name} after {sent.name} at {when:.0%}"
        left = [path.name for path in (folder / "out").rglob("*") if path.name.endswith((".part", ".lock"))]
        assert not left, f"{name} after {sent.name}: {left}"


@pytest.mark.parametrize("name", [name for name in LONG if LONG[name].lasts])
def test_the_second_of_two_at_once_is_refused(name, inputs):
    if name == "evaluation":
        pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    folder = place(inputs, f"{name}-twice")
    first = begin(LONG[name], folder)
    end = time.monotonic() + 60
    while not [path for path in folder.glob("out/**/.*lock") if "turn" not in path.name]:
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)
    second = begin(LONG[name], folder)
    said = second.communicate()[1]
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and f"process {first.pid} on " in said and "another run is writing into" in said
    first.communicate()
    assert first.returncode == 0


# Bytes that a file may have, below what the command's largest one has.
FULL = {"pretraining": 300_000, "preparation": 20_000, "SFT": 300_000, "evaluation": 2_000, "mini world": 3_000, "fetch": 100_000}
FULL |= {"tables": 300, "report": 20_000}


@pytest.mark.parametrize("name", LONG)
def test_a_full_disk_is_a_sentence_and_with_space_again_the_same_comes_out(name, inputs):
    if name == "evaluation":
        pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    long, folder, undisturbed = LONG[name], place(inputs, f"{name}-full"), place(inputs, f"{name}-space")
    process = begin(long, folder, FULL[name])
    said = process.communicate()[1]
    assert process.returncode in (1, 2) and "Traceback" not in said, said
    assert "out/" in said.splitlines()[-1] and "File too large" in said.splitlines()[-1], said
    left = [path.name for path in folder.rglob("*") if path.name.endswith((".part", ".lock"))]
    assert not left, left
    for place_of in (folder, undisturbed):
        process = begin(long, place_of)
        said = process.communicate()[1]
        assert process.returncode == 0, said
    assert results(long, folder) == results(long, undisturbed)
