"""Shards, samples, streams and packed rows: an order that ranks and stops do not change, and no sample lost without a word."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from genlip import data as data_module
from genlip import image_decoding
from genlip import shards as shards_module
from genlip.data import START, Ledger, Sample, iterate_stream, load_tokenizer, normalised, packed_rows, questions_and_answers
from genlip.shards import Shard, data_digest, list_sources, listing_digest, open_shard
from genlip.train import check_ledger, first_turn, train


def rows_of(recipe, number, **options):
    batches = packed_rows(recipe, load_tokenizer(recipe.tokenizer), list_sources(recipe.data), **options)
    return list(islice(batches, number))


def equal(a, b):
    return a.input_ids.equal(b.input_ids) and a.patches.equal(b.patches) and a.position == b.position and a.ledger == b.ledger


def test_rows_hold_whole_samples_in_an_order_of_seed_and_epoch(recipe):
    rows = rows_of(recipe, 4)
    for row in rows:
        assert len(row.patches) == 4 * len(row.text_lens) and row.input_ids.shape[1] == row.text_lens.sum()
        assert row.tokens <= recipe.row_tokens and len(row.names) == len(row.text_lens)
    assert all(map(equal, rows, rows_of(recipe, 4)))
    other = rows_of(replace(recipe, seed=1), 4)
    assert [row.names for row in rows] != [row.names for row in other]


def test_labels_stand_on_the_caption_and_its_two_end_tokens(recipe):
    tokenizer = load_tokenizer(recipe.tokenizer)
    row = rows_of(recipe, 1)[0]
    ids, labels = (t[0, : row.text_lens[0]] for t in (row.input_ids, row.labels))
    said = tokenizer.decode(ids[labels != -100])
    assert tokenizer.decode(ids) == recipe.prompt + said
    assert said.startswith("a ") and said.endswith(" picture<|im_end|>\n")
    assert labels[labels != -100].equal(ids[labels != -100])


def test_a_conversation_speaks_all_its_answers(recipe):
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": " a dog "}]
    more = [{"from": "human", "value": "sure?"}, {"from": "gpt", "value": "yes"}]
    assert questions_and_answers(talk, "p") == ([("what?", "a dog")], [])
    assert questions_and_answers([{"from": "user", "value": "<image>"}, {"from": "assistant", "value": "x"}], "p") == ([("p", "x")], [])
    assert questions_and_answers([{"human": "<image>\nwhat?", "gpt": "a dog"}, *more], "p")[0] == [("what?", "a dog"), ("sure?", "yes")]
    assert questions_and_answers([{"from": "system", "value": "s"}, *talk], "p") == ([("what?", "a dog")], ["system turn left out"])
    bad = {"no caption": None, "empty caption": "  ", "caption is not text": 5, "turns do not alternate user, assistant": talk[:1]}
    for reason, text in bad.items():
        with pytest.raises(ValueError, match=reason):
            questions_and_answers(text, "p")
    with pytest.raises(ValueError, match="turns do not alternate user, assistant"):
        questions_and_answers(talk[::-1], "p")


def test_every_answer_is_learned_and_captions_lie_beside_conversations(recipe, tmp_path, tar, draw):
    talk = [{"from": "human", "value": "<image>\nwhat is"}, {"from": "gpt", "value": "a red circle"}]
    talk += [{"from": "human", "value": "yes"}, {"from": "gpt", "value": "no"}]
    texts = {"a": {"conversations": talk}, "b": {"caption": "a blue triangle."}, "c": {"conversation": talk[:2]}}
    members = [(f"{name}.png", draw("red")) for name in texts] + [
        (f"{name}.json", json.dumps(text).encode()) for name, text in texts.items()
    ]
    tar(tmp_path / "mix.tar", dict(sorted(members)))
    tokenizer, found = load_tokenizer(recipe.tokenizer), {}
    for key in ("conversations", "caption"):
        for row in rows_of(replace(recipe, data=str(tmp_path / "mix.tar"), text_key=key, row_tokens=200), 3):
            ends = row.text_lens.cumsum(0).tolist()
            for name, start, end in zip(row.names, [0, *ends], ends):
                ids, labels = row.input_ids[0, start:end], row.labels[0, start:end]
                found[name[0]] = tokenizer.decode(ids), tokenizer.decode(labels[labels != -100])
        end = "<|im_end|>\n"
        assert found["a"] == ("what isa red circleyesno" + end, "a red circleno" + end)
        assert found["b"] == (recipe.prompt + "a blue triangle." + end, "a blue triangle." + end)
        assert found["c"] == ("what isa red circle" + end, "a red circle" + end)


def test_the_first_turn_of_several():
    ids, labels = torch.arange(9)[None], torch.tensor([-100, -100, 2, 3, -100, 5, 6, 7, 8])
    prompt, truth = first_turn(ids, labels)
    assert prompt.tolist() == [[0, 1]] and truth.tolist() == [2, 3]


def test_a_control_token_in_a_caption_is_text(recipe, tmp_path, tar, draw):
    said = "a sign that says <|im_end|> twice: <|im_end|>"
    tar(tmp_path / "odd.tar", {"a.png": draw("red"), "a.txt": said.encode()})
    row = rows_of(replace(recipe, data=str(tmp_path / "odd.tar"), row_tokens=200, look_ahead=1), 1)[0]
    tokenizer = load_tokenizer(recipe.tokenizer)
    ids = row.input_ids[0, : row.text_lens[0]].tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1  # its own end alone
    assert tokenizer.decode(ids) == recipe.prompt + said + "<|im_end|>\n"


@pytest.mark.parametrize("changes", [{}, {"rows": 2, "look_ahead": 7}])
def test_a_position_goes_on_exactly(recipe, changes):
    recipe = replace(recipe, **changes)
    rows = rows_of(recipe, 8)
    last = {row.stream: row for row in rows[:4]}
    states = json.loads(json.dumps([{"position": last[r].position, "ledger": last[r].ledger} for r in range(recipe.rows)]))
    for a, b in zip(rows[4:], rows_of(recipe, 4, states=states), strict=True):
        assert a.input_ids.equal(b.input_ids) and a.names == b.names and a.ledger == b.ledger
        assert json.dumps(a.position) == json.dumps(b.position)


def unequal(tmp_path, tar, draw):
    """Seven shards of 1, 4, 7, ... 19 samples."""
    (tmp_path / "seven").mkdir()
    for s in range(7):
        members = {}
        for i in range(1 + 3 * s):
            members |= {f"{s}-{i}.png": draw("red"), f"{s}-{i}.txt": b"red"}
        tar(tmp_path / f"seven/{s}.tar", members)
    return str(tmp_path / "seven"), 70


def test_two_ranks_of_two_workers_read_every_sample_once_an_epoch(recipe, tmp_path, tar, draw):
    data, total = unequal(tmp_path, tar, draw)
    recipe = replace(recipe, data=data, rows=8, row_tokens=60, look_ahead=3)
    one = rows_of(recipe, 8 * 20)
    two = {rank: rows_of(replace(recipe, workers=2), 4 * 20, rank=rank, world=2) for rank in range(2)}
    together = [row for step in range(20) for rank in range(2) for row in two[rank][4 * step : 4 * step + 4]]
    key = lambda i_row: (i_row[0] // 8, i_row[1].stream)  # noqa: E731
    together = [row for _, row in sorted(enumerate(together), key=key)]
    assert all(map(equal, one, together))  # ranks and workers change nothing
    # Each stream deals its samples in epochs; the first `total` of all streams' first epochs are all samples, once.
    met = Counter()
    for stream in range(8):
        lengths = [len(open_shard(s, "image", "caption")) for s in list_sources(data)[0].shards]
        for shard, sample, place in iterate_stream(7, lengths.__getitem__, recipe.seed, stream, 8, START):
            if place["epoch"] > 0:
                break
            met[shard, sample] += 1
    assert set(met.values()) == {1} and len(met) == total


def test_names_met_are_every_sample(recipe, tmp_path, tar, draw):
    data, total = unequal(tmp_path, tar, draw)
    rows = rows_of(replace(recipe, data=data, rows=2, row_tokens=60, look_ahead=3, workers=2), 100)
    counts = Counter(name for row in rows for name in row.names)
    epochs = [row.position["places"][0]["epoch"] for row in rows[-2:]]
    assert len(counts) == total and max(counts.values()) <= max(epochs) + 1
    assert min(counts.values()) >= min(epochs) - 1  # one may wait to be packed


def test_small_data_is_decoded_once_and_what_is_kept_changes_no_row(recipe, monkeypatch):
    decoded, pixels_of = [], data_module.pixels_of
    monkeypatch.setattr(data_module, "pixels_of", lambda *picture: decoded.append(1) or pixels_of(*picture))
    rows = rows_of(recipe, 40)
    distinct = len({name for row in rows for name in row.names})
    assert rows[-1].position["places"][0]["epoch"] >= 2 and len(decoded) == distinct
    assert all(map(equal, rows, rows_of(replace(recipe, sample_cache_mib=0), 40)))
    assert len(decoded) > 3 * distinct  # nothing is kept where nothing may be


def fake(tokens, i):
    return Sample(str(i), (0, 0, i), np.zeros((16, 16, 3), np.uint8), [1] * (tokens - 1), [1] * (tokens - 1), [], tokens)


@pytest.mark.parametrize(("mean", "spread", "least"), [(270, 0.25, 210), (1200, 0.6, 60)])
def test_waste_is_small_on_the_length_mix_of_both_stages(recipe, monkeypatch, mean, spread, least):
    """Log-normal lengths of the stage's mean with a long tail up to 4,096; the rest is the real packing."""
    rng = np.random.default_rng(0)
    lens = np.clip(rng.lognormal(np.log(mean) - spread**2 / 2, spread, 40_000).round(), least, 4096).astype(int)
    drawn = iter(enumerate(lens))
    monkeypatch.setattr(data_module.PackedRows, "_draw", lambda self, *_: (fake(int(n), i) for i, n in drawn))
    rows = data_module.PackedRows(
        replace(recipe, row_tokens=16_384, look_ahead=200), load_tokenizer(recipe.tokenizer), list_sources(recipe.data), [0]
    )
    monkeypatch.setattr(data_module.PackedRows, "_batch", lambda self, row, stream, position, ledger: (row, position))
    used, tokens, number = [], 0, 300
    found = list(islice(rows.rows(0), number))
    for row, _ in found:
        used += [int(sample.name) for sample in row]
        tokens += sum(sample.tokens for sample in row)
    waste = 1 - tokens / (number * 16_384)
    assert waste < 0.03
    waiting = [place[2] for place in found[-1][1]["waiting"]]
    assert sorted(used + waiting) == list(range(len(used) + len(waiting)))  # none lost, none twice
    assert min(waiting) > max(used) - 1000  # and none waits for long


