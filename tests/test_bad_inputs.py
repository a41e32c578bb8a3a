"""Every command with bad input of every kind that it reads: one sentence and an exit code, no traceback, no hang, nothing left behind.

A cell is a command and what is spoilt for it: a file of it with each of the ways to spoil such a file, or a list of flags. `make test-all`
runs the whole table; GENLIP_CELLS=FILE writes how many inputs each cell held.
"""

import json
import os
import resource
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from tests.eval_suites.helpers.small_data import provenance

pytestmark = pytest.mark.slow

SECONDS = 20
DIRECTORY = object()  # in the place of a file
LOST = object()
FLAGS: dict[str, list[str]] = {
    "genlip.train": ["--rows 0", "--save-every 0", "--keep -1", "--lr nan", "--warmup nan", "--warmup 2", "--max-steps 0", "--eps inf",
    "--workers -1", "--max-bad 7", "--resolution 0", "--row-tokens -5", "--seed -1", "--dry-run --gpus -2", "--dry-run --mfu 0",
    "--model patch_size=0", "--model num_attention_heads=0", "--model num_hidden_layers=1000000000", "--model hidden_size=null",
    "--model patch_size=16.5", "--model num_hidden_layers=[]", "--resolution 17", "--data ", "--tokenizer nowhere", "--rows x",
    "--model mrope_section=[1]", "--model mrope_section=3", "--model drop_path_rate=wide", "--init nowhere", "--config nowhere"],
    "train_mllm.train": ["--global-batch -4", "--save-every 0", "--batch 0", "--lr nan", "--warmup nan", "--warmup inf", "--max-steps -1",
    "--epochs nan", "--epochs -1", "--dry-run --gpus -1", "--dry-run --mfu 0", "--dry-run --gpu-memory 0", "--seed 99999999999",
    "--lora-rank -3", "--workers -1", "--encoder nowhere", "--encoder x=", "--llm nowhere", "--data nowhere", "--resolution 17",
    "--config nowhere", "--init nowhere", "--zero 7", "--max-length 0", "--accumulation 0", "--projector none"],
    "train_mllm.prepare_data": ["--workers 0", "--workers x", "--max-bad nan", "--max-bad -1", "--seed -1", "--images nowhere"],
    "genlip.speak": ["--max-new-tokens 0", "--max-new-tokens x", "--max-new-tokens -3", "--prompt", "--text-key"],
    "genlip.convert": ["--size 0", "--size x", "--size -4", "--size 17", "--layout none", "--size nan"],
    "small_data.mini": ["--train 0", "--train -3", "--eval 0", "--workers 0", "--seed -1", "--seed x"],
    "small_data.easyvqa": ["--copies 0", "--copies -1", "--copies x", "--seed x", "--seed -1"],
    "eval_suites.run": ["--limit 0", "--batch-size 0", "--gpus 0", "--suite nowhere", "--tasks none", "--encoder nowhere", "--mllm nowhere",
    "--compare nobody", "--data-root nowhere", "--limit x"],
    "eval_suites.report": ["--samples -1", "--samples x", "--suite nowhere", "--compare nobody", "--noise nowhere"],
    "eval_suites.tables": ["--compare nobody", "--noise nowhere", "--lmms-eval x=nowhere", "--paper 99", "--lmms-eval ="],
}  # fmt: skip


