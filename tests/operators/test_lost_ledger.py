"""A ledger that was lost, restored from a copy, or is another one: Runa's orders say who was paid, nobody twice."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.campaign.errors import CampaignFailedError
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.tables import open_engine
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from tests.campaign.world import DEFAULTS, row
from tests.support.airflow import SharedClock, task_context
from tests.support.sandbox import RunningSandbox

EVERYBODY = range(250)


def pay(runa: RunningSandbox, rows: Any = None, *, run_id: str = "monday", **values: Any) -> dict[str, Any]:
    """Run the task once."""
    given = {"campaign": "spring", "currency": "USD", "ledger_conn_id": "ledger", "defaults": DEFAULTS}
    task = RunaPayoutOperator(**({"task_id": "pay", "rows": rows} | given | values))
    task.clock = SharedClock(runa)  # type: ignore[assignment]
    context = task_context()
    context["ti"].run_id = run_id
    return task.execute(context)


def rows_of(*numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [row(number, **fields) for number in numbers or EVERYBODY]


class FileLedger:
    """A ledger in a SQLite file, and copies of the file."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.copy = folder / "ledger.db", folder / "copy.db"
        self.url = f"sqlite:///{self.path}"
        monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(self.path)}))

    def save(self) -> None:
        """Copy the file, if there is one."""
        if self.path.exists():
            shutil.copy(self.path, self.copy)

    def restore(self) -> None:
        """Put the copy back; without one, the ledger is gone."""
        for path in self.path.parent.glob("ledger.db*"):
            path.unlink()
        if self.copy.exists():
            shutil.copy(self.copy, self.path)


class SchemaLedger:
    """A ledger on PostgreSQL, whose search path comes to lead to another schema."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.monkeypatch = sa.engine.make_url(url), monkeypatch
        self.use("first")

    def use(self, schema: str) -> None:
        options = f"-csearch_path={schema}"
        self.url = self.server.update_query_dict({"options": options})
        engine = sa.create_engine(self.server)
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
        engine.dispose()
        connection = {"conn_type": "postgres", "host": self.server.host, "port": self.server.port}
        connection |= {"login": "tests", "schema": self.server.database, "extra": {"options": options}}
        self.monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))

    def save(self) -> None:
        """Nothing: the other schema is empty."""

    def restore(self) -> None:
        """Use the other schema."""
        self.use("second")


@pytest.fixture(params=["file", "schema"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A ledger that can be lost: as a file, or by a search path that changes."""
    if request.param == "file":
        return FileLedger(tmp_path, monkeypatch)
    return SchemaLedger(request.getfixturevalue("postgres"), monkeypatch)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileLedger:
    """A ledger in a SQLite file."""
    return FileLedger(tmp_path, monkeypatch)


def in_ledger(runa: RunningSandbox, ledger: FileLedger | SchemaLedger, *states: str) -> list[dict[str, Any]]:
    engine = open_engine(ledger.url)
    try:
        return list(Ledger(engine, runa.url, "spring").rows(*states))
    finally:
        engine.dispose()


def check_paid(runa: RunningSandbox, ledger: FileLedger | SchemaLedger, count: int = len(EVERYBODY)) -> None:
    """Check that Runa paid so many recipients, each once, and that the ledger has each of them with their order."""
    stats = runa.stats()
    assert set(stats["orders_by_recipient"].values()) == {1}
    assert len(stats["orders_by_recipient"]) == stats["payouts"] == count
    rows = in_ledger(runa, ledger)
    assert len(rows) == count
    assert {line["state"] for line in rows} == {"paid"}
    assert {line["order_id"] for line in rows} == {order["id"] for order in runa.orders()}
    assert len({line["item_id"] for line in rows} - {None}) == count


