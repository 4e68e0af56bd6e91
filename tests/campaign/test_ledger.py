"""The ledger's promises, on SQLite and on PostgreSQL: one row for a recipient, fenced batches, all or nothing."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine as Database

from airflow_provider_runa.campaign import tables as tables_module
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.errors import InvalidCampaignError, LedgerVersionError
from airflow_provider_runa.campaign.ledger import LEASE, FencedError, Ledger, SettledItem
from airflow_provider_runa.campaign.rows import MAX_RECIPIENT_KEY
from airflow_provider_runa.campaign.tables import BatchState, check, create, open_engine
from airflow_provider_runa.placement.record import Record
from tests.campaign.world import Campaign, row
from tests.placement.judge import BASE_URL, START

PLAYGROUND, PRODUCTION = BASE_URL, "https://api.runa.io/v2"


@pytest.fixture
def campaign(database: Database) -> Campaign:
    """A campaign on a database of each kind."""
    return Campaign(database)


ALL_PAID = {place: SettledItem() for place in range(3)}


def planned(campaign: Campaign, *numbers: int) -> Batch:
    """Plan some rows into one batch."""
    campaign.plan([row(number) for number in numbers or (1, 2, 3)])
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    return batch


def taken(campaign: Campaign, batch: Batch, owner: str = "run") -> int:
    attempt = campaign.ledger.take(batch.id, owner, campaign.clock.now())
    assert attempt is not None
    return attempt


def record() -> Record:
    return Record(0, "key", "payment", "body", START)


# -- the tables -------------------------------------------------------------------------------------------------------


def test_creating_it_again_changes_nothing(campaign: Campaign) -> None:
    planned(campaign)
    create(campaign.database)
    assert campaign.states() == {"planned": 3}


def test_a_ledger_of_another_release_is_rejected(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "VERSION", 3)
    with pytest.raises(LedgerVersionError, match="have version 2, and this release needs version 3"):
        create(campaign.database)


def test_a_commit_in_sqlite_survives_a_power_cut(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/ledger.db")
    with engine.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    engine.dispose()
    assert found == ["wal", 2]  # 2: FULL, synced at each commit


def test_a_reader_needs_a_ledger_and_creates_none(database: Database) -> None:
    for _ in range(2):
        with pytest.raises(InvalidCampaignError, match="ledger: there is none in"):
            check(database)
    create(database)
    check(database)


def test_a_reader_rejects_a_ledger_of_another_release(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "VERSION", 3)
    with pytest.raises(LedgerVersionError, match="have version 2, and this release needs version 3"):
        check(campaign.database)


def test_a_reader_does_not_change_a_file(tmp_path: Path) -> None:
    path = tmp_path / "another.db"
    with closing(sqlite3.connect(path)) as another:
        another.execute("CREATE TABLE winners (name)")
    before = path.read_bytes()
    engine = open_engine(f"sqlite:///{path}", reading=True)
    with pytest.raises(InvalidCampaignError):
        check(engine)
    with pytest.raises(sa.exc.OperationalError, match="readonly"):
        create(engine)
    engine.dispose()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("uri", [True, False])
def test_a_file_is_found_by_its_uri_too(uri: bool, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    create(open_engine(f"sqlite:///{path}"))
    engine = open_engine(f"sqlite:///file:{path}?uri=true" if uri else f"sqlite:///{path}", reading=True)
    check(engine)
    engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_many_processes_can_create_it_at_once(kind: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db" if kind == "sqlite" else request.getfixturevalue("postgres")
    together = threading.Barrier(8)
    ids: list[int] = []

    def begin() -> None:
        engine = open_engine(url)
        together.wait()
        create(engine)
        ids.append(Ledger(engine, BASE_URL, "spring")._id)
        engine.dispose()

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids == [ids[0]] * 8


def test_an_error_of_the_database_does_not_show_values(campaign: Campaign) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught, campaign.database.begin() as connection:
        connection.execute(sa.text("INSERT INTO nowhere VALUES (:address)"), {"address": "ada@example.com"})
    assert "ada@example.com" not in str(caught.value).partition("[SQL")[2]  # the database's own words come before


def test_a_campaign_belongs_to_its_environment(database: Database) -> None:
    create(database)
    playground, production = Ledger(database, PLAYGROUND, "spring"), Ledger(database, PRODUCTION, "spring")
    assert playground._id != production._id
    assert Ledger(database, PLAYGROUND + "/", "spring")._id == playground._id
    assert playground.identity("b").idempotency_key(0) != production.identity("b").idempotency_key(0)


def test_the_longest_key_fits(campaign: Campaign) -> None:
    key = "ü" * MAX_RECIPIENT_KEY
    campaign.plan([row(1, recipient_key=key)])
    assert [found["recipient_key"] for found in campaign.ledger.rows()] == [key]


def test_amounts_and_moments_come_back_exact(campaign: Campaign) -> None:
    campaign.clock.advance(microseconds=123456)
    large = row(3, amount=123456789012)
    campaign.plan([row(1, amount="456.01", product="AMZ-US"), row(2, amount="1.10", product="AMZ-US"), large])
    found = list(campaign.ledger.rows())
    assert [one["amount"] for one in found] == [Decimal("456.01"), Decimal("1.10"), Decimal(123456789012)]
    assert {one["planned_at"] for one in found} == {campaign.clock.now()}
    assert campaign.total("planned") == Decimal("123456789469.11")


def test_rows_are_read_without_items_and_without_links(campaign: Campaign) -> None:
    planned(campaign)
    (found, *_) = campaign.ledger.rows("planned")
    assert not {"item", "payout_link"} & set(found)
    assert "example.com" not in str(found)
    assert list(campaign.ledger.rows("paid")) == []


def test_totals_can_be_limited_to_one_currency(campaign: Campaign) -> None:
    campaign.plan([row(1)])
    campaign.plan(
        [row(2, amount=7)], run="euro", currency="EUR", defaults={"template_id": "PT-01HQ130AHCKRRB45Z5XV2Y8W9K"}
    )
    assert campaign.ledger.totals("EUR") == {"planned": (1, Decimal(7))}
    assert campaign.ledger.totals() == {"planned": (2, Decimal(17))}


# -- taking -----------------------------------------------------------------------------------------------------------


def test_another_run_takes_a_batch_only_after_its_lease(campaign: Campaign) -> None:
    batch = planned(campaign)
    assert taken(campaign, batch, "one") == 1
    campaign.clock.advance(seconds=LEASE.total_seconds())
    assert campaign.ledger.take(batch.id, "two", campaign.clock.now()) is None
    campaign.clock.advance(seconds=1)
    assert taken(campaign, batch, "two") == 2
    assert campaign.ledger.take(batch.id, "one", campaign.clock.now()) is None


def test_the_same_run_takes_its_batch_again_at_once(campaign: Campaign) -> None:
    batch = planned(campaign)
    assert [taken(campaign, batch), taken(campaign, batch)] == [1, 2]


def test_saving_the_record_renews_the_lease(campaign: Campaign) -> None:
    batch = planned(campaign)
    attempt = taken(campaign, batch, "one")
    campaign.clock.advance(seconds=LEASE.total_seconds() - 1)
    campaign.ledger.save_record(batch.id, attempt, record(), campaign.clock.now())
    campaign.clock.advance(seconds=LEASE.total_seconds() - 1)
    assert campaign.ledger.take(batch.id, "two", campaign.clock.now()) is None


def test_a_placed_or_closed_batch_cannot_be_taken(campaign: Campaign) -> None:
    batch = planned(campaign)
    attempt = taken(campaign, batch)
    campaign.ledger.mark_placed(batch.id, attempt, order_id="O-1", reference="af-x.0")
    assert campaign.ledger.take(batch.id, "run", campaign.clock.now()) is None
    (placed,) = campaign.ledger.batches(BatchState.PLACED)
    assert placed.order_id == "O-1"


# -- fencing ----------------------------------------------------------------------------------------------------------


def test_a_fenced_attempt_writes_nothing(campaign: Campaign) -> None:
    ledger, now = campaign.ledger, campaign.clock.now()
    batch = planned(campaign)
    old = taken(campaign, batch)
    ledger.save_record(batch.id, old, record(), now)
    new = taken(campaign, batch)
    before = list(ledger.rows())

    with pytest.raises(FencedError):
        ledger.save_record(batch.id, old, record(), now + timedelta(days=1))
    with pytest.raises(FencedError):
        ledger.mark_placed(batch.id, old, order_id="O-1", reference="af-x.0")
    with pytest.raises(FencedError):
        ledger.reject(batch.id, old, "rejected")
    with pytest.raises(FencedError):
        ledger.replace(batch, old, "rejected", now, parts=2)
    ledger.note_error(batch.id, old, "lost")

    assert list(ledger.rows()) == before
    assert [found.id for found in ledger.batches(BatchState.OPEN)] == [batch.id]
    ledger.mark_placed(batch.id, new, order_id="O-1", reference="af-x.0")


def test_an_attempt_writes_nothing_to_a_closed_batch(campaign: Campaign) -> None:
    batch = planned(campaign)
    attempt = taken(campaign, batch)
    campaign.ledger.reject(batch.id, attempt, "rejected")
    with pytest.raises(FencedError):
        campaign.ledger.mark_placed(batch.id, attempt, order_id="O-1", reference="af-x.0")
    assert campaign.states() == {"rejected": 3}


def test_a_record_is_kept_and_its_rows_count_as_sent(campaign: Campaign) -> None:
    batch = planned(campaign)
    assert campaign.ledger.load_record(batch.id) is None
    attempt = taken(campaign, batch)
    campaign.ledger.save_record(batch.id, attempt, record(), campaign.clock.now())
    assert campaign.ledger.load_record(batch.id) == record()
    assert [(found["state"], found["sent_at"]) for found in campaign.ledger.rows()] == [("sent", START)] * 3
    campaign.clock.advance(seconds=5)
    campaign.ledger.save_record(batch.id, attempt, record(), campaign.clock.now())
    assert {found["sent_at"] for found in campaign.ledger.rows()} == {START}, "sent first"


def test_the_order_of_a_settled_or_split_batch_cannot_be_read(campaign: Campaign) -> None:
    batch = planned(campaign)
    attempt = taken(campaign, batch)
    campaign.ledger.replace(batch, attempt, "rejected", campaign.clock.now(), parts=2)
    with pytest.raises(FencedError):
        campaign.ledger.order(batch)
    half = campaign.ledger.batches(BatchState.OPEN)[0]
    campaign.ledger.mark_placed(half.id, taken(campaign, half), order_id="O-1", reference="af-x.0")
    (placed,) = campaign.ledger.batches(BatchState.PLACED)
    campaign.ledger.settle_completed(placed, ALL_PAID, campaign.clock.now())
    with pytest.raises(FencedError):
        campaign.ledger.order(placed)


def test_a_split_keeps_the_rows_and_what_they_are_paid(campaign: Campaign) -> None:
    batch = planned(campaign, 5, 4, 3, 2, 1)
    attempt = taken(campaign, batch)
    campaign.ledger.save_record(batch.id, attempt, record(), campaign.clock.now())
    halves = campaign.ledger.replace(batch, attempt, "rejected", campaign.clock.now(), parts=2)
    parts = [[row.recipient_key for row in campaign.ledger.rows_of(half)] for half in halves]
    assert [len(part) for part in parts] == [3, 2]
    assert sorted(parts[0] + parts[1]) == [f"customer-{n}" for n in range(1, 6)]
    for half, keys in zip(halves, parts, strict=True):
        addresses = [item.distribution_method.email_address for item in campaign.ledger.order(half).items]
        assert addresses == [f"{key}@example.com" for key in keys]
    assert [(found["state"], found["sent_at"]) for found in campaign.ledger.rows()] == [("planned", None)] * 5
    assert {half.id for half in halves} == {found.id for found in campaign.ledger.batches(BatchState.OPEN)}


# -- settling ---------------------------------------------------------------------------------------------------------


def placed_batch(campaign: Campaign) -> Batch:
    batch = planned(campaign)
    campaign.ledger.mark_placed(batch.id, taken(campaign, batch), order_id="O-1", reference="af-x.0")
    (placed,) = campaign.ledger.batches(BatchState.PLACED)
    return placed


def test_what_was_sent_for_paid_rows_is_erased(campaign: Campaign) -> None:
    placed = placed_batch(campaign)
    items = {0: SettledItem("E-1"), 1: SettledItem(mismatch="it is missing"), 2: SettledItem("E-3", "https://link")}
    campaign.ledger.settle_completed(placed, items, campaign.clock.now())
    with campaign.database.begin() as connection:
        query = sa.text(
            "SELECT item IS NULL, item_id, payout_link, order_id, state, error FROM runa_ledger ORDER BY position"
        )
        assert [tuple(found) for found in connection.execute(query)] == [
            (True, "E-1", None, "O-1", "paid", None),
            (False, None, None, "O-1", "mismatch", "it is missing"),
            (True, "E-3", "https://link", "O-1", "paid", None),
        ]


def test_a_batch_is_settled_only_once(campaign: Campaign) -> None:
    placed = placed_batch(campaign)
    campaign.ledger.settle_completed(placed, ALL_PAID, campaign.clock.now())
    with pytest.raises(FencedError):
        campaign.ledger.settle_failed(placed, "FAILED")
    with pytest.raises(FencedError):
        campaign.ledger.settle_completed(placed, {0: SettledItem("E-9", "https://link")}, campaign.clock.now())
    assert campaign.states() == {"paid": 3}
    assert {found["item_id"] for found in campaign.ledger.rows()} == {None}


def test_failed_rows_keep_their_items_and_the_reason(campaign: Campaign) -> None:
    placed = placed_batch(campaign)
    campaign.ledger.settle_failed(placed, "it FAILED")
    assert [(found["state"], found["error"]) for found in campaign.ledger.rows()] == [("failed", "it FAILED")] * 3
    assert len(campaign.ledger.order(placed).items) == 3
    assert campaign.ledger.reason("failed") == "it FAILED"
    assert campaign.ledger.reason("rejected") is None


# -- planning at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_runs_that_plan_at_once_plan_each_recipient_once(
    kind: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db" if kind == "sqlite" else request.getfixturevalue("postgres")
    create(open_engine(url))
    together = threading.Barrier(4)
    reports = []

    def begin(number: int) -> None:
        campaign = Campaign(open_engine(url))
        rows = [row(one) for one in range(number * 50, number * 50 + 400)]
        together.wait()
        reports.append(campaign.plan(rows, run=f"run-{number}"))
        campaign.database.dispose()

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.planned for report in reports) == 550
    assert sum(report.already_open for report in reports) == 4 * 400 - 550
    assert Campaign(open_engine(url)).states() == {"planned": 550}
