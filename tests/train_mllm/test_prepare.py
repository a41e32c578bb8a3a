"""Preparing data: every form becomes one, every fault is counted under its reason, mixes are sampled, a killed run goes on."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genlip.common import columns, digests, sources
from genlip.common import conversations as reader
from genlip.common.picture_files import ImageRef
from llava_plugin import pictures
from train_mllm import conversations as rows_module
from train_mllm import image_check, prepare_data
from train_mllm.conversations import normalise, open_conversations
from train_mllm.prepare_data import main, prepare

ROOT = Path(__file__).parents[2]


def llava(text="<image>\nwhat", answer="yes", **more):
    return {"id": "a", "image": "red.png", "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]} | more


def encoded(form="PNG", size=(8, 8), **options) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture
def images(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    return tmp_path


# --- rows -------------------------------------------------------------------------------------------------------------------

FAULTS = {
    "missing picture": llava(image="gone.png"),
    "undecodable picture": llava(image="broken.png"),
    "malformed picture": llava(image=[3]),
    "<image> markers and pictures do not match": llava(text="what"),
    "<image> marker in an answer": llava(answer="<image>"),
    "empty answer": llava(answer="  "),
    "turns do not alternate user, assistant": llava(conversations=[{"from": "gpt", "value": "yes"}]),
    "malformed turn": llava(conversations=[{"from": "robot", "value": "yes"}]),
    "no turns": llava(conversations=[]),
    "malformed row": "a string",
}


@pytest.mark.parametrize("reason", FAULTS)
def test_bad_rows_have_a_reason(images, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        normalise(FAULTS[reason], images)


@pytest.mark.parametrize(
    "turns",
    [
        "text",
        3,
        {"a": 1},
        [None],
        [{"from": "human", "value": "<image> half a pair \ud83d"}, {"from": "gpt", "value": "no"}],
        [{"role": "user", "content": [{"type": "audio"}]}],
        [{"from": "human"}],
    ],
)
def test_whatever_stands_there_is_a_malformed_turn(images, turns):
    with pytest.raises(ValueError, match=r"^malformed turn$"):
        normalise(llava(conversations=turns), images)


def test_forms_become_one(images):
    expected = normalise(llava(), images)
    picture = {"type": "image_url", "image_url": {"url": f"x/{images.name}/red.png"}}
    openai = {
        "id": "a",
        "messages": [
            {
                "role": "user",
                "content": [picture, {"type": "text", "text": "what"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        ],
    }
    assert normalise(openai, images) == expected
    raw = (images / "red.png").read_bytes()
    from_parquet = normalise(llava(image={"bytes": raw, "path": None}), images)
    assert (from_parquet["messages"], from_parquet["digest"]) == (expected["messages"], expected["digest"])
    assert from_parquet["images"] == [ImageRef(None, raw)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_pictures_are_told_whole_from_cut(form):
    data = encoded(form, (40, 24))
    assert image_check.check_image(data) == image_check.check_image(data, full=True)
    assert image_check.check_image(data)[:2] == (40, 24)
    with pytest.raises(ValueError, match="undecodable picture"):
        image_check.check_image(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match="undecodable picture"):
        image_check.check_image(b"<html>404</html>")


def test_the_scan_does_not_decode_what_looks_whole_and_decodes_what_does_not(monkeypatch, shared):
    decoded = []
    real = pictures.read_picture
    monkeypatch.setattr(pictures, "read_picture", lambda data: decoded.append(len(data)) or real(data))
    for options in ({}, {"progressive": True}, {"exif": Image.Exif()}):
        assert image_check.check_image(encoded("JPEG", (40, 24), **options)) == (40, 24, "RGB")
    assert image_check.check_image(encoded("PNG", (40, 24))) == (40, 24, "RGB") and not decoded
    padded = encoded("JPEG", (40, 24)) + b"\0" * 500  # whole all the same: an odd end alone is no fault
    assert image_check.check_image(padded) == (40, 24, "RGB") and decoded == [len(padded)]
    with pytest.raises(ValueError, match="undecodable"):
        image_check.check_image((shared / "ocr" / "broken.jpg").read_bytes())
    for file in sorted((shared / "sft" / "images").iterdir()) + sorted((shared / "charts" / "images").iterdir()):
        with Image.open(file) as image:
            assert image_check.check_image(file.read_bytes()) == (*image.size, image.mode)
    assert len(decoded) == 2, "real pictures were decoded"


def test_damage_in_the_middle_is_found_by_a_full_decode_and_a_bomb_by_its_header():
    data = bytearray(encoded("PNG", (64, 64)))
    data[len(data) // 2] ^= 255
    assert image_check.check_image(bytes(data)) == (64, 64, "RGB")
    with pytest.raises(ValueError, match="undecodable"):
        image_check.check_image(bytes(data), full=True)
    bomb = bytearray(encoded("PNG"))
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2
    with pytest.raises(ValueError, match="too many pixels"):
        image_check.check_image(bytes(bomb))


# --- sources ----------------------------------------------------------------------------------------------------------------


def write_json(file: Path, n: int, **more) -> Path:
    file.write_text(json.dumps([llava(id=f"{file.stem}-{i}", **more) for i in range(n)]))
    return file


def ids(folder: Path) -> list[str]:
    return open_conversations(folder)["id"].to_pylist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("all", list(range(15))),
        ("first:4", [0, 1, 2, 3]),
        ("first:10%", [0, 1]),  # rounded up, as LLaVA-NeXT does
        ("end:3", [12, 13, 14]),
        ("end:20%", [12, 13, 14]),
        ("first:99", list(range(15))),
    ],
)
def test_sampling_rules(rule, expected):
    assert list(sources.sample(rule, 15, "0")) == expected


def test_random_sampling_is_drawn_from_the_seed_and_keeps_the_order():
    drawn = sources.sample("random:40%", 1000, "0 a")
    assert len(set(drawn)) == 400 and drawn == sorted(drawn) and drawn == sources.sample("random:40%", 1000, "0 a")
    assert drawn != sources.sample("random:40%", 1000, "0 b") and drawn != list(range(400))


def test_a_mix(images, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_ROWS", 3)  # rules reach over pieces
    write_json(images / "a.json", 10)
    (images / "b.jsonl").write_text("".join(json.dumps(llava(id=f"b-{i}", answer=f"ä{i}")) + "\n" for i in range(7)))
    (images / "mix.yaml").write_text(
        "datasets:\n- {json_path: a.json, sampling_strategy: 'first:5'}\n- {json_path: a.json, sampling_strategy: 'end:10%', rows: 10}\n"
        "- {json_path: b.jsonl, sampling_strategy: 'random:50%'}\n"
    )
    ledger = prepare(str(images / "mix.yaml"), str(images), str(images / "out"), workers=1)
    found = ids(images / "out")
    assert found[:6] == ["a-0", "a-1", "a-2", "a-3", "a-4", "a-9"] and len(found) == 10 and found[6:] == sorted(found[6:])
    assert [(s["rule"], s["rows"], s["taken"]) for s in ledger["sources"]] == [("first:5", 10, 5), ("end:10%", 10, 1), ("random:50%", 7, 4)]
    assert ledger["subsets"]["a"]["used"] == 6 and ledger["duplicates"] == 5  # one question about one picture, asked six times


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets:\n- {json_path: gone.json}\n- {json_path: a.json}", "names 1 of 2 files that are not there.*gone.json"),
        ("datasets:\n- {json_path: a.json, sampling_strategy: 'last:3'}", "sampling_strategy 'last:3'"),
        ("datasets: 3", "must be a list"),
        ("- a", "no mix of data sets"),
    ],
)
def test_a_bad_mix_is_refused(images, text, message):
    write_json(images / "a.json", 2)
    (images / "mix.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare(str(images / "mix.yaml"), "", str(images / "out"))


def test_rows_that_are_said_to_exist_and_do_not_count_as_bad(images):
    write_json(images / "a.json", 9)
    (images / "mix.yaml").write_text("datasets:\n- {json_path: a.json, rows: 10}")
    with pytest.raises(ValueError, match="1 are said to exist but do not"):
        prepare(str(images / "mix.yaml"), str(images), str(images / "out"))
    assert prepare(str(images / "mix.yaml"), str(images), str(images / "out"), max_bad=0.2)["absent"] == 1


def test_json_is_read_as_a_stream_from_any_row(images, monkeypatch):
    monkeypatch.setattr(sources, "READ_BYTES", 61)  # smaller than a row, cuts characters of several bytes
    file = images / "a.json"
    rows = [llava(id=str(i), answer="é" * (i % 7) + "€x") for i in range(50)]
    for indent in (None, 2):
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=indent))
        found = list(sources.json_rows(file))
        assert [row for _, row in found] == rows
        offset = found[31][0]
        assert [row for _, row in sources.json_rows(file, offset)] == rows[31:]
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="no whole JSON"):
        list(sources.json_rows(file))
    file.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a JSON list"):
        list(sources.json_rows(file))


def test_parquet_folders(images, monkeypatch):
    """A hub snapshot's layout: subsets as folders, several files each, `data_source` naming a finer one. Nothing is decoded."""
    monkeypatch.setattr(pictures, "read_picture", None)
    raw = {"bytes": (images / "red.png").read_bytes(), "path": "red.png"}
    for name, n in (("chart/train-0", 3), ("chart/train-1", 2), ("doc/train-0", 4)):
        file = images / "hub" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [llava(id=f"{name}-{i}", image=raw, data_source="fine" if name[0] == "d" else None) for i in range(n)]
        pq.write_table(pa.Table.from_pylist([*rows, llava(id="text", text="what", image=None, data_source=None)]), file, row_group_size=2)
    ledger = prepare(str(images / "hub"), "", str(images / "out"))
    assert {name: s["used"] for name, s in ledger["subsets"].items()} == {"chart": 7, "doc": 1, "fine": 4}
    assert ids(images / "out")[:3] == ["chart/train-0-0", "chart/train-0-1", "chart/train-0-2"] and ledger["pictures"] == 9
    pq.write_table(pa.Table.from_pylist([llava(text="no picture", image=None)]), images / "text.parquet")
    assert prepare(str(images / "text.parquet"), "", str(images / "text"))["pictures"] == 0
    pq.write_table(pa.table({"x": [1]}), images / "q.parquet")
    with pytest.raises(ValueError, match=r"no column 'conversations' or 'messages'.*it has x"):
        prepare(str(images / "q.parquet"), "", str(images / "o"))
    (images / "r.parquet").write_bytes((images / "q.parquet").read_bytes()[:50])
    with pytest.raises(ValueError, match="no whole parquet file"):
        prepare(str(images / "r.parquet"), "", str(images / "o"))
    with pytest.raises(ValueError, match="no conversations at"):
        prepare(str(images / "nothing.json"), "", str(images / "o"))


