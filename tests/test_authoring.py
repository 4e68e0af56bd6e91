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
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_each_snippet_is_a_dag(block: int) -> None:
    if "airflow_provider_runa.retry_policy" in BLOCKS[block]:
        pytest.importorskip("airflow.sdk.definitions.retry_policy", reason="Airflow before 3.3 has no retry policies")
    with DAG("rewards", schedule=None) as dag:
        exec(BLOCKS[block], {"look_up": str})
    assert dag.tasks or block == 1  # which only defines a task


def test_the_custom_check_reads_the_catalogue(runa: RunningSandbox) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[1], names)
    assert {"AMZ-US", "CAFE-US"} <= set(names["orderable_products"].function())
    assert not {"GONE-US", "TEA-GB", "TUNES-US"} & set(names["orderable_products"].function())


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
