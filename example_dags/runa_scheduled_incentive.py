"""A scheduled incentive payout: every Monday, everyone who qualified last week gets a reward.

The task defers while Runa works on the order. Each run pays once, even if the task is retried, cleared or crashes.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator


def qualified(monday: str) -> list[dict]:
    """Return the payouts of the week before. Replace this with a query that returns the same rows for the same day."""
    winners = {"ada": 25, "grace": 10}
    return [
        {
            "face_value": reward,
            "distribution_method": {"type": "EMAIL", "email_address": f"{name}@example.com"},
            "products": {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
        }
        for name, reward in winners.items()
    ]


with DAG(
    dag_id="runa_scheduled_incentive",
    doc_md=__doc__,
    schedule="0 6 * * MON",
    start_date=pendulum.datetime(2026, 1, 5, tz="UTC"),
    catchup=False,
    user_defined_macros={"qualified": qualified},
    default_args={"retries": 3},
    tags=["runa", "example"],
):
    RunaCreateOrderOperator(
        task_id="pay_incentives",
        # The macro is rendered on the worker when the task runs: no address passes through an XCom.
        items="{{ qualified(dag_run.run_after | ds) | tojson }}",
        currency="USD",
        description="Weekly incentive, week before {{ dag_run.run_after | ds }}",
        max_total=500,
        wait_for_completion=True,
        deferrable=True,
    )
