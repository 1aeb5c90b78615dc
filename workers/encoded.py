"""Encoded pictures: looked at before they are decoded, then decoded.

A few bytes can ask for hours: thousands of scans of a progressive JPEG, tiles of a TIFF that are larger than the
picture, parts without number that Pillow goes through one by one. What a picture will cost is read from its
structure, and refused there. The bounds are far above what cameras and programs write.

Decoded pixels are known before any are: at most 67 million a picture, 134 million a request, and as many for all
crops of a request, because a model copies what it scales. A dispatch of several requests is cut where it would decode
more at once than one request may; none is refused for its company. A video for a model with `max_frames = 1` is
refused undecoded.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from PIL import Image

from zoo.drawing.picture import FORMATS, upright
from zoo.errors import InvalidInput

MAX_SIDE = 16384
MAX_PIXELS = 1 << 26  # of one picture: 67 million; an 8K frame is half of it
MAX_REQUEST_PIXELS = 1 << 27  # of all pictures of a request, and of all its crops: 64 full HD frames
MAX_REQUEST_BYTES = 256 << 20  # of all its pictures, encoded
MAX_SCANS = 64  # of a JPEG; each goes over all of its pixels. 10 are usual in a progressive one
MAX_PARTS = 1 << 16  # segments, chunks, blocks, numbers in a tag
MAX_RUN_LENGTH_PIXELS, MAX_RUN_LENGTH_BYTES = 1 << 20, 1 << 22  # of a BMP with runs, which Pillow decodes in Python
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_BYTES = (1, 2, 6, 7)  # types of a TIFF's tags whose values are bytes


class Encoded:
    """A picture that may be decoded.

    Attributes:
        pixels: that decoding it goes over.
    """

    def __init__(self, raw: bytes) -> None:
        """Raises InvalidInput: not a picture in one of `FORMATS`, damaged, too large, or too dear to decode."""
        _look_at(raw)
        try:
            self._image = Image.open(io.BytesIO(raw), formats=FORMATS)
        except Image.DecompressionBombError:
            text = f"frame: the encoded image is too large; at most {MAX_PIXELS} pixels are taken"
            raise InvalidInput(text) from None
        except Exception:  # not Pillow's own where ultralytics is loaded: that replaces it
            raise _no_picture() from None
        width, height = self._image.size
        check_size(width, height)
        self.pixels = width * height
        if self._image.format == "TIFF":
            self.pixels = max(self.pixels, _tiled_pixels(self._image, width, height))
        if self._image.mode in ("I", "F"):
            raise InvalidInput("frame: the encoded image has 32 bits per channel; 8 and 16 are taken")

    def decode(self) -> np.ndarray:
        """As HxWx3 RGB uint8: see `zoo.drawing.picture.upright`. Works once.

        Raises:
            InvalidInput: it is cut off, or damaged.
        """
        try:
            with self._image as image:
                array = upright(image)
        except Exception as e:  # Pillow's plugins meet damaged data with whatever it leads them to
            raise InvalidInput(f"frame: the encoded image cannot be read: {type(e).__name__}: {e}") from None
        array.flags.writeable = False
        return array


def check_size(width: int, height: int) -> None:
    """Raises InvalidInput for a picture that is too large."""
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise InvalidInput(
            f"frame: {width}x{height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all are taken"
        )


def _look_at(raw: bytes) -> None:
    look = next((look for magic, look in LOOKS.items() if re.match(magic, raw, re.DOTALL)), None)
    if look is None:
        raise _no_picture()
    try:
        look(raw)
    except (struct.error, IndexError):
        raise _no_picture() from None


def _look_at_jpeg(raw: bytes) -> None:
    """Its scans, and that it is not one of endless small segments or padding."""
    at, scans = 2, 0
    for _ in range(MAX_PARTS):
        if at + 1 >= len(raw):
            return
        if scans:  # in the data of a scan FF is followed by 00 or a restart; whatever else follows is a marker
            found = _MARKER.search(raw, at)
            if found is None:
                return
            at = found.start()
        elif raw[at] != 0xFF or raw[at + 1] in (0x00, 0xFF):  # Pillow looks for the first markers byte by byte
            at += 1
            continue
        marker = raw[at + 1]
        if marker == 0xD9 and scans:
            return
        if marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise InvalidInput(f"frame: a JPEG of more than {MAX_SCANS} scans; so many are not decoded")
        at += 2
        if not (0xD0 <= marker <= 0xD9 or marker == 0x01):
            at += struct.unpack_from(">H", raw, at)[0]
    raise _too_many("JPEG", "segments")


def _look_at_webp(raw: bytes) -> None:
    """Its canvas, which is allocated when it is opened, and its frames, which are looked for then."""
    kind = raw[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(raw[at : at + 3], "little") for at in (24, 27))
        check_size(width, height)
    _count_chunks(raw, 12, "<4sI", 8, "WEBP", even=True)


def _look_at_gif(raw: bytes) -> None:
    """The blocks before its first picture, which Pillow goes through one by one."""
    flags = raw[10]
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    inside = False  # an extension, which consists of blocks and ends with an empty one
    for _ in range(MAX_PARTS):
        if at >= len(raw):
            return
        if inside:
            inside = raw[at] != 0
            at += 1 + raw[at]
        elif raw[at] == 0x2C:
            return
        else:
            inside = raw[at] == 0x21
            at += 2 if inside else 1
    raise _too_many("GIF", "blocks")


def _look_at_bmp(raw: bytes) -> None:
    header = struct.unpack_from("<I", raw, 14)[0]
    if header < 40:
        return  # without compression
    width, height = struct.unpack_from("<ii", raw, 18)
    compression = struct.unpack_from("<I", raw, 30)[0]
    if compression in (1, 2) and (abs(width * height) > MAX_RUN_LENGTH_PIXELS or len(raw) > MAX_RUN_LENGTH_BYTES):
        raise InvalidInput(
            f"frame: a BMP of {width}x{height} pixels with run lengths; at most {MAX_RUN_LENGTH_PIXELS} are taken"
        )


def _look_at_tiff(raw: bytes) -> None:
    """That no tag of its first directory holds numbers without end. Their tables are made when it is opened."""
    order, big = "<" if raw[:2] == b"II" else ">", raw[2:4] in (b"+\0", b"\0+")
    at = struct.unpack_from(order + ("Q" if big else "L"), raw, 8 if big else 4)[0]
    tags = struct.unpack_from(order + ("Q" if big else "H"), raw, at)[0]
    if tags > 4096:
        raise _too_many("TIFF", "tags")
    entry = struct.Struct(order + ("HHQ8s" if big else "HHL4s"))
    at += 8 if big else 2
    for number in range(tags):
        _, kind, count, _ = entry.unpack_from(raw, at + number * entry.size)
        if count > MAX_PARTS and kind not in _BYTES:
            raise _too_many("TIFF", "strips, tiles or numbers in a tag")


def _tiled_pixels(image: Image.Image, width: int, height: int) -> int:
    """Pixels of all tiles together, which are decoded whole."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    tile_width, tile_height = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    if tile_width is None or tile_height is None:
        return 0
    if not (isinstance(tile_width, int) and isinstance(tile_height, int) and tile_width > 0 and tile_height > 0):
        raise _no_picture()
    tiles = -(-width // tile_width) * -(-height // tile_height)
    if tiles * tile_width * tile_height > MAX_PIXELS:
        raise InvalidInput(
            f"frame: a TIFF of {tiles} tiles of {tile_width}x{tile_height} pixels; at most {MAX_PIXELS} pixels are "
            "decoded"
        )
    return tiles * tile_width * tile_height


def _count_chunks(raw: bytes, at: int, layout: str, around: int, kind: str, *, even: bool = False) -> None:
    """Goes from chunk to chunk, as Pillow or a library under it will do. `around`: bytes beside a chunk's data."""
    header = struct.Struct(layout)
    for _ in range(MAX_PARTS):
        if at + header.size > len(raw):
            return
        size = next(value for value in header.unpack_from(raw, at) if isinstance(value, int))
        at += around + size + (size & 1 if even else 0)
    raise _too_many(kind, "chunks")


def _too_many(kind: str, what: str) -> InvalidInput:
    return InvalidInput(f"frame: a {kind} of more than {MAX_PARTS} {what}")


def _no_picture() -> InvalidInput:
    return InvalidInput(f"frame: not an image, or damaged: these bytes are none of {', '.join(FORMATS)}")


LOOKS = {  # how the bytes of a format begin → what is looked at before Pillow opens them
    rb"\xff\xd8": _look_at_jpeg,
    rb"\x89PNG\r\n\x1a\n": lambda raw: _count_chunks(raw, 8, ">I4s", 12, "PNG"),
    rb"RIFF....WEBP": _look_at_webp,
    rb"GIF8": _look_at_gif,
    rb"BM": _look_at_bmp,
    rb"II[*+]\0|MM\0[*+]": _look_at_tiff,
}
