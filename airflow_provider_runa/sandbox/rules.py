"""What the sandbox refuses: the form of a body, as the vendor's contract has it, and what the catalogue does not sell.

The form is strict. What the contract does not name is refused, and so is a JSON that parsers read differently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, NoReturn

from email_validator import EmailNotValidError, validate_email

from airflow_provider_runa.sandbox import catalogue
from airflow_provider_runa.sandbox.answers import Refusal

MOST_ITEMS = 200
MOST_ESTIMATED = 500
MOST_TEMPLATES = 10

_ULID = r"[0-9A-HJKMNP-TV-Z]{26}"

#: Type of a distribution method -> fields it needs, and fields it may have besides.
_METHODS = {
    "EMAIL": (("email_address",), ("template_id",)),
    "PAYOUT_LINK": ((), ("template_id",)),
    "RECIPIENT": (("recipient_reference", "email_address"), ("template_id",)),
}

#: The same for products. An estimate knows neither templates nor the use of a card.
_PRODUCTS = {
    "SINGLE": (("value",), ("usage_config",)),
    "MULTIPLE": (("values",), ()),
    "TEMPLATE": (("template_id",), ()),
}
_ESTIMATED_PRODUCTS = {"SINGLE": (("value",), ()), "MULTIPLE": (("values",), ())}

_Forms = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


# -- the form of a body ------------------------------------------------------------------------------------------------


def parse(headers: Mapping[str, str], body: bytes) -> Any:
    """Parse a body, with numbers as ``Decimal``.

    :param headers: headers of the request, names in lower case.
    :param body: the body.
    :raises Refusal: 400 if it is not JSON in UTF-8, or not said to be JSON.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(400, "bad_request", "The Content-Type is application/json.")
    try:
        return json.loads(
            body.decode(), parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_unique_names
        )
    except (ValueError, RecursionError):
        raise Refusal(400, "bad_request", "The body is not JSON.") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def check_order(order: Any) -> None:
    """Check the form of an order.

    :param order: the parsed body.
    :raises Refusal: 422 with all findings.
    """
    form = _Form()
    fields = form.fields(order, needs=("payment_method", "items"), knows=("description", "metadata"))
    form.payment(fields)
    if fields.get("description") is not None:
        form.text(fields["description"], "description", longest=128)
    form.metadata(fields.get("metadata"))
    for index, item in enumerate(form.items(fields, most=MOST_ITEMS)):
        form.item(item, "items", index)
    form.finish()


def check_estimate(request: Any) -> None:
    """Check the form of a request for an estimate.

    :param request: the parsed body.
    :raises Refusal: 422 with all findings.
    """
    form = _Form()
    fields = form.fields(request, needs=("payment_method", "items"))
    form.payment(fields)
    for index, item in enumerate(form.items(fields, most=MOST_ESTIMATED)):
        here = ("items", index)
        item = form.fields(item, *here, needs=("face_value", "products"))
        form.face_value(item, form.products(item, _ESTIMATED_PRODUCTS, *here), *here)
    form.finish()


