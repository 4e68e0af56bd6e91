"""What is published: the sdist and wheel of ``make dist``, and the wheel in an environment that knows no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest

from airflow_provider_runa import __version__
from tests.support.sandbox import RunningSandbox, start_sandbox

ROOT = Path(__file__).parent.parent
DIST = ROOT / ".build" / "dist"
NAME = f"airflow_provider_runa-{__version__}"
WHEEL = DIST / f"{NAME}-py3-none-any.whl"
SDIST = DIST / f"{NAME}.tar.gz"
EXTRAS = ["postgres", "sandbox", "sql"]

pytestmark = pytest.mark.dist

LOOK = """
import importlib.metadata, json, sys
import airflow, airflow_provider_runa
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
print(json.dumps({"package": airflow_provider_runa.__file__, "airflow": airflow.__version__,
                  "version": importlib.metadata.version("airflow-provider-runa"),
                  "files": [dag.fileloc for dag in bag.dags.values()], "errors": bag.import_errors}))
"""


def uv(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "uv", *arguments, "--quiet"], check=True, cwd=ROOT, timeout=600)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata() -> Message:
    return BytesParser().parsebytes(contents(WHEEL)[f"{NAME}.dist-info/METADATA"])


class Environment:
    """A virtual environment with the wheel, and a folder away from the checkout in which everything runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        self.python = str(self.bin / "python")
        left_out = ("AIRFLOW", "PYTHON", "VIRTUAL_ENV")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(left_out)} | {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, *command: str | Path, **env: str) -> str:
        done = subprocess.run(
            command, env=self.env | env, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("installed"))
    uv("venv", "--python", sys.executable, environment.bin.parent)
    wanted = f"{WHEEL}[{','.join(EXTRAS)}]"
    uv("pip", "install", "--python", environment.python, "--constraint", ROOT / "constraints.txt", wanted)
    return environment


#: Extra -> what it is for, run where only that extra is installed.
USES = {
    "postgres": """
from airflow_provider_runa.hooks.ledger import LedgerHook
from sqlalchemy import create_engine
print(create_engine(LedgerHook("ledger").get_url()).dialect.driver)
""",
    "sandbox": "from airflow_provider_runa.sandbox import app",
    "sql": """
from airflow.providers.common.sql.hooks.sql import DbApiHook
from airflow_provider_runa.transfers.sql_to_runa import SqlToRunaOperator
""",
}
OLDEST_SQLALCHEMY = ("apache-airflow==2.11.2", "--exclude-newer", "2026-03-15")


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("release", [(), OLDEST_SQLALCHEMY], ids=["newest", "oldest"])
def test_each_extra_alone_brings_what_it_needs(tmp_path: Path, extra: str, release: tuple[str, ...]) -> None:
    """Without the project's constraints: the newest of everything, and what Airflow 2.11 brings."""
    environment = Environment(tmp_path)
    uv("venv", "--python", sys.executable, environment.bin.parent)
    uv("pip", "install", "--python", environment.python, *release, f"{WHEEL}[{extra}]")
    ledger = "postgres://runa:password@127.0.0.1:9/ledger"
    environment.run(environment.python, "-W", "ignore", "-c", USES[extra], AIRFLOW_CONN_LEDGER=ledger)


@pytest.fixture(scope="module")
def sandbox(installed: Environment) -> Iterator[RunningSandbox]:
    with start_sandbox(python=installed.python, cwd=installed.folder) as running:
        yield running


def test_what_was_built_is_one_wheel_and_one_sdist() -> None:
    assert sorted(path for path in DIST.iterdir() if not path.name.startswith(".")) == sorted([WHEEL, SDIST])


def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    package = ROOT / "airflow_provider_runa"
    sources = {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.suffix in {".py", ".typed"}}
    found = {name for name in contents(WHEEL) if not name.startswith(f"{NAME}.dist-info/")}
    assert found == sources
    assert "airflow_provider_runa/py.typed" in found


def test_sdist_and_sources_make_the_same_wheel(tmp_path: Path) -> None:
    """The wheel of ``make dist`` was made from the sdist, this one from the sources."""
    uv("build", "--wheel", "--out-dir", tmp_path)
    assert contents(tmp_path / WHEEL.name) == contents(WHEEL)


def test_the_sdist_holds_what_its_tests_need() -> None:
    with tarfile.open(SDIST) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    wanted = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "noxfile.py", "pyproject.toml"}
    wanted |= {".github/workflows/ci.yml", "docs/guarantees.md", "example_dags/runa_check_then_pay.py", "PKG-INFO"}
    assert wanted - names == set()
    assert [name for name in names if "__pycache__" in name or name.startswith((".build", ".venv"))] == []


def test_the_metadata_is_complete() -> None:
    found = metadata()
    assert (found["Name"], found["Version"]) == ("airflow-provider-runa", __version__)
    assert (found["License-Expression"], found["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_all("Provides-Extra") == EXTRAS
    assert {
        "Framework :: Apache Airflow :: Provider",
        "Operating System :: POSIX",
        "Typing :: Typed",
    } <= set(found.get_all("Classifier", []))


def test_airflow_knows_the_provider(installed: Environment) -> None:
    listed = installed.run("airflow", "providers", "get", "airflow-provider-runa", "--output", "json")
    (provider,) = json.loads(listed)
    assert provider == {"Provider": "airflow-provider-runa", "Version": __version__}


def test_the_connection_is_tested_against_the_sandbox(installed: Environment, sandbox: RunningSandbox) -> None:
    said = installed.run("airflow", "connections", "test", "runa_default", AIRFLOW_CONN_RUNA_DEFAULT=sandbox.connection)
    assert "Connection success!" in said
    assert sandbox.stats()["requests"] == {"GET /ping": 1}


def test_the_examples_are_imported_without_an_error(installed: Environment) -> None:
    examples = ROOT / "example_dags"
    found = json.loads(installed.run(installed.python, "-W", "ignore", "-c", LOOK, examples).splitlines()[-1])
    assert found["errors"] == {}
    assert set(found["files"]) == {str(path) for path in examples.glob("*.py")}
    assert Path(found["package"]).is_relative_to(installed.folder), "the sources are imported, not the wheel"
    assert found["version"] == __version__
    assert f"apache-airflow=={found['airflow']}\n" in (ROOT / "constraints.txt").read_text()
