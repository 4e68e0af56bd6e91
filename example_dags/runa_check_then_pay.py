"""Check the product, wait for the balance, pay what a function returns; then another DAG runs.

The DAG orders nothing unless the product can be ordered and the balance covers it. The function runs on the worker:
its return value goes to Runa and into no XCom.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Asset, task

from airflow_provider_runa.operators.checks import RunaCheckProductOperator
from airflow_provider_runa.sensors.balance import RunaBalanceSensor

PRODUCT = "AMZ-US"
REWARD = 10
PAID = Asset("runa://orders/winback")

# Replace this with your customer database. Query it on the worker.
ADDRESSES = {"customer-1": "ada@example.com", "customer-2": "grace@example.com"}

with DAG(
    dag_id="runa_check_then_pay",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retries": 3},
    tags=["runa", "example"],
):
    check = RunaCheckProductOperator(
        task_id="check_product", products=PRODUCT, face_value=REWARD, currency="USD", country="US"
    )
    covered = RunaBalanceSensor(
        task_id="wait_for_balance", currency="USD", amount=REWARD * len(ADDRESSES), deferrable=True
    )

    @task.runa_order(currency="USD", max_total=100, wait_for_completion=True, outlets=[PAID])
    def pay_rewards() -> list[dict]:
        """Return the payouts, in a stable order, because a retry calls this again."""
        return [
            {
                "face_value": REWARD,
                "distribution_method": {"type": "EMAIL", "email_address": ADDRESSES[customer]},
                "products": {"type": "SINGLE", "value": PRODUCT},
            }
            for customer in sorted(ADDRESSES)
        ]

    check >> covered >> pay_rewards()

with DAG(
    dag_id="runa_after_paying",
    doc_md=__doc__,
    schedule=[PAID],
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    tags=["runa", "example"],
):

    @task
    def note(triggering_asset_events=None) -> list[dict]:
        """Return what was paid: order id, status and totals."""
        return [dict(event.extra) for event in triggering_asset_events[PAID]]

    note()
