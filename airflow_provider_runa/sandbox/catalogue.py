"""What the sandbox sells: a small catalogue with one product of each kind that behaves differently."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from airflow_provider_runa.sandbox.answers import Page, Query, Refusal, pagination, parameters

CATEGORIES = ("entertainment", "fashion", "food-and-drink", "prepaid-card", "supermarkets")

#: Payout selection templates that every playground account has, and their products. The first of them is below, the
#: others need not be: an account's templates may hold what its catalogue does not list.
TEMPLATES = {
    "PT-01HQ12PV4B8XMBRTK281JM54KK": ("AMZ-US", "AIRBNB-US", "SHOE-US"),
    "PT-01HPPT8ME05693EG77RCGKMX7N": ("TEA-GB", "PUB-GB"),
    "PT-01HQ130AHCKRRB45Z5XV2Y8W9K": ("MART-DE", "KINO-DE"),
    "PT-01HQ12SMX2964BVXG2N69K8HF3": ("MAPLE-CA", "MOOSE-CA"),
}

#: Units of a currency for one US dollar, for orders that are paid in another currency.
RATES = {"USD": Decimal("1"), "GBP": Decimal("0.8"), "EUR": Decimal("0.9"), "CAD": Decimal("1.4")}

_COUNTRIES = {"USD": "US", "GBP": "GB", "EUR": "DE", "CAD": "CA"}


def _product(
    code: str,
    name: str,
    currency: str,
    kind: str = "gift_card",
    *,
    categories: tuple[str, ...] = ("fashion",),
    fixed: tuple[str, ...] | None = None,
    minimum: str = "1.00",
    maximum: str = "500.00",
    orderable: bool = True,
    state: str = "LIVE",
    discount: str = "0.00",
) -> dict[str, Any]:
    if fixed:
        minimum, maximum = fixed[0], fixed[-1]
    denominations: dict[str, Any] = {"minimum_value": minimum, "maximum_value": maximum}
    details: dict[str, Any] = {"denominations": denominations}
    if kind == "payment":
        details["assets"] = {"icon_image_url": f"https://assets.example.com/{code}.png", "primary_color": "#112233"}
    elif kind == "gift_card":
        denominations |= {"type": "fixed" if fixed else "open", "available_list": list(fixed) if fixed else None}
        details["expiry"] = {"date_policy": None, "in_months": 24, "type": "from-issue-date"}
    else:
        details = {
            "subscription_plans": [
                {
                    "length_unit": "MONTHS",
                    "length": 3,
                    "name": "3 months",
                    "price": "30.00",
                    "subscription_plan_code": f"{code}-3M",
                }
            ]
        }
    return {
        "code": code,
        "name": name,
        "currency": currency,
        "state": state,
        "is_orderable": orderable,
        "payout_type": kind,
        "categories": list(categories),
        "countries_redeemable_in": [_COUNTRIES[currency]],
        "customer_service": {"phone_number": None, "website_url": None},
        "discount_multiplier": discount,
        "availability": "realtime",
        kind: details,
    }


PRODUCTS: dict[str, dict[str, Any]] = {
    product["code"]: product
    for product in (
        _product("AMZ-US", "Riverside Books", "USD", categories=("entertainment",)),
        _product("AIRBNB-US", "Sofa Travel", "USD", categories=("entertainment",)),
        _product("CAFE-US", "Corner Cafe", "USD", categories=("food-and-drink",), fixed=("5.00", "10.00", "25.00")),
        _product("SHOE-US", "Shoe Box", "USD", discount="0.10"),
        _product("VISA-US", "Prepaid card", "USD", "payment", categories=("prepaid-card",)),
        _product("TUNES-US", "Tunes", "USD", "subscription", categories=("entertainment",)),
        _product("GONE-US", "Closed Shop", "USD", orderable=False),
        _product("PAUSED-US", "Paused Shop", "USD", orderable=False, state="TEMPORARILY_DISABLED"),
        _product("TEA-GB", "Tea House", "GBP", categories=("food-and-drink",)),
        _product("MART-DE", "Markthalle", "EUR", categories=("supermarkets",)),
        _product("MAPLE-CA", "Maple Store", "CAD"),
    )
}


def find(code: str) -> dict[str, Any] | None:
    """Return the product that a code orders: its own, or that of one of its subscription plans."""
    if code in PRODUCTS:
        return PRODUCTS[code]
    for product in PRODUCTS.values():
        plans = product.get("subscription", {}).get("subscription_plans", ())
        if any(plan["subscription_plan_code"] == code for plan in plans):
            return product
    return None


def rate(currency: str, payment: str) -> Decimal:
    """Return what a unit of a currency costs in another."""
    return RATES[payment] / RATES[currency]


def answer(path: str, query: Query) -> dict[str, Any]:
    """Return what is answered to a request about the catalogue.

    :param path: path of the request, still quoted.
    :param query: its names and values.
    :raises Refusal: 404 if there is nothing at this path.
    """
    if path == "/product":
        return _page(query)
    if path.startswith("/product/") and (product := PRODUCTS.get(unquote(path.removeprefix("/product/")))):
        if parameters(query, "content").get("content", "url") not in ("url", "md", "html"):
            raise Refusal(400, "bad_request", "content is url, md or html.")
        return product
    parameters(query)
    if path == "/product/countries":
        return {"countries": sorted({place for one in PRODUCTS.values() for place in one["countries_redeemable_in"]})}
    if path == "/product/categories":
        return {"categories": [{"code": code} for code in CATEGORIES]}
    raise Refusal(404, "not_found", "There is no such thing.")


def _page(query: Query) -> dict[str, Any]:
    """Return a page of the products that a query asks for.

    :param query: names and values.
    """
    several = ("code", "countries_redeemable_in", "categories")
    values = parameters(query, "is_orderable", "limit", "after", "before", repeated=several)
    orderable = values.get("is_orderable", "false")
    codes, places, categories = ({value for name, value in query if name == wanted} for wanted in several)
    if orderable not in ("true", "false"):
        raise Refusal(400, "bad_request", "is_orderable is true or false.")
    if not all(re.fullmatch(r"[A-Z]{2}", country) for country in places):
        raise Refusal(400, "bad_request", "A country has two capital letters.")
    chosen = [
        product
        for product in PRODUCTS.values()
        if (product["is_orderable"] or orderable == "false")
        and (not codes or product["code"] in codes)
        and (not places or places & set(product["countries_redeemable_in"]))
        and (not categories or categories & set(product["categories"]))
    ]
    asked = Page.of(values, default=500)
    begin = asked.cursor or 0
    if asked.backwards:
        begin = max(0, begin - asked.limit)
    rows = chosen[begin : begin + asked.limit]
    before, after = (begin, begin + len(rows)) if rows else (None, None)
    return {"catalog": rows, "pagination": pagination(asked.limit, before=before, after=after)}
