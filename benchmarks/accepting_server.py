"""A local HTTP server that accepts any order, for benchmarks: cheap, with the same work for each order.

It checks nothing, so it must not decide whether a campaign is correct; the sandbox does that. An order is COMPLETED at
once. Bodies are kept in a file, so that the server's memory does not grow with them. It answers ``POST /order``,
``GET /order/{id}``, ``GET /order`` (500 rows, newest first), ``GET /product/{code}`` and ``GET /stats``.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from airflow_provider_runa.sandbox.catalogue import PRODUCTS

PAGE = 500

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nx-idempotency-key: *([^\r]+)", re.IGNORECASE)
_DESCRIPTION = re.compile(rb'"description":("(?:[^"\\]|\\.)*")')


class Orders:
    """The orders that were accepted."""

    def __init__(self) -> None:
        self._bodies = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._end = 0
        self._by_key: dict[bytes, int] = {}
        self._orders: list[tuple[int, int, bytes, str]] = []  # begin and length of the body, description, created_at
        self._arrivals: list[float] = []

    def answer(self, method: bytes, target: str, head: bytes, body: bytes) -> tuple[int, bytes]:
        """Answer a request.

        :returns: HTTP status and body.
        """
        url = urlsplit(target)
        path = url.path.removeprefix("/v2")
        if method == b"POST" and path == "/order":
            return 202, self._accept(head, body)
        if path == "/order":
            return 200, self._list(parse_qs(url.query).get("after", [""])[0])
        if path.startswith("/order/"):
            return 200, self._show(path.removeprefix("/order/"))
        if path.startswith("/product/"):
            return 200, json.dumps(PRODUCTS[path.removeprefix("/product/")]).encode()
        if path == "/stats":
            query = parse_qs(url.query)
            return 200, json.dumps(self._stats(int(query["skip"][0]), float(query["window"][0]))).encode()
        return 404, b'{"type": "not_found", "message": "There is no such path."}'

    def _accept(self, head: bytes, body: bytes) -> bytes:
        key = _KEY.search(head)
        number = self._by_key.setdefault(b"" if key is None else key[1], len(self._orders))
        if number == len(self._orders):
            description = _DESCRIPTION.search(body)
            self._bodies.seek(self._end)
            self._bodies.write(body)
            created = datetime.now(UTC).isoformat()
            self._orders.append((self._end, len(body), b'""' if description is None else description[1], created))
            self._end += len(body)
            self._arrivals.append(time.monotonic())
        return b'{"id":"O-%d","status":"PROCESSING","message":"The order is being processed."}' % number

    def _list(self, after: str) -> bytes:
        end = int(after) if after else len(self._orders)
        begin = max(0, end - PAGE)
        rows = b",".join(
            b'{"id":"O-%d","status":"COMPLETED","created_at":"%s","description":%s}'
            % (number, self._orders[number][3].encode(), self._orders[number][2])
            for number in reversed(range(begin, end))
        )
        cursors = b'{"after":"%d"}' % begin if begin else b"{}"
        return b'{"items":[%s],"pagination":{"cursors":%s}}' % (rows, cursors)

    def _show(self, order_id: str) -> bytes:
        number = int(order_id.removeprefix("O-"))
        order = self._body(number)
        for position, item in enumerate(order["items"]):
            item |= {
                "id": f"E-{number}-{position}",
                "price": item["face_value"],
                "currency": order["payment_method"]["currency"],
                "payout": {"status": "ACTIVE", "url": f"https://payouts.example.com/{number}/{position}"},
            }
        created = self._orders[number][3]
        order |= {"id": order_id, "status": "COMPLETED", "created_at": created, "completed_at": created}
        return json.dumps(order).encode()

    def _body(self, number: int) -> dict[str, Any]:
        begin, length, _, _ = self._orders[number]
        self._bodies.seek(begin)
        return dict(json.loads(self._bodies.read(length)))

    def _stats(self, skip: int, window: float) -> dict[str, int]:
        """Return the number of orders, of payouts and of distinct recipients, and the most orders in a period.

        :param skip: the number of orders to leave out, the oldest.
        :param window: length of the period, in seconds.
        """
        addresses: set[str] = set()
        payouts = 0
        for number in range(skip, len(self._orders)):
            items = self._body(number)["items"]
            payouts += len(items)
            addresses.update(item["distribution_method"]["email_address"] for item in items)
        at = self._arrivals[skip:]
        busiest = max((bisect.bisect_left(at, began + window) - n for n, began in enumerate(at)), default=0)
        return {"orders": len(at), "payouts": payouts, "recipients": len(addresses), "busiest": busiest}


class _Connection(asyncio.Protocol):
    """One connection: HTTP/1.1 with ``Content-Length``, one request after the other.

    :param orders: what answers.
    """

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._received = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            length = _LENGTH.search(head)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < stop:
                return
            body = bytes(self._received[end + 4 : stop])
            del self._received[:stop]
            method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
            status, answer = self._orders.answer(method, target.decode(), head, body)
            heading = b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            self._transport.write(heading % (status, len(answer)) + answer)


@contextmanager
def start_accepting_server() -> Iterator[str]:
    """Run a server in a separate process until the block ends.

    :returns: base URL of its API.
    """
    command = [sys.executable, "-m", "benchmarks.accepting_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 30)
        line = process.stdout.readline() if ready else ""
        if not line.startswith("http://"):
            raise RuntimeError(f"the server did not start: {line!r}")
        yield line.strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


async def _serve() -> None:
    orders = Orders()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(orders), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v2", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve())
