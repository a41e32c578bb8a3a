"""easy-VQA, a public data set that comes as a package, as captions, conversations and a benchmark in three columns.

    python -m small_data.easyvqa --out data        # 12 s on one core, 88 MB

Pictures of 64 x 64 pixels with one coloured shape each: 4,000 for training, 1,000 for testing, none in both; 38,575 and 9,673
questions with 13 answers. Always "yes" gets 37.3 % of the test right, the training set's best answer to each question text 67.0 %.
Writes, under --out:

    easy-vqa/captions/train-NNNNNN.tar      WebDataset, .png and .json {"caption": "a blue circle."}; shard k is copy k of every picture
    easy-vqa/captions-held-out/test-000000.tar   captions of test pictures: to validate on, never to train on
    easy-vqa/sft/conversations.json         LLaVA form, all questions of a picture in one record, pictures under sft/images/
    easy-vqa/text.txt                       every training sentence, a line each, for a small tokenizer
    easy-vqa/made.json                      settings and counts
    genlip-eval/easy-vqa/{shape,colour,yes_no}/test-00000-of-00001.parquet and manifest.json

The same settings give the same bytes. A stopped run leaves nothing half done and starts over.
"""

import hashlib
import io
import json
import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from genlip.common.command import command, new_parser
from genlip.common.files import read_json, written_aside
from genlip.common.flags import bounded
from genlip.common.locks import locked
from genlip.common.packages import Package, packaged_file
from genlip.common.progress import tracked

if TYPE_CHECKING:
    from PIL.Image import Image

EASY_VQA = Package("easy-vqa", "1.0", "easy_vqa", "data", "MIT")
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SETS = ("shape", "colour", "yes_no")
PROMPT_SUFFIX = "\nAnswer the question using a single word or phrase."
CAPTION_PROMPT = "Describe the image in detail."  # what GenLIP's first stage puts before a caption
# Half a 16-pixel patch either way: a shape is met at every position relative to the patch grid.
MAX_SHIFT = 8


@dataclass(frozen=True)
class Question:
    id: str  # split and place in the package's file
    text: str
    answer: str
    type: str  # one of SETS


@dataclass(frozen=True)
class ImageQuestions:
    id: int
    png: bytes  # as the package ships it
    questions: tuple[Question, ...]


def question_type(text: str, answer: str) -> str:
    """One of SETS, by the answer, and held against the question's own words. ValueError where the two disagree."""
    by_answer = {**dict.fromkeys(SHAPES, "shape"), **dict.fromkeys(COLOURS, "colour"), "yes": "yes_no", "no": "yes_no"}.get(answer)
    by_text = "colour" if re.match(r"what (is the )?color ", text) else "shape" if text.startswith("what ") else "yes_no"
    if by_answer != by_text:
        raise ValueError(f"question {text!r} asks for {by_text}, its answer {answer!r} does not: not the data of {EASY_VQA.install}")
    return by_text


def stated(question: Question, words: tuple[str, ...]) -> str | None:
    """The one of `words` that a question and its answer say is in the picture, if they say so outright.

    An answer names it, a "what" question takes it for granted ("what color is the circle?"), a yes or no affirms it ("is there not
    a circle?" "no"). What only follows by ruling out all others is left aside.
    """
    if question.answer in words:
        return question.answer
    spoken = question.text.rstrip("?").split()
    named = next((word for word in spoken if word in words), None)
    if question.type == "yes_no":
        negated = "no" in spoken or "not" in spoken
        return named if (question.answer == "yes") != negated else None
    return named


def caption(picture: ImageQuestions) -> str | None:
    """ "a blue circle." where the picture's questions and answers tell both; else None. ValueError where they contradict."""
    found: list[str] = []
    for words in (COLOURS, SHAPES):
        said = {word for question in picture.questions if (word := stated(question, words))}
        if len(said) > 1:
            raise ValueError(f"questions about picture {picture.id} contradict each other: {sorted(said)}; {EASY_VQA.install}")
        found += said
    return f"a {found[0]} {found[1]}." if len(found) == 2 else None


def read_split(split: str) -> list[ImageQuestions]:
    """The package's pictures of "train" or "test" that have questions, by id. ValueError where the package or a file is absent."""
    root = packaged_file(EASY_VQA) / split
    questions: dict[int, list[Question]] = {}
    for place, (text, answer, picture) in enumerate(read_json(root / "questions.json")):
        question = Question(f"{split}-{place}", text, answer, question_type(text, answer))
        questions.setdefault(picture, []).append(question)
    try:
        return [ImageQuestions(i, (root / "images" / f"{i}.png").read_bytes(), tuple(questions[i])) for i in sorted(questions)]
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing from the package: {EASY_VQA.install} --force-reinstall") from error


