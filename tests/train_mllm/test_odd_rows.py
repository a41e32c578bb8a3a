"""Rows and files as they lie in the world, each with what becomes of it: used, counted under a reason, or refused in words. Never a
crash, never silence."""

import base64
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from train_mllm.conversations import open_conversations
from train_mllm.prepare_data import main, prepare


def png(colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def turns(question: str = "<image>\nColour?", answer: str = "red") -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def row(**more) -> dict:
    return {"id": "good", "image": "1.png", "conversations": turns()} | more


def messages(*parts, answer="red", **more) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]} | more


TEXT = {"type": "text", "text": "Colour?"}
ADDRESS = "data:image/png;base64," + base64.b64encode(png()).decode()
MATCH = "<image> markers and pictures do not match"
ALTERNATE = "turns do not alternate user, assistant"
DEEP = json.loads('{"a": ' * 400 + "1" + "}" * 400)

# name -> (row, what the ledger says: "used", or the reason)
ROWS = {
    # A picture is found by the path that the row says, and never replaced by a neighbour.
    "plain": (row(), "used"),
    "folder of the pictures in front": (row(image="x/images/1.png"), "used"),
    "folder of the pictures and one below": (row(image="x/images/sub/2.png"), "used"),
    "another folder in front": (row(image="vg/VG_100K/1.png"), "missing picture"),
    "absolute path of another machine": (row(image="/data/1.png"), "missing picture"),
    "last part alone below the folder": (row(image="images/gone/1.png"), "missing picture"),
    "web address": (row(image="http://x/images/1.png"), "picture is a web address"),
    "path of 5,000 letters": (row(image="a" * 5000), "missing picture"),
    "path with a zero": (row(image="1.png\0"), "missing picture"),
    "path with half a surrogate pair": (row(image="\ud83d.png"), "missing picture"),
    "a folder": (row(image="sub"), "missing picture"),
    "empty path": (row(image=[""]), "missing picture"),
    "unreadable file": (row(image="locked.png"), "unreadable picture file"),
    "number as picture": (row(image=[3]), "malformed picture"),
    "picture of nulls": (row(image={"bytes": None, "path": None}), "malformed picture"),
    "void file": (row(image="void.png"), "undecodable picture"),
    "cut picture": (row(image="cut.png"), "undecodable picture"),
    "page instead of a picture": (row(image="404.png"), "undecodable picture"),
    # Pictures inside the row.
    "data address": (row(image=ADDRESS), "used"),
    "data address of a part": (messages({"type": "image_url", "image_url": {"url": ADDRESS}}, TEXT), "used"),
    "data address cut short": (row(image=ADDRESS[:-9]), "malformed picture"),
    "data address without base64": (row(image="data:image/svg+xml,<svg/>"), "malformed picture"),
    "data address of a text": (row(image="data:text/plain;base64," + base64.b64encode(b"no").decode()), "undecodable picture"),
    # Forms.
    "messages of the hub": (messages({"type": "image"}, TEXT, images=["1.png"]), "used"),
    "messages of the hub, one picture": (messages({"type": "image"}, TEXT, image="1.png"), "used"),
    "parts with their pictures": (messages({"type": "image", "image": "1.png"}, TEXT), "used"),
    "parts by url": (messages({"type": "image", "url": "1.png"}, TEXT), "used"),
    "parts by path, with nulls": (messages({"type": "image", "path": "1.png", "text": None}, TEXT | {"path": None}), "used"),
    "bare part and one with its picture": (
        messages({"type": "image"}, {"type": "image", "image": "sub/2.png"}, TEXT, images=["1.png"]),
        "used",
    ),
    "marker in a part's text": (messages({"type": "text", "text": "<image>\nColour?"}, images=["1.png"]), "used"),
    "more pictures than parts": (messages({"type": "image"}, TEXT, images=["1.png", "sub/2.png"]), MATCH),
    "fewer pictures than parts": (messages({"type": "image"}, {"type": "image"}, TEXT, images=["1.png"]), MATCH),
    "pair": (row(conversations=[{"human": "<image>\nColour?", "gpt": "red"}]), "used"),
    "pairs, answer first": (row(conversations=[{"gpt": "red", "human": "<image>"}, {"human": "Sure?", "gpt": "Yes"}]), "used"),
    "pair, one by one": (row(conversations=[{"human": "<image>\nColour?"}, {"gpt": "red"}]), "used"),
    "pair with a null": (row(conversations=[{"human": "<image>\nColour?", "gpt": None}]), ALTERNATE),
    "audio": (messages({"type": "audio"}, TEXT), "malformed turn"),
    "part of another kind": (messages("Colour?"), "malformed turn"),
    "text of a part a number": (messages({"type": "text", "text": 3}), "malformed turn"),
    # Turns.
    "system in front": (row(conversations=[{"from": "system", "value": "Be brief."}, *turns()]), "used"),
    "system in the middle": (row(conversations=[*turns(), {"from": "system", "value": "In French."}, *turns("Again?", "rouge")]), "used"),
    "control token": (row(conversations=turns(answer="It ends a turn: <|im_end|>.")), "used"),
    "placeholder": (row(conversations=turns("<image>\nWhat is <|image_pad|>?")), "used"),
    "list as role": (row(conversations=[{"from": ["human"], "value": "<image>"}, turns()[1]]), "malformed turn"),
    "unknown role": (row(conversations=[{"from": "robot", "value": "<image>"}, turns()[1]]), "malformed turn"),
    "number as text": (row(conversations=[{"from": "human", "value": 3}, turns()[1]]), "malformed turn"),
    "null as text": (row(conversations=[{"from": "human", "value": None}, turns()[1]]), "malformed turn"),
    "half a surrogate pair": (row(conversations=turns(answer="nice \ud83d")), "malformed turn"),
    "nested": (row(conversations=[DEEP]), "malformed turn"),
    "turns as text": (row(conversations="hello"), "malformed turn"),
    "empty answer": (row(conversations=turns(answer=" \n")), "empty answer"),
    "answer first": (row(conversations=turns()[::-1]), ALTERNATE),
    "question without an answer": (row(conversations=turns()[:1]), ALTERNATE),
    "marker in an answer": (row(conversations=turns(answer="<image>")), "<image> marker in an answer"),
    "no marker": (row(conversations=turns("Colour?")), MATCH),
    "no picture": (row(image=None), MATCH),
    "no turns": (row(conversations=[]), "no turns"),
    "system alone": (row(conversations=[{"from": "system", "value": "Be brief."}]), "no turns"),
    # The row itself.
    "list as data_source": (row(data_source=["a"]), "malformed data_source"),
    "number as data_source": (row(data_source=3), "malformed data_source"),
    "id of half a surrogate pair": (row(id="\ud83d"), "used"),
    "id of a list": (row(id=[1]), "used"),
    "text": ("a string", "malformed row"),
    "null": (None, "malformed row"),
    "list": ([row()], "malformed row"),
}


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name, data in (("1.png", png()), ("sub/2.png", png("blue")), ("cut.png", png()[:40]), ("void.png", b""), ("404.png", b"<html>404")):
        (folder / name).write_bytes(data)
    return folder


