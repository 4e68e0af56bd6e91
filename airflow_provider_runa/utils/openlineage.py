"""OpenLineage: describes what a task paid as an output dataset, with ids and totals and without recipients."""

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
    """Return the lineage of a task, with what it paid as its output dataset.

    :param base_url: base URL of the API. Its host is in the namespace, ``runa://host``.
    :param name: name of the dataset: the order id or the campaign.
    :param status: status of the order; ``None`` for a campaign.
    :param currency: currency of the amounts.
    :param paid: number of payouts that were ordered; ``None`` if it is unknown.
    :param counts: name -> number, such as the rows of each state.
    :param amounts: name -> sum as a decimal string.
    :returns: the lineage, or ``None`` if the OpenLineage provider is not installed.
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
