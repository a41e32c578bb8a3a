"""The mini world as files: the same bytes however it is made, stopped runs that go on, the hub's columns, an honest manifest."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval_suites.tasks import hub_columns
from eval_suites.tasks.manifest import verify
from genlip.common.files import sha256
from small_data.mini import benchmarks, build, captions, conversations, families, fonts, picture
from small_data.mini.__main__ import main
from small_data.mini.knobs import DEFAULT

SMALL = ["--train", "30", "--eval", "10"]


def tree(out: Path) -> dict[str, str]:
    """path -> digest of every file."""
    return {str(p.relative_to(out)): sha256(p) for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("mini")
    assert main(["--out", str(out), *SMALL, "--workers", "1"]) == 0
    return out


def table(out: Path, name: str) -> list[dict]:
    told = json.loads((out / "genlip-eval/mini/manifest.json").read_text())["sets"][name]
    return pq.read_table(out / "genlip-eval/mini" / told["file"]).to_pylist()


def test_two_processes_make_the_bytes_that_one_makes_and_another_seed_makes_others(small, tmp_path):
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "small_data.mini", "--out", str(tmp_path / "again"), *SMALL, "--workers", "2"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert tree(tmp_path / "again") == tree(small)
    assert main(["--out", str(tmp_path / "other"), *SMALL, "--workers", "1", "--seed", "1"]) == 0
    theirs, ours = tree(tmp_path / "other"), tree(small)
    assert theirs.keys() == ours.keys() and not {path for path in ours if theirs[path] == ours[path]}


def test_a_set_of_fewer_rows_is_the_beginning_of_one_of_more():
    for name in benchmarks.SETS:
        few, many = (benchmarks.rows(name, n, 0, DEFAULT) for n in (6, 40))
        assert many[: len(few)] == few


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(small, tmp_path, monkeypatch):
    calls, make_part = [], build._make_part

    def stop(world, out, part):
        calls.append(part)
        if len(calls) == 5:
            raise KeyboardInterrupt
        make_part(world, out, part)

    monkeypatch.setattr(build, "_make_part", stop)
    assert main(["--out", str(tmp_path), *SMALL, "--workers", "1"]) == 130
    assert not (tmp_path / "genlip-eval/mini/manifest.json").exists()
    monkeypatch.setattr(build, "_make_part", make_part)
    seen = []
    monkeypatch.setattr(build, "_make_part", lambda world, out, part: (seen.append(part), make_part(world, out, part)))
    assert main(["--out", str(tmp_path), *SMALL, "--workers", "1"]) == 0
    assert not set(calls[:4]) & set(seen), "parts that were whole are not made again"
    assert tree(tmp_path) == tree(small)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_run_that_is_killed_leaves_no_worker_behind_and_goes_on(small, tmp_path):
    """A worker that lives on would write the parts that the next run writes."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "small_data.mini", "--out", str(tmp_path), *SMALL, "--workers", "2"]
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while run.poll() is None and not list((tmp_path / "mini/.parts").glob("*.json")):
        time.sleep(0.02)
    workers = [file.parent for file in Path("/proc").glob("[0-9]*/stat") if _parent(file) == run.pid]
    run.kill()
    assert run.wait() == -9 and len(workers) >= 2
    end = time.monotonic() + 30
    while any(_parent(worker / "stat") for worker in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_parent(worker / "stat") for worker in workers), "a worker lives on"
    assert main(["--out", str(tmp_path), *SMALL, "--workers", "1"]) == 0
    assert tree(tmp_path) == tree(small)


def _parent(stat: Path) -> int:
    """A process' parent, 0 where it is gone or waits to be reaped."""
    try:
        state, parent = stat.read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


