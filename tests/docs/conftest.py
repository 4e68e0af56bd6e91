"""The documentation site, and an Airflow with a database and the example DAGs; each made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Site:
    """A site that was built.

    :param path: where it is.
    :param complaints: what the build complained of; warnings are errors.
    """

    path: Path
    complaints: str


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site, built as ``make docs`` does, from a copy: the build writes beside the pages."""
    pytest.importorskip("furo", reason="the dependency group docs is not installed")
    copy = tmp_path_factory.mktemp("docs")
    for name in ("docs", "airflow_provider_runa", "example_dags", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("reference", "__pycache__"))
    for name in ("README.md", "CHANGELOG.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "docs", "site"]
    ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    return Site(copy / "site", ended.stderr if ended.returncode else "")


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of Airflow's with a database, for whoever runs DAGs without a scheduler."""
    home = tmp_path_factory.mktemp("airflow")
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    environment = os.environ | {"AIRFLOW_HOME": str(home)}
    subprocess.run(command, env=environment, capture_output=True, timeout=180, check=True)
    return home


@pytest.fixture
def examples(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Airflow find the example DAGs."""
    monkeypatch.setenv("AIRFLOW_HOME", str(airflow_home))
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(ROOT / "example_dags"))
