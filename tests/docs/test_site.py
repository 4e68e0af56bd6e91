"""The documentation site: it builds without a warning, leaves out nothing that is public, and shows what is tested."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

import airflow_provider_runa
from tests.docs.conftest import ROOT, Site

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "changelog.md")
EXAMPLES = sorted((ROOT / "example_dags").glob("*.py"))


def _modules() -> list[str]:
    """Return the names of all public modules; the sandbox's are not, it is a command."""
    package = airflow_provider_runa
    names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [
        name
        for name in (package.__name__, *names)
        if not any(part.startswith("_") for part in name.split(".")) and ".sandbox" not in name
    ]


MODULES = _modules()

#: Rooms whose classes a user makes or catches.
FOR_USERS = [
    name for name in MODULES if re.search(r"\.(operators|sensors|hooks|triggers|decorators|transfers)\b|errors$", name)
]


def _classes(module: ModuleType) -> list[type]:
    return [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


@pytest.fixture(scope="module")
def documented(site: Site) -> set[tuple[str, str]]:
    """Kinds and names of the Python objects in the reference, from the index that other sites link by."""
    _, _, _, _, packed = (site.path / "objects.inv").read_bytes().split(b"\n", 4)
    entries = [line.split(" ") for line in zlib.decompress(packed).decode().splitlines()]
    return {(kind, name) for name, kind, *_ in entries if kind.startswith("py:")}


def test_it_builds_without_a_warning(site: Site) -> None:
    assert site.complaints == ""


def test_every_public_module_is_in_the_reference(documented: set[tuple[str, str]]) -> None:
    assert [name for name in MODULES if ("py:module", name) not in documented] == []


@pytest.mark.parametrize("module", FOR_USERS)
def test_every_class_is_in_the_reference(module: str, documented: set[tuple[str, str]]) -> None:
    names = {name for _, name in documented}
    found = [f"{module}.{class_.__name__}" for class_ in _classes(importlib.import_module(module))]
    assert [name for name in found if name not in names] == []


@pytest.mark.parametrize("module", FOR_USERS)
def test_every_parameter_is_documented(module: str) -> None:
    missing = []
    for class_ in _classes(importlib.import_module(module)):
        if "__init__" not in vars(class_):
            continue
        told = f"{class_.__doc__ or ''}\n{class_.__init__.__doc__ or ''}"
        for name, parameter in inspect.signature(class_.__init__).parameters.items():
            passed_on = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if name != "self" and not passed_on and f":param {name}:" not in told:
                missing.append(f"{class_.__name__}({name})")
    assert missing == []


def test_rooms_for_users_are_found() -> None:
    rooms = {name.split(".")[1] for name in FOR_USERS}
    assert {"api", "campaign", "decorators", "hooks", "operators", "placement", "sensors", "triggers"} <= rooms


def test_every_page_is_in_the_site(site: Site) -> None:
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in PAGES]
    assert [page for page in pages if not (site.path / page).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_whole_dags_are_examples_that_are_run(page: Path) -> None:
    """A page shows a whole DAG only out of a file of the examples; the tutorials' are in what is typed."""
    text = page.read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert not re.search(r"\bDAG\(|@dag\b", block)
    shown = re.findall(r"```\{literalinclude\} (\S+)", text)
    for target in shown:
        path = (page.parent / target).resolve()
        assert path in EXAMPLES or path.is_relative_to(ROOT / "tests")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_run_by_a_test(example: Path) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "e2e").glob("test_*.py"))
    dag_ids = re.findall(r'dag_id="(\w+)"', example.read_text())
    assert dag_ids
    assert [dag_id for dag_id in dag_ids if f'"{dag_id}"' not in tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_of_pages_lead_somewhere_in_the_repository(page: Path) -> None:
    """Sphinx checks those of the site; the reference is made with it."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "reference/" not in link and not (page.parent / link).exists()] == []


def test_words_are_spelled_right() -> None:
    pytest.importorskip("codespell_lib", reason="the dependency group docs is not installed")
    places = ["README.md", "docs", "example_dags", "airflow_provider_runa"]
    command = [sys.executable, "-m", "codespell_lib", *places]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")
