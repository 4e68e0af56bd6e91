"""runa-status against the sandbox over real sockets, with a ledger in a SQLite file."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from decimal import Decimal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_runa import __version__
from airflow_provider_runa.api.client import RunaClient
from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.cli import reconcile, status
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from tests.campaign.world import DEFAULTS, row
from tests.support.airflow import SharedClock, task_context
from tests.support.sandbox import RunningSandbox

CAMPAIGN = "spring"
ADDRESS = "ada@example.com"


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a SQLite file, which the connection ``ledger`` leads to as well."""
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    return f"sqlite:///{path}"


@pytest.fixture
def environment(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> RunningSandbox:
    """The sandbox in the environment's variables, without an Airflow connection to it."""
    monkeypatch.setenv("RUNA_API_KEY", runa.api_key)
    monkeypatch.setenv("RUNA_BASE_URL", runa.url)
    monkeypatch.delenv("AIRFLOW_CONN_RUNA_DEFAULT")
    return runa


def place(runa: RunningSandbox, count: int = 1, description: str = "Thanks [af-1.0]", seconds: float = 5) -> str:
    item = {
        "face_value": 10,
        "distribution_method": {"type": "EMAIL", "email_address": ADDRESS},
        "products": {"type": "SINGLE", "value": "AMZ-US"},
    }
    link = item | {"face_value": "120.50", "distribution_method": {"type": "PAYOUT_LINK"}}
    order = NewOrder.build(currency="USD", items=[item] * count + [link], description=description)
    with closing(RunaClient(runa.api_key, base_url=runa.url)) as client:
        order_id = client.create_order(order, idempotency_key=os.urandom(8).hex()).id
    runa.advance(seconds)
    return order_id


def pay(runa: RunningSandbox, **options: Any) -> None:
    options = {"rows": [row(number) for number in range(3)], "defaults": DEFAULTS} | options
    task = RunaPayoutOperator(task_id="pay", campaign=CAMPAIGN, currency="USD", ledger_conn_id="ledger", **options)
    task.clock = SharedClock(runa)  # type: ignore[assignment]
    task.execute(task_context())


def change(ledger: str, statement: str) -> None:
    """Change a ledger behind its back."""
    with closing(sqlite3.connect(ledger.removeprefix("sqlite:///"))) as connection, connection:
        assert connection.execute(statement).rowcount


def lines(text: str) -> list[list[str]]:
    """Return the words of each line that has any."""
    return [line.split() for line in text.splitlines() if line.strip(" ─")]


def main(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> int:
    """Run the command, after dropping earlier output: Airflow before 3.1 logs the requests of the tests, too."""
    capsys.readouterr()
    return status.main(arguments)


# -- an order ----------------------------------------------------------------------------------------------------------


def test_an_order_is_shown_with_counts_of_its_payouts(
    environment: RunningSandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    order_id = place(environment, 2)
    assert main(capsys, ["order", order_id]) == 0
    said = capsys.readouterr()
    shown = lines(said.out)
    assert ["order", order_id] in shown
    assert ["status", "COMPLETED"] in shown
    assert ["description", "Thanks", "[af-1.0]"] in shown
    assert shown[-3:] == [
        ["PAYOUTS", "FACE", "VALUE", "PRODUCT", "BY", "PAYOUT"],
        ["2", "10.00", "USD", "AMZ-US", "EMAIL", "ACTIVE"],
        ["1", "120.50", "USD", "AMZ-US", "PAYOUT_LINK", "ACTIVE"],
    ]
    for secret in (ADDRESS, "http", environment.api_key, "ada"):
        assert secret not in said.out + said.err


def test_each_payout_of_an_order_is_shown_with_rows(
    environment: RunningSandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(capsys, ["order", place(environment, 2), "--rows"]) == 0
    text = capsys.readouterr().out
    ids = {words[0] for words in lines(text)[-3:]}
    assert len(ids) == 3
    assert lines(text)[-3][1:] == ["10.00", "USD", "AMZ-US", "EMAIL", "ACTIVE"]
    assert ADDRESS not in text
    assert "http" not in text


def test_an_order_that_is_processing_is_fine(environment: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(capsys, ["order", place(environment, seconds=0)]) == 0
    assert ["status", "PROCESSING"] in lines(capsys.readouterr().out)


def test_an_order_that_failed_is_not(environment: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    environment.faults({"kind": "fail_order"})
    assert main(capsys, ["order", place(environment)]) == 1
    assert ["status", "FAILED"] in lines(capsys.readouterr().out)


def test_an_unknown_order_is_reported(environment: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(capsys, ["order", "O-NOWHERE"]) == 3
    assert capsys.readouterr() == ("", "This Runa account does not have order O-NOWHERE.\n")


def test_a_description_hides_addresses_and_control_characters(
    environment: RunningSandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(capsys, ["order", place(environment, description=f"for {ADDRESS} \x1b[31mred")]) == 0
    (description,) = [words for words in lines(capsys.readouterr().out) if words[0] == "description"]
    assert description == ["description", "for", "***", "\ufffd[31mred"]


# -- a campaign --------------------------------------------------------------------------------------------------------


def test_a_campaign_is_counted(runa: RunningSandbox, ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    pay(runa)
    change(ledger, "UPDATE runa_ledger SET state = 'sent' WHERE recipient_key = 'customer-1'")
    capsys.readouterr()
    assert main(capsys, ["campaign", CAMPAIGN, "--ledger", ledger]) == 0
    text = capsys.readouterr().out
    assert lines(text) == [
        ["STATE", "RECIPIENTS", "AMOUNT", "LATEST", "REASON"],
        ["sent", "1", "10.00", "USD", "-"],
        ["paid", "2", "20.00", "USD", "-"],
        ["2", "of", "3", "recipient(s)", "paid.", "Orders:", "1", "completed."],
    ]
    assert "customer" not in text


def test_a_campaign_with_rows_that_failed_is_not_fine(
    runa: RunningSandbox, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    change(ledger, "UPDATE runa_ledger SET state = 'failed', error = 'order O-1' WHERE recipient_key = 'customer-1'")
    change(ledger, "UPDATE runa_ledger SET recipient_key = '[red]' || char(27) WHERE recipient_key = 'customer-2'")
    capsys.readouterr()
    assert main(capsys, ["campaign", CAMPAIGN, "--ledger", "ledger", "--runa", "runa_default"]) == 1
    assert "customer" not in capsys.readouterr().out
    assert main(capsys, ["campaign", CAMPAIGN, "--ledger", "ledger", "--rows"]) == 1
    *_, head, odd, fine, failed = lines(capsys.readouterr().out)
    assert head == ["RECIPIENT", "STATE", "AMOUNT", "ORDER", "ITEM", "REASON"]
    assert odd[:2] == ["[red]\ufffd", "paid"]
    assert fine[:2] == ["customer-0", "paid"]
    assert (failed[:4], failed[-2:]) == (["customer-1", "failed", "10.00", "USD"], ["order", "O-1"])
    assert main(capsys, ["campaign", CAMPAIGN, "--ledger", "ledger", "--rows", "--state", "failed"]) == 1
    text = capsys.readouterr().out
    assert "customer-1" in text
    assert "customer-0" not in text


@pytest.mark.parametrize("kind", ["connection", "url"])
def test_an_unknown_campaign_is_reported(
    runa: RunningSandbox, ledger: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    capsys.readouterr()
    for _ in range(2):  # asking does not make it
        assert main(capsys, ["campaign", "sprong", "--ledger", "ledger" if kind == "connection" else ledger]) == 3
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", "The ledger has no campaign 'sprong'. It has spring.\n")


@pytest.mark.parametrize("kind", ["connection", "url"])
def test_a_missing_ledger_is_not_created(
    runa: RunningSandbox, ledger: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main(["campaign", CAMPAIGN, "--ledger", "ledger" if kind == "connection" else ledger]) == 4
    said = capsys.readouterr()
    message = f"ledger: there is none in {tmp_path}/ledger.db; the first campaign that is paid makes it"
    assert (said.out, said.err) == ("", f"The command failed: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_campaign_can_be_seen_while_it_is_planned(
    runa: RunningSandbox, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    with closing(sqlite3.connect(ledger.removeprefix("sqlite:///"))) as planning:
        planning.execute("BEGIN IMMEDIATE")  # nobody else may write
        assert status.main(["campaign", CAMPAIGN, "--ledger", ledger]) == 0
    assert "3 of 3 recipient(s) paid." in capsys.readouterr().out


def test_a_campaign_is_shown_without_a_connection_to_runa(
    runa: RunningSandbox, ledger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    monkeypatch.delenv("AIRFLOW_CONN_RUNA_DEFAULT")
    assert main(capsys, ["campaign", "--rows", CAMPAIGN, "--ledger", ledger]) == 0  # --rows takes no value
    assert "3 of 3 recipient(s) paid." in capsys.readouterr().out


def test_each_environment_of_a_campaign_is_shown(
    runa: RunningSandbox, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    with closing(sqlite3.connect(ledger.removeprefix("sqlite:///"))) as connection, connection:
        names = [one[1] for one in connection.execute("PRAGMA table_info(runa_campaign)") if one[1] != "id"]
        values = ", ".join("'https://other'" if name == "environment" else name for name in names)
        connection.execute(f"INSERT INTO runa_campaign ({', '.join(names)}) SELECT {values} FROM runa_campaign")
    assert main(capsys, ["campaign", CAMPAIGN, "--ledger", ledger, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["environments"]
    assert sorted(len(one["states"]) for one in shown) == [0, 1]
    assert main(capsys, ["campaign", CAMPAIGN, "--ledger", ledger, "--runa", "runa_default", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["environments"]
    assert one["orders"] == {"completed": 1}
    assert main(capsys, ["campaign", CAMPAIGN, "--ledger", ledger]) == 0
    assert "https://other:" in capsys.readouterr().out


def test_the_campaigns_of_a_ledger_are_listed(
    runa: RunningSandbox, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    assert main(capsys, ["campaigns", "--ledger", ledger]) == 0
    head, spring = lines(capsys.readouterr().out)
    assert head == ["CAMPAIGN", "ENVIRONMENT", "RECIPIENTS", "PAID", "FAILED"]
    assert (spring[0], spring[2:]) == (CAMPAIGN, ["3", "3", "0"])
    change(ledger, "UPDATE runa_ledger SET state = 'failed' WHERE recipient_key = 'customer-1'")
    assert main(capsys, ["campaigns", "--ledger", ledger, "--csv"]) == 1
    *_, line = capsys.readouterr().out.splitlines()
    assert line.endswith(",3,2,1")


def test_csv_has_a_line_per_row_and_no_formula(
    runa: RunningSandbox, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    change(ledger, "UPDATE runa_ledger SET recipient_key = '=1+1' WHERE recipient_key = 'customer-1'")
    assert main(capsys, ["campaign", CAMPAIGN, "--ledger", ledger, "--rows", "--csv"]) == 0
    head, *rows = csv.DictReader(capsys.readouterr().out.splitlines())
    assert {one["recipient"] for one in [head, *rows]} == {"customer-0", "'=1+1", "customer-2"}


# -- watching, and what ends a look ------------------------------------------------------------------------------------


def test_an_order_is_watched_until_it_is_final(environment: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    order_id, waits = place(environment, seconds=0), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:  # the second look has found what the first did
            environment.advance(5)

    capsys.readouterr()
    assert status.main(["order", order_id, "--watch", "--json"], sleep=sleep) == 0
    # Before Airflow 3.1, the log of the request to the sandbox is among the output.
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    shown = [json.loads(line)["status"] for line in lines]
    assert (shown, len(waits)) == (["PROCESSING", "COMPLETED"], 2)


def test_a_watch_can_be_interrupted(environment: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    order_id = place(environment, seconds=0)
    assert status.main(["order", order_id, "--watch"], sleep=interrupt) == 0


def test_a_campaign_is_watched_until_nothing_is_open(
    runa: RunningSandbox, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    change(ledger, "UPDATE runa_ledger SET state = 'sent' WHERE recipient_key = 'customer-1'")
    capsys.readouterr()

    def sleep(seconds: float) -> None:
        change(ledger, "UPDATE runa_ledger SET state = 'failed' WHERE recipient_key = 'customer-1'")

    assert status.main(["campaign", CAMPAIGN, "--ledger", ledger, "--watch"], sleep=sleep) == 1
    assert capsys.readouterr().out.count("2 of 3 recipient(s) paid.") == 2


def test_a_closed_port_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RUNA_API_KEY", "XXsandbox.secret")
    monkeypatch.setenv("RUNA_BASE_URL", "http://127.0.0.1:1/v2")
    began = time.monotonic()
    assert main(capsys, ["balance"]) == 4
    assert time.monotonic() - began < 10, "it was asked again and again"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "No connection to Runa at 127.0.0.1:1: is runa-sandbox running?\n")


def test_colour_is_for_a_terminal_only(
    runa: RunningSandbox, ledger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pay(runa)
    change(ledger, "UPDATE runa_ledger SET state = 'failed' WHERE recipient_key = 'customer-1'")
    arguments = ["campaign", CAMPAIGN, "--ledger", ledger]
    main(capsys, arguments)
    assert "\x1b" not in capsys.readouterr().out
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    main(capsys, arguments)
    assert "\x1b[31m" in capsys.readouterr().out


@pytest.mark.parametrize("command", [status, reconcile])
def test_the_version_and_the_exit_statuses_are_said(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--version", __version__), ("--help", "3 not found, 4 Runa or the ledger")):
        with pytest.raises(SystemExit) as exit_:
            command.main([option])
        assert exit_.value.code == 0
        assert text in capsys.readouterr().out


# -- balances ----------------------------------------------------------------------------------------------------------


def test_balances(environment: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    environment.balance("USD", "1234.5")
    environment.balance("GBP", "0")
    assert main(capsys, ["balance", "USD", "GBP"]) == 0
    assert lines(capsys.readouterr().out) == [["CURRENCY", "BALANCE"], ["USD", "1,234.50"], ["GBP", "0.00"]]
    assert main(capsys, ["balance"]) == 0
    shown = lines(capsys.readouterr().out)
    assert ["USD", "1,234.50"] in shown
    for currency, amount in shown[1:]:
        assert Decimal(amount.replace(",", "")) > 0
        environment.balance(currency, "0")
    assert main(capsys, ["balance"]) == 0
    assert capsys.readouterr().out == "No balance is above zero.\n"


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["runa-status", "runa-sandbox"])
def test_it_is_a_console_script(script: str) -> None:
    (found,) = entry_points(group="console_scripts", name=script)
    with pytest.raises(SystemExit) as exit_:
        found.load()(["--help"])
    assert exit_.value.code == 0


def test_with_the_environments_variables_it_loads_no_airflow(
    environment: RunningSandbox, ledger: str, tmp_path: Path
) -> None:
    program = f"""
import sys
from airflow_provider_runa.cli.status import main
codes = [main(["balance"]), main(["order", {place(environment)!r}]), main(["campaign", "x", "--ledger", {ledger!r}])]
print(codes, [name for name in sys.modules if name.partition(".")[0] == "airflow"])
"""
    home = tmp_path / "home"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"AIRFLOW_HOME": str(home)},
    )
    assert ended.stdout.splitlines()[-1] == "[0, 0, 4] []", ended.stderr
    assert not home.exists()


def test_a_pipe_gets_whole_lines_and_only_the_answer(runa: RunningSandbox, ledger: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    ended = subprocess.run(
        [sys.executable, "-m", "airflow_provider_runa.cli.status", "order", place(runa, description="x" * 120)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"AIRFLOW_HOME": str(home), "COLUMNS": "40"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("order ")
    assert "x" * 120 in ended.stdout
    assert not (home / "airflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["balance", "--runa", "nowhere"], "Set AIRFLOW_CONN_NOWHERE, or RUNA_API_KEY and no --runa."),
        (["campaign", "x", "--ledger", "nowhere"], "Set AIRFLOW_CONN_NOWHERE, or give --ledger an SQLAlchemy URL."),
        (["campaign", "x", "--ledger", "sqlite:////nowhere/ledger.db"], "ledger: there is none in /nowhere"),
        (["campaign", "x", "--ledger", "what://me:secret@ever"], "the ledger's URL: "),
        (["campaign", "x", "--ledger", "postgresql://me:secret@host:port/db"], "the ledger's URL: "),
        (["balance", "XXX"], "403 forbidden"),
    ],
)
def test_an_error_is_one_line(
    runa: RunningSandbox, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "XXX" in arguments:
        runa.faults({"kind": "status", "status": 403, "method": "GET", "path": "/balance"})
    assert main(capsys, arguments) == 4
    said = capsys.readouterr()
    assert said.out == ""
    *before, line = said.err.splitlines()
    assert not before or "NOWHERE" in message  # Airflow 2 has logged that its own database has no tables here
    assert line.startswith("The command failed: ")
    assert message in line
    assert "secret" not in line


def test_an_unknown_key_is_an_error_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNA_API_KEY", "zzpublic.hidden")
    monkeypatch.delenv("RUNA_BASE_URL", raising=False)
    assert main(capsys, ["balance"]) == 4
    said = capsys.readouterr().err
    assert said.startswith("The command failed: RUNA_API_KEY: the API key starts neither")
    assert "hidden" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["order"],
        ["campaign", "spring"],
        ["campaign", "x", "--ledger", "l", "--state", "gone"],
        ["what"],
        ["campaign", "x", "--ledger", "l", "--state", "paid"],
    ],
)
def test_an_invalid_command_line_is_an_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(capsys, arguments)
    assert exit_.value.code == 2
    assert "usage: runa-status" in capsys.readouterr().err
