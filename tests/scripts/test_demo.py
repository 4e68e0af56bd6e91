"""The demo leaves nothing behind, however it is stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_stopped_stops_what_it_started(tmp_path: Path, how: int) -> None:
    command = [sys.executable, "-m", "scripts.demo", "--stay"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as demo:
        try:
            assert demo.stdout is not None
            url = re.fullmatch(r"Sandbox of Runa's API: (\S+)\n", demo.stdout.readline())[1]  # type: ignore[index]
            assert httpx.get(f"{url}/ping").status_code == 401
            assert demo.stdout.readline().startswith("Starting Airflow")
            demo.send_signal(how)
            said, errors = demo.communicate(timeout=30)
        finally:
            demo.kill()
    assert (demo.returncode, said, errors) == (130, "Stopping …\n", "")
    assert list(tmp_path.glob("runa-demo-*")) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/ping")
