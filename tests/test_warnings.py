"""Importing the provider warns of nothing: no name that this Airflow calls deprecated."""

from __future__ import annotations

import subprocess
import sys

IMPORT_ALL = """
import warnings
warnings.filterwarnings("error", module="airflow_provider_runa")  # whichever kind, Airflow's own too
import importlib, pkgutil, airflow_provider_runa
for module in pkgutil.walk_packages(airflow_provider_runa.__path__, "airflow_provider_runa."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if "needs Airflow 3.3" not in str(error):
                raise
        print(module.name)
"""


def test_no_module_warns_when_it_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "airflow_provider_runa.operators.payout" in done.stdout
