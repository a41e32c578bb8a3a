"""What an encoder is shown of a picture: the whole as a square, its own crop, tiles (anyres), or its own shape (native). Pure geometry.

    view = asked("anyres_max_9 (1x1),...,(2x2)", tile=336, tokens=576)
    grid_of(view, 480, 640, tile=336)               # (2, 2): tiles across and down
    tokens(spec, 480, 640)                          # of the picture in a prompt, by the spec's view

    square   resized as a whole
    crop     as the encoder's own processor does (pictures.py)
    anyres   LLaVA-NeXT's rule (df17966): the whole as a square tile first; then the picture in the grid of tiles that keeps most of it,
             black around it; its features laid out as one map, what was black cut off, a learned newline behind every row, and by
             anyres_max_N the map shrunk where it is larger than N tiles
    native   at its own aspect ratio, at most so many tokens

A view as text (`anyres_max_9 (1x2),(2x1)`: tiles across x down; `native_576`) is a field of an encoder's spec, and stands so in an export's
config.json and provenance.json. Held against LLaVA-NeXT's own functions: tests/llava_plugin/data/anyres.json. Differences: tiles of any
size; of several pictures in one conversation each is seen so (LLaVA-NeXT pads them to squares in training, not in evaluation).
"""

import functools
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .encoders.families import native_grid

if TYPE_CHECKING:
    from .encoders import EncoderSpec

# Of LLaVA-NeXT's scripts, in their order: (336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008).
FIVE_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
SHRINKS_ABOVE = 1.1  # times as long a side as `max_tiles` tiles have
FORMS = "square, crop, anyres, anyres_max_N or native_N"


@dataclass(frozen=True)
class View:
    kind: str  # "square", "crop", "anyres" or "native"
    grids: tuple[tuple[int, int], ...] = ()  # anyres: tiles across and down; the first of two that are equally good is taken
    max_tiles: int = 0  # anyres_max_N; 0: features are never shrunk
    max_tokens: int = 0  # native

    def __str__(self) -> str:
        if self.kind == "native":
            return f"native_{self.max_tokens}"
        limit = f"_max_{self.max_tiles}" if self.max_tiles else ""
        return self.kind + limit + self.grids_in_words

    @property
    def grids_in_words(self) -> str:
        return " " * bool(self.grids) + ",".join(f"({across}x{down})" for across, down in self.grids)

    @property
    def by_size(self) -> bool:
        """Whether a picture's tokens depend on its size."""
        return self.kind in ("anyres", "native")


def asked(text: str, tile: int, tokens: int) -> View:
    """What a user's words mean for an encoder of tiles of so many pixels a side and so many tokens. Behind `anyres` or `anyres_max_N`
    LLaVA-NeXT's image_grid_pinpoints may follow: a list of (width, height) in pixels, or "(1x1),...,(NxM)", all grids between, in tiles;
    the five of its scripts without. `native` has as many tokens as the square. ValueError for other words, and for pixels that are no
    whole tiles.
    """
    words, _, pinpoints = text.strip().partition(" ")
    found = re.fullmatch(r"(square|crop|anyres|native)(?:_max_(\d+))?(?:_(\d+))?", words)
    kind, tiles, cap = (found[1], int(found[2] or 0), int(found[3] or 0)) if found else ("", 0, 0)
    if not found or (tiles and kind != "anyres") or (cap and kind != "native") or (pinpoints and kind != "anyres"):
        raise ValueError(f"--view {text!r} is not known: {FORMS}; --pinpoints goes with anyres alone")
    if kind == "native":
        return View(kind, max_tokens=cap or tokens)
    return View(kind, _grids(pinpoints.replace(" ", ""), tile) if kind == "anyres" else (), tiles)


@functools.lru_cache
def parse(text: str) -> View:
    """The view that a spec names."""
    return asked(text, 1, 0)


def _grids(pinpoints: str, tile: int) -> tuple[tuple[int, int], ...]:
    pairs = [(int(across), int(down)) for across, down in re.findall(r"\((\d+)x(\d+)\)", pinpoints)]
    if not pinpoints:
        return FIVE_GRIDS
    if re.fullmatch(r"\(\d+x\d+\),\.\.\.,\(\d+x\d+\)", pinpoints):
        (across, down), (to_across, to_down) = pairs
        pairs = [(i, j) for i in range(across, to_across + 1) for j in range(down, to_down + 1)]
    elif not re.fullmatch(r"(\(\d+x\d+\),?)+", pinpoints):
        pairs = [_whole_tiles(*sides, pinpoints, tile) for sides in _pixels(pinpoints, tile)]
    if not pairs or min(map(min, pairs)) < 1:
        raise ValueError(f"--pinpoints {pinpoints!r} names no grid of at least 1 x 1 tiles")
    return tuple(pairs)