# --- the whole --------------------------------------------------------------------------------------------------------------


def test_pictures_in_columns_keep_their_rows(images, monkeypatch):
    """One column or a list of them; rows without a picture, rows left out, a path beside bytes; chunks of three rows."""
    monkeypatch.setattr(sources, "CHUNK_ROWS", 3)
    data = [encoded(size=(8, 8 + i)) for i in range(10)]
    rows = [llava(id=str(i), image={"bytes": data[i], "path": None}) for i in range(10)]
    rows[1] = llava(id="1", text="no picture", image=None)
    rows[4] = llava(id="4", image={"bytes": data[4][:30], "path": None})
    rows[6] = llava(id="6", image={"bytes": None, "path": "red.png"})
    pq.write_table(pa.Table.from_pylist(rows), images / "one.parquet")
    assert prepare(str(images / "one.parquet"), str(images), str(images / "one"), max_bad=0.2)["skipped"] == {"undecodable picture": 1}
    found = {row["id"]: row["images"] for row in open_conversations(images / "one").to_pylist()}
    assert list(found) == ["0", "1", "2", "3", "5", "6", "7", "8", "9"] and found["1"] == []
    assert found["6"] == [{"path": str(images / "red.png"), "bytes": None}]
    assert all(found[str(i)] == [{"path": None, "bytes": data[i]}] for i in (0, 2, 3, 5, 7, 8, 9))

    for row, n in zip(rows, (2, 0, 1, 3, 1, 1, 2, 0, 1, 1)):
        del row["image"]
        row |= {
            "images": [{"bytes": data[j], "path": None} for j in range(n)],
            "conversations": llava("<image>" * n + "?")["conversations"],
        }
    pq.write_table(pa.Table.from_pylist(rows), images / "many.parquet")
    assert prepare(str(images / "many.parquet"), "", str(images / "many"))["pictures"] == 12
    found = open_conversations(images / "many")["images"].to_pylist()
    assert [[p["bytes"] for p in some] for some in found] == [data[:n] for n in (2, 0, 1, 3, 1, 1, 2, 0, 1, 1)]


