"""SqlToRunaOperator: pays the rows of a query, streamed from any database that Airflow has a connection to."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, BaseHook

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.operators.payout import RunaPayoutOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: How many rows are fetched at a time.
FETCHED = 1000


class SqlToRunaOperator(RunaPayoutOperator):
    """Pays the rows of a query, each recipient key once per campaign.

    .. seealso:: :doc:`/campaigns`

    Rows are fetched 1,000 at a time and written to the ledger as they arrive, so memory use does not grow with their
    number. The common-sql provider must be installed, and the provider for the type of the connection.

    :param sql: the query, or the name of a ``.sql`` file. (templated)
    :param source_conn_id: id of the Airflow connection to query, of any type with a DB-API hook. (templated)
    :param columns: field of a row -> column of the query, such as ``{"recipient_key": "customer_id", "face_value":
        "reward", "email_address": "email"}``. Other columns are ignored. Default: the columns have the names of the
        fields. (templated)
    :param parameters: parameters of the query, in the form that its driver expects. Default: none. (templated)
    :param kwargs: parameters of :class:`~.RunaPayoutOperator`, other than ``rows``.
    """

    template_fields: Sequence[str] = (
        *(name for name in RunaPayoutOperator.template_fields if name != "rows"),
        "sql",
        "source_conn_id",
        "columns",
        "parameters",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "columns": "json", "defaults": "json"}  # noqa: RUF012 - as Airflow has it

    def __init__(
        self,
        *,
        sql: str,
        source_conn_id: str,
        columns: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "rows" in kwargs:
            raise ValueError(
                "rows: not allowed, because the query returns them; without a query, use RunaPayoutOperator"
            )
        super().__init__(**kwargs)
        self.sql = sql
        self.source_conn_id = source_conn_id
        self.columns = columns
        self.parameters = parameters

    def iter_rows(self, context: Context) -> Iterator[Any]:
        """Yield the rows of the query.

        :param context: the task's context.
        """
        from airflow.providers.common.sql.hooks.sql import DbApiHook

        source: Any = BaseHook.get_connection(self.source_conn_id)
        try:
            hook = source.get_hook()
        except (AirflowException, ImportError):
            raise InvalidOrderError(
                f"source_conn_id: no provider is installed for the type {source.conn_type!r} "
                f"of connection {self.source_conn_id!r}"
            ) from None
        if not isinstance(hook, DbApiHook):
            raise InvalidOrderError(
                f"source_conn_id: connection {self.source_conn_id!r} is not a connection to a database"
            )
        with contextlib.closing(hook.get_conn()) as connection, contextlib.closing(_cursor(connection)) as cursor:
            if self.parameters is None:
                cursor.execute(self.sql)
            else:
                cursor.execute(self.sql, self.parameters)
            pick = None
            while chunk := cursor.fetchmany(FETCHED):
                pick = pick or self._picker([column[0] for column in cursor.description])
                for values in chunk:
                    # A connection may return rows as dictionaries (extra ``cursor`` of a PostgreSQL connection).
                    cells = list(values.values()) if isinstance(values, Mapping) else values
                    yield {field: cells[index] for field, index in pick.items()}

    def _picker(self, names: Sequence[str]) -> dict[str, int]:
        """Return the index of the column of each field."""
        index = {name: position for position, name in enumerate(names)}
        columns = self.columns or {name: name for name in names}
        if missing := sorted(column for column in columns.values() if column not in index):
            raise InvalidOrderError(f"columns: the query has no {', '.join(missing)}; it has {', '.join(names)}")
        if twice := sorted({column for column in columns.values() if names.count(column) > 1}):
            raise InvalidOrderError(
                f"columns: the query has several columns {', '.join(twice)}; rename them in the query"
            )
        return {field: index[column] for field, column in columns.items()}


def _cursor(connection: Any) -> Any:
    """Return a cursor that streams the result, because some drivers fetch all rows at once by default."""
    driver = type(connection).__module__.partition(".")[0]
    if driver in ("psycopg2", "psycopg"):
        return connection.cursor(name="airflow_provider_runa")
    if driver in ("MySQLdb", "pymysql"):
        return connection.cursor(importlib.import_module(f"{driver}.cursors").SSCursor)
    return connection.cursor()
