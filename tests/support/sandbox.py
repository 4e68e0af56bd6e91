"""A sandbox in a separate process, for tests over real sockets."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

API_KEY = "XXsandbox.secret"


@dataclass
class RunningSandbox:
    """A sandbox that runs, and its controls.

    :param url: base URL of its API, ending in ``/v2``.
    :param api_key: a key that it accepts.
    :param account: key of the account that the controls are about, if not the first.
    """

    url: str
    api_key: str = API_KEY
    account: str | None = None

    @property
    def connection(self) -> str:
        """An Airflow connection to it, as JSON."""
        return f'{{"conn_type": "runa", "password": "{self.api_key}", "host": "{self.url}"}}'

    def _control(self, method: str, name: str, body: Any = None) -> Any:
        url = f"{self.url.removesuffix('/v2')}/_sandbox/{name}"
        headers = {} if self.account is None else {"X-Api-Key": self.account}
        return httpx.request(method, url, json=body, headers=headers, timeout=10).raise_for_status().json()

    def faults(self, *faults: dict[str, Any]) -> None:
        """Let something go wrong."""
        self._control("POST", "faults", list(faults))

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._control("DELETE", "faults")

    def lies(self, *lies: dict[str, Any]) -> None:
        """Let something false be answered."""
        self._control("POST", "lies", list(lies))

    def clear_lies(self) -> None:
        """Let the truth be answered again."""
        self._control("DELETE", "lies")

    def add_order(self, order: dict[str, Any], status: str = "COMPLETED") -> str:
        """Add an order of somebody else, and return its id. One that is PROCESSING never ends."""
        return str(self._control("POST", "orders", {"order": order, "status": status})["id"])

    def set_status(self, order_id: str, status: str) -> None:
        """Settle an order now, or never (PROCESSING)."""
        self._control("POST", f"orders/{order_id}/status", {"status": status})

    def set_payout(self, order_id: str, status: str, *, item: int = 0, expiry_date: str | None = None) -> None:
        """Let a payout be claimed, cancelled or expire."""
        body = {"status": status, "item": item, "expiry_date": expiry_date}
        self._control("POST", f"orders/{order_id}/payout", body)

    def add_account(self, api_key: str) -> RunningSandbox:
        """Open another account of the same environment, and return it."""
        self._control("POST", "accounts", {"api_key": api_key})
        return RunningSandbox(self.url, api_key, account=api_key)

    def stats(self) -> dict[str, Any]:
        """Return counts of orders, payouts and requests."""
        counts: dict[str, Any] = self._control("GET", "stats")
        return counts

    def orders(self) -> list[dict[str, Any]]:
        """Return the orders, without recipients and links."""
        orders: list[dict[str, Any]] = self._control("GET", "orders")
        return orders

    def balance(self, currency: str, balance: str) -> None:
        """Set a balance."""
        self._control("POST", "balance", {"currency": currency, "balance": balance})

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock forward."""
        self._control("POST", "advance", {"seconds": seconds})

    def reset(self) -> None:
        """Forget everything."""
        self._control("POST", "reset")


@contextmanager
def start_sandbox(*options: str, python: str = sys.executable, cwd: Path | None = None) -> Iterator[RunningSandbox]:
    """Run a sandbox on a free port of this machine until the block ends.

    :param options: further options of its command line.
    :param python: the interpreter that runs it. Default: the tests' own.
    :param cwd: where it runs, which is the first place that the package is looked for. Default: here.
    """
    command = [python, "-m", "airflow_provider_runa.sandbox", "--port", "0", *options]
    # In a new session, so that Ctrl-C ends it at the end of this block and not in the middle of something.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        cwd=cwd,
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 30)
        line = process.stdout.readline() if ready else ""
        assert line.startswith("Runa sandbox on "), f"the sandbox did not start: {line!r}"
        yield RunningSandbox(line.split()[-1])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