def test_every_planted_fault_is_counted(images):
    rows = [llava(id=str(i), answer=f"yes {i}") for i in range(20)] + [llava(id="20", answer="yes 0")]
    (images / "sft.json").write_text(json.dumps(rows + [r if isinstance(r, str) else r | {"id": reason} for reason, r in FAULTS.items()]))
    with pytest.raises(ValueError, match=r"conversations of .* cannot be used"):
        prepare(str(images / "sft.json"), "", str(images / "out"))
    assert not (images / "out" / "ledger.json").exists()
    ledger = prepare(str(images / "sft.json"), "", str(images / "out"), max_bad=0.5)
    assert ledger["skipped"] == dict.fromkeys(FAULTS, 1) and ledger["duplicates"] == 1
    names = {reason: [reason] for reason in FAULTS} | {"malformed row": [f"row {20 + len(FAULTS)} of sft.json"]}
    assert (ledger["read"], ledger["used"], ledger["names"]) == (21 + len(FAULTS), 21, names)
    assert ids(images / "out") == [str(i) for i in range(21)]


ODD_TURNS = {  # what becomes of two plain turns, and the reason that it is counted under; None: it is as good as any
    "wide": (lambda q, a: [q, (a[0], "\x1c\u2003\n" + a[1] + "\x85 ")], None),
    "system": (lambda q, a: [("system", "be brief"), q, a], None),
    "late system": (lambda q, a: [q, ("system", "be brief"), a], None),
    "empty": (lambda q, a: [q, (a[0], "\u2003\x1f")], "empty answer"),
    "marker": (lambda q, a: [q, (a[0], "see <image>")], "<image> marker in an answer"),
    "first": (lambda q, a: [a, q], "turns do not alternate user, assistant"),
    "twice": (lambda q, a: [q, q, a, a], "turns do not alternate user, assistant"),
    "unanswered": (lambda q, a: [q, a, (q[0], "and?")], "turns do not alternate user, assistant"),
    "role": (lambda q, a: [q, ("robot", a[1])], "malformed turn"),
    "no role": (lambda q, a: [q, (None, a[1])], "malformed turn"),
    "silent": (lambda q, a: [(q[0], None), a], "malformed turn"),
    "no turn": (lambda q, a: [q, a, None], "malformed turn"),
    "none": (lambda q, a: [], "no turns"),
    "null": (lambda q, a: None, "no turns"),
    "alone": (lambda q, a: [("system", "be brief")], "no turns"),
    "markers": (lambda q, a: [(q[0], q[1] + "<image>"), a], "<image> markers and pictures do not match"),
}
TURN_COLUMNS = {"conversations": ("from", "value"), "messages": ("role", "content")}
ODD_PICTURES = {
    "gone": ({"bytes": None, "path": "gone.png"}, "missing picture"),
    "cut": ({"bytes": encoded()[:40], "path": None}, "undecodable picture"),
    "void": (None, "malformed picture"),
}


