"""Payout links, handed over to a file: for whoever sends them to recipients by their own means.

A payout link is cash: whoever reads the file can spend it. So it goes where the author of the DAG says and nowhere
else: a local file is its owner's alone, and it appears whole or not at all.
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
from airflow_provider_runa.api.models import LinkDistribution, NewOrder, Order
from airflow_provider_runa.placement.errors import LinksNotWrittenError, PaymentChangedError
from airflow_provider_runa.placement.payment import counterparts, differences

#: What a line of the file tells, in this order.
COLUMNS = ("order_id", "item", "item_id", "face_value", "currency", "url", "expiry_date")


def check_links_target(links_to: Any, order: NewOrder) -> None:
    """Check before anything is sent that the links of an order will have a place.

    :param links_to: the file; see ``RunaCreateOrderOperator``.
    :param order: the order.
    :raises InvalidOrderError: if they will not.
    """
    if not isinstance(links_to, str) or not links_to.endswith((".jsonl", ".csv")):
        raise InvalidOrderError("links_to: must be a file whose name ends in .jsonl or .csv")
    if not any(isinstance(item.distribution_method, LinkDistribution) for item in order.items):
        raise InvalidOrderError("links_to: no item has the distribution method PAYOUT_LINK, so there will be no links")
    path = _local(links_to)
    if path is None:
        try:
            _ = ObjectStoragePath(links_to).fs
        except Exception as error:  # of whichever store
            raise InvalidOrderError(f"links_to: the store cannot be used: {redact(str(error))}") from None
    elif not path.is_absolute() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidOrderError("links_to: must be an absolute path in a folder that this worker can write to")


def write_payout_links(links_to: str, wanted: NewOrder, placed: Order) -> int:
    """Write the links of an order; the file is replaced if it is there. Return their number.

    :param links_to: the file.
    :param wanted: the order that was sent.
    :param placed: the order, COMPLETED.
    :raises PaymentChangedError: if the wanted order is not the one that was placed.
    :raises LinksNotWrittenError: if they could not be written.
    """
    if changed := differences(wanted, placed):
        raise PaymentChangedError(order_id=placed.id, fields="; ".join(changed))
    lines = _lines(wanted, placed)
    try:
        content = (_csv(lines) if links_to.endswith(".csv") else _json_lines(lines)).encode()
        path = _local(links_to)
        if path is None:
            ObjectStoragePath(links_to).write_bytes(content)
        else:
            _write_private(path, content)
    except Exception as error:  # of whichever store; what it says may hold what was written
        reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
        raise LinksNotWrittenError(order_id=placed.id, reason=reason) from None
    return len(lines)


def _lines(wanted: NewOrder, placed: Order) -> list[dict[str, Any]]:
    lines = []
    for index, item in sorted(counterparts(wanted, placed).items()):
        if not isinstance(wanted.items[index].distribution_method, LinkDistribution):
            continue  # Runa sends it
        if item.payout is None or item.payout.url is None:
            raise LinksNotWrittenError(order_id=placed.id, reason=f"Runa shows no link for item {index}")
        expiry = item.payout.expiry_date
        values = (
            placed.id,
            index,
            item.id,
            str(item.face_value),
            item.currency or placed.currency,
            item.payout.url.get_secret_value(),
            expiry.isoformat() if expiry else None,
        )
        lines.append(dict(zip(COLUMNS, values, strict=True)))
    return lines


def _json_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _local(links_to: str) -> Path | None:
    """Return the path of a file of this machine; ``None`` for any other."""
    url = urlsplit(links_to)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return None if "://" in links_to else Path(links_to)


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, at once: never half of it, never with other permissions."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
