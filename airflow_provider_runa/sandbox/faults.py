"""What goes wrong with a request: answers that are lost, late, or an error instead of what the engine says."""

from __future__ import annotations

import json
from dataclasses import dataclass

from airflow_provider_runa.sandbox.answers import Answer, Refusal, json_answer, rate_exceeded

FAULT_KINDS = ("latency", "status", "drop_before", "drop_after", "half_answer", "status_after", "fail_order")

_STATUS_TYPES = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    410: "version_removed",
    500: "internal_server_error",
    504: "timeout",
}


class Countdown:
    """How often something takes effect: after ``skip`` times it does, ``count`` times; ``None``: always."""

    count: int | None
    skip: int

    @property
    def spent(self) -> bool:
        """Whether it takes no more effect."""
        return self.count is not None and self.count <= 0

    def counts(self) -> bool:
        """Return whether it takes effect this time, and count it."""
        if self.spent:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.count is not None:
            self.count -= 1
        return True


@dataclass
class Fault(Countdown):
    """Something that goes wrong with requests that match, once or more often.

    :param kind: ``latency`` (wait ``seconds``), ``status`` (answer ``status`` instead), ``drop_before`` (drop the
        connection, nothing is stored), ``drop_after`` (the request is served, its answer dropped),
        ``half_answer`` (half of the answer is sent), ``status_after`` (the order is stored, but ``status`` is
        answered, and replayed unless it is a gateway's), ``fail_order`` (the order is accepted and will end FAILED).
    :param count: how many requests it hits; ``None``: all, until it is cleared.
    :param skip: how many matching requests it lets pass before.
    :param method: of the requests it hits.
    :param path: of the requests it hits, without ``/v2``; ``*`` at its end matches any rest.
    :param status: HTTP status, 100 to 599, for the kinds that answer one.
    :param typed: whether the body is Runa's (``False``: a gateway's HTML or, of a 4xx, its problem+json).
    :param stored: whether a ``status`` is remembered under the idempotency key.
    :param type: Runa's type of the error, if it is not the usual one of the status.
    :param seconds: for ``latency``.
    :param reset: whether ``drop_before`` and ``drop_after`` reset the connection instead of closing it.
    """

    kind: str
    count: int | None = 1
    skip: int = 0
    method: str = "POST"
    path: str = "/order"
    status: int = 500
    typed: bool = True
    stored: bool = False
    type: str | None = None
    seconds: float = 0.0
    reset: bool = False

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"kind must be one of {', '.join(FAULT_KINDS)}, not {self.kind!r}")
        if not 100 <= self.status <= 599:
            raise ValueError(f"status must be 100 to 599, not {self.status}")
        if self.seconds < 0:
            raise ValueError(f"seconds must be 0 or more, not {self.seconds}")

    def hits(self, method: str, path: str) -> bool:
        """Return whether a request is hit, and count it."""
        matches = path.startswith(self.path[:-1]) if self.path.endswith("*") else path == self.path
        return method == self.method and matches and self.counts()

    @property
    def drop(self) -> str:
        """How the connection ends."""
        return "reset" if self.reset else "all"

    def answer(self) -> Answer:
        """Return the answer of the kinds that have a status: Runa's, or a gateway's."""
        if self.status == 429:
            return rate_exceeded()
        if not self.typed and 400 <= self.status < 500:
            problem = {"type": "about:blank", "title": "Blocked", "status": self.status}
            return Answer(self.status, json.dumps(problem).encode(), {"Content-Type": "application/problem+json"})
        if not self.typed:
            return Answer(self.status, b"<html><body>upstream error</body></html>", {"Content-Type": "text/html"})
        kind = self.type or _STATUS_TYPES.get(self.status, "internal_server_error")
        return json_answer(self.status, Refusal(self.status, kind, "A fault of the sandbox.").body)
