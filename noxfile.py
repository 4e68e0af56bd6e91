"""The matrix: the wheel on every supported Airflow and Python, each in a fresh environment (``make matrix``).

A cell runs the unit tests and ``tests/e2e/test_every_release.py`` on a copy of the tests that lies away from the
package's sources, so that it is the wheel that is tested, and writes what it found to ``.build/matrix/<cell>.json``.
``scripts/matrix_table.py`` makes ``docs/compatibility.md`` of those.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv"
nox.options.envdir = ".build/nox"

ROOT = Path(__file__).parent
RESULTS = ROOT / ".build" / "matrix"

# Airflow -> the Pythons it supports, of those the provider does. From the oldest of both to the newest of both.
MATRIX = {
    "2.11.2": ("3.11", "3.12"),
    "3.0.6": ("3.11", "3.12"),
    "3.1.8": ("3.11", "3.12", "3.13"),
    "3.2.2": ("3.11", "3.12", "3.13"),
    "3.3.2": ("3.11", "3.12", "3.13"),
}
# How a release is installed. Airflow does not bound its dependencies above, and later ones may not fit: the FastAPI of
# March 2026 wants a body's content type, which the workers of 3.0.6 do not send, so that no task starts, whatever it
# is. So each has what was there when it came out, as Airflow's own constraints do, and only the newest has what there
# is today. For 3.0.6, one dependency of this provider is later.
INSTALL = {
    "2.11.2": ("--exclude-newer", "2026-03-15"),
    "3.0.6": (
        *("--exclude-newer", "2025-08-30"),
        *("--exclude-newer-package", "apache-airflow-providers-common-compat=2026-03-15"),
        "apache-airflow-providers-fab",  # without it 3.0 shows no provider's connection form; Airflow's image has it
    ),
    "3.1.8": ("--exclude-newer", "2026-03-15"),
    "3.2.2": ("--exclude-newer", "2026-05-30"),
}

PAIRS = [(python, airflow) for airflow in MATRIX for python in MATRIX[airflow]]
TAGS = {PAIRS[0]: ["oldest"], PAIRS[-1]: ["newest"]}
CELLS = [nox.param(*pair, id=f"{pair[1]}-py{pair[0]}", tags=TAGS.get(pair, [])) for pair in PAIRS]
# Hunting mutants changes the sources, the site is made of them, and the map reads them: that tests no wheel.
LEFT_OUT = ("tests/placement/test_mutants.py", "tests/docs/test_site.py", "tests/test_rooms.py")
UNIT = ("-m", "not e2e and not celery and not dist", "-n", "2", *(f"--ignore={file}" for file in LEFT_OUT))
END_TO_END = ("tests/e2e/test_every_release.py",)

FOUND = """
import importlib.metadata as m, json, platform, airflow, airflow_provider_runa
names = ("apache-airflow", "airflow-provider-runa", "apache-airflow-providers-common-compat", "sqlalchemy", "pydantic")
print(json.dumps({"python": platform.python_version(), "package": airflow_provider_runa.__file__,
                  "airflow": airflow.__version__, "packages": {name: m.version(name) for name in names}}))
"""

if pyenv := shutil.which("pyenv"):  # its python3.12 answers only if 3.12 is among the wanted versions
    versions = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True, check=True).stdout.split()
    os.environ["PYENV_VERSION"] = ":".join(versions)


def counts(report: Path) -> dict[str, int]:
    """Return how many tests of a JUnit report passed, failed and were skipped."""
    suites = list(ElementTree.parse(report).iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return {"passed": total - failures - errors - skipped, "failed": failures + errors, "skipped": skipped}


@nox.session
@nox.parametrize("python,airflow", CELLS)
def matrix(session: nox.Session, airflow: str) -> None:
    """Test the wheel on one Airflow and one Python."""
    began = time.monotonic()
    name = f"{airflow}-py{session.python}"
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = RESULTS / f"{name}.json"
    result.unlink(missing_ok=True)  # a cell that ends early has none
    work = Path(session.create_tmp())
    shutil.rmtree(work)
    work.mkdir()
    session.run(sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(work), external=True)
    (wheel,) = work.glob("*.whl")
    how = INSTALL.get(airflow, ())
    session.install(*how, f"apache-airflow=={airflow}", f"{wheel}[sandbox]", "--group", "test")
    for part in ("tests", "scripts", "example_dags", "docs", "benchmarks", ".github"):
        shutil.copytree(ROOT / part, work / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / part, work)
    with session.chdir(work):
        found = json.loads(session.run("python", "-W", "ignore", "-c", FOUND, silent=True).splitlines()[-1])
        if found["airflow"] != airflow or not found["python"].startswith(f"{session.python}."):
            session.error(f"not the Airflow and Python of this cell: {found}")
        if "site-packages" not in found.pop("package"):
            session.error("not the wheel, but the sources are imported")
        runs = {}
        for label, arguments in {"unit tests": UNIT, "end to end": END_TO_END}.items():
            report = work / f"{label.replace(' ', '-')}.xml"
            started = time.monotonic()
            session.run("python", "-m", "pytest", *arguments, f"--junitxml={report}", success_codes=[0, 1])
            runs[label] = counts(report) | {"seconds": round(time.monotonic() - started)}
    seconds = round(time.monotonic() - began)
    result.write_text(json.dumps({"cell": name, **found, "runs": runs, "seconds": seconds}, indent=1) + "\n")
    failed = [label for label, run in runs.items() if run["failed"] or not run["passed"]]
    if failed:
        session.error(f"failed: {', '.join(failed)}")
