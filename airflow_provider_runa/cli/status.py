"""``runa-status``: shows an order, the progress of a campaign, or the balances, as a table.

It only reads, and prints neither recipients nor payout links. Recipient keys are chosen by the user and may be
addresses, so they are printed only with ``--rows``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from rich import box
from rich.console import Console
from rich.table import Table

from airflow_provider_runa.api.client import RunaClient
from airflow_provider_runa.api.errors import RunaNotFoundError, redact
from airflow_provider_runa.api.models import Order, OrderItem, OrderStatus, PlacedProducts
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.rows import read_campaign
from airflow_provider_runa.campaign.tables import BatchState, RowState, campaigns
from airflow_provider_runa.cli.common import LEDGER_HELP, RUNA_HELP, one_line, open_ledger, runa_settings, without_a_log

FINE, NOT_FINE = 0, 1  # argparse uses 2 for an invalid command line

_EPILOG = """\
exit status: 0 success, 1 something failed or was not found,
2 the command line is invalid.
With RUNA_API_KEY and a URL for the ledger, Airflow is not needed. Otherwise
Airflow's connections are read as Airflow reads them, such as from environment
variables AIRFLOW_CONN_….
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runa-status",
        description="Show an order, the progress of a campaign, or the balances. Reads only.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    runa = argparse.ArgumentParser(add_help=False)
    runa.add_argument("--runa", metavar="CONN_ID", help=RUNA_HELP)
    commands = parser.add_subparsers(dest="command", required=True, metavar="order | campaign | balance")

    order = commands.add_parser("order", parents=[runa], help="show an order at Runa")
    order.add_argument("order_id", metavar="ORDER_ID", help="Runa's id of the order, O-…")
    order.add_argument("--rows", action="store_true", help="list each payout with its id, instead of counts")

    campaign = commands.add_parser("campaign", parents=[runa], help="show the progress of a campaign, from its ledger")
    campaign.add_argument("campaign", metavar="NAME", help="name of the campaign")
    campaign.add_argument("--ledger", required=True, metavar="CONN_ID_OR_URL", help=LEDGER_HELP)
    campaign.add_argument(
        "--rows",
        nargs="*",
        type=RowState,
        choices=list(RowState),
        metavar="STATE",
        help=f"also list the recipient keys, all or those in some states ({', '.join(RowState)})",
    )

    balance = commands.add_parser("balance", parents=[runa], help="show the balances")
    balance.add_argument("currency", nargs="*", metavar="CURRENCY", help="ISO 4217 code (default: all above zero)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and print its table.

    :param argv: arguments of the command, without its name. Default: those of the process.
    :returns: exit status.
    """
    options = _parser().parse_args(argv)
    # A table in a file or a pipe must not be cut to the width of a terminal.
    width = None if sys.stdout.isatty() else 1000
    console = Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
    try:
        with without_a_log():
            if options.command == "order":
                return _order(console, options)
            if options.command == "campaign":
                return _campaign(console, options)
            return _balance(console, options)
    except Exception as error:  # every error: print one line instead of a traceback
        print(f"The command failed: {one_line(error)}", file=sys.stderr)
        return NOT_FINE


def _client(options: argparse.Namespace) -> RunaClient:
    return RunaClient(**runa_settings(options.runa).client_arguments())


def _order(console: Console, options: argparse.Namespace) -> int:
    with _client(options) as client:
        try:
            order = client.get_order(options.order_id)
        except RunaNotFoundError:
            print(f"This Runa account does not have order {options.order_id}.", file=sys.stderr)
            return NOT_FINE
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
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is not None:
            grid.add_row(name, _shown(value))
    console.print(grid)
    if order.items:
        console.print(_items(order, rows=options.rows))
    return NOT_FINE if order.status == OrderStatus.FAILED else FINE


def _items(order: Order, *, rows: bool) -> Table:
    """Return the payouts of an order as a table: one row each, or one row per kind with its number."""
    if rows:
        return _table(
            "ITEM", ">FACE VALUE", "PRODUCT", "BY", "PAYOUT", rows=[(i.id, *_kind(i)) for i in order.items or ()]
        )
    kinds = Counter(_kind(item) for item in order.items or ())
    return _table(">PAYOUTS", ">FACE VALUE", "PRODUCT", "BY", "PAYOUT", rows=[(n, *kind) for kind, n in kinds.items()])


def _kind(item: OrderItem) -> tuple[object, ...]:
    status = item.payout.status if item.payout else None
    return (_money(item.face_value, item.currency), _product(item.products), item.distribution_method.type, status)


def _product(products: PlacedProducts) -> str:
    return products.value or products.template_id or " ".join(products.values or ()) or products.type


def _campaign(console: Console, options: argparse.Namespace) -> int:
    environment = runa_settings(options.runa).identity_environment
    with open_ledger(options.ledger) as engine:
        campaign = read_campaign(options.campaign)
        if campaign not in campaigns(engine, environment):
            print(f"The ledger has no campaign {campaign!r} for {environment}.", file=sys.stderr)
            return NOT_FINE
        ledger = Ledger(engine, environment, campaign)
        batches = ledger.batches()
        progress = {currency: ledger.totals(currency) for currency in sorted({batch.currency for batch in batches})}
        reasons = {
            RowState.SENT: ledger.reason(BatchState.OPEN),
            RowState.FAILED: ledger.reason(BatchState.FAILED),
            RowState.REJECTED: ledger.reason(BatchState.REJECTED),
        }
        keys = None if options.rows is None else list(ledger.rows(*options.rows))
    console.print(
        _table(
            *("STATE", ">RECIPIENTS", ">AMOUNT", "LATEST REASON"),
            rows=[
                (state, totals[state][0], _money(totals[state][1], currency), reasons.get(state))
                for currency, totals in progress.items()
                for state in RowState
                if state in totals
            ],
        )
    )
    counts: Counter[RowState] = Counter()
    for totals in progress.values():
        counts.update({state: count for state, (count, _) in totals.items()})
    orders = Counter(batch.state for batch in batches)
    listed = ", ".join(f"{orders[state]} {state}" for state in BatchState if orders[state])
    console.out(f"{counts[RowState.PAID]} of {counts.total()} recipient(s) paid. Orders: {listed or 'none'}.")
    if keys is not None:
        console.print(
            _table(
                *("RECIPIENT", "STATE", ">AMOUNT", "ORDER", "ITEM", "REASON"),
                rows=[
                    [
                        *(row["recipient_key"], row["state"], _money(row["amount"], row["currency"])),
                        *(row["order_id"], row["item_id"], row["error"]),
                    ]
                    for row in keys
                ],
            )
        )
    return NOT_FINE if any(counts[state] for state in (RowState.FAILED, RowState.REJECTED, RowState.MISMATCH)) else FINE


def _balance(console: Console, options: argparse.Namespace) -> int:
    with _client(options) as client:
        balances = [client.get_balance(currency) for currency in options.currency] or client.get_balances()
    if balances:
        console.print(_table("CURRENCY", ">BALANCE", rows=[(b.currency, f"{b.balance:,.2f}") for b in balances]))
    else:
        console.out("No balance is above zero.")
    return FINE


def _table(*columns: str, rows: Iterable[Sequence[object]]) -> Table:
    """Return a table.

    :param columns: the headers. A ``>`` in front aligns the column to the right.
    :param rows: the values, one sequence per row; ``None`` is shown as ``-``.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        table.add_row(*(_shown(value) for value in row))
    return table


def _shown(value: object) -> str:
    """Return a value as text without control characters, so that a description or a key cannot control the terminal."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        value = value.astimezone(UTC).isoformat(" ", "seconds")
    return "".join(character if character.isprintable() else "\ufffd" for character in str(value))


def _money(amount: Decimal | None, currency: str | None) -> str | None:
    return None if amount is None else f"{amount:,.2f} {currency or ''}".rstrip()


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)


if __name__ == "__main__":
    raise SystemExit(main())
