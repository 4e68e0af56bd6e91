"""read_statuses: its results and its number of requests, over sockets and against accounts from Hypothesis."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_runa.api.client import PAGE_SIZE
from airflow_provider_runa.api.errors import (
    RunaConnectionError,
    RunaError,
    RunaNotFoundError,
    RunaServerError,
    UnreadableOrdersError,
)
from airflow_provider_runa.api.models import Order
from airflow_provider_runa.api.statuses import ORDERS_PER_PAGE, read_statuses
from airflow_provider_runa.operators._placement_ports import BlockingOrderClient
from airflow_provider_runa.placement.ports import run_blocking
from tests.support.orders import PROCESSING, client_of, place_many, reads, start_patient_sandbox
from tests.support.sandbox import RunningSandbox

COUNT = 1_000


@pytest.fixture(scope="module")
def crowd() -> Iterator[tuple[RunningSandbox, list[str]]]:
    """A sandbox with 1,000 orders that are PROCESSING, and their ids."""
    with start_patient_sandbox() as runa:
        yield runa, place_many(runa, COUNT)


def read(runa: RunningSandbox, ids: list[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Return the statuses and the requests."""

    async def ask() -> dict[str, str]:
        async with client_of(runa) as client:
            return await read_statuses(client, ids)

    before = reads(runa)
    statuses = asyncio.run(ask())
    return statuses, {kind: count - before[kind] for kind, count in reads(runa).items()}


# -- over sockets ------------------------------------------------------------------------------------------------------


def test_a_thousand_orders_are_two_pages(crowd: tuple[RunningSandbox, list[str]]) -> None:
    runa, ids = crowd
    assert read(runa, ids) == (dict.fromkeys(ids, "PROCESSING"), {"pages": 2, "orders": 0})


def test_a_few_orders_are_fetched_by_their_id(crowd: tuple[RunningSandbox, list[str]]) -> None:
    runa, ids = crowd
    few = ids[: ORDERS_PER_PAGE - 1]
    assert read(runa, few) == (dict.fromkeys(few, "PROCESSING"), {"pages": 0, "orders": len(few)})


def test_the_list_is_left_once_every_order_was_seen(crowd: tuple[RunningSandbox, list[str]]) -> None:
    runa, ids = crowd
    assert read(runa, ids[-50:])[1] == {"pages": 1, "orders": 0}


def test_old_orders_are_fetched_by_their_id(crowd: tuple[RunningSandbox, list[str]]) -> None:
    """Ten orders are worth one page, and the oldest are not on it."""
    runa, ids = crowd
    oldest = ids[:10]
    assert read(runa, oldest) == (dict.fromkeys(oldest, "PROCESSING"), {"pages": 1, "orders": 10})


def test_an_unknown_order_hides_no_other(crowd: tuple[RunningSandbox, list[str]]) -> None:
    runa, ids = crowd
    with pytest.raises(UnreadableOrdersError) as caught:
        read(runa, ["O-NONE", *ids, "O-NOT"])
    assert caught.value.statuses == dict.fromkeys(ids, "PROCESSING")
    assert set(caught.value.errors) == {"O-NONE", "O-NOT"}
    assert all(isinstance(error, RunaNotFoundError) for error in caught.value.errors.values())
    assert "404 not_found" in str(caught.value)
    assert str(caught.value).endswith("; and 1 more")


