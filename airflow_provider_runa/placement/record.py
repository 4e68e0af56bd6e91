"""What a task remembers between its attempts, so that the next attempt continues where the last one stopped.

The record is a second layer: placing stays safe if the store loses it or returns an older one. It holds no recipient,
link or secret, because everyone who may read the task can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import datetime
from typing import Any

_TIMES = ("first_sent", "absent_since")


@dataclass(frozen=True)
class Record:
    """What is known about an identity.

    It is written before the first request of a generation, when a search has found nothing, and when the order is
    known.

    :param generation: the generation that was sent last.
    :param idempotency_key: the key of that generation, for questions to Runa. The algorithm derives it again instead.
    :param payment: digest of the payment that was sent last, see :class:`~.digest.Digests`.
    :param body: digest of the body that was sent last.
    :param first_sent: the task sent nothing for this identity, in any generation, before this time (UTC).
    :param order_id: id of the order. ``None`` while it is not known: a request was sent, or may have been.
    :param salt: salt of ``payment`` and ``body``, in hexadecimal; empty if they have none.
    :param attempt: number of the attempt that wrote the record; 0 if it is not known.
    :param sent: whether a request may have been sent. ``False`` only if no connection to Runa was ever opened.
    :param absent_since: when a search for the order began that found nothing. Since then no request was sent that can
        place an order. ``None`` if that is not known.
    :param key_held: whether Runa held an answer under the key before ``absent_since``. Then requests under that key
        cannot place an order.
    """

    generation: int
    idempotency_key: str
    payment: str
    body: str
    first_sent: datetime
    order_id: str | None = None
    salt: str = ""
    attempt: int = 0
    sent: bool = True
    absent_since: datetime | None = None
    key_held: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values: strings, integers, truth values and ``None``."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Read a record back.

        :param values: what :meth:`to_json` returned, in this or another release. Unknown fields are ignored, and
            missing ones get their default.
        :raises ValueError: if the values are no such record.
        """
        try:
            known = {
                field.name: values[field.name]
                for field in fields(cls)
                if field.name in values or field.default is MISSING
            }
            times = {name: datetime.fromisoformat(known[name]) for name in _TIMES if known.get(name) is not None}
            return cls(**(known | times))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a Runa order: {type(error).__name__} {error}") from None
