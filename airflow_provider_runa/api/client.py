"""RunaClient and AsyncRunaClient: Runa's endpoints over httpx.

The functions at the top build requests and parse answers for both clients; the clients contain only the code that
waits. Reads are retried after transport errors, 429 and 5xx. An order is sent again only while its outcome is unknown,
and only with the same key and the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import tenacity
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from airflow_provider_runa import __version__
from airflow_provider_runa.api.errors import (
    RunaApiError,
    RunaConnectionError,
    RunaError,
    RunaUnreachableError,
    parse_error,
    redact,
)
from airflow_provider_runa.api.models import (
    Balance,
    Estimate,
    EstimateRequest,
    NewOrder,
    Order,
    OrderPage,
    Product,
    ProductPage,
    check_execution_mode,
)
from airflow_provider_runa.api.network import find_proxy, tls_context
from airflow_provider_runa.api.retry import is_outcome_unknown, pause_before_retry

#: How often a request is sent at most, the first time included.
ATTEMPTS = 5

#: Rows per page, the most that Runa allows.
PAGE_SIZE = 500

M = TypeVar("M", bound=BaseModel)

# Errors that httpx raises only while it opens a connection, TLS and a proxy's CONNECT included. The request is sent
# after that, so none of it has left this machine.
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)


@dataclass(frozen=True)
class _HttpRequest:
    """A request, built for both clients."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    #: Returns the body. A function, because the body contains recipients, and error trackers show local variables.
    content: Callable[[], bytes] | None = None
    #: Whether it waits for its turn in the account's rate limit.
    waits: bool = False
    #: Returns texts that must not appear in an error about this request, besides the API key.
    secrets: Callable[[], frozenset[str]] = frozenset

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for httpx."""
        content = self.content() if self.content is not None else None
        return {"params": self.params, "headers": self.headers, "content": content}


def _get(path: str, *params: tuple[str, str | None]) -> _HttpRequest:
    return _HttpRequest("GET", path, tuple((name, value) for name, value in params if value is not None))


def _post_order(order: NewOrder, idempotency_key: str, execution_mode: str, *, waits: bool) -> _HttpRequest:
    check_execution_mode(order, execution_mode)
    headers = {
        "Content-Type": "application/json",
        "X-Idempotency-Key": idempotency_key,
        "X-Execution-Mode": execution_mode,
    }
    return _HttpRequest("POST", "/order", headers=headers, content=order.body, waits=waits, secrets=order.recipients)


def _post_estimate(request: EstimateRequest) -> _HttpRequest:
    return _HttpRequest("POST", "/order/estimate", headers={"Content-Type": "application/json"}, content=request.body)


def _list_products(
    is_orderable: bool | None, countries: Sequence[str], categories: Sequence[str], after: str | None
) -> _HttpRequest:
    return _get(
        "/product",
        ("limit", str(PAGE_SIZE)),
        ("is_orderable", None if is_orderable is None else str(is_orderable).lower()),
        *(("countries_redeemable_in", country) for country in countries),
        *(("categories", category) for category in categories),
        ("after", after),
    )


# Error trackers send the local variables of all frames in a traceback. So no frame may hold a body or an answer when an
# exception leaves it: the functions below delete the body before they raise.


def _outcome(request: _HttpRequest, response: httpx.Response, api_key: SecretStr) -> Any:
    """Return the body of an answer, parsed as JSON with ``Decimal`` numbers, or the error that it stands for."""
    try:
        body = json.loads(response.content, parse_float=Decimal)
    except ValueError:
        body = None
    if response.is_success:
        if body is None:
            return RunaConnectionError(f"{_name(request)}: the answer {response.status_code} has no JSON body")
        return body
    if response.is_informational and body is None:
        return RunaConnectionError(f"{_name(request)}: the answer {response.status_code} is not final")
    if response.is_redirect:
        return RunaApiError(response.status_code, message="redirects are not followed; check the base URL")
    return parse_error(response.status_code, body, (api_key.get_secret_value(), *request.secrets()))


def _without_frames(error: BaseException) -> BaseException:
    """Return an exception without the frames of httpx, which hold the request with the API key and the recipients.

    It may be any exception: a signal, such as Airflow's ``execution_timeout``, interrupts a request anywhere.
    """
    error.__context__ = None
    return error.with_traceback(None)


def _address(base_url: str) -> str:
    """Return the host and port of a base URL."""
    url = urlsplit(base_url)
    return url.netloc if url.port else f"{url.netloc}:{443 if url.scheme == 'https' else 80}"


def _name(request: _HttpRequest) -> str:
    return f"{request.method} {request.path}"


def _parse_model(model: type[M], request: _HttpRequest, body: Any) -> M:
    """Parse a body as a model."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        where = ", ".join(sorted({".".join(map(str, finding["loc"])) for finding in error.errors()})[:5])
    del body
    raise RunaConnectionError(f"{_name(request)}: the answer has an unexpected form (at: {redact(where)})")


