"""Asset events: what a task paid goes into the ``extra`` of the events it emits. Ids and totals, never recipients.

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
    """Put facts into the event of each asset that a task updates.

    :param context: the task's context.
    :param outlets: the task's outlets, assets and references to them; aliases are left to the author, who knows which
        asset they stand for.
    :param facts: JSON values; keys that the author has set are kept.
    """
    events: Any = context.get("outlet_events")
    for outlet in outlets:
        if events is None or not isinstance(outlet, Asset | AssetRef):
            continue
        try:
            extra = events[outlet].extra
        except Exception as error:  # Airflow is asked what a reference stands for; what was paid is paid all the same
            log.warning("The event of %s goes without facts: it could not be looked up (%s).", outlet, error)
            continue
        extra.update({name: value for name, value in facts.items() if name not in extra})
