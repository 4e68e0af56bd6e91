"""A campaign, its ledger and its Runa: the sandbox's engine in process, with a simulated clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy.engine import Engine as Database

from airflow_provider_runa.campaign.catch_up import catch_up
from airflow_provider_runa.campaign.found import Absorbed
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.pay import Paid, pay
from airflow_provider_runa.campaign.plan import Limits, PlanReport, plan
from airflow_provider_runa.campaign.settle import settle
from airflow_provider_runa.campaign.tables import BatchState, create, open_engine
from airflow_provider_runa.sandbox.engine import Engine, Fault
from tests.placement.judge import BASE_URL, EngineClient, SimulatedClock

DEFAULTS = {"template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"}


def row(number: int, *, amount: Any = 10, **fields: Any) -> dict[str, Any]:
    """Return a row of the input."""
    key = f"customer-{number}"
    return {"recipient_key": key, "face_value": amount, "email_address": f"{key}@example.com"} | fields


def rejected_row(number: int) -> dict[str, Any]:
    """Return a row that a plan accepts and Runa rejects: its product is no payment, which RECIPIENT is for."""
    return row(number, product="AMZ-US", recipient_reference=f"reference-{number}")


async def directly(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do what blocks on the event loop itself, so that a schedule replays and a database in memory is the same one."""
    return work(*args, **kwargs)


class Campaign:
    """A campaign that can be planned, paid and settled.

    :param database: where its ledger is; in memory if it is left out.
    """

    def __init__(self, database: Database | None = None, *, name: str = "spring", **engine: Any) -> None:
        self.clock = SimulatedClock()
        self.engine = Engine(lambda: self.clock.now().timestamp(), orders_per_minute=10**9, **engine)
        self.client = EngineClient(self.engine, self.clock)
        self.database = database or open_engine("sqlite://")
        create(self.database)
        self.ledger = Ledger(self.database, BASE_URL, name)

    def plan(self, rows: Iterable[Any], *, run: str = "run", limits: Limits = Limits(), **options: Any) -> PlanReport:  # noqa: B008
        return plan(
            self.ledger,
            rows,
            run=run,
            currency=options.pop("currency", "USD"),
            defaults=options.pop("defaults", DEFAULTS),
            limits=limits,
            product=self.client.client.get_product,
            now=self.clock.now(),
            **options,
        )

    def catch_up(self, **options: Any) -> Absorbed:
        return asyncio.run(catch_up(self.ledger, client=self.client, clock=self.clock, **options))

    def pay(self, **options: Any) -> Paid:
        """Pay all open batches."""
        return asyncio.run(self.paying(**options))

    async def paying(
        self, *, run: str = "run", isolate: bool = False, client: Any = None, clock: Any = None, **options: Any
    ) -> Paid:
        given: dict[str, Any] = {"batches": self.ledger.batches(BatchState.OPEN), "offload": directly} | options
        return await pay(
            self.ledger,
            owner=run,
            client=client or self.client,
            clock=clock or self.clock,
            isolate_rejections=isolate,
            **given,
        )

    def settle(self, **options: Any) -> list[str]:
        return asyncio.run(self.settling(**options))

    async def settling(self, *, client: Any = None, statuses: Any = None, **options: Any) -> list[str]:
        return await settle(
            self.ledger,
            client=client or self.client,
            statuses=statuses or self._statuses,
            clock=self.clock,
            **{"offload": directly} | options,
        )

    async def _statuses(self, order_ids: Sequence[str]) -> Mapping[str, str]:
        return {order_id: str((await self.client.get_order(order_id)).status) for order_id in order_ids}

    def fault(self, kind: str, **values: Any) -> None:
        self.engine.faults.append(Fault(kind, **values))

    def paid(self) -> dict[str, int]:
        """Return recipient -> number of payments, according to Runa."""
        counts: dict[str, int] = {}
        for order in self.engine.orders():
            if order.status != "FAILED":
                for item in order.body["items"]:
                    address = item["distribution_method"]["email_address"]
                    counts[address] = counts.get(address, 0) + 1
        return counts

    def states(self) -> dict[str, int]:
        """Return state -> number of rows, according to the ledger."""
        return {state: count for state, (count, _) in self.ledger.totals().items()}

    def total(self, state: str) -> Decimal:
        return self.ledger.totals()[state][1]
