"""What a task remembers between its attempts, so that the next one goes on where the last one stopped.

The record is a second layer: whoever keeps it may lose it or hand out an older one, and placing stays safe. It
holds no recipient, link or secret, because it can be read by everyone who may read the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """What is known of a generation."""

    SENT = "sent"  #: a request was, or may have been, sent; nothing else is known
    PLACED = "placed"  #: Runa took the order; ``order_id`` is set
    REJECTED = "rejected"  #: Runa refused it: nobody was paid under this key, and nobody will be


@dataclass(frozen=True)
class Record:
    """What is known of an identity, written before every first request of an attempt and after every answer.

    :param generation: the generation that was sent last.
    :param idempotency_key: its key, for a person who asks Runa; the algorithm derives it anew.
    :param payment: fingerprint of the payment that was sent last.
    :param body: SHA-256 of the body that was sent last, in hexadecimal.
    :param first_sent: before this moment (UTC) the task sent nothing for this identity, in any generation.
    :param last_sent: after this moment (UTC) it sent nothing, as far as the record knows.
    :param outcome: what is known of the generation.
    :param order_id: id of the order, once it is known.
    :param server_errors: attempts that ended in a 5xx answer under this key.
    """

    generation: int
    idempotency_key: str
    payment: str
    body: str
    first_sent: datetime
    last_sent: datetime
    outcome: Outcome = Outcome.SENT
    order_id: str | None = None
    server_errors: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values: strings, whole numbers and ``None``."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(self).items()
        } | {"outcome": self.outcome.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Read a record back.

        :param values: what :meth:`to_json` returned. Fields that a later release added are left out.
        :raises ValueError: if it is not a record of this kind.
        """
        try:
            known = {name: values[name] for name in cls.__dataclass_fields__}
            times = {name: datetime.fromisoformat(known[name]) for name in ("first_sent", "last_sent")}
            return cls(**(known | times | {"outcome": Outcome(known["outcome"])}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a Runa order: {type(error).__name__} {error}") from None