def test_bad_samples_are_counted_by_reason(recipe, shards, tar, draw, monkeypatch):
    monkeypatch.setattr(image_decoding, "MAX_PIXELS", 10_000)
    red, caption = draw("red"), b'{"caption": "x"}'
    members = {"a.png": red, "b.png": red[:40], "b.json": caption, "c.json": caption, "d.png": red, "d.json": b'{"caption": "  "}'}
    members |= {"e.png": red, "e.json": b"{", "f.png": red, "f.json": b'{"caption": 7}', "g.png": red, "g.txt": b"\xff\xfe"}
    members |= {"../h.png": red, "../h.json": caption, "i.png": draw("red", (200, 60)), "i.json": caption}
    members |= {"j.png": red, "j.json": b'{"caption": null}'}
    tar(shards / "train-9.tar", members)
    ledger = next(r.ledger for r in rows_of(recipe, 30) if r.position["places"][0]["epoch"] == 2)
    offenders = {"no caption": "aj", "undecodable picture": "b", "no picture": "c", "empty caption": "d", "unreadable json": "e"}
    offenders |= {"caption is not text": "f", "unreadable text": "g", "too many pixels": "i"}
    named = {reason: {f"{n} in train-9.tar" for n in letters} for reason, letters in offenders.items()}
    named["path outside the shard"] = {"../h in train-9.tar"}
    assert {reason: set(names) for reason, names in ledger["names"].items()} == named
    assert ledger["read"] == ledger["used"] + sum(ledger["skipped"].values())
    with pytest.raises(ValueError, match="--max-bad"):
        check_ledger(100, 11, [ledger], recipe)
    check_ledger(2000, 11, [ledger], recipe)
    with pytest.raises(ValueError, match="--max-bad"):
        train(replace(recipe, max_steps=50))


