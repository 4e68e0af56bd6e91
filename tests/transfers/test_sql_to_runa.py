"""SqlToRunaOperator: a query through an Airflow connection, into payouts at the sandbox."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException
from airflow.providers.postgres.hooks import postgres as postgres_hooks
from sqlalchemy.engine import make_url

from airflow_provider_runa.transfers import sql_to_runa
from airflow_provider_runa.transfers.sql_to_runa import SqlToRunaOperator
from tests.campaign.world import DEFAULTS
from tests.support.airflow import SharedClock, task_context
from tests.support.sandbox import RunningSandbox

COLUMNS = {"recipient_key": "customer", "face_value": "reward", "email_address": "email"}
QUERY = "SELECT customer, reward, email, 'unused' AS note FROM winners ORDER BY customer"


@pytest.fixture(autouse=True)
def databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source with winners and an empty ledger, each a SQLite file with a connection."""
    for name in ("source", "ledger"):
        connection = {"conn_type": "sqlite", "host": str(tmp_path / f"{name}.db")}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
    with closing(sqlite3.connect(tmp_path / "source.db")) as source, source:
        source.execute("CREATE TABLE winners (customer INTEGER, reward NUMERIC, email TEXT, day TEXT)")
        rows = [(number, 10.5, f"customer-{number}@example.com", "2026-10-01") for number in range(250)]
        source.executemany("INSERT INTO winners VALUES (?, ?, ?, ?)", rows)


def operator(runa: RunningSandbox | None = None, **values: Any) -> SqlToRunaOperator:
    given = {"sql": QUERY, "source_conn_id": "source", "columns": COLUMNS, "ledger_conn_id": "ledger"}
    money = {"currency": "USD", "campaign": "spring", "defaults": {"product": "AMZ-US"}}
    task = SqlToRunaOperator(**({"task_id": "pay"} | given | money | values))
    if runa is not None:
        task.clock = SharedClock(runa)  # type: ignore[assignment]
    return task


def test_it_pays_what_the_query_returns(runa: RunningSandbox) -> None:
    summary = operator(runa).execute(task_context())
    assert summary["rows"] == {"paid": 250}
    assert summary["amounts"] == {"paid": "2625.00"}
    stats = runa.stats()
    assert stats["orders"] == {"COMPLETED": 2}
    assert set(stats["orders_by_recipient"].values()) == {1}


def test_the_columns_may_have_the_names_of_the_fields(runa: RunningSandbox) -> None:
    query = "SELECT customer AS recipient_key, 10 AS face_value, email AS email_address FROM winners LIMIT 3"
    assert operator(runa, sql=query, columns=None, defaults=DEFAULTS).execute(task_context())["rows"] == {"paid": 3}


def test_parameters_go_to_the_driver(runa: RunningSandbox) -> None:
    query = QUERY.replace(" ORDER", " WHERE customer < ? ORDER")
    assert operator(runa, sql=query, parameters=[7]).execute(task_context())["rows"] == {"paid": 7}


def test_rows_are_fetched_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_to_runa, "FETCHED", 10)
    fetched = []

    class Cursor(sqlite3.Cursor):
        def fetchmany(self, size: int = 1) -> list[Any]:
            fetched.append(size)
            return super().fetchmany(size)

        def fetchall(self) -> list[Any]:
            raise AssertionError("the whole result is fetched")

    monkeypatch.setattr(sql_to_runa, "_cursor", lambda connection: connection.cursor(Cursor))
    rows: Iterator[Any] = operator().iter_rows(task_context())  # type: ignore[arg-type]
    assert next(rows) == {"recipient_key": 0, "face_value": 10.5, "email_address": "customer-0@example.com"}
    assert fetched == [10]
    assert len(list(rows)) == 249


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": COLUMNS | {"email_address": "mail"}}, "columns: the query has no mail; it has customer, reward"),
        (
            {"columns": {"face_value": "reward"}, "sql": "SELECT 5 AS reward, reward FROM winners"},
            "several columns reward",
        ),
        ({"sql": QUERY.replace("customer, ", "NULL AS customer, ")}, "recipient_key: is missing"),
        ({"sql": QUERY.replace("reward, ", "NULL AS reward, ")}, r"rows\[0\]: face_value"),
        ({"columns": None}, "has no use for the field"),
        ({"sql": QUERY.replace("email,", "NULL AS email,")}, r"rows\[0\]: distribution_method"),
    ],
)
def test_a_query_that_does_not_fit_is_rejected(runa: RunningSandbox, values: dict[str, Any], message: str) -> None:
    with pytest.raises(AirflowFailException, match=message) as caught:
        operator(runa, **values).execute(task_context())
    assert str(caught.value).endswith("\nFix that, then clear the task.")
    assert "@example.com" not in str(caught.value)
    assert "POST /order" not in runa.stats()["requests"]


