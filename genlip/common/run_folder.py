"""A run folder belongs to one recipe: recipe.json is written before step 0 and held against every later start."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .files import read_json, write_json
from .flags import flag


def claim_run_folder(recipe: Any, accept_changes: bool | None = None) -> Path:
    """Write recipe.json into the run folder before step 0, or check that the run there is of this very recipe.

    Raises ValueError with the fields that differ: a run goes on only as it began, unless the changes are accepted
    (None: the command has no --accept-changes).
    """
    folder = Path(recipe.out)
    file = folder / "recipe.json"
    mine = json.loads(json.dumps(asdict(recipe)))
    if file.is_file():
        theirs = read_json(file, "give another --out, or remove that folder", {})
        keys = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        if not keys:
            return folder
        there, asked = ({k: flag(k, r[k]) if k in r else f"no {flag(k)}" for k in keys} for r in (theirs, mine))
        changes = "; ".join(f"{there[k]} there, {asked[k]} asked" for k in keys)
        if not accept_changes:
            more = "" if accept_changes is None else ", or go on as asked with --accept-changes"
            raise ValueError(f"{folder} holds a run of another recipe ({changes}). Give another --out, or remove that folder{more}")
        print(f"going on with a changed recipe ({changes})")
    write_json(file, mine)
    return folder
