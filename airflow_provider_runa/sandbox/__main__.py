"""``runa-sandbox``, or ``python -m airflow_provider_runa.sandbox``: run the sandbox."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import json
import re
import shlex
import socket
import sqlite3
import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from airflow_provider_runa.sandbox import DEFAULT_API_KEY


def _balance(text: str) -> tuple[str, Decimal]:
    currency, _, amount = text.partition("=")
    try:
        balance = Decimal(amount)
    except InvalidOperation:
        balance = Decimal("NaN")
    if not re.fullmatch(r"[A-Z]{3}", currency) or not balance.is_finite() or balance < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not like USD=1000")
    return currency, balance


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runa-sandbox", description="A local Runa API for development and tests.")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=8765, help="port to listen on, 0 for a free one (default 8765)")
    add("--database", type=Path, metavar="FILE", help="SQLite file to keep the state in (default: memory)")
    add("--api-key", action="append", metavar="KEY", help=f"key to accept, repeatable (default {DEFAULT_API_KEY})")
    add("--processing-delay", type=_seconds, default=1.0, metavar="SECONDS", help="every order takes (default 1)")
    add("--balance", action="append", type=_balance, metavar="USD=1000", help="the only opening balances, repeatable")
    add("--orders-per-minute", type=int, default=300, help="order requests before a 429 (default 300)")
    add("--latency", type=_seconds, default=0.0, metavar="SECONDS", help="every answer takes (default 0)")
    add("--fail-orders", type=int, default=0, metavar="N", help="the first N orders end FAILED (default 0)")
    add("--log-requests", action="store_true", help="print method, path and status of each request")
    add("--in-progress-status", type=int, choices=(400, 102), default=400, help="for a key in use (default 400)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sandbox until it is stopped.

    :param argv: command line, without the program's name.
    :returns: exit status.
    """
    options = _parser().parse_args(argv)
    try:
        import uvicorn

        from airflow_provider_runa.sandbox.app import create_app
        from airflow_provider_runa.sandbox.engine import Engine, Fault
    except ImportError as error:
        print(f"{error}; install the extra: pip install 'airflow-provider-runa[sandbox]'", file=sys.stderr)
        return 2
    if not _is_loopback(options.host):
        print(f"Warning: {options.host} can be reached from other machines.", file=sys.stderr)

    api_keys = options.api_key or [DEFAULT_API_KEY]
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family)
        address = f"http://{host}:{listener.getsockname()[1]}"
        engine = Engine(
            api_keys=api_keys,
            processing_delay=options.processing_delay,
            balances=dict(options.balance) if options.balance else None,
            orders_per_minute=options.orders_per_minute,
            database=options.database,
            latency=options.latency,
            link_base=f"{address}/claim",
            in_progress_status=options.in_progress_status,
        )
    except (OSError, OverflowError, sqlite3.Error) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = f"port {options.port} is in use. Is another sandbox running? --port 0 takes a free port."
        else:
            reason = str(error)
        print(f"The sandbox cannot start: {reason}", file=sys.stderr)
        return 1
    if options.fail_orders:
        engine.faults.append(Fault("fail_order", count=options.fail_orders))

    config = uvicorn.Config(
        create_app(engine, log_requests=options.log_requests),
        http="h11",
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=1,  # an answer may be slow on purpose
    )
    server = uvicorn.Server(config)

    async def serve() -> None:
        # The socket listens and a signal is handled: what reads this line can connect to the sandbox, and can stop it.
        print(f"Runa sandbox on {address}/v2", flush=True)
        connection = {"conn_type": "runa", "password": api_keys[0], "host": f"{address}/v2"}
        print(f"export AIRFLOW_CONN_RUNA_DEFAULT={shlex.quote(json.dumps(connection))}", flush=True)
        await server.serve(sockets=[listener])

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())  # not uvloop, which uvicorn prefers: there, what follows a broken-off answer is still sent
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    raise SystemExit(main())
