"""The example of testing a DAG, which the documentation shows."""

# -- from here on it is in docs/howto/testing.md

import json
import subprocess
import sys

import httpx
import pytest

DAG_ID = "runa_create_then_sense"  # yours


@pytest.fixture
def sandbox(monkeypatch):
    """A sandbox on a free port, which the connection runa_default leads to; returns the address of its controls."""
    command = [sys.executable, "-m", "airflow_provider_runa.sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[-1]  # Runa sandbox on http://127.0.0.1:…/v2
        connection = {"conn_type": "runa", "password": "XXsandbox.secret", "host": url}
        monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(connection))
        yield f"{url.removesuffix('/v2')}/_sandbox"
        process.terminate()


def test_it_pays_once_even_if_the_answer_is_lost(sandbox):
    httpx.post(f"{sandbox}/faults", json=[{"kind": "drop_after"}]).raise_for_status()
    subprocess.run([sys.executable, "-m", "airflow", "dags", "test", DAG_ID], check=True)
    stats = httpx.get(f"{sandbox}/stats").json()
    assert stats["requests"]["POST /order"] == 2
    assert stats["payouts"] == 1


# -- up to here

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("examples")]