@pytest.mark.parametrize("run_id", ["monday", "tuesday"])
def test_an_empty_ledger_pays_nobody_again(runa: RunningSandbox, ledger: Any, run_id: str) -> None:
    ledger.save()
    pay(runa, rows_of())
    ledger.restore()
    summary = pay(runa, rows_of(), run_id=run_id)
    assert summary["rows"] == {"paid": 250}
    assert (summary["run"]["found"], summary["run"]["planned"], summary["run"]["paid"]) == (250, 0, 0)
    check_paid(runa, ledger)


def test_what_was_taken_in_stays_paid_in_every_later_run(runa: RunningSandbox, ledger: Any) -> None:
    pay(runa, rows_of())
    ledger.restore()
    pay(runa, rows_of())
    for run_id in ("tuesday", "wednesday"):
        summary = pay(runa, rows_of(), run_id=run_id)
        assert summary["rows"] == {"paid": 250}
        assert (summary["run"]["already_paid"], summary["run"]["found"], summary["run"]["open"]) == (250, 0, 0)
        check_paid(runa, ledger)


def test_a_copy_from_before_the_orders_were_sent_pays_nobody_again(runa: RunningSandbox, file: FileLedger) -> None:
    pay(runa, rows_of(), mode="plan")
    file.save()
    pay(runa, rows_of())
    file.restore()
    assert {line["state"] for line in in_ledger(runa, file)} == {"planned"}
    assert pay(runa, rows_of())["rows"] == {"paid": 250}
    check_paid(runa, file)


def test_a_copy_from_the_middle_pays_nobody_again(runa: RunningSandbox, file: FileLedger) -> None:
    pay(runa, rows_of(*range(100)))
    file.save()
    pay(runa, rows_of(*range(50, 250)), run_id="tuesday")
    file.restore()
    summary = pay(runa, rows_of(), run_id="wednesday")
    assert (summary["run"]["already_paid"], summary["run"]["found"], summary["run"]["planned"]) == (100, 150, 0)
    check_paid(runa, file)


def test_a_copy_of_another_plan_of_the_same_rows_pays_nobody_again(runa: RunningSandbox, file: FileLedger) -> None:
    """The copy has planned the rows in other batches than those that were sent."""
    pay(runa, rows_of(*range(100)), mode="plan")
    file.save()
    file.path.unlink()
    pay(runa, rows_of())
    file.restore()
    summary = pay(runa, rows_of())
    assert summary["rows"] == {"paid": 250}
    check_paid(runa, file)


def test_a_copy_that_has_more_rows_planned_pays_only_the_others(runa: RunningSandbox, file: FileLedger) -> None:
    pay(runa, rows_of(), mode="plan")
    file.save()
    file.path.unlink()
    pay(runa, rows_of(*range(100)))
    file.restore()
    summary = pay(runa, rows_of())
    assert (summary["run"]["paid"], summary["rows"]) == (150, {"paid": 250})
    check_paid(runa, file)


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        pytest.param(rows_of(*range(249, -1, -1)), 250, id="another order of the rows"),
        pytest.param(rows_of(*range(250), amount=99), 250, id="other amounts"),
        pytest.param(rows_of(*range(50, 300)), 300, id="rows that are new, and rows that are gone"),
        pytest.param(rows_of(*range(0, 250, 2)), 250, id="half of the rows"),
    ],
)
def test_the_input_may_have_changed_meanwhile(
    runa: RunningSandbox, ledger: Any, changed: list[dict[str, Any]], count: int
) -> None:
    pay(runa, rows_of())
    ledger.restore()
    pay(runa, changed)
    stats = runa.stats()
    assert set(stats["orders_by_recipient"].values()) == {1}
    assert stats["payouts"] == count
    named = {one["recipient_key"] for one in changed}
    rows = in_ledger(runa, ledger)
    assert {line["recipient_key"] for line in rows} == named, "who was paid and is not in the input is not known"
    assert {(line["state"], line["amount"]) for line in rows} == {("paid", Decimal(10))}, "it is not what Runa paid"
    # Those that no input has named yet are recognized when one does.
    summary = pay(runa, rows_of(*range(300)), run_id="tuesday")
    assert summary["rows"] == {"paid": 300}
    check_paid(runa, ledger, 300)