@pytest.mark.parametrize("column", ["conversations", "messages", "both"])
def test_turns_told_by_column_and_one_by_one_make_the_same_folder(images, monkeypatch, column):
    """400 random rows with every fault that a parquet file can hold, the first hundred without: the same files, byte for byte."""
    draw, rows, expected = random.Random(0), [], Counter()
    for i in range(400):
        shown = [{"bytes": encoded(size=(8, 8 + draw.randrange(8))), "path": None} for _ in range(draw.randrange(3))]
        question = draw.choice(["human", "user"]), "<image>\n" * len(shown) + draw.choice(["what", " où?\n", ""])
        answer = draw.choice(["gpt", "assistant"]), draw.choice(["yes", "<im age>", " 是的 \n", "a\x1cb", f"{i}"])
        turns, odd = [question, answer], draw.choice([None, *ODD_TURNS, *ODD_PICTURES]) if i >= 100 else None
        if odd in ODD_TURNS:
            make, reason = ODD_TURNS[odd]
            turns = make(question, answer)
        elif odd:
            picture, reason = ODD_PICTURES[odd]
            turns, shown = [(question[0], question[1] + "<image>"), answer], [*shown, picture]
        expected[reason if odd else None] += 1
        if turns and odd is None and draw.random() < 0.3:
            turns = [*turns, ("human", "and?"), ("gpt", "no")]
        says = "conversations" if column == "conversations" or (column == "both" and i % 3) else "messages"
        names = ("from", "value") if says == "conversations" else ("role", "content")
        turns = [turn and dict(zip(names, turn)) for turn in turns] if turns else turns
        rows.append({"id": str(i), "images": shown, says: turns})
    types = {name: pa.list_(pa.struct([(part, pa.string()) for part in parts])) for name, parts in TURN_COLUMNS.items()}
    kept = {name: types[name] for name in types if column in (name, "both")}
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("id", pa.string()), ("images", pa.list_(picture)), *kept.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema), images / "p.parquet")
    monkeypatch.setattr(sources, "CHUNK_ROWS", 37)

    looked, real = [], reader.read_turns
    monkeypatch.setattr(reader, "read_turns", lambda turns: looked.append(turns) or real(turns))
    by_column = prepare(str(images / "p.parquet"), "", str(images / "column"), max_bad=1, workers=1)
    by_column_looked = len(looked)
    monkeypatch.setattr(columns, "plain_turns", lambda column: ([None] * len(column), None))
    one_by_one = prepare(str(images / "p.parquet"), "", str(images / "rows"), max_bad=1, workers=1)
    assert by_column == one_by_one and one_by_one["skipped"] == {reason: n for reason, n in expected.items() if reason}
    made = [sorted((images / name).rglob("*.arrow")) for name in ("column", "rows")]
    assert [file.read_bytes() for file in made[0]] == [file.read_bytes() for file in made[1]] and len(made[0]) == 1
    assert len(looked) - by_column_looked == 400 and by_column_looked < 300  # the column's test took its share, and only then


