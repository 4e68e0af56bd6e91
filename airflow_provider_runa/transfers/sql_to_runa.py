"""SqlToRunaOperator: pays the rows of a query, streamed from any database that Airflow has a connection to."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, BaseHook

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.campaign.rows import FIELDS
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.utils.arguments import read_json
from airflow_provider_runa.utils.masking import Masked

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
        fields. Each row has all of them, so a default applies to a column only if its value is missing, and only to
        those that :func:`~.campaign.rows.read_row` names. (templated)
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
    masked_fields: Sequence[str] = (*RunaPayoutOperator.masked_fields, "sql", "parameters")
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
            self._execute(cursor)
            read = None
            # A traceback may show local variables, of which masked ones show no recipient.
            while (chunk := Masked(cursor.fetchmany(FETCHED), "rows")).value:
                read = read or self._reader([column[0] for column in cursor.description])
                problem = None
                for values in chunk.value:
                    row = read(values)
                    if isinstance(row, str):
                        problem = row
                        break
                    yield row
                del values, row
                if problem is not None:
                    raise InvalidOrderError(problem)

    def _execute(self, cursor: Any) -> None:
        sql = self.sql if isinstance(self.sql, Masked) else Masked(self.sql)
        if self.parameters is None:
            cursor.execute(sql.value)
        else:
            cursor.execute(sql.value, read_json("parameters", self.parameters))

    def _reader(self, names: Sequence[str]) -> Callable[[Any], dict[str, Any] | str]:
        """Return a function that returns a row with the fields' names, or why the query's row cannot be read.

        :param names: the query's columns.
        """
        columns = self._columns(names)
        index = {field: names.index(column) for field, column in columns.items()}

        def read(values: Any) -> dict[str, Any] | str:
            # A connection may return rows as mappings, such as the extra ``cursor`` of a PostgreSQL connection does. If
            # a name is repeated, they have fewer cells than the query has columns.
            is_mapping = isinstance(values, Mapping)
            if not is_mapping and not (hasattr(values, "__getitem__") and hasattr(values, "__len__")):
                return f"sql: the connection returns rows as {type(values).__name__}, not as sequences or mappings"
            if len(values) != len(names) or (is_mapping and not all(name in values for name in names)):
                return (
                    f"sql: a row has {len(values)} cells for the {len(names)} columns {', '.join(names)}; "
                    "give each column a name that no other column has"
                )
            if is_mapping:
                return {field: values[column] for field, column in columns.items()}
            return {field: values[position] for field, position in index.items()}

        return read

    def _columns(self, names: Sequence[str]) -> dict[str, str]:
        """Return the column of each field.

        :param names: the query's columns.
        :raises InvalidOrderError: if a column is missing or repeated, or a default is without effect.
        """
        columns = read_json("columns", self.columns) or {name: name for name in names}
        if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns.values()):
            raise InvalidOrderError("columns: must map names of fields to names of columns")
        self._check_fields(columns)
        if missing := sorted(column for column in columns.values() if column not in names):
            raise InvalidOrderError(f"columns: the query has no {', '.join(missing)}; it has {', '.join(names)}")
        if twice := sorted({column for column in columns.values() if names.count(column) > 1}):
            raise InvalidOrderError(
                f"columns: the query has several columns {', '.join(twice)}; rename them in the query"
            )
        self._check_effect(columns)
        return dict(columns)

    def _check_fields(self, columns: Mapping[str, str]) -> None:
        """Check that the columns are given to fields of a row.

        :param columns: the column of each field.
        """
        if not (unknown := [str(field) for field in columns if field not in FIELDS]):
            return
        if all(column in FIELDS for column in columns.values()) and self.columns:
            raise InvalidOrderError(
                "columns: is reversed; map a row's field to the query's column, as in {'recipient_key': 'customer_id'}"
            )
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InvalidOrderError(
            f"columns: a row has no field {', '.join(unknown[:5])}{more}; map a row's fields to the query's columns, "
            "as in {'recipient_key': 'customer_id', 'face_value': 'reward', 'email_address': 'email'}"
        )

    def _check_effect(self, fields: Collection[str]) -> None:
        """Check that no default is without effect, because every row has the field.

        :param fields: the fields that the rows have.
        """
        defaults = self._read_defaults()
        if "face_value" in fields and "face_value" in defaults:
            raise InvalidOrderError("defaults: face_value has no effect, because every row of the query has its own")
        if "email_address" in fields and defaults.get("distribution_method") == {"type": "PAYOUT_LINK"}:
            raise InvalidOrderError("defaults: PAYOUT_LINK has no effect, because every row has an address")


def _cursor(connection: Any) -> Any:
    """Return a cursor that streams the result, because some drivers fetch all rows at once by default."""
    driver = type(connection).__module__.partition(".")[0]
    if driver in ("psycopg2", "psycopg"):
        return connection.cursor(name="airflow_provider_runa")
    if driver in ("MySQLdb", "pymysql"):
        return connection.cursor(importlib.import_module(f"{driver}.cursors").SSCursor)
    return connection.cursor()
