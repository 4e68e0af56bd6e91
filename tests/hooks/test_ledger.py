"""LedgerHook: the SQLAlchemy URL of a connection, and the database that it opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_runa.api.errors import InvalidOrderError
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
    assert "7311" not in str(url)
    assert sa.make_url(url.render_as_string(hide_password=False)) == url


def test_parameters_of_the_driver_are_passed_on_and_other_extras_are_not(connect: Any) -> None:
    extra = {"sslmode": "verify-full", "sslrootcert": "/etc/ca.pem", "connect_timeout": 10, "cursor": "dictcursor"}
    url = connect(conn_type="postgres", host="db.example", extra=extra).get_url()
    assert dict(url.query) == {"sslmode": "verify-full", "sslrootcert": "/etc/ca.pem", "connect_timeout": "10"}


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
    url = sa.make_url(postgres)
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
