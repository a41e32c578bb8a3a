"""Is a picture whole? Told from its first and last bytes, without decoding it; what looks odd is decoded to be sure. Torch-free.

A JPEG or PNG that was cut short lacks its end marker, and one that is none lacks its header: reading both costs a hundredth of
decoding. Only damage in the middle needs a full decode (`full=True`, the flag --decode of train_mllm.prepare_data).
"""

import io
import struct

MAX_PIXELS = 178_956_970  # where PIL refuses too: a few such pictures fill a machine's memory
SEGMENT, SIDES = struct.Struct(">BBH"), struct.Struct(">HH")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
TAIL = 64  # bytes at the end among which the end marker must be: some cameras and tools pad behind it


def check_image(data: bytes | memoryview, full: bool = False) -> tuple[int, int]:
    """(width, height) of a whole picture. Raises ValueError with the reason, under which the row is counted."""
    size = None if full else _scan(data)
    if size is None:
        size = _decode(data)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError("picture too large")
    return size


def _scan(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) where header and end marker of a JPEG or PNG are in place, None where only decoding can tell."""
    head, tail = bytes(data[:24]), bytes(data[-TAIL:])
    if head[:3] == b"\xff\xd8\xff" and b"\xff\xd9" in tail:
        return _jpeg_size(data)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR" and b"IEND" in tail:
        width, height = struct.unpack(">II", head[16:24])
        return (width, height) if width and height else None
    return None


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(height and width stand in the frame header, behind segments of stated length), None where there is no such header."""
    at = 2
    while at + 9 < len(data):
        start, marker, length = SEGMENT.unpack_from(data, at)
        if start != 0xFF:
            return None
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in FRAMES:
            height, width = SIDES.unpack_from(data, at + 5)
            return (width, height) if width and height else None
        else:
            at += 2 + length
    return None


def _decode(data: bytes | memoryview) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height <= MAX_PIXELS:
                image.load()
            return image.size
    except Image.DecompressionBombError as e:
        raise ValueError("picture too large") from e
    except (OSError, SyntaxError, ValueError, struct.error) as e:
        raise ValueError("undecodable picture") from e
