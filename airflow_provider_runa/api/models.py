"""Runa's requests and answers (API version 2024-02-05) as pydantic models.

Requests are strict: unknown fields, exceeded limits and invalid amounts are rejected before anything is sent. Answers
are lenient, because Runa may add fields and values at any time. Money is ``Decimal``, payout links are ``SecretStr``,
and a ``repr`` does not show recipients, descriptions and metadata, which the caller may fill with anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from numbers import Integral
from typing import Annotated, Any, Literal, TypeVar

from email_validator import EmailNotValidError, validate_email
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from airflow_provider_runa.api.errors import InvalidOrderError, redact

MAX_ITEMS = 200
MAX_ESTIMATE_ITEMS = 500
MAX_TEMPLATES = 10
MAX_DESCRIPTION = 128
MAX_METADATA_PAIRS = 20

# -- requests ---------------------------------------------------------------------------------------------------------


# One way to write an amount as text. ``1_000``, ``1.000``, ``1,00`` and full-width digits mean different amounts in
# different places, and Python's Decimal reads some of them.
_AMOUNT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def _amount(value: Any) -> Any:
    """Return a number or text as an amount. A float is read by its shortest text: 0.1 is 0.10."""
    if isinstance(value, str):
        return _check_range(_read_amount(value.strip()))
    if isinstance(value, bool) or not isinstance(value, Decimal | Integral | float):
        raise ValueError("must be an amount")  # noqa: TRY004 - pydantic collects ValueErrors
    # int(): a whole number may be of another library. str() is not for those of more than 4,300 digits.
    amount = Decimal(int(value)) if isinstance(value, Integral) else Decimal(str(value))
    if not amount.is_finite():
        raise ValueError("must be an amount")
    return _check_range(amount)


def _read_amount(text: str) -> Decimal:
    if "," in text:
        raise ValueError("must be written without commas, such as 1234.50")
    if not _AMOUNT.fullmatch(text):
        raise ValueError("must be an amount, such as 12.50")
    if len(text.partition(".")[2]) > 2:  # 1.000 is a thousand to some
        raise ValueError("must have at most 2 decimals")
    return Decimal(text)


def _check_range(amount: Decimal) -> Decimal:
    # Comparisons are exact. abs() is not: it fails for a number with too large an exponent.
    if not -(10**12) < amount < 10**12 or amount != amount.quantize(Decimal("0.01")):
        raise ValueError("must have at most 2 decimals and 12 digits before them")
    if amount < Decimal("0.01"):
        raise ValueError("must be at least 0.01")
    return amount


# The part before the @ of most addresses. It has nothing that needs to be checked.
_PLAIN_LOCAL = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


def _email(value: str) -> str:
    """Return an address without white space around it. The rest is sent as it was written."""
    address = value.strip()
    if not _is_address(address):
        raise ValueError("must be an e-mail address of a public domain")
    return address


def _is_address(address: str) -> bool:
    # The library takes 50 µs, nearly all of it for the domain, of which most lists have few.
    local, _, domain = address.rpartition("@")
    if len(local) <= 64 and len(address) <= 254 and domain.isascii() and _PLAIN_LOCAL.fullmatch(local):
        return _is_valid_for_domain(f"a@{domain}")
    return _is_valid(address)


def _is_valid(address: str) -> bool:
    try:
        # Whether the domain exists is not asked: that would be a request to its name server.
        validate_email(address, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


_is_valid_for_domain = lru_cache(maxsize=4096)(_is_valid)


def _currency(value: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise ValueError("must be three capital letters, such as USD")
    return value


FaceValue = Annotated[Decimal, BeforeValidator(_amount)]
Currency = Annotated[str, AfterValidator(_currency)]
Code = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class _RequestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


class EmailDistribution(_RequestModel):
    """Runa sends the payout link to the recipient by e-mail.

    :param email_address: the recipient's address. White space around it is removed.
    :param template_id: redemption template (``DT-…``), the look of the page behind the link.
    """

    type: Literal["EMAIL"] = "EMAIL"
    email_address: str = Field(repr=False)
    template_id: Code | None = None

    _check = field_validator("email_address")(_email)


class LinkDistribution(_RequestModel):
    """Runa returns the payout link, and the account sends it to the recipient.

    :param template_id: redemption template (``DT-…``), the look of the page behind the link.
    """

    type: Literal["PAYOUT_LINK"] = "PAYOUT_LINK"
    template_id: Code | None = None


class RecipientDistribution(_RequestModel):
    """Runa pays a known recipient (payment products only).

    :param recipient_reference: the account's reference of the recipient: at most 255 of ``A-Za-z0-9-_@.``.
    :param email_address: the recipient's address. White space around it is removed.
    :param template_id: redemption template (``DT-…``), the look of the page behind the link.
    """

    type: Literal["RECIPIENT"] = "RECIPIENT"
    recipient_reference: str = Field(repr=False, max_length=255, pattern=r"^[A-Za-z0-9\-_@.]+$")
    email_address: str = Field(repr=False)
    template_id: Code | None = None

    _check = field_validator("email_address")(_email)


class UsageConfig(_RequestModel):
    """The rules for the use of a prepaid card.

    :param spend_rules_template_id: template of merchant rules, ``PSR-`` and 26 letters and digits.
    """

    spend_rules_template_id: str | None = Field(None, pattern=r"^PSR-[0-9A-HJKMNP-TV-Z]{26}$")


class SingleProduct(_RequestModel):
    """One product.

    :param value: code of the product, e.g. ``AMZ-US``.
    :param usage_config: rules for its use, for prepaid cards only.
    """

    type: Literal["SINGLE"] = "SINGLE"
    value: Code
    usage_config: UsageConfig | None = None


class MultipleProduct(_RequestModel):
    """Several products, between which the recipient splits the value.

    :param values: two or more codes, each once, all of one currency.
    """

    type: Literal["MULTIPLE"] = "MULTIPLE"
    values: tuple[Code, ...] = Field(min_length=2)

    @field_validator("values")
    @classmethod
    def _unique(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError("must not name a product twice")
        return values


class TemplateProduct(_RequestModel):
    """A selection of products that was set up in Runa's portal.

    :param template_id: payout selection template, ``PT-…``.
    """

    type: Literal["TEMPLATE"] = "TEMPLATE"
    template_id: Code


Distribution = Annotated[
    EmailDistribution | LinkDistribution | RecipientDistribution,
    Field(discriminator="type"),
]
Products = Annotated[SingleProduct | MultipleProduct | TemplateProduct, Field(discriminator="type")]


class PaymentMethod(_RequestModel):
    """The account balance that pays for an order.

    :param currency: ISO 4217 code, three capital letters.
    """

    type: Literal["ACCOUNT_BALANCE"] = "ACCOUNT_BALANCE"
    currency: Currency


class NewOrderItem(_RequestModel):
    """One payout.

    :param face_value: what the recipient gets, in the currency of the products: 0.01 or more, at most 2 decimals; a
        whole number unless the product is SINGLE.
    :param distribution_method: how the recipient gets it.
    :param products: what it can be spent on.
    """

    face_value: FaceValue
    distribution_method: Distribution
    products: Products

    @model_validator(mode="after")
    def _whole(self) -> NewOrderItem:
        if not isinstance(self.products, SingleProduct) and self.face_value != self.face_value.to_integral_value():
            raise ValueError("face_value: must be a whole number, because the products are not SINGLE")
        return self

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> NewOrderItem:
        """Build a payout from plain values.

        :param values: the API's fields.
        :raises InvalidOrderError: if a value is invalid; the message is one line that names the fields.
        """
        built = _build(cls, values)
        del values  # a traceback may show local variables, and values contain recipients
        return _unless_text(built)


class NewOrder(_RequestModel):
    """An order to place. Build one from plain values with :meth:`build`.

    :param payment_method: the balance that pays.
    :param items: the payouts, 1 to 200.
    :param description: text that Runa's portal shows; at most 128 characters.
    :param metadata: at most 20 pairs of strings; keys of 40, values of 200 characters at most.
    """

    payment_method: PaymentMethod
    items: tuple[NewOrderItem, ...] = Field(min_length=1, max_length=MAX_ITEMS)
    description: str | None = Field(None, max_length=MAX_DESCRIPTION, repr=False)
    metadata: (
        dict[
            Annotated[str, StringConstraints(max_length=40)],
            Annotated[str, StringConstraints(max_length=200)],
        ]
        | None
    ) = Field(None, max_length=MAX_METADATA_PAIRS, repr=False)

    @field_validator("items")
    @classmethod
    def _templates(cls, items: tuple[NewOrderItem, ...]) -> tuple[NewOrderItem, ...]:
        templates = {item.products.template_id for item in items if isinstance(item.products, TemplateProduct)}
        if len(templates) > MAX_TEMPLATES:
            raise ValueError(
                f"at most {MAX_TEMPLATES} selection templates are allowed, this order has {len(templates)}"
            )
        return items

    @classmethod
    def build(
        cls,
        *,
        currency: str,
        items: Sequence[Mapping[str, Any] | NewOrderItem],
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> NewOrder:
        """Build an order from plain values.

        :param currency: currency of the balance that pays.
        :param items: the payouts, as mappings of the API's fields or as models.
        :param description: see the class.
        :param metadata: see the class.
        :raises InvalidOrderError: if a value is invalid; the message is one line with fields and item indexes.
        """
        values = {"items": items, "description": description, "metadata": metadata}
        built = _build(cls, values | {"payment_method": {"type": "ACCOUNT_BALANCE", "currency": currency}})
        del values, items, description, metadata  # a traceback may show local variables
        return _unless_text(built)

    @property
    def total(self) -> Decimal:
        """The sum of all face values."""
        return sum((item.face_value for item in self.items), Decimal(0))

    def recipients(self) -> frozenset[str]:
        """Return every address and reference in the order, for masking."""
        methods = (item.distribution_method for item in self.items)
        return frozenset(
            value
            for method in methods
            for name in ("email_address", "recipient_reference")
            if (value := getattr(method, name, None))
        )

    def body(self) -> bytes:
        """Return the order as canonical JSON: equal orders give equal bytes. Amounts are JSON numbers."""
        return _canonical(self)


class EstimateItem(_RequestModel):
    """A payout to estimate.

    :param face_value: see :class:`NewOrderItem`.
    :param products: one product or several. Runa cannot estimate templates.
    """

    face_value: FaceValue
    products: Annotated[SingleProduct | MultipleProduct, Field(discriminator="type")]


class EstimateRequest(_RequestModel):
    """A request for the cost of an order.

    :param payment_method: the balance that would pay.
    :param items: the payouts, 1 to 500.
    """

    payment_method: PaymentMethod
    items: tuple[EstimateItem, ...] = Field(min_length=1, max_length=MAX_ESTIMATE_ITEMS)

    @classmethod
    def build(cls, *, currency: str, items: Sequence[Mapping[str, Any] | EstimateItem]) -> EstimateRequest:
        """Build a request from plain values.

        :param currency: currency of the balance that would pay.
        :param items: the payouts, as mappings of the API's fields or as models.
        :raises InvalidOrderError: if a value is invalid.
        """
        built = _build(cls, {"payment_method": {"type": "ACCOUNT_BALANCE", "currency": currency}, "items": items})
        del items
        return _unless_text(built)

    def body(self) -> bytes:
        """Return the request as canonical JSON."""
        return _canonical(self)


EXECUTION_MODES = ("async", "sync")


def check_execution_mode(order: NewOrder, execution_mode: str) -> None:
    """Check that an order can be sent in an execution mode.

    :param order: the order.
    :param execution_mode: ``"async"``, or ``"sync"`` for exactly one item.
    :raises InvalidOrderError: if the mode is unknown, or does not fit the order.
    """
    if execution_mode not in EXECUTION_MODES:
        raise InvalidOrderError(f"execution_mode: must be one of {', '.join(EXECUTION_MODES)}")
    if execution_mode == "sync" and len(order.items) != 1:
        raise InvalidOrderError(f"execution_mode: sync needs exactly one item, this order has {len(order.items)}")


M = TypeVar("M", bound=BaseModel)


def _build(model: type[M], values: Mapping[str, Any]) -> M | str:
    """Return the model, or what is wrong with the values.

    It does not raise, because the frames of its callers have the values as local variables.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        return _explain(error)


