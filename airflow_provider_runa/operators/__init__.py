"""Airflow operators of the Runa provider.

Import an operator from here or from its module. This package imports the module of an operator on first use only, so
importing the package itself is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_runa.operators.checks import RunaCheckProductOperator, RunaEstimateOrderOperator
    from airflow_provider_runa.operators.payout import RunaPayoutOperator
    from airflow_provider_runa.operators.reconcile import RunaReconcileOperator
    from airflow_provider_runa.operators.runa import RunaCreateOrderOperator

__all__ = [
    "RunaCheckProductOperator",
    "RunaCreateOrderOperator",
    "RunaEstimateOrderOperator",
    "RunaPayoutOperator",
    "RunaReconcileOperator",
]

_MODULES = {
    "RunaCheckProductOperator": "checks",
    "RunaCreateOrderOperator": "runa",
    "RunaEstimateOrderOperator": "checks",
    "RunaPayoutOperator": "payout",
    "RunaReconcileOperator": "reconcile",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
