"""A PostgreSQL server of the tests' own: a free port of this machine, a temporary folder, gone when the block ends."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: How long the server may take to come up or to stop, in seconds.
_LONGEST_WAIT = 60.0

MISSING = "there is no PostgreSQL server on this machine: install one with `make postgres` (as root, on Debian)"


def find_programs() -> Path | None:
    """Return the folder of ``initdb`` and ``postgres``, the newest there is; ``None`` if there is none."""
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    folders = sorted(versions, key=lambda folder: float(folder.parent.name), reverse=True)
    if on_path := shutil.which("postgres"):
        folders.append(Path(on_path).resolve().parent)
    return next(
        (folder for folder in folders if all((folder / name).exists() for name in ("initdb", "postgres"))), None
    )


@contextmanager
def start_postgres(programs: Path) -> Iterator[str]:
    """Run a server until the block ends.

    :param programs: see :func:`find_programs`.
    :returns: SQLAlchemy's URL of an empty database.
    """
    user = None
    if os.geteuid() == 0:  # as root it refuses to run
        user = next(name for name in ("postgres", "nobody") if _exists(name))
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        initdb = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "tests",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run(initdb, user=user, cwd=folder, check=True, capture_output=True)
        port = _free_port()
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *options], user=user, cwd=folder, stdout=log, stderr=log
            )
        try:
            _wait(server, port, folder / "log")
            yield f"postgresql+psycopg2://tests@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(2)  # SIGINT: "fast" shutdown, connections are ended
            try:
                server.wait(_LONGEST_WAIT)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exists(user: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server takes connections: it says so in its log."""
    deadline = time.monotonic() + _LONGEST_WAIT
    while "ready to accept connections" not in (text := log.read_text(errors="replace")):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not come up on port {port}:\n{text}")
        time.sleep(0.05)
