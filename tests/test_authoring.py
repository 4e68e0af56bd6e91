"""What docs/authoring.md shows works as it is written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from tests.support.sandbox import RunningSandbox

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "authoring.md").read_text()


def _snippets() -> dict[str, str]:
    """Return the snippets of the page by the heading that they stand under; of several, the later ones are numbered."""
    found: dict[str, str] = {}
    for heading, text in re.findall(r"^#+ (.+?)\n(.*?)(?=^#+ |\Z)", PAGE, re.DOTALL | re.MULTILINE):
        for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL), 1):
            found[heading if number == 1 else f"{heading} ({number})"] = snippet
    return found


SNIPPETS = _snippets()


CHECKS = "Before: the product, the costs, the balance"


@pytest.mark.parametrize("heading", SNIPPETS)
def test_each_snippet_is_a_dag(heading: str) -> None:
    snippet = SNIPPETS[heading]
    if "airflow_provider_runa.retry_policy" in snippet:
        pytest.importorskip("airflow.sdk.definitions.retry_policy", reason="Airflow before 3.3 has no retry policies")
    with DAG("rewards", schedule=None) as dag:
        exec(snippet, {"look_up": str})
    assert dag.tasks or heading == f"{CHECKS} (2)"  # which only defines a task


def test_the_custom_check_reads_the_catalogue(runa: RunningSandbox) -> None:
    names: dict[str, Any] = {}
    exec(SNIPPETS[f"{CHECKS} (2)"], names)
    assert {"AMZ-US", "CAFE-US"} <= set(names["orderable_products"].function())
    assert not {"GONE-US", "TEA-GB", "TUNES-US"} & set(names["orderable_products"].function())


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
