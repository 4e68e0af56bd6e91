"""A TCP server that sends given bytes, for answers that no web server would give."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

_LONGEST_WAIT = 10.0  # seconds


@dataclass(frozen=True)
class Raw:
    """What happens to one connection.

    :param data: what is sent.
    :param then: ``close`` it, ``reset`` it, or ``hang``: keep it open and silent until the server ends.
    :param read: whether the request is read before.
    """

    data: bytes = b""
    then: Literal["close", "reset", "hang"] = "close"
    read: bool = True


def http(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """Return an HTTP answer.

    :param status: code and phrase.
    :param body: the body.
    :param headers: further header lines.
    :param length: what it says of the body's length, if that is not true.
    """
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class RawServer:
    """A server that runs.

    :param url: base URL.
    :param requests: every request that was read, whole.
    """

    url: str
    requests: list[bytes] = field(default_factory=list)

    def heads(self) -> list[dict[str, str]]:
        """Return the headers of every request; names in small letters, the first line as ``""``."""
        found = []
        for request in self.requests:
            first, *lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            pairs = (line.partition(": ") for line in lines)
            found.append({"": first} | {name.lower(): value for name, _, value in pairs})
        return found

    def bodies(self) -> list[bytes]:
        """Return the body of every request."""
        return [request.partition(b"\r\n\r\n")[2] for request in self.requests]


@contextmanager
def start_raw(*answers: Raw | bytes) -> Iterator[RawServer]:
    """Run a server on a free port of this machine until the block ends.

    :param answers: what happens to the first connection, to the second, …; the last one to all that follow.
    """
    script = [Raw(answer) if isinstance(answer, bytes) else answer for answer in answers]
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_LONGEST_WAIT)
        server = RawServer(f"http://127.0.0.1:{listener.getsockname()[1]}/v2")
        thread = threading.Thread(target=_serve, args=(listener, server, script, over), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            over.set()
            with contextlib.suppress(OSError):
                socket.create_connection(listener.getsockname(), _LONGEST_WAIT).close()  # it waits for the next one
            thread.join(_LONGEST_WAIT)
            assert not thread.is_alive(), "the raw server did not end"


def _serve(listener: socket.socket, server: RawServer, script: list[Raw], over: threading.Event) -> None:
    open_connections = []
    number = 0
    while not over.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if over.is_set():
            connection.close()
            break
        answer = script[min(number, len(script) - 1)]
        number += 1
        connection.settimeout(_LONGEST_WAIT)
        with contextlib.suppress(OSError):  # the client may go first
            if answer.read:
                server.requests.append(_read(connection))
            connection.sendall(answer.data)
        if answer.then == "hang":
            open_connections.append(connection)
            continue
        if answer.then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    for connection in open_connections:
        connection.close()


def _read(connection: socket.socket) -> bytes:
    """Read one request: its head, and as much body as the head says."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0]) - len(body) if lengths else 0
    while missing > 0:
        more = _more(connection)
        data += more
        missing -= len(more)
    return data


def _more(connection: socket.socket) -> bytes:
    more = connection.recv(65536)
    if not more:
        raise ConnectionError("the client went away")
    return more
