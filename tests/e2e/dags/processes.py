"""DAGs of the process tests: the operator as it is, on a connection through the tests' proxy.

Only three of them change something, because there is no request to hold at the point in question, or to save time:
one dies before its intent is written, one defers at once, and one gives up on unknown outcomes soon.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG
from planted import ITEMS, MACROS

from airflow_provider_runa.operators import _placement_ports, runa
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator


class KilledBeforeIntent(RunaCreateOrderOperator):
    """Its process is killed, on the first try, when it would write down what it is about to send."""

    def execute(self, context: Any) -> str:
        marker = Path(os.environ["RUNA_TEST_MARKERS"]) / f"intent-{context['run_id'].replace(':', '')}"

        class Records(_placement_ports.TaskStateRecords):
            async def save(self, record: Any) -> None:
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                await super().save(record)

        runa.TaskStateRecords = Records
        return super().execute(context)


class DeferredSoon(RunaCreateOrderOperator):
    """It does not poll inline for long. The trigger's own 5 s before its first poll are as they are."""

    def execute(self, context: Any) -> str:
        runa.INLINE_SECONDS = 1.0
        return super().execute(context)


class ShortBudget(RunaCreateOrderOperator):
    """It does not go on for long while the outcome is unknown."""

    policy = replace(RunaCreateOrderOperator.policy, budget=4.0)


def order_dag(dag_id: str, operator: type[RunaCreateOrderOperator] = RunaCreateOrderOperator, **arguments: Any) -> None:
    """Make a DAG of one order, which the run's ``conf`` may describe."""
    start = pendulum.datetime(2026, 1, 1, tz="UTC")
    with DAG(f"process_{dag_id}", schedule=None, start_date=start, user_defined_macros=MACROS):
        operator(
            task_id="order",
            items=ITEMS,
            currency="USD",
            description="{{ dag_run.conf.get('case', 'order') }}",
            wait_for_completion=True,
            **{
                "poll_interval": 1,
                "runa_conn_id": "runa_proxied",
                "retries": 3,
                "retry_delay": timedelta(seconds=1),
                **arguments,
            },
        )


order_dag("order")
order_dag("before_intent", KilledBeforeIntent)
order_dag("impatient", runa_conn_id="runa_impatient")
order_dag("short_budget", ShortBudget, runa_conn_id="runa_impatient")
order_dag("execution_timeout", execution_timeout=timedelta(seconds=5))
order_dag("deferred", deferrable=True, poll_interval=5)
order_dag("deferred_soon", DeferredSoon, deferrable=True, poll_interval=5)
order_dag("keyed", order_key="{{ dag_run.conf['order_key'] }}")
# `airflow tasks clear` clears every run of a DAG, so these have one run each.
order_dag("cleared_finished")
order_dag("cleared_running")
