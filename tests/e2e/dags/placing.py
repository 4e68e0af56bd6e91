"""DAGs of the end-to-end tests: an order whose recipients must not be seen, and tasks that get killed."""

from __future__ import annotations

import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.sensors.runa import RunaOrderSensor


def planted() -> list[dict[str, Any]]:
    secrets = json.loads(Path(os.environ["RUNA_TEST_SECRETS"]).read_text())
    products = {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"}
    by_mail = {"type": "EMAIL", "email_address": secrets["address"]}
    known = {"type": "RECIPIENT", "recipient_reference": secrets["reference"], "email_address": secrets["address"]}
    return [
        {"face_value": 10, "distribution_method": by_mail, "products": products},
        {"face_value": 15, "distribution_method": known, "products": products},
        {"face_value": 20, "distribution_method": {"type": "PAYOUT_LINK"}, "products": products},
    ]


class KilledHook(RunaHook):
    """A hook whose process is killed, once for each run, at a marked point."""

    point = ""

    def create_order(self, order: Any, *, idempotency_key: str, **options: Any) -> Any:
        marker = Path(os.environ["RUNA_TEST_MARKERS"]) / f"{self.point}-{idempotency_key}"
        if self.point == "before" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        answer = super().create_order(order, idempotency_key=idempotency_key, **options)
        if self.point == "after" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


class KilledOperator(RunaCreateOrderOperator):
    def __init__(self, *, point: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.point = point

    def execute(self, context: Any) -> str:
        from airflow_provider_runa.operators import runa

        hook = type("Hook", (KilledHook,), {"point": self.point})
        runa.RunaHook = hook
        return super().execute(context)


MACROS = {"planted": planted}
ARGUMENTS = {"retries": 3, "retry_delay": timedelta(seconds=1)}
START = pendulum.datetime(2026, 1, 1, tz="UTC")
ITEMS = "{{ planted() | tojson }}"

with DAG("e2e_secrets", schedule=None, start_date=START, user_defined_macros=MACROS, default_args=ARGUMENTS):
    order = RunaCreateOrderOperator(
        task_id="defer", items=ITEMS, currency="USD", wait_for_completion=True, deferrable=True, poll_interval=5
    )
    RunaOrderSensor(task_id="sense", order_id=order.output, deferrable=True, poke_interval=5)
    RunaOrderSensor(task_id="reschedule", order_id=order.output, mode="reschedule", poke_interval=2)

with DAG("e2e_refused", schedule=None, start_date=START, user_defined_macros=MACROS, default_args=ARGUMENTS):
    RunaCreateOrderOperator(task_id="order", items=ITEMS, currency="USD", max_total=10)

with DAG("e2e_retry", schedule=None, start_date=START, user_defined_macros=MACROS, default_args=ARGUMENTS):
    RunaCreateOrderOperator(task_id="order", items=ITEMS, currency="USD", wait_for_completion=True, poll_interval=1)

for where in ("before", "after"):
    with DAG(
        f"e2e_killed_{where}", schedule=None, start_date=START, user_defined_macros=MACROS, default_args=ARGUMENTS
    ):
        KilledOperator(
            task_id="order", point=where, items=ITEMS, currency="USD", wait_for_completion=True, poll_interval=1
        )
