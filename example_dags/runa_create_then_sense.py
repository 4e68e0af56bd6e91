"""Create, then sense: one task places the order, a deferrable sensor waits until the order is COMPLETED."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.sensors.runa import RunaOrderSensor

with DAG(
    dag_id="runa_create_then_sense",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retries": 3},
    params={"email": "ada@example.com", "amount": 10},
    tags=["runa", "example"],
):
    order = RunaCreateOrderOperator(
        task_id="order_reward",
        items=[
            {
                "face_value": "{{ params.amount }}",
                "distribution_method": {"type": "EMAIL", "email_address": "{{ params.email }}"},
                "products": {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
            }
        ],
        currency="USD",
        description="Thank you, run {{ run_id }}",
        max_total=100,
    )
    RunaOrderSensor(
        task_id="wait_for_reward",
        order_id=order.output,
        deferrable=True,
        poke_interval=5,
        timeout=600,
    )
