"""The DAG that runs on every supported release of Airflow: an order that defers, and a sensor after it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG
from planted import ITEMS, MACROS

from airflow_provider_runa.operators import runa
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.sensors.runa import RunaOrderSensor


class DeferredSoon(RunaCreateOrderOperator):
    """It does not poll inline for long, so that it does defer."""

    def execute(self, context: Any) -> str:
        runa.INLINE_SECONDS = 1.0
        return super().execute(context)


with DAG(
    "e2e_every_release",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retries": 1, "retry_delay": timedelta(seconds=1)},
    user_defined_macros=MACROS,
):
    order = DeferredSoon(
        task_id="order",
        items=ITEMS,
        currency="USD",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=5,
    )
    RunaOrderSensor(task_id="sense", order_id=order.output, deferrable=True, poke_interval=5)
