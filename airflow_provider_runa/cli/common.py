"""What both commands share: arguments, exit statuses, output, settings for Runa, and the ledger.

Airflow is imported only to read its connections.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError

from airflow_provider_runa import __version__
from airflow_provider_runa.api.client import RunaClient
from airflow_provider_runa.api.errors import RunaUnreachableError, redact
from airflow_provider_runa.api.settings import DEFAULT_CONN_ID, RunaSettings
from airflow_provider_runa.campaign.tables import check, create, open_engine

RUNA_HELP = f"Airflow connection (default: RUNA_API_KEY and RUNA_BASE_URL of the environment, or {DEFAULT_CONN_ID})"
LEDGER_HELP = "Airflow connection, or an SQLAlchemy URL"

# argparse ends the process with 2 for an invalid command line.
FINE, NOT_FINE, NOT_FOUND, NO_ANSWER = 0, 1, 3, 4

EPILOG = """\
exit status: 0 success, 1 something failed or differs, 2 the command line is
invalid, 3 not found, 4 Runa or the ledger could not be read.
With RUNA_API_KEY and a URL for the ledger, Airflow is not needed. Otherwise
Airflow's connections are read from environment variables AIRFLOW_CONN_… or a
secrets backend. From Airflow 3.1, a command does not see the connections in
Airflow's database.
"""


class NotFoundError(Exception):
    """There is no such order or campaign."""


@dataclass
class Report:
    """What a command found out.

    :param document: what ``--json`` prints.
    :param records: what ``--csv`` prints, one line each.
    :param parts: what is printed otherwise: tables and lines.
    :param status: exit status.
    :param final: whether it can change no more; ``--watch`` ends then.
    """

    document: Any
    records: Sequence[dict[str, Any]]
    parts: Sequence[RenderableType]
    status: int = FINE
    final: bool = True

    def print(self, options: argparse.Namespace) -> None:
        """Print it in the format that the command line asks for."""
        if options.format == "json":
            print(json.dumps(self.document, default=_as_text, ensure_ascii=False))
        elif options.format == "csv":
            if self.records:
                writer = csv.DictWriter(sys.stdout, list(self.records[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows({key: _cell(value) for key, value in record.items()} for record in self.records)
        else:
            # A table in a file or a pipe must not be cut to the width of a terminal.
            width = None if sys.stdout.isatty() else 1000
            console = Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
            for part in self.parts:
                console.print(part, soft_wrap=isinstance(part, str))


def _as_text(value: object) -> str:
    return value.astimezone(UTC).isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)


def _cell(value: object) -> str:
    """Return a value for CSV. A quote in front keeps a spreadsheet from running text as a formula."""
    text = "" if value is None else _as_text(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def shown(value: object) -> str:
    """Return a value as text without control characters, so that a description or a key cannot control the terminal."""
    text = "-" if value is None else _as_text(value)
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def table(*columns: str, rows: Iterable[Sequence[object]], wrong: Sequence[bool]) -> Table:
    """Return a table.

    :param columns: the headers. A ``>`` in front aligns the column to the right.
    :param rows: the values, one sequence per row; ``None`` is shown as ``-``.
    :param wrong: for each row, whether it is coloured.
    """
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        result.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row, is_wrong in zip(rows, wrong, strict=True):
        result.add_row(*(shown(value) for value in row), style="red" if is_wrong else None)
    return result


def output_options() -> argparse.ArgumentParser:
    """Return the options for the format of the output."""
    parser = argparse.ArgumentParser(add_help=False)
    formats = parser.add_mutually_exclusive_group()
    add = formats.add_argument
    add("--json", dest="format", action="store_const", const="json", help="print JSON")
    add("--csv", dest="format", action="store_const", const="csv", help="print CSV, one line per row of the table")
    return parser


def runa_option() -> argparse.ArgumentParser:
    """Return the option for the connection to Runa."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--runa", metavar="CONN_ID", help=RUNA_HELP)
    return parser


