"""PgBouncer in front of a PostgreSQL server, for the tests: a free port, a temporary folder, stopped with the block."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from scripts.airflow_stack import free_port

#: Longest time that PgBouncer may take to start, in seconds.
_LONGEST_WAIT = 30.0

#: Connections to the server for each database. They are used in turn.
POOL_SIZE = 2

MISSING = "there is no PgBouncer on this machine: install it with `make pgbouncer` (as root, on Debian)"


def find_program() -> Path | None:
    """Return the path of ``pgbouncer``; ``None`` if there is none. Debian installs it outside a user's PATH."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    return None if found is None else Path(found)


@contextmanager
def start_pgbouncer(program: Path, server: str) -> Iterator[str]:
    """Run PgBouncer until the block ends, with a pool for each transaction and without prepared statements.

    A client gets a server connection for one transaction. The server connections of a pool are used in turn, so the
    next transaction gets another one as soon as the pool has two: see :func:`fill_pool`.

    :param program: see :func:`find_program`.
    :param server: SQLAlchemy's URL of a database on the server; its user needs no password.
    :returns: the same URL, through PgBouncer. Every database of the server can be reached.
    """
    target = sa.engine.make_url(server)
    user = None
    if os.geteuid() == 0:  # PgBouncer refuses to run as root
        user = next(name for name in ("postgres", "nobody") if _exists(name))
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    try:
        port = free_port()
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": folder / "users",
            "admin_users": target.username,
            "pool_mode": "transaction",
            "default_pool_size": POOL_SIZE,
            "server_round_robin": 1,
        }
        if _version(program) >= (1, 21):  # older releases do not support prepared statements, and reject the setting
            settings["max_prepared_statements"] = 0
        (folder / "users").write_text(f'"{target.username}" ""\n')
        lines = [f"{name} = {value}" for name, value in settings.items()]
        databases = f"* = host={target.host} port={target.port}"
        (folder / "pgbouncer.ini").write_text("\n".join(["[databases]", databases, "[pgbouncer]", *lines, ""]))
        if user is not None:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, user)
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, folder / "pgbouncer.ini"],
                user=user,
                cwd=folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            _wait(process, log)
            yield target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        finally:
            process.kill()  # a signal that waits for no client; PgBouncer keeps nothing that could be lost
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fill_pool(url: str) -> None:
    """Open all server connections of a database's pool, so that consecutive transactions use different ones.

    :param url: SQLAlchemy's URL of the database, through PgBouncer.
    """
    import psycopg2

    dsn = re.sub(r"^\w+\+\w+:", "postgresql:", url)
    clients = [psycopg2.connect(dsn) for _ in range(POOL_SIZE)]
    for client in clients:
        client.cursor().execute("SELECT 1")  # begins a transaction, which holds a server connection
    for client in clients:
        client.rollback()
        client.close()


def _exists(user: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


def _version(program: Path) -> tuple[int, int]:
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", printed)
    if found is None:
        raise RuntimeError(f"{program} --version: {printed}")
    return int(found[1]), int(found[2])


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until PgBouncer accepts connections, which it writes to its log."""
    deadline = time.monotonic() + _LONGEST_WAIT
    while "process up" not in (text := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PgBouncer did not start:\n{text}")
        time.sleep(0.05)