def _pixels(pinpoints: str, tile: int) -> list[tuple[int, int]]:
    try:
        return [(int(width), int(height)) for width, height in json.loads(pinpoints.replace("(", "[").replace(")", "]"))]
    except (ValueError, TypeError) as e:
        raise ValueError(
            f"--pinpoints {pinpoints!r} is neither a list of sizes in pixels, [[{tile}, {2 * tile}], [{2 * tile}, {tile}]], nor grids of "
            "tiles, (1x2),(2x1), nor a range of those, (1x1),...,(2x2)"
        ) from e


def _whole_tiles(width: int, height: int, pinpoints: str, tile: int) -> tuple[int, int]:
    if width % tile or height % tile:
        raise ValueError(
            f"--pinpoints {pinpoints}: {width} x {height} is no whole number of tiles of {tile} pixels, the encoder's resolution"
        )
    return width // tile, height // tile


# --- anyres -----------------------------------------------------------------------------------------------------------------


def grid_of(view: View, height: int, width: int, tile: int) -> tuple[int, int]:
    """Tiles across and down for a picture of so many pixels: those that keep most of its pixels, then those that waste least."""
    best, most, least = view.grids[0], 0, math.inf
    for across, down in view.grids:
        room_w, room_h = across * tile, down * tile
        scale = min(room_w / width, room_h / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = room_w * room_h - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = (across, down), kept, wasted
    return best


def fitted(height: int, width: int, room_height: int, room_width: int) -> tuple[int, int]:
    """Height and width of a picture that fills one side of its room and keeps its shape."""
    scale_w, scale_h = room_width / width, room_height / height
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), room_height), room_width
    return room_height, min(math.ceil(width * scale_h), room_width)


def unpadded(height: int, width: int, rows: int, columns: int) -> tuple[slice, slice]:
    """The rows and columns of a map of features that hold the picture. Of a very long one none may be left but newlines."""
    if width / height > columns / rows:
        cut = (rows - int(height * (columns / width))) // 2
        return slice(cut, rows - cut), slice(0, columns)
    cut = (columns - int(width * (rows / height))) // 2
    return slice(0, rows), slice(cut, columns - cut)


def shrunk(view: View, rows: int, columns: int, side: int) -> tuple[int, int]:
    """Rows and columns of a map of features after `anyres_max`."""
    times = math.sqrt(rows * columns / (view.max_tiles * side**2)) if view.max_tiles else 0
    return (int(rows // times), int(columns // times)) if times > SHRINKS_ABOVE else (rows, columns)


def map_of(view: View, height: int, width: int, tile: int, side: int) -> tuple[int, int]:
    """Rows and columns of a picture's features beside the first tile, as the language model reads them, without newlines."""
    across, down = grid_of(view, height, width, tile)
    rows, columns = unpadded(height, width, down * side, across * side)
    return shrunk(view, rows.stop - rows.start, columns.stop - columns.start, side)


# --- any view ---------------------------------------------------------------------------------------------------------------


def tokens(spec: "EncoderSpec", height: int, width: int, joined: int = 1) -> int:
    """Of an upright picture of so many pixels in a prompt, behind a projector that joins `joined` to one."""
    view = parse(spec.view)
    if view.kind == "native":
        return math.prod(native_grid(spec.family, height, width, spec.patch_size, view.max_tokens))
    if view.kind == "anyres":
        side = math.isqrt(spec.tokens // joined)
        rows, columns = map_of(view, height, width, spec.resolution, side)
        return side**2 + rows * (columns + 1)
    return spec.tokens // joined


def most_tokens(spec: "EncoderSpec", joined: int = 1) -> int:
    """Of any picture in a prompt: by anyres of one that fills a grid, or would just not be shrunk."""
    view, tile = parse(spec.view), spec.tokens // joined
    if view.kind != "anyres":
        return view.max_tokens or tile
    limit = int(SHRINKS_ABOVE**2 * view.max_tiles * tile) if view.max_tiles else math.inf
    return tile + max(int(min(across * down * tile, limit)) + down * math.isqrt(tile) for across, down in view.grids)


def parts(spec: "EncoderSpec", height: int, width: int) -> int:
    """Rows of a picture's features, as they are kept: one, by anyres its tiles, at its own shape its tokens."""
    view = parse(spec.view)
    if view.kind == "anyres":
        return 1 + math.prod(grid_of(view, height, width, spec.resolution))
    return tokens(spec, height, width) if view.kind == "native" else 1


def most_tiles(spec: "EncoderSpec") -> int:
    """Squares that the encoder goes through for a picture, at most."""
    return 1 + max((across * down for across, down in parse(spec.view).grids), default=0)


def in_words(spec: "EncoderSpec") -> str:
    """What the line on a picture's size says of the view, for one that depends on it."""
    view = parse(spec.view)
    if view.kind == "native":
        return f"view native: each at its own aspect ratio, at most {view.max_tokens} tokens"
    shrunk = f", shrunk to {view.max_tiles}" if view.max_tiles else ""
    return f"view anyres: such a tile of the whole and those of a grid,{view.grids_in_words}{shrunk}; at most {most_tokens(spec)} tokens"
