"""The tutorial, typed as it is on its page; only installing is left out, and the port is a free one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT

pytestmark = pytest.mark.e2e

PAGE = (ROOT / "docs" / "tutorial.md").read_text()


def test_it_does_what_it_says(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    typed = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("8765", str(port))
    typed, left_out = re.subn(r"^(python3 -m venv|pip install) .*\n", "", typed, flags=re.MULTILINE)
    assert left_out == 2
    # Whoever types waits for the sandbox's first line.
    ready = f"until curl -s -o /dev/null http://127.0.0.1:{port}/; do sleep 0.2; done"
    typed = typed.replace("& sandbox=$!\n", f"& sandbox=$!\ntrap 'kill $sandbox' EXIT\n{ready}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "RUNA"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ended = subprocess.run(
        ["bash", "-e", "-c", typed],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    promised = re.findall(r"`(\d (?:of|order\(s\)) [^`]+)`", PAGE)
    assert len(promised) == 3
    said = re.findall(r"^\d (?:of|order\(s\)) .*$", ended.stdout, re.MULTILINE)
    assert said == [promised[0], promised[0], promised[1], promised[2]]
    assert '"payouts":4' in ended.stdout.replace(" ", "")
    assert "45.00 USD" in ended.stdout
