"""SqlToRunaOperator: a query through an Airflow connection, into payouts at the sandbox."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException
from airflow.providers.postgres.hooks import postgres as postgres_hooks
from sqlalchemy.engine import make_url

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.transfers import sql_to_runa
from airflow_provider_runa.transfers.sql_to_runa import SqlToRunaOperator
from tests.campaign.test_rows import frames_of
from tests.campaign.world import DEFAULTS
from tests.support.airflow import SharedClock, redact, reset_secrets_masker, stored_fields, task_context
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
        ({"columns": None}, "columns: a row has no field customer, reward, email, note; map a row's fields"),
        ({"columns": {column: field for field, column in COLUMNS.items()}}, "columns: is reversed"),
        ({"sql": QUERY.replace("email,", "NULL AS email,")}, r"rows\[0\]: email_address: is missing"),
        (
            {
                "sql": QUERY.replace("reward, ", "NULL AS reward, "),
                "defaults": {"product": "AMZ-US", "face_value": 400},
            },
            "defaults: face_value has no effect, because every row of the query has its own",
        ),
        (
            {"defaults": {"product": "AMZ-US", "distribution_method": {"type": "PAYOUT_LINK"}}},
            "defaults: PAYOUT_LINK has no effect, because every row has an address",
        ),
        ({"columns": "customer"}, "columns: rendered to text that is not JSON"),
        ({"columns": ["customer"]}, "columns: must map names of fields to names of columns"),
        ({"columns": COLUMNS | {"face_value": 1}}, "columns: must map names of fields to names of columns"),
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


def test_rendered_columns_and_parameters_may_be_json(runa: RunningSandbox) -> None:
    query = QUERY.replace(" ORDER", " WHERE customer < ? ORDER")
    task = operator(runa, sql=query, columns="{{ columns | tojson }}", parameters="{{ parameters | tojson }}")
    task.render_template_fields({"columns": COLUMNS, "parameters": [7]}, jinja2.Environment(autoescape=False))  # type: ignore[arg-type, typeddict-unknown-key]
    assert task.execute(task_context())["rows"] == {"paid": 7}


def test_recipients_in_a_query_and_its_parameters_are_not_stored(runa: RunningSandbox) -> None:
    reset_secrets_masker()
    query = f"SELECT * FROM ({QUERY}) WHERE email IN ('customer-7@example.com', ?, ?)"
    parameters = ["{{ one }}", "customer-9@example.com"]
    task = operator(runa, sql=query, parameters=parameters)
    task.render_template_fields({"one": "customer-8@example.com"}, jinja2.Environment(autoescape=False))  # type: ignore[arg-type, typeddict-unknown-key]
    stored = json.dumps(stored_fields(task))
    assert "FROM winners" in stored
    assert "customer-" not in stored
    assert redact("customer-8@example.com") == "***"
    assert "@example.com" not in repr(vars(task))
    assert task.execute(task_context())["rows"] == {"paid": 3}


def test_a_query_without_recipients_stays_text_for_subclasses() -> None:
    task = operator(parameters={"day": "{{ day }}"})
    task.render_template_fields({"day": "2026-10-01"}, jinja2.Environment(autoescape=False))  # type: ignore[arg-type, typeddict-unknown-key]
    assert (task.sql, task.parameters) == (QUERY, {"day": "2026-10-01"})


def test_an_amount_that_the_catalogue_does_not_offer_names_its_row(runa: RunningSandbox) -> None:
    query = "SELECT customer, CASE customer WHEN 2 THEN 7 ELSE 10 END AS reward, email FROM winners LIMIT 4"
    with pytest.raises(AirflowFailException) as caught:
        operator(runa, sql=query, defaults={"product": "CAFE-US"}).execute(task_context())
    assert "rows[2].face_value: CAFE-US has no face value of 7: " in str(caught.value)
    assert "rows[1]" not in str(caught.value)
    assert "POST /order" not in runa.stats()["requests"]


class Cursor:
    """A cursor that returns rows of any kind.

    :param names: the columns.
    :param rows: the rows.
    """

    def __init__(self, names: str, *rows: Any) -> None:
        self.description = [(name,) for name in names.split()]
        self._rows = list(rows)

    def execute(self, *_: Any) -> None:
        """Do nothing."""

    def fetchmany(self, size: int) -> list[Any]:
        fetched, self._rows = self._rows[:size], self._rows[size:]
        return fetched

    def close(self) -> None:
        """Do nothing."""


FIELDS = "recipient_key face_value"


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (FIELDS, {"recipient_key": "ada", "face_value": 10}),
        (FIELDS, {"face_value": 10, "recipient_key": "ada"}),
        (FIELDS, ("ada", 10)),
        (FIELDS, ["ada", 10]),
        (f"note {FIELDS}", {"note": 400, "recipient_key": "ada", "face_value": 10}),
        (f"note note {FIELDS}", (400, 400, "ada", 10)),
    ],
)
def test_a_cell_is_found_by_the_name_of_its_column(monkeypatch: pytest.MonkeyPatch, names: str, values: Any) -> None:
    monkeypatch.setattr(sql_to_runa, "_cursor", lambda connection: Cursor(names, values, values))
    columns = {name: name for name in FIELDS.split()}
    rows = list(operator(columns=columns).iter_rows(task_context()))  # type: ignore[arg-type]
    assert rows == [{"recipient_key": "ada", "face_value": 10}] * 2


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"recipient_key": "key-7311", "face_value": 400}, "sql: a row has 2 cells for the 3 columns recipient_key, "),
        ({"recipient_key": "key-7311", "face_value": 400, "t.note": 10}, "sql: a row has 3 cells for the 3 columns"),
        (("key-7311", 400), "sql: a row has 2 cells for the 3 columns"),
        (("key-7311", 400, 10, 10), "sql: a row has 4 cells for the 3 columns"),
        (SimpleNamespace(recipient_key="key-7311"), "sql: the connection returns rows as SimpleNamespace, not as "),
    ],
)
def test_a_row_that_does_not_fit_the_columns_is_rejected(
    monkeypatch: pytest.MonkeyPatch, values: Any, problem: str
) -> None:
    monkeypatch.setattr(sql_to_runa, "_cursor", lambda connection: Cursor(f"{FIELDS} note", ("ada", 5, 5), values))
    columns = {name: name for name in FIELDS.split()}
    with pytest.raises(InvalidOrderError) as caught:
        list(operator(columns=columns).iter_rows(task_context()))  # type: ignore[arg-type]
    assert str(caught.value).startswith(problem)
    shown = frames_of(caught.value)
    assert shown.startswith("iter_rows: ")
    assert "7311" not in shown


def test_a_missing_column_is_reported_where_no_local_variable_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_to_runa, "_cursor", lambda connection: Cursor(FIELDS, ("key-7311", 10)))
    with pytest.raises(InvalidOrderError, match="columns: the query has no customer, email, reward") as caught:
        list(operator().iter_rows(task_context()))  # type: ignore[arg-type]
    assert "iter_rows: " in frames_of(caught.value)
    assert "7311" not in frames_of(caught.value)


def test_an_error_of_a_later_fetch_is_raised_where_no_local_variable_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Cursor):
        def fetchmany(self, size: int) -> list[Any]:
            return super().fetchmany(size) or [][1]

    monkeypatch.setattr(sql_to_runa, "_cursor", lambda connection: Broken(FIELDS, ("key-7311", 10)))
    with pytest.raises(IndexError) as caught:
        list(operator(columns={name: name for name in FIELDS.split()}).iter_rows(task_context()))  # type: ignore[arg-type]
    assert "iter_rows: " in frames_of(caught.value)
    assert "7311" not in frames_of(caught.value)


def test_an_error_of_the_query_is_raised_where_no_local_variable_has_it(runa: RunningSandbox) -> None:
    task = operator(sql="SELECT absent FROM winners WHERE email = ?", parameters=["ada-7311@example.com"])
    task.render_template_fields({}, jinja2.Environment(autoescape=False))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="no such column") as caught:
        list(task.iter_rows(task_context()))  # type: ignore[arg-type]
    assert "_execute: " in frames_of(caught.value)
    assert "7311" not in frames_of(caught.value)


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


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("cursor", [None, "dictcursor", "realdictcursor"])
def test_a_repeated_column_pays_nobody_another_amount(
    runa: RunningSandbox, warehouse: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cursor: str | None
) -> None:
    if cursor == "realdictcursor" and getattr(postgres_hooks, "USE_PSYCOPG3", False):
        pytest.skip("psycopg 3 has no such cursor")
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", json.dumps(warehouse | {"extra": {"cursor": cursor}}))
    query = """SELECT 'ada' AS recipient_key, 'x' AS note, 'y' AS note, 10 AS face_value, 400 AS points,
        'ada@example.com' AS email_address"""
    columns = {name: name for name in ("recipient_key", "face_value", "email_address")}
    task = operator(runa, sql=query, columns=columns)
    if cursor is None or (cursor == "dictcursor" and not getattr(postgres_hooks, "USE_PSYCOPG3", False)):
        assert task.execute(task_context())["amounts"] == {"paid": "10.00"}, "these rows have every cell"
    else:
        with pytest.raises(AirflowFailException, match="sql: a row has 5 cells for the 6 columns recipient_key, note"):
            task.execute(task_context())


@pytest.mark.usefixtures("driver")
def test_objects_of_the_api_come_from_columns_of_json(runa: RunningSandbox, warehouse: dict[str, Any]) -> None:
    query = """SELECT 'ada' AS recipient_key, 10 AS face_value, '{"type": "PAYOUT_LINK"}'::jsonb AS distribution_method,
        '{"type": "SINGLE", "value": "CAFE-US"}' AS products"""
    assert operator(runa, sql=query, columns=None, defaults=None).execute(task_context())["rows"] == {"paid": 1}


@pytest.mark.usefixtures("driver", "warehouse")
def test_rows_stream_from_postgresql() -> None:
    # Row 5000 is an error at the server: a client that gets the rows before it did not fetch the whole result at once.
    query = "SELECT n AS recipient_key, 1 / (5000 - n) AS face_value FROM generate_series(1, 10000) AS n"
    rows = operator(sql=query, columns=None).iter_rows(task_context())  # type: ignore[arg-type]
    assert [row["recipient_key"] for row in itertools.islice(rows, 4000)] == list(range(1, 4001))
    with pytest.raises(Exception, match="division by zero"):
        list(rows)
