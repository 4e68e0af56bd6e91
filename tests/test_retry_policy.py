"""The retry policy: which errors are retried, after which pause."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.serialization.serialized_objects import DagSerialization

from airflow_provider_runa import retry_policy
from airflow_provider_runa.api import errors
from airflow_provider_runa.api.errors import RunaConfigurationError
from airflow_provider_runa.campaign.errors import BalanceTooLowError, CampaignUnfinishedError
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.placement.errors import OrderFailedError, OrderHeldBackError, OutcomeUnknownError
from airflow_provider_runa.placement.place import Policy
from airflow_provider_runa.retry_policy import runa_retry_policy
from tests.campaign.world import DEFAULTS, row
from tests.support.airflow import SharedClock, task_context
from tests.support.sandbox import RunningSandbox

MINUTE = timedelta(minutes=1)
HELD_BACK = OrderHeldBackError(answer="", earlier="", accounted=True)


@pytest.mark.parametrize(
    ("error", "action", "pause"),
    [
        (errors.RunaRateLimitError(429), RetryAction.RETRY, 5 * MINUTE),
        (errors.RunaServerError(503), RetryAction.RETRY, 2 * MINUTE),
        (errors.RunaConnectionError("no answer"), RetryAction.RETRY, 2 * MINUTE),
        (errors.RunaIdempotencyInProgressError(400), RetryAction.RETRY, 2 * MINUTE),
        (OutcomeUnknownError(answer="", reference=""), RetryAction.RETRY, 2 * MINUTE),
        (OrderFailedError(order_id="O-1"), RetryAction.RETRY, 2 * MINUTE),
        (HELD_BACK, RetryAction.RETRY, 30 * MINUTE),
        (BalanceTooLowError(count=1, total=1, currency="USD", balance=0), RetryAction.RETRY, 30 * MINUTE),
        (errors.RunaInsufficientFundsError(400), RetryAction.RETRY, 30 * MINUTE),
        (errors.RunaOrderingRestrictedError(403), RetryAction.RETRY, 30 * MINUTE),
        (errors.RunaAuthenticationError(401), RetryAction.FAIL, None),
        (errors.RunaValidationError(422), RetryAction.FAIL, None),
        (errors.RunaNotFoundError(404), RetryAction.FAIL, None),
        (errors.InvalidOrderError("items"), RetryAction.FAIL, None),
        (RunaConfigurationError("no key"), RetryAction.FAIL, None),
        (ZeroDivisionError(), RetryAction.DEFAULT, None),
    ],
)
def test_each_error_has_its_own_retry(error: Exception, action: Any, pause: timedelta | None) -> None:
    decision = runa_retry_policy().evaluate(error, 1, 3)
    assert (decision.action, decision.retry_delay) == (action, pause)


def pause_after(error: BaseException) -> Any:
    """Return the decision, and check that it is the same after the error was pickled."""
    decisions = [runa_retry_policy().evaluate(one, 1, 3) for one in (error, pickle.loads(pickle.dumps(error)))]
    assert decisions[0] == decisions[1]
    assert decisions[0].action is RetryAction.RETRY
    return decisions[0].retry_delay


def ends_with(task: Any, runa: RunningSandbox) -> BaseException:
    task.clock = SharedClock(runa)
    task.policy = Policy(budget=10)
    with pytest.raises(errors.RunaError) as caught:
        task.execute(task_context())
    return caught.value


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a campaign of two orders."""
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))
    return {
        "task_id": "pay",
        "campaign": "spring",
        "currency": "USD",
        "ledger_conn_id": "ledger",
        "defaults": DEFAULTS,
        "rows": [row(n) for n in range(201)],
        "check_balance": False,
    }


@pytest.mark.parametrize(("status", "pause"), [(429, 5 * MINUTE), (503, 2 * MINUTE), (403, 2 * MINUTE)])
def test_an_operator_waits_for_what_left_the_outcome_unknown(
    runa: RunningSandbox, campaign: dict[str, Any], status: int, pause: timedelta
) -> None:
    fault = {"kind": "status", "method": "POST", "path": "/order", "status": status, "typed": False, "count": 1000}
    runa.faults(fault)
    item = {"face_value": 10, "products": {"type": "SINGLE", "value": "AMZ-US"}}
    order = RunaCreateOrderOperator(
        task_id="pay", items=[item | {"distribution_method": {"type": "PAYOUT_LINK"}}], currency="USD"
    )
    assert pause_after(ends_with(order, runa)) == pause
    assert pause_after(ends_with(RunaPayoutOperator(**campaign), runa)) == pause


def test_an_operator_waits_for_the_top_up(runa: RunningSandbox, campaign: dict[str, Any]) -> None:
    runa.balance("USD", "100")
    assert pause_after(ends_with(RunaPayoutOperator(**campaign), runa)) == 30 * MINUTE
    campaign["check_balance"] = True
    assert pause_after(ends_with(RunaPayoutOperator(**campaign), runa)) == 30 * MINUTE


def test_a_campaign_waits_for_the_top_up_after_it_has_deferred(runa: RunningSandbox, campaign: dict[str, Any]) -> None:
    runa.balance("USD", "2000")  # covers one of the two orders, the one that is placed first
    task = RunaPayoutOperator(**campaign, deferrable=True)
    task.clock = SharedClock(None)  # type: ignore[assignment] # orders stay PROCESSING
    with pytest.raises(TaskDeferred) as caught:
        task.execute(task_context())
    runa.advance(60)
    deferred = caught.value
    kwargs = json.loads(json.dumps(deferred.kwargs))
    event = {"status": "final", "orders": dict.fromkeys(deferred.trigger.order_ids, "COMPLETED")}  # type: ignore[attr-defined]
    with pytest.raises(CampaignUnfinishedError, match=r"1 order\(s\) are not placed") as ended:
        RunaPayoutOperator(**campaign).resume_execution("execute_complete", {**kwargs, "event": event}, task_context())
    assert pause_after(ended.value) == 30 * MINUTE


def test_the_pauses_can_be_chosen() -> None:
    policy = runa_retry_policy(unknown=MINUTE, rate_limit=3 * MINUTE, top_up=4 * MINUTE)
    found = (errors.RunaServerError(500), errors.RunaRateLimitError(429), HELD_BACK)
    assert [policy.evaluate(error, 1, 3).retry_delay for error in found] == [MINUTE, 3 * MINUTE, 4 * MINUTE]


def test_it_survives_airflows_serialization() -> None:
    policy = runa_retry_policy()
    restored = type(policy).deserialize(json.loads(json.dumps(policy.serialize())))
    assert restored.serialize() == policy.serialize()
    with DAG("rewards", schedule=None) as dag:
        RunaCreateOrderOperator(task_id="pay", items=[], currency="USD", retries=3, retry_policy=policy)
    assert json.dumps(DagSerialization.to_dict(dag))


def test_on_older_airflow_the_error_names_the_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.sdk.definitions.retry_policy", None)
    with pytest.raises(ImportError, match=r"needs Airflow 3\.3 or later.*retries=5") as caught:
        importlib.reload(retry_policy)
    assert caught.value.__suppress_context__
    page = (Path(__file__).parent.parent / "docs" / "authoring.md").read_text()
    for setting in ("retries=5", "retry_delay=timedelta(minutes=2)", "retry_exponential_backoff=True"):
        assert setting in str(caught.value)
        assert f"`{setting}`" in page
    monkeypatch.undo()
    importlib.reload(retry_policy)
