"""Writes a mini world: in parts, by several processes, each part whole or absent, so that a stopped run goes on.

Under --out:

    mini/captions/stage1/train-NNNNNN.tar    jpg + json {"caption": ...}
    mini/captions/stage2/train-NNNNNN.tar    jpg + json {"conversations": [user, assistant]}, long captions, native sizes
    mini/sft/conversations.json, images/     LLaVA's JSON and its pictures
    mini/sft/captions.json                   a caption turn for each of the same pictures, for the projector stage
    mini/sft/parquet/train-*.parquet         the same conversations in LLaVA-OneVision's columns
    mini/text.txt                            every training sentence, a line each, for a small tokenizer
    genlip-eval/mini/<set>/<split>-*.parquet the benchmark sets
    genlip-eval/mini/manifest.json           written last: its presence means done
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval_suites.tasks import hub_columns
from eval_suites.tasks.manifest import verify
from genlip.common.files import LONG, file_aside, read_json, sha256, write_file
from genlip.common.locks import locked
from genlip.common.processes import finished
from genlip.common.progress import progress
from small_data.mini import benchmarks, captions, conversations, families, fonts, manifest, picture, question_styles
from small_data.mini.knobs import DEFAULT, Knobs

CHUNK = 500  # training scenes of one part: a shard of about 4 MB
BYTES_A_SCENE = 44_000  # on disk, in all four forms together, by whole blocks; measured 39,000
BYTES_A_ROW = 12_000


@dataclass(frozen=True)
class World:
    """What is asked for. Equal worlds have equal bytes."""

    seed: int
    train: int
    eval: int
    knobs: Knobs = DEFAULT

    @property
    def name(self) -> dict:
        return {"seed": self.seed, "train": self.train, "eval": self.eval}

    @property
    def parts(self) -> list[str]:
        chunks = -(-self.train // CHUNK)
        return [*(f"train-{i:06d}" for i in range(chunks)), *(f"eval-{name}" for name in benchmarks.SETS)]


def make(world: World, out: Path, workers: int | None = None) -> dict:
    """Makes (or goes on making) the world under `out` and returns its manifest. Raises ValueError for what the user can mend."""
    if world.train < 1 or world.eval < 1:
        raise ValueError(f"--train and --eval must be at least 1, got {world.train} and {world.eval}")
    for style in fonts.FONTS:
        fonts.path(style)
    with locked(out, "mini"):
        done = _begin(world, out)
        if done:
            return done
        missing = [part for part in world.parts if not _part(out, part).exists()]
        _check_space(world, out, len(missing) / len(world.parts))
        with progress("mini world, parts", len(world.parts), len(world.parts) - len(missing)) as advance:
            for _ in finished(partial(_make_part, world, out), missing, workers):
                advance(1)
        return _finish(world, out)


def _part(out: Path, part: str) -> Path:
    return out / "mini" / ".parts" / f"{part}.json"


def _begin(world: World, out: Path) -> dict | None:
    """Claims the folder for this world; the manifest where it is already made. ValueError where another or a damaged one is."""
    claim, told = out / "mini" / "world.json", {**world.name, "knobs": world.knobs.as_dict(), "generator": _generator()}
    if claim.exists():
        again = f"give another --out, or remove {out / 'mini'} and {out / 'genlip-eval' / 'mini'}"
        found = read_json(claim, again, {"seed": int, "train": int, "eval": int, "knobs": dict, "generator": str})
        for key, what in (
            ("seed", "seed"),
            ("train", "training size"),
            ("eval", "evaluation size"),
            ("knobs", "knobs"),
            ("generator", "generator version"),
        ):
            if found[key] != told[key]:
                raise ValueError(
                    f"{out} holds a mini world of another {what} ({found[key]}, asked for {told[key]}): "
                    f"give another --out, or remove {out / 'mini'} and {out / 'genlip-eval' / 'mini'}"
                )
        done = out / "genlip-eval" / "mini" / "manifest.json"
        if done.exists():
            return verify(done.parent)
    (out / "mini" / ".parts").mkdir(parents=True, exist_ok=True)
    write_file(claim, json.dumps(told, indent=1))
    return None


def _generator() -> str:
    """Digest of this package's sources: parts of two versions are never mixed."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def _check_space(world: World, out: Path, share: float) -> None:
    needed = int(share * (world.train * BYTES_A_SCENE + len(benchmarks.SETS) * world.eval * BYTES_A_ROW))
    free = shutil.disk_usage(out).free
    if free < needed:
        raise ValueError(
            f"no space for the mini world: about {needed >> 20} MiB are needed under {out}, {free >> 20} MiB are free: "
            "free some, or make a smaller --train"
        )


def _make_part(world: World, out: Path, part: str) -> None:
    kind, _, name = part.partition("-")
    told = _train_part(world, out, int(name)) if kind == "train" else _eval_part(world, out, name)
    write_file(_part(out, part), json.dumps(told))


