"""A nightly incentive from a warehouse: everyone who qualified yesterday gets one reward.

Rows stream from the warehouse into the ledger and are sent in orders of 200. A retry sends the same orders. Recipients
whom the ledger shows as paid are skipped, no matter which run paid them.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_runa.transfers.sql_to_runa import SqlToRunaOperator

with DAG(
    dag_id="runa_nightly_incentive_sql",
    doc_md=__doc__,
    schedule="0 6 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 3},
    params={"day": ""},
    tags=["runa", "example"],
):
    SqlToRunaOperator(
        task_id="pay_winners",
        # Each recipient is paid once per campaign, and a customer may win again tomorrow: use one campaign per day.
        campaign="nightly/{{ params.day or (dag_run.run_after - macros.timedelta(days=1)) | ds }}",
        source_conn_id="warehouse",
        sql="""
            SELECT customer, reward, email FROM winners
            WHERE day = '{{ params.day or (dag_run.run_after - macros.timedelta(days=1)) | ds }}'
        """,
        columns={"recipient_key": "customer", "face_value": "reward", "email_address": "email"},
        defaults={"template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
        currency="USD",
        ledger_conn_id="ledger",
        max_total=100_000,  # guards against a wrong column
        max_per_recipient=100,
        deferrable=True,
    )
