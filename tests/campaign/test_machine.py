"""The state machine of ``machine.py``, some schedules of it; ``make soak`` runs many more."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.campaign.machine import CampaignMachine

TestPayingACampaign = CampaignMachine.TestCase
TestPayingACampaign.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
