"""DAGs of the end-to-end tests: an order whose recipients must not be seen, one that is refused, and a wait."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG
from planted import ITEMS, MACROS

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.sensors.balance import RunaBalanceSensor
from airflow_provider_runa.sensors.runa import RunaOrderSensor

ARGUMENTS = {"retries": 3, "retry_delay": timedelta(seconds=1)}
START = pendulum.datetime(2026, 1, 1, tz="UTC")

with DAG("e2e_secrets", schedule=None, start_date=START, user_defined_macros=MACROS, default_args=ARGUMENTS) as secret:
    order = RunaCreateOrderOperator(
        task_id="defer", items=ITEMS, currency="USD", wait_for_completion=True, deferrable=True, poll_interval=5
    )
    RunaOrderSensor(task_id="sense", order_id=order.output, deferrable=True, poke_interval=5)
    RunaOrderSensor(task_id="reschedule", order_id=order.output, mode="reschedule", poke_interval=2)

with suppress(ImportError):  # where OpenLineage is installed, it is told of this one
    from airflow.providers.openlineage.utils.selective_enable import enable_lineage

    enable_lineage(secret)

with DAG("e2e_refused", schedule=None, start_date=START, user_defined_macros=MACROS, default_args=ARGUMENTS):
    RunaCreateOrderOperator(task_id="order", items=ITEMS, currency="USD", max_total=10)

with DAG("e2e_balance", schedule=None, start_date=START, default_args=ARGUMENTS):
    RunaBalanceSensor(task_id="covered", currency="USD", amount=100, deferrable=True, poke_interval=5)
