"""Shards as they lie in the world: cut, joined, half written, with keys and suffixes twice. What is lost is counted by reason, or the
shard is refused in words; never silence."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from genlip.data import load_tokenizer, packed_rows
from genlip.shards import Shard, list_sources, open_shard

PARTS = ("png", "json")


def tar_of(members: list[tuple[str, bytes]], **options) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def members(draw):
    """Of so many samples: pictures that take a few blocks each, so that a tar of twelve is longer than a record."""
    caption = lambda i: json.dumps({"caption": f"picture {i}", "more": "x" * 900}).encode()  # noqa: E731
    return lambda number: [(f"{i:03}.{part}", draw("red") if part == "png" else caption(i)) for i in range(number) for part in PARTS]


def read(file, data: bytes) -> tuple[int, Counter]:
    """(samples that can be used, reasons why others cannot) of a shard with these bytes. ValueError where it is refused."""
    file.write_bytes(data)
    (source,) = list_sources(str(file))
    shard, used, reasons = open_shard(source.shards[0], "image", "caption"), 0, Counter()
    for i in range(len(shard)):
        try:
            shard.read(i)
            used += 1
        except ValueError as e:
            reasons[str(e)] += 1
    return used, reasons


def borders(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [member.offset for member in tar]


def test_a_tar_cut_at_any_border_or_block_is_refused(tmp_path, members):
    whole = tar_of(members(12))
    assert read(tmp_path / "a.tar", whole) == (12, {})
    last = borders(whole)[-1] + 512 + 1024  # header and data of the last json
    assert not any(whole[last:])
    for end in [*borders(whole), *range(0, last + 1024, 512), last - 100, last + 1023]:
        with pytest.raises(ValueError, match=r"a\.tar cannot be read to its end \("):
            read(tmp_path / "a.tar", whole[:end])
    for end in range(last + 1024, len(whole) + 1, 512):  # nothing but filling lacks
        assert read(tmp_path / "a.tar", whole[:end]) == (12, {})


def test_a_tar_whose_rest_is_zeros_is_refused_or_what_lacks_is_counted(tmp_path, members):
    """Only where the zeros look like the filling of a last record nothing can tell: those borders are left out here."""
    whole = tar_of(members(12))
    for end in borders(whole):
        zeroed = whole[:end] + bytes(len(whole) - end)
        if len(whole) - end > 1024 + tarfile.RECORDSIZE:
            with pytest.raises(ValueError, match="nothing but zeros from byte"):
                read(tmp_path / "a.tar", zeroed)
        else:
            used, reasons = read(tmp_path / "a.tar", zeroed)
            assert used == borders(whole).index(end) // 2 and reasons == ({"no caption": 1} if borders(whole).index(end) % 2 else {})


def test_tars_joined_with_cat_are_refused_and_those_joined_by_tar_are_read(tmp_path, members):
    whole = tar_of(members(3))
    for joined in (whole + whole, whole[: borders(whole)[-1] + 1536 + 512] + whole, whole + bytes(512) + whole, whole + b"x" + bytes(1024)):
        with pytest.raises(ValueError, match="something follows its end at byte"):
            read(tmp_path / "a.tar", joined)
    (tmp_path / "a.tar").write_bytes(whole)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:  # as tar -A does
        for name, data in [(f"b{name}", data) for name, data in members(2)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert read(tmp_path / "a.tar", (tmp_path / "a.tar").read_bytes()) == (5, {})


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_has_this_end(tmp_path, members, form):
    long = [(f"{'folder/' * 30}{name}", data) for name, data in members(2)] if form != tarfile.USTAR_FORMAT else []
    assert read(tmp_path / "a.tar", tar_of(members(2) + long, format=form)) == (2 + len(long) // 2, {})
    assert read(tmp_path / "a.tar", tar_of([])) == (0, {})


@pytest.mark.parametrize("data", [b"", b"x" * 5000, b"\x1f\x8b" + b"x" * 5000, b"<html>404</html>"])
def test_what_is_no_tar_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match=r"a\.tar cannot be read to its end"):
        read(tmp_path / "a.tar", data)


TWICE = {  # order of the members of sample 0 beside whole samples 1 and 2 -> (used, reasons)
    "whole": ("0p 0j 1p 1j 2p 2j", 3, {}),
    "key twice": ("0p 0j 0p 0j 1p 1j", 2, {"key comes twice": 1}),
    "key again later": ("0p 0j 1p 1j 0p 0j", 2, {"key comes twice": 1}),
    "picture twice": ("0p 0p 0j 1p 1j", 1, {"no caption": 1, "key comes twice": 1}),
    "text twice": ("0p 0j 0j 1p 1j", 2, {"no picture": 1}),
    "picture twice, in two spellings": ("0p 0P 0j 1p 1j", 1, {"no caption": 1, "key comes twice": 1}),
    "pictures first, texts behind": ("0p 1p 0j 1j", 0, {"no caption": 2, "no picture": 2}),
    "thrice": ("0p 0j 0p 0j 0p 0j", 1, {"key comes twice": 2}),
}


@pytest.mark.parametrize("name", TWICE)
def test_what_comes_twice_is_counted_and_no_sample_is_made_of_two(tmp_path, draw, name):
    order, used, reasons = TWICE[name]
    kinds = {"p": ("png", draw("red")), "P": ("PNG", draw("blue")), "j": ("json", b'{"caption": "x"}')}
    data = tar_of([(f"{one[0]}.{kinds[one[1]][0]}", kinds[one[1]][1]) for one in order.split()])
    assert read(tmp_path / "a.tar", data) == (used, reasons)


TEXTS = {  # what stands in one sample's json -> the reason
    "half a surrogate pair": (b'{"caption": "nice \\ud83d picture"}', "caption is not text"),
    "deep": (b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "unreadable json"),
    "number of 5,000 digits": (b'{"caption": ' + b"1" * 5000 + b"}", "unreadable json"),
    "list": (b'["a red picture"]', "unreadable json"),
    "text": (b'"a red picture"', "unreadable json"),
    "latin 1": (b'{"caption": "caf\xe9"}', "unreadable json"),
    "two objects": (b'{"caption": "a"}{"caption": "b"}', "unreadable json"),
    "void": (b"", "unreadable json"),
    "number": (b'{"caption": 7}', "caption is not text"),
    "object": (b'{"caption": {"text": "a"}}', "caption is not text"),
    "null": (b'{"caption": null}', "no caption"),
    "another key": (b'{"text": "a"}', "no caption"),
    "white space": (b'{"caption": " \\n"}', "empty caption"),
    "turns of another form": (b'{"caption": [1, 2]}', "malformed turn"),
    "answer of half a pair": (
        b'{"caption": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "\\ud83d"}]}',
        "malformed turn",
    ),
    "two markers": (
        b'{"caption": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "a"}]}',
        "<image> markers and pictures do not match",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_an_odd_text_costs_one_sample_and_no_run(recipe, tmp_path, members, draw, name):
    data, reason = TEXTS[name]
    (tmp_path / "a.tar").write_bytes(tar_of([*members(3), ("odd.png", draw("red")), ("odd.json", data)]))
    recipe = replace(recipe, data=str(tmp_path / "a.tar"), row_tokens=1000, look_ahead=1)
    rows = list(islice(packed_rows(recipe, load_tokenizer(recipe.tokenizer), list_sources(recipe.data)), 3))
    assert set(rows[-1].ledger["skipped"]) == {reason} and set(rows[-1].ledger["names"][reason]) == {"odd in a.tar"}


@pytest.mark.parametrize("weight", ["nan", "inf", "-1", "0", "x", ""])
def test_a_weight_is_a_number_above_0(tmp_path, members, weight):
    (tmp_path / "a.tar").write_bytes(tar_of(members(1)))
    with pytest.raises(ValueError, match="is not a number above 0"):
        list_sources(f"{tmp_path}/a.tar@{weight},{tmp_path}/a.tar@1")


def test_a_shard_cut_after_it_was_listed_is_refused(tmp_path, members):
    (tmp_path / "a.tar").write_bytes(tar_of(members(12))[:-11_000])
    with pytest.raises(ValueError, match=r"cannot be read to its end \("):
        open_shard(Shard(str(tmp_path / "a.tar")), "image", "caption")