def _unless_text(built: M | str) -> M:
    if isinstance(built, str):
        raise InvalidOrderError(built)
    return built


def _explain(error: ValidationError) -> str:
    """Return pydantic's errors as one line, without the values of the caller."""
    lines = []
    findings = error.errors(include_input=False, include_url=False)
    for finding in findings:
        path = ""
        for step in finding["loc"]:
            if isinstance(step, int):
                path += f"[{step}]"
            elif step not in _UNION_TAGS:
                name = redact(str(step))  # a key of the caller's mapping, which may be any text
                path += f".{name}" if path else name
        kind, limits = finding["type"], finding.get("ctx", {})
        if kind == "too_short" and any(other["loc"][:1] == finding["loc"] != other["loc"] for other in findings):
            continue  # pydantic counts only the valid items
        message = _MESSAGES.get(kind, finding["msg"].removeprefix("Value error, ")).format(**limits)
        inner, colon, rest = message.partition(": ")
        if colon and inner == "face_value":
            path, message = f"{path}.{inner}", rest
        lines.append(f"{path.replace('payment_method.currency', 'currency')}: {message[:1].lower()}{message[1:]}")
    more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "; ".join(lines[:5]) + more


# Kind of pydantic's error -> text in terms of an order. Other kinds keep pydantic's text.
_MESSAGES = {
    "extra_forbidden": "there is no such field",
    "missing": "is missing",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "too_long": "must have at most {max_length} entries, has {actual_length}",
    "too_short": "must have at least {min_length}, has {actual_length}",
    "union_tag_invalid": "type must be one of {expected_tags}",
    "union_tag_not_found": "type is missing",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
}

