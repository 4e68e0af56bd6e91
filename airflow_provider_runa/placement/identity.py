"""What makes two attempts "the same order", and everything that is derived from it.

An identity is the user's business key (``order_key``), a task's place in Airflow or a batch of a campaign's ledger. It
yields the idempotency key of each generation, the reference that marks the order's description, and the metadata that
shows where an order came from. None of them depends on the clock, the try number or anything else that changes between
two attempts. So all of them can be derived again after everything else is lost.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.placement.keys import find_invisible, is_missing, to_key

# The fixed namespace of this provider. A new one would give every order under way a new key.
KEY_NAMESPACE = uuid.UUID("5b2e1f0a-6c53-4d0e-9a3f-0f6f1f3c7d11")

#: The highest generation: a description has room for a reference with two digits.
LAST_GENERATION = 99

#: Characters of a description that the user may use. Runa allows 128; the reference takes the rest.
MAX_USER_DESCRIPTION = 109

#: Prefix of the metadata keys that this provider writes. The user may not use it.
METADATA_PREFIX = "airflow_"

#: Metadata key that names the deployment of a task's order.
DEPLOYMENT = f"{METADATA_PREFIX}deployment"

#: Metadata key that only a marked copy of an order has.
MARK = f"{METADATA_PREFIX}copy"

# Names of the identity's parts in the metadata. An ``order_key`` is never shown.
_PROVENANCE: dict[str, tuple[str, ...]] = {
    "task": ("dag_id", "run_id", "task_id", "map_index", "deployment"),
    "campaign": ("campaign", "batch"),
    "order_key": (),
}

_MAX_METADATA_VALUE = 200
_MAX_METADATA_PAIRS = 20


def normalize_environment(base_url: str) -> str:
    """Return a base URL in its one spelling: scheme and host in lower case, no slash at the end."""
    parts = urlsplit(base_url.strip())
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


class _HiddenParts(tuple[str, ...]):
    """The parts of an identity whose ``repr`` hides them, because an order key may be a recipient's address."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"({len(self)} hidden)"


