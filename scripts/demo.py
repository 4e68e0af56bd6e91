"""``make demo``: run an example DAG on a real Airflow against the sandbox, and show the orders.

    python -m scripts.demo [--stay]

With ``--stay`` (``make demo-ui``) Airflow and the sandbox go on until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from scripts.airflow_stack import AirflowStack
from tests.support.sandbox import RunningSandbox, start_sandbox

DAG_ID = "runa_create_then_sense"
DAGS = Path(__file__).parent.parent / "example_dags"


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def show_orders(sandbox: RunningSandbox) -> None:
    """Print the sandbox's orders as a table."""
    head = ("order", "status", "items", "total", "currency", "description")
    rows = [
        (
            order["id"],
            order["status"],
            str(order["items"]),
            order["face_value"],
            order["currency"],
            order["description"],
        )
        for order in sandbox.orders()
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, tuple("-" * width for width in widths), *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP stop everything as Ctrl-C does; once, so that impatience does not leave half of it."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        say("Stopping …")
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, stop)


def run(home: Path, stay: bool) -> str:
    """Run the DAG and show the orders; return the state in which the run ended."""
    began = time.monotonic()
    # Twenty seconds of processing: longer than the sensor's first look, so that it does wait in the triggerer.
    with start_sandbox("--processing-delay", "20") as sandbox:
        say(f"Sandbox of Runa's API: {sandbox.url}")
        say("Starting Airflow: API server, scheduler, DAG processor, triggerer …")
        env = {"AIRFLOW_CONN_RUNA_DEFAULT": sandbox.connection}
        with AirflowStack(home, DAGS, env) as airflow:
            say(f"Airflow is up after {time.monotonic() - began:.0f} s. Running {DAG_ID} …")
            run_id = airflow.trigger(DAG_ID)
            state = airflow.wait_for_run(DAG_ID, run_id, timeout=120)
            for task in airflow.task_instances(DAG_ID, run_id):
                say(f"  {task['task_id']}: {task['state']}")
            show_orders(sandbox)
            say(f"The run ended in state {state}, {time.monotonic() - began:.0f} s after the start.")
            if state != "success":
                say(airflow.explain(DAG_ID, run_id))
            if stay:
                say(f"\nAirflow: {airflow.ui_url} (no login is asked for: everyone on this machine is admin)")
                say(f"Sandbox: {sandbox.url} with the API key {sandbox.api_key}\nCtrl-C stops both.")
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()
    return state


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(description="Run the deferrable example DAG against the sandbox.")
    parser.add_argument("--stay", action="store_true", help="leave Airflow and the sandbox running until Ctrl-C")
    stay = parser.parse_args().stay
    stop_on_signals()
    home = Path(tempfile.mkdtemp(prefix="runa-demo-"))
    try:
        state = run(home, stay)
    except KeyboardInterrupt:
        shutil.rmtree(home, ignore_errors=True)
        return 130
    if state != "success":
        say(f"Logs are in {home}.")
        return 1
    shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