def _names(request: _HttpRequest, body: Any, field_name: str, inner: str | None = None) -> list[str]:
    """Parse a body that contains a list of names."""
    with contextlib.suppress(KeyError, TypeError):
        return [str(row if inner is None else row[inner]) for row in body[field_name]]
    del body
    raise RunaConnectionError(f"{_name(request)}: the answer has no {field_name}")


def _balances(request: _HttpRequest, body: Any) -> list[Balance]:
    with contextlib.suppress(ValidationError):
        return TypeAdapter(list[Balance]).validate_python(body)
    del body
    raise RunaConnectionError(f"{_name(request)}: the answer is not a list of balances")


class _Pages:
    """The cursors of a list that is read page by page."""

    def __init__(self) -> None:
        #: Cursor of the next page; ``None`` for the first one.
        self.after: str | None = None
        self._seen: set[str] = set()

    def advance(self, request: _HttpRequest, page: OrderPage | ProductPage) -> bool:
        """Go on to the next page; return whether there is one.

        :raises RunaConnectionError: if its cursor was seen before: rows that were not read must not count as absent.
        """
        rows = page.items if isinstance(page, OrderPage) else page.catalog
        self.after = page.pagination.cursors.after
        if not rows or self.after is None:
            return False
        if self.after in self._seen:
            raise RunaConnectionError(f"{_name(request)}: the cursor of the next page was seen before")
        self._seen.add(self.after)
        return True


