"""The OpenLineage facet of this provider. The module can be imported only if the OpenLineage provider is installed."""

from __future__ import annotations

import airflow.providers.openlineage  # noqa: F401 - without it, common.compat's facets are no classes
import attr
from airflow.providers.common.compat.openlineage.facet import DatasetFacet

from airflow_provider_runa import __version__

#: The producer of the facets: this release.
PRODUCER = f"urn:airflow-provider-runa:{__version__}"


@attr.define
class RunaTotalsDatasetFacet(DatasetFacet):
    """The totals of an order or a campaign; see "Lineage" in :doc:`/authoring`.

    :param status: status of the order; ``None`` for a campaign.
    :param currency: currency of the amounts.
    :param counts: name -> number; for a campaign, state -> rows.
    :param amounts: name -> decimal string; for a campaign, state -> sum.
    """

    status: str | None = attr.field(default=None)
    currency: str | None = attr.field(default=None)
    counts: dict[str, int] = attr.field(factory=dict)
    amounts: dict[str, str] = attr.field(factory=dict)

    @staticmethod
    def _get_schema() -> str:
        return f"{PRODUCER}#/$defs/RunaTotalsDatasetFacet"
