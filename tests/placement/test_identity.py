"""Identities: what they are made of, and what must never change about them."""

from __future__ import annotations

from airflow_provider_runa.placement.identity import OrderIdentity
from tests.support.orders import ORDER

PLACE = {"dag_id": "rewards", "run_id": "manual__1", "task_id": "pay", "map_index": -1}


def task(deployment: str | None = None) -> OrderIdentity:
    return OrderIdentity.from_task("https://api.runa.io/v2", **PLACE, deployment=deployment)  # type: ignore[arg-type]


def test_identities_without_a_deployment_are_what_they_always_were() -> None:
    """Any other key would pay again what is under way."""
    assert task().idempotency_key(0) == "49e3ab91-5657-5174-8b3d-ba513eb8b8c2"
    assert task("") == task()
    assert "airflow_deployment" not in task().provenance()


def test_each_deployment_is_another_identity() -> None:
    identities = [task(), task("blue"), task("green")]
    assert len({identity.idempotency_key(0) for identity in identities}) == 3
    assert len({identity.short_name for identity in identities}) == 3
    blue = identities[1].provenance()
    assert blue["airflow_deployment"] == "blue"
    assert not identities[2].owns(blue)


def test_another_place_has_no_key_of_a_deployment() -> None:
    mapped = OrderIdentity.from_task("https://api.runa.io/v2", **(PLACE | {"map_index": 7}))  # type: ignore[arg-type]
    assert mapped != task("7")
    assert mapped.digest != task("7").digest


def test_a_deployment_takes_one_pair_of_metadata() -> None:
    metadata = {f"k{number}": "v" for number in range(13)}
    order = ORDER.model_copy(update={"metadata": metadata})
    assert len(task("blue").seal(order, 0, marked=True).metadata or {}) == 20
