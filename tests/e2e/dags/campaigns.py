"""DAGs of the campaign tests: one that pays enough rows to be killed in the middle of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_runa.operators.payout import RunaPayoutOperator


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"recipient_key": f"customer-{n}", "face_value": 10, "email_address": f"customer-{n}@example.com"}
        for n in range(count)
    ]


with DAG("e2e_campaign", schedule=None, start_date=pendulum.datetime(2026, 1, 1), user_defined_macros={"rows": rows}):
    RunaPayoutOperator(
        task_id="pay",
        campaign="killed",
        rows="{{ rows(1000) | tojson }}",
        defaults={"template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
        currency="USD",
        ledger_conn_id="ledger",
        runa_conn_id="runa_proxied",
        poll_interval=1,
        retries=3,
        retry_delay=timedelta(seconds=1),
    )