def test_a_300_megapixel_picture_is_refused_before_it_is_decoded(recipe, tmp_path, tar, draw):
    import struct
    import zlib

    whole = draw("red")
    size = struct.pack(">II", 20_000, 15_000) + whole[24:29]
    bomb = whole[:16] + size + struct.pack(">I", zlib.crc32(b"IHDR" + size)) + whole[33:]
    tar(tmp_path / "bomb.tar", {"a.png": bomb, "a.txt": b"x"})
    image, _ = open_shard(Shard(str(tmp_path / "bomb.tar")), "image", "caption").read(0)
    with pytest.raises(ValueError, match="too many pixels"):
        data_module.pixels_of(image, lambda h, w: (32, 32))


def test_long_text_is_cut_and_counted(recipe, tmp_path, tar, draw, monkeypatch):
    tar(tmp_path / "long.tar", {"a.png": draw("red"), "a.txt": b"a red circle " * 50})
    row = rows_of(replace(recipe, data=str(tmp_path / "long.tar"), max_length=100), 1)[0]
    tokenizer = load_tokenizer(recipe.tokenizer)
    assert row.tokens == 100 and row.ledger["noted"] == {"cut": 1} and row.ledger["names"] == {"cut": ["a in long.tar"]}
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in row.input_ids  # the caption does not end there
    monkeypatch.setattr(data_module, "MAX_CONSECUTIVE_BAD", 20)
    with pytest.raises(ValueError, match=r"unusable samples in turn.*picture and question fill a row.*: raise --max-length 5$"):
        rows_of(replace(recipe, data=str(tmp_path / "long.tar"), max_length=5), 1)