def test_arrow_trims_what_python_strips():
    letters = [chr(i) for i in range(0xD800)]  # no space stands behind these
    assert pc.utf8_trim_whitespace(pa.array(letters)).to_pylist() == [letter.strip() for letter in letters]


def test_mended_pictures_are_looked_at_again(images):
    write_json(images / "a.json", 2, image="late.png")
    with pytest.raises(ValueError, match="missing picture"):
        prepare(str(images / "a.json"), "", str(images / "out"))
    (images / "late.png").write_bytes((images / "red.png").read_bytes())
    assert prepare(str(images / "a.json"), "", str(images / "out"))["used"] == 2


def test_what_cannot_be_done_is_said(images, capsys, monkeypatch):
    write_json(images / "a.json", 2)
    write_json(images / "b.json", 3)
    assert main([str(images / "a.json"), "--out", str(images / "out")]) == 0
    assert main([str(images / "b.json"), "--out", str(images / "out")]) == 2
    assert "was made from" in capsys.readouterr().err
    assert main([str(images / "a.json"), "--images", str(images / "none"), "--out", str(images / "x")]) == 2
    assert "no folder of pictures at" in capsys.readouterr().err
    pq.write_table(pa.Table.from_pylist([llava(image={"bytes": encoded(), "path": ""})]), images / "p.parquet")
    monkeypatch.setattr(prepare_data.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 10}))
    assert main([str(images / "p.parquet"), "--out", str(images / "y")]) == 2
    assert "give --out on a larger disk" in capsys.readouterr().err


