"""Is a picture whole, and of which kind? Told from its first and last bytes, without decoding it; what looks odd is decoded, as training
will (llava_plugin/pictures.py), to be sure. Torch-free.

A JPEG or PNG that was cut short lacks its end marker, and one that is none lacks its header: reading both costs a hundredth of
decoding. Only damage in the middle needs a full decode (`full=True`, the flag --decode of train_mllm.prepare_data).
"""

import struct
from typing import NamedTuple

SEGMENT, SIDES = struct.Struct(">BBH"), struct.Struct(">HH")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # by the number of components
PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}  # by the colour type
TAIL = 64  # bytes at the end among which the end marker must be: some cameras and tools pad behind it


class ImageFacts(NamedTuple):
    width: int
    height: int
    mode: str  # Pillow's name

    @property
    def note(self) -> str | None:
        """What the ledger counts of it where it is used and unusual."""
        from llava_plugin.pictures import unusual

        return unusual(self.mode)


def check_image(data: bytes | memoryview, full: bool = False) -> ImageFacts:
    """Of a whole picture. Raises ValueError with the reason, under which the row is counted."""
    from llava_plugin.pictures import MAX_PIXELS, read_picture

    facts = None if full else _scan(data)
    if facts is None:
        image, mode = read_picture(data)
        return ImageFacts(*image.size, mode)
    if facts.width * facts.height > MAX_PIXELS:
        raise ValueError("too many pixels")
    return facts


def _scan(data: bytes | memoryview) -> ImageFacts | None:
    """Where header and end marker of a JPEG or PNG are in place; None where only decoding can tell."""
    head, tail = bytes(data[:26]), bytes(data[-TAIL:])
    if head[:3] == b"\xff\xd8\xff" and b"\xff\xd9" in tail:
        return _jpeg(data)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR" and b"IEND" in tail:
        width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
        mode = {1: "1", 16: "I;16"}.get(depth, "L") if colour == 0 else PNG_MODES.get(colour)
        return ImageFacts(width, height, mode) if width and height and mode else None
    return None


def _jpeg(data: bytes | memoryview) -> ImageFacts | None:
    """All stands in the frame header, behind segments of stated length; None where there is no such header."""
    at = 2
    while at + 9 < len(data):
        start, marker, length = SEGMENT.unpack_from(data, at)
        if start != 0xFF:
            return None
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in FRAMES:
            height, width = SIDES.unpack_from(data, at + 5)
            mode = JPEG_MODES.get(data[at + 9])
            return ImageFacts(width, height, mode) if width and height and mode else None
        else:
            at += 2 + length
    return None