def test_native_pictures_keep_their_shape(recipe, tmp_path, tar, draw):
    members = {"a.png": draw("red", (160, 64)), "a.txt": b"x", "b.png": draw("red", (4000, 10)), "b.txt": b"x"}
    tar(tmp_path / "shapes.tar", members)
    row = rows_of(replace(recipe, data=str(tmp_path / "shapes.tar"), native=True), 2)[1]
    assert row.grid_hw.tolist() == [[4, 10]] * len(row.grid_hw) and len(row.patches) == 40 * len(row.grid_hw)
    assert row.ledger["names"] == {"extreme aspect ratio": ["b in shapes.tar"] * row.ledger["skipped"]["extreme aspect ratio"]}


def test_parquet_shards_are_read_by_row_group(recipe, tmp_path, draw):
    import pyarrow as pa
    from pyarrow import parquet

    colours = ["red", "green", "blue"] * 4
    images = [{"bytes": draw(c), "path": f"{c}.png"} for c in colours]
    table = pa.table({"image": images, "re_caption": [f"{c} {i}" for i, c in enumerate(colours)]})
    parquet.write_table(table, tmp_path / "set.parquet", row_group_size=5)
    recipe = replace(recipe, data=str(tmp_path / "set.parquet"), text_key="re_caption", look_ahead=1)
    assert [shard.group for shard in list_sources(recipe.data)[0].shards] == [0, 1, 2]
    rows = rows_of(recipe, 12)
    first_epoch = [name for row in rows for name in row.names][:12]
    assert len(set(first_epoch)) == 12 and "row 4 of row group 1 in set.parquet" in first_epoch
    with pytest.raises(ValueError, match=r"no column 'caption', only image, re_caption: .*--text-key"):
        rows_of(replace(recipe, text_key="caption"), 1)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "set.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut\.parquet cannot be read"):
        list_sources(str(tmp_path / "cut.parquet"))


