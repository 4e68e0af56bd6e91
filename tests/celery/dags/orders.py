"""A DAG of 200 orders, one mapped task each, which defer while Runa works on them."""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator

ORDERS = 200
SLOTS = 24


def items(number: int) -> list[dict[str, object]]:
    """Return the payout of one order, to a recipient of its own."""
    return [
        {
            "face_value": 10,
            "distribution_method": {"type": "EMAIL", "email_address": f"customer-{number}@example.com"},
            "products": {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
        }
    ]


with DAG("celery_orders", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), max_active_tasks=SLOTS):
    RunaCreateOrderOperator.partial(
        task_id="order",
        currency="USD",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=5,
        retries=5,
        retry_delay=timedelta(seconds=2),
        max_active_tis_per_dagrun=SLOTS,
    ).expand(items=[items(number) for number in range(ORDERS)])
