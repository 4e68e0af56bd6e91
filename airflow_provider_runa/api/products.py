"""The check whether a product of the catalogue can be ordered, with every reason why not."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from airflow_provider_runa.api.models import Denominations, PayoutType, Product


def order_blockers(
    product: Product,
    *,
    face_values: Iterable[Decimal] = (),
    currency: str | None = None,
    country: str | None = None,
) -> list[str]:
    """Return the reasons why a product cannot be ordered.

    :param product: the product, as ``RunaHook.get_product`` or ``list_products`` returns it.
    :param face_values: the face values to order, in the product's currency. Default: not checked.
    :param currency: the currency that the face values must be in (ISO 4217). Default: any.
    :param country: the country that the product must be redeemable in (ISO 3166 alpha-2). Default: any.
    :returns: one text per reason, each starting with the product's code; empty if the product can be ordered.
    """
    found = []
    if not product.is_orderable:
        found.append(f"{product.code} cannot be ordered now ({product.state})")
    if currency is not None and product.currency != currency:
        found.append(f"{product.code} is in {product.currency}, not in {currency}")
    if country is not None and country not in product.countries_redeemable_in:
        countries = ", ".join(product.countries_redeemable_in) or "no country"
        found.append(f"{product.code} is redeemable in {countries}, not in {country}")
    for face_value in face_values:
        if (reason := _face_value_blocker(product, face_value)) is not None:
            found.append(f"{product.code} has no face value of {face_value}: {reason}")
    return found


def _face_value_blocker(product: Product, face_value: Decimal) -> str | None:
    """Return why the product does not have a face value; ``None`` if it has, or if the catalogue does not show it."""
    details: PayoutType | None = getattr(product, product.payout_type, None)
    if details is None:
        return None
    if details.subscription_plans:
        prices = [plan.price for plan in details.subscription_plans if plan.price is not None]
        return f"its plans cost {_join(prices)}" if prices and face_value not in prices else None
    limits = details.denominations or Denominations()
    if limits.available_list:
        return f"only {_join(limits.available_list)}" if face_value not in limits.available_list else None
    if limits.minimum_value is not None and face_value < limits.minimum_value:
        return f"the minimum is {limits.minimum_value}"
    if limits.maximum_value is not None and face_value > limits.maximum_value:
        return f"the maximum is {limits.maximum_value}"
    return None


def _join(amounts: Iterable[Decimal]) -> str:
    return ", ".join(str(amount) for amount in sorted(amounts))
