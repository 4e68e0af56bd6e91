"""The retry policy: what is retried, when, and what not."""

from __future__ import annotations

import importlib
import json
import sys
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction
from airflow.serialization.serialized_objects import DagSerialization

from airflow_provider_runa import retries
from airflow_provider_runa.api import errors
from airflow_provider_runa.campaign.errors import BalanceTooLowError
from airflow_provider_runa.hooks.runa import RunaConnectionSettingsError
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.placement.errors import OrderFailedError, OrderHeldBackError, OutcomeUnknownError
from airflow_provider_runa.retries import runa_retry_policy

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
        (RunaConnectionSettingsError("no key"), RetryAction.FAIL, None),
        (ZeroDivisionError(), RetryAction.DEFAULT, None),
    ],
)
def test_each_error_has_its_own_retry(error: Exception, action: Any, pause: timedelta | None) -> None:
    decision = runa_retry_policy().evaluate(error, 1, 3)
    assert (decision.action, decision.retry_delay) == (action, pause)


def test_the_pauses_can_be_chosen() -> None:
    policy = runa_retry_policy(unknown=MINUTE, rate_limit=3 * MINUTE, top_up=4 * MINUTE)
    found = (errors.RunaServerError(500), errors.RunaRateLimitError(429), HELD_BACK)
    assert [policy.evaluate(error, 1, 3).retry_delay for error in found] == [MINUTE, 3 * MINUTE, 4 * MINUTE]


def test_it_survives_airflows_serialization() -> None:
    policy = runa_retry_policy()
    restored = ExceptionRetryPolicy.deserialize(json.loads(json.dumps(policy.serialize())))
    assert restored.serialize() == policy.serialize()
    with DAG("rewards", schedule=None) as dag:
        RunaCreateOrderOperator(task_id="pay", items=[], currency="USD", retries=3, retry_policy=policy)
    assert json.dumps(DagSerialization.to_dict(dag))


def test_older_airflow_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.sdk.definitions.retry_policy", None)
    with pytest.raises(ImportError, match=r"needs Airflow 3\.3 or later.*retries=5") as caught:
        importlib.reload(retries)
    assert caught.value.__suppress_context__
    monkeypatch.undo()
    importlib.reload(retries)
