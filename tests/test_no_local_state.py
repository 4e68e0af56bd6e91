"""A task keeps nothing on the machine it runs on: killed at its request, it is finished elsewhere, and pays once.

A pod loses its disk when it ends. Each attempt is a process with a home, a working directory and a temporary folder
that no other process uses, in which every change of a file is blocked (:mod:`tests.support.pod`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy.engine import make_url

from tests.support.pod import PROOF, READY, REFUSED, ROWS
from tests.support.proxy import FaultProxy, Held, start_proxy
from tests.support.sandbox import RunningSandbox, start_sandbox

ROOT = Path(__file__).parent.parent

#: How long a process may take, in seconds; it takes about 3.
LONGEST_ATTEMPT = 60.0


@pytest.fixture(scope="module")
def shared_sandbox() -> Iterator[RunningSandbox]:
    with start_sandbox("--processing-delay", "0.5") as running:
        yield running


@pytest.fixture
def sandbox(shared_sandbox: RunningSandbox) -> RunningSandbox:
    """An empty sandbox whose orders take half a second."""
    shared_sandbox.reset()
    return shared_sandbox


@pytest.fixture
def proxy(sandbox: RunningSandbox) -> Iterator[FaultProxy]:
    with start_proxy(sandbox.url) as running:
        yield running


class Pod:
    """A process that runs one attempt of a task, and what it wrote.

    :param folder: where everything of its own is; its output is beside it.
    :param process: the process.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], output: Path) -> None:
        self.folder = folder
        self.process = process
        self._output = output

    def lines(self) -> list[str]:
        """Return what it has printed, Airflow's log included."""
        return self._output.read_text(errors="replace").splitlines()

    def wait_for(self, held: Held) -> None:
        """Wait until its request stands in the proxy."""
        deadline = time.monotonic() + LONGEST_ATTEMPT
        while True:
            try:
                return held.wait(0.2)
            except TimeoutError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("the attempt sent no order:\n" + "\n".join(self.lines()))

    def evict(self) -> None:
        """End it at once, as a node does that goes down."""
        self.process.kill()
        assert self.process.wait(10) == -9

    def succeeds(self) -> str | dict[str, object]:
        """Wait until its task is green, and return what the task returns."""
        try:
            ended = self.process.wait(LONGEST_ATTEMPT)
        except subprocess.TimeoutExpired:
            ended = None
        assert ended == 0, "\n".join(self.lines())
        return json.loads(self.lines()[-1])

    def left_nothing(self) -> bool:
        """Whether it was kept from writing all the time, and did not try to, besides proving that."""
        lines = self.lines()
        refusals = [line for line in lines if line.startswith(REFUSED)]
        proof = [line for line in lines[: lines.index(READY)] if line.startswith(REFUSED)]
        assert len(proof) >= len(PROOF), "nothing proves that changes are blocked"
        assert refusals == proof, "the task tried to keep something on this machine"
        # The hook sees Python; this sees libraries in C as well.
        return not any(path for name in ("work", "home", "tmp") for path in (self.folder / name).iterdir())


@contextmanager
def start_pod(folder: Path, kind: str, try_number: int) -> Iterator[Pod]:
    """Run an attempt in a process; it has ended when the block ends.

    :param folder: is made for it.
    :param kind: ``order`` or ``campaign``.
    :param try_number: which attempt it is.
    """
    for name in ("work", "home", "tmp", "airflow"):
        (folder / name).mkdir(parents=True)
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "tests.support.pod", kind, str(try_number)]
    output = folder.with_suffix(".out")
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder / "work", env=env, stdout=file, stderr=file)
    try:
        yield Pod(folder, process, output)
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize(("kind", "when"), [("order", "after"), ("campaign", "before")])
def test_an_attempt_that_is_evicted_at_its_request_is_finished_elsewhere(
    kind: str,
    when: Literal["before", "after"],
    sandbox: RunningSandbox,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    connection = {"conn_type": "runa", "password": sandbox.api_key, "host": proxy.url}
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(connection))
    if kind == "campaign":
        ledger = make_url(request.getfixturevalue("postgres"))
        uri = f"postgres://{ledger.username}@{ledger.host}:{ledger.port}/{ledger.database}"
        monkeypatch.setenv("AIRFLOW_CONN_LEDGER", uri)
    held = proxy.hold("POST", "/order", when)

    with start_pod(tmp_path / "first", kind, 1) as first:
        first.wait_for(held)
        first.evict()
    # Held before, the request arrives although its sender has ended; held after, its answer is lost.
    held.release()
    assert sandbox.stats()["payouts"] > 0
    with start_pod(tmp_path / "second", kind, 2) as second:
        result = second.succeeds()

    assert first.left_nothing()
    assert second.left_nothing()
    stats = sandbox.stats()
    assert set(stats["orders_by_recipient"].values()) == {1}
    sent = max(stats["order_posts_by_key"].values())
    if kind == "order":
        assert sent == 2, "the second attempt sends the order again, under the same key"
        assert (stats["orders"], stats["payouts"]) == ({"COMPLETED": 1}, 1)
        assert [order["id"] for order in sandbox.orders()] == [result]
    else:
        assert sent == 1, "the second attempt finds the order in the list, before it sends any"
        assert (stats["orders"], stats["payouts"]) == ({"COMPLETED": 2}, ROWS)
        assert isinstance(result, dict)
        assert result["rows"] == {"paid": ROWS}
