"""The errors of a request to Runa: one tree of exceptions, chosen by HTTP status and ``type``, never by text.

No exception of this tree contains an API key, a recipient or a payout link. Runa's texts may repeat what was sent, so
they pass through :func:`redact` before they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_TEXT = 300
_SECRET_LOOKING = re.compile(r"[^\s\"'<>,;]+@[^\s\"'<>,;]+|[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without e-mail addresses, links and the given secrets, on one line of at most 300 characters.

    :param text: the text, such as a message of Runa's.
    :param secrets: what else to remove, e.g. the API key and the recipients of the order.
    """
    for secret in sorted((secret for secret in secrets if secret), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = " ".join(_SECRET_LOOKING.sub("***", text).split())
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


class RunaError(Exception):
    """Base class of all errors of this provider."""


class RunaConfigurationError(RunaError, ValueError):
    """The connection to Runa cannot be used, and nothing was sent. The message is one line that says what to change."""


class InvalidOrderError(RunaError, ValueError):
    """The order is invalid, and nothing was sent. The message is one line with the field and the index of the item."""


class RunaConnectionError(RunaError):
    """No usable answer arrived, so it is unknown what Runa did with the request."""


class RunaUnreachableError(RunaConnectionError):
    """No connection to Runa could be opened, so this request was not sent.

    :param text: the message.
    :param address: host and port that the connection was for.
    """

    def __init__(self, text: str, address: str) -> None:
        super().__init__(text)
        self.address = address

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (str(self), self.address)


class UnreadableOrdersError(RunaError):
    """The status of some orders could not be read.

    :param statuses: order id -> status, for the orders that could be read.
    :param errors: order id -> error, for the orders that could not.
    """

    def __init__(self, statuses: Mapping[str, str], errors: Mapping[str, Exception]) -> None:
        super().__init__(statuses, errors)
        self.statuses = dict(statuses)
        self.errors = dict(errors)

    def __str__(self) -> str:
        order_id, error = next(iter(self.errors.items()))
        more = f"; and {len(self.errors) - 1} more" if len(self.errors) > 1 else ""
        return f"{order_id}: {error}{more}"


@dataclass(frozen=True)
class ErrorDetail:
    """One error of Runa's validation.

    :param type: Runa's type of the error.
    :param message: Runa's text.
    :param location: path in the body, e.g. ``("items", "0", "face_value")``.
    """

    type: str
    message: str
    location: tuple[str, ...] = ()


class RunaApiError(RunaError):
    """Runa answered with an error.

    :param status: HTTP status.
    :param type: Runa's type of the error; ``None`` if the body does not have the form of Runa's errors.
    :param message: Runa's text.
    :param help: what Runa suggests.
    :param details: the errors of the validation.
    """

    def __init__(
        self,
        status: int,
        type: str | None = None,
        message: str = "",
        help: str | None = None,
        details: tuple[ErrorDetail, ...] = (),
    ) -> None:
        self.status = status
        self.type = type
        self.message = message
        self.help = help
        self.details = details
        found = "; ".join(f"{'.'.join(detail.location)}: {detail.message}" for detail in details[:5])
        more = f"; and {len(details) - 5} more" if len(details) > 5 else ""
        text = f"{status} {type}" if type else str(status)
        text += f": {message}" if message else ""
        super().__init__(text + (f" ({found}{more})" if found else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self.status, self.type, self.message, self.help, self.details)


class RunaRateLimitError(RunaApiError):
    """429: too many requests. It does not show whether an earlier request under the same key placed an order."""


class RunaServerError(RunaApiError):
    """5xx, or a gateway's 408 or 425: the outcome is unknown. With a ``type``, the answer is Runa's."""


class RunaRequestError(RunaApiError):
    """4xx: this request paid nobody."""


class RunaBadRequestError(RunaRequestError):
    """400: this request paid nobody."""


class RunaIdempotencyInProgressError(RunaBadRequestError):
    """A request with the same key is still running; its outcome is unknown."""


class RunaIdempotencyMismatchError(RunaBadRequestError):
    """The key was used for another body. This request paid nobody; the other one may have."""


class RunaInsufficientFundsError(RunaBadRequestError):
    """The balance does not cover the order. This request paid nobody; a top-up fixes it."""


class RunaPaymentMethodUnavailableError(RunaBadRequestError):
    """The payment method cannot be used now. This request paid nobody; a later one may be accepted."""


class RunaProductValidationError(RunaBadRequestError):
    """A product cannot be ordered, or not in this way. This request paid nobody."""


class RunaCurrencyMismatchError(RunaBadRequestError):
    """The currency of the payment is not the currency of the product. This request paid nobody."""


class RunaInvalidExecutionModeError(RunaBadRequestError):
    """The execution mode does not fit the order. This request paid nobody."""


class RunaInvalidVersionError(RunaBadRequestError):
    """The API version is unknown. This request paid nobody."""


class RunaInsecureProtocolError(RunaBadRequestError):
    """The request did not use HTTPS. This request paid nobody."""


class RunaPaginationError(RunaBadRequestError):
    """The cursor or the limit of a list request is wrong. Such requests only read."""


class RunaAuthenticationError(RunaRequestError):
    """401: the API key is wrong or belongs to the other environment. This request paid nobody."""


class RunaForbiddenError(RunaRequestError):
    """403: the account may not do this. This request paid nobody."""


class RunaOrderingRestrictedError(RunaForbiddenError):
    """The account may not order now. This request paid nobody; lifting the restriction fixes it."""


class RunaNotFoundError(RunaRequestError):
    """404: this account does not have the resource. This does not prove that nobody was paid."""


class RunaVersionRemovedError(RunaRequestError):
    """410: the API version was removed. This request paid nobody."""


class RunaValidationError(RunaRequestError):
    """422: the body is invalid; ``details`` says where. This request paid nobody."""


_BY_TYPE: dict[str, type[RunaApiError]] = {
    "idempotency_in_progress": RunaIdempotencyInProgressError,
    "idempotency_validation_error": RunaIdempotencyMismatchError,
    "insufficient_funds": RunaInsufficientFundsError,
    "payment_method_unavailable": RunaPaymentMethodUnavailableError,
    "product_validation_error": RunaProductValidationError,
    "currency_mismatch": RunaCurrencyMismatchError,
    "invalid_execution_mode": RunaInvalidExecutionModeError,
    "invalid_version": RunaInvalidVersionError,
    "insecure_protocol": RunaInsecureProtocolError,
    "pagination_error": RunaPaginationError,
    "ordering_restricted": RunaOrderingRestrictedError,
}

# The form of Runa's types. Runa's errors have a type and a message; a gateway's problem+json has a "title", and a type
# of another form, such as "about:blank".
_TYPE = re.compile("[a-z][a-z_-]*")

# Answers of a gateway that, like a 5xx, do not show what happened to the order: a timeout, or a rejected early request.
_LIKE_A_SERVER_ERROR = frozenset({408, 425})

_BY_STATUS: dict[int, type[RunaApiError]] = {
    400: RunaBadRequestError,
    401: RunaAuthenticationError,
    403: RunaForbiddenError,
    404: RunaNotFoundError,
    410: RunaVersionRemovedError,
    422: RunaValidationError,
    429: RunaRateLimitError,
}


def parse_error(status: int, body: Any, secrets: Iterable[str] = ()) -> RunaApiError:
    """Return the exception for an answer.

    :param status: HTTP status, not 2xx.
    :param body: the parsed body; ``None`` if it is empty or not JSON.
    :param secrets: texts that the exception must not contain.
    """
    secrets = tuple(secrets)
    fields = body if isinstance(body, dict) else {}

    def text(name: str) -> str | None:
        value = fields.get(name)
        return redact(value, secrets) if isinstance(value, str) else None

    kind = text("type")
    if not text("message") or not _TYPE.fullmatch(kind or ""):
        kind = None
    details = tuple(
        ErrorDetail(
            redact(str(detail.get("type", "")), secrets),
            redact(str(detail.get("message", "")), secrets),
            tuple(redact(str(step), secrets) for step in detail.get("location") or ()),
        )
        for detail in fields.get("details") or ()
        if isinstance(detail, dict)
    )
    if status >= 500 or (kind is None and status in _LIKE_A_SERVER_ERROR):
        chosen: type[RunaApiError] = RunaServerError
    elif status == 429:
        chosen = RunaRateLimitError
    elif kind in _BY_TYPE:
        chosen = _BY_TYPE[kind]
    else:
        chosen = _BY_STATUS.get(status, RunaRequestError if 400 <= status < 500 else RunaApiError)
    return chosen(status, kind, text("message") or text("error") or "", text("help"), details)
