"""The pages with something to try out, typed as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT
from tests.docs.pages import page, type_in

pytestmark = pytest.mark.e2e

#: What the killed run has taken is left to it for 3 minutes: they are over.
LATER = """
python -c "
import sqlite3
with sqlite3.connect('ledger.db', timeout=60) as ledger:
    assert ledger.execute('UPDATE runa_batch SET owned_until = planned_at').rowcount >= 5
"
"""


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    text = page("tutorial.md")
    printed = type_in(text, tmp_path, timeout=400)
    promised = re.findall(r"`(\d (?:of|order\(s\)) [^`]+)`", text)
    assert len(promised) == 3
    said = re.findall(r"^\d (?:of|order\(s\)) .*$", printed, re.MULTILINE)
    assert said == [promised[0], promised[0], promised[1], promised[2]]
    assert '"payouts":4' in printed.replace(" ", "")
    assert "45.00 USD" in printed


def test_a_campaign_of_a_thousand_is_killed_and_paid_once(tmp_path: Path) -> None:
    text = page("campaigns.md", until="Rows")
    printed = type_in(text, tmp_path, after={"kill -KILL $task": LATER}, timeout=300)
    promised, payouts = re.findall(r"`([^`\n]*\b1000\b[^`\n]*)`", text)
    killed, paid = re.findall(r"^\d+ of 1000 recipient.*$", printed, re.MULTILINE)
    assert killed.startswith("0 of 1000 ")
    assert re.findall(r"^ *(planned|sent) +(\d+) ", printed, re.MULTILINE) == [("planned", "600"), ("sent", "400")]
    assert paid == promised
    assert payouts in printed


def test_the_pages_follow_each_other_in_one_shell(tmp_path: Path) -> None:
    """README, tutorial and campaigns: each finds the sandbox that the page before it left."""
    readme = (ROOT / "README.md").read_text()
    (dag,) = re.findall(r"```python\n(.*?\"first_reward\".*?)```", readme, re.DOTALL)
    folder = tmp_path / "airflow" / "dags"
    folder.mkdir(parents=True)
    (folder / "first_reward.py").write_text(dag)
    text = "\n".join([readme, page("tutorial.md"), page("campaigns.md", until="Rows")])
    printed = type_in(text, tmp_path, after={"kill -KILL $task": LATER}, timeout=700)
    assert "4 of 4 recipient(s) paid" in printed
    assert "1000 of 1000 recipient(s) paid" in printed
    assert '"payouts":1000' in printed
