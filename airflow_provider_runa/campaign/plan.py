"""Plan a campaign: check its rows, group them into batches of one order each, and write them to the ledger.

A plan is one transaction, all or nothing: a wrong row or an exceeded limit undoes it. What is planned stays planned: a
retry sends the same orders even if the input has changed. If a run plans again, it only plans rows again that were not
paid (failed, rejected, withdrawn), with their current input. Rows that are wrong by then cause a warning, not an error:
the batches that were sent must still be settled.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from airflow_provider_runa.api.errors import InvalidOrderError, RunaNotFoundError, redact
from airflow_provider_runa.api.models import MAX_ITEMS, MultipleProduct, NewOrderItem, Product, SingleProduct
from airflow_provider_runa.api.products import order_blockers
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.errors import InvalidCampaignError
from airflow_provider_runa.campaign.ledger import Ledger, count_and_sum
from airflow_provider_runa.campaign.planning import Known, Planning, StagedRow
from airflow_provider_runa.campaign.rows import Defaults, read_defaults, read_row
from airflow_provider_runa.campaign.tables import BatchState, RowState

log = logging.getLogger(__name__)

#: Number of rows that are read and staged at a time.
CHUNK = 1000

#: Number of findings that an error lists. It only counts the others.
NAMED = 5


@dataclass(frozen=True)
class Limits:
    """The limits of what a run sends. ``None`` means no limit.

    :param total: sum of the face values of all rows that the run is going to pay.
    :param per_recipient: face value of one row.
    :param recipients: number of rows that the run is going to pay.
    """

    total: Decimal | None = None
    per_recipient: Decimal | None = None
    recipients: int | None = None

    def exceeded_by(self, amounts: Mapping[Decimal, int]) -> Iterator[str]:
        """Yield a text for each limit that is exceeded.

        :param amounts: amount -> number of rows that are to be paid so much.
        """
        count, total = count_and_sum(amounts)
        if self.recipients is not None and count > self.recipients:
            yield f"max_recipients: {count} are to be paid, more than the {self.recipients} allowed"
        if self.total is not None and total > self.total:
            yield f"max_total: {total} are to be paid, more than the {self.total} allowed"
        if self.per_recipient is not None and amounts and max(amounts) > self.per_recipient:
            yield f"max_per_recipient: {max(amounts)} is planned for one, more than the {self.per_recipient} allowed"


@dataclass
class PlanReport:
    """The result of a plan, in numbers of rows.

    :param read: rows of the input.
    :param planned: recipients who were not in the ledger before.
    :param planned_again: recipients whose earlier plan paid nobody.
    :param already_paid: left out, because they are paid.
    :param other_amount: how many of those now ask for another amount or currency.
    :param already_open: left out, because an earlier plan or an earlier attempt of this run has planned them.
    :param open_elsewhere: how many of those belong to another run, which has to pay them.
    :param found: left out, because an order at Runa pays them that this ledger did not know.
    :param mismatched: left out, because their order does not show their payout as planned.
    :param left_out: left out, because this run's plan is frozen and does not contain them.
    :param wrong: left out, because they are wrong and this run's plan is frozen.
    :param to_pay: rows that this run is going to pay.
    :param total: sum of the face values of these rows.
    :param batches: the batches that this run is going to pay, and no others.
    """

    read: int = 0
    planned: int = 0
    planned_again: int = 0
    already_paid: int = 0
    other_amount: int = 0
    already_open: int = 0
    open_elsewhere: int = 0
    found: int = 0
    mismatched: int = 0
    left_out: int = 0
    wrong: int = 0
    to_pay: int = 0
    total: Decimal = Decimal(0)
    batches: list[Batch] = field(default_factory=list)

    def describe(self, currency: str) -> str:
        """Return the result for a log: what is to be paid first, then every other count that is not zero.

        :param currency: currency of the payouts.
        """
        to_pay = f"{self.to_pay} to pay, {self.total:,.2f} {currency}" if self.to_pay else "nobody to pay"
        counts = {one.name: getattr(self, one.name) for one in fields(self)}
        listed = [
            f"{count} {name.replace('_', ' ')}"
            for name, count in counts.items()
            if count and name not in ("to_pay", "total", "batches")
        ]
        return f"{to_pay} (rows: {', '.join(listed)})" if listed else to_pay


def plan(
    ledger: Ledger,
    rows: Iterable[Any],
    *,
    run: str,
    currency: str,
    defaults: Mapping[str, Any],
    limits: Limits,
    product: Callable[[str], Product],
    now: datetime,
    new_recipients_on_rerun: bool = False,
    excluded: Iterable[str] = (),
) -> PlanReport:
    """Check rows and write them to the ledger, in batches of one order each.

    :param ledger: the ledger of the campaign.
    :param rows: the input; see :func:`~.rows.read_row`. It is read once, one chunk at a time.
    :param run: id of the run, the same for all its attempts.
    :param currency: currency of the balance that pays, three capital letters.
    :param defaults: values for fields that a row does not have.
    :param limits: the limits to check.
    :param product: fetches a product from Runa's catalogue; raises ``RunaNotFoundError`` if there is none.
    :param now: the current time (UTC).
    :param new_recipients_on_rerun: whether a run that has planned before, and whose orders are all final, may plan
        recipients that are new.
    :param excluded: ids of batches that the run must not pay in this attempt.
    :raises InvalidCampaignError: if a row is wrong or a limit is exceeded. Then no row is planned.
    """
    if not isinstance(currency, str) or not re.fullmatch("[A-Z]{3}", currency):
        raise InvalidCampaignError(
            "currency: must be three capital letters, such as USD. Nothing was planned, and nothing was sent."
        )
    with ledger.planning(run, now) as planning:
        planner = _Planner(
            planning=planning,
            ledger=ledger,
            currency=currency,
            defaults=read_defaults(defaults),
            limits=limits,
            catalogue=_Catalogue(product, currency),
            excluded=frozenset(excluded),
        )
        return planner.make(rows, plan_new=new_recipients_on_rerun)


def recover(ledger: Ledger, rows: Iterable[Any], *, run: str, defaults: Mapping[str, Any], now: datetime) -> PlanReport:
    """Take rows into the ledger that orders at Runa pay, and plan nothing: to rebuild a ledger that was lost.

    :param ledger: the ledger of the campaign, brought up to date by :func:`~.catch_up.catch_up`.
    :param rows: the rows that may have been paid.
    :param run: id of the run.
    :param defaults: values for fields that a row does not have.
    :param now: the current time (UTC).
    :raises InvalidCampaignError: if a row is wrong. Then no row is taken in.
    """
    with ledger.planning(run, now) as planning:
        planner = _Planner(
            planning=planning,
            ledger=ledger,
            currency="",
            defaults=read_defaults(defaults),
            limits=Limits(),
            catalogue=None,
            excluded=frozenset(),
        )
        return planner.recover(rows)


def choose_planned(
    ledger: Ledger, *, currency: str, limits: Limits, excluded: Iterable[str] = ()
) -> tuple[list[Batch], dict[Decimal, int]]:
    """Return all open batches of a campaign, by any run, if they have the currency and keep to the limits.

    :param ledger: the ledger of the campaign.
    :param currency: currency of the balance that pays.
    :param limits: the limits to check.
    :param excluded: ids of batches that must not be paid in this attempt.
    :returns: the batches, and the amounts of their rows.
    :raises InvalidCampaignError: if an open batch has another currency or a limit is exceeded.
    """
    batches = ledger.batches(BatchState.OPEN)
    if other := sorted({batch.currency for batch in batches} - {currency}):
        raise InvalidCampaignError(
            f"currency: is {currency}, but what is planned is in {', '.join(other)}. Nothing was sent"
        )
    left = frozenset(excluded)
    batches = [batch for batch in batches if batch.id not in left]
    amounts = ledger.amounts(batches)
    for finding in limits.exceeded_by(amounts):
        raise InvalidCampaignError(f"{finding}. Nothing was sent")
    return batches, amounts


@dataclass(kw_only=True)
class _Planner:
    """Makes one plan. Parameters that are not listed here are those of :func:`plan`.

    :param planning: the transaction of the plan.
    :param catalogue: the products that the rows name; ``None``: they are not looked up.
    :param report: the result so far.
    :param findings: what is wrong with rows; the first :data:`NAMED` findings.
    :param found: number of all findings.
    :param duplicates: whether recipient keys are repeated.
    """

    planning: Planning
    ledger: Ledger
    currency: str
    defaults: Defaults
    limits: Limits
    catalogue: _Catalogue | None
    excluded: frozenset[str]
    report: PlanReport = field(default_factory=PlanReport)
    findings: list[str] = field(default_factory=list)
    found: int = 0
    duplicates: bool = False

    def make(self, rows: Iterable[Any], *, plan_new: bool) -> PlanReport:
        frozen = self._stage(rows, plan_new=plan_new)
        if frozen and self.found:
            log.warning("This run's plan is frozen, so rows that are wrong are left out: %s.", self._listed_findings())
            self.report.wrong, self.found = self.found, 0
            self.findings.clear()
        if self.found:
            self._reject()
        self.planning.take_in_found()
        self.report.planned, self.report.planned_again = self.planning.write(
            currency=self.currency, most=MAX_ITEMS, new=not frozen
        )
        self.report.batches = [one for one in self.planning.payable(self.currency) if one.id not in self.excluded]
        amounts = self.planning.amounts(self.report.batches)
        self.report.to_pay, self.report.total = count_and_sum(amounts)
        for finding in self.limits.exceeded_by(amounts):
            self._find(finding)
        if self.found:
            self._reject()
        return self.report

    def recover(self, rows: Iterable[Any]) -> PlanReport:
        self._stage(rows, plan_new=False)
        if self.found:
            self._reject()
        self.planning.take_in_found()
        return self.report

    def _stage(self, rows: Iterable[Any], *, plan_new: bool) -> bool:
        """Stage all rows and look them up; return whether the plan is frozen."""
        for chunk in _chunks(enumerate(rows)):
            self.planning.stage([staged for index, row in chunk if (staged := self._read(index, row)) is not None])
        frozen = self.planning.begin(plan_new=plan_new)
        dropped, named = self.planning.drop_duplicates(NAMED)
        for index, first in named:
            self._find(f"rows[{index}].recipient_key: is the same as rows[{first}], and can be paid once only")
        self.found += dropped - len(named)
        self.duplicates = dropped > 0
        self._count(self.planning.known(self.currency), frozen=frozen)
        return frozen

    def _read(self, index: int, row: Any) -> StagedRow | None:
        """Return a row of the input, checked; ``None`` if it is wrong."""
        self.report.read += 1
        try:
            payout = read_row(row, self.defaults)
        except InvalidOrderError as error:
            self._find(f"rows[{index}]: {error}")
            return None
        limit = self.limits.per_recipient
        if limit is not None and payout.item.face_value > limit:
            self._find(f"rows[{index}].face_value: is {payout.item.face_value}, more than the {limit} allowed for one")
            return None
        try:
            group = self.catalogue.group(payout.item) if self.catalogue else ""
        except InvalidOrderError as error:
            self._find(f"rows[{index}].{error}")
            return None
        return StagedRow(
            number=index,
            digest=self.ledger.digest(payout.recipient_key),
            recipient_key=payout.recipient_key,
            amount=payout.item.face_value,
            group_name=group,
            item=json.dumps(payout.item.model_dump(mode="json", exclude_none=True)),
        )

    def _count(self, known: Known, *, frozen: bool) -> None:
        report, rows = self.report, known.rows
        report.already_paid, report.other_amount = rows.get(RowState.PAID, 0), known.other_amount
        report.mismatched = rows.get(RowState.MISMATCH, 0)
        report.already_open = rows.get(RowState.PLANNED, 0) + rows.get(RowState.SENT, 0)
        report.open_elsewhere = known.open_elsewhere
        report.found = known.found
        if frozen:
            report.left_out = known.new - known.found

    def _reject(self) -> None:
        raise InvalidCampaignError(f"{self._listed_findings()}. Nothing was planned, and nothing was sent.")

    def _listed_findings(self) -> str:
        more = f"; and {self.found - len(self.findings)} more" if self.found > len(self.findings) else ""
        # Without ORDER BY, a row has another number each time.
        how = "; to see duplicates, GROUP BY recipient_key HAVING COUNT(*) > 1" if self.duplicates else ""
        return f"{'; '.join(self.findings)}{more}{how}"

    def _find(self, finding: str) -> None:
        self.found += 1
        if len(self.findings) < NAMED:
            self.findings.append(finding)


class _Catalogue:
    """Groups payouts that may share an order: all products of an order have one country and one currency."""

    def __init__(self, product: Callable[[str], Product], currency: str) -> None:
        self._fetch = product
        self._currency = currency
        self._products: dict[str, Product] = {}
        self._groups: dict[str, str] = {}
        self._offered: set[tuple[str, Decimal]] = set()

    def group(self, item: NewOrderItem) -> str:
        """Return the name of the group that a payout belongs to.

        :raises InvalidOrderError: if its product cannot be ordered, or not with its face value.
        """
        if isinstance(item.products, SingleProduct):
            self._check_face_value(item.products.value, item.face_value)
            return self._groups[item.products.value]
        if isinstance(item.products, MultipleProduct):
            return ",".join(sorted({self._of(code) for code in item.products.values}))
        return f"template {item.products.template_id}"  # Runa does not show its country

    def _check_face_value(self, code: str, face_value: Decimal) -> None:
        if (code, face_value) in self._offered:
            return
        self._of(code)
        if found := order_blockers(self._products[code], face_values=[face_value]):
            raise InvalidOrderError(f"face_value: {'; '.join(found)}")
        self._offered.add((code, face_value))

    def _of(self, code: str) -> str:
        if code not in self._groups:
            try:
                product = self._fetch(code)
            except RunaNotFoundError:
                raise InvalidOrderError(f"products: there is no product {redact(code)} in Runa's catalogue") from None
            if found := order_blockers(product, currency=self._currency):
                raise InvalidOrderError(f"products: {'; '.join(found)}")
            self._products[code] = product
            self._groups[code] = f"{product.currency} {','.join(sorted(product.countries_redeemable_in))}"
        return self._groups[code]


def _chunks(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield chunk
