"""Every error that a campaign can end with, walked frame by frame for planted secrets."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.campaign import errors
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.operators.reconcile import RunaReconcileOperator
from airflow_provider_runa.placement.errors import PlacementError
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.place import Policy
from scripts.error_table import kinds
from tests.support.airflow import SharedClock, task_context
from tests.support.frames import assert_no_secrets
from tests.support.sandbox import API_KEY, RunningSandbox

ADDRESS, KEY, LINK = "ada.lovelace-7311@example.com", "customer-7311", "/claim"
SECRETS = (ADDRESS, KEY, LINK, API_KEY)
ROWS: list[dict[str, Any]] = [
    {"recipient_key": KEY, "face_value": "10.00", "email_address": ADDRESS},
    {"recipient_key": f"{KEY}-b", "face_value": "10.00", "distribution_method": {"type": "PAYOUT_LINK"}},
]


class World:
    """A campaign of two rows that is about to end in an error.

    :param runa: the sandbox.
    :param file: the file of the ledger.
    """

    def __init__(self, runa: RunningSandbox, file: Path) -> None:
        self.runa, self.file = runa, file
        self.clock = SharedClock(runa)
        self.rows = ROWS
        self.event: dict[str, Any] | None = None
        self.reconciles = False

    def run(self, **values: Any) -> Any:
        """Execute the task, or continue it after a deferral."""
        if self.reconciles:
            return RunaReconcileOperator(task_id="pay", campaign="spring", ledger_conn_id="ledger").execute(
                task_context()
            )
        task = RunaPayoutOperator(
            **{
                "task_id": "pay",
                "campaign": "spring",
                "rows": self.rows,
                "currency": "USD",
                "ledger_conn_id": "ledger",
                "defaults": {"product": "AMZ-US"},
                "timeout": 30,
                "store_links": True,
                **values,
            }
        )
        task.clock = self.clock  # type: ignore[assignment]
        task.policy = Policy(budget=5)
        if self.event is not None:
            return task.execute_complete(task_context(), self.event)
        return task.execute(task_context())

    def change(self, statement: str) -> None:
        """Change the ledger behind its back."""
        with closing(sqlite3.connect(self.file)) as connection, connection:
            assert connection.execute(statement).rowcount

    def place_another(self) -> None:
        """Place an order of the campaign that its ledger does not know, and that does not show which rows it pays."""
        items = [
            {
                "face_value": 10,
                "distribution_method": {"type": "EMAIL", "email_address": ADDRESS},
                "products": {"type": "SINGLE", "value": "AMZ-US"},
            }
        ]
        identity = OrderIdentity.from_campaign(self.runa.url, campaign="spring", batch="lost")
        order = identity.seal(NewOrder.build(currency="USD", items=items, description="spring"), 0)
        with closing(RunaHook()) as hook:
            hook.create_order(order, idempotency_key=identity.idempotency_key(0))
        self.runa.advance(5)


def age_the_tables(world: World) -> None:
    world.run(mode="plan")
    world.change("UPDATE runa_ledger_version SET version = 1")


def empty_the_balance(world: World) -> None:
    world.runa.balance("USD", "5")


def drop_answers(world: World) -> None:
    world.runa.faults({"kind": "drop_after", "count": 999})
    world.runa.faults({"kind": "drop_before", "method": "GET", "path": "/order", "skip": 1, "count": 999})


def let_orders_fail(world: World) -> None:
    world.runa.lies({"kind": "order_status", "value": "FAILED"}, {"kind": "row_status", "value": "FAILED"})


def reject_the_order(world: World) -> None:
    world.runa.faults({"kind": "status", "status": 422, "type": "validation_error", "path": "/order", "count": 99})


def process_for_ever(world: World) -> None:
    world.clock.sandbox = None


def lose_the_order_while_deferred(world: World) -> None:
    world.run(mode="plan")
    world.event = {"status": "final", "orders": {"O-7311": "COMPLETED"}}


def spoil_the_ledger(world: World) -> None:
    world.run()
    world.change("UPDATE runa_ledger SET amount = '25.00'")
    world.reconciles = True


def break_the_list(world: World) -> None:
    world.runa.faults({"kind": "status", "status": 500, "method": "GET", "path": "/order", "count": 999})


def hide_an_order(world: World) -> None:
    payment = {"currency": "USD", "type": "ACCOUNT_BALANCE"}
    item = {
        "face_value": 10,
        "distribution_method": {"type": "EMAIL", "email_address": ADDRESS},
        "products": {"type": "SINGLE", "value": "AMZ-US"},
    }
    world.runa.add_order({"payment_method": payment, "items": [item]}, "PROCESSING")


def place_an_order_that_shows_no_rows(world: World) -> None:
    world.place_another()


def change_the_account(world: World) -> None:
    world.run()
    world.runa.reset()


def remove_the_ledger(world: World) -> None:
    world.file.mkdir()


def pay_less(world: World) -> None:
    world.runa.lies({"kind": "item_face_value", "value": "7.00"})


FAULTS: list[tuple[Callable[[World], None], type[PlacementError]]] = [
    (age_the_tables, errors.LedgerVersionError),
    (empty_the_balance, errors.BalanceTooLowError),
    (drop_answers, errors.CampaignUnfinishedError),
    (let_orders_fail, errors.CampaignFailedError),
    (reject_the_order, errors.CampaignRejectedError),
    (process_for_ever, errors.CampaignStillProcessingError),
    (lose_the_order_while_deferred, errors.OrderNotInLedgerError),
    (spoil_the_ledger, errors.LedgerDiffersError),
    (break_the_list, errors.OrderListUnreadableError),
    (hide_an_order, errors.CatchUpInconclusiveError),
    (place_an_order_that_shows_no_rows, errors.LedgerBehindError),
    (change_the_account, errors.OtherAccountError),
    (remove_the_ledger, errors.LedgerUnavailableError),
    (pay_less, errors.PayoutMismatchError),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=[kind.__name__ for _, kind in FAULTS])
def test_no_error_of_a_campaign_shows_a_secret(
    runa: RunningSandbox,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: Callable[[World], None],
    kind: type[PlacementError],
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.pause_before_retry", lambda *_: 0.0)
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": f"{tmp_path}/ledger.db"}))
    world = World(runa, tmp_path / "ledger.db")
    fault(world)
    with pytest.raises(kind if kind.retryable else AirflowFailException) as caught:
        world.run()
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert re.fullmatch(re.sub(r"\\{.*?\\}", ".*", re.escape(kind.money)), lines[0])
    assert_no_secrets(caught.value, SECRETS, attributes=False)


@pytest.mark.parametrize("wrong", ["face_value", "email_address", "recipient_key", "unknown"])
def test_no_error_about_a_row_shows_a_secret(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": f"{tmp_path}/ledger.db"}))
    world = World(runa, tmp_path / "ledger.db")
    world.rows = [ROWS[0] | {wrong: [ADDRESS]}, ROWS[1]]
    with pytest.raises(AirflowFailException) as caught:
        world.run()
    assert_no_secrets(caught.value, SECRETS, attributes=False)
    assert runa.orders() == []


def test_every_error_of_a_campaign_is_among_them() -> None:
    assert {kind for _, kind in FAULTS} == set(kinds(errors))  # type: ignore[arg-type]
