"""What a missing value looks like as text, in order keys, campaign names and recipient keys.

A template renders a missing value as ``None``, pandas writes ``nan``, a spreadsheet ``#N/A``. If such a text counted as
a key, all rows without a value would share it, and only the first of them would be paid.
"""

from __future__ import annotations

_MISSING = frozenset({"", "none", "null", "nan", "nat", "<na>", "n/a", "#n/a", "undefined"})


def is_missing(text: str) -> bool:
    """Return whether a text stands for a missing value.

    :param text: the text. Case and surrounding white space are ignored.
    """
    return text.strip().lower() in _MISSING
