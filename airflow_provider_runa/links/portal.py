"""The link from a task in Airflow's UI to Runa's portal."""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

#: The address of Runa's portal (see https://developer.runa.io/docs/make-your-first-order-asynchronous). Runa does not
#: document an address for a single order: search in the portal for the order's id or reference, which are in the task's
#: log and XCom.
PORTAL = "https://app.runa.io/"


class RunaPortalLink(BaseOperatorLink):
    """A link to Runa's portal, where you can search for an order by its id or by the reference in its description."""

    name = "Runa portal"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address of the portal.

        :param operator: the operator.
        :param ti_key: the task instance.
        """
        return PORTAL
