"""``links_to``: payout links are written to the given file, and nowhere else."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException
from airflow.sdk import task

from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.placement.errors import LinksNotWrittenError
from tests.support.airflow import SharedClock, TaskStates, task_context
from tests.support.orders import link
from tests.support.sandbox import RunningSandbox

EMAIL = link(7) | {"distribution_method": {"type": "EMAIL", "email_address": "ada-7311@example.com"}}
ITEMS = [link(10), EMAIL, link(20), link(10)]


def operator(runa: RunningSandbox, links_to: Any, **values: Any) -> RunaCreateOrderOperator:
    given = {"items": ITEMS, "currency": "USD", "wait_for_completion": True, "links_to": links_to}
    found = RunaCreateOrderOperator(**({"task_id": "pay"} | given | values))
    found.clock = SharedClock(runa)  # type: ignore[assignment]
    return found


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_links_are_written_to_a_private_file_and_nowhere_else(
    runa: RunningSandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "links.jsonl"
    context = task_context(states=(states := TaskStates()))
    order_id = operator(runa, str(path)).execute(context)
    lines = read(path)
    assert [(line["item"], line["face_value"], line["order_id"]) for line in lines] == [
        (0, lines[0]["face_value"], order_id),
        (2, lines[1]["face_value"], order_id),
        (3, lines[0]["face_value"], order_id),
    ]
    assert [float(line["face_value"]) for line in lines] == [10, 20, 10]
    assert len({line["url"] for line in lines}) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["links.jsonl"]
    seen = json.dumps([context["ti"].xcoms, states.values]) + capsys.readouterr().out
    assert "3 payout link(s)" in seen
    assert not [line for line in lines if line["url"] in seen]


def test_a_retry_writes_the_same_again_and_widens_no_permission(runa: RunningSandbox, tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    path.write_text("old")
    path.chmod(0o644)
    operator(runa, str(path)).execute(task_context())
    first = path.read_bytes()
    operator(runa, str(path)).execute(task_context(try_number=2))
    assert path.read_bytes() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sum(runa.stats()["orders"].values()) == 1


def test_after_a_deferral_links_are_written(runa: RunningSandbox, tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    order_id = operator(runa, None, wait_for_completion=False).execute(task_context())
    runa.advance(10)
    event = {"status": "final", "orders": {order_id: "COMPLETED"}}
    operator(runa, str(path)).execute_complete(task_context(), event)
    assert [line["item"] for line in read(path)] == [0, 2, 3]
    with pytest.raises(LinksNotWrittenError, match="not JSON"):
        operator(runa, str(path), items="gone").execute_complete(task_context(), event)
    changed = operator(runa, str(path), items=[link(11)])
    with pytest.raises(AirflowFailException, match="pays something else"):
        changed.execute_complete(task_context(), event)


def test_after_a_deferral_the_function_runs_again_to_match_the_links(runa: RunningSandbox, tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"

    @task.runa_order(currency="USD", wait_for_completion=True, links_to=str(path))
    def pay() -> list[dict[str, Any]]:
        return ITEMS

    with DAG("rewards", schedule=None):
        found: Any = pay().operator
    order_id = operator(runa, None, wait_for_completion=False).execute(task_context())
    runa.advance(10)
    found.execute_complete(task_context(), {"status": "final", "orders": {order_id: "COMPLETED"}})
    assert [line["item"] for line in read(path)] == [0, 2, 3]


def test_links_that_cannot_be_written_fail_the_task_and_the_retry_orders_nothing(
    runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "links.jsonl"

    def full(fileno: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("airflow_provider_runa.utils.payout_links.os.fsync", full)
    with pytest.raises(LinksNotWrittenError, match=r"O-\S+ is COMPLETED.*OSError: No space left on device") as caught:
        operator(runa, str(path)).execute(task_context())
    assert "http" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", runa.connection)
    operator(runa, str(path)).execute(task_context(try_number=2))
    assert len(read(path)) == 3
    assert sum(runa.stats()["orders"].values()) == 1


@pytest.mark.parametrize(
    ("links_to", "values", "message"),
    [
        ("/tmp/links.txt", {}, "must be a file whose name ends in"),
        ("None", {}, "must be a file whose name ends in"),
        ("links.jsonl", {}, "must be an absolute path in a folder"),
        ("/tmp/links.jsonl", {"items": [EMAIL]}, "no item has the distribution method PAYOUT_LINK"),
        ("/tmp/links.jsonl", {"wait_for_completion": False}, "needs wait_for_completion=True"),
    ],
)
def test_links_that_cannot_be_written_are_rejected_before_anything_is_sent(
    runa: RunningSandbox, links_to: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(AirflowFailException, match=f"Nothing was sent in this attempt: links_to: .*{message}"):
        operator(runa, links_to, **values).execute(task_context())
    assert runa.stats()["requests"] == {}


def test_a_file_whose_value_is_missing_is_rejected(runa: RunningSandbox) -> None:
    found = operator(runa, "{{ missing }}")
    found.links_to = None
    with pytest.raises(AirflowFailException, match="links_to: must be"):
        found.execute(task_context())


def test_the_page_shows_an_operator() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "payout-links.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(snippet, {"RunaCreateOrderOperator": RunaCreateOrderOperator})