def test_a_finished_world_is_not_made_again(small, monkeypatch):
    monkeypatch.setattr(build, "_make_part", lambda *_: pytest.fail("made again"))
    assert main(["--out", str(small), *SMALL]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train", "30", "--eval", "10", "--seed", "1"], "holds a mini world of another seed (0, asked for 1)"),
        (["--train", "31", "--eval", "10"], "another training size (30, asked for 31)"),
        (["--train", "30", "--eval", "11"], "another evaluation size (10, asked for 11)"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(small, arguments, said, capsys):
    before = tree(small)
    assert main(["--out", str(small), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert tree(small) == before


@pytest.mark.parametrize("flag", ["--train", "--eval"])
def test_a_size_below_one_is_refused_by_the_flag(small, flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(small), flag, "0"])
    assert stopped.value.code == 2 and f"argument {flag}: 0 is not a number of 1 or more" in capsys.readouterr().err


def test_no_space_is_said_before_and_during(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert main(["--out", str(tmp_path), *SMALL]) == 2
    assert "no space for the mini world" in capsys.readouterr().err
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "_make_part", full)
    assert main(["--out", str(tmp_path), *SMALL, "--workers", "1"]) == 2
    assert "goes on where it stopped" in capsys.readouterr().err


def test_a_missing_font_names_the_package_to_install(tmp_path, monkeypatch, capsys):
    fonts.path.cache_clear()
    monkeypatch.setattr(fonts, "find_spec", lambda _: None)
    assert main(["--out", str(tmp_path), *SMALL]) == 2
    assert "font-source-sans-pro" in capsys.readouterr().err
    fonts.path.cache_clear()


def test_no_test_picture_is_trained_on_by_its_decoded_pixels(small):
    def pixels(jpeg: bytes) -> str:
        return hashlib.sha256(Image.open(io.BytesIO(jpeg)).convert("RGB").tobytes()).hexdigest()

    trained = {pixels(path.read_bytes()) for path in (small / "mini/sft/images").rglob("*.jpg")}
    tested = {pixels(row["image"]["bytes"]) for name in benchmarks.SETS for row in table(small, name) if row.get("image")}
    assert len(trained) == 30 and len(tested) > 80 and not trained & tested


def test_a_test_picture_among_the_training_pictures_is_refused(tmp_path, monkeypatch, capsys):
    """The check itself: evaluation scenes drawn from the training seeds must be noticed."""
    stream = families.stream
    monkeypatch.setattr(benchmarks, "stream", lambda seed, split, name, i: stream(seed, "train", i))
    monkeypatch.setattr(benchmarks, "compose", lambda family, rng, knobs, kind: families.draw(rng, knobs))
    monkeypatch.setattr(benchmarks, "SETS", {"coco2017_cap_val": benchmarks.SETS["coco2017_cap_val"]})
    assert main(["--out", str(tmp_path), *SMALL, "--workers", "1"]) == 2
    assert "also in the training part" in capsys.readouterr().err


def test_shards_conversations_and_parquet_tell_of_the_same_pictures(small):
    llava = json.loads((small / "mini/sft/conversations.json").read_text())
    rows = pq.read_table(small / "mini/sft/parquet").to_pylist()
    assert [r["id"] for r in llava] == [r["id"] for r in rows] and len(llava) == 30
    for record, row in zip(llava, rows):
        assert record["conversations"] == row["conversations"]
        assert row["image"]["bytes"] == (small / "mini/sft/images" / record["image"]).read_bytes()
        first, *later = [turn["value"] for turn in record["conversations"]]
        assert first.startswith("<image>\n") and not any("<image>" in value for value in later)
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * (len(record["conversations"]) // 2)
    for stage, key in (("stage1", "caption"), ("stage2", "conversations")):
        with tarfile.open(small / f"mini/captions/{stage}/train-000000.tar") as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        assert len(members) == 60 and all(key in json.loads(data) for name, data in members.items() if name.endswith("json"))
    assert len((small / "mini/text.txt").read_text().splitlines()) > 200


def test_sizes_and_shapes_of_pictures_vary():
    sizes = [families.draw(families.stream("sizes", i)).size for i in range(600)]
    assert min(map(min, sizes)) >= 64 and max(map(max, sizes)) <= 512
    assert sum(max(size) > 256 for size in sizes) > 30 and len({round(w / h, 1) for w, h in sizes}) > 10


def test_every_set_has_its_rows_and_a_maximum_with_a_reason(small):
    told = verify(small / "genlip-eval/mini")
    assert set(told["sets"]) == set(benchmarks.SETS)
    for name, entry in told["sets"].items():
        rows = table(small, name)
        assert entry["n"] == len(rows) and entry["why"]
        assert entry["images"] == len({row["image"]["bytes"] for row in rows if row.get("image")})
        assert name in ("mme", "gqa_images") or entry["n"] == 10
    assert told["sets"]["mme"]["maximum"] == {"mme_p": 2000.0, "mme_c": 800.0}
    assert told["sets"]["ocrbench"]["maximum"] == 0.01
    assert told["pillow"] and told["fonts"]["hand"]["sha256"] and told["knobs"] == DEFAULT.as_dict()


@pytest.mark.parametrize("damage", ["row", "manifest", "missing"])
def test_a_changed_world_is_noticed(small, tmp_path, damage):
    folder = tmp_path / "mini"
    shutil.copytree(small / "genlip-eval/mini", folder)
    file = folder / "ai2d/test-00000-of-00001.parquet"
    if damage == "row":
        data = bytearray(file.read_bytes())
        data[500] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    else:
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace('"n": 10', '"n": 9', 1))
    with pytest.raises(ValueError, match="make the mini world again"):
        verify(folder)


def test_a_damaged_world_is_not_taken_for_a_finished_one(small, tmp_path, capsys):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    (tmp_path / "genlip-eval/mini/mme/test-00000-of-00001.parquet").unlink()
    assert main(["--out", str(tmp_path), *SMALL]) == 2
    assert f"of mme is missing or not as it was made; remove {tmp_path / 'genlip-eval/mini'} and" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "genlip-eval/mini")
    assert main(["--out", str(tmp_path), *SMALL, "--workers", "1"]) == 0, "what the sentence says helps"
    assert tree(tmp_path) == tree(small)


def test_mme_asks_each_picture_a_yes_and_a_no(small):
    pairs: dict[str, list] = {}
    for row in table(small, "mme"):
        pairs.setdefault(row["question_id"], []).append(row)
    assert {row["category"] for rows in pairs.values() for row in rows} == {*benchmarks.PERCEPTION, *benchmarks.COGNITION}
    for rows in pairs.values():
        assert sorted(row["answer"] for row in rows) == ["No", "Yes"]
        assert len({row["question"] for row in rows}) == 2 and rows[0]["image"] == rows[1]["image"]


def test_people_agree_enough_for_a_full_score_and_answer_ids_differ(small):
    for row in table(small, "vqav2_val"):
        assert len({a["answer_id"] for a in row["answers"]}) == 10
        assert sum(a["answer"] == row["multiple_choice_answer"] for a in row["answers"]) >= 4
    assert all(len(row["answers"]) == 10 for row in table(small, "textvqa_val"))


def test_a_column_that_the_hub_does_not_have_is_refused(tmp_path):
    with pytest.raises(KeyError, match="no column"):
        hub_columns.write_rows(tmp_path / "x.parquet", "ai2d", [{"question": "", "options": [], "answer": "0", "picture": None}])


def test_memory_does_not_grow_with_the_world(tmp_path, monkeypatch):
    """Parts are made one at a time and gathered one at a time: sixteen large ones peak where two do."""
    monkeypatch.setattr(build, "CHUNK", 1)
    monkeypatch.setattr(benchmarks, "SETS", {"ai2d": benchmarks.SETS["ai2d"]})
    make_train_part = build._train_part

    def large(world, out, chunk):
        told = make_train_part(world, out, chunk)
        return {**told, "text": [f"{chunk} {i} {'word ' * 20}" for i in range(10_000)]}

    monkeypatch.setattr(build, "_train_part", large)
    peaks = []
    for name, train in (("warm", 1), ("few", 2), ("many", 16)):
        tracemalloc.start()
        build.make(build.World(0, train, 4), tmp_path / name, workers=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1], peaks


def test_nothing_imports_torch_and_help_is_light():
    heavy = ("torch", "transformers", "pandas", "datasets", "pyarrow", "numpy")
    code = f"import sys; from small_data.mini import build, sheet, __main__; assert not set({heavy}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


FROZEN = "d2e126c91cd37ce4fe3a6c165becea4c"


def test_the_generator_is_frozen():
    """What scenes look like and say. Later work on models may not move this without saying so: measured scores would no longer compare."""
    digest = hashlib.sha256()
    for family in families.FAMILIES:
        for i in range(12):
            scene = families.compose(family, families.stream("frozen", i))
            digest.update(picture.pixels(scene).encode())
            digest.update(repr((scene.questions, scene.subjects, scene.details)).encode())
            rng = families.stream("frozen words", i)
            digest.update(repr((captions.long(scene, rng), conversations.turns(scene, rng, DEFAULT))).encode())
    for name in benchmarks.SETS:
        for row in benchmarks.rows(name, 12, 0, DEFAULT):
            digest.update(json.dumps({k: v for k, v in row.items() if k != "image"}).encode())
    assert digest.hexdigest()[:32] == FROZEN