def test_a_lost_ledger_is_reported(
    runa: RunningSandbox, ledger: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pay(runa, rows_of(1, 2, 3))
    ledger.restore()
    capsys.readouterr()
    caplog.clear()
    pay(runa, rows_of(1, 2))
    printed = capsys.readouterr().out + caplog.text
    assert "has no tables yet: creating them." in printed
    assert "Runa has 1 order(s) that this ledger did not know. Is it another database, or an older copy?" in printed
    assert "customer-" not in printed


def test_rows_of_an_order_that_failed_are_not_taken_for_paid(runa: RunningSandbox, ledger: Any) -> None:
    runa.faults({"kind": "fail_order"})
    pay(runa, rows_of(1, 2), on_partial_failure="warn")
    ledger.restore()
    with pytest.raises(CampaignFailedError):  # the same rows have the same key, and Runa repeats its answer
        pay(runa, rows_of(1, 2))
    assert pay(runa, rows_of(1, 2))["rows"] == {"paid": 2}
    assert runa.stats()["orders"] == {"FAILED": 1, "COMPLETED": 1}


def test_a_commit_that_was_lost_after_the_order_was_placed(runa: RunningSandbox, file: FileLedger) -> None:
    """The order is listed, and the ledger has not even the plan."""
    pay(runa, rows_of(*range(200)))
    file.save()
    pay(runa, rows_of(*range(400)), run_id="tuesday")
    file.restore()
    summary = pay(runa, rows_of(*range(400)), run_id="tuesday")
    assert (summary["run"]["found"], summary["rows"]) == (200, {"paid": 400})
    check_paid(runa, file, 400)


def test_a_look_back_that_is_too_short_is_the_authors_choice(runa: RunningSandbox, file: FileLedger) -> None:
    """The period is what the caller says: orders of before are not looked for."""
    pay(runa, rows_of(1))
    file.restore()
    runa.advance(40 * 86400)
    task_rows = rows_of(1)
    with pytest.raises(AirflowFailException, match="look_back: "):
        pay(runa, task_rows, look_back="soon")
    assert pay(runa, task_rows, look_back=60)["run"]["found"] == 1
    check_paid(runa, file, 1)


# -- which database may be a ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "connection",
    [
        {"conn_type": "sqlite"},
        {"conn_type": "sqlite", "host": ":memory:"},
        {"conn_type": "sqlite", "host": "ledger.db"},
        {"conn_type": "sqlite", "host": "./folder/ledger.db"},
        {"conn_type": "sqlite", "schema": "ledger.db"},
        {"conn_type": "sqlite", "host": "file::memory:?cache=shared"},
        "sqlite://",
        "sqlite:///",
    ],
)
def test_a_ledger_in_memory_or_in_the_workers_folder_is_rejected(
    runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connection: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    text = connection if isinstance(connection, str) else json.dumps(connection)
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", text)
    with pytest.raises(AirflowFailException, match="must name a file by its absolute path") as caught:
        pay(runa, rows_of(1))
    assert len(str(caught.value).splitlines()) == 3
    assert runa.stats()["requests"] == {}, "it was found too late"
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_can_read_the_file(runa: RunningSandbox, file: FileLedger) -> None:
    pay(runa, rows_of(1))
    assert file.path.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> str:
    """A connection to a PostgreSQL server that is not there."""
    connection = {"conn_type": "postgres", "host": "127.0.0.1", "port": 1, "login": "tests", "schema": "rewards"}
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection | {"password": "hush"}))
    return "127.0.0.1"


def test_a_database_that_cannot_be_reached_is_named(runa: RunningSandbox, unreachable: str) -> None:
    from airflow_provider_runa.campaign.errors import LedgerUnavailableError

    with pytest.raises(LedgerUnavailableError) as caught:
        pay(runa, rows_of(1))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"The ledger (connection 'ledger', {unreachable}) cannot be reached (OperationalError).")
    assert "customer" not in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "POST /order" not in runa.stats()["requests"]
