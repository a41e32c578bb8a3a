"""Bring a mix's data from the hub to where its file looks for them: a login node's job, before an air-gapped one trains.

    python -m train_mllm.fetch onevision-single-image --data-root data --dry-run      # bytes and hours; brings nothing
    python -m train_mllm.fetch onevision-single-image --data-root data                # goes on after a stop
    python -m train_mllm.prepare_data data/onevision-single-image.yaml --out data/sft

Only the mix's own files are brought, as a hub snapshot lies: ROOT/<org>/<set>/... Pictures in archives are unpacked beside their JSON.
The mix's file lands in ROOT last, so one that is there says that all is there. Three mixes come along (train_mllm/mixes); a file of one's
own is taken too: its paths are <org>/<set>/<folder or file>.
"""

import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from genlip.common.command import command, new_parser
from genlip.common.files import write_file
from genlip.common.hub import offline, snapshot
from genlip.common.sources import SUFFIXES, mix_entries
from genlip.common.suggest import choose

MIXES = {file.stem: file for file in sorted((Path(__file__).parent / "mixes").glob("*.yaml"))}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
LINE = 1e9 / 8  # bytes a second of the line that hours are said for
UNPACKED = ".unpacked"  # written beside an archive once all of it is unpacked


def mix_file(name: str) -> Path:
    """The file of a mix that comes along, or of one's own. ValueError for an unknown one."""
    return Path(name) if name.endswith((".yaml", ".yml")) else MIXES[choose(name, MIXES, "mix")]


def wanted(file: Path) -> dict[str, list[str]]:
    """Repository -> patterns of the files that a mix takes from it. ValueError where an entry names none."""
    found: dict[str, list[str]] = {}
    for entry in mix_entries(file)[1]:
        if not entry.get("published", True):
            continue
        organisation, *rest = Path(entry["json_path"]).parts
        if Path(entry["json_path"]).is_absolute() or len(rest) < 2:
            raise ValueError(f"{file}: {entry['json_path']} does not say where it lies on the hub: write <org>/<set>/<folder or file>")
        inside = "/".join(rest[1:])
        patterns = [inside, *entry.get("archives", [])] if inside.endswith(SUFFIXES) else [f"{inside}/*"]
        found.setdefault(f"{organisation}/{rest[0]}", []).extend(patterns)
    return found


def planned(repository: str, patterns: list[str], root: Path) -> list[Any]:
    """huggingface_hub's plan for these files: their sizes, and which of them are there. ValueError where the hub has none of them."""
    plan = snapshot(repository, repo_type="dataset", local_dir=root / repository, allow_patterns=patterns, dry_run=True)
    for pattern in patterns:
        if not any(file.filename == pattern or file.filename.startswith(pattern.removesuffix("*")) for file in plan):
            raise ValueError(f"{repository} has nothing under {pattern} (any more): correct the mix's path")
    return plan


def sizes(plan: list[Any]) -> tuple[int, int]:
    """(bytes to bring, bytes in all)."""
    return sum(file.file_size or 0 for file in plan if file.will_download), sum(file.file_size or 0 for file in plan)


def download(repository: str, patterns: list[str], root: Path, plan: list[Any]) -> None:
    """Bring the plan's files, all of one commit. ValueError where one is not there afterwards as the hub has it."""
    folder = root / repository
    snapshot(repository, repo_type="dataset", local_dir=folder, allow_patterns=patterns, revision=plan[0].commit_hash)
    wrong = [f.filename for f in plan if not (folder / f.filename).is_file() or (folder / f.filename).stat().st_size != f.file_size]
    if wrong:
        raise ValueError(f"{len(wrong)} files of {repository} are not as the hub has them (first: {', '.join(wrong[:3])}): run this again")


def unpack(folder: Path, plan: list[Any]) -> None:
    """Unpack each of the plan's archives beside itself, unless that is done. Nothing leaves its folder. ValueError for a broken one."""
    for archive in (folder / file.filename for file in plan if file.filename.endswith(ARCHIVES)):
        done = archive.with_name(archive.name + UNPACKED)
        if done.is_file() and done.read_text() == str(archive.stat().st_size):
            continue
        print(f"unpacking {archive} ...", flush=True)
        try:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as packed:
                    packed.extractall(archive.parent)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(archive.parent, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{archive} cannot be unpacked ({error}): remove it, and run this again") from error
        write_file(done, str(archive.stat().st_size))


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m train_mllm.fetch",
        description="Bring the data of a mix from the hub.",
        epilog="example: python -m train_mllm.fetch onevision-single-image --data-root /data/hub --dry-run",
    )
    parser.add_argument("mix", help=f"{', '.join(MIXES)}, or a YAML file whose paths are <org>/<set>/<folder or file>")
    parser.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR", help="DIR/<org>/<set>/... (default: data)")
    parser.add_argument("--dry-run", action="store_true", help="say bytes and hours, bring nothing; asks the hub")
    args = parser.parse_args(argv)
    file, root = mix_file(args.mix), args.data_root
    sets = wanted(file)
    if offline() and args.dry_run:
        for repository, patterns in sets.items():
            print(f"{repository}: {len(patterns)} parts; the hub says their bytes, and HF_HUB_OFFLINE is set here")
        return 0
    if offline():
        raise ValueError(f"HF_HUB_OFFLINE is set and {file.stem} comes from the hub: run this where it is reached, and copy {root} here")
    plans = {repository: planned(repository, patterns, root) for repository, patterns in sets.items()}
    for repository, plan in plans.items():
        lacks, whole = sizes(plan)
        print(f"{repository}: {len(plan)} files, {whole / 1e9:.1f} GB, {lacks / 1e9:.1f} GB of them to bring")
    lacks = sum(sizes(plan)[0] for plan in plans.values())
    packed = sum(f.file_size or 0 for plan in plans.values() for f in plan if f.filename.endswith(ARCHIVES))
    hours = lacks / LINE / 3600
    print(f"in all {lacks / 1e9:.1f} GB to bring, {hours:.1f} h at 1 Gbit/s; {packed / 1e9:.1f} GB of archives to unpack", flush=True)
    if args.dry_run:
        return 0
    free = shutil.disk_usage(next(p for p in (root, *root.absolute().parents) if p.is_dir())).free
    if (needed := lacks + packed) > free:
        raise ValueError(f"{root} has room for {free / 1e9:.1f} GB of {needed / 1e9:.1f} GB: give --data-root on a larger disk")
    for repository, plan in plans.items():
        download(repository, sets[repository], root, plan)
        unpack(root / repository, plan)
    write_file(root / file.name, file.read_bytes())
    print(f"{root / file.name}: all there; train with --data {root / file.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
