"""What a page tells the reader to type, typed: only installing is left out, and the port is a free one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.docs.conftest import ROOT


def page(name: str, *, until: str | None = None) -> str:
    """Return the text of a page of the documentation.

    :param name: its path in ``docs``.
    :param until: the heading before which to stop.
    """
    text = (ROOT / "docs" / name).read_text()
    if until is None:
        return text
    told, heading, _ = text.partition(f"\n## {until}\n")
    assert heading
    return told


def type_in(text: str, folder: Path, *, after: dict[str, str] | None = None, timeout: float) -> str:
    """Type the shell blocks of a page into one shell, in order, and return what it printed.

    It stops at the first command that fails. What it leaves running is ended.

    :param text: the page.
    :param folder: an empty directory.
    :param after: a line of the page -> what to type after it as well.
    :param timeout: seconds, for all of it.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    typed = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("8765", str(port))
    typed, left_out = re.subn(r"^(python3 -m venv|pip install) .*\n", "", typed, flags=re.MULTILINE)
    assert left_out >= 2
    for line, more in (after or {}).items():
        assert typed.count(f"{line}\n") == 1
        typed = typed.replace(f"{line}\n", f"{line}\n{more}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "RUNA"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    log = folder / "printed.log"
    command = ["bash", "-e", "-c", typed]
    # Not through a pipe: it would not end before the sandbox does.
    with (
        log.open("wb") as printed,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        ) as shell,
    ):
        try:
            status = shell.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert status == 0, log.read_text()[-6000:]
    return log.read_text()