def _train_part(world: World, out: Path, chunk: int) -> dict:
    """One shard of every training form. Returns what has to be gathered at the end."""
    short, long, records, captioned, text, seen = [], [], [], [], [], []
    for i in range(chunk * CHUNK, min((chunk + 1) * CHUNK, world.train)):
        rng = families.stream(world.seed, "train", i)
        scene = families.draw(rng, world.knobs)
        jpeg, key = picture.encode(scene)["bytes"], f"{i:07d}"
        seen.append(picture.pixels(scene))
        brief, told = captions.brief(scene), captions.long(scene, rng)
        said = conversations.turns(scene, rng, world.knobs)
        short.append((key, jpeg, {"caption": brief}))
        turn = [{"from": "user", "value": "<image>Describe the image in detail."}, {"from": "assistant", "value": told}]
        long.append((key, jpeg, {"conversations": turn}))
        captioned.append(
            {
                "id": f"mini_{key}",
                "image": f"{chunk:06d}/mini_{key}.jpg",
                "conversations": conversations.llava([(question_styles.CAPTION, brief.rstrip("."))]),
            }
        )
        records.append(
            {"id": f"mini_{key}", "jpeg": jpeg, "conversations": conversations.llava(said), "data_source": f"mini_{scene.family}"}
        )
        text += [brief, told, *(line for turn in said for line in turn)]
    for stage, samples in (("stage1", short), ("stage2", long)):
        _write_shard(out / "mini" / "captions" / stage / f"train-{chunk:06d}.tar", samples)
    sft = out / "mini" / "sft"
    images = sft / "images" / f"{chunk:06d}"
    images.mkdir(parents=True, exist_ok=True)
    rows, llava = [], []
    for record in records:
        jpeg = record.pop("jpeg")
        file = images / f"{record['id']}.jpg"
        with file_aside(file) as aside:
            aside.write_bytes(jpeg)
        rows.append({**record, "image": {"bytes": jpeg, "path": file.name}})
        llava.append({"id": record["id"], "image": f"{chunk:06d}/{file.name}", "conversations": record["conversations"]})
    parquet = sft / "parquet" / f"train-{chunk:05d}-of-{-(-world.train // CHUNK):05d}.parquet"
    parquet.parent.mkdir(parents=True, exist_ok=True)
    hub_columns.write_rows(parquet, "onevision", rows)
    written = [out / "mini" / "captions" / stage / f"train-{chunk:06d}.tar" for stage in ("stage1", "stage2")] + [parquet]
    return {
        "conversations": llava,
        "captions": captioned,
        "text": text,
        "pixels": seen,
        "files": {str(p.relative_to(out)): sha256(p) for p in written},
    }


def _write_shard(path: Path, samples: list[tuple[str, bytes, dict]]) -> None:
    """A WebDataset tar whose bytes depend on the samples alone: no times, no owners."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, jpeg, told in samples:
            for suffix, data in (("jpg", jpeg), ("json", json.dumps(told).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(path) as aside:
        aside.write_bytes(file.getvalue())


def _eval_part(world: World, out: Path, name: str) -> dict:
    made = benchmarks.rows(name, world.eval, world.seed, world.knobs)
    file = Path(name) / f"{benchmarks.SETS[name].split}-00000-of-00001.parquet"
    path = out / "genlip-eval" / "mini" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    hub_columns.write_rows(path, name, made)
    shown = list(dict.fromkeys(row["image"]["bytes"] for row in made if row.get("image")))
    most, why = manifest.maximum(name, made)
    told = {"n": len(made), "images": len(shown), "maximum": most, "why": why, "file": str(file), "sha256": sha256(path)}
    return {"set": told, "pixels": [picture.decoded(jpeg) for jpeg in shown]}


def _finish(world: World, out: Path) -> dict:
    """Gathers the parts into the files that are one, checks that no test picture was trained on, writes the manifest, drops the parts."""
    chunks = [part for part in world.parts if part.startswith("train")]
    evals = {name: read_json(_part(out, f"eval-{name}"), most=LONG) for name in benchmarks.SETS}
    tested = {digest for told in evals.values() for digest in told["pixels"]}
    files: dict[str, str] = {}

    def records(kind: str) -> Iterator[bytes]:
        for k, part in enumerate(chunks):  # one part at a time: memory stays flat
            told = read_json(_part(out, part), most=LONG)
            if trained := tested.intersection(told["pixels"]):
                raise ValueError(f"{len(trained)} test pictures are also in the training part {part}: make the world with another --seed")
            files.update(told["files"])
            yield (b"[\n" if k == 0 else b",\n") + b",\n".join(json.dumps(record).encode() for record in told[kind])
        yield b"\n]\n"

    def text() -> Iterator[bytes]:
        for part in chunks:
            yield "".join(line.replace("\n", " ") + "\n" for line in read_json(_part(out, part), most=LONG)["text"]).encode()

    for name, pieces in (
        ("sft/conversations.json", records("conversations")),
        ("sft/captions.json", records("captions")),
        ("text.txt", text()),
    ):
        path = out / "mini" / name
        with file_aside(path) as aside, aside.open("wb") as stream:
            stream.writelines(pieces)
        files[str(path.relative_to(out))] = sha256(path)
    told = manifest.build(world.name, {name: part["set"] for name, part in evals.items()}, {"n": world.train, "files": files}, world.knobs)
    write_file(out / "genlip-eval" / "mini" / "manifest.json", json.dumps(told, indent=1))
    shutil.rmtree(out / "mini" / ".parts")
    return told
