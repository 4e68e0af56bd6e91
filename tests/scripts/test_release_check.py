"""A tag is published only if it names the version, and if the changelog tells what the version changes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from airflow_provider_runa import __version__
from airflow_provider_runa.campaign.tables import VERSION as LEDGER_VERSION
from scripts.release_check import CHANGELOG, problems, section

GOOD = "# Changelog\n\n## 1.10.0\n\nText.\n\n### Behaviour changes\n\nNone.\n\n## 1.1.0\n\nOlder.\n"


def run(tag: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.release_check", tag]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60, check=False)


def test_this_version_may_be_published() -> None:
    done = run(f"v{__version__}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"v{__version__} may be published.\n", "")


def test_another_tag_is_refused() -> None:
    done = run("v99.0.0")
    assert done.returncode == 1
    assert done.stderr.startswith("Nothing was published.\nThe tag is 'v99.0.0', but __version__ is ")


def test_the_changelog_tells_the_version_of_the_ledger() -> None:
    told = section(CHANGELOG.read_text(), __version__)
    assert told is not None
    assert f"The version of the ledger's tables is {LEDGER_VERSION}." in told


def test_a_good_one_has_no_problems() -> None:
    assert problems("v1.10.0", "1.10.0", GOOD) == []


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "told"),
    [
        ("1.10.0", "1.10.0", GOOD, "The tag is"),
        ("v1.10", "1.10.0", GOOD, "The tag is"),
        ("v1x10.0", "1.10.0", GOOD, "The tag is"),
        ("v1.1.0", "1.1.0", GOOD, "says nothing"),
        ("v1.10.1", "1.10.1", GOOD, "has no heading"),
        ("v1.10.0", "1.10.0", GOOD.replace("## 1.10.0", "## 1x10.0"), "has no heading"),
        ("v1.10.0", "1.10.0", GOOD.replace("\nNone.\n", ""), "says nothing"),
        ("v1.10.0", "1.10.0", "", "has no heading"),
    ],
)
def test_what_is_wrong_is_told(tag: str, version: str, changelog: str, told: str) -> None:
    (problem,) = problems(tag, version, changelog)
    assert told in problem
