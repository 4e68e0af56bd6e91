"""A backfill of missed campaign days: run it with Airflow's backfill, as often as you need.

All days are one campaign, so its ledger shows all of them. The recipient key names the day and the customer, because a
customer is paid for each day. The recipient key decides who has been paid, not the run.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_runa.transfers.sql_to_runa import SqlToRunaOperator

with DAG(
    dag_id="runa_campaign_backfill",
    doc_md=__doc__,
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 3},
    tags=["runa", "example"],
):
    SqlToRunaOperator(
        task_id="pay_day",
        campaign="spring-steps",
        source_conn_id="warehouse",
        sql="""
            SELECT day || '/' || customer AS recipient_key, reward AS face_value, email AS email_address
            FROM winners WHERE day = '{{ (dag_run.logical_date or dag_run.run_after) | ds }}'
        """,
        defaults={"template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
        currency="USD",
        ledger_conn_id="ledger",
        new_recipients_on_rerun="pay",  # a late row of a day is paid when the day is run again
        max_per_recipient=100,
        poll_interval=5,
    )
