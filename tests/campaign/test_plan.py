"""Planning: which rows are written to the ledger, which are left out, and what undoes the whole plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_runa.campaign import plan as plan_module
from airflow_provider_runa.campaign.errors import InvalidCampaignError
from airflow_provider_runa.campaign.ledger import LEASE
from airflow_provider_runa.campaign.plan import Limits
from airflow_provider_runa.campaign.tables import BatchState
from tests.campaign.world import Campaign, row

EUR_TEMPLATE = "PT-01HQ130AHCKRRB45Z5XV2Y8W9K"


def rows(*numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [row(number, **fields) for number in numbers]


def rejection(campaign: Campaign, given: Any, **options: Any) -> str:
    """Plan rows that are rejected, check that none of them is in the ledger, and return the error."""
    before = list(campaign.ledger.rows()), campaign.ledger.batches(BatchState.OPEN)
    with pytest.raises(InvalidCampaignError) as caught:
        campaign.plan(given, **options)
    assert (list(campaign.ledger.rows()), campaign.ledger.batches(BatchState.OPEN)) == before
    assert campaign.engine.orders() == []
    text = str(caught.value)
    assert text.endswith("Nothing was planned, and nothing was sent.")
    assert "\n" not in text
    assert "example.com" not in text
    return text


def sizes(campaign: Campaign) -> list[int]:
    return sorted(len(campaign.ledger.order(batch).items) for batch in campaign.ledger.batches(BatchState.OPEN))


def finish(campaign: Campaign, **options: Any) -> None:
    campaign.pay(**options)
    campaign.clock.advance(seconds=10)
    campaign.settle()


def test_rows_become_batches_of_one_order_each(campaign: Campaign) -> None:
    report = campaign.plan(rows(*range(450)))
    assert (report.read, report.planned, report.to_pay, report.total) == (450, 450, 450, Decimal(4500))
    assert sizes(campaign) == [50, 200, 200]
    assert campaign.states() == {"planned": 450}


def test_the_same_rows_are_the_same_order_whatever_order_they_come_in(campaign: Campaign) -> None:
    campaign.plan(rows(3, 1, 2))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    order = campaign.ledger.order(batch)
    addresses = [item.distribution_method.email_address for item in order.items]
    assert sorted(addresses) == ["customer-1@example.com", "customer-2@example.com", "customer-3@example.com"]
    again = Campaign()
    again.plan(rows(2, 3, 1))
    (same,) = again.ledger.batches(BatchState.OPEN)
    assert (same.id, again.ledger.order(same)) == (batch.id, order), "it depends on the order of the rows"
    assert (order.description, order.payment_method.currency) == ("spring", "USD")


def test_a_report_reads_as_one_line(campaign: Campaign) -> None:
    assert campaign.plan(rows(1)).describe("USD") == "1 to pay, 10.00 USD (rows: 1 read, 1 planned)"


# -- what is wrong with rows ------------------------------------------------------------------------------------------


def test_a_wrong_row_is_named_by_its_number(campaign: Campaign) -> None:
    text = rejection(campaign, [row(1), row(2, amount="-7311"), row(3)])
    assert text.startswith("rows[1]: face_value")
    assert "7311" not in text


def test_many_wrong_rows_are_counted(campaign: Campaign) -> None:
    text = rejection(campaign, rows(*range(8), amount=0))
    assert "rows[4]" in text
    assert "rows[5]" not in text
    assert "; and 3 more. " in text


def test_a_duplicate_is_found_in_a_chunk(campaign: Campaign) -> None:
    text = rejection(campaign, rows(1, 2, 1))
    assert "rows[2].recipient_key: is the same as rows[0], and can be paid once only" in text


def test_a_duplicate_is_found_across_chunks(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "CHUNK", 2)
    assert "rows[4].recipient_key: is the same as rows[0]" in rejection(campaign, rows(1, 2, 3, 4, 1))


def test_a_duplicate_of_a_row_that_was_written_already_is_found(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MAX_ITEMS", 2)
    monkeypatch.setattr(plan_module, "CHUNK", 2)
    assert "rows[2].recipient_key: is the same as rows[0]" in rejection(campaign, rows(1, 2, 1))


def test_an_input_that_breaks_off_plans_nothing(campaign: Campaign) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from rows(*range(1500))
        raise ConnectionError("the warehouse is down")

    with pytest.raises(ConnectionError):
        campaign.plan(broken())
    assert campaign.states() == {}
    assert campaign.ledger.batches(BatchState.OPEN) == []
    assert campaign.plan(rows(1)).planned == 1, "the run counts as one that has planned"


# -- rows that the ledger already has ----------------------------------------------------------------------------------


def test_paid_recipients_are_left_out_for_ever(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2))
    finish(campaign)
    campaign.clock.advance(days=400)
    report = campaign.plan(rows(1, 2, 3), run="next year")
    assert (report.already_paid, report.planned, report.to_pay) == (2, 1, 1)


def test_recipients_in_an_open_plan_are_left_out(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2))
    report = campaign.plan(rows(2, 3, amount=99), run="another")
    assert (report.already_open, report.planned) == (1, 1)
    assert (report.to_pay, report.total) == (1, Decimal(99)), "what another run has planned is that run's"


def test_another_campaign_plans_the_same_recipients(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    other = Campaign(campaign.database, name="autumn")
    assert other.plan(rows(1)).planned == 1


def test_a_plan_is_frozen_for_its_run(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2))
    report = campaign.plan([row(1, amount=99), row(3)])
    assert (report.already_open, report.left_out, report.planned) == (1, 1, 0)
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    assert [item.face_value for item in campaign.ledger.order(batch).items] == [10, 10]
    assert set(campaign.states()) == {"planned"}


def test_an_empty_plan_freezes_nothing(campaign: Campaign) -> None:
    """The query came too early: cleared later, the task must not be green without paying anybody."""
    assert campaign.plan([]).to_pay == 0
    assert campaign.plan(rows(1)).planned == 1


@pytest.mark.parametrize("currency", ["usd", "US", " USD"])
def test_an_invalid_currency_is_rejected(campaign: Campaign, currency: str) -> None:
    with pytest.raises(InvalidCampaignError, match="currency: must be three capital letters"):
        campaign.plan(rows(1), currency=currency)
    assert campaign.states() == {}


def test_a_failed_row_is_planned_again_with_the_current_input(campaign: Campaign) -> None:
    campaign.fault("fail_order")
    campaign.plan(rows(1, 2))
    finish(campaign)
    assert campaign.states() == {"failed": 2}
    report = campaign.plan([row(1, amount=25), row(3)])
    assert (report.planned_again, report.left_out, report.to_pay, report.total) == (1, 1, 1, Decimal(25))
    (found,) = campaign.ledger.rows("planned")
    assert (found["recipient_key"], found["amount"], found["order_id"], found["error"], found["sent_at"]) == (
        "customer-1",
        25,
        None,
        None,
        None,
    )


def test_a_rejected_row_is_planned_again_with_the_current_input(campaign: Campaign) -> None:
    campaign.fault("status", status=422, type="validation_error")
    campaign.plan(rows(1, product="AMZ-US", amount=499))
    finish(campaign)
    assert campaign.states() == {"rejected": 1}
    assert campaign.plan(rows(1, product="AMZ-US", amount=500)).planned_again == 1
    finish(campaign)
    assert campaign.total("paid") == 500


def test_another_run_plans_failed_rows_again_too(campaign: Campaign) -> None:
    campaign.fault("fail_order")
    campaign.plan(rows(1))
    finish(campaign)
    assert campaign.plan(rows(1, 2), run="another").planned_again == 1


def test_a_duplicate_of_a_failed_row_is_found(campaign: Campaign) -> None:
    campaign.fault("fail_order")
    campaign.plan(rows(1))
    finish(campaign)
    with pytest.raises(InvalidCampaignError, match=r"rows\[1\].recipient_key: is the same as rows\[0\]"):
        campaign.plan(rows(1, 1), run="another")


def test_rows_that_are_wrong_now_do_not_block_a_frozen_plan(
    campaign: Campaign, caplog: pytest.LogCaptureFixture
) -> None:
    campaign.fault("drop_after", count=100)
    campaign.fault("drop_before", count=1000, method="GET", path="/order")
    campaign.plan(rows(1, 2))
    campaign.pay()
    campaign.engine.faults.clear()
    changed = [row(1, amount=-1), row(2), row(3, email_address="nobody"), row(4)]
    with pytest.raises(InvalidCampaignError):
        campaign.plan(changed, run="another")
    report = campaign.plan(changed)
    assert (report.already_open, report.left_out, report.wrong, report.to_pay) == (1, 1, 2, 2)
    assert "rows that are wrong are left out: rows[0]: face_value" in caplog.text
    assert "nobody" not in caplog.text
    finish(campaign)
    assert campaign.states() == {"paid": 2}


def test_errors_show_neither_a_header_nor_a_product_that_may_be_data(campaign: Campaign) -> None:
    headless = {"customer-1": "customer-2", "10": "10", "ada@example.com": "grace@example.com"}
    with pytest.raises(InvalidCampaignError, match=r"has no use for the field\(s\) \*\*\*, \*\*\*, \*\*\*;"):
        campaign.plan([headless])
    with pytest.raises(InvalidCampaignError, match=r"there is no product \*\*\* in"):
        campaign.plan([row(1, product="ada@example.com")])


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_row_over_the_limit_for_one_is_rejected(campaign: Campaign) -> None:
    limits = Limits(per_recipient=Decimal(50))
    text = rejection(campaign, [row(1, amount=50), row(2, amount=51)], limits=limits)
    assert text.startswith("rows[1].face_value: is 51, more than the 50 allowed for one.")
    assert campaign.plan([row(1, amount=50)], limits=limits).planned == 1


def test_a_total_over_the_limit_is_rejected(campaign: Campaign) -> None:
    text = rejection(campaign, rows(1, 2, 3), limits=Limits(total=Decimal("29.99")))
    assert text.startswith("max_total: 30.00 are to be paid, more than the 29.99 allowed.")
    assert campaign.plan(rows(1, 2, 3), limits=Limits(total=Decimal(30))).planned == 3


def test_too_many_recipients_are_rejected(campaign: Campaign) -> None:
    text = rejection(campaign, rows(1, 2, 3), limits=Limits(recipients=2))
    assert text.startswith("max_recipients: 3 are to be paid, more than the 2 allowed.")
    assert campaign.plan(rows(1, 2, 3), limits=Limits(recipients=3)).planned == 3


def test_limits_of_zero_are_limits(campaign: Campaign) -> None:
    assert "max_total" in rejection(campaign, rows(1), limits=Limits(total=Decimal(0)))
    assert "max_recipients" in rejection(campaign, rows(1), limits=Limits(recipients=0))
    assert "allowed for one" in rejection(campaign, rows(1), limits=Limits(per_recipient=Decimal(0)))


def test_limits_count_what_the_run_is_going_to_pay_and_nothing_else(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2))
    report = campaign.plan(rows(3), run="another", limits=Limits(total=Decimal(10), recipients=1))
    assert (report.planned, report.to_pay, len(report.batches)) == (1, 1, 1)
    assert "max_recipients: 2" in rejection(campaign, rows(1, 2), limits=Limits(recipients=1))


def test_limits_count_batches_that_another_run_began_to_send_and_left(campaign: Campaign) -> None:
    campaign.fault("drop_before", count=100)
    campaign.plan(rows(1, 2))
    campaign.pay()
    campaign.engine.faults.clear()
    limits = Limits(recipients=2)
    assert campaign.plan(rows(3), run="another", limits=limits).to_pay == 1, "the other run still has its batch"
    campaign.clock.advance(seconds=LEASE.total_seconds() + 1)
    with pytest.raises(InvalidCampaignError, match="max_recipients: 3"):
        campaign.plan(rows(4), run="a third", limits=limits)


# -- what one order may hold ------------------------------------------------------------------------------------------


def test_an_order_holds_one_country_or_one_template(campaign: Campaign) -> None:
    # Products of one country share an order. Runa does not show a template's country.
    campaign.plan(
        [
            row(1, product="AMZ-US"),
            row(2),
            row(3, product="SHOE-US"),
            row(4, products={"type": "MULTIPLE", "values": ["AMZ-US", "SHOE-US"]}),
            row(5, template_id=EUR_TEMPLATE),
        ]
    )
    assert sizes(campaign) == [1, 1, 3]


def test_products_of_two_countries_with_one_currency_are_two_orders(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_runa.sandbox import catalogue

    monkeypatch.setitem(catalogue.PRODUCTS["SHOE-US"], "countries_redeemable_in", ["CA"])
    campaign.plan([row(1, product="AMZ-US"), row(2, product="SHOE-US"), row(3, product="CAFE-US")])
    assert sizes(campaign) == [1, 2]


@pytest.mark.parametrize(
    ("product", "text"),
    [
        ("NOPE-US", "rows[0].products: there is no product NOPE-US in Runa's catalogue."),
        ("PAUSED-US", "rows[0].products: PAUSED-US cannot be ordered now (TEMPORARILY_DISABLED)."),
        ("MART-DE", "rows[0].products: MART-DE is in EUR, not in USD."),
    ],
)
def test_a_product_that_cannot_be_ordered_is_rejected(campaign: Campaign, product: str, text: str) -> None:
    assert rejection(campaign, [row(1, product=product)]).startswith(text)
    multiple = {"type": "MULTIPLE", "values": ["AMZ-US", product]}
    assert rejection(campaign, [row(1, products=multiple)]).startswith(text)


def test_a_product_is_fetched_once(campaign: Campaign) -> None:
    campaign.plan(rows(*range(300), product="AMZ-US"))
    assert campaign.engine.requests["GET /product/{id}"] == 1


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_amounts_are_exact(campaign: Campaign) -> None:
    amounts = ["1.10", "1.20", "1.30", "456.78"]
    report = campaign.plan([row(n, amount=amount, product="AMZ-US") for n, amount in enumerate(amounts)])
    assert report.total == Decimal("460.38")
    assert [found["amount"] for found in campaign.ledger.rows()] == [Decimal(amount) for amount in amounts]
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    assert sorted(str(item.face_value) for item in campaign.ledger.order(batch).items) == sorted(amounts)


def test_an_order_is_the_same_bytes_every_time(campaign: Campaign) -> None:
    given = [
        row(1, amount=10, product="AMZ-US"),
        row(2, amount="10.50", product="AMZ-US"),
        row(3, amount=1.1, product="AMZ-US", recipient_reference="r-3"),
        row(4, amount=Decimal("7.00"), product="AMZ-US", email_address="Ada.ÄÖ@example.com"),
        row(5, products={"type": "MULTIPLE", "values": ["SHOE-US", "AMZ-US"]}),
        row(6, distribution_method={"type": "PAYOUT_LINK"}, email_address=None, product="AMZ-US"),
    ]
    sent = plan_bytes(sorted(given, key=lambda one: campaign.ledger.digest(one["recipient_key"])))
    campaign.plan(given)
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    assert campaign.ledger.order(batch).body() == campaign.ledger.order(batch).body() == sent


def plan_bytes(given: list[dict[str, Any]]) -> bytes:
    """Return the order of some rows, built without a ledger."""
    from airflow_provider_runa.api.models import NewOrder
    from airflow_provider_runa.campaign.rows import read_row

    items = [
        json.loads(read_row(one, {}).item.model_dump_json(exclude_none=True), parse_float=Decimal) for one in given
    ]
    return NewOrder.build(currency="USD", items=items, description="spring").body()


def test_duplicates_say_how_to_see_them(campaign: Campaign) -> None:
    with pytest.raises(InvalidCampaignError, match=r"rows\[1\].*to see duplicates, GROUP BY recipient_key"):
        campaign.plan(rows(1, 1))


def test_a_currency_of_none_is_one_line(campaign: Campaign) -> None:
    with pytest.raises(InvalidCampaignError, match="currency: must be three capital letters, such as USD"):
        campaign.plan(rows(1), currency=None)
