"""Mixes as files: their totals are their entries' arithmetic; the ledger of data that lie as on the hub is the YAML's, to the row."""

import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from genlip.common.sources import mix_entries, sample
from train_mllm import fetch
from train_mllm.prepare_data import main as prepare_main
from train_mllm.prepare_data import prepare

ONEVISION = fetch.MIXES["onevision-single-image"]


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), shade % 256).save(stream, "PNG")
    return stream.getvalue()


def taken(entry: dict) -> int:
    return len(sample(entry.get("sampling_strategy", "all"), entry["rows"], ""))


@pytest.mark.parametrize("name", fetch.MIXES)
def test_a_mixs_totals_are_its_entries_arithmetic(name):
    said, entries = mix_entries(fetch.MIXES[name])
    assert said["authors"] == sum(map(taken, entries))
    assert said["obtainable"] == sum(taken(entry) for entry in entries if entry.get("published", True))
    assert len({entry["json_path"] for entry in entries}) == len(entries)


def test_onevision_is_what_llava_next_samples():
    said, entries = mix_entries(ONEVISION)
    assert len(entries) == 90 and sum("sampling_strategy" in entry for entry in entries) == 17
    rules = {Path(entry["json_path"]).name: entry.get("sampling_strategy", "all") for entry in entries}
    for name in ("dvqa", "figureqa", "clevr"):
        assert rules[f"{name}(cauldron,llava_format)"] == "first:1%"
    assert rules["tallyqa(cauldron,llava_format)"] == "first:10%" and rules["chartqa(cauldron,llava_format)"] == "all"
    lacking = [entry for entry in entries if not entry.get("published", True)]
    assert len(lacking) == 6 and 112_000 < sum(map(taken, lacking)) < 112_200
    assert (round(said["authors"], -4), round(said["obtainable"], -4)) == (3_250_000, 3_140_000)


# --- a stand-in of the hub --------------------------------------------------------------------------------------------------


def turns(i: int) -> list[dict]:
    return [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"answer {i}"}]


def write_parquet(folder: Path, rows: int) -> None:
    half = rows // 2
    for k, numbers in enumerate((range(half), range(half, rows))):
        table = [{"id": f"{folder.name}-{i}", "image": {"bytes": png(i), "path": None}, "conversations": turns(i)} for i in numbers]
        if table:
            pq.write_table(pa.Table.from_pylist(table), folder / f"train-{k:05}-of-00002.parquet")


def write_json_and_archives(folder: Path, rows: int, form: str) -> None:
    said = [{"id": str(i), "image": f"{folder.name}/{i}.png", "conversations": turns(i)} for i in range(rows)]
    (folder / f"{folder.name}_processed.json").write_text(json.dumps(said))
    for k in range(2):
        names = [(f"{folder.name}/{i}.png", png(i)) for i in range(k, rows, 2)]
        if form == "zip":
            with zipfile.ZipFile(folder / f"{folder.name}_images_{k}.zip", "w") as packed:
                for name, data in names:
                    packed.writestr(name, data)
            continue
        with tarfile.open(folder / f"{folder.name}_images_{k}.tar.gz", "w:gz") as packed:
            for name, data in names:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                packed.addfile(info, io.BytesIO(data))


