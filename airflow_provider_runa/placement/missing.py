"""What a missing value looks like once it is text: in order keys, campaign names and recipient keys alike.

A template renders a missing value as ``None``, pandas writes ``nan``, a spreadsheet ``#N/A``. As a key, such a text
would be shared by every row that lacks a value, and only the first of them would ever be paid.
"""

from __future__ import annotations

_MISSING = frozenset({"", "none", "null", "nan", "nat", "<na>", "n/a", "#n/a", "undefined"})


def is_missing(text: str) -> bool:
    """Return whether a text stands for a missing value.

    :param text: the text. Case and white space around it do not matter.
    """
    return text.strip().lower() in _MISSING
