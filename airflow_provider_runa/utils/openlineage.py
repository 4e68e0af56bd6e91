"""OpenLineage: what a task paid as its output dataset. Ids and totals, never recipients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def build_lineage(
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
    from airflow_provider_runa.utils.openlineage_facets import PRODUCER, RunaTotalsDatasetFacet

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
