"""The text of an answer, added event by event: its length, whether it is visible, and a hash of its beginning."""

import json
import unicodedata
import zlib
from dataclasses import dataclass, field

from sweep.base.records import UNKNOWN

_BACKSLASH = 0x5C
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # characters that are rendered as blank
_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of Unicode
_INVISIBLE_ASCII = bytes([*range(0x21), 0x7F])
HEAD = 256  # bytes of the text that are hashed to compare answers
LEAST_VARIED = 40  # minimum bytes of the head once compressed: repetitive text compresses further, and tells nothing


@dataclass(slots=True)
class AnswerText:
    """The text so far, as escaped in JSON. Only its length and its beginning are stored."""

    characters: int = 0
    head: bytearray = field(default_factory=bytearray)

    def take(self, piece: bytes, letters: bool = False) -> bool:
        """Add a piece; return whether it is visible or, with `letters`, whether it contains a letter or digit."""
        if len(self.head) < HEAD:
            self.head += piece
        if not letters and piece.isascii() and _BACKSLASH not in piece:
            self.characters += len(piece)
            return piece.strip(_INVISIBLE_ASCII) != b""
        text = _decoded(piece)
        self.characters += len(text)
        return any(map(str.isalnum, text)) if letters else any(map(_is_visible, text))

    def digest(self) -> int:
        """Return a positive hash of the text's beginning; UNKNOWN for a short or repetitive text."""
        head = bytes(self.head[:HEAD])
        return zlib.crc32(head) & 0x7FFFFFFF if len(zlib.compress(head)) >= LEAST_VARIED else UNKNOWN


def _decoded(piece: bytes) -> str:
    if _BACKSLASH not in piece:  # JSON has it without escapes
        return piece.decode("utf-8", "replace")
    try:
        return str(json.loads(b'"%b"' % piece))
    except ValueError:  # one character is split between two events
        return piece.decode("utf-8", "replace")


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in _INVISIBLE and character not in _BLANK
