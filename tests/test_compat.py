"""Names that moved between releases of Airflow are found where each of them has them."""

from __future__ import annotations

import runpy
import sys
from types import ModuleType
from typing import Any

import pytest

from airflow_provider_runa import _compat


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("airflow.sdk.execution_time.secrets_masker", id="3.0.0"),
        pytest.param("airflow.utils.log.secrets_masker", id="2.11"),
    ],
)
def test_the_masker_of_older_airflow_is_found(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def masker() -> str:
        return "the masker"

    def mask_secret(secret: Any) -> None: ...

    for name in ("airflow.sdk.log", "airflow.sdk._shared.secrets_masker", "airflow.sdk.execution_time.secrets_masker"):
        monkeypatch.setitem(sys.modules, name, None)
    module = ModuleType(place)
    vars(module).update(_secrets_masker=masker, mask_secret=mask_secret)
    monkeypatch.setitem(sys.modules, place, module)
    found = runpy.run_path(str(_compat.__file__))
    assert found["mask_secret"] is mask_secret
    assert found["secrets_masker"]() == "the masker"