# For a union with a discriminator, pydantic puts the type into the path.
_UNION_TAGS = {"EMAIL", "PAYOUT_LINK", "RECIPIENT", "SINGLE", "MULTIPLE", "TEMPLATE"}


def _canonical(model: BaseModel) -> bytes:
    values = model.model_dump(exclude_none=True)
    return json.dumps(values, default=_number, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _number(amount: Decimal) -> int | float:
    """Return an amount as a number that the JSON library can write.

    The shortest text of a float is exact for amounts of up to 15 digits, and no amount here has more.
    """
    return int(amount) if amount == amount.to_integral_value() else float(amount)


# -- answers ----------------------------------------------------------------------------------------------------------


class _ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, defer_build=True)


#: A time in an answer; UTC if it has no zone, because the API's reference says that all times are UTC.
Moment = Annotated[datetime, AfterValidator(lambda value: value if value.tzinfo else value.replace(tzinfo=UTC))]


class OrderStatus(StrEnum):
    """The status of an order. Runa may add others, which are kept as plain text."""

    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"

    @classmethod
    def is_final(cls, status: str) -> bool:
        """Return whether an order with this status never changes again: COMPLETED or FAILED.

        :param status: the status, as text. A status that Runa adds later is not final.
        """
        return status in (cls.COMPLETED, cls.FAILED)


