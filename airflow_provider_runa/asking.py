"""How operators and sensors that only ask Runa something, and pay nobody, end without an answer."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.api.errors import InvalidOrderError, RunaRequestError
from airflow_provider_runa.hooks.runa import RunaConnectionSettingsError

#: What no retry heals: wrong input, a connection that cannot be used, and what Runa refuses.
FINAL = (InvalidOrderError, RunaConnectionSettingsError, RunaRequestError)


def refused(error: Exception) -> AirflowFailException:
    """Return one of :data:`FINAL` as Airflow should see it: it must not burn retries."""
    found = str(error).rstrip(".")
    return AirflowFailException(f"Nobody was paid, because this only asks: {found}. Mend that, then clear the task.")
