"""The errors of placing: three complete lines each, and the page in the docs that lists them all."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from airflow_provider_runa.placement import errors
from scripts.error_table import PARTS, kinds, render

KINDS = [kind for module in PARTS.values() for kind in kinds(module)]


def _facts(kind: type[errors.PlacementError]) -> Iterator[str]:
    for text in (kind.money, kind.next, kind.todo):
        yield from (name for _, name, _, _ in Formatter().parse(text) if name)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_has_three_lines_and_survives_pickling(kind: type[errors.PlacementError]) -> None:
    error = kind(**dict.fromkeys(_facts(kind), "fact"))
    text = str(error)
    assert len(text.splitlines()) == 3
    assert "{" not in text
    assert all(part.endswith(".") for part in (kind.money, kind.next, kind.todo))
    assert ("without further retries" in text) != kind.retryable
    assert ("next retry" in text) == kind.retryable
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, text)


def test_the_page_of_errors_matches_the_code() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "errors.md"
    assert page.read_text() == render(), "run `make --always-make docs/errors.md`"