class RateLimiter:
    """Limits the number of requests in any 60 seconds.

    It only computes the pauses. The callers sleep, so that both clients can use it.

    :param per_minute: how many requests may be sent in any 60 seconds.
    :param monotonic: the clock, in seconds.
    """

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._monotonic = monotonic
        self._sent: deque[float] = deque()
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Reserve the next request and return how many seconds to wait before it is sent."""
        with self._lock:
            now = self._monotonic()
            while self._sent and self._sent[0] <= now - 60.0:
                self._sent.popleft()
            at = now if len(self._sent) < self._per_minute else max(now, self._sent[-self._per_minute] + 60.0)
            self._sent.append(at)
            return at - now


class _ClientBase:
    """Settings, headers and retries of both clients. For the parameters, see the clients."""

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str,
        api_version: str = "2024-02-05",
        timeout: float = 30.0,
        orders_per_minute: int = 300,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._api_key = SecretStr(api_key)
        self._rate_limiter = RateLimiter(orders_per_minute, monotonic)
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._base_url = base_url.rstrip("/")
        self._api_version = api_version
        self._timeout = timeout

    def _http_options(self, transport: Any) -> dict[str, Any]:
        """Return the options of httpx's clients. They are not kept, because they contain the API key."""
        secure = self._base_url.startswith("https")
        return {
            "base_url": self._base_url,
            "timeout": self._timeout,
            "follow_redirects": False,
            "transport": transport,
            # Plain http is allowed to this machine only, so it never goes through a proxy from the environment.
            "verify": tls_context() if secure else False,
            "proxy": find_proxy(self._base_url) if secure and transport is None else None,
            "trust_env": False,
            "headers": {
                "X-Api-Key": self._api_key.get_secret_value(),
                "X-Api-Version": self._api_version,
                "User-Agent": f"airflow-provider-runa/{__version__} httpx/{httpx.__version__}",
                "Accept": "application/json",
            },
        }

    def reserve_turn(self) -> float:
        """Reserve the next place in the account's rate limit, for an order that is sent with ``waits=False``.

        :returns: how long to wait before sending it, in seconds.
        """
        return self._rate_limiter.reserve()

    def _retrying(self, retry: bool) -> dict[str, Any]:
        """Return tenacity's options: only a request whose outcome is unknown is sent again."""
        return {
            "retry": tenacity.retry_if_exception(is_outcome_unknown),
            "wait": self._wait,
            "stop": tenacity.stop_after_attempt(ATTEMPTS if retry else 1),
            "reraise": True,
        }

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return pause_before_retry(state.attempt_number, error, self._rng) if isinstance(error, RunaError) else 0.0

    def _no_answer(self, request: _HttpRequest, error: httpx.HTTPError | httpx.InvalidURL) -> RunaConnectionError:
        # Not chained: httpx's exceptions contain the request, and with it the API key and the recipients.
        reason = type(error).__name__
        if not isinstance(error, _NOT_CONNECTED):
            return RunaConnectionError(f"{_name(request)}: no usable answer ({reason})")
        # No request was sent yet, so the text contains none of it, but the cause.
        cause = f": {redact(str(error))}" if str(error) else ""
        return RunaUnreachableError(f"{_name(request)}: no connection ({reason}{cause})", _address(self._base_url))