def test_a_worker_reads_a_campaign_without_an_event_loop(
    crowd: tuple[RunningSandbox, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_runa.hooks.runa import RunaHook

    runa, ids = crowd
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", runa.connection)
    hook = RunaHook()
    assert run_blocking(read_statuses(BlockingOrderClient(hook.get_conn()), ids[-300:])) == dict.fromkeys(
        ids[-300:], "PROCESSING"
    )
    hook.close()


def test_final_orders_are_read_from_the_list_too() -> None:
    with start_patient_sandbox() as runa:
        runa.faults({"kind": "fail_order", "count": 3})
        ids = place_many(runa, 20)
        runa.advance(PROCESSING)
        statuses, asked = read(runa, ids)
    assert sorted(statuses.values()) == ["COMPLETED"] * 17 + ["FAILED"] * 3
    assert asked == {"pages": 1, "orders": 0}


# -- made up -----------------------------------------------------------------------------------------------------------


class Account:
    """An account that counts requests.

    :param listed: ids in the order of the list.
    :param hidden: ids that the list does not show.
    :param page: rows of a page.
    :param broken: id, or ``"list"``, -> error.
    """

    def __init__(
        self,
        listed: list[str],
        hidden: list[str] | None = None,
        *,
        page: int = PAGE_SIZE,
        broken: dict[str, RunaError] | None = None,
    ) -> None:
        self.listed, self.hidden, self.page, self.broken = listed, hidden or [], page, broken or {}
        self.requests: list[str] = []

    async def get_order(self, order_id: str) -> Order:
        self.requests.append(order_id)
        if order_id in self.broken:
            raise self.broken[order_id]
        if order_id not in self.listed and order_id not in self.hidden:
            raise RunaNotFoundError(404, "not_found")
        return Order(id=order_id, status="COMPLETED")

    async def list_orders(self) -> AsyncGenerator[Order, None]:
        for begin in range(0, len(self.listed) + self.page, self.page):
            self.requests.append("list")
            if "list" in self.broken:
                raise self.broken["list"]
            for order_id in self.listed[begin : begin + self.page]:
                yield Order(id=order_id, status="COMPLETED")


def names(count: int, kind: str = "O") -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


def ask(account: Account, ids: list[str]) -> Any:
    try:
        return run_blocking(read_statuses(account, ids))
    except UnreadableOrdersError as error:
        return error


@given(data=st.data(), size=st.integers(0, 3_000), hidden=st.integers(0, 50))
def test_every_order_is_read_and_the_list_never_costs_much(data: st.DataObject, size: int, hidden: int) -> None:
    account = Account(names(size), names(hidden, "H"))
    known = account.listed + account.hidden
    begin = data.draw(st.integers(0, len(known)))
    wanted = known[begin : begin + data.draw(st.integers(0, 1_500))]
    assert ask(account, wanted) == dict.fromkeys(wanted, "COMPLETED")
    # The last page of a list is an empty one.
    assert len(account.requests) <= len(wanted) + len(wanted) // ORDERS_PER_PAGE + 1
    if wanted and begin + len(wanted) <= min(size, PAGE_SIZE) and len(wanted) >= ORDERS_PER_PAGE:
        assert account.requests == ["list"]


def test_an_order_is_read_once_however_often_it_is_named() -> None:
    account = Account(["O-1"])
    assert ask(account, ["O-1", "O-1"]) == {"O-1": "COMPLETED"}
    assert account.requests == ["O-1"]
    assert ask(account, []) == {}


def test_a_broken_list_is_done_without() -> None:
    account = Account(names(20), broken={"list": RunaConnectionError("the answer has an unexpected form")})
    assert ask(account, names(20)) == dict.fromkeys(names(20), "COMPLETED")


def test_an_order_that_cannot_be_read_hides_no_other() -> None:
    account = Account(names(5), broken={"O-2": RunaServerError(500)})
    error = pickle.loads(pickle.dumps(ask(account, names(5))))
    assert str(error) == "O-2: 500"
    assert error.statuses == dict.fromkeys(set(names(5)) - {"O-2"}, "COMPLETED")


def test_unknown_orders_hide_no_other_however_many_they_are() -> None:
    account = Account(["O-1"])
    error = ask(account, ["O-1", *names(5, "X")])
    assert error.statuses == {"O-1": "COMPLETED"}
    assert set(account.requests) == {"O-1", *names(5, "X")}


def test_it_stops_when_runa_does_not_answer() -> None:
    """One failure may be the order's, two in a row are Runa's: the rest is not asked for, and not lost either."""
    down: Any = dict.fromkeys(["list", *names(1_000)], RunaConnectionError("no usable answer"))
    account = Account(names(1_000), broken=down)
    error = ask(account, names(1_000))
    assert set(error.errors) == set(names(1_000))
    assert len(account.requests) == 2


def test_a_list_that_breaks_off_keeps_what_it_has_shown() -> None:
    class BreaksOff(Account):
        async def list_orders(self) -> AsyncGenerator[Order, None]:
            async for order in super().list_orders():
                if self.requests.count("list") == 2:
                    raise RunaServerError(504)
                yield order

    account = BreaksOff(names(40), page=20, broken=dict.fromkeys(names(40), RunaServerError(504)))
    error = ask(account, names(40))
    assert set(error.statuses) == set(names(20))
    assert set(error.errors) == set(names(40)) - set(names(20))