@pytest.fixture
def pair(images, monkeypatch):
    """Five conversations about five drawn pictures, prepared; and what is read of pictures that were prepared. Files settle at once."""
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    for i in range(5):
        (images / f"{i}.png").write_bytes(encoded())
    rows = [llava(id=str(i), image=f"{i}.png", answer=f"yes {i}") for i in range(5)]
    (images / "a.json").write_text(json.dumps(rows))
    read, real = [], rows_module._as_prepared
    monkeypatch.setattr(rows_module, "_as_prepared", lambda row: read.append(row["id"]) or real(row))
    return images, read, lambda **more: prepare(str(images / "a.json"), "", str(images / "out"), workers=1, **more)


def rewrite(file: Path, data: bytes) -> None:
    """Equal size, equal date."""
    said = file.stat()
    assert len(data) == said.st_size
    file.write_bytes(data)
    os.utime(file, ns=(said.st_atime_ns, said.st_mtime_ns))


def test_a_source_that_changed_in_its_place_is_refused(pair):
    images, _, again = pair
    ledger = again()
    assert again() == ledger and list(ledger["origin"]["files"]) == ["a.json"]
    text = (images / "a.json").read_bytes()
    rewrite(images / "a.json", text.replace(b"yes 3", b"no! 3"))
    with pytest.raises(
        ValueError, match=r"other data: 1 file holds something else \(first: a\.json\)\. Bring the data back, or give another"
    ):
        again()
    rewrite(images / "a.json", text)
    assert again() == ledger


