"""Payout links: checks before an order is sent, and the file that is written afterwards."""

from __future__ import annotations

import csv
import json
import os
import stat
from pathlib import Path
from typing import Any

import fsspec
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from airflow.sdk.io import attach

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.placement.errors import LinksNotWrittenError, PaymentChangedError
from airflow_provider_runa.utils.payout_links import COLUMNS, check_links_target, write_payout_links
from tests.support.frames import assert_no_secrets
from tests.support.orders import link

EMAIL = link(7) | {"distribution_method": {"type": "EMAIL", "email_address": "ada-7311@example.com"}}
WANTED = NewOrder.build(currency="USD", items=[link(10), EMAIL, link(20)])


def placed(**changes: Any) -> Order:
    """Return the answer for ``WANTED``, its items in the opposite order."""
    items = [
        item.model_dump(mode="json")
        | {
            "id": f"E-{number}",
            "currency": "USD",
            "payout": {"url": f"https://spend.example/{number}", "expiry_date": "2027-01-31T00:00:00Z"},
        }
        for number, item in enumerate(WANTED.items)
    ]
    items[1]["payout"] = None
    values = {"id": "O-1", "status": "COMPLETED", "currency": "USD", "items": items[::-1]}
    payment = {"payment_method": {"type": "ACCOUNT_BALANCE", "currency": "USD"}}
    return Order.model_validate(values | payment | changes)


# -- checks before an order is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["links.jsonl", "links.csv"])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_in_a_writable_folder_is_accepted(tmp_path: Path, name: str, prefix: str) -> None:
    check_links_target(f"{prefix}{tmp_path}/{name}", WANTED)
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_is_accepted() -> None:
    attach("memory", fs=fsspec.filesystem("memory"))
    check_links_target("memory://links/run.jsonl", WANTED)


@pytest.mark.parametrize(
    ("links_to", "message"),
    [
        (None, "must be a file whose name ends in .jsonl or .csv"),
        ("", "must be a file whose name ends in .jsonl or .csv"),
        ("/tmp/links.txt", "must be a file whose name ends in .jsonl or .csv"),
        (Path("/tmp/links.csv"), "must be a file whose name ends in .jsonl or .csv"),
        ("links.csv", "must be an absolute path in a folder that this worker can write to"),
        ("/no/such/folder/links.csv", "must be an absolute path in a folder that this worker can write to"),
        ("nosuch://bucket/links.csv", "the store cannot be used: "),
    ],
)
def test_a_file_that_cannot_be_written_is_rejected(links_to: Any, message: str) -> None:
    with pytest.raises(InvalidOrderError, match=f"^links_to: {message}"):
        check_links_target(links_to, WANTED)


def test_the_error_of_a_store_shows_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(url: str) -> Any:
        raise ConnectionError(f"no answer from {url}")

    monkeypatch.setattr("airflow_provider_runa.utils.payout_links.ObjectStoragePath", broken)
    with pytest.raises(InvalidOrderError, match=r"the store cannot be used: no answer from \*\*\*$"):
        check_links_target("s3://key:secret-7311@bucket/links.csv", WANTED)


def test_an_order_without_links_is_rejected(tmp_path: Path) -> None:
    order = NewOrder.build(currency="USD", items=[EMAIL])
    with pytest.raises(InvalidOrderError, match="no item has the distribution method PAYOUT_LINK"):
        check_links_target(str(tmp_path / "links.csv"), order)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_line_has_the_link_of_its_item(tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    assert write_payout_links(str(path), WANTED, placed()) == 2
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {
        "order_id": "O-1",
        "item": 0,
        "item_id": "E-0",
        "face_value": "10",
        "currency": "USD",
        "url": "https://spend.example/0",
        "expiry_date": "2027-01-31T00:00:00+00:00",
    }
    assert (second["item"], second["url"]) == (2, "https://spend.example/2")
    assert tuple(first) == COLUMNS


def test_csv_has_the_same_columns(tmp_path: Path) -> None:
    path = tmp_path / "with space.csv"
    write_payout_links(f"file://{tmp_path}/with%20space.csv", WANTED, placed())
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == COLUMNS
    assert (second["item"], second["url"]) == ("2", "https://spend.example/2")


def test_links_can_be_written_to_an_object_store() -> None:
    attach("memory", fs=fsspec.filesystem("memory"))
    write_payout_links("memory://links/run.jsonl", WANTED, placed())
    assert len(ObjectStoragePath("memory://links/run.jsonl").read_text().splitlines()) == 2


def test_a_file_is_replaced_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    path.write_text("old\n" * 9)
    path.chmod(0o644)
    write_payout_links(str(path), WANTED, placed())
    assert len(path.read_text().splitlines()) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_shows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "links.jsonl"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "https://spend.example/0")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(LinksNotWrittenError, match=r"\(OSError: No space left on device\)") as caught:
        write_payout_links(str(path), WANTED, placed())
    assert "https" not in str(caught.value)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


@pytest.mark.parametrize("payout", [None, {"status": "CANCELLED"}])
def test_a_missing_link_is_an_error_that_a_retry_may_fix(tmp_path: Path, payout: Any) -> None:
    items = [item.model_dump(mode="python") for item in placed().items or ()]
    items[0]["payout"] = payout
    with pytest.raises(LinksNotWrittenError, match="Runa shows no link for item 2") as caught:
        write_payout_links(str(tmp_path / "links.csv"), WANTED, placed(items=items))
    assert caught.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_links_of_another_payment_are_not_written(tmp_path: Path) -> None:
    other = NewOrder.build(currency="USD", items=[link(10), EMAIL, link(21)])
    with pytest.raises(PaymentChangedError, match="Order O-1 was placed earlier"):
        write_payout_links(str(tmp_path / "links.csv"), other, placed())
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_local_scheme_is_private_too(tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    check_links_target(f"local://{path}", WANTED)
    write_payout_links(f"local://{path}", WANTED, placed())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_stopped_write_shows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``execution_timeout`` raises an exception that is none of ``Exception``."""

    class Stopped(BaseException):
        pass

    def stop(fileno: int) -> None:
        raise Stopped

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(Stopped) as caught:
        write_payout_links(str(tmp_path / "links.csv"), WANTED, placed())
    assert_no_secrets(caught.value, ["spend.example"], attributes=False)
    assert list(tmp_path.iterdir()) == []
