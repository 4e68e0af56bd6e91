"""``@task.runa_order`` and ``@task.runa_payout``: what a function returns is paid, by the operators of ``operators``.

The function runs on the worker, in each attempt anew. What it returns names recipients: it goes to Runa alone, neither
into an XCom nor into a rendered field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, overload

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.utils.failures import to_airflow_exception
from airflow_provider_runa.utils.masking import MaskRecipientsMixin, mask_recipients

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator
    from airflow.sdk.bases.decorator import Task

    from airflow_provider_runa.api.models import NewOrder

P = ParamSpec("P")

#: What a function of ``@task.runa_order`` returns: items, or arguments of the operator with ``items`` among them.
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
    """Calls the function."""

    def _call(self, context: Context) -> Any:
        context_merge(context, self.op_kwargs)
        return self.python_callable(*self.op_args, **determine_kwargs(self.python_callable, self.op_args, context))

    @staticmethod
    def xcom_push(context: Context, key: str, value: Any) -> None:
        """Push an XCom; Airflow 3.0 asks decorated operators for it, and their base class has lost it."""
        context["ti"].xcom_push(key=key, value=value)


class RunaOrderDecoratedOperator(_FromFunction, RunaCreateOrderOperator):
    """Places the order whose items a function returns; see :class:`~.RunaCreateOrderOperator` for the parameters.

    :param python_callable: the function.
    :param op_args: its positional arguments. (templated)
    :param op_kwargs: its keyword arguments. (templated)
    :param currency: may be left out here if the function returns it. (templated)
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
        # Only for links: which is whose, is known from what the function returns.
        self._take(self._call(context))
        return super()._wanted(context)

    def _take(self, returned: Any) -> None:
        mask_recipients([returned])
        arguments = dict(returned) if isinstance(returned, Mapping) else {"items": returned}
        if unknown := sorted(str(name) for name in set(arguments) - set(RETURNED)):
            raise InvalidOrderError(
                f"the function returned {', '.join(unknown[:5])}, which it may not; it may return {', '.join(RETURNED)}"
            )
        if "items" not in arguments:
            raise InvalidOrderError("items: the function returned none")
        for name, value in arguments.items():
            setattr(self, name, value)
            if name in ("order_key", "look_back", "max_total"):
                setattr(self, f"_has_{name}", True)  # returned without a value it must not be gone


class RunaPayoutDecoratedOperator(MaskRecipientsMixin, _FromFunction, RunaPayoutOperator):
    """Pays the rows that a function returns or yields; see :class:`~.RunaPayoutOperator` for the parameters.

    :param python_callable: the function; it is called when the campaign is planned, and not in mode ``"pay"``.
    :param op_args: its positional arguments. (templated)
    :param op_kwargs: its keyword arguments. (templated)
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
        """Yield the function's rows.

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

    :param python_callable: the function. It returns items, or a mapping of arguments of
        :class:`~.operators.runa.RunaCreateOrderOperator` with ``items`` among them; text in it is no template.
    :param kwargs: arguments of :class:`~.operators.runa.RunaCreateOrderOperator`, other than ``items``.
    """
    # The task's result is an order id: an annotation ``-> dict`` of the function must not make several of it.
    return task_decorator_factory(
        python_callable, multiple_outputs=False, decorated_operator_class=RunaOrderDecoratedOperator, **kwargs
    )


@overload
def runa_payout_task(python_callable: Callable[P, Iterable[Any]]) -> Task[P, Iterable[Any]]: ...
@overload
def runa_payout_task(python_callable: None = None, **kwargs: Any) -> TaskDecorator: ...
def runa_payout_task(python_callable: Callable[..., Iterable[Any]] | None = None, **kwargs: Any) -> Any:
    """Turn a function into a task that pays the rows it returns or yields. In a DAG: ``@task.runa_payout``.

    :param python_callable: the function.
    :param kwargs: arguments of :class:`~.operators.payout.RunaPayoutOperator`, other than ``rows``.
    """
    return task_decorator_factory(
        python_callable, multiple_outputs=False, decorated_operator_class=RunaPayoutDecoratedOperator, **kwargs
    )