class PlacedDistribution(_ResponseModel):
    """How a recipient gets a payout, in an answer; any type."""

    type: str
    email_address: str | None = Field(None, repr=False)
    recipient_reference: str | None = Field(None, repr=False)
    template_id: str | None = None


class PlacedProducts(_ResponseModel):
    """What a payout can be spent on, in an answer: SINGLE, MULTIPLE, TEMPLATE, UNKNOWN or a type that Runa adds.

    :param value: code of the product (SINGLE).
    :param values: codes of the products (MULTIPLE, and TEMPLATE once they are known).
    :param template_id: payout selection template (TEMPLATE).
    """

    type: str = "UNKNOWN"
    value: str | None = None
    values: tuple[str, ...] | None = None
    template_id: str | None = None
    usage_config: PlacedUsageConfig | None = None


class PlacedUsageConfig(_ResponseModel):
    """The rules for the use of a prepaid card, in an answer."""

    spend_rules_template_id: str | None = None


class Payout(_ResponseModel):
    """A payout link. The link is cash: anyone who has it can spend it.

    :param status: ACTIVE, CLAIMED, CANCELLED, EXPIRED, or one that Runa adds.
    :param url: the link.
    :param status_updated_at: time of the last change of the status.
    :param expiry_date: when the link expires; ``None`` if it never does.
    """

    status: str | None = None
    url: SecretStr | None = None
    status_updated_at: datetime | None = None
    expiry_date: datetime | None = None