def test_a_mixture_keeps_its_weights_and_a_list_names_its_own(recipe, shards, tmp_path, tar, draw):
    tar(tmp_path / "other.tar", {"z.png": draw("red"), "z.txt": b"red"})
    (tmp_path / "mix.txt").write_text("# two sources\nshards/*.tar@3\nother.tar@1\n")
    recipe = replace(recipe, data=str(tmp_path / "mix.txt"), look_ahead=1)
    assert [source.weight for source in list_sources(recipe.data)] == [0.75, 0.25]
    counts = Counter("z in other.tar" in name for row in rows_of(recipe, 12) for name in row.names)
    assert abs(counts[True] * 3 - counts[False]) <= 3
    joined = list_sources(f"{shards},{tmp_path}/other.tar")
    assert len(joined) == 1 and len(joined[0].shards) == 4
    for wrong in (
        f"{shards}@2,{tmp_path}/other.tar",
        f"{shards}@x",
        f"{shards}@0",
        str(tmp_path / "absent.txt"),
        str(tmp_path / "nothing"),
    ):
        with pytest.raises(ValueError, match=r"weight|no list|no shards"):
            list_sources(wrong)


def test_truncated_and_empty_shards(recipe, shards, tar):
    whole = (shards / "train-1.tar").read_bytes()
    (shards / "train-1.tar").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"train-1\.tar cannot be read"):
        train(replace(recipe, workers=1))
    tar(shards / "train-1.tar", {})
    names = {name for row in rows_of(recipe, 9) for name in row.names}
    assert len(names) == 8 and not any("train-1" in name for name in names)
    for shard in shards.glob("*.tar"):
        tar(shard, {})
    with pytest.raises(ValueError, match="hold no sample"):
        rows_of(recipe, 1)


def test_a_missing_shard_is_named(recipe, shards, tmp_path):
    (tmp_path / "list.txt").write_text("shards/train-0.tar\nshards/train-7.tar\n")
    with pytest.raises(ValueError, match=r"no shards at '.*train-7\.tar'"):
        train(replace(recipe, data=str(tmp_path / "list.txt")))
    sources = list_sources(recipe.data)
    (shards / "train-2.tar").unlink()  # between the listing and the reading
    with pytest.raises(ValueError, match=r"train-2\.tar cannot be read.*No such file"):
        list(islice(packed_rows(recipe, load_tokenizer(recipe.tokenizer), sources), 9))


def test_shards_that_changed_are_refused_on_resume(recipe, shards, tar, draw):
    before = listing_digest(list_sources(recipe.data))
    train(replace(recipe, max_steps=4))

    shutil.rmtree(recipe.out + "/export")
    tar(shards / "train-5.tar", {"a.png": draw("red"), "a.txt": b"red"})
    assert listing_digest(list_sources(recipe.data)) != before
    with pytest.raises(ValueError, match="began with the data"):
        train(replace(recipe, max_steps=4))