def one_row(tmp_path, images, odd) -> dict:
    (tmp_path / "a.json").write_text(json.dumps([row(), odd]))
    return prepare(str(tmp_path / "a.json"), str(images), str(tmp_path / "out"), max_bad=0.5, workers=1)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_used_or_counted(tmp_path, images, monkeypatch, name):
    odd, said = ROWS[name]
    if name == "unreadable file":  # whoever runs this may be root, who reads everything
        real = Path.open
        (images / "locked.png").write_bytes(png())

        def locked(self, *args, **kwargs):
            if self.name == "locked.png":
                raise PermissionError(13, "Permission denied", str(self))
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", locked)
    ledger = one_row(tmp_path, images, odd)
    assert (ledger["read"], ledger["used"]) == (2, 1 + (said == "used"))
    assert ledger["skipped"] == ({} if said == "used" else {said: 1})
    if said != "used":
        named = odd.get("id") if isinstance(odd, dict) else None
        assert ledger["names"] == {said: [str(named or "row 1 of a.json")]}


def test_pictures_stand_where_their_markers_do(tmp_path, images):
    one_row(tmp_path, images, ROWS["bare part and one with its picture"][0])
    assert [Path(p["path"]).name for p in open_conversations(tmp_path / "out")["images"][1].as_py()] == ["1.png", "2.png"]


def test_a_system_turn_stays_where_it_stands(tmp_path, images):
    one_row(tmp_path, images, ROWS["system in the middle"][0])
    said = open_conversations(tmp_path / "out")["messages"][1].as_py()
    assert [m["role"] for m in said] == ["user", "assistant", "system", "user", "assistant"]


# --- files ------------------------------------------------------------------------------------------------------------------

