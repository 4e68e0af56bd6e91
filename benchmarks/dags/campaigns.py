"""The two DAGs of benchmarks/campaign.py, which pay the same rewards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG, Param, task

from airflow_provider_runa.operators.payout import RunaPayoutOperator

COUNT = {"count": Param(100, type="integer")}


class PayManyOperator(RunaPayoutOperator):
    """Pays as many rows as the run asks for."""

    def iter_rows(self, context: Any) -> Iterator[Any]:
        for n in range(context["params"]["count"]):
            yield {"recipient_key": f"customer-{n}", "face_value": 10, "email_address": f"customer-{n}@example.com"}


with DAG("bench_operator", schedule=None, params=COUNT):
    PayManyOperator(
        task_id="pay",
        campaign="bench {{ params.count }}",
        defaults={"product": "AMZ-US"},
        currency="USD",
        ledger_conn_id="ledger",
        deferrable=True,
        poll_interval=5,
    )

with DAG(
    "bench_mapped",
    schedule=None,
    params=COUNT,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=1)},
):

    @task
    def requests(params: Any) -> list[dict[str, Any]]:
        """Return what each POST sends."""
        payment = {"type": "ACCOUNT_BALANCE", "currency": "USD"}
        return [
            {
                "headers": {"Content-Type": "application/json", "X-Idempotency-Key": f"reward-{n}"},
                "data": json.dumps(
                    {
                        "payment_method": payment,
                        "items": [
                            {
                                "face_value": 10,
                                "distribution_method": {"type": "EMAIL", "email_address": f"customer-{n}@example.com"},
                                "products": {"type": "SINGLE", "value": "AMZ-US"},
                            }
                        ],
                    }
                ),
            }
            for n in range(params["count"])
        ]

    placed = HttpOperator.partial(
        task_id="post",
        http_conn_id="runa_http",
        endpoint="v2/order",
        response_filter=lambda response: f"v2/order/{response.json()['id']}",
    ).expand_kwargs(requests())
    # A deferrable HttpSensor would not check the answer: any 200 ends it.
    HttpSensor.partial(
        task_id="wait",
        http_conn_id="runa_http",
        response_check=lambda response: response.json()["status"] == "COMPLETED",
        mode="reschedule",
        poke_interval=5,
    ).expand(endpoint=placed.output)
