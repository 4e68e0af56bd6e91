"""Facets of OpenLineage's that are this provider's own. Only importable with OpenLineage's provider installed."""

from __future__ import annotations

import airflow.providers.openlineage  # noqa: F401 - without it, what common.compat has instead of facets is no class
import attr
from airflow.providers.common.compat.openlineage.facet import DatasetFacet

from airflow_provider_runa import __version__

#: Who says it: this release.
PRODUCER = f"urn:airflow-provider-runa:{__version__}"


@attr.define
class RunaTotalsDatasetFacet(DatasetFacet):
    """What an order or a campaign amounts to; see "Lineage" in docs/authoring.md.

    :param status: status of the order; ``None`` for a campaign.
    :param currency: of the amounts.
    :param counts: what is counted -> number; of a campaign, state -> rows.
    :param amounts: what is summed up -> decimal string; of a campaign, state -> sum.
    """

    status: str | None = attr.field(default=None)
    currency: str | None = attr.field(default=None)
    counts: dict[str, int] = attr.field(factory=dict)
    amounts: dict[str, str] = attr.field(factory=dict)

    @staticmethod
    def _get_schema() -> str:
        return f"{PRODUCER}#/$defs/RunaTotalsDatasetFacet"
