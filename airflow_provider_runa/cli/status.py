"""``runa-status``: shows an order, the progress of a campaign, the campaigns of a ledger, or the balances.

It only reads, and prints neither recipients nor payout links. Recipient keys are chosen by the user and may be
addresses, so they are printed only with ``--rows``.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from airflow_provider_runa.api.errors import RunaNotFoundError, redact
from airflow_provider_runa.api.models import Order, OrderItem, OrderStatus, PlacedProducts
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.rows import read_campaign
from airflow_provider_runa.campaign.tables import BatchState, RowState, all_campaigns, campaigns
from airflow_provider_runa.cli.common import (
    FINE,
    NOT_FINE,
    NotFoundError,
    Report,
    create_parser,
    ledger_option,
    listed,
    open_client,
    open_ledger,
    output_options,
    run,
    runa_option,
    runa_settings,
    shown,
    table,
)

WATCH_SECONDS = 5.0

# Rows in these states need somebody's attention.
_WRONG = (RowState.FAILED, RowState.REJECTED, RowState.MISMATCH)


def _parser() -> argparse.ArgumentParser:
    parser = create_parser(
        "runa-status", "Show an order, the progress of a campaign, the campaigns, or the balances. Reads only."
    )
    watch = argparse.ArgumentParser(add_help=False)
    watch.add_argument("--watch", action="store_true", help="show each change until nothing can change any more")
    runa, ledger, output = runa_option(), ledger_option(), output_options()
    commands = parser.add_subparsers(dest="command", required=True, metavar="order | campaign | campaigns | balance")

    order = commands.add_parser("order", parents=[runa, output, watch], help="show an order at Runa")
    order.add_argument("order_id", metavar="ORDER_ID", help="Runa's id of the order, O-…")
    order.add_argument("--rows", action="store_true", help="list each payout with its id, instead of counts")

    parents = [ledger, output, watch]
    campaign = commands.add_parser("campaign", parents=parents, help="show the progress of a campaign, from its ledger")
    campaign.add_argument("campaign", metavar="NAME", help="name of the campaign")
    campaign.add_argument(
        "--runa", metavar="CONN_ID", help="only in the environment of this Airflow connection (default: in all)"
    )
    campaign.add_argument("--rows", action="store_true", help="list the rows with their recipient keys")
    campaign.add_argument(
        "--state",
        action="append",
        type=RowState,
        choices=list(RowState),
        metavar="STATE",
        help=f"with --rows: only rows in this state, repeatable ({', '.join(RowState)})",
    )

    commands.add_parser("campaigns", parents=[ledger, output], help="list the campaigns of a ledger")

    balance = commands.add_parser("balance", parents=[runa, output], help="show the balances")
    balance.add_argument("currency", nargs="*", metavar="CURRENCY", help="ISO 4217 code (default: all above zero)")
    return parser


def main(argv: Sequence[str] | None = None, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Run a command, and print its table.

    :param argv: arguments of the command, without its name. Default: those of the process.
    :param sleep: waits between two looks of ``--watch``.
    :returns: exit status.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command == "campaign" and options.state and not options.rows:
        parser.error("--state needs --rows")
    looks = {"order": _order, "campaign": _campaign, "campaigns": _campaigns, "balance": _balance}
    look = looks[options.command]
    last: Report | None = None
    while True:
        found = run(lambda: look(options), options, unless=last)
        if isinstance(found, int):
            return found
        if found.final or not getattr(options, "watch", False):
            return found.status
        last = found
        try:
            sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return found.status


def _order(options: argparse.Namespace) -> Report:
    with open_client(runa_settings(options.runa)) as client:
        try:
            order = client.get_order(options.order_id)
        except RunaNotFoundError:
            raise NotFoundError(f"This Runa account does not have order {options.order_id}.") from None
    facts = {
        "order": order.id,
        "status": order.status,
        "created": order.created_at,
        "completed": order.completed_at,
        "description": _redacted(order.description),
        "message": _redacted(order.message),
        "price": _money(order.total_price, order.currency),
        "discount": _money(order.total_discount, order.currency),
    }
    failed = order.status == OrderStatus.FAILED
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is not None:
            grid.add_row(name, shown(value), style="red" if failed and name == "status" else None)
    items = _items(order, rows=options.rows)
    parts = [grid, _table(items, right=("payouts", "face_value"))] if items else [grid]
    status = NOT_FINE if failed else FINE
    return Report(facts | {"payouts": items}, items, parts, status, OrderStatus.is_final(order.status))


def _items(order: Order, *, rows: bool) -> list[dict[str, Any]]:
    """Return the payouts of an order: one record each, or one per kind with its number."""
    names = ("face_value", "product", "by", "payout")
    if rows:
        return [{"item": i.id} | dict(zip(names, _kind(i), strict=True)) for i in order.items or ()]
    kinds = Counter(_kind(item) for item in order.items or ())
    return [{"payouts": n} | dict(zip(names, kind, strict=True)) for kind, n in kinds.items()]


def _kind(item: OrderItem) -> tuple[object, ...]:
    status = item.payout.status if item.payout else None
    return (_money(item.face_value, item.currency), _product(item.products), item.distribution_method.type, status)


def _product(products: PlacedProducts) -> str:
    return products.value or products.template_id or " ".join(products.values or ()) or products.type


def _campaigns(options: argparse.Namespace) -> Report:
    with open_ledger(options.ledger) as engine:
        records = [
            {"campaign": name, "environment": environment} | _paid(Ledger(engine, environment, name).totals())
            for environment, name in all_campaigns(engine)
        ]
    wrong = any(record["failed"] for record in records)
    parts = [_table(records, right=("recipients", "paid", "failed"), wrong=lambda record: record["failed"])]
    return Report(records, records, parts if records else ["The ledger has no campaign."], NOT_FINE if wrong else FINE)


def _paid(totals: dict[RowState, tuple[int, Decimal]]) -> dict[str, int]:
    counts = Counter({state: count for state, (count, _) in totals.items()})
    return {
        "recipients": counts.total(),
        "paid": counts[RowState.PAID],
        "failed": sum(counts[state] for state in _WRONG),
    }


def _campaign(options: argparse.Namespace) -> Report:
    name = read_campaign(options.campaign)
    only = None if options.runa is None else runa_settings(options.runa).identity_environment
    with open_ledger(options.ledger) as engine:
        there = all_campaigns(engine) if only is None else [(only, one) for one in campaigns(engine, only)]
        found = [_progress(Ledger(engine, *one), options, one[0]) for one in there if one[1] == name]
    if not found:
        names = sorted({one for _, one in there})
        where = "" if only is None else f" for {only}"
        raise NotFoundError(f"The ledger has no campaign {options.campaign!r}{where}.{listed(names)}")
    parts: list[RenderableType] = []
    for report in found:
        parts += [f"{report.document['environment']}:"] * (len(found) > 1)
        parts += report.parts
    return Report(
        {"campaign": name, "environments": [report.document for report in found]},
        [record for report in found for record in report.records],
        parts,
        max(report.status for report in found),
        all(report.final for report in found),
    )


def _progress(ledger: Ledger, options: argparse.Namespace, environment: str) -> Report:
    """Return the progress of a campaign in one environment."""
    batches = ledger.batches()
    reasons = {
        RowState.SENT: ledger.reason(BatchState.OPEN),
        RowState.FAILED: ledger.reason(BatchState.FAILED),
        RowState.REJECTED: ledger.reason(BatchState.REJECTED),
    }
    states: list[dict[str, Any]] = [
        {
            "state": state,
            "recipients": totals[state][0],
            "amount": _money(totals[state][1], currency),
            "latest_reason": reasons.get(state),
        }
        for currency in sorted({batch.currency for batch in batches})
        for totals in [ledger.totals(currency)]
        for state in RowState
        if state in totals
    ]
    counts: Counter[RowState] = Counter()
    for record in states:
        counts[record["state"]] += record["recipients"]
    orders = Counter(str(batch.state) for batch in batches)
    list_of_orders = ", ".join(f"{orders[state]} {state}" for state in BatchState if orders[state])
    parts: list[RenderableType] = [
        _table(states, right=("recipients", "amount"), wrong=_is_wrong),
        f"{counts[RowState.PAID]} of {counts.total()} recipient(s) paid. Orders: {list_of_orders or 'none'}.",
    ]
    document: dict[str, Any] = {"environment": environment, "states": states, "orders": orders}
    records = states
    if options.rows:
        records = document["rows"] = [
            {
                "recipient": row["recipient_key"],
                "state": row["state"],
                "amount": _money(row["amount"], row["currency"]),
                "order": row["order_id"],
                "item": row["item_id"],
                "reason": row["error"],
            }
            for row in ledger.rows(*options.state or ())
        ]
        parts.append(_table(records, right=("amount",), wrong=_is_wrong))
    status = NOT_FINE if any(counts[state] for state in _WRONG) else FINE
    final = not counts[RowState.PLANNED] and not counts[RowState.SENT]
    return Report(document, [{"environment": environment} | record for record in records], parts, status, final)


def _is_wrong(record: dict[str, Any]) -> bool:
    return record["state"] in _WRONG


def _balance(options: argparse.Namespace) -> Report:
    with open_client(runa_settings(options.runa)) as client:
        balances = [client.get_balance(currency) for currency in options.currency] or client.get_balances()
    records = [{"currency": b.currency, "balance": f"{b.balance:.2f}"} for b in balances]
    shown_balances = [{"currency": b.currency, "balance": f"{b.balance:,.2f}"} for b in balances]
    parts = [_table(shown_balances, right=("balance",))] if balances else ["No balance is above zero."]
    return Report(records, records, parts)


def _table(
    records: Sequence[dict[str, Any]],
    *,
    right: Sequence[str] = (),
    wrong: Callable[[dict[str, Any]], object] = lambda record: False,
) -> Table:
    """Return records as a table, with their keys as headers."""
    return table(
        *(">" * (name in right) + name.replace("_", " ").upper() for name in (records[0] if records else ())),
        rows=[list(record.values()) for record in records],
        wrong=[bool(wrong(record)) for record in records],
    )


def _money(amount: Decimal | None, currency: str | None) -> str | None:
    return None if amount is None else f"{amount:,.2f} {currency or ''}".rstrip()


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)


if __name__ == "__main__":
    raise SystemExit(main())
