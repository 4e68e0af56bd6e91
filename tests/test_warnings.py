"""The provider warns of nothing: it uses no name that this Airflow, or another library, calls deprecated."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

IMPORT_ALL = """
import warnings
warnings.filterwarnings("error", module="airflow_provider_runa")  # of any category, Airflow's included
import importlib, pkgutil, airflow_provider_runa
for module in pkgutil.walk_packages(airflow_provider_runa.__path__, "airflow_provider_runa."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if "needs Airflow 3.3" not in str(error) and error.name != "airflow.providers.openlineage":
                raise
        print(module.name)
"""


def test_no_module_warns_when_it_is_imported() -> None:
    # Without a -W, Airflow shows what it calls deprecated in modules named airflow…, whatever was said before.
    command = [sys.executable, "-W", "default", "-c", IMPORT_ALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "airflow_provider_runa.operators.payout" in done.stdout


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_what_the_provider_warns_of_fails_any_test(kind: type[Warning]) -> None:
    with pytest.raises(kind):
        warnings.warn_explicit("old", kind, "place.py", 1, module="airflow_provider_runa.placement.place")
