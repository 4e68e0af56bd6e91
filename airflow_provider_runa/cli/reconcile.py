"""``runa-reconcile``: lists the differences between a ledger and Runa, with recipient keys."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow_provider_runa.campaign.rows import read_campaign, read_defaults
from airflow_provider_runa.campaign.tables import campaigns
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
    table,
)
from airflow_provider_runa.operators.reconcile import compare, rebuild
from airflow_provider_runa.utils.arguments import parse_datetime

_FIELDS = ("kind", "campaign", "recipient_key", "order_id", "text")


def _parser() -> argparse.ArgumentParser:
    parser = create_parser(
        "runa-reconcile",
        "List the differences between the ledger of a campaign or of a period and Runa.",
        [ledger_option(), runa_option(), output_options()],
    )
    add = parser.add_argument
    add(
        "--campaign",
        metavar="NAME",
        help="only this campaign (default: all, including those that the ledger does not have)",
    )
    add("--since", type=_date_or_time, metavar="DATE", help="only orders placed at or after this date or time (UTC)")
    add("--until", type=_date_or_time, metavar="DATE", help="only orders placed before this date or time (UTC)")
    add(
        "--rebuild",
        type=Path,
        metavar="FILE",
        help="first take rows of a CSV or JSONL file into the ledger that orders of the campaign pay (a lost ledger)",
    )
    return parser


def _date_or_time(text: str) -> datetime | None:
    try:
        return parse_datetime("DATE", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file whose name ends in .csv or .jsonl."""
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            return [{name: value for name, value in row.items() if value != ""} for row in csv.DictReader(file)]
        return [json.loads(line) for line in file if line.strip()]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the ledger with Runa, and print the differences as a table.

    :param argv: arguments of the command, without its name. Default: those of the process.
    :returns: exit status.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.campaign is None and options.since is None:
        parser.error("set --campaign or --since")
    if options.rebuild is not None and options.campaign is None:
        parser.error("--rebuild needs --campaign")
    result = run(lambda: _compare(options), options)
    return result if isinstance(result, int) else result.status


def _compare(options: argparse.Namespace) -> Report:
    settings = runa_settings(options.runa)
    with open_ledger(options.ledger, reading=options.rebuild is None) as engine:
        rows = None if options.rebuild is None else _read_rows(options.rebuild)
        if rows is None and options.campaign is not None:
            names = campaigns(engine, settings.identity_environment)
            if read_campaign(options.campaign) not in names:
                where = f" for {settings.identity_environment}"
                raise NotFoundError(f"The ledger has no campaign {options.campaign!r}{where}.{listed(names)}")
        with open_client(settings):
            if rows is not None:
                rebuild(engine, settings, options.campaign, rows, defaults=read_defaults(None), since=options.since)
            period = {"since": options.since, "until": options.until}
            result = compare(engine, settings, campaign=options.campaign, **period)
    records = [
        dict(zip(_FIELDS, (d.kind, d.campaign, d.recipient_key, d.order_id, d.text), strict=True))
        for d in result.differences
    ]
    columns = ("KIND", "CAMPAIGN", "RECIPIENT", "ORDER", "WHAT")
    differences = table(*columns, rows=[list(record.values()) for record in records], wrong=[True] * len(records))
    return Report(
        {
            "differences": records,
            "orders": result.orders,
            "hidden": result.hidden,
            "open_rows": result.open_rows,
        },
        records,
        [differences, str(result)] if records else [str(result)],
        NOT_FINE if records else FINE,
    )


if __name__ == "__main__":
    raise SystemExit(main())