def test_a_connection_whose_provider_is_missing_burns_no_retries(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", json.dumps({"conn_type": "nowhere", "host": "example.com"}))
    with pytest.raises(
        AirflowFailException, match="no provider is installed for the type 'nowhere' of connection 'elsewhere'"
    ):
        operator(runa, source_conn_id="elsewhere").execute(task_context())


def test_a_connection_to_something_else_than_a_database_is_rejected(runa: RunningSandbox) -> None:
    with pytest.raises(AirflowFailException, match="'runa_default' is not a connection to a database"):
        operator(runa, source_conn_id="runa_default").execute(task_context())


def test_the_query_may_be_a_template_in_a_file(runa: RunningSandbox, tmp_path: Path) -> None:
    (tmp_path / "winners.sql").write_text("SELECT * FROM winners WHERE day = '{{ day }}' AND customer < 2")
    with DAG("winners", schedule=None, template_searchpath=str(tmp_path)):
        task = operator(runa, sql="winners.sql", campaign="spring/{{ day }}")
    task.resolve_template_files()
    task.render_template_fields({"day": "2026-10-01"})  # type: ignore[typeddict-unknown-key]
    summary = task.execute(task_context())
    assert (summary["campaign"], summary["rows"]) == ("spring/2026-10-01", {"paid": 2})


def test_a_query_without_rows_pays_nobody(runa: RunningSandbox) -> None:
    assert operator(runa, sql=QUERY.replace(" ORDER", " WHERE 1 = 0 ORDER")).execute(task_context())["rows"] == {}
    assert "POST /order" not in runa.stats()["requests"]


def test_paying_what_was_planned_runs_no_query(runa: RunningSandbox) -> None:
    operator(runa, mode="plan").execute(task_context())
    pay = operator(runa, mode="pay", source_conn_id="missing", task_id="b")
    assert pay.execute(task_context(task_id="b"))["rows"] == {"paid": 250}


@pytest.fixture
def warehouse(postgres: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The connection ``source``, to a PostgreSQL server."""
    url = make_url(postgres)
    connection = {"conn_type": "postgres", "host": url.host, "port": url.port, "login": url.username}
    connection["schema"] = url.database
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", json.dumps(connection))
    return connection


WINNERS = """
    SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid AS recipient_key,
           10.50::numeric(14, 2) AS face_value, 'customer-' || n || '@example.com' AS email_address
    FROM generate_series(1, %(winners)s) AS n
"""


@pytest.fixture(params=["psycopg", "psycopg2"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver of the connection. Older providers for PostgreSQL have only psycopg2."""
    if request.param == "psycopg" and not getattr(postgres_hooks, "USE_PSYCOPG3", False):
        pytest.skip("Airflow before 3.1 comes with SQLAlchemy 1.4, which has no psycopg 3")
    monkeypatch.setattr(postgres_hooks, "USE_PSYCOPG3", request.param == "psycopg", raising=False)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("rows_as", [None, "dictcursor"])
def test_it_pays_from_postgresql(
    runa: RunningSandbox,
    warehouse: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    rows_as: str | None,
) -> None:
    if rows_as is not None:
        monkeypatch.setenv("AIRFLOW_CONN_SOURCE", json.dumps(warehouse | {"extra": {"cursor": rows_as}}))
    task = operator(runa, sql=WINNERS, parameters={"winners": 1001}, columns=None)
    summary = task.execute(task_context())
    assert summary["rows"] == {"paid": 1001}
    assert summary["amounts"] == {"paid": "10510.50"}
    assert set(runa.stats()["orders_by_recipient"].values()) == {1}


@pytest.mark.usefixtures("driver", "warehouse")
def test_rows_stream_from_postgresql() -> None:
    # Row 5000 is an error at the server: a client that gets the rows before it did not fetch the whole result at once.
    query = "SELECT n AS recipient_key, 1 / (5000 - n) AS face_value FROM generate_series(1, 10000) AS n"
    rows = operator(sql=query, columns=None).iter_rows(task_context())  # type: ignore[arg-type]
    assert [row["recipient_key"] for row in itertools.islice(rows, 4000)] == list(range(1, 4001))
    with pytest.raises(Exception, match="division by zero"):
        list(rows)
