"""The link from a task in Airflow's UI to Runa's portal."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

#: Runa's portal. Runa documents its address (https://developer.runa.io/docs/make-your-first-order-asynchronous sends
#: readers there for an API key), but none of a single order: search there for the order's id or reference, which are in
#: the task's log and in its XCom.
PORTAL = "https://app.runa.io/"


class RunaPortalLink(BaseOperatorLink):
    """Leads to Runa's portal, where an order is found by its id or by the reference in its description."""

    name = "Runa portal"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the portal's address.

        :param operator: the operator.
        :param ti_key: the task instance.
        """
        return PORTAL
