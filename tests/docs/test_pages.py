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


#: Typed between two pages.
NEXT_PAGE = """
```sh
echo "-- next page --"
```
"""


def test_the_pages_follow_each_other_in_one_shell(tmp_path: Path) -> None:
    """README, tutorial and campaigns do what they say, and each finds the sandbox that the page before it left."""
    readme = (ROOT / "README.md").read_text()
    (dag,) = re.findall(r"```python\n(.*?\"first_reward\".*?)```", readme, re.DOTALL)
    folder = tmp_path / "airflow" / "dags"
    folder.mkdir(parents=True)
    (folder / "first_reward.py").write_text(dag)
    pages = [readme, page("tutorial.md"), page("campaigns.md", until="Rows")]
    printed = type_in(NEXT_PAGE.join(pages), tmp_path, after={"kill -KILL $task": LATER}, timeout=700)
    _, tutorial, campaign = printed.split("-- next page --\n")
    check_the_tutorial(pages[1], tutorial)
    check_the_campaign(pages[2], campaign)


def check_the_tutorial(text: str, printed: str) -> None:
    """Four payouts, once each, whatever is typed again."""
    promised = re.findall(r"`(\d (?:of|order\(s\)) [^`]+)`", text)
    assert len(promised) == 3
    said = re.findall(r"^\d (?:of|order\(s\)) .*$", printed, re.MULTILINE)
    assert said == [promised[0], promised[0], promised[1], promised[2]]
    assert '"payouts":4' in printed.replace(" ", "")
    assert "45.00 USD" in printed


def check_the_campaign(text: str, printed: str) -> None:
    """A thousand payouts, once each, although the first run is killed."""
    promised, payouts = re.findall(r"`([^`\n]*\b1000\b[^`\n]*)`", text)
    killed, paid = re.findall(r"^\d+ of 1000 recipient.*$", printed, re.MULTILINE)
    assert killed.startswith("0 of 1000 ")
    assert re.findall(r"^ *(planned|sent) +(\d+) ", printed, re.MULTILINE) == [("planned", "600"), ("sent", "400")]
    assert paid == promised
    assert payouts in printed
