"""The state machine of ``machine.py``, a few hundred schedules of it; ``make soak`` runs many more."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.placement.machine import PlacingMachine

TestPlacing = PlacingMachine.TestCase
TestPlacing.settings = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
