"""Writes the payout links of an order to a file, for DAG authors who send them to the recipients themselves.

A payout link is cash: anyone who can read the file can spend it. So links go only where the author of the DAG says. A
local file can be read only by its owner, and it is written completely or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_runa.api.errors import InvalidOrderError, redact
from airflow_provider_runa.api.models import LinkDistribution, NewOrder, Order, OrderItem, Payout
from airflow_provider_runa.placement.errors import LinksNotWrittenError, PaymentChangedError
from airflow_provider_runa.placement.payment import counterparts, differences

#: The fields of a line of the file, in this order.
COLUMNS = ("order_id", "item", "item_id", "face_value", "currency", "url", "expiry_date")


def check_links_target(links_to: Any, order: NewOrder) -> None:
    """Check, before an order is sent, that its links can be written.

    :param links_to: the file; see ``RunaCreateOrderOperator``.
    :param order: the order.
    :raises InvalidOrderError: if the file cannot be written, or if the order has no links.
    """
    if not isinstance(links_to, str) or not links_to.endswith((".jsonl", ".csv")):
        raise InvalidOrderError("links_to: must be a file whose name ends in .jsonl or .csv")
    if not any(isinstance(item.distribution_method, LinkDistribution) for item in order.items):
        raise InvalidOrderError("links_to: no item has the distribution method PAYOUT_LINK, so there will be no links")
    path = _local(links_to)
    if path is None:
        try:
            _ = ObjectStoragePath(links_to).fs
        except Exception as error:  # each store has its own exceptions
            raise InvalidOrderError(f"links_to: the store cannot be used: {redact(str(error))}") from None
    elif not path.is_absolute() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidOrderError("links_to: must be an absolute path in a folder that this worker can write to")


def write_payout_links(links_to: str, wanted: NewOrder, placed: Order) -> int:
    """Write the links of an order to a file, and replace the file if it exists.

    :param links_to: the file.
    :param wanted: the order that was sent.
    :param placed: the same order as Runa returns it, COMPLETED.
    :returns: the number of links.
    :raises PaymentChangedError: if the two orders do not pay the same.
    :raises LinksNotWrittenError: if the links could not be written.
    """
    if changed := differences(wanted, placed):
        raise PaymentChangedError(order_id=placed.id, fields="; ".join(changed))
    items = {
        index: item
        for index, item in sorted(counterparts(wanted, placed).items())
        # Runa sends the others to the recipients.
        if isinstance(wanted.items[index].distribution_method, LinkDistribution)
    }
    for index, item in items.items():
        if item.payout is None or item.payout.url is None:
            raise LinksNotWrittenError(order_id=placed.id, reason=f"Runa shows no link for item {index}")
    # The error is raised here, because a traceback may show local variables, and those of _write are links.
    error = _write(links_to, placed, items)
    if isinstance(error, Exception):  # each store has its own exceptions, and their text may contain the links
        reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
        del error
        raise LinksNotWrittenError(order_id=placed.id, reason=reason)
    if error is not None:
        raise error
    return len(items)


def _write(links_to: str, placed: Order, items: Mapping[int, OrderItem]) -> BaseException | None:
    """Write the file, and return what was raised, without its traceback."""
    try:
        lines = [_line(placed, index, item) for index, item in items.items()]
        content = (_csv(lines) if links_to.endswith(".csv") else _json_lines(lines)).encode()
        path = _local(links_to)
        if path is None:
            ObjectStoragePath(links_to).write_bytes(content)
        else:
            _write_private(path, content)
    except BaseException as error:
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)
    return None


def _line(placed: Order, index: int, item: OrderItem) -> dict[str, Any]:
    """Return the line of an item, in clear."""
    payout = item.payout or Payout()
    values = (
        placed.id,
        index,
        item.id,
        str(item.face_value),
        item.currency or placed.currency,
        payout.url.get_secret_value() if payout.url else None,
        payout.expiry_date.isoformat() if payout.expiry_date else None,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _json_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _local(links_to: str) -> Path | None:
    """Return the path of a file on this machine, ``None`` for a file in an object store."""
    url = urlsplit(links_to)
    if url.scheme in ("file", "local"):
        return Path(unquote(url.path))
    return None if "://" in links_to else Path(links_to)


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, atomically: never a part of it, never with other permissions."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
