"""RunaReconcileOperator and its command line against the sandbox over real sockets, with a ledger in a SQLite file."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.api.client import RunaClient
from airflow_provider_runa.api.errors import RunaError
from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.cli import reconcile as command
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.operators.reconcile import RunaReconcileOperator
from airflow_provider_runa.placement.identity import OrderIdentity
from tests.campaign.world import DEFAULTS, row
from tests.support.airflow import SharedClock, task_context
from tests.support.sandbox import RunningSandbox

CAMPAIGN = "spring"


@pytest.fixture
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SQLite file, which the connection ``ledger`` leads to."""
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    return path


def paid_row(number: int) -> dict[str, Any]:
    return row(number, recipient_key=f"customer-{number}@example.com")


@pytest.fixture
def paid(runa: RunningSandbox, ledger_file: Path) -> Path:
    """The file of a ledger whose campaign of three is paid, by keys that are addresses."""
    rows = [paid_row(number) for number in range(3)]
    task = RunaPayoutOperator(
        task_id="pay", campaign=CAMPAIGN, rows=rows, currency="USD", ledger_conn_id="ledger", defaults=DEFAULTS
    )
    task.clock = SharedClock(runa)  # type: ignore[assignment]
    task.execute(task_context())
    return ledger_file


def change(path: Path, statement: str) -> None:
    """Change a ledger behind its back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement).rowcount


def spoil(path: Path) -> None:
    change(path, "UPDATE runa_ledger SET amount = '25.00' WHERE recipient_key = 'customer-1@example.com'")


def stray(runa: RunningSandbox) -> str:
    """Place an order of the campaign's that its ledger does not know."""
    item = {
        "face_value": 10,
        "distribution_method": {"type": "EMAIL", "email_address": "customer-7@example.com"},
        "products": {"type": "SINGLE", "value": "AMZ-US"},
    }
    identity = OrderIdentity.from_campaign(runa.url, campaign=CAMPAIGN, batch="lost")
    order = identity.seal(NewOrder.build(currency="USD", items=[item], description=CAMPAIGN), 0)
    with closing(RunaClient(runa.api_key, base_url=runa.url)) as client:
        order_id = client.create_order(order, idempotency_key=identity.idempotency_key(0)).id
    runa.advance(5)
    return order_id


def operator(**values: Any) -> RunaReconcileOperator:
    return RunaReconcileOperator(
        **({"task_id": "reconcile", "campaign": CAMPAIGN, "ledger_conn_id": "ledger"} | values)
    )


def render(task: RunaReconcileOperator, **context: Any) -> RunaReconcileOperator:
    task.render_template_fields(context, jinja2.Environment(autoescape=False))  # type: ignore[arg-type]
    return task


def test_it_returns_a_summary_if_nothing_differs(paid: Path) -> None:
    context = task_context()
    assert operator().execute(context) == {
        "campaign": CAMPAIGN,
        "differences": {},
        "orders": 1,
        "hidden": 0,
        "open_rows": {},
    }
    assert context["ti"].xcoms == {}


