"""What a task remembers between its attempts, so that the next one goes on where the last one stopped.

The record is a second layer: whoever keeps it may lose it or hand out an older one, and placing stays safe. It
holds no recipient, link or secret, because it can be read by everyone who may read the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Record:
    """What is known of an identity, written before the first request of a generation and once its order is known.

    :param generation: the generation that was sent last.
    :param idempotency_key: its key, for a person who asks Runa; the algorithm derives it anew.
    :param payment: fingerprint of the payment that was sent last.
    :param body: SHA-256 of the body that was sent last, in hexadecimal.
    :param first_sent: before this moment (UTC) the task sent nothing for this identity, in any generation.
    :param order_id: id of the order, once it is known; ``None``: a request was, or may have been, sent.
    """

    generation: int
    idempotency_key: str
    payment: str
    body: str
    first_sent: datetime
    order_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values: strings, whole numbers and ``None``."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Read a record back.

        :param values: what :meth:`to_json` returned. Fields that a later release added are left out.
        :raises ValueError: if it is not a record of this kind.
        """
        try:
            known = {name: values[name] for name in cls.__dataclass_fields__}
            return cls(**(known | {"first_sent": datetime.fromisoformat(known["first_sent"])}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a Runa order: {type(error).__name__} {error}") from None
