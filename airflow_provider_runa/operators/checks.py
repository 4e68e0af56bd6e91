"""Operators that check before a payment what an order would cost and whether products can be ordered.

They only read. To wait for a balance, use ``sensors.balance``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_runa.api.errors import InvalidOrderError, RunaError, RunaNotFoundError
from airflow_provider_runa.api.products import order_blockers
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.utils.arguments import NOTSET, read_amount, read_estimate, unset_to_none
from airflow_provider_runa.utils.failures import READ_ONLY, to_airflow_exception
from airflow_provider_runa.utils.masking import MaskRecipientsMixin

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class RunaEstimateOrderOperator(MaskRecipientsMixin, BaseOperator):
    """Estimates the cost of an order, and pays nobody.

    .. seealso:: :doc:`/authoring`

    The playground has no estimates. The operator returns ``{"currency", "total_price", "total_discount", "face_value",
    "items"}``: the price that the balance of ``currency`` would pay, the discount, the sum of the face values, and the
    number of items. Amounts are decimal strings.

    :param items: up to 500 payouts, in the form that :class:`~.operators.runa.RunaCreateOrderOperator` takes. Their
        recipients are not sent. Runa cannot estimate selection templates. (templated)
    :param currency: currency of the account balance that would pay, three capital letters. (templated)
    :param runa_conn_id: id of the Airflow connection. Default: ``runa_default``. (templated)
    :raises AirflowFailException: if no retry can fix the failure.
    :raises RunaError: if Runa gives no usable answer.
    """

    template_fields: Sequence[str] = ("items", "currency", "runa_conn_id")
    template_fields_renderers = {"items": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#e8e3ff"

    def __init__(
        self,
        *,
        items: Sequence[Mapping[str, Any]] | str,
        currency: str,
        runa_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.items = items
        self.currency = currency
        self.runa_conn_id = runa_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Request the estimate."""
        try:
            request = read_estimate(self.currency, self.items)
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                estimate = hook.estimate_order(request)
        except RunaError as error:
            raise to_airflow_exception(error, outcome=READ_ONLY) from None
        self.log.info(
            "An order of these %d item(s) would cost %s %s.",
            len(request.items),
            estimate.total_price,
            estimate.currency,
        )
        return {
            "currency": estimate.currency,
            "total_price": str(estimate.total_price),
            "total_discount": str(estimate.total_discount),
            "face_value": f"{sum(item.face_value for item in request.items):.2f}",
            "items": len(request.items),
        }


class RunaCheckProductOperator(BaseOperator):
    """Fails if a product cannot be ordered, with every reason, and pays nobody.

    .. seealso:: :doc:`/authoring`

    The operator returns the codes of the products. To check products in a function, use ``RunaHook.get_product`` or
    ``list_products`` with :func:`airflow_provider_runa.api.products.order_blockers`.

    :param products: code of a product, or a list of codes. (templated)
    :param face_value: the amount that each product must be orderable for, or a list of amounts. Default: not checked.
        (templated)
    :param currency: the currency that the face values must be in. Default: not checked. (templated)
    :param country: the country that each product must be redeemable in, ISO 3166 alpha-2. Default: not checked.
        (templated)
    :param runa_conn_id: id of the Airflow connection. Default: ``runa_default``. (templated)
    :raises AirflowFailException: if a product cannot be ordered, or if no retry can fix the failure.
    :raises RunaError: if Runa gives no usable answer.
    """

    template_fields: Sequence[str] = ("products", "face_value", "currency", "country", "runa_conn_id")
    ui_color = "#e8e3ff"

    def __init__(
        self,
        *,
        products: str | Sequence[str],
        face_value: Decimal | float | str | Sequence[Decimal | float | str] = NOTSET,
        currency: str = NOTSET,
        country: str = NOTSET,
        runa_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.products = products
        checks = {"face_value": face_value, "currency": currency, "country": country}
        # A check must still be made if its value renders to None.
        self._checked = tuple(name for name, value in checks.items() if value is not NOTSET)
        self.face_value = unset_to_none(face_value)
        self.currency = unset_to_none(currency)
        self.country = unset_to_none(country)
        self.runa_conn_id = runa_conn_id

    def execute(self, context: Context) -> list[str]:
        """Check the products."""
        try:
            codes, face_values = self._codes(), self._face_values()
            for name in self._checked:
                if not getattr(self, name):
                    raise InvalidOrderError(f"{name}: its value is missing")
            found: list[str] = []
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                for code in codes:
                    try:
                        product = hook.get_product(code)
                    except RunaNotFoundError:
                        found.append(f"there is no product {code} in Runa's catalogue")
                        continue
                    found += order_blockers(
                        product, face_values=face_values, currency=self.currency, country=self.country
                    )
        except RunaError as error:
            raise to_airflow_exception(error, outcome=READ_ONLY) from None
        if found:
            raise AirflowFailException(
                f"Nobody was paid, because this task only reads: {'; '.join(found)}.\n"
                "The task fails without further retries.\n"
                "Choose other products or amounts, or ask Runa's support, then clear the task."
            )
        self.log.info("%s can be ordered.", ", ".join(codes))
        return codes

    def _codes(self) -> list[str]:
        products: Any = self.products
        codes = [products] if isinstance(products, str) else list(products) if isinstance(products, Sequence) else []
        if not codes or not all(isinstance(code, str) and code.strip() for code in codes):
            raise InvalidOrderError(f"products: must be the code of a product or a list of codes, not {products!r}")
        return codes

    def _face_values(self) -> list[Decimal]:
        face_values: Any = self.face_value
        if "face_value" not in self._checked:
            return []
        several = isinstance(face_values, Sequence) and not isinstance(face_values, str)
        return [read_amount("face_value", value) for value in (face_values if several else [face_values])]
