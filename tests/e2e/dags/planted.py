"""What the DAGs of the tests order: items whose recipients must not be seen outside of Runa. No DAG in here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def planted() -> list[dict[str, Any]]:
    """Return the items; called on the worker, when the task's fields are rendered."""
    secrets = json.loads(Path(os.environ["RUNA_TEST_SECRETS"]).read_text())
    products = {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"}
    by_mail = {"type": "EMAIL", "email_address": secrets["address"]}
    known = {"type": "RECIPIENT", "recipient_reference": secrets["reference"], "email_address": secrets["address"]}
    return [
        {"face_value": 10, "distribution_method": by_mail, "products": products},
        {"face_value": 15, "distribution_method": known, "products": products},
        {"face_value": 20, "distribution_method": {"type": "PAYOUT_LINK"}, "products": products},
    ]


MACROS = {"planted": planted}
ITEMS = "{{ planted() | tojson }}"