def test_it_fails_if_anything_differs_and_shows_no_recipient(
    runa: RunningSandbox, paid: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(paid)
    order_id = stray(runa)
    context = task_context()
    capsys.readouterr()
    with pytest.raises(AirflowFailException) as failure:
        operator().execute(context)
    text = str(failure.value)
    assert text.startswith(
        "The ledger and Runa differ for campaign 'spring': 1 amount_differs, 1 unknown_to_ledger.\nNothing was sent"
    )
    printed = capsys.readouterr().out
    log = printed + caplog.text
    # Which of them it is depends on Airflow; in 2.11 it is both.
    lines = [line for line in (caplog.text or printed).splitlines() if "campaign 'spring', order O-" in line]
    assert len(lines) == 2
    assert any("the ledger says 25.00, and Runa paid 10.00" in line for line in lines)
    assert any(order_id in line for line in lines)
    assert context["ti"].xcoms["summary"]["differences"] == {"amount_differs": 1, "unknown_to_ledger": 1}
    assert "example.com" not in f"{text} {log} {json.dumps(context['ti'].xcoms)}"


def test_a_period_stands_for_a_campaign(runa: RunningSandbox, paid: Path) -> None:
    stray(runa)
    # The sandbox's clock may be far ahead of this one.
    placed = datetime.fromtimestamp(max(order["created_at"] for order in runa.orders()), UTC)
    with pytest.raises(AirflowFailException, match="for the period: 1 unknown_to_ledger"):
        operator(campaign=None, since=placed - timedelta(hours=1)).execute(task_context())
    assert operator(campaign=None, since=placed + timedelta(days=1)).execute(task_context())["orders"] == 0


def test_its_fields_are_templates(paid: Path) -> None:
    task = operator(
        campaign="{{ name }}",
        since="{{ start }}",
        until="{{ end }}",
        ledger_conn_id="{{ ledger }}",
        runa_conn_id="{{ runa }}",
    )
    now = datetime.now(UTC)
    values = {"name": CAMPAIGN, "ledger": "ledger", "runa": "runa_default"}
    render(task, start=now - timedelta(hours=1), end=now.replace(tzinfo=None) + timedelta(hours=1), **values)
    assert task.execute(task_context())["orders"] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"campaign": "sprong"}, "no campaign 'sprong'"),
        ({"campaign": "{{ nothing }}", "since": "2026-01-01"}, "campaign: its value is missing"),
        ({"since": "{{ nothing }}"}, "since: its value is missing"),
        ({"until": "{{ nothing }}"}, "until: its value is missing"),
        ({"since": "yesterday"}, "since: must be a date"),
        ({"since": "2026-02-01", "until": "2026-01-01"}, "until: must be after since"),
        ({"ledger_conn_id": "runa_default"}, "ledger_conn_id"),
    ],
)
def test_invalid_input_is_rejected(paid: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(AirflowFailException, match=message):
        render(operator(**values)).execute(task_context())


def test_a_missing_ledger_is_not_created(runa: RunningSandbox, ledger_file: Path) -> None:
    with pytest.raises(AirflowFailException, match=f"ledger: there is none in {ledger_file}"):
        operator().execute(task_context())
    assert not ledger_file.exists()


def test_without_campaign_and_period_the_dag_is_broken() -> None:
    with pytest.raises(ValueError, match="campaign, since: set at least one of them"):
        operator(campaign=None)


def test_a_retry_may_help_if_runa_cannot_be_read(
    runa: RunningSandbox, paid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.asyncio.sleep", _at_once)
    runa.faults({"kind": "status", "status": 500, "method": "GET", "path": "/order", "count": 1000})
    with pytest.raises(RunaError) as failure:
        operator().execute(task_context())
    assert not isinstance(failure.value, AirflowFailException)


async def _at_once(seconds: float) -> None:
    pass


# -- the command line --------------------------------------------------------------------------------------------------


def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in an Airflow home that has never been used."""
    return subprocess.run(
        [sys.executable, "-m", "airflow_provider_runa.cli.reconcile", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment | {"AIRFLOW_HOME": str(home)},
    )


def test_the_command_lists_differences_with_recipients(runa: RunningSandbox, paid: Path, tmp_path: Path) -> None:
    spoil(paid)
    order_id = stray(runa)
    ended = run("--campaign", CAMPAIGN, "--ledger", "ledger", "--runa", "runa_default", home=tmp_path / "home")
    assert ended.returncode == 1, ended.stderr
    head, *lines, last = [line.strip() for line in ended.stdout.splitlines() if line.strip(" ─")]
    assert head.split() == ["KIND", "CAMPAIGN", "RECIPIENT", "ORDER", "WHAT"]
    amount, unknown = sorted(lines)
    assert amount.split()[:3] == ["amount_differs", CAMPAIGN, "customer-1@example.com"]
    assert amount.endswith("the ledger says 25.00, and Runa paid 10.00")
    assert unknown.split()[:4] == ["unknown_to_ledger", CAMPAIGN, "-", order_id]
    assert unknown.index(order_id) == head.index("ORDER")
    assert last == "2 order(s) compared; 2 difference(s)."
    assert not (tmp_path / "home" / "airflow.db").exists()


def test_the_command_prints_json_and_csv(runa: RunningSandbox, paid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(paid)
    capsys.readouterr()
    arguments = ["--campaign", CAMPAIGN, "--ledger", "ledger"]
    assert command.main([*arguments, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["orders"], said["differences"][0]["recipient_key"]) == (1, "customer-1@example.com")
    assert command.main([*arguments, "--csv"]) == 1
    head, line = capsys.readouterr().out.splitlines()
    assert head == "kind,campaign,recipient_key,order_id,text"
    assert line.startswith(f"amount_differs,{CAMPAIGN},customer-1@example.com,O-")


def test_the_command_does_not_find_a_campaign(paid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command.main(["--campaign", "sprong", "--ledger", "ledger"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "no campaign 'sprong'" in said.err
    assert said.err.endswith(f" It has {CAMPAIGN}.\n")


def test_the_command_takes_a_url_and_a_key_of_the_environment(runa: RunningSandbox, paid: Path, tmp_path: Path) -> None:
    ended = run(
        *("--since", "2020-01-01", "--ledger", f"sqlite:///{paid}"),
        home=tmp_path / "home",
        RUNA_API_KEY=runa.api_key,
        RUNA_BASE_URL=runa.url,
        AIRFLOW_CONN_RUNA_DEFAULT="runa://",
    )
    assert (ended.returncode, ended.stdout) == (0, "1 order(s) compared; 0 difference(s).\n"), ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--campaign", CAMPAIGN, "--ledger", "nowhere"], "nowhere"),
        (["--campaign", CAMPAIGN, "--ledger", "ledger", "--runa", "nowhere"], "nowhere"),
        (["--campaign", CAMPAIGN, "--ledger", "sqlite:////nowhere/ledger.db"], "ledger: there is none in /nowhere"),
        (["--campaign", CAMPAIGN, "--ledger", "what://ever"], "what"),
        (["--since", "2026-02-01", "--until", "2026-01-01", "--ledger", "ledger"], "must be after"),
    ],
)
def test_the_command_cannot_look(
    paid: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 4
    said = capsys.readouterr()
    assert said.out == ""
    *_, line = said.err.splitlines()  # Airflow 2 has logged that its own database has no tables here
    assert line.startswith("The command failed: ")
    assert message in line


@pytest.mark.parametrize(
    "arguments", [["--ledger", "ledger"], ["--campaign", CAMPAIGN], ["--since", "soon", "--ledger", "ledger"]]
)
def test_the_command_reports_a_missing_argument(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_command_counts_what_is_open_or_hidden(
    runa: RunningSandbox, ledger_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = RunaPayoutOperator(
        task_id="plan",
        campaign=CAMPAIGN,
        rows=[row(1)],
        currency="USD",
        ledger_conn_id="ledger",
        defaults=DEFAULTS,
        mode="plan",
    )
    task.execute(task_context(task_id="plan"))
    capsys.readouterr()
    assert command.main(["--campaign", CAMPAIGN, "--ledger", "ledger"]) == 0
    assert capsys.readouterr().out == "0 order(s) compared; 0 difference(s); 1 row(s) planned.\n"


# -- a ledger that was lost -------------------------------------------------------------------------------------------


def states(path: Path) -> dict[str, str]:
    with sqlite3.connect(path) as ledger:
        return dict(ledger.execute("SELECT recipient_key, state FROM runa_ledger"))


def test_a_lost_ledger_is_rebuilt_from_rows(runa: RunningSandbox, paid: Path) -> None:
    """Of the rows that may have been paid, those are taken in that an order pays. Nothing is sent."""
    before, orders = states(paid), runa.orders()
    remove(paid)
    rows = [paid_row(number) for number in (0, 1, 2, 77)]
    task = render(operator(rows=json.dumps(rows), defaults=json.dumps(DEFAULTS)))
    assert "@" not in f"{task.rows!r}"
    summary = task.execute(task_context())
    assert summary["differences"] == {}
    assert states(paid) == before
    assert runa.orders() == orders


def test_wrong_rows_of_a_rebuild_are_rejected(runa: RunningSandbox, paid: Path) -> None:
    remove(paid)
    for values, message in (
        ({"rows": "ada@example.com"}, "rows: rendered to text that is not JSON"),
        ({"rows": [row(1)], "defaults": {"colour": "red"}}, "defaults: "),
        ({"rows": {"recipient_key": 1}}, "rows: must be a list, not dict"),
    ):
        with pytest.raises(AirflowFailException, match=message) as caught:
            render(operator(**values)).execute(task_context())
        assert "ada@" not in str(caught.value)


def test_the_command_rebuilds_a_lost_ledger(
    runa: RunningSandbox, paid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = states(paid)
    remove(paid)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(paid_row(number) | DEFAULTS) + "\n" for number in range(3)))
    capsys.readouterr()
    assert command.main(["--campaign", f" {CAMPAIGN} ", "--ledger", "ledger", "--rebuild", str(file)]) == 0
    assert states(paid) == before


def remove(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}*"):
        part.unlink()


@pytest.mark.parametrize("spelling", ["Pr\u00e4mie", "Pra\u0308mie", " Pr\u00e4mie "])
def test_a_campaign_is_compared_in_any_spelling(runa: RunningSandbox, ledger_file: Path, spelling: str) -> None:
    values = {"currency": "USD", "ledger_conn_id": "ledger", "defaults": DEFAULTS}
    RunaPayoutOperator(task_id="pay", campaign="Pr\u00e4mie", rows=[row(1)], **values).execute(task_context())
    assert operator(campaign=spelling).execute(task_context())["orders"] == 1
