"""Small benchmark data in the hub's schema, a stand-in MLLM, and the main job run on them in a folder of its own."""

import hashlib
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


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


class FakeMllm:
    """Answers `reply(prompt)`; keeps what it was asked, batch by batch."""

    def __init__(self, reply, provenance: dict):
        self.reply, self.provenance, self.batches = reply, provenance, []

    @property
    def digest(self) -> str:
        return self.provenance["weights_digest"]

    def answer(self, conversations, images, max_new_tokens, stop=()):
        prompts = ["".join(part["text"] for part in turns[-1]["content"] if part["type"] == "text") for turns in conversations]
        self.batches.append((prompts, images, max_new_tokens, stop))
        return [self.reply(prompt) for prompt in prompts]


def provenance(encoder: str, **changes) -> dict:
    digest = hashlib.sha256(json.dumps([encoder, changes], sort_keys=True).encode()).hexdigest()
    return {
        "stage": "sft", "encoder": encoder, "encoder_key": encoder, "arch": "genlip", "llm": "llm-tiny", "frozen": True, "resolution": 64,
        "tokens": 16, "untrained": encoder == "random-tiny", "weights_digest": digest, "encoder_digest": "e", "llm_digest": "l",
        "data_digest": "d", "recipe": {"lr": 0.001, "encoder": encoder}, "versions": {"torch": "2.13.0"}, "git_commit": "0" * 40, **changes,
    }  # fmt: skip


class Place:
    """A folder with runs/, data/ and the main job: exports are made by `export`, answered by their `reply`."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.models, self.loads = folder, {}, 0
        monkeypatch.setattr("llava_plugin.mllm.load", self._load)

    def export(self, name: str, encoder: str, reply=lambda prompt: "yes", **changes) -> Path:
        export = self.folder / "runs" / name / "export"
        export.mkdir(parents=True)
        described = provenance(encoder, **changes)
        (export / "provenance.json").write_text(json.dumps(described))
        self.models[Path("runs", name, "export")] = FakeMllm(reply, described)
        return Path("runs", name, "export")

    def _load(self, export, device=None, dtype=None):
        self.loads += 1
        return self.models[Path(export)]

    def run(self, *arguments: str) -> int:
        from eval_suites import run

        return run.main(list(arguments))
