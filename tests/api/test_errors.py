"""The tree of errors: chosen by status and type only, and never with a secret."""

from __future__ import annotations

import pickle
import random
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_runa.api import errors
from airflow_provider_runa.api.errors import (
    ErrorDetail,
    RunaApiError,
    RunaConnectionError,
    RunaError,
    RunaNotFoundError,
    RunaRateLimitError,
    RunaRequestError,
    RunaServerError,
    RunaValidationError,
    parse_error,
    redact,
)
from airflow_provider_runa.api.retry import is_outcome_unknown, pause_before_retry

API_KEY = "XXplanted.k3y-part"
EMAIL = "ada.lovelace@example.com"
REFERENCE = "ada-lovelace_1815"
LINK = "https://payouts.example.com/claim/s3cret-t0ken"
SECRETS = (API_KEY, EMAIL, REFERENCE)
PLANTED = ("XXplanted", "k3y-part", "lovelace", "s3cret")

# (status, type) -> class of the error.
TREE = {
    (400, "bad_request"): errors.RunaBadRequestError,
    (400, "invalid_version"): errors.RunaInvalidVersionError,
    (400, "pagination_error"): errors.RunaPaginationError,
    (400, "idempotency_validation_error"): errors.RunaIdempotencyMismatchError,
    (400, "idempotency_in_progress"): errors.RunaIdempotencyInProgressError,
    (400, "insufficient_funds"): errors.RunaInsufficientFundsError,
    (400, "product_validation_error"): errors.RunaProductValidationError,
    (400, "currency_mismatch"): errors.RunaCurrencyMismatchError,
    (400, "payment_method_unavailable"): errors.RunaPaymentMethodUnavailableError,
    (400, "invalid_execution_mode"): errors.RunaInvalidExecutionModeError,
    (400, "insecure_protocol"): errors.RunaInsecureProtocolError,
    (400, "brand_new"): errors.RunaBadRequestError,
    (401, "unauthorized"): errors.RunaAuthenticationError,
    (401, "invalid_api_key"): errors.RunaAuthenticationError,
    (403, "forbidden"): errors.RunaForbiddenError,
    (403, "ordering_restricted"): errors.RunaOrderingRestrictedError,
    (404, "not_found"): errors.RunaNotFoundError,
    (410, "version_removed"): errors.RunaVersionRemovedError,
    (422, "validation_error"): errors.RunaValidationError,
    (418, "brand_new"): errors.RunaRequestError,
    (500, "internal_server_error"): errors.RunaServerError,
    (504, "timeout"): errors.RunaServerError,
    (599, "brand_new"): errors.RunaServerError,
}
UNKNOWN = {"idempotency_in_progress", "internal_server_error", "timeout"}


@pytest.mark.parametrize(("answer", "expected"), TREE.items(), ids=[f"{status} {kind}" for status, kind in TREE])
def test_status_and_type_decide(answer: tuple[int, str], expected: type[RunaApiError]) -> None:
    status, kind = answer
    error = parse_error(status, {"type": kind, "message": "In words.", "help": "Try again."})
    assert type(error) is expected
    assert (error.status, error.type, error.message, error.help) == (status, kind, "In words.", "Try again.")
    assert str(error) == f"{status} {kind}: In words."
    assert isinstance(error, RunaRequestError) == (status < 500)
    assert is_outcome_unknown(error) == (kind in UNKNOWN or status >= 500)


@pytest.mark.parametrize("message", ["insufficient_funds", "idempotency_in_progress", "429", "not_found"])
def test_the_text_decides_nothing(message: str) -> None:
    error = parse_error(400, {"type": "bad_request", "message": message, "help": message})
    assert type(error) is errors.RunaBadRequestError


@pytest.mark.parametrize("kind", ["insufficient_funds", "ordering_restricted", "idempotency_validation_error"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_final_type_does_not_make_an_unknown_outcome_final(status: int, kind: str) -> None:
    assert is_outcome_unknown(parse_error(status, {"type": kind, "message": "x"}))


def test_a_429_has_a_body_of_its_own() -> None:
    error = parse_error(429, {"error": "rate exceeded"})
    assert type(error) is RunaRateLimitError
    assert (error.type, error.message, str(error)) == (None, "rate exceeded", "429: rate exceeded")
    assert is_outcome_unknown(error)
    assert not isinstance(error, RunaRequestError)


@pytest.mark.parametrize(
    "body",
    [
        {"type": "about:blank", "title": "Forbidden", "status": 403},
        {"type": "https://example.com/probs/blocked", "message": "Blocked."},
        {"type": "forbidden"},
        {"message": "Forbidden"},
        {"type": "Forbidden", "message": "Blocked."},
    ],
)
def test_an_answer_of_a_gateway_is_not_read_as_runas(body: Any) -> None:
    assert parse_error(403, body).type is None
    assert parse_error(408, body | {"status": 408}).type is None


@pytest.mark.parametrize("body", [None, [], "text", 5, True, {}, {"type": 5, "message": ["x"], "details": None}])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, errors.RunaBadRequestError),
        (404, RunaNotFoundError),
        (422, RunaValidationError),
        (429, RunaRateLimitError),
        (502, RunaServerError),
    ],
)
def test_without_a_body_of_runas_the_status_decides(status: int, body: Any, expected: type[RunaApiError]) -> None:
    error = parse_error(status, body)
    assert type(error) is expected
    assert (error.type, error.message, error.details, str(error)) == (None, "", (), str(status))