class RunaClient(_ClientBase):
    """A client of Runa's API for synchronous code.

    It is safe to share between threads. Close it, or use it as a context manager.

    :param api_key: the API key.
    :param base_url: base URL, e.g. ``https://playground.runa.io/v2``.
    :param api_version: dated version of the API; always sent, because otherwise Runa would use the account's default.
        Default: ``2024-02-05``.
    :param timeout: how long one request may take, in seconds. Default: 30.
    :param orders_per_minute: how many order requests may be sent in any 60 seconds. Default: 300.
    :param monotonic: the clock for that limit, in seconds.
    :param rng: randomness of the pauses between two attempts.
    :param transport: replaces the network in tests.
    :param sleep: function that waits, in seconds.
    """

    def __init__(
        self,
        api_key: str,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        **settings: Any,
    ) -> None:
        super().__init__(api_key, **settings)
        self._http = httpx.Client(**self._http_options(transport))
        self._sleep = sleep

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, request: _HttpRequest, *, retry: bool = True) -> Any:
        return tenacity.Retrying(sleep=self._sleep, **self._retrying(retry))(self._once, request)

    def _once(self, request: _HttpRequest) -> Any:
        if request.waits and (pause := self._rate_limiter.reserve()) > 0:
            self._sleep(pause)
        try:
            outcome = _outcome(
                request,
                self._http.request(request.method, request.path, **request.arguments()),
                self._api_key,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            outcome = self._no_answer(request, error)
        except BaseException as error:
            raise _without_frames(error)  # noqa: B904 - it is the same exception
        if isinstance(outcome, RunaError):
            raise outcome
        return outcome

    def ping(self, *, retry: bool = True) -> None:
        """Check that Runa answers and accepts the API key (``GET /ping``).

        :param retry: retry while there is no usable answer, up to 5 requests in total. ``False``: send one request.
        """
        self._send(_get("/ping"), retry=retry)

    def create_order(
        self,
        order: NewOrder,
        *,
        idempotency_key: str,
        execution_mode: str = "async",
        retry: bool = True,
        waits: bool = True,
    ) -> Order:
        """Send an order (``POST /order``).

        :param order: the order.
        :param idempotency_key: Runa gives the same answer to the same key and body for 30 days; then it pays again.
        :param execution_mode: ``"async"`` or ``"sync"`` (exactly one item).
        :param retry: send it again while the outcome is unknown, up to 5 requests in total. ``False``: send one
            request, for a caller with its own schedule.
        :param waits: wait for the account's rate limit first. ``False``: the caller has waited, see
            ``reserve_turn``.
        :returns: the order, with all fields in sync mode, otherwise with its id and status only.
        :raises InvalidOrderError: if the mode does not fit the order.
        :raises RunaError: if Runa rejects it, or if the outcome is still unknown at the end (see
            ``is_outcome_unknown``).
        """
        request = _post_order(order, idempotency_key, execution_mode, waits=waits)
        return _parse_model(Order, request, self._send(request, retry=retry))

    def get_order(self, order_id: str) -> Order:
        """Fetch an order (``GET /order/{id}``).

        :param order_id: id of the order.
        :raises RunaNotFoundError: if the account has no such order.
        """
        request = _get(f"/order/{quote(order_id, safe='')}")
        return _parse_model(Order, request, self._send(request))

    def list_orders(self) -> Iterator[Order]:
        """Iterate over all orders of the account, page by page (``GET /order``)."""
        pages, more = _Pages(), True
        while more:
            request = _get("/order", ("limit", str(PAGE_SIZE)), ("after", pages.after))
            page = _parse_model(OrderPage, request, self._send(request))
            yield from page.items
            more = pages.advance(request, page)

    def estimate_order(self, request: EstimateRequest) -> Estimate:
        """Estimate the cost of an order (``POST /order/estimate``).

        :param request: the payment method and the items.
        """
        post = _post_estimate(request)
        return _parse_model(Estimate, post, self._send(post))

    def get_balance(self, currency: str) -> Balance:
        """Fetch the balance of one currency (``GET /balance?currency=``).

        :param currency: ISO 4217 code.
        """
        request = _get("/balance", ("currency", currency))
        return _parse_model(Balance, request, self._send(request))

    def get_balances(self) -> list[Balance]:
        """Fetch the balances of all currencies with a balance above zero (``GET /balance``)."""
        request = _get("/balance")
        return _balances(request, self._send(request))

    def list_products(
        self, *, is_orderable: bool | None = None, countries: Sequence[str] = (), categories: Sequence[str] = ()
    ) -> Iterator[Product]:
        """Iterate over the catalogue, page by page (``GET /product``).

        :param is_orderable: ``True`` for only the products that can be ordered. Default: all.
        :param countries: only the products redeemable in one of these countries (ISO 3166 alpha-2). Default: all.
        :param categories: only the products in one of these categories. Default: all.
        """
        pages, more = _Pages(), True
        while more:
            request = _list_products(is_orderable, countries, categories, pages.after)
            page = _parse_model(ProductPage, request, self._send(request))
            yield from page.catalog
            more = pages.advance(request, page)

    def get_product(self, code: str) -> Product:
        """Fetch a product (``GET /product/{code}``).

        :param code: code of the product.
        """
        request = _get(f"/product/{quote(code, safe='')}")
        return _parse_model(Product, request, self._send(request))

    def list_countries(self) -> list[str]:
        """Fetch the countries that have products (``GET /product/countries``)."""
        request = _get("/product/countries")
        return _names(request, self._send(request), "countries")

    def list_categories(self) -> list[str]:
        """Fetch the codes of all categories (``GET /product/categories``)."""
        request = _get("/product/categories")
        return _names(request, self._send(request), "categories", "code")


class AsyncRunaClient(_ClientBase):
    """A client of Runa's API for asynchronous code, with the same methods as :class:`RunaClient`.

    Close it, or use it as an asynchronous context manager.

    :param api_key: the API key.
    :param base_url: base URL, e.g. ``https://playground.runa.io/v2``.
    :param api_version: dated version of the API; always sent, because otherwise Runa would use the account's default.
        Default: ``2024-02-05``.
    :param timeout: how long one request may take, in seconds. Default: 30.
    :param orders_per_minute: how many order requests may be sent in any 60 seconds. Default: 300.
    :param monotonic: the clock for that limit, in seconds.
    :param rng: randomness of the pauses between two attempts.
    :param transport: replaces the network in tests.
    :param sleep: function that waits, in seconds.
    """

    def __init__(
        self,
        api_key: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **settings: Any,
    ) -> None:
        super().__init__(api_key, **settings)
        self._http = httpx.AsyncClient(**self._http_options(transport))
        self._sleep = sleep

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(self, request: _HttpRequest, *, retry: bool = True) -> Any:
        return await tenacity.AsyncRetrying(sleep=self._sleep, **self._retrying(retry))(self._once, request)

    async def _once(self, request: _HttpRequest) -> Any:
        if request.waits and (pause := self._rate_limiter.reserve()) > 0:
            await self._sleep(pause)
        try:
            outcome = _outcome(
                request,
                await self._http.request(request.method, request.path, **request.arguments()),
                self._api_key,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            outcome = self._no_answer(request, error)
        except BaseException as error:
            raise _without_frames(error)  # noqa: B904 - it is the same exception
        if isinstance(outcome, RunaError):
            raise outcome
        return outcome

    async def ping(self, *, retry: bool = True) -> None:
        """Do what :meth:`RunaClient.ping` does."""
        await self._send(_get("/ping"), retry=retry)

    async def create_order(
        self,
        order: NewOrder,
        *,
        idempotency_key: str,
        execution_mode: str = "async",
        retry: bool = True,
        waits: bool = True,
    ) -> Order:
        """Do what :meth:`RunaClient.create_order` does."""
        request = _post_order(order, idempotency_key, execution_mode, waits=waits)
        return _parse_model(Order, request, await self._send(request, retry=retry))

    async def get_order(self, order_id: str) -> Order:
        """Do what :meth:`RunaClient.get_order` does."""
        request = _get(f"/order/{quote(order_id, safe='')}")
        return _parse_model(Order, request, await self._send(request))

    async def list_orders(self) -> AsyncGenerator[Order, None]:
        """Do what :meth:`RunaClient.list_orders` does."""
        pages, more = _Pages(), True
        while more:
            request = _get("/order", ("limit", str(PAGE_SIZE)), ("after", pages.after))
            page = _parse_model(OrderPage, request, await self._send(request))
            for order in page.items:
                yield order
            more = pages.advance(request, page)

    async def estimate_order(self, request: EstimateRequest) -> Estimate:
        """Do what :meth:`RunaClient.estimate_order` does."""
        post = _post_estimate(request)
        return _parse_model(Estimate, post, await self._send(post))

    async def get_balance(self, currency: str) -> Balance:
        """Do what :meth:`RunaClient.get_balance` does."""
        request = _get("/balance", ("currency", currency))
        return _parse_model(Balance, request, await self._send(request))

    async def get_balances(self) -> list[Balance]:
        """Do what :meth:`RunaClient.get_balances` does."""
        request = _get("/balance")
        return _balances(request, await self._send(request))

    async def list_products(
        self, *, is_orderable: bool | None = None, countries: Sequence[str] = (), categories: Sequence[str] = ()
    ) -> AsyncIterator[Product]:
        """Do what :meth:`RunaClient.list_products` does."""
        pages, more = _Pages(), True
        while more:
            request = _list_products(is_orderable, countries, categories, pages.after)
            page = _parse_model(ProductPage, request, await self._send(request))
            for product in page.catalog:
                yield product
            more = pages.advance(request, page)

    async def get_product(self, code: str) -> Product:
        """Do what :meth:`RunaClient.get_product` does."""
        request = _get(f"/product/{quote(code, safe='')}")
        return _parse_model(Product, request, await self._send(request))

    async def list_countries(self) -> list[str]:
        """Do what :meth:`RunaClient.list_countries` does."""
        request = _get("/product/countries")
        return _names(request, await self._send(request), "countries")

    async def list_categories(self) -> list[str]:
        """Do what :meth:`RunaClient.list_categories` does."""
        request = _get("/product/categories")
        return _names(request, await self._send(request), "categories", "code")
