"""``@task.runa_order`` and ``@task.runa_payout``: place the order, or pay the rows, that a function returns.

The function runs on the worker, again in each attempt. Its return value contains recipients, so it goes only to Runa:
no XCom and no rendered field has it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, overload

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    context_merge,
    task_decorator_factory,
)

from airflow_provider_runa._compat import determine_kwargs
from airflow_provider_runa.api.errors import InvalidOrderError, redact
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.utils.failures import to_airflow_exception
from airflow_provider_runa.utils.masking import EXCERPT_LENGTH, MaskRecipientsMixin, mask_recipients, printable

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator
    from airflow.sdk.bases.decorator import Task

    from airflow_provider_runa.api.models import NewOrder

P = ParamSpec("P")

#: The return value of a function of ``@task.runa_order``: items, or arguments of the operator that include ``items``.
Ordered = Sequence[Mapping[str, Any]] | Mapping[str, Any]

#: Arguments of ``RunaCreateOrderOperator`` that a function may return.
RETURNED = (
    "items",
    "currency",
    "description",
    "metadata",
    "order_key",
    "look_back",
    "execution_mode",
    "max_total",
)


class _FromFunction(DecoratedOperator):
    """Calls the decorated function."""

    def _call(self, context: Context) -> Any:
        return self.python_callable(*self.op_args, **self._keyword_arguments(context))

    def _keyword_arguments(self, context: Context) -> Mapping[str, Any]:
        # A copy: op_kwargs may contain recipients, and the context is a local variable of many frames.
        values = copy.copy(context)
        context_merge(values, self.op_kwargs)
        return determine_kwargs(self.python_callable, self.op_args, values)

    @staticmethod
    def xcom_push(context: Context, key: str, value: Any) -> None:
        """Push an XCom. Airflow 3.0 calls this on decorated operators, whose base class does not have it."""
        context["ti"].xcom_push(key=key, value=value)


class RunaOrderDecoratedOperator(_FromFunction, RunaCreateOrderOperator):
    """Places the order whose items a function returns.

    .. seealso:: :doc:`/authoring`

    :param python_callable: the function.
    :param op_args: positional arguments of the function. (templated)
    :param op_kwargs: keyword arguments of the function. (templated)
    :param currency: currency of the account balance that pays. Default: the function returns it. (templated)
    :param kwargs: parameters of :class:`~.RunaCreateOrderOperator`, other than ``items``.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in RunaCreateOrderOperator.template_fields if name != "items"),
    )
    template_fields_renderers = {"op_args": "py", "op_kwargs": "py", "metadata": "json"}  # noqa: RUF012 - as Airflow's
    custom_operator_name = "@task.runa_order"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        currency: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            items=(),
            currency=currency,
            **kwargs,
        )

    def execute(self, context: Context) -> Any:
        """Call the function, then place the order."""
        try:
            self._take(self._call(context))
        except InvalidOrderError as error:
            raise to_airflow_exception(error) from None
        return super().execute(context)

    def _wanted(self, context: Context) -> NewOrder:
        # Called only for payout links: the function's return value shows which link belongs to which item.
        self._take(self._call(context))
        return super()._wanted(context)

    def _rendered(self) -> NewOrder | None:
        return None  # only the function knows, and it is called once

    def _take(self, returned: Any) -> None:
        mask_recipients([returned])
        arguments = dict(returned) if isinstance(returned, Mapping) else {"items": returned}
        if unknown := sorted(str(name) for name in set(arguments) - set(RETURNED)):
            shown = ", ".join(printable(redact(name)[:EXCERPT_LENGTH]) for name in unknown[:5])
            raise InvalidOrderError(
                f"the function returned {shown}, which is not allowed; it may return {', '.join(RETURNED)}"
            )
        if "items" not in arguments:
            raise InvalidOrderError("items: the function did not return any")
        for name, value in arguments.items():
            setattr(self, name, value)
            if name in ("order_key", "look_back", "max_total"):
                setattr(self, f"_has_{name}", True)  # a guard must still apply if its value is None


class RunaPayoutDecoratedOperator(MaskRecipientsMixin, _FromFunction, RunaPayoutOperator):
    """Pays the rows that a function returns or yields.

    .. seealso:: :doc:`/campaigns`

    :param python_callable: the function. It is called when the campaign is planned, and not in mode ``"pay"``.
    :param op_args: positional arguments of the function. (templated)
    :param op_kwargs: keyword arguments of the function. (templated)
    :param kwargs: parameters of :class:`~.RunaPayoutOperator`, other than ``rows``.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in RunaPayoutOperator.template_fields if name != "rows"),
    )
    template_fields_renderers = {"op_args": "py", "op_kwargs": "py", "defaults": "json"}  # noqa: RUF012 - as Airflow's
    custom_operator_name = "@task.runa_payout"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs, rows=None)

    def iter_rows(self, context: Context) -> Iterator[Any]:
        """Call the function and yield its rows.

        :param context: the task's context.
        """
        self.rows = self._call(context)
        yield from super().iter_rows(context)


@overload
def runa_order_task(python_callable: Callable[P, Ordered]) -> Task[P, Ordered]: ...
@overload
def runa_order_task(python_callable: None = None, **kwargs: Any) -> TaskDecorator: ...
def runa_order_task(python_callable: Callable[..., Ordered] | None = None, **kwargs: Any) -> Any:
    """Turn a function into a task that places the order whose items it returns. In a DAG: ``@task.runa_order``.

    .. seealso:: :doc:`/authoring`

    :param python_callable: the function. It returns items, or a mapping of arguments of
        :class:`~.operators.runa.RunaCreateOrderOperator` that includes ``items``. Templates in it are not rendered.
    :param kwargs: arguments of :class:`~.operators.runa.RunaCreateOrderOperator`, other than ``items``.
    """
    # The task returns one order id, so an annotation ``-> dict`` of the function must not set multiple_outputs.
    return task_decorator_factory(
        python_callable, multiple_outputs=False, decorated_operator_class=RunaOrderDecoratedOperator, **kwargs
    )


@overload
def runa_payout_task(python_callable: Callable[P, Iterable[Any]]) -> Task[P, Iterable[Any]]: ...
@overload
def runa_payout_task(python_callable: None = None, **kwargs: Any) -> TaskDecorator: ...
def runa_payout_task(python_callable: Callable[..., Iterable[Any]] | None = None, **kwargs: Any) -> Any:
    """Turn a function into a task that pays the rows it returns or yields. In a DAG: ``@task.runa_payout``.

    .. seealso:: :doc:`/campaigns`

    :param python_callable: the function.
    :param kwargs: arguments of :class:`~.operators.payout.RunaPayoutOperator`, other than ``rows``.
    """
    return task_decorator_factory(
        python_callable, multiple_outputs=False, decorated_operator_class=RunaPayoutDecoratedOperator, **kwargs
    )