class _Form:
    """Checks of a body's form, and what they found."""

    def __init__(self) -> None:
        self.findings: list[dict[str, Any]] = []

    def finish(self) -> None:
        """Raise the refusal if anything was found."""
        if self.findings:
            raise Refusal(422, "validation_error", "The request is not valid, see details.", details=self.findings)

    def wrong(self, message: str, *where: object, kind: str = "value_error") -> None:
        self.findings.append({"type": kind, "message": message, "location": [str(step) for step in where]})

    def fields(
        self, value: Any, *where: object, needs: Sequence[str] = (), knows: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return an object's fields, without those that it must not have."""
        if not isinstance(value, dict):
            self.wrong("must be an object", *where, kind="type_error.dict")
            return {}
        for name in needs:
            if name not in value:
                self.wrong("field required", *where, name, kind="value_error.missing")
        for name in value:
            if name not in needs and name not in knows:
                self.wrong("extra fields not permitted", *where, name, kind="value_error.extra")
        return {name: content for name, content in value.items() if name in needs or name in knows}

    def typed(self, value: Any, forms: _Forms, *where: object) -> dict[str, Any]:
        """Return the fields of an object whose ``type`` decides which it has."""
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(value, dict) and not (isinstance(kind, str) and kind in forms):
            self.wrong(f"must be one of {', '.join(forms)}", *where, "type")
            return {}
        needs, knows = forms.get(kind or "", ((), ()))
        return self.fields(value, *where, needs=("type", *needs), knows=knows)

    def text(self, value: Any, *where: object, pattern: str = r".*", shortest: int = 0, longest: int = 10**6) -> bool:
        """Return whether a value is text of a form."""
        if not isinstance(value, str):
            self.wrong("must be text", *where, kind="type_error.str")
        elif not shortest <= len(value) <= longest:
            self.wrong(f"must have {shortest} to {longest} characters", *where)
        elif not re.fullmatch(pattern, value, re.DOTALL) or re.search("[\ud800-\udfff]", value):
            self.wrong("must have the right form", *where)
        else:
            return True
        return False

    def payment(self, fields: Mapping[str, Any]) -> None:
        if "payment_method" in fields:
            here = "payment_method"
            method = self.typed(fields[here], {"ACCOUNT_BALANCE": (("currency",), ())}, here)
            if "currency" in method:
                self.text(method["currency"], here, "currency", pattern=r"[A-Z]{3}")

    def metadata(self, metadata: Any) -> None:
        if metadata is None:
            return
        if not isinstance(metadata, dict):
            self.wrong("must be an object", "metadata", kind="type_error.dict")
            return
        if len(metadata) > 20:
            self.wrong("must have at most 20 pairs", "metadata")
        for name, value in metadata.items():
            self.text(name, "metadata", name, longest=40)
            self.text(value, "metadata", name, longest=200)

    def items(self, fields: Mapping[str, Any], *, most: int) -> list[Any]:
        items = fields.get("items")
        if isinstance(items, list) and 1 <= len(items) <= most:
            templates = {str(item["products"].get("template_id")) for item in items if _has_template(item)}
            if len(templates) > MOST_TEMPLATES:
                self.wrong(f"must have at most {MOST_TEMPLATES} selection templates", "items")
            return items
        if "items" in fields:
            self.wrong(f"must be a list of 1 to {most}", "items")
        return []

    def item(self, item: Any, *here: object) -> None:
        item = self.fields(item, *here, needs=("face_value", "distribution_method", "products"))
        self.face_value(item, self.products(item, _PRODUCTS, *here), *here)
        if "distribution_method" in item:
            self.method(item["distribution_method"], *here, "distribution_method")

    def face_value(self, item: Mapping[str, Any], kind: str | None, *here: object) -> None:
        if "face_value" not in item:
            return
        amount = item["face_value"]
        if isinstance(amount, bool) or not isinstance(amount, int | Decimal):
            self.wrong("must be a number", *here, "face_value", kind="type_error.number")
        elif amount < Decimal("0.01"):
            self.wrong("must be 0.01 or more", *here, "face_value", kind="value_error.number.not_ge")
        elif amount >= 10**12 or amount != round(Decimal(amount), 2):
            self.wrong("must have at most 12 digits and 2 decimals", *here, "face_value")
        elif kind in ("MULTIPLE", "TEMPLATE") and amount != int(amount):
            self.wrong("must be a whole number", *here, "face_value")

    def products(self, item: Mapping[str, Any], forms: _Forms, *here: object) -> str | None:
        """Check an item's products and return their type."""
        if "products" not in item:
            return None
        here = (*here, "products")
        products = self.typed(item["products"], forms, *here)
        if "value" in products:
            self.text(products["value"], *here, "value", shortest=1)
        if "template_id" in products:
            self.text(products["template_id"], *here, "template_id")
        if "values" in products:
            values = products["values"]
            codes = values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []
            if len(codes) < 2 or len(set(codes)) < len(codes):
                self.wrong("must be two or more codes, each once", *here, "values")
        if "usage_config" in products:
            here = (*here, "usage_config")
            usage = self.fields(products["usage_config"], *here, knows=("spend_rules_template_id",))
            for name, rules in usage.items():
                self.text(rules, *here, name, pattern=f"PSR-{_ULID}")
        return products.get("type")

    def method(self, method: Any, *here: object) -> None:
        method = self.typed(method, _METHODS, *here)
        if "email_address" in method:
            here_too = (*here, "email_address")
            if self.text(method["email_address"], *here_too) and ascii_domain(method["email_address"]) is None:
                self.wrong("must be an e-mail address", *here_too, kind="value_error.email")
        if "recipient_reference" in method:
            self.text(
                method["recipient_reference"], *here, "recipient_reference", pattern=r"[A-Za-z0-9\-_@.]+", longest=255
            )
        if "template_id" in method:
            self.text(method["template_id"], *here, "template_id", pattern=f"DT-{_ULID}")


def _has_template(item: Any) -> bool:
    products = item.get("products") if isinstance(item, dict) else None
    return isinstance(products, dict) and products.get("type") == "TEMPLATE"


@lru_cache(maxsize=10_000)
def ascii_domain(address: str) -> str | None:
    """Return the domain of an e-mail address in ASCII; ``None`` if the address is none."""
    try:
        return validate_email(address, check_deliverability=False, strict=True).ascii_domain
    except EmailNotValidError:
        return None


# -- what the catalogue sells ------------------------------------------------------------------------------------------


def check_products(items: Sequence[Mapping[str, Any]]) -> str:
    """Check that items can be ordered together.

    :param items: items whose form was checked.
    :returns: their currency.
    :raises Refusal: if a product cannot be had at its face value, or they have not one country and currency.
    """
    markets = {market for item in items for market in _markets(item)}
    if len(markets) > 1:
        raise _no_product("All products of an order have one country and one currency.")
    ((currency, _),) = markets
    return currency


def _no_product(message: str) -> Refusal:
    return Refusal(400, "product_validation_error", message)


def _markets(item: Mapping[str, Any]) -> set[tuple[str, tuple[str, ...]]]:
    """Check an item's products and return their currencies and countries."""
    products, amount = item["products"], Decimal(item["face_value"])
    if products["type"] == "TEMPLATE":
        template = catalogue.TEMPLATES.get(products["template_id"])
        if template is None:
            raise _no_product("There is no such payout selection template.")
        return {_market(catalogue.PRODUCTS[template[0]])}
    single = products["type"] == "SINGLE"
    chosen = [_find(code) for code in ([products["value"]] if single else products["values"])]
    for code, product in zip([products["value"]] if single else products["values"], chosen, strict=True):
        _check_amount(code, product, amount, single=single)
    by_reference = item.get("distribution_method", {}).get("type") == "RECIPIENT"
    if by_reference and any(product["payout_type"] != "payment" for product in chosen):
        raise _no_product("RECIPIENT is for products of the type payment only.")
    return {_market(product) for product in chosen}


def _find(code: str) -> dict[str, Any]:
    product = catalogue.find(code)
    if product is None or not product["is_orderable"]:
        raise _no_product("A product does not exist or cannot be ordered.")
    return product


def _market(product: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return product["currency"], tuple(sorted(product["countries_redeemable_in"]))


def _check_amount(code: str, product: Mapping[str, Any], amount: Decimal, *, single: bool) -> None:
    """Check a face value. One that is split between several products has a minimum only."""
    if product["payout_type"] == "subscription":
        plans = product["subscription"]["subscription_plans"]
        if amount not in {Decimal(plan["price"]) for plan in plans if plan["subscription_plan_code"] == code}:
            raise _no_product("A subscription is ordered by the code of a plan, at its price.")
        return
    limits = product[product["payout_type"]]["denominations"]
    if amount < Decimal(limits["minimum_value"]):
        raise _no_product("The face value is less than the product's minimum.")
    if not single:
        return
    if amount > Decimal(limits["maximum_value"]):
        raise _no_product("The face value is more than the product's maximum.")
    fixed = limits.get("available_list")
    if fixed and amount not in {Decimal(value) for value in fixed}:
        raise _no_product("The product does not have this face value.")


def price(item: Mapping[str, Any]) -> tuple[Decimal, Decimal]:
    """Return an item's face value and what it costs."""
    amount = Decimal(item["face_value"])
    product = catalogue.find(item["products"].get("value", ""))
    discount = Decimal(product["discount_multiplier"]) if product else Decimal(0)
    return amount, (amount * (1 - discount)).quantize(Decimal("0.01"))


def kept(products: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an item's products as Runa keeps them: what is for cards only is ignored for all others."""
    product = catalogue.find(products.get("value", ""))
    if product is None or product["payout_type"] == "payment":
        return products
    return {name: value for name, value in products.items() if name != "usage_config"}
