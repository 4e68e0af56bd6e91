"""Plan a campaign: check its rows, group them into batches of one order each, and write them to the ledger.

A plan is one transaction, all or nothing: a wrong row or an exceeded limit undoes it. What is planned stays planned: a
retry sends the same orders even if the input has changed. If a run plans again, it only plans failed and rejected rows
again, with their current input. Rows that are wrong by then cause a warning, not an error: the batches that were sent
must still be settled.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from airflow_provider_runa.api.errors import InvalidOrderError, RunaNotFoundError, redact
from airflow_provider_runa.api.models import MAX_ITEMS, MultipleProduct, NewOrderItem, Product, SingleProduct
from airflow_provider_runa.api.products import order_blockers
from airflow_provider_runa.campaign.errors import InvalidCampaignError
from airflow_provider_runa.campaign.ledger import BatchState, Known, Ledger, Planning, RowState, count_and_sum
from airflow_provider_runa.campaign.rows import Payout, read_row

log = logging.getLogger(__name__)

#: Number of rows that are read and looked up in the ledger at a time.
CHUNK = 1000

#: Number of findings that an error lists. It only counts the others.
NAMED = 5


@dataclass(frozen=True)
class Limits:
    """The limits of a plan. ``None`` means no limit.

    :param total: sum of all face values that are still to be paid, including earlier plans of the campaign.
    :param per_recipient: face value of one row.
    :param recipients: number of rows that are still to be paid, including earlier plans of the campaign.
    """

    total: Decimal | None = None
    per_recipient: Decimal | None = None
    recipients: int | None = None

    def exceeded_by(self, count: int, total: Decimal) -> Iterator[str]:
        """Yield a text for each limit that is exceeded.

        :param count: number of rows that are still to be paid.
        :param total: sum of their face values.
        """
        if self.recipients is not None and count > self.recipients:
            yield f"max_recipients: {count} are to be paid, more than the {self.recipients} allowed"
        if self.total is not None and total > self.total:
            yield f"max_total: {total} are to be paid, more than the {self.total} allowed"


@dataclass
class PlanReport:
    """The result of a plan, in numbers of rows.

    :param read: rows of the input.
    :param planned: recipients who were not in the ledger before.
    :param planned_again: recipients whose earlier order failed or was rejected.
    :param already_paid: left out, because they are paid.
    :param already_open: left out, because an earlier plan or an earlier attempt of this run has planned them.
    :param left_out: left out, because this run's plan is frozen and does not contain them.
    :param wrong: left out, because they are wrong and this run's plan is frozen.
    :param to_pay: rows of all plans that are still to be paid.
    :param total: sum of the face values of these rows.
    """

    read: int = 0
    planned: int = 0
    planned_again: int = 0
    already_paid: int = 0
    already_open: int = 0
    left_out: int = 0
    wrong: int = 0
    to_pay: int = 0
    total: Decimal = Decimal(0)

    def __str__(self) -> str:
        words = {one.name.replace("_", " "): getattr(self, one.name) for one in fields(self)}
        return ", ".join(f"{name} {value}" for name, value in words.items())


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
    :raises InvalidCampaignError: if a row is wrong or a limit is exceeded. Then no row is planned.
    """
    if not re.fullmatch("[A-Z]{3}", currency):
        raise InvalidCampaignError(
            "currency: must be three capital letters. Nothing was planned, and nothing was sent."
        )
    with ledger.planning(run, now) as planning:
        planner = _Planner(
            planning=planning,
            campaign=ledger.campaign,
            currency=currency,
            defaults=defaults,
            limits=limits,
            catalogue=_Catalogue(product, currency),
        )
        return planner.make(rows)


def check_planned(ledger: Ledger, *, currency: str, limits: Limits) -> None:
    """Check the currency and the limits of everything that is planned, by any run.

    :param ledger: the ledger of the campaign.
    :param currency: currency of the balance that pays.
    :param limits: the limits to check.
    :raises InvalidCampaignError: if an open batch has another currency or a limit is exceeded.
    """
    for finding in _reasons_not_to_pay(ledger, currency, limits):
        raise InvalidCampaignError(f"{finding}. Nothing was sent")


def _reasons_not_to_pay(ledger: Ledger, currency: str, limits: Limits) -> Iterator[str]:
    if other := sorted({batch.currency for batch in ledger.batches(BatchState.OPEN)} - {currency}):
        yield f"currency: is {currency}, but what is planned is in {', '.join(other)}"
    amounts = ledger.open_amounts(currency)
    yield from limits.exceeded_by(*count_and_sum(amounts))
    limit = limits.per_recipient
    if limit is not None and amounts and max(amounts) > limit:
        yield f"max_per_recipient: {max(amounts)} is planned for one, more than the {limit} allowed"