LIST = json.dumps([row()]).encode()
# name -> (file, its bytes, rows used, or what the refusal says)
FILES = {
    "two lists": ("a.json", LIST + b"\n" + LIST, "goes on behind the end of its list"),
    "something behind the list": ("a.json", LIST + b"x", "goes on behind the end of its list"),
    "white space behind the list": ("a.json", LIST + b" \n" * 9, 1),
    "byte order mark": ("a.json", b"\xef\xbb\xbf" + LIST, 1),
    "byte order mark before lines": ("a.jsonl", b"\xef\xbb\xbf" + LIST[1:-1] + b"\n" + LIST[1:-1], 2),
    "joined lines": ("a.jsonl", (LIST[1:-1] + b"\n") * 3, 3),
    "cut list": ("a.json", LIST[:-2], "no whole JSON"),
    "cut lines": ("a.jsonl", LIST[1:-1] + b"\n" + LIST[1:-9], "no whole JSON"),
    "no list": ("a.json", LIST[1:-1], "is not a JSON list"),
    "void": ("a.json", b"", "no whole JSON"),
    "void list": ("a.json", b"[]", "0 of 0 conversations"),
    "another encoding": ("a.json", LIST.replace(b"red", b"r\xe9d"), "no text in UTF-8"),
    "deep": ("a.json", b"[" + b"[" * 100_000 + b"]" * 100_000 + b"]", "row at byte 1 cannot be read"),
    "number of 5,000 digits": ("a.json", b'[{"id": ' + b"1" * 5000 + b"}]", "row at byte 1 cannot be read"),
    "no parquet": ("a.parquet", b"PAR1" * 9, "no whole parquet file"),
    "no mix": ("a.yaml", b"- x\n", "no mix of data sets"),
    "mix with a rule of its own": ("a.yaml", b"datasets:\n- {json_path: b.json, sampling_strategy: half}", "sampling_strategy 'half'"),
    "mix with a path that is none": ("a.yaml", b"datasets:\n- {json_path: 3}", "must be a list whose entries have a json_path"),
    "mix with rows that are no number": ("a.yaml", b"datasets:\n- {json_path: b.json, rows: many}", "'many' is no number of rows"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_whole_or_refused_in_words(tmp_path, images, capsys, name):
    file, data, said = FILES[name]
    (tmp_path / file).write_bytes(data)
    code = main([str(tmp_path / file), "--images", str(images), "--out", str(tmp_path / "out"), "--workers", "1"])
    captured = capsys.readouterr()
    if isinstance(said, int):
        assert code == 0 and f"{said} of {said} conversations" in captured.out
    else:
        assert code == 2 and said in captured.err and "Traceback" not in captured.err


def test_json_beside_parquet_is_read_too_and_what_holds_none_is_named(tmp_path, images, capsys):
    """As hub snapshots lie: a folder of parquet, one of JSON with its pictures, one of both, and notes of others."""
    hub = tmp_path / "hub"
    for folder in ("sub(a)", "ureader_qa", "both", ".cache"):
        (hub / folder).mkdir(parents=True)
    table = pa.Table.from_pylist([row(image={"bytes": png(), "path": None})])
    for name in ("sub(a)/0.parquet", "both/0.parquet"):
        pq.write_table(table, hub / name)
    for name in ("ureader_qa/qa.json", "both/more.json"):
        (hub / name).write_bytes(LIST)
        (hub / name).with_name("1.png").write_bytes(png())
    (hub / "both/meta.json").write_text(json.dumps([{"url": "x"}]))
    (hub / "infos.json").write_text("{}")
    (hub / ".cache/notes.json").write_bytes(LIST)
    assert main([str(hub), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    ledger = json.loads((tmp_path / "out/ledger.json").read_text())
    found = {s["name"]: (s["rows"], s["taken"], s["used"], s["passed_over"]) for s in ledger["sources"]}
    assert found == {
        "sub(a)": (1, 1, 1, []),
        "ureader_qa": (1, 1, 1, []),
        "both": (2, 2, 2, ["meta.json"]),
        "hub": (0, 0, 0, ["infos.json"]),
    }
    assert "no conversations, not read: meta.json" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.list_(pa.binary()), pa.struct([("bytes", pa.large_binary())])])
def test_picture_columns_of_every_kind(tmp_path, kind):
    data = png()
    picture = {"list": [data], "struct": {"bytes": data}}.get(str(kind).split("<")[0], data)
    name = "images" if pa.types.is_list(kind) else "image"
    column = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
    schema = pa.schema([(name, kind), ("conversations", column)])
    rows = [{name: picture, "conversations": turns()}, {name: None, "conversations": turns("Hi?", "Hi")}]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "p.parquet")
    assert prepare(str(tmp_path / "p.parquet"), "", str(tmp_path / "out"), workers=1)["used"] == 2
    assert [[p["bytes"] for p in some] for some in open_conversations(tmp_path / "out")["images"].to_pylist()] == [[data], []]


def test_a_picture_file_that_may_not_be_read_is_counted(tmp_path, images):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (images / "locked.png").write_bytes(png())
    (images / "locked.png").chmod(0)
    assert one_row(tmp_path, images, row(image="locked.png"))["skipped"] == {"unreadable picture file": 1}
