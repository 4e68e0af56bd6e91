"""A Redis server of the tests' own: a free port of this machine, a temporary folder, gone when the block ends."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.airflow_stack import free_port

#: How long the server may take to come up or to stop, in seconds.
_LONGEST_WAIT = 30.0

MISSING = "there is no Redis server on this machine: install one with `make redis` (as root, on Debian)"


def find_program() -> str | None:
    """Return the path of ``redis-server``; ``None`` if there is none."""
    return shutil.which("redis-server")


@contextmanager
def start_redis(program: str) -> Iterator[str]:
    """Run a server until the block ends.

    :param program: see :func:`find_program`.
    :returns: URL of its first database, which is empty.
    """
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        port = free_port()
        # What it holds need not outlive it, so it writes nothing. Without a file of settings it reads none.
        settings = {"bind": "127.0.0.1", "port": str(port), "save": "", "appendonly": "no", "dir": folder}
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        log = Path(folder, "log")
        with log.open("wb") as output:
            server = subprocess.Popen(
                [program, *options], cwd=folder, stdout=output, stderr=output, start_new_session=True
            )
        try:
            _wait(server, port, log)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            try:
                server.wait(_LONGEST_WAIT)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + _LONGEST_WAIT
    while not _answers(port):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Redis did not come up on port {port}:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
