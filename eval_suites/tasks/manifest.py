"""The manifest of benchmark data that we make: what was made, by digest, so that a changed file is refused before it is asked."""

from collections.abc import Collection
from pathlib import Path

from genlip.common import digests
from genlip.common.files import read_json, sha256_json


def digest(told: dict) -> str:
    return sha256_json(told)


def verify(folder: Path, names: Collection[str] | None = None) -> dict:
    """The manifest of FOLDER (genlip-eval/mini), its benchmark files held against it: those of `names`, or all.

    ValueError for what is missing, changed or edited.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise ValueError(f"no manifest at {path}: make the mini world with `python -m small_data.mini --out DIR`")
    again = f"remove {folder} and make the mini world again: python -m small_data.mini --out {folder.parent.parent}"
    manifest = read_json(path, again, {"sets": dict})
    if digest({key: value for key, value in manifest.items() if key != "digest"}) != manifest.get("digest"):
        raise ValueError(f"{path} was edited: its digest is not that of its content; {again}")
    files = {name: folder / manifest["sets"][name]["file"] for name in (manifest["sets"] if names is None else sorted(names))}
    there = {name: file for name, file in files.items() if file.exists()}
    found = dict(zip(there, digests.of_files(list(there.values()))))
    for name, file in files.items():
        if found.get(name) != manifest["sets"][name]["sha256"]:
            raise ValueError(f"{file} of {name} is missing or not as it was made; {again}")
    return manifest
