"""Plan, ask for approval, then pay: what is paid is what was approved, even if the warehouse changes later.

If the answer is no, the plan is withdrawn, so that no later run of the campaign pays it.
"""

from __future__ import annotations

import pendulum
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG

from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.transfers.sql_to_runa import SqlToRunaOperator

CAMPAIGN = {"campaign": "winback", "currency": "USD", "ledger_conn_id": "ledger"}

with DAG(
    dag_id="runa_campaign_with_approval",
    doc_md=__doc__,
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retries": 3},
    tags=["runa", "example"],
):
    plan = SqlToRunaOperator(
        task_id="plan",
        mode="plan",
        source_conn_id="warehouse",
        sql="SELECT DISTINCT customer, email FROM winners",
        columns={"recipient_key": "customer", "email_address": "email"},
        defaults={"face_value": 20, "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
        **CAMPAIGN,
    )
    approve = ApprovalOperator(
        task_id="approve",
        subject="Pay the win-back campaign?",
        body=(
            "{{ ti.xcom_pull('plan')['rows']['planned'] }} recipients, "
            "{{ ti.xcom_pull('plan')['amounts']['planned'] }} {{ ti.xcom_pull('plan')['currency'] }} in all."
        ),
    )
    pay = RunaPayoutOperator(task_id="pay", mode="pay", poll_interval=5, **CAMPAIGN)
    withdraw = RunaPayoutOperator(task_id="withdraw", mode="withdraw", trigger_rule="all_skipped", **CAMPAIGN)

    plan >> approve >> pay >> withdraw
