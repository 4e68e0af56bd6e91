"""Portal links, asset events and OpenLineage of a task: ids and totals, no recipients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_runa import __version__
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.links.portal import PORTAL, RunaPortalLink
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from tests.campaign.world import DEFAULTS, row
from tests.support.airflow import SharedClock, task_context
from tests.support.sandbox import RunningSandbox

ADDRESS = "ada.lovelace-7311@example.com"
ITEM: dict[str, Any] = {
    "face_value": 10,
    "distribution_method": {"type": "EMAIL", "email_address": ADDRESS},
    "products": {"type": "SINGLE", "value": "SHOE-US"},
}
ASSET = Asset("runa://orders/winback")


def order(runa: RunningSandbox, **values: Any) -> RunaCreateOrderOperator:
    task = RunaCreateOrderOperator(task_id="pay", items=[ITEM], currency="USD", outlets=[ASSET], **values)
    task.clock = SharedClock(runa)  # type: ignore[assignment]
    return task


def payout(runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> RunaPayoutOperator:
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))
    given: dict[str, Any] = {"campaign": "spring", "rows": [row(1), row(2)], "outlets": [ASSET]}
    task = RunaPayoutOperator(
        task_id="pay", currency="USD", ledger_conn_id="ledger", defaults=DEFAULTS, **(given | values)
    )
    task.clock = SharedClock(runa)  # type: ignore[assignment]
    return task


def context() -> dict[str, Any]:
    return task_context() | {"outlet_events": OutletEventAccessors()}


@pytest.mark.parametrize(("wait", "status", "price"), [(False, "PROCESSING", None), (True, "COMPLETED", "9.0")])
def test_the_event_of_the_asset_has_the_order(runa: RunningSandbox, wait: bool, status: str, price: str | None) -> None:
    values = context()
    order_id = order(runa, wait_for_completion=wait).execute(values)
    extra = values["outlet_events"][ASSET].extra
    assert extra["order_id"] == order_id
    assert (extra["status"], extra["currency"], extra["face_value"], extra["items"]) == (status, "USD", "10.00", 1)
    assert (extra["total_price"] is None) is (price is None)
    assert ADDRESS not in json.dumps(extra)


def test_after_a_deferral_the_event_has_the_completed_order(runa: RunningSandbox) -> None:
    order_id = order(runa).execute(context())
    runa.advance(10)
    values = context()
    order(runa).execute_complete(values, {"status": "final", "orders": {order_id: "COMPLETED"}})
    assert values["outlet_events"][ASSET].extra["status"] == "COMPLETED"


def test_a_reference_that_cannot_be_looked_up_fails_no_payment(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Any = None, **_: Any) -> Any:
        raise RuntimeError("Airflow's API server is away")

    monkeypatch.setattr(OutletEventAccessors, "_asset_ref_cache", {})
    monkeypatch.setattr(OutletEventAccessors, "_get_asset_from_db", away)
    task = order(runa)
    task.outlets = [Asset.ref(name="gone"), ASSET]
    values = context()
    order_id = task.execute(values)
    assert values["outlet_events"][ASSET].extra["order_id"] == order_id


def test_the_event_of_the_asset_has_the_campaign(
    runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = context()
    summary = payout(runa, tmp_path, monkeypatch).execute(values)
    assert values["outlet_events"][ASSET].extra == summary
    assert summary["rows"] == {"paid": 2}


@pytest.mark.parametrize("kind", [RunaCreateOrderOperator, RunaPayoutOperator])
def test_tasks_link_to_the_portal(kind: Any) -> None:
    (link,) = kind.operator_extra_links
    assert isinstance(link, RunaPortalLink)
    assert (link.name, link.get_link(None, ti_key=None)) == ("Runa portal", PORTAL)


def test_without_openlineage_there_is_no_lineage(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
    task = order(runa)
    assert task.get_openlineage_facets_on_complete(None) is None, "nothing was placed yet"
    task.execute(context())
    assert task.get_openlineage_facets_on_complete(None) is None


def test_the_order_is_the_output_of_the_lineage(runa: RunningSandbox) -> None:
    pytest.importorskip("airflow.providers.openlineage.extractors")
    task = order(runa, wait_for_completion=True)
    order_id = task.execute(context())
    (output,) = task.get_openlineage_facets_on_complete(None).outputs
    assert (output.namespace, output.name) == (runa.url.removesuffix("/v2").replace("http", "runa"), order_id)
    totals = output.facets["runa_totals"]
    assert (totals.status, totals.currency, totals.counts) == ("COMPLETED", "USD", {"items": 1})
    assert totals.amounts["face_value"] == "10.00"
    assert output.outputFacets["outputStatistics"].rowCount == 1
    assert ADDRESS not in str(output)
    for facet in (totals, output.outputFacets["outputStatistics"]):
        assert facet._producer == f"urn:airflow-provider-runa:{__version__}"
    assert totals._schemaURL.endswith("RunaTotalsDatasetFacet")
    (again,) = task.get_openlineage_facets_on_complete(None).outputs
    assert again == output, "each call makes a class of its own"


def test_the_campaign_is_the_output_of_the_lineage(
    runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("airflow.providers.openlineage.extractors")
    task = payout(runa, tmp_path, monkeypatch)
    task.execute(context())
    (output,) = task.get_openlineage_facets_on_complete(None).outputs
    assert output.name == "spring"
    assert output.facets["runa_totals"].amounts == {"paid": "20.00"}
    assert output.outputFacets["outputStatistics"].rowCount == 2
    assert "example.com" not in str(output)


def test_the_lineage_does_not_read_the_connection_again(
    runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenLineage calls it in a forked process, where Airflow may not answer."""
    pytest.importorskip("airflow.providers.openlineage.extractors")
    tasks: list[Any] = [order(runa), order(runa), payout(runa, tmp_path, monkeypatch)]
    order_id = tasks[0].execute(context())
    runa.advance(10)
    tasks[1].execute_complete(context(), {"status": "final", "orders": {order_id: "COMPLETED"}})
    tasks[2].execute(context())
    monkeypatch.delenv("AIRFLOW_CONN_RUNA_DEFAULT")
    monkeypatch.setattr(RunaHook, "get_settings", None)
    namespace = runa.url.removesuffix("/v2").replace("http", "runa")
    for task in tasks:
        (output,) = task.get_openlineage_facets_on_complete(None).outputs
        assert output.namespace == namespace


