"""Asset events: which outlets get the facts, and values of the author that are never replaced."""

from __future__ import annotations

import logging
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_runa.utils.assets import add_asset_event_extra

ASSET = Asset("runa://orders/winback")
FACTS = {"order_id": "O-1", "status": "COMPLETED"}


def add_facts(events: Any, outlets: list[Any]) -> None:
    context: Any = {"outlet_events": events}
    add_asset_event_extra(context, outlets, FACTS)


def test_each_asset_gets_the_facts() -> None:
    other = Asset("runa://orders/spring")
    events = OutletEventAccessors()
    add_facts(events, [ASSET, other])
    assert events[ASSET].extra == FACTS
    assert events[other].extra == FACTS


def test_values_of_the_author_are_kept() -> None:
    events = OutletEventAccessors()
    events[ASSET].extra |= {"status": "mine", "day": "2026-01-31"}
    add_facts(events, [ASSET])
    assert events[ASSET].extra == {"order_id": "O-1", "status": "mine", "day": "2026-01-31"}


def test_aliases_and_other_outlets_are_skipped() -> None:
    events = OutletEventAccessors()
    outlets = [AssetAlias("rewards"), "runa://orders/winback", None, ASSET]
    add_facts(events, outlets)
    assert list(events) == [ASSET]


@pytest.mark.parametrize("reference", [{"name": ASSET.name}, {"uri": ASSET.uri}])
def test_a_reference_is_resolved_by_airflow(monkeypatch: pytest.MonkeyPatch, reference: dict[str, str]) -> None:
    monkeypatch.setattr(OutletEventAccessors, "_asset_ref_cache", {})
    monkeypatch.setattr(OutletEventAccessors, "_get_asset_from_db", lambda self=None, **_: ASSET)
    events = OutletEventAccessors()
    add_facts(events, [Asset.ref(**reference)])
    assert events[ASSET].extra == FACTS


def test_an_asset_that_cannot_be_resolved_is_logged_and_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Events(defaultdict[Any, Any]):
        def __missing__(self, asset: Any) -> Any:
            if asset != ASSET:
                raise RuntimeError("Airflow's API server is unavailable")
            self[asset] = SimpleNamespace(extra={})
            return self[asset]

    events = Events()
    with caplog.at_level(logging.WARNING):
        add_facts(events, [Asset.ref(name="missing"), ASSET])
    assert events[ASSET].extra == FACTS
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("The event of ")
    assert "the asset was not found (Airflow's API server is unavailable)" in line


@pytest.mark.parametrize("context", [{}, {"outlet_events": None}])
def test_without_events_nothing_happens(context: Any) -> None:
    add_asset_event_extra(context, [ASSET], FACTS)
