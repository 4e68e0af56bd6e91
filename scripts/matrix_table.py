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

Made by `make docs/compatibility.md` from what `make matrix` found; no cell is written by hand. Each row is a fresh
environment with the provider's wheel, that Airflow, and the libraries of the day that Airflow came out, as its own
constraints have them; the newest has those of today. *Unit tests* are all tests that need no running Airflow. *End to
end* starts that Airflow (scheduler, triggerer, API or web server, DAG processor where there is one), pays a deferred
order exactly once against the sandbox, and looks at the connection form that the UI is given.

Install an older Airflow by its constraints, too: with a FastAPI of 2026, 3.0.6 starts no task of anybody's. And 3.0
shows the fields of a provider's connection only where `apache-airflow-providers-fab` is installed, as it is in
Airflow's image; elsewhere the API key goes into *Password*, and the other fields into *Extra*.

What is skipped: the task state store and retry policies are Airflow 3.3's, `airflow.sdk` is Airflow 3's, psycopg 3
needs SQLAlchemy 2, and a few tests read Runa's API contract, which is not distributed. Left out, and not counted, are
the tests of mutants and of the documentation site, which need the sources, and test files that use what an older
Airflow lacks: `tests/conftest.py` lists them. The UI is tested on the newest only, in the sources' own tests. The
example DAGs are written for Airflow 3.1 and later. A release without a row was not run to its end.

| Airflow | Python | SQLAlchemy | common.compat | unit tests | end to end | result |
|---|---|---|---|---|---|---|
"""


def version_of(result: dict[str, Any]) -> list[int]:
    """Return what rows are sorted by."""
    return [int(part) for name in ("airflow", "python") for part in result[name].split(".")]


def told(run: dict[str, int]) -> str:
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
        told(runs["unit tests"]),
        told(runs["end to end"]),
        "works" if good else "**fails**",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the page."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    print(HEAD + "\n".join(row(result) for result in sorted(results, key=version_of)))


if __name__ == "__main__":
    main()