def test_openlineage_counts_only_what_was_paid(
    runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("airflow.providers.openlineage.extractors")
    runa.faults({"kind": "fail_order", "count": 1})
    rows = [row(n) for n in range(201)]  # two orders
    task = payout(runa, tmp_path, monkeypatch, rows=rows, on_partial_failure="warn")
    summary = task.execute(context())
    assert set(summary["rows"]) == {"paid", "failed"}
    (output,) = task.get_openlineage_facets_on_complete(None).outputs
    assert output.outputFacets["outputStatistics"].rowCount == summary["rows"]["paid"]
    assert output.facets["runa_totals"].counts == summary["rows"]


def test_a_plan_is_in_the_event_and_has_no_lineage(
    runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = context()
    task = payout(runa, tmp_path, monkeypatch, mode="plan")
    task.execute(values)
    assert values["outlet_events"][ASSET].extra["rows"] == {"planned": 2}
    assert task.get_openlineage_facets_on_complete(None) is None


def test_openlineage_can_describe_the_whole_task() -> None:
    """An attribute ``items`` of the task would replace the method of OpenLineage's mapping, which redacts by it."""
    utils = pytest.importorskip("airflow.providers.openlineage.utils.utils")
    if not hasattr(utils, "TaskInfoComplete"):
        pytest.skip("this release describes no whole task")
    task = RunaCreateOrderOperator(task_id="pay", items=[ITEM], currency="USD")
    described = utils.TaskInfoComplete(task)
    assert dict(described.items())["task_id"] == "pay"