class CutOut(NamedTuple):
    background: "Image"  # the picture without its shape
    shape: "Image"
    box: tuple[int, int, int, int]  # left, top, right, bottom of the shape in the picture


def cut_out(png: bytes) -> CutOut:
    from PIL import Image, ImageChops

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    # The background is one flat colour, and the most common one: a shape covers at most 34 x 34 of the 64 x 64 pixels.
    _, colour = max(picture.getcolors(picture.width * picture.height))
    background = Image.new("RGB", picture.size, colour)
    box = ImageChops.difference(picture, background).getbbox()
    return CutOut(background, picture.crop(box), box)


def moved_copy(cut: CutOut, upright: bool, rng: random.Random) -> bytes:
    """A png of the picture flipped and shifted at random, by at most MAX_SHIFT pixels and never so far that
    the shape is cut. `upright` shapes are not flipped vertically: all of the set's triangles stand on their base.
    """
    from PIL import ImageOps

    shape, (left, top, right, bottom) = cut.shape, cut.box
    width, height = cut.background.size
    if rng.random() < 0.5:
        shape, left, right = ImageOps.mirror(shape), width - right, width - left
    if rng.random() < 0.5 and not upright:
        shape, top, bottom = ImageOps.flip(shape), height - bottom, height - top
    along = rng.randint(max(-MAX_SHIFT, -left), min(MAX_SHIFT, width - right))
    down = rng.randint(max(-MAX_SHIFT, -top), min(MAX_SHIFT, height - bottom))
    moved = cut.background.copy()
    moved.paste(shape, (left + along, top + down))
    file = io.BytesIO()
    moved.save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, samples: Iterator[tuple[str, bytes, str]]) -> None:
    """A tar of (key, png, caption) samples. Owners and times are tarfile's zeros, so that equal samples are equal bytes."""
    with tarfile.open(path, "w") as tar:
        for key, png, text in samples:
            for name, data in ((f"{key}.png", png), (f"{key}.json", json.dumps({"caption": text}).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_captions(
    folder: Path, held_out_folder: Path, train: list[ImageQuestions], test: list[ImageQuestions], copies: int, seed: int
) -> tuple[int, int]:
    """Shards of captioned pictures, the test pictures' in a folder of their own, since a training run takes every shard of a folder;
    returns how many training and test pictures have a caption.

    The pretraining loop augments nothing, so the flips and shifts that so small a set needs are written out. Shard 0 holds the
    pictures as they are, each further shard a moved copy of each, every shard in an order of its own.
    """
    folder.mkdir()
    held_out_folder.mkdir()
    captioned = [(picture, text, cut_out(picture.png)) for picture in train if (text := caption(picture))]
    for copy in tracked(range(copies), "caption shards"):
        rng = random.Random(f"{seed} {copy}")
        samples = (
            (f"{picture.id:04}-{copy}", moved_copy(cut, "triangle" in text, rng) if copy else picture.png, text)
            for picture, text, cut in rng.sample(captioned, len(captioned))
        )
        write_shard(folder / f"train-{copy:06}.tar", samples)
    held_out = [(f"{picture.id:04}", picture.png, text) for picture in test if (text := caption(picture))]
    write_shard(held_out_folder / "test-000000.tar", iter(held_out))
    return len(captioned), len(held_out)


def write_conversations(folder: Path, train: list[ImageQuestions]) -> None:
    """conversations.json and images/: one record a picture, a turn a question; `<image>` stands in the first turn alone."""
    (folder / "images").mkdir(parents=True)
    records = []
    for picture in train:
        (folder / "images" / f"{picture.id}.png").write_bytes(picture.png)
        turns: list[dict] = []
        for question in picture.questions:
            marker = "" if turns else "<image>\n"
            turns += [
                {"from": "human", "value": marker + question.text + PROMPT_SUFFIX},
                {"from": "gpt", "value": question.answer},
            ]
        records.append({"id": f"easy-vqa-train-{picture.id}", "image": f"images/{picture.id}.png", "conversations": turns})
    (folder / "conversations.json").write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")


def training_text(train: list[ImageQuestions]) -> Iterator[str]:
    yield CAPTION_PROMPT
    yield PROMPT_SUFFIX.strip()
    for picture in train:
        if text := caption(picture):
            yield text
        for question in picture.questions:
            yield question.text
            yield question.answer


def benchmark_rows(test: list[ImageQuestions], kind: str) -> list[dict]:
    return [
        {
            "image": {"bytes": picture.png, "path": f"{picture.id}.png"},
            "image_id": picture.id,
            "question_id": question.id,
            "question": question.text,
            "answer": question.answer,
            "type": question.type,
        }
        for picture in test
        for question in picture.questions
        if question.type == kind
    ]


def rows_digest(sets: dict[str, list[dict]]) -> str:
    """sha256 (hex) over all rows, set by set in the order of SETS, row by row: one JSON list per line of question_id, question, answer,
    type, image_id and the sha256 of the picture's bytes. The parquet files' own bytes would change with the writer's version.
    """
    digest = hashlib.sha256()
    for kind in SETS:
        for row in sets[kind]:
            line = [row[key] for key in ("question_id", "question", "answer", "type", "image_id")]
            digest.update(json.dumps([*line, hashlib.sha256(row["image"]["bytes"]).hexdigest()]).encode() + b"\n")
    return digest.hexdigest()


def write_benchmark(folder: Path, test: list[ImageQuestions]) -> None:
    """Three parquet sets as the hub stores them, and manifest.json with what they must contain."""
    import pyarrow
    import pyarrow.parquet

    string, integer = pyarrow.string(), pyarrow.int64()
    columns = [("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", string)])), ("image_id", integer)]
    columns += [(name, string) for name in ("question_id", "question", "answer", "type")]
    # With this note `datasets` hands out decoded pictures; without it, a dictionary of bytes.
    features = {name: {"_type": "Value", "dtype": str(kind)} for name, kind in columns} | {"image": {"_type": "Image"}}
    schema = pyarrow.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    sets = {kind: benchmark_rows(test, kind) for kind in SETS}
    for kind, rows in sets.items():
        (folder / kind).mkdir()
        table = pyarrow.Table.from_pylist(rows, schema=schema)
        pyarrow.parquet.write_table(table, folder / kind / "test-00000-of-00001.parquet")
    counts = {kind: {"n": len(rows), "images": len({row["image_id"] for row in rows}), "maximum": 1.0} for kind, rows in sets.items()}
    (folder / "manifest.json").write_text(json.dumps({"sets": counts, "digest": rows_digest(sets)}, indent=2) + "\n")


