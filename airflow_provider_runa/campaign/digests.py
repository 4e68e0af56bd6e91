"""Row digests: how an order itself says which rows it pays, so that a ledger that was lost can be rebuilt from Runa.

A digest is twelve characters: 9 bytes of SHA-256 over environment, campaign and recipient key, as base64url. An order
carries the digests of its rows in its metadata, 16 to a value. Only somebody who knows the recipient keys can read
them. Batch ids are derived from digests, so that the same rows planned again have the same idempotency keys.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence

from airflow_provider_runa.placement.identity import METADATA_PREFIX

#: Characters of a digest.
LENGTH = 12

_PER_VALUE = 16
_NAME = f"{METADATA_PREFIX}rows_"

# A fixed namespace of this provider's: changing it would give every batch that is planned again a new id.
_BATCHES = uuid.UUID("0d0c7a5e-53b4-4f5f-8b1e-2a4b0a3c9e77")


def row_digest(environment: str, campaign: str, recipient_key: str) -> str:
    """Return the digest of a row.

    :param environment: the environment, in its one spelling.
    :param campaign: name of the campaign.
    :param recipient_key: who is paid.
    """
    text = json.dumps([environment, campaign, recipient_key], ensure_ascii=False)
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:9]).decode()


def batch_id(environment: str, campaign: str, rows: Iterable[tuple[str, int]]) -> str:
    """Return the id of a batch: the same rows, planned as often before, have the same id.

    :param environment: the environment, in its one spelling.
    :param campaign: name of the campaign.
    :param rows: digest of each row, and how often the row was in a batch before. Their order does not matter.
    """
    return str(uuid.uuid5(_BATCHES, json.dumps([environment, campaign, sorted(rows)], ensure_ascii=False)))


def to_metadata(digests: Sequence[str]) -> dict[str, str]:
    """Return the metadata that lists the rows of an order: at most 13 pairs for 200 rows.

    :param digests: the digests, in the order of the items.
    """
    values = ("".join(digests[first : first + _PER_VALUE]) for first in range(0, len(digests), _PER_VALUE))
    return {f"{_NAME}{number:02}": value for number, value in enumerate(values)}


def from_metadata(metadata: Mapping[str, str] | None) -> list[str]:
    """Return the digests that an order's metadata lists; empty if it lists none, or not completely.

    :param metadata: the metadata of an order.
    """
    pairs = {name: value for name, value in (metadata or {}).items() if name.startswith(_NAME)}
    expected = [f"{_NAME}{number:02}" for number in range(len(pairs))]
    text = "".join(pairs.get(name, "?") for name in expected)
    complete = expected == sorted(pairs) and len(text) % LENGTH == 0
    full = all(len(pairs[name]) == LENGTH * _PER_VALUE for name in expected[:-1]) if complete else False
    return [text[first : first + LENGTH] for first in range(0, len(text), LENGTH)] if full else []
