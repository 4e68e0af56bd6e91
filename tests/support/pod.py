"""An attempt of a task in a process that may write to no file: what a pod without a volume leaves behind is nothing.

``python -m tests.support.pod order 1`` runs the first attempt of an order, ``campaign 2`` the second one of a campaign.
Everything is imported first, because Airflow writes into its home when it is imported. Then whatever would change a
file or a folder is rejected, and reported in a line on standard output; the first of these lines prove that it is
rejected. The last line of an attempt that ends is what the task returns.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from tests.campaign.world import DEFAULTS, row
from tests.support.airflow import task_context

#: What begins the line of a refusal, and what is written between the proof and the task.
REFUSED, READY = "refused: ", "ready"

#: Rows of the campaign: two orders.
ROWS = 250

#: Python's names of what changes a file or a folder, besides opening one.
_CHANGES = {
    "os.chmod",
    "os.chown",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "sqlite3.connect",
}

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def refuse_writes(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse whatever would change a file or a folder: an audit hook."""
    if event == "open":
        path, _, flags = arguments
        # A number is a file that is open already, such as a socket's.
        refused = not isinstance(path, int) and bool(flags & _WRITES)
    else:
        refused = event in _CHANGES
    if refused:
        os.write(sys.stdout.fileno(), f"{REFUSED}{event} {arguments[0]!r}\n".encode())
        raise PermissionError(f"{event} is refused here")


#: What the proof tries, one for each way to leave something behind.
PROOF: dict[str, Callable[[], Any]] = {
    "a file": lambda: Path("state").write_text("sent"),
    "a descriptor": lambda: os.open("state", os.O_CREAT | os.O_RDWR),
    "more of a file": lambda: os.open("state", os.O_WRONLY | os.O_APPEND),
    "a temporary file": tempfile.mkstemp,
    "a folder": lambda: Path("folder").mkdir(),
    "another name": lambda: Path("state").rename("elsewhere"),
    "a file less": lambda: Path("state").unlink(),
    "a database": lambda: sqlite3.connect("state.db"),
}


def prove() -> None:
    """Try to leave something behind, in every way."""
    for name, attempt in PROOF.items():
        try:
            attempt()
        except PermissionError:
            continue
        raise AssertionError(f"{name} is not refused")


def order() -> RunaCreateOrderOperator:
    """Return a task that orders."""
    item = {
        "face_value": 10,
        "distribution_method": {"type": "EMAIL", "email_address": "ada@example.com"},
        "products": {"type": "SINGLE", "value": "AMZ-US"},
    }
    return RunaCreateOrderOperator(
        task_id="pay", items=[item], currency="USD", wait_for_completion=True, poll_interval=1
    )


def campaign() -> RunaPayoutOperator:
    """Return a task that pays a campaign."""
    return RunaPayoutOperator(
        task_id="pay",
        campaign="spring",
        rows=[row(number) for number in range(ROWS)],
        currency="USD",
        defaults=DEFAULTS,
        ledger_conn_id="ledger",
        poll_interval=1,
    )


def main(kind: str, try_number: str) -> None:
    """Run one attempt.

    :param kind: ``order`` or ``campaign``.
    :param try_number: which attempt it is, from 1.
    """
    task = {"order": order, "campaign": campaign}[kind]()
    context = task_context(try_number=int(try_number))
    sys.addaudithook(refuse_writes)
    prove()
    print(READY, flush=True)
    print(json.dumps(task.execute(context)), flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