def make(out: Path, copies: int = 8, seed: int = 0) -> str:
    """Write both folders under `out`, or find them there. Returns one sentence; ValueError says what stands in the way."""
    if copies < 1:
        raise ValueError(f"--copies {copies}: at least one copy of each picture, the exact one, is written")
    world, benchmark = out / "easy-vqa", out / "genlip-eval" / "easy-vqa"
    settings = {"package": EASY_VQA.name, "version": EASY_VQA.version, "licence": EASY_VQA.licence, "copies": copies, "seed": seed}
    if world.exists():
        made = (
            read_json(world / "made.json", f"remove {world} or give another --out", {"copies": int, "seed": int})
            if (world / "made.json").exists()
            else {}
        )
        if {key: made.get(key) for key in settings} != settings:
            other = ", ".join(f"{key} {made[key]}" for key in ("copies", "seed")) if made else "something else"
            raise ValueError(f"{world} was made with {other}, asked are copies {copies}, seed {seed}: delete it or give another --out")
        if (benchmark / "manifest.json").exists():
            return f"{world} and {benchmark} exist with these settings; left alone"
    train, test = read_split("train"), read_split("test")
    # The benchmark goes last: where its manifest.json stands, all of it does.
    with written_aside(world) as aside:
        captioned, held_out = write_captions(aside / "captions", aside / "captions-held-out", train, test, copies, seed)
        write_conversations(aside / "sft", train)
        (aside / "text.txt").write_text("".join(f"{line}\n" for line in training_text(train)))
        counts = {"captioned": captioned, "captioned_test": held_out, "conversations": len(train)}
        counts |= {"questions": sum(len(picture.questions) for picture in train)}
        (aside / "made.json").write_text(json.dumps(settings | counts, indent=2) + "\n")
    with written_aside(benchmark) as aside:
        write_benchmark(aside, test)
    return (
        f"{world}: {captioned} captioned pictures in {copies} copies, {held_out} held out, {counts['questions']} questions;"
        f" {benchmark}: {sum(len(picture.questions) for picture in test)} questions"
    )


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m small_data.easyvqa",
        description="Turn the package easy-vqa into caption shards, LLaVA conversations and a benchmark.",
        epilog="example:\n  python -m small_data.easyvqa --out data\n"
        "then train on data/easy-vqa/captions and data/easy-vqa/sft, evaluate with --data-root data",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write easy-vqa/ and genlip-eval/easy-vqa/ into")
    parser.add_argument(
        "--copies", type=bounded(int, 1), default=8, help="caption shards: the exact pictures and copies-1 moved ones (default 8)"
    )
    parser.add_argument("--seed", type=bounded(int), default=0, help="of the flips, shifts and orders (default 0)")
    args = parser.parse_args(argv)
    with locked(args.out, "easy-vqa"):
        print(make(args.out, args.copies, args.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
