"""Helpers of both commands: settings for Runa, and the ledger. Airflow is imported only to read its connections."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from pydantic import SecretStr
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError

from airflow_provider_runa.api.errors import redact
from airflow_provider_runa.api.settings import DEFAULT_CONN_ID, RunaSettings
from airflow_provider_runa.campaign.tables import check, create, open_engine

RUNA_HELP = f"Airflow connection (default: RUNA_API_KEY and RUNA_BASE_URL of the environment, or {DEFAULT_CONN_ID})"
LEDGER_HELP = "Airflow connection, or an SQLAlchemy URL"


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

        with LedgerHook(name).open(reading=reading) as engine:
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


def one_line(error: Exception) -> str:
    """Return the first line of an error, for the output of a command."""
    return str(error).partition("\n")[0] or type(error).__name__
