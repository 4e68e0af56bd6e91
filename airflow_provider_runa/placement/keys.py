"""Keys: the texts that decide what is the same order, the same campaign and the same recipient.

A key is what a person sees. Two texts that look the same are the same key, or one of them is rejected: if they counted
as two, somebody would be paid twice.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from numbers import Real
from typing import Any

# A template renders a missing value as ``None``, pandas writes ``nan``, a spreadsheet ``#N/A``. If such a text counted
# as a key, all rows without a value would share it, and only the first of them would be paid.
_MISSING = frozenset({"", "none", "null", "nan", "nat", "<na>", "n/a", "#n/a", "undefined"})

# Marks of pandas for a missing value. Their text is in _MISSING, but NaT is also a datetime.
_MISSING_TYPES = frozenset({"NAType", "NaTType"})

_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

# Characters that show nothing although their category is a letter, a mark or a symbol: fillers, the blank of Braille,
# and what selects the look of the character before it.
_BLANK = frozenset(
    map(
        chr,
        [
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ],
    )
)


def is_missing(value: Any) -> bool:
    """Return whether a value, or a text, stands for a missing one.

    :param value: any value. Of a text, case and surrounding white space are ignored.
    """
    if isinstance(value, str):
        return value.strip().lower() in _MISSING
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, Real):
        return bool(value != value)  # only NaN is not equal to itself
    return value is None or type(value).__name__ in _MISSING_TYPES


def to_key(text: str) -> str:
    """Return a text as a key.

    White space around it is removed, and characters that can be written in several ways are written in one: Unicode's
    form NFC. Upper and lower case differ, except in a UUID, whose case depends on the database driver.

    :param text: the text. Check it with :func:`find_invisible`.
    """
    key = unicodedata.normalize("NFC", text.strip())
    return key.lower() if _UUID.fullmatch(key) else key


def find_invisible(text: str) -> str | None:
    """Return what is wrong with a key that has a character which nobody can see; ``None`` if it has none.

    Such characters are: control and format characters such as a zero-width space, white space other than a plain space,
    parts of a broken character, and characters that this Python's Unicode does not define.

    :param text: the text, as it was given. White space around it is not part of the key.
    """
    if text.isascii() and text.isprintable():
        return None
    first = len(text) - len(text.lstrip())
    for position, character in enumerate(text.strip(), start=first + 1):
        if not character.isprintable() or character in _BLANK:
            return f"has an invisible character at position {position} (U+{ord(character):04X})"
    return None
