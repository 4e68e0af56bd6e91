"""The response check of the HTTP provider's trigger in ``triggerer.py``.

A separate module, because that trigger reloads the module at each poll.
"""

from __future__ import annotations

import json
from typing import Any


async def is_settled(response: Any) -> bool:
    """Whether an order is settled.

    :param response: the answer, as a ``requests.Response``.
    """
    return json.loads(response.content)["status"] in ("COMPLETED", "FAILED")
