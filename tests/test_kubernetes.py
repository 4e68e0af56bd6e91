"""The pod template in docs/kubernetes.md is a pod, asks for what the page says, and keeps the key out of itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_runa.api.settings import DEFAULT_CONN_ID, DEFAULT_TIMEOUT, PLAYGROUND, PRODUCTION

PAGE = (Path(__file__).parent.parent / "docs" / "kubernetes.md").read_text()


@pytest.fixture
def pod() -> dict[str, Any]:
    (template,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return yaml.safe_load(template)


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


def test_it_is_a_pod_of_the_executor(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    assert container["name"] == "base", "Airflow runs the task in the container of this name"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert not container["image"].endswith(":latest")


def test_the_provider_needs_no_volume(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert "volumes" not in pod["spec"]
    assert "volumeMounts" not in container


def test_a_request_may_be_answered_before_the_pod_is_killed(pod: dict[str, Any]) -> None:
    assert pod["spec"]["terminationGracePeriodSeconds"] > DEFAULT_TIMEOUT
    assert f"`timeout` ({DEFAULT_TIMEOUT:.0f} s)" in PAGE


def test_connections_come_from_the_secret_that_is_made(container: dict[str, Any]) -> None:
    (name, made) = re.findall(r"create secret generic (\S+) \\\n(.*)\n", PAGE)[0]
    keys = re.findall(r"--from-file=(\w+)=", made)
    references = {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]}
    assert references == {f"AIRFLOW_CONN_{key.upper()}": {"name": name, "key": key} for key in keys}
    assert keys == [DEFAULT_CONN_ID, "ledger"]
    assert not any("value" in variable for variable in container["env"]), "a value would be readable in the template"


def test_the_connections_are_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = re.findall(r"`(\{\"conn_type\".*?\})`", PAGE)
    kinds = []
    for text in contents:
        monkeypatch.setenv("AIRFLOW_CONN_MOUNTED", text)
        kinds.append(BaseHook.get_connection("mounted").conn_type)
    assert kinds == ["runa", "postgres"]
    assert all(json.loads(text)["password"] == "…" for text in contents)


def test_memory_is_asked_for_and_bounded(container: dict[str, Any]) -> None:
    resources = container["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert "memory" in resources["limits"]


@pytest.mark.parametrize("url", [PRODUCTION, PLAYGROUND])
def test_both_hosts_are_named(url: str) -> None:
    assert f"`{urlsplit(url).hostname}`" in PAGE


def test_the_page_says_what_was_not_tried() -> None:
    assert "**This was not run on a Kubernetes cluster.**" in PAGE


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)", PAGE))))
def test_links_lead_somewhere(link: str) -> None:
    assert (Path(__file__).parent.parent / "docs" / link).exists()
