"""``runa-reconcile``: lists the differences between a ledger and Runa, with recipient keys."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow_provider_runa.campaign.reconcile import Difference
from airflow_provider_runa.campaign.rows import read_defaults
from airflow_provider_runa.cli.common import LEDGER_HELP, RUNA_HELP, one_line, open_ledger, runa_settings, without_a_log
from airflow_provider_runa.operators.reconcile import compare, rebuild
from airflow_provider_runa.utils.arguments import parse_datetime

SAME, DIFFERENT, FAILED = 0, 1, 2

_EPILOG = """\
exit status: 0 nothing differs, 1 something differs, 2 the comparison failed.
Airflow's connections are read as Airflow reads them, such as from environment
variables AIRFLOW_CONN_….
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runa-reconcile",
        description="List the differences between the ledger of a campaign or of a period and Runa.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    add("--ledger", required=True, metavar="CONN_ID_OR_URL", help=LEDGER_HELP)
    add("--runa", metavar="CONN_ID", help=RUNA_HELP)
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
    try:
        with without_a_log(), open_ledger(options.ledger, reading=options.rebuild is None) as engine:
            if options.rebuild is not None:
                rows, settings = _read_rows(options.rebuild), runa_settings(options.runa)
                rebuild(engine, settings, options.campaign, rows, defaults=read_defaults(None), since=options.since)
            period = {"since": options.since, "until": options.until}
            result = compare(engine, runa_settings(options.runa), campaign=options.campaign, **period)
    except Exception as error:  # every error: status 1 would report a difference
        print(f"The comparison failed: {one_line(error)}", file=sys.stderr)
        return FAILED
    if result.differences:
        _print_table(result.differences)
    print(result)
    return DIFFERENT if result.differences else SAME


def _print_table(differences: Sequence[Difference]) -> None:
    rows = [("KIND", "CAMPAIGN", "RECIPIENT", "ORDER", "WHAT")]
    rows += [(d.kind, d.campaign, d.recipient_key or "-", d.order_id or "-", d.text) for d in differences]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


if __name__ == "__main__":
    raise SystemExit(main())
