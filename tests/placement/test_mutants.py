"""The list of mutants fits the code, and the machine detects one of them; ``make mutants`` hunts all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.placement.mutants import ROOT, Mutant, hunt, read_mutants

MUTANTS = read_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant: Mutant, tmp_path: Path) -> None:
    for change in mutant.changes:
        target = tmp_path / "airflow_provider_runa" / change.file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "airflow_provider_runa" / change.file, target)
    mutant.apply(tmp_path)


def test_a_key_that_depends_on_the_try_number_is_detected() -> None:
    (mutant,) = (mutant for mutant in MUTANTS if "number of the try" in mutant.name)
    verdict = hunt(mutant, schedules=1000, seconds=120, seed=1)
    assert verdict.killed, verdict.reason
    assert "orders that pay" in verdict.reason
