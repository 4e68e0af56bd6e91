"""What a task remembers between its attempts, so that the next attempt continues where the last one stopped.

The record is a second layer: placing stays safe if the store loses it or returns an older one. It holds no recipient,
link or secret, because everyone who may read the task can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Record:
    """What is known about an identity.

    It is written before the first request of a generation, and again when the order is known.

    :param generation: the generation that was sent last.
    :param idempotency_key: the key of that generation, for questions to Runa. The algorithm derives it again instead.
    :param payment: fingerprint of the payment that was sent last.
    :param body: SHA-256 of the body that was sent last, in hexadecimal.
    :param first_sent: the task sent nothing for this identity, in any generation, before this time (UTC).
    :param order_id: id of the order. ``None`` while it is not known: a request was sent, or may have been.
    """

    generation: int
    idempotency_key: str
    payment: str
    body: str
    first_sent: datetime
    order_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values: strings, integers and ``None``."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Read a record back.

        :param values: what :meth:`to_json` returned. Unknown fields, which a later release may add, are ignored.
        :raises ValueError: if the values are no such record.
        """
        try:
            known = {name: values[name] for name in cls.__dataclass_fields__}
            return cls(**(known | {"first_sent": datetime.fromisoformat(known["first_sent"])}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a Runa order: {type(error).__name__} {error}") from None
