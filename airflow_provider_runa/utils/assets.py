"""Asset events: adds ids and totals of a task's orders to the ``extra`` of its events, never recipients.

The author of a DAG names the asset (``outlets=[Asset("runa://orders/winback")]``). Other DAGs can be scheduled on it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import Asset

from airflow_provider_runa._compat import AssetRef

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)


def add_asset_event_extra(context: Context, outlets: Iterable[Any], facts: Mapping[str, Any]) -> None:
    """Add facts to the ``extra`` of the event of each asset that a task updates.

    :param context: the task's context.
    :param outlets: the task's outlets. Assets and references to assets get the facts; aliases do not, because only the
        author knows which asset they stand for.
    :param facts: JSON values. They never replace values that the author has set.
    """
    events: Any = context.get("outlet_events")
    for outlet in outlets:
        if events is None or not isinstance(outlet, Asset | AssetRef):
            continue
        try:
            extra = events[outlet].extra
        except Exception as error:  # Airflow looks up the asset of a reference; the payment must not fail with it
            log.warning("The event of %s has no details of the payment: the asset was not found (%s).", outlet, error)
            continue
        extra.update({name: value for name, value in facts.items() if name not in extra})