def json_spoilt(whole: bytes) -> dict[str, object]:
    return {
        "cut": whole[: max(1, len(whole) // 2)], "not UTF-8": b"\xff\xfe" + whole, "null": b"null", "a list": b"[]",
        "deep": b"[" * 50_000, "a folder": DIRECTORY,
    }  # fmt: skip


def form_spoilt(whole: bytes) -> dict[str, object]:
    """JSON that can be read, and is not of the form."""
    return {
        "empty": b"", "cut": whole[: max(1, len(whole) // 2)], "null": b"null", "text": b'"x"', "a number": b"7", "numbers": b"[1, 2]",
        "a folder": DIRECTORY,
    }  # fmt: skip


def binary_spoilt(whole: bytes) -> dict[str, object]:
    return {
        "empty": b"", "cut": whole[: len(whole) // 2], "zeros": bytes(len(whole)), "text": b"no such thing\n" * 50,
        "a folder": DIRECTORY, "ones": b"\xff" * len(whole),
    }  # fmt: skip


def fields_spoilt(names: tuple[str, ...]) -> Callable[[bytes], dict[str, object]]:
    """Each of an object's fields with values that no reader can mean."""

    def spoil(whole: bytes) -> dict[str, object]:
        said, found = json.loads(whole), {}
        for name in names:
            for value in (None, 10**9, 0, "x"):
                found[f"{name} {value}"] = json.dumps(said | {name: value}).encode()
            found[f"no {name}"] = json.dumps({k: v for k, v in said.items() if k != name}).encode()
        return found

    return spoil


def samples_spoilt(whole: bytes) -> dict[str, object]:
    """A line of samples that is none of a sample."""
    *lines, last = whole.splitlines(keepends=True)
    said = json.loads(last)
    fields = [
        ("scores", []),
        ("scores", {"exact_match": 10**400}),
        ("image", {}),
        ("image", {"bytes": ""}),
        ("doc_id", [1]),
        ("doc_id", 10**30),
    ]
    found = {f"{name} {str(value)[:20]}": json.dumps(said | {name: value}).encode() for name, value in fields}
    return {name: b"".join([*lines, line]) for name, line in found.items()} | {"deep": b"".join([*lines, b"[" * 100_000 + b"]" * 100_000])}


@dataclass(frozen=True)
class Cell:
    """A command, its words, and the file that is spoilt; `bears` are ways to spoil it that the command rightly takes."""

    command: str
    words: str
    file: str
    how: Callable[[bytes], dict[str, object]]
    bears: tuple[str, ...] = ()


RESULT = f"results/easyvqa/good/llm-tiny@{provenance('good')['weights_digest'][:8]}/easyvqa_shape"
DATA = "data/genlip-eval/easy-vqa"
RUN = "--encoder genlip-tiny --suite easyvqa --mllm sft/export --allow-partial --dry-run"
# A config.json leaves out what is as its class has it: transformers writes it so.
DEFAULTS = ("no num_attention_heads", "no patch_size", "no vocab_size", "no mrope_section", "mrope_section None")
DAMAGED = ("empty", "cut", "zeros", "text", "a folder", "ones")  # samples that cannot be read refuse their cells, and stop no table
NO_SAMPLES = ("scores []", "scores {'exact_match': 1000", "image {}", "image {'bytes': ''}", "doc_id [1]", f"doc_id {10**30}"[:27], "deep")
NAMED = ("nowhere.tar", "no shards at 'x'", "mrope_section", "these samples")  # what a sentence may name instead of a file or a flag
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "vocab_size", "mrope_section")
TRAIN = "tiny-s1 --data shards --tokenizer tokenizer --out out/run --max-steps 1 --workers 0 --resolution 32 --row-tokens 400"
SFT = "tiny-sft --encoder genlip-tiny --llm tokenizer --data sft.json --out out/sft --max-steps 1 --batch 2 --workers 0 --no-cache-features"
SFT += " --no-standardise"
CELLS = [
    Cell("genlip.train", TRAIN, "shards/train-0.tar", binary_spoilt),
    Cell("genlip.train", TRAIN.replace("shards", "rows.parquet"), "rows.parquet", binary_spoilt),
    Cell("genlip.train", TRAIN.replace("shards", "list.txt"), "list.txt", lambda _: {
        "empty": b"", "itself": b"list.txt", "binary": b"\xff\xfe\x00", "nothing": b"\n# a comment\n", "lost": b"nowhere.tar",
        "a folder": DIRECTORY,
        "weights": b"shards@0.5\nrows.parquet", "a weight": b"shards@x"}),
    Cell("genlip.train", TRAIN, "tokenizer/tokenizer.json", json_spoilt),
    Cell("genlip.train", "--config kept.json --out out/run", "kept.json", json_spoilt),
    Cell("genlip.train", "--config kept.json --out out/run", "kept.json", fields_spoilt(("preset", "model", "rows", "data", "betas", "lr")),
         ("lr 0", "model {}", "no model", "no rows", "no betas", "no lr")),  # what a file leaves out is its preset's
    Cell("genlip.train", f"{TRAIN} --init run/export", "run/export/config.json", json_spoilt),
    Cell("genlip.train", f"{TRAIN} --init run/export", "run/export/config.json", fields_spoilt(SIZES), DEFAULTS),
    Cell("genlip.train", f"{TRAIN} --init run/export", "run/export/model.safetensors", binary_spoilt),
    Cell("genlip.train", "--config kept.json --out run", "run/recipe.json", json_spoilt),
    Cell("genlip.train", "--config kept.json --out run", "run/export/provenance.json", json_spoilt),
    Cell("genlip.speak", "run/export shards/train-0.tar", "run/export/config.json", json_spoilt),
    Cell("genlip.speak", "run/export shards/train-0.tar", "run/export/config.json", fields_spoilt(SIZES), DEFAULTS),
    Cell("genlip.speak", "run/export shards/train-0.tar", "run/export/model.safetensors", binary_spoilt),
    Cell("genlip.speak", "run/export shards/train-0.tar", "run/export/preprocessor_config.json", json_spoilt),
    Cell("genlip.speak", "run/export shards/train-0.tar", "run/export/preprocessor_config.json", fields_spoilt(("size", "patch_size")),
         ("size None", "no size", *(f"patch_size {value}" for value in (None, 10**9, 0, "x")), "no patch_size")),  # the model has its own
    Cell("genlip.speak", "run/export shards/train-0.tar", "run/export/tokenizer.json", json_spoilt),
    Cell("genlip.speak", "run/export shards/train-0.tar", "shards/train-0.tar", binary_spoilt, ("cut",)),  # the samples before the cut
    Cell("genlip.speak", "run/export rows.parquet", "rows.parquet", binary_spoilt),
    Cell("genlip.speak", "run/export 0.png", "0.png", binary_spoilt, ("a folder",)),
    Cell("genlip.readout", "run/export 0.png --out out/looks", "0.png", binary_spoilt),
    Cell("genlip.readout", "run/export 0.png --out out/looks", "run/export/config.json", json_spoilt),
    Cell("genlip.convert", "run/export out/c", "run/export/config.json", json_spoilt),
    Cell("genlip.convert", "run/export out/c", "run/export/config.json", fields_spoilt(SIZES), DEFAULTS),
    Cell("genlip.convert", "run/export out/c", "run/export/model.safetensors", binary_spoilt),
    Cell("genlip.convert", "run/export out/c --code", "run/export/preprocessor_config.json", json_spoilt),
    Cell("train_mllm.prepare_data", "sft.json --out out/p", "sft.json", form_spoilt),
    Cell("train_mllm.prepare_data", "rows-sft.parquet --out out/p", "rows-sft.parquet", binary_spoilt),
    Cell("train_mllm.prepare_data", "mix.yaml --out out/p", "mix.yaml", form_spoilt),
    Cell("train_mllm.prepare_data", "sft.json --out prepared", "prepared/ledger.json", json_spoilt),
    Cell("train_mllm.prepare_data", "show prepared", "prepared/ledger.json", json_spoilt),
    Cell("train_mllm.prepare_data", "show prepared", "prepared/conversations/00000.arrow", binary_spoilt),
    Cell("train_mllm.train", "--config sft-kept.json --out out/sft", "sft-kept.json", json_spoilt),
    Cell("train_mllm.train", "--config sft-kept.json --out out/sft", "sft-kept.json",
         fields_spoilt(("preset", "batch", "lr", "zero", "data")),
         ("lr 0", "lr 1000000000", "zero 0", "no batch", "no lr", "no zero")),
    Cell("train_mllm.train", SFT, "sft.json", form_spoilt),
    Cell("train_mllm.train", SFT.replace("sft.json", "prepared"), "prepared/ledger.json", json_spoilt),
    Cell("train_mllm.train", SFT.replace("sft.json", "prepared"), "prepared/conversations/00000.arrow", binary_spoilt),
    Cell("train_mllm.train", SFT, "tokenizer/model.safetensors", binary_spoilt),
    Cell("train_mllm.train", SFT, "tokenizer/config.json", json_spoilt),
    Cell("train_mllm.train", SFT, "tokenizer/tokenizer.json", json_spoilt),
    Cell("train_mllm.train", SFT.replace("genlip-tiny", "run/export"), "run/export/config.json", json_spoilt),
    Cell("train_mllm.train", SFT.replace("genlip-tiny", "run/export"), "run/export/model.safetensors", binary_spoilt),
    Cell("train_mllm.train", f"{SFT} --init sft/export", "sft/export/provenance.json", json_spoilt),
    Cell("train_mllm.train", f"{SFT} --init sft/export", "sft/export/model.safetensors", binary_spoilt),
    Cell("train_mllm.train", "--config sft-kept.json --out sft", "sft/recipe.json", json_spoilt),
    Cell("llava_plugin.encoders", "--verify run/export", "run/export/config.json", json_spoilt),
    Cell("llava_plugin.encoders", "--verify run/export", "run/export/config.json", fields_spoilt(SIZES), DEFAULTS),
    Cell("llava_plugin.encoders", "--verify run/export", "run/export/model.safetensors", binary_spoilt),
    Cell("llava_plugin.fetch", "llama-tiny --text text.txt --weights out/w", "text.txt", lambda _: {
        "lost": LOST, "a folder": DIRECTORY, "not UTF-8": b"\xff\xfe\x00", "cut": b"\xc3", "latin": "é".encode("latin-1") * 9}),
    Cell("eval_suites.own", "chartqa sft.json --images . --out out/own", "sft.json", form_spoilt),
    Cell("eval_suites.own", "ocrbench labels.json --images . --out out/own", "labels.json", form_spoilt),
    Cell("eval_suites.own", "coco2017_cap_val shards-jpg.tar --out out/own", "shards-jpg.tar", binary_spoilt),
    Cell("eval_suites.tables", "easyvqa", f"{RESULT}/result.json", json_spoilt),
    Cell("eval_suites.tables", "easyvqa", f"{RESULT}/result.json", fields_spoilt(("n", "results", "key", "provenance", "schema")),
         ("n 1000000000", "n 0", "results {}", "no schema")),  # the table says why such a cell is none
    Cell("eval_suites.tables", "easyvqa", f"{RESULT}/samples.jsonl", binary_spoilt, DAMAGED),
    Cell("eval_suites.tables", "easyvqa", f"{RESULT}/samples.jsonl", samples_spoilt, NO_SAMPLES),
    Cell("eval_suites.compare", "good poor --suite easyvqa", f"{RESULT}/samples.jsonl", samples_spoilt, NO_SAMPLES),
    Cell("eval_suites.report", "results --out out/r.html", f"{RESULT}/samples.jsonl", samples_spoilt, NO_SAMPLES),
    Cell("eval_suites.compare", "good poor --suite easyvqa", f"{RESULT}/result.json", json_spoilt),
    Cell("eval_suites.results", "results", f"{RESULT}/result.json", json_spoilt),
    Cell("eval_suites.report", "results --out out/r.html", f"{RESULT}/result.json", json_spoilt),
    Cell("eval_suites.report", "results --out out/r.html", f"{RESULT}/samples.jsonl", binary_spoilt, DAMAGED),
    Cell("eval_suites.run", RUN, "sft/export/provenance.json", json_spoilt),
    Cell("eval_suites.run", RUN, "sft/export/config.json", json_spoilt),
    Cell("eval_suites.run", RUN, f"{DATA}/manifest.json", json_spoilt),
    Cell("eval_suites.run", RUN, f"{DATA}/shape/test-00000-of-00001.parquet", binary_spoilt),
    Cell("eval_suites.run", "--encoder genlip-tiny --suite suite.yaml --mllm sft/export --dry-run", "suite.yaml", json_spoilt),
    Cell("small_data.mini", "--out out --train 2 --eval 1 --workers 1", "out/mini/world.json", json_spoilt),
    Cell("small_data.easyvqa", "--out out --copies 1", "out/easy-vqa/made.json", json_spoilt),
]  # fmt: skip


class Hung(BaseException):
    """A command took longer than SECONDS."""


@contextmanager
def bounded() -> Iterator[None]:
    """Within SECONDS, and with a few GB of memory."""

    def ring(*_):
        raise Hung

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * 2**30, before[1]))
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def called(command: str, words: list[str]) -> int | str:
    """The exit code of a command's own main, or what escaped from it."""
    name = command if command not in ("small_data.mini", "llava_plugin.encoders", "eval_suites.report") else f"{command}.__main__"
    try:
        with bounded():
            return import_module(name).main(words)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else f"SystemExit {error.code}"
    except Hung:
        return f"hung for {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"


def put(file: Path, content: object) -> None:
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    if content is DIRECTORY:
        file.mkdir()
    elif content is not LOST:
        file.write_bytes(content)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, llama_tiny):
    """A folder in which every one of the commands has what it needs, small."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from genlip import train as pretraining
    from genlip.recipes import PRESETS as PRETRAINING
    from tests.eval_suites.helpers import handmade_results
    from train_mllm import prepare_data
    from train_mllm import train as finetuning
    from train_mllm.recipes import PRESETS as FINETUNING

    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("workshop")
    patch.chdir(folder)
    shutil.copytree(llama_tiny, folder / "tokenizer")
    rows, words = [], []
    for i, colour in enumerate(("red", "green", "blue", "white")):
        for suffix in ("png", "jpg"):
            Image.new("RGB", (32, 32), colour).save(f"{i}.{suffix}")
        said = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": colour}]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": said})
        words.append({"img_path": f"{i}.png", "instances": [{"text": colour}]})
        Path(f"{i}.json").write_text(json.dumps({"caption": f"a {colour} picture"}))
    Path("sft.json").write_text(json.dumps(rows))
    Path("labels.json").write_text(json.dumps({"data_list": words}))
    Path("shards").mkdir()
    for file, suffix in (("shards/train-0.tar", "png"), ("shards-jpg.tar", "jpg")):
        with tarfile.open(file, "w") as tar:
            for i in range(4):
                tar.add(f"{i}.{suffix}")
                tar.add(f"{i}.json")
    pictures = [{"bytes": Path(f"{i}.png").read_bytes(), "path": None} for i in range(4)]
    pq.write_table(pa.table({"image": pictures, "caption": ["a picture"] * 4}), "rows.parquet")
    turns = [row["conversations"] for row in rows]
    pq.write_table(pa.table({"id": list("abcd"), "image": pictures, "conversations": turns}), "rows-sft.parquet")
    Path("list.txt").write_text("shards/train-0.tar\n")
    Path("text.txt").write_text("a red picture\n" * 20)
    Path("mix.yaml").write_text("datasets:\n  - json_path: sft.json\n    sampling_strategy: all\n")
    Path("suite.yaml").write_text("name: own\ncolumns: []\n")
    base = replace(PRETRAINING["tiny-s1"](), data="shards", tokenizer="tokenizer", out="run", max_steps=2, save_every=1, workers=0)
    pretraining.train(replace(base, resolution=32, row_tokens=400))
    shutil.copy("run/recipe.json", "kept.json")
    assert prepare_data.main(["sft.json", "--out", "prepared"]) == 0
    sft = replace(FINETUNING["tiny-sft"](), encoder="genlip-tiny", llm="tokenizer", data="sft.json", out="sft", max_steps=1, batch=2)
    finetuning.train(replace(sft, workers=0, cache_features=False, standardise=False, save_every=1))
    shutil.copy("sft/recipe.json", "sft-kept.json")
    handmade_results.make(folder, patch)
    yield folder
    patch.undo()


def left_over(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".part", ".lock"))]


def tried(cell_words: str, command: str, folder: Path, capsys, name: str, bears: tuple[str, ...] = (), file: str = "") -> list[str]:
    """What is wrong with how a command takes a bad input: nothing, where all is well. A file has to be named, or its folder."""
    code = called(command, cell_words.split())
    said = capsys.readouterr().err
    wrong = []
    if not isinstance(code, int):
        wrong.append(f"{name}: {code}")
    elif code == 0 and name not in bears:
        wrong.append(f"{name}: exit 0")
    elif code != 0 and not any(line.strip() for line in said.splitlines()):
        wrong.append(f"{name}: exit {code} without a word")
    elif code != 0 and file and not any(part in said for part in (*Path(file).parts, "--", *NAMED)):
        wrong.append(f"{name}: says {said.strip()[-150:]!r}, and names no file")
    if "Traceback" in said:
        wrong.append(f"{name}: a traceback on stderr")
    if left := left_over(folder):
        wrong.append(f"{name}: left {left}")
        for path in left:
            put(folder / path, LOST)
    return wrong


def count(cell: str, number: int) -> None:
    if "GENLIP_CELLS" in os.environ:
        with open(os.environ["GENLIP_CELLS"], "a") as stream:
            stream.write(f"{cell}\t{number}\n")


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.command} {Path(cell.file).name} {cell.how.__qualname__.split('.')[0]}")
def test_a_spoilt_file_is_a_sentence(cell, workshop, capsys):
    file = workshop / cell.file
    whole = file.read_bytes() if file.is_file() else b"{}"
    there, kept, wrong = file.exists(), workshop.parent / "kept", []
    if there:
        shutil.copytree(workshop / cell.file.split("/")[0], kept) if "/" in cell.file else shutil.copy(file, kept)
    inputs = cell.how(whole)
    assert len(inputs) >= 5
    try:
        for name, content in inputs.items():
            shutil.rmtree(workshop / "out", ignore_errors=True)
            put(file, content)
            capsys.readouterr()
            wrong += tried(cell.words, cell.command, workshop, capsys, name, cell.bears, cell.file)
            if there and "/" in cell.file:
                shutil.rmtree(workshop / cell.file.split("/")[0])
                shutil.copytree(kept, workshop / cell.file.split("/")[0])
    finally:
        put(file, whole if there else LOST)
        put(kept, LOST)
    count(f"{cell.command} {cell.file}", len(inputs))
    assert not wrong, f"{cell.command} {cell.words}\n" + "\n".join(wrong)


WORDS = {
    "genlip.train": TRAIN, "train_mllm.train": SFT, "train_mllm.prepare_data": "sft.json --out out/p", "genlip.speak": "run/export 0.png",
    "genlip.convert": "run/export out/c", "small_data.mini": "--out out --train 1 --eval 1 --workers 1", "small_data.easyvqa": "--out out",
    "eval_suites.run": "--encoder genlip-tiny --suite easyvqa --mllm sft/export --allow-partial --dry-run",
    "eval_suites.report": "results --out out/r.html", "eval_suites.tables": "easyvqa",
}  # fmt: skip


@pytest.mark.parametrize("command", FLAGS)
def test_an_absurd_flag_is_refused(command, workshop, capsys):
    wrong = []
    for flags in FLAGS[command]:
        shutil.rmtree(workshop / "out", ignore_errors=True)
        capsys.readouterr()
        wrong += tried(f"{WORDS[command]} {flags}", command, workshop, capsys, flags)
    count(f"{command} flags", len(FLAGS[command]))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("command", WORDS)
def test_a_place_to_write_that_is_none_is_a_sentence(command, workshop, capsys):
    """A file where a folder is meant, a name of 300 letters, a link that leads nowhere or to itself, a name that no system takes."""
    if "out" not in WORDS[command]:
        pytest.skip("it writes nothing")
    wrong = []
    links = {"loop": "loop", "nowhere": "/proc/nowhere/x"}
    for name in ("file/x", "n" * 300, "loop/x", "nowhere/x", "/proc/x", "zero\0x"):
        if name.split("/")[0] in links:
            (workshop / name.split("/")[0]).symlink_to(links[name.split("/")[0]])
        (workshop / "file").write_text("")
        words = [name + word.removeprefix("out") if word.split("/")[0] == "out" else word for word in WORDS[command].split()]
        code = called(command, words)
        said = capsys.readouterr().err
        if code not in (1, 2) or "Traceback" in said:
            wrong.append(f"{name[:20]!r}: {code}, {said[-200:]}")
        for link in links:
            put(workshop / link, LOST)
    count(f"{command} places", 6)
    assert not wrong and not left_over(workshop), "\n".join(wrong)
