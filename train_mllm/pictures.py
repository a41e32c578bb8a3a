"""Is a picture whole? Told from its first and last bytes, without decoding it; what looks odd is decoded to be sure. Torch-free.

A JPEG or PNG that was cut short lacks its end marker, and one that is none lacks its header: reading both costs a hundredth of
decoding. Only damage in the middle needs a full decode (`full=True`, the flag --decode of train_mllm.prepare_data).
"""

import io
import struct

MAX_PIXELS = 178_956_970  # where PIL refuses too: a few such pictures fill a machine's memory
TAIL = 64  # bytes at the end among which the end marker must be: some cameras and tools pad behind it


def check(data: bytes | memoryview, full: bool = False) -> tuple[int, int]:
    """(width, height) of a whole picture. Raises ValueError with the reason, under which the row is counted."""
    size = None if full else _scan(data)
    if size is None:
        size = _decode(data)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError("picture too large")
    return size


def _scan(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) where header and end marker of a JPEG or PNG are in place, None where only decoding can tell."""
    if data[:3] == b"\xff\xd8\xff" and b"\xff\xd9" in bytes(data[-TAIL:]):
        return _jpeg_size(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and b"IEND" in bytes(data[-TAIL:]):
        width, height = struct.unpack(">II", data[16:24])
        return (width, height) if width and height else None
    return None


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(height and width stand in the frame header, behind segments of stated length), None where there is no such header."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return (width, height) if width and height else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
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
