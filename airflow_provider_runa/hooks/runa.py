"""RunaHook: a client of Runa's API from an Airflow connection, for synchronous and asynchronous code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_runa.api.client import AsyncRunaClient, RunaClient
from airflow_provider_runa.api.errors import (
    RunaAuthenticationError,
    RunaConfigurationError,
    RunaConnectionError,
    RunaError,
    RunaForbiddenError,
    RunaRequestError,
    redact,
)
from airflow_provider_runa.api.settings import (
    DEFAULT_API_VERSION,
    DEFAULT_CONN_ID,
    DEFAULT_ORDERS_PER_MINUTE,
    DEFAULT_TIMEOUT,
    RunaSettings,
)

if TYPE_CHECKING:
    from airflow_provider_runa.api.models import Balance, Estimate, EstimateRequest, NewOrder, Order, Product

__all__ = ["DEFAULT_CONN_ID", "RunaHook", "RunaSettings"]

T = TypeVar("T", RunaClient, AsyncRunaClient)


def _explain_estimate(error: RunaRequestError, settings: RunaSettings) -> RunaRequestError:
    """Return the error; for the playground, with the reason that it has no estimates (see Runa's guide)."""
    if settings.environment != "playground":
        return error
    message = f"{error.message} " if error.message else ""
    why = "the playground has no estimates: use a production key, or the sandbox"
    return type(error)(error.status, error.type, f"{message}({why})", error.help, error.details)


def create_client(kind: Callable[..., T], settings: RunaSettings) -> T:
    """Return a client for the settings of a connection.

    :param kind: class of the client.
    :param settings: the settings.
    :raises RunaConfigurationError: if httpx does not accept the base URL, or a proxy or certificate file that the
        environment sets.
    """
    try:
        httpx.URL(settings.base_url).host.encode("idna")  # later, it would fail in the middle of a request
        return kind(**settings.client_arguments())
    except RunaConfigurationError as error:
        problem = str(error)
    except Exception as error:
        cause = f"{type(error).__name__}: {redact(str(error))}"
        problem = f"The client for {settings.base_url} cannot be created ({cause}); check the connection's base URL"
    # Not chained: in the traceback, local variables contain the API key.
    raise RunaConfigurationError(problem)


class RunaHook(BaseHook):
    """Connects to Runa's payouts API.

    .. seealso:: :doc:`/connection`

    The connection's password is the API key, which also determines the environment: ``wg…`` is production, ``XX…`` the
    playground. A host (base URL) is needed only for another API, such as the sandbox. If two Airflow installations with
    the same DAGs use one account, the extra ``deployment`` of their connections names each of them, which keeps the
    orders of their tasks apart. Each method exists twice: ``get_order`` for synchronous code, ``aget_order`` for
    asynchronous code, and so on.

    :param runa_conn_id: id of the Airflow connection. Default: ``runa_default``.
    """

    conn_name_attr = "runa_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "runa"
    hook_name = "Runa"

    def __init__(self, runa_conn_id: str = DEFAULT_CONN_ID) -> None:
        super().__init__()
        self.runa_conn_id = runa_conn_id
        self._client: RunaClient | None = None
        self._async_client: AsyncRunaClient | None = None

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the fields of the connection form (Airflow before 3.2; later ones read the provider's metadata)."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import IntegerField, StringField  # Airflow 3.1 knows only these and two more
        from wtforms.validators import Optional

        def text(kind: Any, label: str, default: Any) -> Any:
            return kind(lazy_gettext(label), widget=BS3TextFieldWidget(), validators=[Optional()], default=default)

        return {
            "api_version": text(StringField, "API version", DEFAULT_API_VERSION),
            "timeout": text(IntegerField, "Timeout (seconds)", int(DEFAULT_TIMEOUT)),
            "orders_per_minute": text(IntegerField, "Orders per minute", DEFAULT_ORDERS_PER_MINUTE),
            "deployment": text(StringField, "Deployment", None),
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the changes to the standard fields of the connection form (Airflow before 3.2)."""
        from airflow_provider_runa.get_provider_info import get_provider_info

        behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    # -- the connection ---------------------------------------------------------------------------------------------

    def get_settings(self) -> RunaSettings:
        """Return the validated settings of the connection.

        :raises RunaConfigurationError: if it cannot be used.
        """
        return RunaSettings.from_connection(self.get_connection(self.runa_conn_id))

    async def aget_settings(self) -> RunaSettings:
        """Do what :meth:`get_settings` does, asynchronously.

        :raises RunaConfigurationError: if it cannot be used.
        """
        from airflow.providers.common.compat.connection import get_async_connection

        return RunaSettings.from_connection(await get_async_connection(self.runa_conn_id))

    def get_conn(self) -> RunaClient:
        """Return the client of this hook. It keeps its connections open until :meth:`close` is called."""
        if self._client is None:
            self._client = create_client(RunaClient, self.get_settings())
        return self._client

    async def aget_conn(self) -> AsyncRunaClient:
        """Return the asynchronous client of this hook. It keeps its connections open until :meth:`aclose` is called."""
        if self._async_client is None:
            settings = await self.aget_settings()
            if self._async_client is None:  # another coroutine may have created it in the meantime
                self._async_client = create_client(AsyncRunaClient, settings)
        return self._async_client

    def close(self) -> None:
        """Close the connections of the client, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def aclose(self) -> None:
        """Close the connections of the asynchronous client, if there is one."""
        client, self._async_client = self._async_client, None
        if client is not None:
            await client.aclose()

    def test_connection(self) -> tuple[bool, str]:
        """Test the connection with one ``GET /ping``. The UI's *Test* button calls this method.

        :returns: whether the connection works, and a message.
        """
        try:
            settings = self.get_settings()
            self.get_conn().ping(retry=False)  # a person waits for the result
        except RunaConfigurationError as error:
            # Airflow tests a form under a temporary id, which says nothing to the person who filled it in.
            return False, str(error).replace(f"Connection {self.runa_conn_id!r}", "The connection", 1)
        except (RunaAuthenticationError, RunaForbiddenError) as error:
            return False, f"Runa rejected the API key at {settings.base_url}: {error}"
        except RunaConnectionError as error:
            return False, f"Runa could not be reached at {settings.base_url}: {error}"
        except RunaError as error:
            return False, f"Runa answered at {settings.base_url}, but the ping failed: {error}"
        finally:
            self.close()
        kind = "" if settings.environment == settings.base_url else f" ({settings.environment})"
        return True, f"Runa answered at {settings.base_url}{kind}; the API key works."

    # -- Runa's endpoints, one line each, synchronous and asynchronous ------------------------------------------------

    def ping(self) -> None:
        """Check that Runa answers and accepts the API key (``GET /ping``).

        :raises RunaError: if it does not.
        """
        self.get_conn().ping()

    async def aping(self) -> None:
        """Do what :meth:`ping` does, asynchronously."""
        await (await self.aget_conn()).ping()

    def create_order(
        self, order: NewOrder, *, idempotency_key: str, execution_mode: str = "async", retry: bool = True
    ) -> Order:
        """Send an order (``POST /order``).

        In a DAG, use :class:`~.operators.runa.RunaCreateOrderOperator`: after a crash it finds its order again. With
        this method, your code has to keep the idempotency key and to use it again.

        :param order: the order.
        :param idempotency_key: Runa gives the same answer to the same key and body for 30 days; then it pays again.
        :param execution_mode: ``"async"`` or ``"sync"`` (exactly one item).
        :param retry: send it again, under the same key, while the outcome is unknown.
        :returns: the order, with all fields in sync mode, otherwise with its id and status only.
        :raises RunaError: if Runa rejects it, or if the outcome is still unknown at the end.
        """
        return self.get_conn().create_order(
            order, idempotency_key=idempotency_key, execution_mode=execution_mode, retry=retry
        )

    async def acreate_order(
        self, order: NewOrder, *, idempotency_key: str, execution_mode: str = "async", retry: bool = True
    ) -> Order:
        """Do what :meth:`create_order` does, asynchronously."""
        client = await self.aget_conn()
        return await client.create_order(
            order, idempotency_key=idempotency_key, execution_mode=execution_mode, retry=retry
        )

    def get_order(self, order_id: str) -> Order:
        """Fetch an order (``GET /order/{id}``).

        While an order is PROCESSING, it has only an id, a status and a message.

        :param order_id: id of the order, ``O-…``.
        :raises RunaNotFoundError: if the account has no such order.
        """
        return self.get_conn().get_order(order_id)

    async def aget_order(self, order_id: str) -> Order:
        """Do what :meth:`get_order` does, asynchronously."""
        return await (await self.aget_conn()).get_order(order_id)

    def list_orders(self) -> Iterator[Order]:
        """Iterate over the account's orders, through all pages (``GET /order``).

        Rows have no items and no metadata. Orders that are PROCESSING have only an id, a status and a message.
        """
        return self.get_conn().list_orders()

    async def alist_orders(self) -> AsyncIterator[Order]:
        """Do what :meth:`list_orders` does, asynchronously."""
        async for order in (await self.aget_conn()).list_orders():
            yield order

    def estimate_order(self, request: EstimateRequest) -> Estimate:
        """Estimate the cost of an order (``POST /order/estimate``). The playground does not support it.

        :param request: the payment method and 1 to 500 items.
        :raises RunaRequestError: if Runa rejects it, as it always does in the playground; the message says so.
        """
        try:
            return self.get_conn().estimate_order(request)
        except RunaRequestError as error:
            raise _explain_estimate(error, self.get_settings()) from None

    async def aestimate_order(self, request: EstimateRequest) -> Estimate:
        """Do what :meth:`estimate_order` does, asynchronously."""
        try:
            return await (await self.aget_conn()).estimate_order(request)
        except RunaRequestError as error:
            raise _explain_estimate(error, await self.aget_settings()) from None

    def get_balance(self, currency: str) -> Balance:
        """Fetch the balance of one currency (``GET /balance?currency=``).

        :param currency: ISO 4217 code, three capital letters.
        """
        return self.get_conn().get_balance(currency)

    async def aget_balance(self, currency: str) -> Balance:
        """Do what :meth:`get_balance` does, asynchronously."""
        return await (await self.aget_conn()).get_balance(currency)

    def get_balances(self) -> list[Balance]:
        """Fetch the balances of all currencies with a balance above zero (``GET /balance``)."""
        return self.get_conn().get_balances()

    async def aget_balances(self) -> list[Balance]:
        """Do what :meth:`get_balances` does, asynchronously."""
        return await (await self.aget_conn()).get_balances()

    def list_products(
        self,
        *,
        is_orderable: bool | None = None,
        countries: Sequence[str] = (),
        categories: Sequence[str] = (),
    ) -> Iterator[Product]:
        """Iterate over the catalogue, through all pages (``GET /product``).

        :param is_orderable: ``True`` for only the products that can be ordered. Default: all.
        :param countries: only the products redeemable in one of these countries (ISO 3166 alpha-2). Default: all.
        :param categories: only the products in one of these categories. Default: all.
        """
        return self.get_conn().list_products(is_orderable=is_orderable, countries=countries, categories=categories)

    async def alist_products(
        self,
        *,
        is_orderable: bool | None = None,
        countries: Sequence[str] = (),
        categories: Sequence[str] = (),
    ) -> AsyncIterator[Product]:
        """Do what :meth:`list_products` does, asynchronously."""
        client = await self.aget_conn()
        async for product in client.list_products(
            is_orderable=is_orderable, countries=countries, categories=categories
        ):
            yield product

    def get_product(self, code: str) -> Product:
        """Fetch a product (``GET /product/{code}``).

        :param code: code of the product, e.g. ``AMZ-US``.
        """
        return self.get_conn().get_product(code)

    async def aget_product(self, code: str) -> Product:
        """Do what :meth:`get_product` does, asynchronously."""
        return await (await self.aget_conn()).get_product(code)

    def list_countries(self) -> list[str]:
        """Fetch the countries that have products (``GET /product/countries``), as ISO 3166 alpha-2 codes."""
        return self.get_conn().list_countries()

    async def alist_countries(self) -> list[str]:
        """Do what :meth:`list_countries` does, asynchronously."""
        return await (await self.aget_conn()).list_countries()

    def list_categories(self) -> list[str]:
        """Fetch the codes of all product categories (``GET /product/categories``)."""
        return self.get_conn().list_categories()

    async def alist_categories(self) -> list[str]:
        """Do what :meth:`list_categories` does, asynchronously."""
        return await (await self.aget_conn()).list_categories()
