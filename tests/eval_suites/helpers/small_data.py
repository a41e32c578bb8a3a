"""Small benchmark data in the hub's schema, a stand-in MLLM, and the main job run on them in a folder of its own."""

import hashlib
import inspect
import io
import json
import random
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genlip.common import digests
from genlip.common.fingerprint import of_export
from genlip.common.schema import SCHEMA, Provenance

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def png(colour, size=(8, 8)) -> dict:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def write_parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def chart_rows() -> list[dict]:
    """The three real ChartQA questions, in the columns of the hub's ChartQA."""
    folder = SHARED / "charts"
    if not folder.is_dir():
        pytest.skip("real charts are not here (../shared/data/charts)")
    rows = []
    for item in json.loads((folder / "conversations_llava.json").read_text()):
        question, answer = (turn["value"] for turn in item["conversations"])
        if "chart" not in item["image"] and "COCO" in item["image"]:
            continue
        picture = (folder / "images" / Path(item["image"]).name).read_bytes()
        rows.append({"type": "human_test", "question": question.replace("\n<image>", ""), "answer": answer,
                     "image": {"bytes": picture, "path": None}})  # fmt: skip
    return rows


EASYVQA = {"shape": ("circle", "rectangle", "triangle"), "colour": ("red", "blue"), "yes_no": ("yes", "no")}


def make_easyvqa(root: Path, pictures: int = 40, seed: int = 0) -> None:
    """A small easy-VQA in the columns of the real one: `pictures` pictures, one question of each kind about each."""
    draw = random.Random(seed)
    folder = root / "genlip-eval" / "easy-vqa"
    colours = [png((i % 256, 7 * i % 256, 3)) for i in range(pictures)]
    for kind, answers in EASYVQA.items():
        rows = [
            {"image": colours[i], "image_id": i, "question_id": f"{kind}-{i}", "question": f"which {kind}, {i}?",
             "answer": draw.choice(answers), "type": kind}
            for i in range(pictures)
        ]  # fmt: skip
        write_parquet(folder / kind / "test-00000-of-00001.parquet", rows)
    sets = {kind: {"n": pictures, "images": pictures, "maximum": 1.0} for kind in EASYVQA}
    (folder / "manifest.json").write_text(json.dumps({"sets": sets, "digest": "00"}))


class Seen(NamedTuple):
    """What is kept of a picture that a model was shown: its size and its first pixel."""

    size: tuple[int, int]
    pixel: tuple[int, ...]


class FakeMllm:
    """Answers `reply(prompt)`, or `reply(prompt, pictures)` where it takes two; writes what it was asked into a file, batch by batch.

    Its answers are given in a worker's process: the file is what the test sees of them.
    """

    def __init__(self, reply, provenance: dict, log: Path | None = None):
        self.reply, self.provenance, self.log, self.asked = reply, provenance, log, []
        self.device, self.fingerprint, self.prompt_digests = "cpu", None, []

    @property
    def digest(self) -> str:
        return self.provenance["weights_digest"]

    @property
    def batches(self) -> list[tuple[list[str], list[list], int, tuple[str, ...]]]:
        """(prompts, pictures, max_new_tokens, stop) of each batch."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log and self.log.exists() else self.asked
        return [(prompts, [[Seen(tuple(size), _tuple(pixel)) for size, pixel in some] for some in pictures], new_tokens, tuple(stop))
                for prompts, pictures, new_tokens, stop in lines]  # fmt: skip

    def answer(self, conversations, images, max_new_tokens, stop=()):
        prompts = ["".join(part["text"] for part in turns[-1]["content"] if part["type"] == "text") for turns in conversations]
        two = len(inspect.signature(self.reply).parameters) == 2
        replies = [self.reply(prompt, some) if two else self.reply(prompt) for prompt, some in zip(prompts, images)]
        pictures = [[(picture.size, picture.getpixel((0, 0))) for picture in some] for some in images]
        self.asked.append((prompts, pictures, max_new_tokens, stop))
        self.prompt_digests = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in prompts]
        if self.log:
            with self.log.open("a") as stream:
                stream.write(json.dumps(self.asked[-1]) + "\n")
        return replies


def _tuple(pixel):
    return tuple(pixel) if isinstance(pixel, list) else pixel


def provenance(encoder: str, **changes) -> dict:
    """provenance.json of an export; a recipe among the changes is its protocol too, but for the encoder's name."""
    digest = hashlib.sha256(json.dumps([encoder, changes], sort_keys=True).encode()).hexdigest()
    facts = {
        "stage": "sft", "encoder": encoder, "encoder_key": encoder, "arch": "genlip", "llm": "llm-tiny", "frozen": True, "resolution": 64,
        "tokens": 16, "untrained": encoder == "random-tiny", "weights_digest": digest, "encoder_digest": "e", "llm_digest": "l",
        "llm_digest_before": "l0", "data_digest": "d", "recipe": {"lr": 0.001, "encoder": encoder}, "versions": {"torch": "2.13.0"}, 
        "git_commit": "0" * 40, **changes,
    }  # fmt: skip
    protocol = {name: value for name, value in facts["recipe"].items() if name not in ("encoder", "out", "seed")}
    return Provenance(**{"schema": SCHEMA, "protocol": protocol, **facts}).as_json()


class Place:
    """A folder with runs/, data/ and the main job: exports are made by `export`, answered by their `reply`."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.models = folder, {}
        monkeypatch.setattr("llava_plugin.mllm.load", self._load)
        monkeypatch.setattr(digests, "SETTLED_NS", 0)  # a test does not wait until its files are old

    def export(self, name: str, encoder: str, reply=lambda prompt: "yes", **changes) -> Path:
        export = self.folder / "runs" / name / "export"
        export.mkdir(parents=True)
        described = provenance(encoder, **changes)
        (export / "provenance.json").write_text(json.dumps(described))
        (export / "config.json").write_text(json.dumps({"dtype": "float32"}))
        (export / "model.safetensors").write_text(f"the weights of {name}")
        self.models[Path("runs", name, "export")] = FakeMllm(reply, described, self.folder / f"{name}-asked.jsonl")
        return Path("runs", name, "export")

    @property
    def loads(self) -> int:
        """How often a model was loaded, by whatever process."""
        return len((self.folder / "loads.txt").read_text()) if (self.folder / "loads.txt").exists() else 0

    def _load(self, export, device=None, dtype=None, generation="ours"):
        with (self.folder / "loads.txt").open("a") as stream:
            stream.write(".")
        model = self.models[Path(export)]
        model.provenance = json.loads((Path(export) / "provenance.json").read_text())
        model.fingerprint = of_export(Path(export), model.digest, generation=generation)
        return model

    def asked(self, name: str) -> list[str]:
        """The prompts that runs/NAME has answered, in order, by whatever process."""
        return [prompt for prompts, *_ in self.models[Path("runs", name, "export")].batches for prompt in prompts]

    def run(self, *arguments: str) -> int:
        from eval_suites import run

        return run.main(list(arguments))
