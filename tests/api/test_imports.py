"""``api`` does not import Airflow, and its models do not import an HTTP library."""

from __future__ import annotations

import subprocess
import sys

import pytest

HTTP = ["httpx", "httpcore", "requests", "aiohttp", "urllib3"]


def loaded(module: str, unwanted: list[str]) -> list[str]:
    """Import a module in a new process and return which unwanted packages that has loaded."""
    program = (
        f"import sys, {module}\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        f"print(*[name for name in {unwanted!r} if name in roots])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["models", "errors", "retry"])
def test_models_and_errors_load_neither_airflow_nor_http(module: str) -> None:
    assert loaded(f"airflow_provider_runa.api.{module}", ["airflow", *HTTP]) == []


@pytest.mark.parametrize("module", ["client", "statuses"])
def test_the_client_loads_no_airflow(module: str) -> None:
    assert loaded(f"airflow_provider_runa.api.{module}", ["airflow", "requests", "aiohttp"]) == []


def test_what_is_loaded_is_seen() -> None:
    assert loaded("airflow_provider_runa.api.client", HTTP)[:1] == ["httpx"]
