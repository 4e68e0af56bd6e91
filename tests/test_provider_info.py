"""Everything in the provider's metadata exists, and every public module is in the metadata."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import airflow_provider_runa
from airflow_provider_runa.get_provider_info import get_provider_info

INFO = get_provider_info()
ROOMS = ("hooks", "operators", "sensors", "triggers")
CLASSES = [kind["hook-class-name"] for kind in INFO["connection-types"]]
CLASSES += [decorator["class-name"] for decorator in INFO.get("task-decorators", [])]
CLASSES += INFO.get("extra-links", [])


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_module_of_a_room_is_listed(room: str) -> None:
    package = importlib.import_module(f"{airflow_provider_runa.__name__}.{room}")
    there = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    listed = {name for entry in INFO[room] for name in entry["python-modules"]}
    assert listed == {f"{package.__name__}.{name}" for name in there}
    for name in listed:
        importlib.import_module(name)


@pytest.mark.parametrize("path", CLASSES)
def test_every_class_is_there(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
