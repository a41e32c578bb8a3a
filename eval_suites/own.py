"""Your own questions as rows of a benchmark, in the hub's columns, so that its prompt and its metric ask and score them.

    python -m eval_suites.own chartqa conversations.json --images charts/images --out data
    python -m eval_suites.own ocrbench labels.json --images ocr/words --out data
    python -m eval_suites.own coco2017_cap_val captions.tar --out data

Reads conversations of every form that fine-tuning reads (each question and its answer is a row), MMOCR's recognition labels (the text of
a word's crop), and tars of .jpg and .json with a `caption`. Writes ROOT/<org>/<set>/... where run.py looks, in place of the real set: take
a data root of its own. run.py knows how many rows the real set has, so yours need --allow-partial and are shown as "3 of 2500", without
averages. Seconds.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

from eval_suites import tasks
from genlip.common import sources
from genlip.common.command import command, new_parser
from genlip.common.conversations import IMAGE
from genlip.common.locks import locked
from genlip.common.picture_files import read_picture

WORD = "what is written in the image?"  # OCRBench's own question about a word
CAPTION = "Please carefully observe the image and come up with a caption for the image"  # COCO's of lmms-eval's set


def chartqa(source: Path, images: Path) -> list[dict]:
    """A row for each question of conversations about one picture. ValueError where a row is odd or its picture is not there: a benchmark
    that leaves out questions is another one."""
    rows = []
    for place, messages, shown in sources.conversations(source):
        if len(shown) != 1 or any(message["role"] == "system" for message in messages):
            raise ValueError(f"{place}: chartqa asks about one picture, without a system turn; this has {len(shown)} pictures")
        picture = _picture(images, shown[0])
        turns = [message["content"].replace(IMAGE, "").strip() for message in messages]
        rows += [{"type": "human", "question": q, "answer": a, "image": picture} for q, a in zip(turns[::2], turns[1::2])]
    return rows


def ocrbench(source: Path, images: Path) -> list[dict]:
    """A row for each word of MMOCR's labels."""
    fixed = {"dataset": "own", "question": WORD, "question_type": "Regular Text Recognition"}
    words = [(one["img_path"], one["instances"][0]["text"]) for one in json.loads(source.read_text(encoding="utf-8"))["data_list"]]
    return [{**fixed, "answer": [text], "image": _picture(images, name)} for name, text in words]


def coco2017_cap_val(source: Path, images: Path) -> list[dict]:
    """A row for each captioned picture of a tar: one reference, where COCO has five."""
    with tarfile.open(source) as tar:
        content = {member.name: stream.read() for member in tar if member.isfile() and (stream := tar.extractfile(member))}
    rows: list[dict] = []
    for name in sorted(name for name in content if name.endswith(".json")):
        stem = name.removesuffix(".json")
        if f"{stem}.jpg" not in content:
            raise ValueError(f"{source}: {name} has no {stem}.jpg beside it")
        caption, number = json.loads(content[name])["caption"], len(rows)
        picture = {"bytes": content[f"{stem}.jpg"], "path": None}
        asked = {"question_id": str(number), "id": number, "question": CAPTION, "answer": [caption]}
        rows.append({**asked, "file_name": f"{stem}.jpg", "image": picture})
    return rows


READERS = {"chartqa": chartqa, "ocrbench": ocrbench, "coco2017_cap_val": coco2017_cap_val}


def _picture(images: Path, picture: Any) -> dict:
    """A picture in the hub's columns. ValueError where it cannot be had."""
    try:
        _, data = read_picture(picture, images)
    except ValueError as error:
        said = picture[:100] if isinstance(picture, str) else "one inside its row"
        raise ValueError(f"no picture {said} in {images} ({error}): give --images the folder that the names start from") from error
    return {"bytes": bytes(data), "path": None}


def write_benchmark(task: str, source: Path, images: Path, root: Path) -> tuple[Path, int]:
    """(the file written, its rows). ValueError where the source is not of the form that the task's reader takes."""
    from eval_suites.tasks import hub_columns

    try:
        rows = READERS[task](source, images)
    except (KeyError, TypeError, IndexError, UnicodeDecodeError, json.JSONDecodeError, tarfile.TarError) as error:
        raise ValueError(f"{source} is not what rows of {task} are made from ({error!r}): {READERS[task].__doc__}") from error
    if not rows:
        raise ValueError(f"{source} holds nothing to ask")
    path = root / tasks.hub_source(task)[0] / "data" / f"{tasks.definition(task)['test_split']}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    hub_columns.write_rows(path, task, rows)
    return path, len(rows)


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m eval_suites.own",
        description="Write your own questions as rows of a benchmark.",
        epilog="example: python -m eval_suites.own chartqa conversations.json --images charts/images --out own\n"
        "         python eval_suites/run.py --encoder KEY --tasks chartqa --data-root own --allow-partial",
    )
    parser.add_argument("task", choices=READERS, help="whose columns, prompt and metric")
    parser.add_argument("source", type=Path, help="conversations (JSON, parquet), labels (JSON) or captions (tar)")
    parser.add_argument("--images", type=Path, default=Path(), metavar="DIR", help="where picture names start (default: here)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a data root of its own, for run.py --data-root")
    args = parser.parse_args(argv)
    with locked(args.out, args.task):
        path, rows = write_benchmark(args.task, args.source, args.images, args.out)
    print(f"{path}: {rows} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