@dataclass(kw_only=True)
class _Planner:
    """Makes one plan. Parameters that are not listed here are those of :func:`plan`.

    :param planning: the transaction of the plan.
    :param campaign: name of the campaign.
    :param catalogue: the products that the rows name.
    :param report: the result so far.
    :param findings: what is wrong with rows; the first :data:`NAMED` findings.
    :param found: number of all findings.
    :param groups: group of rows that may share an order -> recipient key -> the row, and what the ledger knows of the
        key. A full group is written to the ledger as a batch.
    :param waiting: recipient key -> index of its row, for planned rows that :meth:`Planning.known` has not shown yet.
    :param written: recipient keys that were written to the ledger since it was last read.
    """

    planning: Planning
    campaign: str
    currency: str
    defaults: Mapping[str, Any]
    limits: Limits
    catalogue: _Catalogue
    report: PlanReport = field(default_factory=PlanReport)
    findings: list[str] = field(default_factory=list)
    found: int = 0
    groups: dict[str, dict[str, tuple[Payout, Known | None]]] = field(default_factory=lambda: defaultdict(dict))
    waiting: dict[str, int] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def make(self, rows: Iterable[Any]) -> PlanReport:
        for chunk in _chunks(enumerate(rows)):
            self._read_chunk(chunk)
        for group in self.groups.values():
            self._write(group)
        if self.planning.frozen and self.found:
            log.warning("This run's plan is frozen, so rows that are wrong are left out: %s.", self._listed_findings())
            self.report.wrong, self.found = self.found, 0
            self.findings.clear()
        self.report.to_pay, self.report.total = self.planning.open_totals(self.currency)
        for finding in self.limits.exceeded_by(self.report.to_pay, self.report.total):
            self._find(finding)
        if self.found:
            raise InvalidCampaignError(f"{self._listed_findings()}. Nothing was planned, and nothing was sent.")
        return self.report

    def _read_chunk(self, chunk: list[tuple[int, Any]]) -> None:
        payouts: dict[int, Payout] = {}
        for index, row in chunk:
            self.report.read += 1
            try:
                payouts[index] = read_row(row, self.defaults)
            except InvalidOrderError as error:
                self._find(f"rows[{index}]: {error}")
        known = self.planning.known({payout.recipient_key for payout in payouts.values()})
        for index, payout in payouts.items():
            self._sort(index, payout, known.get(payout.recipient_key))
        for key in self.written:
            del self.waiting[key]  # from the next chunk on, the ledger shows them
        self.written.clear()

    def _sort(self, index: int, payout: Payout, known: Known | None) -> None:
        key = payout.recipient_key
        if key in self.waiting or (known is not None and known.plan_id == self.planning.plan_id):
            earlier = f"as rows[{self.waiting[key]}]" if key in self.waiting else "as a row before"
            self._find(f"rows[{index}].recipient_key: is the same {earlier}, and can be paid once only")
        elif known is not None and known.state == RowState.PAID:
            self.report.already_paid += 1
        elif known is not None and known.state not in (RowState.FAILED, RowState.REJECTED):
            self.report.already_open += 1
        elif known is None and self.planning.frozen:
            self.report.left_out += 1
        else:
            self._add(index, payout, known)

    def _add(self, index: int, payout: Payout, known: Known | None) -> None:
        limit = self.limits.per_recipient
        if limit is not None and payout.item.face_value > limit:
            self._find(f"rows[{index}].face_value: is {payout.item.face_value}, more than the {limit} allowed for one")
            return
        try:
            group = self.catalogue.group(payout.item)
        except InvalidOrderError as error:
            self._find(f"rows[{index}].{error}")
            return
        if known is None:
            self.report.planned += 1
        else:
            self.report.planned_again += 1
        self.groups[group][payout.recipient_key] = (payout, known)
        self.waiting[payout.recipient_key] = index
        if len(self.groups[group]) == MAX_ITEMS:
            self._write(self.groups.pop(group))

    def _write(self, group: Mapping[str, tuple[Payout, Known | None]]) -> None:
        known = {key: known for key, (_, known) in group.items() if known is not None}
        payouts = [payout for payout, _ in group.values()]
        self.planning.add(payouts, known, currency=self.currency, description=self.campaign)
        self.written.extend(group)

    def _listed_findings(self) -> str:
        more = f"; and {self.found - NAMED} more" if self.found > NAMED else ""
        return f"{'; '.join(self.findings)}{more}"

    def _find(self, finding: str) -> None:
        self.found += 1
        if len(self.findings) < NAMED:
            self.findings.append(finding)


class _Catalogue:
    """Groups payouts that may share an order: all products of an order have one country and one currency."""

    def __init__(self, product: Callable[[str], Product], currency: str) -> None:
        self._product = product
        self._currency = currency
        self._groups: dict[str, str] = {}

    def group(self, item: NewOrderItem) -> str:
        """Return the name of the group that a payout belongs to.

        :raises InvalidOrderError: if its product cannot be ordered.
        """
        if isinstance(item.products, SingleProduct):
            return self._of(item.products.value)
        if isinstance(item.products, MultipleProduct):
            return ",".join(sorted({self._of(code) for code in item.products.values}))
        return f"template {item.products.template_id}"  # Runa does not show its country

    def _of(self, code: str) -> str:
        if code not in self._groups:
            try:
                product = self._product(code)
            except RunaNotFoundError:
                raise InvalidOrderError(f"products: there is no product {redact(code)} in Runa's catalogue") from None
            if found := order_blockers(product, currency=self._currency):
                raise InvalidOrderError(f"products: {'; '.join(found)}")
            self._groups[code] = f"{product.currency} {','.join(sorted(product.countries_redeemable_in))}"
        return self._groups[code]


def _chunks(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield chunk
