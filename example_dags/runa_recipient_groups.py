"""One order per group of recipients, through dynamic task mapping: a group that is refused does not hold the others."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator

# Stands for your segments: which group gets how much, and who is in it.
GROUPS = {
    "gold": (50, ["ada@example.com", "grace@example.com"]),
    "silver": (20, ["barbara@example.com"]),
}


def order_of(group: str) -> dict:
    """Return the order of one group."""
    face_value, addresses = GROUPS[group]
    return {
        "description": f"Rewards of group {group}",
        "items": [
            {
                "face_value": face_value,
                "distribution_method": {"type": "EMAIL", "email_address": address},
                "products": {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
            }
            for address in addresses
        ],
    }


with DAG(
    dag_id="runa_recipient_groups",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retries": 3},
    tags=["runa", "example"],
):

    @task
    def groups() -> list[str]:
        """Return the groups of this run, in an order that stays the same: mapped tasks are told apart by it."""
        return sorted(GROUPS)

    RunaCreateOrderOperator.partial(
        task_id="pay_group",
        currency="USD",
        max_total=1000,
        wait_for_completion=True,
        poll_interval=1,
    ).expand_kwargs(groups().map(order_of))
