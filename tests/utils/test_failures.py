"""The mapping of errors to Airflow's exceptions: which ones Airflow retries, and their three lines."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.api import errors
from airflow_provider_runa.placement.errors import OrderFailedError, OutcomeUnknownError, WrongAccountError
from airflow_provider_runa.utils.failures import NON_RETRYABLE, READ_ONLY, to_airflow_exception


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidOrderError("items: must be a list, not dict."),
        errors.RunaConfigurationError("Connection 'runa_default': the API key is missing."),
        errors.RunaValidationError(422, "validation_error", "wrong"),
        errors.RunaAuthenticationError(401),
    ],
)
def test_an_error_that_no_retry_fixes_has_three_lines(error: errors.RunaError) -> None:
    failure = to_airflow_exception(error)
    assert isinstance(error, NON_RETRYABLE)
    assert isinstance(failure, AirflowFailException)
    money, after, todo = str(failure).split("\n")
    assert money == f"Nothing was sent in this attempt: {str(error).rstrip('.')}."
    assert after == "The task fails without further retries."
    assert todo == "Fix that, then clear the task."


def test_the_caller_says_what_happened_to_the_money() -> None:
    failure = to_airflow_exception(errors.InvalidOrderError("amount: is missing"), outcome=READ_ONLY)
    assert str(failure).startswith("Nobody was paid, because this task only reads: amount: is missing.\n")


@pytest.mark.parametrize(
    "error",
    [
        errors.RunaConnectionError("POST /order: no usable answer"),
        errors.RunaServerError(503),
        errors.RunaRateLimitError(429),
        errors.RunaError("the ledger is locked"),
        OrderFailedError(order_id="O-1"),
        OutcomeUnknownError(answer="no answer", reference="af-1.0"),
    ],
)
def test_an_error_that_a_retry_may_fix_is_unchanged(error: errors.RunaError) -> None:
    assert to_airflow_exception(error, outcome="not used") is error


def test_a_final_placement_error_keeps_its_text() -> None:
    error = WrongAccountError(order_id="O-1")
    failure = to_airflow_exception(error, outcome="not used")
    assert isinstance(failure, AirflowFailException)
    assert str(failure) == str(error)
    assert str(failure).count("\n") == 2
