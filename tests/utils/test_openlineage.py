"""OpenLineage: the output dataset of a task, and no lineage without the OpenLineage provider."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from airflow_provider_runa import __version__
from airflow_provider_runa.utils.openlineage import build_lineage

CAMPAIGN: dict[str, Any] = {
    "status": None,
    "currency": "USD",
    "paid": 2,
    "counts": {"paid": 2, "failed": 1},
    "amounts": {"paid": "20.00", "failed": "10.00"},
}


def test_without_the_provider_there_is_no_lineage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
    assert build_lineage("https://api.runa.io/v2", "spring", **CAMPAIGN) is None


def test_the_output_is_a_dataset_at_the_host_of_runa() -> None:
    pytest.importorskip("airflow.providers.openlineage.extractors")
    lineage = build_lineage("https://api.runa.io/v2", "spring", **CAMPAIGN)
    assert lineage.inputs == []
    (output,) = lineage.outputs
    assert (output.namespace, output.name) == ("runa://api.runa.io", "spring")
    assert list(output.facets) == ["runa_totals"]
    totals = output.facets["runa_totals"]
    assert (totals.status, totals.currency) == (None, "USD")
    assert (totals.counts, totals.amounts) == (CAMPAIGN["counts"], CAMPAIGN["amounts"])
    assert output.outputFacets["outputStatistics"].rowCount == 2


def test_the_port_of_a_sandbox_is_part_of_the_namespace() -> None:
    pytest.importorskip("airflow.providers.openlineage.extractors")
    (output,) = build_lineage("http://127.0.0.1:8021/v2", "O-1", **CAMPAIGN).outputs
    assert output.namespace == "runa://127.0.0.1:8021"


def test_the_facets_name_this_release_and_their_schema() -> None:
    pytest.importorskip("airflow.providers.openlineage.extractors")
    (output,) = build_lineage("https://api.runa.io/v2", "O-1", **(CAMPAIGN | {"status": "COMPLETED"})).outputs
    producer = f"urn:airflow-provider-runa:{__version__}"
    totals, statistics = output.facets["runa_totals"], output.outputFacets["outputStatistics"]
    assert (totals._producer, statistics._producer) == (producer, producer)
    assert totals._schemaURL == f"{producer}#/$defs/RunaTotalsDatasetFacet"
    assert totals.status == "COMPLETED"


def test_an_unknown_number_of_payouts_stays_unknown() -> None:
    pytest.importorskip("airflow.providers.openlineage.extractors")
    (output,) = build_lineage("https://api.runa.io/v2", "O-1", **(CAMPAIGN | {"paid": None, "counts": {}})).outputs
    assert output.outputFacets["outputStatistics"].rowCount is None


def test_the_lineage_does_not_share_its_totals_with_the_caller() -> None:
    pytest.importorskip("airflow.providers.openlineage.extractors")
    counts = {"paid": 1}
    (output,) = build_lineage("https://api.runa.io/v2", "spring", **(CAMPAIGN | {"counts": counts})).outputs
    counts["paid"] = 2
    assert output.facets["runa_totals"].counts == {"paid": 1}
