"""RunaEstimateOrderOperator and RunaCheckProductOperator against the sandbox over real sockets."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.api import settings
from airflow_provider_runa.api.errors import RunaServerError
from airflow_provider_runa.operators.checks import RunaCheckProductOperator, RunaEstimateOrderOperator
from tests.support.airflow import reset_secrets_masker, stored_fields, task_context
from tests.support.sandbox import RunningSandbox

ADDRESS = "ada.lovelace-7311@example.com"
ITEM: dict[str, Any] = {
    "face_value": 10,
    "distribution_method": {"type": "EMAIL", "email_address": ADDRESS},
    "products": {"type": "SINGLE", "value": "SHOE-US"},
}


def estimate(items: Any, **values: Any) -> Any:
    return RunaEstimateOrderOperator(task_id="ask", items=items, currency="USD", **values).execute(task_context())


def check(products: Any, **values: Any) -> Any:
    return RunaCheckProductOperator(task_id="check", products=products, **values).execute(task_context())


def test_an_estimate_returns_the_cost_and_shows_no_recipient(runa: RunningSandbox) -> None:
    result = estimate([ITEM, ITEM | {"face_value": "5.50"}])
    assert result == {
        "currency": "USD",
        "total_price": "13.95",
        "total_discount": "1.55",
        "face_value": "15.50",
        "items": 2,
    }
    assert runa.stats()["orders"] == {}


def test_up_to_500_items_are_estimated(runa: RunningSandbox) -> None:
    assert estimate([ITEM] * 500)["items"] == 500
    with pytest.raises(AirflowFailException, match="items: must have at most 500 entries, has 501"):
        estimate([ITEM] * 501)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("[{'a': 1}]", "not JSON"),
        ([], "items: "),
        ([ITEM | {"products": {"type": "TEMPLATE", "template_id": "PT-1"}}], "type must be one of"),
        ([ITEM | {"products": {"type": "SINGLE", "value": "GONE-US"}}], "product_validation_error"),
    ],
)
def test_what_cannot_be_estimated_burns_no_retries(runa: RunningSandbox, items: Any, message: str) -> None:
    with pytest.raises(AirflowFailException, match=f"^Nobody was paid.*{message}") as caught:
        estimate(items)
    assert ADDRESS not in str(caught.value)


def test_the_error_says_that_the_playground_has_no_estimates(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    runa.faults({"kind": "status", "method": "POST", "path": "/order/estimate", "status": 404, "count": 9})
    monkeypatch.setattr(settings, "PLAYGROUND", runa.url)
    with pytest.raises(AirflowFailException, match="the playground has no estimates: use a production key"):
        estimate([ITEM])
    monkeypatch.undo()
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", runa.connection)
    with pytest.raises(AirflowFailException, match="404") as caught:
        estimate([ITEM])
    assert "playground" not in str(caught.value)


def test_an_estimate_that_fails_for_now_may_be_retried(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    runa.faults({"kind": "status", "method": "POST", "path": "/order/estimate", "status": 503, "count": 9})
    with pytest.raises(RunaServerError):
        estimate([ITEM])


def test_recipients_in_estimated_items_are_masked() -> None:
    reset_secrets_masker()
    task = RunaEstimateOrderOperator(task_id="ask", items="{{ rows | tojson }}", currency="USD")
    task.render_template_fields({"rows": [ITEM]}, jinja2.Environment(autoescape=False))  # type: ignore[arg-type]
    assert ADDRESS not in str(stored_fields(task))


def test_products_that_can_be_ordered_pass(runa: RunningSandbox) -> None:
    assert check("AMZ-US") == ["AMZ-US"]
    codes = ["AMZ-US", "CAFE-US", "VISA-US"]
    assert check(codes, face_value=["5", 25], currency="USD", country="US") == codes
    assert check("TUNES-US", face_value="30.00") == ["TUNES-US"]


def test_every_reason_is_named(runa: RunningSandbox) -> None:
    with pytest.raises(AirflowFailException) as caught:
        check(
            ["NONE-US", "PAUSED-US", "CAFE-US", "MART-DE", "TUNES-US"],
            face_value=[7, "0.50", 501],
            currency="USD",
            country="US",
        )
    for reason in (
        "there is no product NONE-US in Runa's catalogue",
        "PAUSED-US cannot be ordered now (TEMPORARILY_DISABLED)",
        "CAFE-US has no face value of 7: only 5.00, 10.00, 25.00",
        "MART-DE is in EUR, not in USD",
        "MART-DE is redeemable in DE, not in US",
        "MART-DE has no face value of 0.50: the minimum is 1.00",
        "MART-DE has no face value of 501: the maximum is 500.00",
        "TUNES-US has no face value of 7: its plans cost 30.00",
    ):
        assert reason in str(caught.value)
    assert str(caught.value).count("\n") == 2, "three lines: the money, what happens next, what to do"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"products": []}, "products: must be the code"),
        ({"products": None}, "products: must be the code"),
        ({"face_value": "lots"}, "face_value: must be an amount, not 'lots'"),
        ({"currency": ""}, "currency: its value is missing"),
        ({"currency": None}, "currency: its value is missing"),
        ({"country": None}, "country: its value is missing"),
    ],
)
def test_wrong_input_is_never_a_check_that_passes(runa: RunningSandbox, values: dict[str, Any], message: str) -> None:
    with pytest.raises(AirflowFailException, match=message):
        check(**({"products": "AMZ-US"} | values))


def test_a_check_whose_value_is_missing_is_rejected(runa: RunningSandbox) -> None:
    task = RunaCheckProductOperator(task_id="check", products="AMZ-US", country="{{ missing }}", face_value=["{{ a }}"])
    task.country, task.face_value = None, []
    with pytest.raises(AirflowFailException, match="face_value: its value is missing"):
        task.execute(task_context())
