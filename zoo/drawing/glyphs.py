"""Words in pictures: which font has their letters, and what stands for those that none has.

Pillow's own font knows little more than ASCII. For other letters the fonts of the system are looked through, by the
names under which they are usually installed (fonts-noto-cjk or fonts-wqy-microhei for Chinese). A letter that none of
them has is written as its number, such as \\u4eac: an empty box would look like an answer.
"""

from __future__ import annotations

import contextlib
import unicodedata
from functools import lru_cache
from typing import Any

from PIL import ImageFont

# In this order. Pillow looks for them where fonts are on Linux (~/.local/share/fonts too), macOS and Windows.
FONTS = (
    "DejaVuSans.ttf",  # Greek, Cyrillic, arrows
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "NotoSansSC-Regular.ttf",
    "SourceHanSansSC-Regular.otf", "SourceHanSansCN-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "unifont.otf", "unifont.ttf",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "msyh.ttc", "simsun.ttc", "malgun.ttf",
)  # fmt: skip
NO_CHARACTER = "\U0010ffff"  # never one, so that every font draws it as what it draws for those it has not


def fitted(text: str, size: int) -> tuple[str, Any]:
    """The text as one line that can be drawn, and the font that has the most of its letters."""
    text = "".join(" " if c.isspace() else c for c in text)
    best, fewest = font(size), _lacking("", text)
    for path in installed() if fewest else ():
        lacking = _lacking(path, text)
        if len(lacking) < len(fewest):
            best, fewest = font(size, path), lacking
        if not fewest:
            break
    return "".join(_number(c) if c in fewest else c for c in text), best


@lru_cache(maxsize=64)
def font(size: int, path: str = "") -> Any:
    """Of that file, or Pillow's own."""
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size=size)


@lru_cache(maxsize=1)
def installed() -> tuple[str, ...]:
    """Paths of the fonts of `FONTS` that are there."""
    found = []
    for name in FONTS:
        with contextlib.suppress(OSError, ValueError):
            found.append(str(ImageFont.truetype(name, 12).path))
    return tuple(found)


def _lacking(path: str, text: str) -> frozenset[str]:
    return frozenset(c for c in set(text) if not _has(path, c))


@lru_cache(maxsize=8192)
def _has(path: str, character: str) -> bool:
    """Whether a font has it; "" is Pillow's own."""
    if character == " ":
        return True
    if unicodedata.category(character)[0] == "C":  # control characters, half a surrogate pair, and what is no character
        return False
    return _shape(path, character) != _shape(path, NO_CHARACTER)


@lru_cache(maxsize=8192)
def _shape(path: str, character: str) -> tuple[Any, ...]:
    mask = font(20, path).getmask(character, mode="L")
    return mask.size, bytes(mask)


def _number(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if character > "\x7f" else f"\\x{ord(character):02x}"
