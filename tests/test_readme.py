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
    exec(blocks("python")[1], names)
    order = names["order"]
    assert [type(task) for task in order.dag.tasks] == [RunaCreateOrderOperator, RunaOrderSensor]
    assert order.dag.tasks[1].upstream_task_ids == {"order_reward"}
    assert f"airflow dags test {order.dag.dag_id}" in README
    assert f"`{order.dag.dag_id}.py`" in README


def test_the_first_snippet_is_an_operator() -> None:
    exec(blocks("python")[0], {"RunaCreateOrderOperator": RunaCreateOrderOperator})


def test_the_sandbox_takes_what_is_written() -> None:
    shell = "".join(blocks("sh"))
    (options,) = re.findall(r"runa-sandbox (.*)", shell)
    port = _parser().parse_args(options.split()).port
    assert f"http://127.0.0.1:{port}/v2" in shell
    (faults,) = re.findall(r"-d '(.*)'", shell)
    assert [Fault(**values).kind for values in json.loads(faults)] == ["drop_after"]
    assert [kind for kind in FAULT_KINDS if f'"{kind}"' not in README and f"`{kind}`" not in README] == []


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
