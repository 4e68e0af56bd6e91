"""A backfill of missed campaign days: each recipient of each day is paid once, even if a day is run several times.

Start it with Airflow's backfill. The ``order_key`` names the day and the recipient, so it does not matter which run
pays: a day that is reprocessed, or that another DAG has already paid, is not paid again.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator

# Replace this with your customer database. Query it on the worker: only customer ids pass through XComs.
ADDRESSES = {"customer-1": "ada@example.com", "customer-2": "grace@example.com"}


def reward(entitlement: dict[str, str]) -> dict:
    """Return what one mapped task orders."""
    return {
        "order_key": f"spring-campaign/{entitlement['day']}/{entitlement['customer']}",
        "items": [
            {
                "face_value": 5,
                "distribution_method": {
                    "type": "EMAIL",
                    "email_address": ADDRESSES[entitlement["customer"]],
                },
                "products": {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
            }
        ],
    }


with DAG(
    dag_id="runa_backfill_missed_days",
    doc_md=__doc__,
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 3},
    tags=["runa", "example"],
):

    @task
    def entitled(dag_run=None) -> list[dict[str, str]]:
        """Return who qualified on the day of this run."""
        day = (dag_run.logical_date or dag_run.run_after).date().isoformat()
        return [{"day": day, "customer": customer} for customer in sorted(ADDRESSES)]

    RunaCreateOrderOperator.partial(
        task_id="pay_missed_rewards",
        currency="USD",
        look_back=60,  # days: the campaign began about two months ago
        wait_for_completion=True,
        deferrable=True,
        poll_interval=5,
    ).expand_kwargs(entitled().map(reward))
