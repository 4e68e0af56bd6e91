"""One order per group of recipients, with dynamic task mapping: a rejected group does not block the others."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator

# Replace this with your segments: the amount of each group, and its recipients.
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
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retries": 3},
    tags=["runa", "example"],
):

    @task
    def groups() -> list[str]:
        """Return the groups of this run, in a stable order: the index identifies a mapped task."""
        return sorted(GROUPS)

    RunaCreateOrderOperator.partial(
        task_id="pay_group",
        currency="USD",
        max_total=1000,
        wait_for_completion=True,
        poll_interval=1,
    ).expand_kwargs(groups().map(order_of))
