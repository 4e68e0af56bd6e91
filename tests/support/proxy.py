"""A proxy between Airflow and the sandbox, in the test's own process, that the test scripts while Airflow runs.

It can hold a request before or after the sandbox served it, so that the test can kill, clear or restart something
meanwhile; and it can give the client another answer than the sandbox's, byte for byte, half of it, or none. A rule
is used up by the requests it hits; whatever no rule hits is passed on unchanged.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

#: Longer than anything that is waited for, in seconds: a bound for what went wrong.
LONGEST_WAIT = 90.0


@dataclass(frozen=True)
class Request:
    """A request that arrived. ``path`` is the one below ``/v2``, without the query."""

    method: str
    path: str
    body: bytes = field(repr=False)


class Held:
    """The request that a rule holds, once it has arrived."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._let_go = threading.Event()
        self._over = threading.Event()
        self._dropped = False

    def wait(self, timeout: float = 60.0) -> None:
        """Wait until the request stands in the proxy.

        :param timeout: how long, in seconds.
        :raises TimeoutError: if it does not arrive.
        """
        if not self._arrived.wait(timeout):
            raise TimeoutError(f"the request to hold did not arrive within {timeout:.0f} s")

    def release(self, *, wait: bool = True) -> None:
        """Let it continue, even if its sender has closed the connection.

        :param wait: until it is through.
        """
        self._let_go.set()
        if wait and not self._over.wait(LONGEST_WAIT):
            raise TimeoutError("the released request did not get through")

    def drop(self) -> None:
        """Close its connection: it goes no further, and nor does an answer."""
        self._dropped = True
        self._let_go.set()

    def pause(self) -> bool:
        """Stand still until the test decides; return whether to go on. For the proxy."""
        self._arrived.set()
        return self._let_go.wait(LONGEST_WAIT) and not self._dropped

    def over(self) -> None:
        """Say that the request is through. For the proxy."""
        self._over.set()


@dataclass
class Rule:
    """What happens to requests that match.

    :param method: of the requests it hits.
    :param path: of the requests it hits, below ``/v2``; ``*`` at its end matches any rest.
    :param containing: what the body of the requests it hits has in it.
    :param skip: how many matching requests it lets pass before.
    :param times: how many requests it hits; ``None``: all, until it is removed.
    :param serve: whether the sandbox gets the request.
    :param change: makes the client's answer out of the sandbox's, which is empty if the sandbox got no request.
    :param then: ``keep`` the connection open for the next request, ``close`` it, or ``hang``: stay silent.
    :param held: who holds the request.
    :param when: whether it is held ``before`` or ``after`` the sandbox serves it.
    """

    method: str
    path: str
    containing: bytes = b""
    skip: int = 0
    times: int | None = 1
    serve: bool = True
    change: Callable[[bytes], bytes] = bytes
    then: Literal["keep", "close", "hang"] = "keep"
    held: Held | None = None
    when: Literal["before", "after"] = "before"

    def hits(self, request: Request) -> bool:
        """Whether it hits a request; counts it."""
        begins = self.path.removesuffix("*")
        matches = request.path.startswith(begins) if begins != self.path else request.path == self.path
        if self.times == 0 or request.method != self.method or not matches or self.containing not in request.body:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class FaultProxy:
    """A proxy that runs.

    :param upstream: base URL of the sandbox, ending in ``/v2``.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.requests: list[Request] = []
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._silence_ends = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.proxy = self  # type: ignore[attr-defined] # where the handler finds it
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v2"

    # -- for the test -----------------------------------------------------------------------------------------------

    def hold(self, method: str, path: str, when: Literal["before", "after"] = "before", skip: int = 0) -> Held:
        """Hold the next request that matches, before or after the sandbox serves it."""
        held = Held()
        self.add(Rule(method, path, skip=skip, held=held, when=when))
        return held

    def add(self, rule: Rule) -> Rule:
        """Add a rule; the first one that hits counts."""
        with self._lock:
            self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """Let a rule hit no more."""
        with self._lock:
            self._rules.remove(rule)

    def count(self, method: str, path: str) -> int:
        """Return how many requests arrived here, served or not."""
        counter = Rule(method, path, times=None)
        with self._lock:
            return sum(counter.hits(request) for request in self.requests)

    def forget(self) -> None:
        """Forget rules and requests, and release every request that is held."""
        with self._lock:
            rules, self._rules, self.requests = self._rules, [], []
            silence_ends, self._silence_ends = self._silence_ends, threading.Event()
        silence_ends.set()
        for rule in rules:
            if rule.held is not None:
                rule.held.drop()

    # -- for the handler --------------------------------------------------------------------------------------------

    def rule_for(self, request: Request) -> Rule:
        """Note a request and return what happens to it."""
        with self._lock:
            self.requests.append(request)
            return next((rule for rule in self._rules if rule.hits(request)), Rule("", ""))

    def be_silent(self) -> None:
        """Wait until the test is over."""
        self._silence_ends.wait(LONGEST_WAIT)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client may go first: some of them are killed
            super().handle()

    def relay(self) -> None:
        proxy: FaultProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].removeprefix(proxy.upstream.path)
        rule = proxy.rule_for(Request(self.command, path, body))
        try:
            self.close_connection = not self._answered(proxy, rule, body) or rule.then == "close"
        finally:
            if rule.held is not None:
                rule.held.over()
        if rule.then == "hang":
            proxy.be_silent()
            self.close_connection = True

    do_GET = do_POST = relay

    def _answered(self, proxy: FaultProxy, rule: Rule, body: bytes) -> bool:
        """Serve the request as the rule says; return whether it was not dropped."""
        if rule.held is not None and rule.when == "before" and not rule.held.pause():
            return False
        answer = self._serve(proxy, body) if rule.serve else b""
        if rule.held is not None and rule.when == "after" and not rule.held.pause():
            return False
        self.wfile.write(rule.change(answer))
        return True

    def _serve(self, proxy: FaultProxy, body: bytes) -> bytes:
        """Pass the request on and return the whole answer, head and body."""
        upstream = http.client.HTTPConnection(proxy.upstream.netloc, timeout=LONGEST_WAIT)
        with contextlib.closing(upstream):
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            served = response.read()
        lines = [f"HTTP/1.1 {response.status} {response.reason}"]
        lines += [f"{name}: {value}" for name, value in response.getheaders() if name.lower() != "connection"]
        return "\r\n".join([*lines, "", ""]).encode() + served

    def log_message(self, *_: Any) -> None:
        """Stay quiet: what matters, a test asserts."""


@contextmanager
def start_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy on a free port of this machine until the block ends.

    :param upstream: base URL of the sandbox.
    """
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.forget()
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join(LONGEST_WAIT)


# -- answers other than the sandbox's ----------------------------------------------------------------------------------


def half(answer: bytes) -> bytes:
    """Return the head of an answer and half of its body."""
    return answer[: -max(1, len(answer.partition(b"\r\n\r\n")[2]) // 2)]


def instead(answer: bytes) -> Callable[[bytes], bytes]:
    """Return what replaces any answer by this one."""
    return lambda _: answer


def still_processing(answer: bytes) -> bytes:
    """Return what the sandbox would answer if the order it shows were not settled yet."""
    order = {"id": json.loads(answer.partition(b"\r\n\r\n")[2])["id"], "status": "PROCESSING", "message": "Wait."}
    body = json.dumps(order).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