@dataclass(frozen=True)
class OrderIdentity:
    """What makes two attempts the same order. Build one with :meth:`from_order_key` or :meth:`from_task`.

    :param environment: base URL of the Runa environment. The same order on the playground and in production is two
        orders. A rotated API key of one environment changes nothing.
    :param scope: ``"order_key"``, ``"task"`` or ``"campaign"``.
    :param parts: what identifies the order within its environment and scope.
    :param rows: pairs of metadata that list which rows the order pays. They do not belong to the identity.
    """

    environment: str
    scope: str
    parts: tuple[str, ...]
    rows: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.scope == "order_key":
            object.__setattr__(self, "parts", _HiddenParts(self.parts))

    @classmethod
    def from_order_key(cls, environment: str, order_key: str) -> OrderIdentity:
        """Identify the order by a business key such as ``spring-winback/customer-42``.

        :param environment: base URL of the Runa environment.
        :param order_key: the key, as :func:`~.keys.to_key` reads it. It is the same for every attempt to pay this
            order, in any run of any DAG.
        :raises InvalidOrderError: if the key is not text, looks like a missing value, or has an invisible character.
        """
        if not isinstance(order_key, str):
            raise InvalidOrderError(
                f"order_key: must be text, not {type(order_key).__name__}; give it a prefix, as in 'customer-42'"
            )
        key, problem = to_key(order_key), find_invisible(order_key)
        if is_missing(key):
            raise InvalidOrderError(
                f"order_key: rendered to {key!r}, which looks like a missing value; every order with that key "
                "would count as one and the same"
            )
        if problem:
            del order_key, key  # a traceback may show local variables
            raise InvalidOrderError(f"order_key: {problem}")
        return cls(normalize_environment(environment), "order_key", (key,))

    @classmethod
    def from_task(
        cls, environment: str, *, dag_id: str, run_id: str, task_id: str, map_index: int, deployment: str | None = None
    ) -> OrderIdentity:
        """Identify the order by its task: the same task of the same DAG run places the same order.

        :param environment: base URL of the Runa environment.
        :param dag_id: id of the DAG.
        :param run_id: id of the DAG run.
        :param task_id: id of the task.
        :param map_index: index of the mapped task; -1 if it is not mapped.
        :param deployment: name of the Airflow installation, if several with the same DAGs use one account. Default: the
            account has only one.
        """
        parts = (dag_id, run_id, task_id, str(map_index), *((deployment,) if deployment else ()))
        return cls(normalize_environment(environment), "task", parts)

    @classmethod
    def from_campaign(
        cls, environment: str, *, campaign: str, batch: str, rows: tuple[tuple[str, str], ...] = ()
    ) -> OrderIdentity:
        """Identify the order by its batch in a campaign's ledger.

        :param environment: base URL of the Runa environment.
        :param campaign: name of the campaign.
        :param batch: the ledger's id of the batch. It is never used for another batch.
        :param rows: pairs of metadata that list which rows the order pays.
        """
        return cls(normalize_environment(environment), "campaign", (campaign, batch), rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the identity, in hexadecimal. It is safe to show, because it hides the order key."""
        canonical = json.dumps([self.environment, self.scope, *self.parts], ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def survives_runs(self) -> bool:
        """Whether another DAG run may have placed the same order."""
        return self.scope == "order_key"

    def idempotency_key(self, generation: int) -> str:
        """Return the idempotency key of a generation: a UUIDv5, the same in every attempt on every machine."""
        return str(uuid.uuid5(KEY_NAMESPACE, f"{self.digest}/{generation}"))

    @cached_property
    def short_name(self) -> str:
        """The identity as ten letters and digits (50 bits of the digest)."""
        return base64.b32encode(bytes.fromhex(self.digest))[:10].decode().lower()

    def reference(self, generation: int) -> str:
        """Return the marker in an order's description, e.g. ``[af-7f3k9q2mab.0]``.

        Descriptions are the only part of the order list that can be searched. The identity comes first, so that a
        search for ``af-7f3k9q2mab`` finds every generation.
        """
        return f"[af-{self.short_name}.{generation}]"

    def generation_in(self, description: str | None) -> int | None:
        """Return the generation in a description's reference, or ``None`` if it has no reference of this identity."""
        found = re.search(rf"\[af-{self.short_name}\.(\d{{1,2}})\]\s*$", description or "")
        return int(found.group(1)) if found else None

    def owns(self, metadata: dict[str, str] | None) -> bool:
        """Return whether an order with this metadata may belong to this identity.

        A reference is short, so two identities may share one. The digest in the metadata distinguishes them.
        """
        return not metadata or metadata.get(f"{METADATA_PREFIX}identity", self.digest) == self.digest

    def provenance(self) -> dict[str, str]:
        """Return the metadata that shows where an order came from.

        For an ``order_key`` this is only the hash, because another run must build the same body.
        """
        pairs = {f"{METADATA_PREFIX}identity": self.digest}
        return (
            pairs
            | {
                f"{METADATA_PREFIX}{name}": part[:_MAX_METADATA_VALUE]
                for name, part in zip(_PROVENANCE[self.scope], self.parts, strict=False)
            }
            | dict(self.rows)
        )

    def seal(self, order: NewOrder, generation: int, *, marked: bool = False) -> NewOrder:
        """Return the order as it is sent: the reference in its description, the provenance in its metadata.

        The result depends only on the identity and the parameters, so every attempt builds the same bytes.

        :param order: the order with the user's description and metadata.
        :param generation: the generation to send, 0 to 99.
        :param marked: build a marked copy: another body under the same key.
        :raises InvalidOrderError: if the description or metadata leave no room for what is added.
        """
        description, metadata = order.description or "", order.metadata or {}
        provenance = self.provenance()
        room = _MAX_METADATA_PAIRS - len(provenance) - 1
        if len(description) > MAX_USER_DESCRIPTION:
            raise InvalidOrderError(
                f"description: has {len(description)} characters, {MAX_USER_DESCRIPTION} are allowed "
                "(Runa takes 128; the rest is for the reference that finds the order again)"
            )
        if len(metadata) > room:
            raise InvalidOrderError(
                f"metadata: has {len(metadata)} pairs, {room} are allowed "
                f"(Runa takes {_MAX_METADATA_PAIRS}; the rest says where the order came from)"
            )
        if reserved := sorted(key for key in metadata if key.startswith(METADATA_PREFIX)):
            raise InvalidOrderError(f"metadata: keys that start with {METADATA_PREFIX} are reserved: {reserved}")
        return order.model_copy(
            update={
                "description": f"{description} {self.reference(generation)}".lstrip(),
                "metadata": metadata | provenance | ({MARK: "1"} if marked else {}),
            }
        )


def short_name_in(description: str | None) -> str | None:
    """Return the short name in a description's reference, or ``None`` if it has no reference."""
    found = re.search(r"\[af-([a-z2-7]{10})\.\d{1,2}\]\s*$", description or "")
    return found.group(1) if found else None


def unmarked(metadata: dict[str, str] | None) -> dict[str, str] | None:
    """Return an order's metadata without the mark of a marked copy."""
    return metadata and {key: value for key, value in metadata.items() if key != MARK}
