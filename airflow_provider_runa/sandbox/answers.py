"""What every module of the sandbox answers with: answers, refusals, ids, times and cursors."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

API_VERSION = "2024-02-05"

Query = Sequence[tuple[str, str]]


@dataclass
class Answer:
    """What is answered.

    :param status: HTTP status.
    :param body: the body.
    :param headers: headers besides the usual.
    :param delay: how many seconds to wait before it is sent.
    :param drop: ``""``, ``"all"`` (the connection is closed without an answer), ``"half"`` (after half of the answer)
        or ``"reset"`` (the connection is reset).
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: str = ""

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)


class Refusal(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, kind: str, message: str, *, details: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"type": kind, "message": message, "help": "See the API reference."}
        if details is not None:
            self.body["details"] = details


def json_answer(status: int, body: Any) -> Answer:
    """Return an answer with a JSON body."""
    return Answer(status, json.dumps(body).encode())


def rate_exceeded() -> Answer:
    """Return the answer to one request too many, which has a form that no other error has."""
    return Answer(429, b'{"error": "rate exceeded"}')


# -- queries -----------------------------------------------------------------------------------------------------------


def parameters(query: Query, *known: str, repeated: tuple[str, ...] = ()) -> dict[str, str]:
    """Return a query's parameters.

    :param query: names and values.
    :param known: names that may occur once.
    :param repeated: names that may occur more often; they are not returned.
    :raises Refusal: if there is another parameter, or one of the known occurs twice.
    """
    names = [name for name, _ in query]
    for name in names:
        if name not in known and name not in repeated:
            raise Refusal(400, "bad_request", f"There is no parameter {name}.")
        if name not in repeated and names.count(name) > 1:
            raise Refusal(400, "bad_request", f"The parameter {name} is given twice.")
    return dict(query)


@dataclass(frozen=True)
class Page:
    """The page of a list that a query asks for.

    :param limit: most rows.
    :param cursor: number in the cursor; ``None``: the first page.
    :param backwards: whether the page lies before the cursor.
    """

    limit: int
    cursor: int | None = None
    backwards: bool = False

    @classmethod
    def of(cls, values: dict[str, str], *, default: int) -> Page:
        """Read limit and cursors.

        :param values: parameters of the query.
        :param default: limit if the query has none.
        :raises Refusal: if the page cannot be.
        """
        given = values.get("limit", str(default))
        limit = int(given) if re.fullmatch(r"[0-9]{1,3}", given) else 0
        if not 1 <= limit <= 500:
            raise Refusal(400, "pagination_error", "The limit is 1 to 500.")
        if "after" in values and "before" in values:
            raise Refusal(400, "pagination_error", "Only one cursor at a time.")
        for name in ("after", "before"):
            if name in values:
                found = re.fullmatch(r"A-([0-9]{1,18})", values[name])
                if not found:
                    raise Refusal(400, "pagination_error", "The cursor is not one of Runa's.")
                return cls(limit, int(found[1]), name == "before")
        return cls(limit)


def pagination(limit: int, *, before: int | None, after: int | None) -> dict[str, Any]:
    """Return a list's ``pagination``.

    :param limit: limit of the page.
    :param before: number of the cursor to the page before; ``None``: the page is empty.
    :param after: number of the cursor to the page after.
    """
    cursors = {} if before is None else {"after": f"A-{after}", "before": f"A-{before}"}
    return {"cursors": cursors, "page": {"limit": limit}}


# -- ids and times -----------------------------------------------------------------------------------------------------


def iso(moment: float) -> str:
    """Return seconds since the epoch as a UTC timestamp in ISO 8601 format."""
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(moment: float) -> str:
    """Return an id of 26 letters and digits that sorts by time."""
    number = (int(moment * 1000) << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))