@pytest.mark.parametrize("how", ["byte", "replaced", "gone"])
def test_a_picture_that_changed_in_its_place_is_refused(pair, how):
    images, read, again = pair
    ledger, picture = again(), images / "3.png"
    assert again() == ledger and read == [], "a stat each"
    data = picture.read_bytes()
    if how == "byte":
        rewrite(picture, data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif how == "replaced":
        date = picture.stat().st_mtime_ns
        (images / "other.png").write_bytes(encoded())
        (images / "other.png").replace(picture)
        os.utime(picture, ns=(date, date))
    else:
        picture.unlink()
    said = r"0 have changed and 1 are gone" if how == "gone" else r"1 have changed and 0 are gone"
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{said} \(first: .*3\.png\)\. Bring them back"):
            again()
    assert read == [] if how == "gone" else read == ["3", "3"]
    picture.write_bytes(data)
    assert again() == again() == ledger and read[-1] == "3", "the same bytes are the same picture, and known from then on"
    assert len(read) == (1 if how == "gone" else 3)
    assert again(rehash=True) == ledger and len(read) == (6 if how == "gone" else 8)


def test_a_picture_written_a_moment_ago_is_told_by_its_bytes(pair, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_NS", 60 * 10**9)
    _, read, again = pair
    assert again() == again() and len(read) == 5
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    assert again() == again() and len(read) == 10


def test_equal_data_have_equal_digests_wherever_and_whenever(pair, tmp_path):
    images, _, again = pair
    ledger = again()
    shutil.copytree(images, tmp_path / "far/away", ignore=shutil.ignore_patterns("out", "far"))
    for file in (tmp_path / "far/away").iterdir():
        os.utime(file, (1, 1))
    moved = prepare(str(tmp_path / "far/away/a.json"), "", str(tmp_path / "far/out"), workers=2)
    assert moved["digest"] == ledger["digest"] and moved["origin"]["files"] == ledger["origin"]["files"]


def test_a_folder_from_before_is_taken_by_size_and_its_pictures_by_their_bytes(pair, capsys):
    images, read, again = pair
    ledger = again()
    old = ledger | {"origin": {key: value for key, value in ledger["origin"].items() if key != "files"}}
    (images / "out/ledger.json").write_text(json.dumps(old))
    for file in (images / "out/conversations").glob("*.npy"):
        file.unlink()
    assert again() == old and len(read) == 5 and "knows its source by size alone" in capsys.readouterr().out
    rewrite(images / "2.png", (images / "2.png").read_bytes()[::-1])
    with pytest.raises(ValueError, match=r"2\.png"):
        again()


def test_pieces_whose_pictures_changed_are_done_again_where_the_rest_lacks(pair, monkeypatch):
    images, _, again = pair
    monkeypatch.setattr(sources, "PIECE_ROWS", 1)
    real = prepare_data.work

    def killed(job):
        if job.number == 3:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(prepare_data, "work", killed)
    with pytest.raises(KeyboardInterrupt):
        again()
    (images / "1.png").write_bytes((images / "red.png").read_bytes())
    worked = []
    monkeypatch.setattr(prepare_data, "work", lambda job: worked.append(job.number) or real(job))
    ledger = again()
    assert worked == [1, 3, 4] and again() == ledger
    alone = prepare(str(images / "a.json"), "", str(images / "alone"), workers=1)
    assert alone["digest"] == ledger["digest"]


def test_parallel_equals_serial_and_a_killed_run_goes_on(images, monkeypatch):
    """Killed for good (SIGKILL) in the middle of the second of five pieces."""
    pq.write_table(
        pa.Table.from_pylist([llava(id=str(i), image={"bytes": encoded(), "path": None}) for i in range(50)]),
        images / "p.parquet",
        row_group_size=10,
    )
    monkeypatch.setattr(sources, "PIECE_BYTES", 1)
    alone = prepare(str(images / "p.parquet"), "", str(images / "alone"), workers=1)
    assert len(list((images / "alone" / "conversations").iterdir())) == 5
    both = prepare(str(images / "p.parquet"), "", str(images / "both"), workers=2)
    killed = (
        "import os, signal, sys\nfrom genlip.common import sources\nfrom train_mllm import prepare_data\nsources.PIECE_BYTES = 1\n"
        "real, seen = prepare_data.normalise, []\n"
        "def normalise(*args):\n    seen.append(1)\n    if len(seen) == 15: os.kill(os.getpid(), signal.SIGKILL)\n    return real(*args)\n"
        "prepare_data.normalise = normalise\nprepare_data.prepare(sys.argv[1], '', sys.argv[2], workers=1)"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(images / "p.parquet"), str(images / "killed")], cwd=ROOT, check=False)
    assert done.returncode == -9 and not (images / "killed" / "ledger.json").exists()
    worked = []
    real = prepare_data.work
    monkeypatch.setattr(prepare_data, "work", lambda job: worked.append(job.number) or real(job))
    resumed = prepare(str(images / "p.parquet"), "", str(images / "killed"), workers=1)
    assert worked == [1, 2, 3, 4]
    assert alone == both == resumed
    assert ids(images / "alone") == ids(images / "both") == ids(images / "killed") == [str(i) for i in range(50)]


def test_real_conversations_are_shown_as_the_model_sees_them(shared, tmp_path, capsys):
    sft, charts = shared / "sft", shared / "charts"
    ledger = prepare(str(sft / "conversations_openai.json"), str(sft / "images"), str(tmp_path / "sft"))
    assert (ledger["read"], ledger["used"], ledger["pictures"]) == (10, 10, 10)
    assert prepare(str(charts / "conversations_llava.json"), str(charts / "images"), str(tmp_path / "charts"))["used"] == 3
    assert main(["show", str(tmp_path / "charts")]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 conversations, 3 pictures, 0 duplicates" in shown and "user: Is the value of Favorable 38 in 2015?\n<image>" in shown
    assert main(["show", str(tmp_path / "charts"), "--tokenizer", str(shared / "tokenizer_qwen2.5"), "--samples", "1"]) == 0
    assert "in 2015?\n<image><|im_end|>\n<|im_start|>assistant\n[[Yes<|im_end|>]]" in capsys.readouterr().out
    assert main(["show", str(sft)]) == 2
