"""How long masking takes for a number of recipients: before ``execute``, and then for each line of the log.

    python -m benchmarks.masking [--recipients N ...]

Each figure is the best of a few rounds, each with the masker of a fresh process. Ratios are those of the time for one
recipient, against the first size: 1.0 is linear. Exits non-zero if that of the last size is above the limit. Only the
task's own process is measured; see ``MOST_FOR_SUPERVISOR`` in ``utils/masking.py`` for the supervisor.
"""

from __future__ import annotations

import argparse
import re
import time

from airflow_provider_runa._compat import secrets_masker
from airflow_provider_runa.utils.masking import mask_recipients
from tests.support.airflow import reset_secrets_masker

LIMIT = 4.0  # time for one recipient of the last size / of the first; quadratic would be 20
ROUNDS = 3


def items(count: int) -> list[dict[str, object]]:
    """Return the items of an order for as many recipients."""
    return [
        {
            "face_value": 10,
            "distribution_method": {"type": "EMAIL", "email_address": f"person-{number}@example.com"},
            "products": {"type": "SINGLE", "value": "AMZ-US"},
        }
        for number in range(count)
    ]


def measure(count: int) -> tuple[float, float]:
    """Return the seconds that registering the recipients took, and those of one line of the log afterwards."""
    given = items(count)
    reset_secrets_masker()
    re.purge()  # else the pattern of the round before is found there
    began = time.perf_counter()
    mask_recipients([given])
    registered = time.perf_counter()
    shown = secrets_masker().redact(f"The order of person-{count - 1}@example.com is COMPLETED.")
    done = time.perf_counter()
    if shown != "The order of *** is COMPLETED.":
        raise RuntimeError("a recipient is shown")
    return registered - began, done - registered


def main() -> int:
    """Measure each size and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipients", type=int, nargs="+", default=[250, 1000, 5000], help="sizes")
    sizes = parser.parse_args().recipients
    each: dict[int, float] = {}
    for count in sizes:
        seconds, line = map(min, zip(*(measure(count) for _ in range(ROUNDS)), strict=True))
        each[count] = seconds / count
        ratio = each[count] / each[sizes[0]]
        print(f"{count} recipients: {seconds:.3f} s, ratio {ratio:.2f}; a line of the log {line * 1000:.2f} ms")
    return 0 if each[sizes[-1]] / each[sizes[0]] <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
