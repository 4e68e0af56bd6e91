"""``make docs/compatibility.md``: the page of supported releases, from what the cells of ``make matrix`` wrote.

python -m scripts.matrix_table > docs/compatibility.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / ".build" / "matrix"

HEAD = """\
# Compatibility

`make docs/compatibility.md` generates this page from the results of `make matrix`; no cell is written by hand. Each row
is a fresh environment with the provider's wheel, that Airflow version, and the libraries from the time of that Airflow
release, as in its own constraints; the newest Airflow has today's libraries. *Unit tests* are all tests that need no
running Airflow. *End to end* starts that Airflow (scheduler, triggerer, API or web server, DAG processor where there is
one), pays a deferred order exactly once against the sandbox, and checks the connection form that the UI gets.

Install an older Airflow with its constraints too: with a FastAPI of 2026, Airflow 3.0.6 cannot start any task. Airflow
3.0 shows the fields of a provider's connection only if `apache-airflow-providers-fab` is installed, as it is in
Airflow's image. Without it, put the API key into *Password* and the other fields into *Extra*.

Some tests are skipped: the task state store and retry policies need Airflow 3.3, `airflow.sdk` needs Airflow 3, psycopg
3 needs SQLAlchemy 2, and a few tests read Runa's API contract, which is not distributed. Other tests are left out and
not counted: the tests of mutants and of the documentation site, which need the sources, and test files that use what an
older Airflow lacks (`tests/conftest.py` lists them). The UI is tested only on the newest Airflow, in the tests of the
sources. The example DAGs are written for Airflow 3.1 and later. A release without a row was not run to its end.

| Airflow | Python | SQLAlchemy | common.compat | unit tests | end to end | result |
|---|---|---|---|---|---|---|
"""


def version_of(result: dict[str, Any]) -> list[int]:
    """Return what rows are sorted by."""
    return [int(part) for name in ("airflow", "python") for part in result[name].split(".")]


def describe(run: dict[str, int]) -> str:
    """Return the counts of one run in words, without what is zero."""
    return ", ".join(f"{run[name]} {name}" for name in ("passed", "failed", "skipped") if run[name] or name == "passed")


def row(result: dict[str, Any]) -> str:
    """Return a row of the table."""
    runs, packages = result["runs"], result["packages"]
    good = all(run["passed"] and not run["failed"] for run in runs.values())
    cells = [
        result["airflow"],
        result["python"],
        packages["sqlalchemy"],
        packages["apache-airflow-providers-common-compat"],
        describe(runs["unit tests"]),
        describe(runs["end to end"]),
        "works" if good else "**fails**",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the page."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    print(HEAD + "\n".join(row(result) for result in sorted(results, key=version_of)))


if __name__ == "__main__":
    main()