def ledger_option() -> argparse.ArgumentParser:
    """Return the option for the ledger."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--ledger", required=True, metavar="CONN_ID_OR_URL", help=LEDGER_HELP)
    return parser


def create_parser(
    prog: str, description: str, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    """Return a command's parser, with ``--version`` and the exit statuses in its help."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=EPILOG,
        parents=parents,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run(look: Callable[[], Report], options: argparse.Namespace, *, unless: Report | None = None) -> Report | int:
    """Look something up, and print it. Of an error, print one line instead of a traceback.

    :param unless: the report that was printed last: the same is not printed again.
    :returns: the report, or the exit status of the error.
    """
    try:
        with without_a_log():
            report = look()
    except NotFoundError as error:
        print(error, file=sys.stderr)
        return NOT_FOUND
    except RunaUnreachableError as error:
        print(f"No connection to Runa at {error.address}: is runa-sandbox running?", file=sys.stderr)
        return NO_ANSWER
    except Exception as error:
        print(f"The command failed: {one_line(error)}", file=sys.stderr)
        return NO_ANSWER
    if unless is None or report.document != unless.document:
        report.print(options)
    return report


@contextlib.contextmanager
def open_client(settings: RunaSettings) -> Iterator[RunaClient]:
    """Open a client, and close it at the end of the block.

    :raises RunaUnreachableError: at once, if no connection can be opened: other requests retry for a minute.
    """
    with RunaClient(**settings.client_arguments()) as client:
        client.ping(retry=False)
        yield client


@contextlib.contextmanager
def _explained(conn_id: str, instead: str) -> Iterator[None]:
    """Say of a connection that Airflow does not find how a command can be given one."""
    from airflow.providers.common.compat.sdk import AirflowNotFoundException

    try:
        yield
    except AirflowNotFoundException:
        raise ValueError(
            f"connection {conn_id!r} isn't defined for commands: from Airflow 3.1 they do not see Airflow's database. "
            f"Set AIRFLOW_CONN_{conn_id.upper()}, or {instead}."
        ) from None


@contextlib.contextmanager
def without_a_log() -> Iterator[None]:
    """Keep Airflow's log off the standard output within the block.

    Before Airflow 3.1 the log, with a line per request, goes to the standard output. In the block, info lines are
    dropped, and warnings, errors and other output go to the standard error.
    """
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(before)


def runa_settings(conn_id: str | None) -> RunaSettings:
    """Return the settings of the connection to Runa.

    :param conn_id: id of the Airflow connection; ``None`` for ``RUNA_API_KEY`` and ``RUNA_BASE_URL`` of the
        environment, or without them ``runa_default``.
    :raises RunaConfigurationError: if the settings cannot be used.
    """
    api_key = SecretStr(os.environ.get("RUNA_API_KEY", ""))
    if conn_id is None and api_key.get_secret_value():
        return RunaSettings.read("RUNA_API_KEY", api_key, host=os.environ.get("RUNA_BASE_URL"))
    from airflow_provider_runa.hooks.runa import RunaHook

    with _explained(conn_id or DEFAULT_CONN_ID, "RUNA_API_KEY and no --runa"):
        return RunaHook(conn_id or DEFAULT_CONN_ID).get_settings()


@contextlib.contextmanager
def open_ledger(name: str, *, reading: bool = True) -> Iterator[Engine]:
    """Open a ledger, and close it at the end of the block.

    :param name: id of an Airflow connection, or an SQLAlchemy URL.
    :param reading: only read: the tables must exist. Otherwise missing tables are created.
    :raises InvalidOrderError: if there is no ledger.
    :raises ValueError: if the URL is invalid.
    """
    if "://" not in name:
        from airflow_provider_runa.hooks.ledger import LedgerHook

        with _explained(name, "give --ledger an SQLAlchemy URL"), LedgerHook(name).open(reading=reading) as engine:
            yield engine
        return
    try:
        engine = open_engine(name, reading=reading)
    except (ArgumentError, ValueError) as error:  # its text may repeat the URL, which contains a password
        raise ValueError(f"the ledger's URL: {redact(str(error))}") from None
    try:
        (check if reading else create)(engine)
        yield engine
    finally:
        engine.dispose()


def listed(names: Sequence[str]) -> str:
    """Return a sentence with the campaigns that there are, to find a mistyped name."""
    return f" It has {', '.join(shown(name) for name in names[:10])}{', …' * (len(names) > 10)}." if names else ""


def one_line(error: Exception) -> str:
    """Return the first line of an error, for the output of a command."""
    return str(error).partition("\n")[0] or type(error).__name__
