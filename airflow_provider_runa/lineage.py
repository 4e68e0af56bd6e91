"""What the world outside of a task learns of what it paid: asset events and OpenLineage. Ids and totals, never who.

The author of a DAG names the asset (``outlets=[Asset("runa://orders/winback")]``); what was paid goes into the
``extra`` of its event, on which other DAGs can be scheduled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import Asset

from airflow_provider_runa._compat import AssetRef

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)


def tell_assets(context: Context, outlets: Iterable[Any], facts: Mapping[str, Any]) -> None:
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


def lineage_of(
    base_url: str,
    name: str,
    *,
    status: str | None,
    currency: str | None,
    paid: int | None,
    counts: Mapping[str, int],
    amounts: Mapping[str, str],
) -> Any:
    """Return OpenLineage's account of a task: what it paid as its output dataset. ``None`` without that provider.

    :param base_url: base URL of the API; its host makes the namespace ``runa://host``.
    :param name: name of the dataset.
    :param status: status of the order; ``None`` for a campaign.
    :param currency: of the amounts.
    :param paid: payouts that were ordered; ``None`` if that is not known.
    :param counts: what is counted -> number.
    :param amounts: what is summed up -> decimal string.
    """
    try:
        from airflow.providers.common.compat.openlineage.facet import (
            OutputDataset,
            OutputStatisticsOutputDatasetFacet,
        )
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    from airflow_provider_runa._facets import PRODUCER, RunaTotalsDatasetFacet

    host = urlsplit(base_url).netloc
    totals = RunaTotalsDatasetFacet(
        status=status, currency=currency, counts=dict(counts), amounts=dict(amounts), producer=PRODUCER
    )
    statistics = OutputStatisticsOutputDatasetFacet(rowCount=paid, producer=PRODUCER)
    output = OutputDataset(
        namespace=f"runa://{host}",
        name=name,
        facets={"runa_totals": totals},
        outputFacets={"outputStatistics": statistics},
    )
    return OperatorLineage(outputs=[output])
