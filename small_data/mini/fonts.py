"""The fonts of the mini world: five families from pinned packages, so that a picture has the same bytes on every machine.

All of them are under the SIL Open Font License. Their packages are never imported (they want setuptools): only the files are read.
"""

from functools import lru_cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

# style -> (package as pip names it, file); the styles are what OCRBench asks for: regular, artistic and handwritten text.
FONTS = {
    "sans": ("font-source-sans-pro", "SourceSansPro-Semibold.ttf"),
    "serif": ("font-source-serif-pro", "SourceSerifPro-Semibold.ttf"),
    "round": ("font-fredoka-one", "FredokaOne-Regular.ttf"),
    "hand": ("font-intuitive", "Intuitive.ttf"),
    "caps": ("font-amatic-sc", "AmaticSC-Bold.ttf"),
}


@lru_cache
def path(style: str) -> Path:
    """The font file of a style. Raises ValueError, naming the package to install, where it is missing."""
    package, file = FONTS[style]
    spec = find_spec(package.replace("-", "_"))
    found = Path(spec.origin).parent / "files" / file if spec and spec.origin else None
    if found is None or not found.is_file():
        raise ValueError(f"no font found for {style!r} text: {file} of the package {package} is missing: pip install 'genlip-eval[mini]'")
    return found


@lru_cache(maxsize=512)  # sizes are whole pixels: the cache stays small and memory flat
def font(style: str, size: int):
    """The font at `size` pixels. The basic layout engine is forced: whether libraqm is there must not move a glyph."""
    from PIL import ImageFont

    return ImageFont.truetype(str(path(style)), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8192)
def width(style: str, text: str) -> float:
    """Advance width of `text` in units of the font size."""
    return font(style, 100).getlength(text) / 100


def digests() -> dict[str, dict[str, str]]:
    """style -> package, file and the file's sha256: which fonts made the pictures."""
    return {s: {"package": p, "file": f, "sha256": sha256(path(s).read_bytes()).hexdigest()} for s, (p, f) in FONTS.items()}
