"""What was installed, and which commit of this project ran."""

import shutil
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version, without importing the package; "not installed" for one that is on the path alone, or absent."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The full hash of the commit that this code stands at, with `-dirty` behind it where files differ; None outside a clone."""
    if shutil.which("git") is None:  # many a container has none
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
