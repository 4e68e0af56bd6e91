"""What the README shows works as it is written there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.sandbox.__main__ import _parser
from airflow_provider_runa.sandbox.engine import FAULT_KINDS, Fault
from airflow_provider_runa.sensors.runa import RunaOrderSensor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_dag_is_one() -> None:
    pytest.importorskip("airflow.sdk", reason="the README's DAG is written for Airflow 3")
    names: dict[str, Any] = {}
    exec(blocks("python")[0], names)
    order = names["order"]
    assert [type(task) for task in order.dag.tasks] == [RunaCreateOrderOperator, RunaOrderSensor]
    assert order.dag.tasks[1].upstream_task_ids == {"order_reward"}
    assert f"airflow dags test {order.dag.dag_id}" in README
    assert f"/{order.dag.dag_id}.py`" in README


def test_the_campaign_is_an_operator() -> None:
    pytest.importorskip("airflow.providers.common.sql")
    exec(blocks("python")[1], {})


def test_the_sandbox_takes_what_is_written() -> None:
    shell = "".join(blocks("sh"))
    (port,) = re.findall(r"runa-sandbox (--port \d+) &", shell)
    assert f"http://127.0.0.1:{_parser().parse_args(port.split()).port}/v2" in shell


def test_every_fault_is_on_the_page_about_the_sandbox() -> None:
    page = (ROOT / "docs" / "howto" / "testing.md").read_text()
    (faults,) = re.findall(r"-d '(\[.*kind.*)'", page)
    assert [Fault(**values).kind for values in json.loads(faults)] == ["drop_after"]
    assert [kind for kind in FAULT_KINDS if f"`{kind}`" not in page] == []


def test_it_is_short() -> None:
    assert len(README.split()) < 900


def test_links_work_from_anywhere() -> None:
    """The text is also the page on PyPI and the wheel's metadata, where a relative link leads nowhere."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


def test_pages_that_it_names_exist() -> None:
    _, _, last = README.partition("\n## Where to go from here\n")
    names = re.findall(r"`docs/([\w/-]+\.md)`", README) + re.findall(r"`([a-z/-]+(?:\.md|/))`", last)
    assert len(names) > 6
    assert [name for name in names if not (ROOT / "docs" / name).exists()] == []
