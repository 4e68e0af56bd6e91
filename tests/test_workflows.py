"""The workflows run code that nobody can swap, with no more rights than they need, and call targets that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
TEXTS = {path.name: path.read_text() for path in FILES}
WORKFLOWS: dict[str, dict[Any, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
JOBS = {f"{file}:{name}": job for file, flow in WORKFLOWS.items() for name, job in flow["jobs"].items()}
PUBLISH = "release.yml:publish"
TARGETS = set(re.findall(r"^([a-z0-9/.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in JOBS.items():
        for step in job["steps"]:
            yield name, step


def targets(commands: str) -> list[str]:
    """Return the make targets that shell commands call."""
    return re.findall(r"^make ([a-z0-9/.-]+)$", commands, re.MULTILINE)


def test_there_are_two() -> None:
    assert set(WORKFLOWS) == {"ci.yml", "release.yml"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_pinned_to_a_commit_and_says_which_version_it_is(name: str) -> None:
    used = re.findall(r"\buses:\s*(.*)", TEXTS[name])
    assert len(used) == sum("uses" in step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"])
    assert used
    assert [line for line in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_one_action_has_one_commit() -> None:
    used = {step["uses"] for _, step in steps() if "uses" in step}
    assert len({pin.partition("@")[0] for pin in used}) == len(used)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_reads_and_no_more(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert "secrets." not in TEXTS[name]
    assert "pull_request_target" not in TEXTS[name]


@pytest.mark.parametrize("name", JOBS)
def test_only_publishing_may_write(name: str) -> None:
    wanted = {"id-token": "write"} if name == PUBLISH else None
    assert JOBS[name].get("permissions") == wanted


def test_publishing_waits_for_the_build_and_the_environment_and_runs_nothing_of_ours() -> None:
    job = JOBS[PUBLISH]
    assert (job["needs"], job["environment"]) == ("build", "release")
    assert [step["uses"].partition("@")[0] for step in job["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    assert job["steps"][-1]["with"] == {"attestations": True}
    # YAML 1.1 reads the key `on` as true.
    assert WORKFLOWS["release.yml"][True] == {"push": {"tags": ["v*"]}}
    build = [step.get("run") for step in JOBS["release.yml:build"]["steps"] if "run" in step]
    assert build == ["make release-check", ".ci/run"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_runs_do_not_pile_up(name: str) -> None:
    assert WORKFLOWS[name]["concurrency"]["group"]
    assert [job for job in WORKFLOWS[name]["jobs"].values() if not job["timeout-minutes"] <= 60] == []


def test_a_release_is_never_cancelled_half_way() -> None:
    assert WORKFLOWS["release.yml"]["concurrency"] == {"group": "release", "cancel-in-progress": False}


def test_no_checkout_keeps_its_token() -> None:
    checkouts = [step for _, step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert [step for step in checkouts if step["with"]["persist-credentials"] is not False] == []


def test_nothing_from_outside_is_put_into_a_command() -> None:
    assert [step["run"] for _, step in steps() if "${{" in step.get("run", "")] == []


def test_no_host_is_named() -> None:
    assert [name for name, text in TEXTS.items() if "://" in text] == []


def test_what_is_called_exists() -> None:
    commands = [step["run"] for _, step in steps() if "run" in step]
    assert {"make matrix-oldest", "make matrix-newest", ".ci/run"} <= set(commands)
    assert [command for command in commands if command != ".ci/run" and not targets(command)] == []
    script = ROOT / ".ci" / "run"
    called = {target for command in commands for target in targets(command)}
    assert called - TARGETS == set()
    if script.exists():  # which no sdist has
        assert script.stat().st_mode & 0o100
        ours = targets(script.read_text())
        assert {"lint", "test-dist", "test"} <= set(ours) <= TARGETS
        assert ours[-1] == "test", "the last line that is printed is the main suite's"
