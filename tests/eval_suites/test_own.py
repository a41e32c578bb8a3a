"""Questions of one's own as rows of a benchmark: read from every form that fine-tuning reads; an odd row is refused, never left out."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval_suites.own import main
from eval_suites.tasks import hub_source


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(png())
    return tmp_path / "images"


def turns(*said) -> list[dict]:
    return [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 9, said)]


def own(images, file) -> int:
    return main(["chartqa", str(file), "--images", str(images), "--out", str(images.parent / "root")])


ASKED = ("<image>\nHow many?", "3", "Sure?", "Yes")
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]
FORMS = {
    "llava": {"image": "1.png", "conversations": turns(*ASKED)},
    "folder in front": {"image": "x/images/1.png", "conversations": turns(*ASKED)},
    "hub": {"images": ["1.png"], "messages": MESSAGES},
    "pairs": {"image": "1.png", "conversations": [{"human": ASKED[0], "gpt": "3"}, {"human": "Sure?", "gpt": "Yes"}]},
}


@pytest.mark.parametrize("form", [*FORMS, "lines", "parquet"])
def test_every_form_makes_the_same_rows(tmp_path, images, form):
    file = tmp_path / {"lines": "a.jsonl", "parquet": "a.parquet"}.get(form, "a.json")
    row = FORMS.get(form, FORMS["llava"])
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([{"image": {"bytes": png(), "path": None}, "conversations": row["conversations"]}]), file)
    else:
        file.write_text(json.dumps(row if form == "lines" else [row]))
    assert own(images, file) == 0
    (written,) = (tmp_path / "root" / hub_source("chartqa")[0]).rglob("*.parquet")
    rows = pq.read_table(written).to_pylist()
    assert [(r["question"], r["answer"], r["image"]["bytes"]) for r in rows] == [("How many?", "3", png()), ("Sure?", "Yes", png())]


ODD = {
    "a neighbour's name": ({"image": "other/1.png", "conversations": turns(*ASKED)}, "no picture other/1.png"),
    "a system turn": ({"image": "1.png", "conversations": [{"from": "system", "value": "s"}, *turns(*ASKED)]}, "without a system turn"),
    "no picture": ({"conversations": turns("How many?", "3")}, "this has 0 pictures"),
    "an odd turn": ({"image": "1.png", "conversations": turns("<image>")}, "row 0 of"),
    "a text": ("hello", "malformed row"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_row_is_refused_in_words(tmp_path, images, capsys, name):
    row, said = ODD[name]
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert own(images, tmp_path / "a.json") == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and not (tmp_path / "root").exists()