def test_a_byte_of_a_shard_is_noticed_where_the_run_goes_on_and_where_it_is_done(recipe, shards, capsys):
    """Equal size, date put back."""
    recipe = replace(recipe, max_steps=4)
    provenance = json.loads((train(recipe) / "provenance.json").read_text())
    assert provenance["data_digest_covers"] == "names, sizes and all bytes of the shards"
    train(recipe)
    assert "this run is done" in capsys.readouterr().out
    shard = shards / "train-1.tar"
    date, data = shard.stat().st_mtime_ns, shard.read_bytes()
    shard.write_bytes(data.replace(b"a red picture", b"a sad picture"))
    os.utime(shard, ns=(date, date))
    with pytest.raises(ValueError, match="not those that"):
        train(recipe)
    shutil.rmtree(recipe.out + "/export")
    with pytest.raises(ValueError, match="began with the data"):
        train(recipe)
    assert "this run is done" not in capsys.readouterr().out
    shard.write_bytes(data)
    train(recipe)

    # A run finished before bytes were covered: its digest is the listing's.
    assert provenance["data_digest"] == data_digest(list_sources(recipe.data))[0]
    file = Path(recipe.out) / "export/provenance.json"
    file.write_text(json.dumps(provenance | {"data_digest": listing_digest(list_sources(recipe.data))}))
    capsys.readouterr()
    train(recipe)
    assert "began before the bytes of shards were compared" in capsys.readouterr().out


def test_beyond_a_bound_the_ends_of_shards_stand_for_them(recipe, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "WHOLE_BYTES", 10)
    monkeypatch.setattr(shards_module, "END_BYTES", 2048)
    said, covers = data_digest(list_sources(recipe.data))
    assert "both ends of each" in covers and "all bytes are covered up to" in covers
    shutil.copytree(shards, tmp_path / "moved")
    assert data_digest(list_sources(str(tmp_path / "moved")))[0] == said != data_digest(list_sources(str(shards / "train-1.tar")))[0]
    for place, noticed in ((5, True), (-2000, True), (3000, False)):
        data = bytearray((shards / "train-1.tar").read_bytes())
        data[place] ^= 1
        (tmp_path / "moved/train-1.tar").write_bytes(data)
        assert (data_digest(list_sources(str(tmp_path / "moved")))[0] != said) == noticed


def test_ledgers_of_streams_add_up():
    a, b = Ledger(), Ledger()
    a.used, b.used = 2, 3
    a.count(a.skipped, "x", "one")
    b.count(b.skipped, "x", "two")
    total = Ledger.merged([a.as_dict(), b.as_dict()]).as_dict()
    assert total == {"read": 7, "used": 5, "noted": {}, "skipped": {"x": 2}, "names": {"x": ["one", "two"]}}


@pytest.mark.slow
def test_memory_stays_flat(recipe, tmp_path, tar, draw):
    """Over 50,000 samples: shards are let go, ledgers keep their first offenders alone."""
    psutil = pytest.importorskip("psutil")
    red = draw("red")
    for s in range(50):
        members = {}
        for i in range(1000):
            members |= {f"{i}.png": red, f"{i}.txt": b"" if i % 200 == 7 else b"a red picture %d" % i}
        tar(tmp_path / f"many-{s:02d}.tar", members)
    recipe = replace(recipe, data=str(tmp_path / "many-*.tar"), row_tokens=2048, look_ahead=200, sample_cache_mib=4)
    sizes, samples = [], 0
    for row in packed_rows(recipe, load_tokenizer(recipe.tokenizer), list_sources(recipe.data)):
        samples += len(row.names)
        if samples > 10_000 * (len(sizes) + 1):
            sizes.append(psutil.Process().memory_info().rss)
        if len(sizes) == 5:
            break
    assert max(sizes[1:]) - sizes[0] < 5_000_000


def test_real_photos(shared, recipe):
    samples = open_shard(Shard(str(shared / "captions" / "cc12m-32.tar")), "image", "caption")
    assert len(samples) == 32 and all(isinstance(samples.read(i)[1], str) for i in range(32))
    row = rows_of(replace(recipe, data=str(shared / "captions" / "cc12m-32.tar"), row_tokens=1000), 1)[0]
    pixels = normalised(row.patches)
    assert torch.isfinite(pixels).all() and pixels.std() > 0.1 and pixels.min() >= -1 and pixels.max() <= 1
