"""``airflow_provider_runa.operators`` has every operator, and imports its module on first use."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

from airflow_provider_runa import operators

LOADED = """
import sys
{statement}
print(*sorted(name for name in sys.modules if name.startswith("airflow_provider_runa.operators.")))
"""


def loaded_by(statement: str) -> list[str]:
    """Run a statement in a new process, and return the operator modules that it has loaded."""
    command = [sys.executable, "-c", LOADED.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "statement", ["import airflow_provider_runa.operators", "import airflow_provider_runa.operators as o; dir(o)"]
)
def test_importing_the_package_loads_no_operator(statement: str) -> None:
    assert loaded_by(statement) == []


def test_importing_an_operator_loads_its_module() -> None:
    loaded = loaded_by("from airflow_provider_runa.operators import RunaCreateOrderOperator")
    assert "airflow_provider_runa.operators.runa" in loaded
    assert not {f"airflow_provider_runa.operators.{name}" for name in ("payout", "checks", "reconcile")} & set(loaded)


@pytest.mark.parametrize("name", operators.__all__)
def test_each_operator_is_the_class_of_its_module(name: str) -> None:
    operator: Any = getattr(operators, name)
    assert operator is getattr(importlib.import_module(operator.__module__), name)
    assert operator.__name__ == name
    assert name in dir(operators)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'RunaRefundOperator'"):
        operators.RunaRefundOperator  # noqa: B018 - the access is the test