def test_a_validation_error_has_the_location() -> None:
    details = [{"type": "number.ge", "message": f"finding {n}", "location": ["items", str(n), "x"]} for n in range(7)]
    error = parse_error(422, {"type": "validation_error", "message": "Wrong.", "details": [*details, "odd"]})
    assert type(error) is RunaValidationError
    assert error.details[1] == ErrorDetail("number.ge", "finding 1", ("items", "1", "x"))
    assert len(error.details) == 7
    assert str(error).startswith("422 validation_error: Wrong. (items.0.x: finding 0; items.1.x: finding 1;")
    assert str(error).endswith("items.4.x: finding 4; and 2 more)")


def texts(error: Exception) -> str:
    """Everything of an error that is printed, logged or kept."""
    try:
        raise error
    except type(error):
        printed = traceback.format_exc()
    return "\n".join([str(error), repr(error), printed, repr(error.args), repr(vars(error)), repr(pickle.dumps(error))])


@pytest.mark.parametrize("secret", [*SECRETS, LINK, EMAIL.upper(), f"Ada <{EMAIL}>", f"'{LINK}'"])
@pytest.mark.parametrize("status", [400, 401, 422, 429, 500])
def test_an_error_keeps_no_secret_that_runa_echoes(status: int, secret: str) -> None:
    text = f"before {secret} after"
    body = {
        "type": text,
        "message": text,
        "error": text,
        "help": text,
        "other": text,
        "details": [{"type": text, "message": text, "location": ["items", text], "input": text}],
    }
    error = parse_error(status, body, SECRETS)
    printed = texts(error)
    assert not [part for part in PLANTED if part.lower() in printed.lower()]
    assert "before" in str(error)
    assert "after" in str(error)


def test_links_and_addresses_are_hidden_without_being_named() -> None:
    text = redact(f"see {LINK}, or write to {EMAIL}; thanks")
    assert text == "see *** or write to ***; thanks"


def test_the_longest_secret_is_hidden_first() -> None:
    assert redact("ada-lovelace_1815 was here", ["ada-lovelace", "ada-lovelace_1815", ""]) == "*** was here"


@given(st.text(max_size=2000), st.sampled_from([API_KEY, EMAIL, LINK]), st.text(max_size=2000))
@settings(deadline=None)
def test_a_text_of_runas_is_one_short_line_without_secrets(before: str, secret: str, after: str) -> None:
    text = redact(f"{before} {secret} {after}", SECRETS)
    assert len(text) <= 301
    assert "\n" not in text
    assert not [part for part in ("k3y-part", "ada.lovelace", "s3cret") if part in text]


@pytest.mark.parametrize("answer", TREE, ids=[f"{status} {kind}" for status, kind in TREE])
def test_an_error_of_runas_can_cross_processes(answer: tuple[int, str]) -> None:
    status, kind = answer
    detail = {"type": "x", "message": "y", "location": ["items", "0"]}
    error = parse_error(status, {"type": kind, "message": "Words.", "help": "Help.", "details": [detail]})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_only_an_unknown_outcome_may_be_sent_again() -> None:
    assert is_outcome_unknown(RunaConnectionError("x"))
    assert not is_outcome_unknown(errors.InvalidOrderError("x"))
    assert not is_outcome_unknown(RunaError("x"))
    assert not is_outcome_unknown(ValueError("x"))


class _Highest(random.Random):
    """Randomness at its upper end."""

    def uniform(self, a: float, b: float) -> float:
        return b


class _Lowest(random.Random):
    """Randomness at its lower end."""

    def uniform(self, a: float, b: float) -> float:
        return a


def test_pauses_grow_up_to_half_a_minute() -> None:
    lost = RunaConnectionError("x")
    assert [pause_before_retry(n, lost, _Highest()) for n in (1, 2, 3, 4, 5, 6, 5000)] == [1, 2, 4, 8, 16, 30, 30]
    assert [pause_before_retry(n, lost, _Lowest()) for n in (1, 2, 3)] == [0.5, 1, 2]


def test_pauses_after_a_429_are_longer_than_runa_asks_for() -> None:
    limited = parse_error(429, {"error": "rate exceeded"})
    assert [pause_before_retry(n, limited, _Lowest()) for n in (1, 2, 3, 5000)] == [5, 10, 15, 30]