class OrderItem(_ResponseModel):
    """One payout of an order that is final."""

    id: str
    distribution_method: PlacedDistribution
    products: PlacedProducts
    face_value: Decimal
    price: Decimal | None = None
    currency: str | None = None
    payout: Payout | None = None


class Fee(_ResponseModel):
    """The fee of a currency conversion."""

    value: Decimal
    currency: str


class ForeignExchange(_ResponseModel):
    """A currency conversion.

    :param rate: rate between the payout's currency and the payment's.
    :param rate_symbol: the pair, e.g. ``GBPUSD``.
    :param fee: the fee for it.
    """

    rate: Decimal
    rate_symbol: str
    fee: Fee


class TransactionDetail(_ResponseModel):
    """The part of an order in one currency.

    :param value: the total.
    :param fx: the conversion; ``None`` if it is the currency of the payment.
    """

    value: Decimal
    fx: ForeignExchange | None = None


class PlacedPaymentMethod(_ResponseModel):
    """The balance that paid."""

    type: str
    currency: str | None = None


class Order(_ResponseModel):
    """An order, with the fields that an answer contains.

    While an order is PROCESSING, it has only ``id``, ``status`` and ``message``. Rows of the order list have neither
    ``items`` nor ``metadata``.
    """

    id: str
    status: str
    message: str | None = None
    created_at: Moment | None = None
    completed_at: Moment | None = None
    description: str | None = Field(None, repr=False)
    payment_method: PlacedPaymentMethod | None = None
    currency: str | None = None
    total_price: Decimal | None = None
    total_discount: Decimal | None = None
    items: tuple[OrderItem, ...] | None = None
    transaction_detail: dict[str, TransactionDetail] | None = None
    metadata: dict[str, str] | None = Field(None, repr=False)


class EstimatedItem(_ResponseModel):
    """The cost of one payout."""

    products: PlacedProducts
    face_value: Decimal
    price: Decimal
    discount_multiplier: Decimal | None = None
    currency: str | None = None


class Estimate(_ResponseModel):
    """The cost of an order."""

    payment_method: PlacedPaymentMethod
    items: tuple[EstimatedItem, ...]
    currency: str
    total_price: Decimal
    total_discount: Decimal
    transaction_detail: dict[str, TransactionDetail] | None = None


class Balance(_ResponseModel):
    """The balance of one currency."""

    currency: str
    balance: Decimal


class Denominations(_ResponseModel):
    """The face values of a product.

    :param type: ``open`` (anything between minimum and maximum) or ``fixed`` (those in the list).
    """

    type: str | None = None
    minimum_value: Decimal | None = None
    maximum_value: Decimal | None = None
    available_list: tuple[Decimal, ...] | None = None


class PayoutType(_ResponseModel):
    """The details of a product that depend on its payout type."""

    denominations: Denominations | None = None
    subscription_plans: tuple[SubscriptionPlan, ...] | None = None


class SubscriptionPlan(_ResponseModel):
    """A plan of a subscription. Its code is ordered instead of the product's."""

    subscription_plan_code: str | None = None
    name: str | None = None
    length: int | None = None
    length_unit: str | None = None
    price: Decimal | None = None


class Product(_ResponseModel):
    """A product of the catalogue.

    :param payout_type: ``gift_card``, ``subscription``, ``payment`` or one that Runa adds; the field of that name has
        the details.
    :param discount_multiplier: 0.10 is a discount of 10 %.
    """

    code: str
    name: str
    currency: str
    state: str
    is_orderable: bool
    payout_type: str
    categories: tuple[str, ...] = ()
    countries_redeemable_in: tuple[str, ...] = ()
    discount_multiplier: Decimal | None = None
    availability: str | None = None
    gift_card: PayoutType | None = None
    subscription: PayoutType | None = None
    payment: PayoutType | None = None


class Cursors(_ResponseModel):
    """Where the next and the previous page begin."""

    after: str | None = None
    before: str | None = None


class Pagination(_ResponseModel):
    """The cursors of a page."""

    cursors: Cursors


class OrderPage(_ResponseModel):
    """A page of the order list. Both fields are required: an answer without them must not count as an empty list."""

    items: tuple[Order, ...]
    pagination: Pagination


class ProductPage(_ResponseModel):
    """A page of the catalogue. Both fields are required, as those of :class:`OrderPage`."""

    catalog: tuple[Product, ...]
    pagination: Pagination
