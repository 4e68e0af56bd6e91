"""LedgerHook: the SQLAlchemy URL of a connection, and the database that it opens."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.campaign.errors import LedgerUnavailableError
from airflow_provider_runa.campaign.tables import create, open_engine
from airflow_provider_runa.hooks import ledger as ledger_module
from airflow_provider_runa.hooks.ledger import LedgerHook


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the connection ``ledger`` and returns its hook."""

    def hook(**values: Any) -> LedgerHook:
        monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(values))
        return LedgerHook("ledger")

    return hook


@pytest.mark.parametrize("field", ["host", "schema"])
def test_the_path_of_sqlite_is_its_host_or_schema(connect: Any, field: str) -> None:
    url = connect(conn_type="sqlite", **{field: "/data/ledger.db"}).get_url()
    assert url.render_as_string() == "sqlite:////data/ledger.db"


@pytest.mark.parametrize("conn_type", ["postgres", "postgresql"])
def test_a_postgresql_connection_becomes_a_url(connect: Any, conn_type: str) -> None:
    values = {"host": "db.example", "port": 5433, "schema": "rewards", "login": "runa", "password": "p@ss/word:7311"}
    url = connect(conn_type=conn_type, **values).get_url()
    assert (url.get_backend_name(), url.host, url.port, url.database) == ("postgresql", "db.example", 5433, "rewards")
    assert (url.username, url.password) == ("runa", "p@ss/word:7311")
    assert "7311" not in repr(url)
    assert make_url(url.render_as_string(hide_password=False)) == url


def test_parameters_of_the_driver_are_passed_on_and_other_extras_are_not(connect: Any) -> None:
    extra = {"sslmode": "verify-full", "sslrootcert": "/etc/ca.pem", "connect_timeout": 10, "cursor": "dictcursor"}
    url = connect(conn_type="postgres", host="db.example", extra=extra).get_url()
    assert dict(url.query) == {"sslmode": "verify-full", "sslrootcert": "/etc/ca.pem", "connect_timeout": "10"}


def test_several_servers_reach_the_driver_with_the_choice_between_them(connect: Any) -> None:
    extra = {"target_session_attrs": "read-write", "load_balance_hosts": "random"}
    url = connect(
        conn_type="postgres", host="one.example,two.example:5433", port=5432, schema="x", extra=extra
    ).get_url()
    arguments, options = url.get_dialect()().create_connect_args(url)
    assert (options["host"], options["port"]) == ("one.example,two.example", "5432,5433")
    assert {name: options[name] for name in extra} == extra
    assert options.get("dbname", options.get("database")) == "x"  # SQLAlchemy 1.4 names it database
    assert arguments == []


def test_of_several_servers_the_one_that_can_be_written_is_used(postgres: str, connect: Any) -> None:
    """The first does not answer."""
    url = make_url(postgres)
    hook = connect(
        conn_type="postgres",
        host=f"{url.host}:1,{url.host}:{url.port}",
        login=url.username,
        schema=url.database,
        extra={"target_session_attrs": "read-write", "application_name": "rewards"},
    )
    with hook.open() as engine, engine.begin() as connection:
        assert connection.execute(sa.text("SHOW application_name")).scalar() == "rewards"


@pytest.mark.parametrize(
    ("installed", "driver"),
    [({"psycopg2", "psycopg"}, "psycopg2"), ({"psycopg2"}, "psycopg2"), ({"psycopg"}, "psycopg")],
)
def test_the_driver_that_is_installed_is_used(
    connect: Any, monkeypatch: pytest.MonkeyPatch, installed: set[str], driver: str
) -> None:
    monkeypatch.setattr(ledger_module, "find_spec", lambda name: name in installed or None)
    assert connect(conn_type="postgres", host="db.example").get_url().drivername == f"postgresql+{driver}"


def test_no_driver_is_an_error_that_names_the_extra(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "find_spec", lambda name: None)
    with pytest.raises(InvalidOrderError, match=r"install airflow-provider-runa\[postgres\]"):
        connect(conn_type="postgres", host="db.example").get_url()


@pytest.mark.parametrize("path", [None, "", ":memory:", "ledger.db", "./ledger.db", "file::memory:"])
def test_a_file_of_sqlite_has_an_absolute_path(connect: Any, path: str | None) -> None:
    with pytest.raises(InvalidOrderError, match="must name a file by its absolute path"):
        connect(conn_type="sqlite", host=path).get_url()


def test_a_new_file_is_its_owners_alone(connect: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with connect(conn_type="sqlite", host=str(path)).open():
        files = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert set(files.values()) == {0o600}, files


def test_a_file_that_cannot_be_opened_is_named(connect: Any, tmp_path: Path) -> None:
    hook = connect(conn_type="sqlite", host=str(tmp_path / "missing" / "ledger.db"))
    with pytest.raises(
        LedgerUnavailableError, match=r"connection 'ledger', .*ledger\.db\) cannot be reached"
    ) as caught:
        hook.open().__enter__()
    assert len(str(caught.value).splitlines()) == 3


def test_a_commit_on_postgresql_is_on_the_disk_whatever_the_server_is_set_to(postgres: str, connect: Any) -> None:
    url = make_url(postgres)
    extra = {"options": "-c synchronous_commit=off -c default_transaction_isolation=serializable"}
    hook = connect(
        conn_type="postgres", host=url.host, port=url.port, login=url.username, schema=url.database, extra=extra
    )
    with hook.open() as engine, engine.begin() as connection:
        found = [connection.execute(sa.text(f"SHOW {name}")).scalar() for name in SETTINGS]
    assert found == ["on", "read committed"]


SETTINGS = ("synchronous_commit", "transaction_isolation")


def test_another_type_of_connection_is_rejected(connect: Any) -> None:
    hook = connect(conn_type="mysql", host="db.example", password="secret-7311")
    with pytest.raises(InvalidOrderError) as caught:
        hook.get_url()
    assert str(caught.value) == (
        "ledger_conn_id: connection 'ledger' has the type 'mysql'; a ledger needs one of postgresql, sqlite"
    )


def test_opening_creates_the_tables_once(connect: Any, tmp_path: Path) -> None:
    hook = connect(conn_type="sqlite", host=str(tmp_path / "ledger.db"))
    for _ in range(2):
        with hook.open() as engine:
            assert sa.inspect(engine).get_table_names()
    with hook.open(reading=True) as engine:
        assert sa.inspect(engine).get_table_names()


def test_reading_creates_nothing(connect: Any, tmp_path: Path) -> None:
    hook = connect(conn_type="sqlite", host=str(tmp_path / "ledger.db"))
    with pytest.raises(InvalidOrderError, match="ledger: "), hook.open(reading=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_postgresql_is_opened(postgres: str, connect: Any) -> None:
    url = make_url(postgres)
    hook = connect(
        conn_type="postgres",
        host=url.host,
        port=url.port,
        login=url.username,
        password=url.password,
        schema=url.database,
        extra=dict(url.query),
    )
    with hook.open() as engine:
        assert sa.inspect(engine).get_table_names()


def test_a_new_file_can_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """While one of them sets SQLite's journal mode, SQLite rejects the others at once."""
    for number in range(8):
        url = f"sqlite:///{tmp_path}/{number}.db"
        together = threading.Barrier(6)

        def open_it(url: str = url, together: threading.Barrier = together) -> None:
            together.wait(10)
            engine = open_engine(url)
            create(engine)
            engine.dispose()

        with ThreadPoolExecutor(6) as pool:
            for opened in [pool.submit(open_it) for _ in range(6)]:
                opened.result()
