"""How tasks end that no retry heals: those that only ask Runa something, and pay nobody, and those that pay."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.api.errors import InvalidOrderError, RunaRequestError
from airflow_provider_runa.hooks.runa import RunaConnectionSettingsError

#: What no retry and no waiting heals: wrong input, a connection that cannot be used, and what Runa refuses.
FINAL = (InvalidOrderError, RunaConnectionSettingsError, RunaRequestError)


def refused(error: Exception, *, so_far: str = "Nobody was paid, because this only asks") -> AirflowFailException:
    """Return what no retry heals, such as one of :data:`FINAL`, as Airflow should see it: it must not burn retries.

    :param error: what went wrong.
    :param so_far: what happened to the money.
    """
    found = str(error).rstrip(".")
    return AirflowFailException(f"{so_far}: {found}. Mend that, then clear the task.")
