"""A run folder belongs to one recipe: recipe.json is written before step 0 and held against every later start."""

import json
from dataclasses import asdict
from pathlib import Path

from .files import read_json, write_json


def claim_run_folder(recipe, accept_changes: bool | None = None) -> Path:
    """Write recipe.json into the run folder before step 0, or check that the run there is of this very recipe.

    Raises ValueError with the fields that differ: a run goes on only as it began, unless the changes are accepted
    (None: the command has no --accept-changes).
    """
    folder = Path(recipe.out)
    file = folder / "recipe.json"
    mine = json.loads(json.dumps(asdict(recipe)))
    if file.is_file():
        theirs = read_json(file)
        keys = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        if not keys:
            return folder
        changes = "; ".join(f"{k}: {theirs.get(k)!r} there, {mine.get(k)!r} asked" for k in keys)
        if not accept_changes:
            more = "" if accept_changes is None else ", or go on as asked with --accept-changes"
            raise ValueError(f"{folder} holds a run of another recipe ({changes}). Give another --out, or remove that folder{more}")
        print(f"going on with a changed recipe ({changes})")
    write_json(file, mine)
    return folder
