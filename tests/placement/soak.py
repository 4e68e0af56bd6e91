"""``make soak``: run many schedules of a state machine and report what was tried.

    python -m tests.placement.soak --machine placement --schedules 10000 --seconds 1200

At the first violation it ends with status 1 and prints a schedule that can be replayed. It uses all processors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.placement.machine import TRIED

#: The machines there are: the folder of the tests in which they stand -> their class.
MACHINES = {"placement": "PlacingMachine", "campaign": "CampaignMachine"}

#: Schedules of one round: between two rounds a process looks at the time.
ROUND = 250


def load(machine: str) -> type[RuleBasedStateMachine]:
    """Return a machine. Only its module is imported, so a mutant of one part does not break the machine of another."""
    kind: type[RuleBasedStateMachine] = getattr(import_module(f"tests.{machine}.machine"), MACHINES[machine])
    return kind


def run_round(machine: str, first: int, schedules: int, *, shrink: bool = True) -> str:
    """Run some schedules; return the violation with a schedule that can be replayed, or an empty text.

    :param machine: name of the machine.
    :param first: seed of the round. The same seed runs the same schedules.
    :param schedules: number of schedules.
    :param shrink: whether to search for a short schedule with the violation (slow), or take the first.
    """
    options = settings(
        max_examples=schedules,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        verbosity=Verbosity.normal,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(first)(load(machine)), settings=options)
    except Exception as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        return f"seed {first}: {''.join(traceback.format_exception_only(error))}\n{notes}"
    return ""


def _work(job: tuple[str, int, int, float, bool]) -> tuple[str, Counter[str]]:
    machine, first, schedules, until, shrink = job
    TRIED.clear()
    wrong = ""
    while schedules > 0 and not wrong and time.time() < until:
        wrong = run_round(machine, first, min(ROUND, schedules), shrink=shrink)
        schedules, first = schedules - ROUND, first + 1
    return wrong, Counter(TRIED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the schedules and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=MACHINES, default="placement", help="which (default placement)")
    parser.add_argument("--schedules", type=int, default=10_000, help="how many schedules (default 10000)")
    parser.add_argument("--seconds", type=float, default=1200, help="begin none after this time (default 1200)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9), help="of the first round")
    parser.add_argument("--no-shrink", action="store_true", help="take the first schedule that goes wrong as it is")
    options = parser.parse_args(argv)

    began = time.time()
    share = -(-options.schedules // options.processes)
    jobs: list[Any] = [
        (options.machine, options.seed + 1000 * number, share, began + options.seconds, not options.no_shrink)
        for number in range(options.processes)
    ]
    with multiprocessing.Pool(options.processes) as pool:
        results = pool.map(_work, jobs)
    tried: Counter[str] = sum((tried for _, tried in results), Counter())
    violations = [wrong for wrong, _ in results if wrong]
    faults = sum(count for name, count in tried.items() if name.startswith("fault: "))
    for name, count in sorted(tried.items()):
        print(f"{name:34} {count:>10,}")
    for wrong in violations:
        print(f"\nVIOLATION, {wrong}")
    print(
        f"\n{options.machine}: {tried['schedules']:,} schedules, {tried['events']:,} events, {faults:,} faults, "
        f"{tried['attempts']:,} attempts, {len(violations)} violation(s), {time.time() - began:.0f} s, "
        f"first seed {options.seed}"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