@dataclass
class Planned:
    filename: str
    file_size: int
    will_download: bool
    commit_hash: str = "c0ffee"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of repositories in place of the hub; `.stop_after` files a download ends with an error."""
    monkeypatch.delenv("HF_HUB_OFFLINE")

    class Hub:
        root, stop_after, asked = tmp_path / "hub", None, []

        def snapshot(self, repository, repo_type, local_dir, allow_patterns, dry_run=False, revision=None):
            files = [f for f in sorted((self.root / repository).rglob("*")) if f.is_file()]
            names = [str(f.relative_to(self.root / repository)) for f in files]
            chosen = [(n, f) for n, f in zip(names, files) if any(fnmatch(n, p) for p in allow_patterns)]
            if dry_run:
                return [Planned(n, f.stat().st_size, not (local_dir / n).is_file()) for n, f in chosen]
            assert revision == "c0ffee"
            for k, (name, file) in enumerate(chosen):
                if k == self.stop_after:
                    raise KeyboardInterrupt
                if not (local_dir / name).is_file():
                    self.asked.append(name)
                    (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, local_dir / name)
            return None

    found = Hub()
    monkeypatch.setattr(fetch, "snapshot", found.snapshot)
    return found


def stand_in(hub, folder: Path, scale: int) -> tuple[Path, list[dict]]:
    """OneVision's mix with its counts divided by `scale`, and a hub that holds it: four sets are JSON and archives, the others parquet."""
    said, entries = mix_entries(ONEVISION)
    entries = [entry | {"rows": -(-entry["rows"] // scale)} for entry in entries]
    said = said | {"datasets": entries, "authors": sum(map(taken, entries))}
    published = [entry for entry in entries if entry.get("published", True)]
    said["obtainable"] = sum(map(taken, published))
    for entry in published:
        place = hub.root / entry["json_path"]
        place.mkdir(parents=True)
        form = {"ureader_qa": "zip", "ureader_kg": "zip", "cambrian(filtered)": "tar", "llava_next_raw_format": "tar"}.get(place.name)
        write_json_and_archives(place, entry["rows"], form) if form else write_parquet(place, entry["rows"])
    beside = hub.root / "lmms-lab/LLaVA-OneVision-Data"  # of no mix: not to be brought
    (beside / "sroie").mkdir()
    write_parquet(beside / "sroie", 3)
    (beside / "README.md").write_text("a card")
    file = folder / "onevision.yaml"
    file.write_text(yaml.safe_dump(said, sort_keys=False))
    return file, published


def test_the_onevision_mix_from_the_hubs_layout_to_the_row(tmp_path, hub, capsys):
    file, published = stand_in(hub, tmp_path, scale=4000)
    root = tmp_path / "root"
    assert fetch.main([str(file), "--data-root", str(root), "--dry-run"]) == 0 and not root.exists()
    assert "GB to bring" in capsys.readouterr().out
    hub.stop_after = 60
    assert fetch.main([str(file), "--data-root", str(root)]) == 130 and not (root / file.name).exists()
    hub.stop_after = None
    assert fetch.main([str(file), "--data-root", str(root)]) == 0
    assert len(hub.asked) == len(set(hub.asked)) and not any("sroie" in name or "README" in name for name in hub.asked)
    assert fetch.main([str(file), "--data-root", str(root)]) == 0, "nothing is brought or unpacked twice"

    ledger = prepare(str(root / file.name), "", str(tmp_path / "out"), workers=1)
    found = {s["name"]: (s["expected"], s["rows"], s["taken"], s["used"], s["skipped"]) for s in ledger["sources"]}
    assert found == {Path(e["json_path"]).name: (e["rows"], e["rows"], taken(e), taken(e), {}) for e in published} and len(found) == 84
    assert ledger["used"] == ledger["read"] == sum(map(taken, published)) == ledger["mix"]["obtainable"]
    assert len(ledger["mix"]["unpublished"]) == 6 and ledger["mix"]["authors"] > ledger["mix"]["obtainable"]
    assert prepare_main(["show", str(tmp_path / "out"), "--samples", "0"]) == 0
    assert "can be had" in capsys.readouterr().out

    # A set that lost rows: below a hundredth of the whole it is taken and shown, above it is refused.
    name = "lmms-lab/LLaVA-OneVision-Data/vision_flan(filtered)"
    (root / name / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"takes \d+ rows here, and says that \d+ can be had \(vision_flan\(filtered\) holds \d+ of \d+"):
        prepare(str(root / file.name), "", str(tmp_path / "less"), workers=1)
    less = prepare(str(root / file.name), "", str(tmp_path / "less"), workers=1, accept_mix=True)
    assert less["used"] < ledger["used"]


def test_an_archive_that_is_broken_or_leads_outside_is_refused(tmp_path, hub, capsys):
    file = tmp_path / "mix.yaml"
    file.write_text("datasets:\n- {json_path: org/set/sub}\n")
    place = hub.root / "org/set/sub"
    place.mkdir(parents=True)
    (place / "a.json").write_text(json.dumps([{"conversations": turns(0)}]))
    (place / "b.tar.gz").write_bytes(b"\x1f\x8b broken")
    assert fetch.main([str(file), "--data-root", str(tmp_path / "root")]) == 2 and "cannot be unpacked" in capsys.readouterr().err
    with tarfile.open(place / "b.tar.gz", "w:gz") as packed:
        info = tarfile.TarInfo("../../../../out.txt")
        packed.addfile(info, io.BytesIO())
    shutil.rmtree(tmp_path / "root")
    assert fetch.main([str(file), "--data-root", str(tmp_path / "root")]) == 2 and "cannot be unpacked" in capsys.readouterr().err
    assert not list(tmp_path.rglob("out.txt"))


NOWHERE = "where it lies on the hub"


@pytest.mark.parametrize(("path", "said"), [("/data/a.json", NOWHERE), ("a.json", NOWHERE), ("org/set/gone", "has nothing under gone")])
def test_a_mix_that_cannot_be_brought_is_refused(tmp_path, hub, capsys, path, said):
    (hub.root / "org/set/sub").mkdir(parents=True)
    (hub.root / "org/set/sub/a.json").write_text("[]")
    (tmp_path / "mix.yaml").write_text(f"datasets:\n- {{json_path: {path}}}\n")
    assert fetch.main([str(tmp_path / "mix.yaml"), "--data-root", str(tmp_path / "root")]) == 2 and said in capsys.readouterr().err


def test_an_unknown_mix_and_a_machine_without_a_hub(tmp_path, capsys, monkeypatch):
    assert fetch.main(["onevision"]) == 2 and "onevision-single-image" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch.main(["llava-next-780k", "--data-root", str(tmp_path)]) == 2 and "HF_HUB_OFFLINE is set" in capsys.readouterr().err
