"""``make mutants``: break the algorithms on purpose, one way at a time, and check that the state machines detect it.

    python -m tests.placement.mutants [NAME ...]

A mutant is a copy of the project with a few changed lines. It is killed when a schedule of its machine violates an
invariant. A mutant that survives shows something that the machine does not test; the command ends with status 1 unless
all are killed.
Each machine has its list, ``mutants.txt`` in its folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
#: The machine that hunts -> its list.
LISTS = {name: ROOT / "tests" / name / "mutants.txt" for name in ("placement", "campaign")}
COPIED = ("airflow_provider_runa", "tests/__init__.py", "tests/placement", "tests/campaign", "tests/support")


@dataclass(frozen=True)
class Change:
    """A few changed lines.

    :param file: path below the package.
    :param old: the lines as they are; they are in the file exactly once.
    :param new: the lines of the mutant.
    """

    file: str
    old: str
    new: str


@dataclass
class Mutant:
    """A wrong algorithm.

    :param name: what is wrong with it.
    :param machine: the machine that must detect it.
    :param changes: the changes that make it wrong.
    """

    name: str
    machine: str = "placement"
    changes: list[Change] = field(default_factory=list)

    def apply(self, root: Path) -> None:
        """Change the files of a project.

        :param root: the project's folder.
        :raises ValueError: if the lines are not there exactly once: the mutant is out of date.
        """
        for change in self.changes:
            path = root / "airflow_provider_runa" / change.file
            text = path.read_text()
            if text.count(change.old) != 1:
                raise ValueError(f"{self.name}: found {text.count(change.old)} times in {change.file}:\n{change.old}")
            path.write_text(text.replace(change.old, change.new))


def read_mutants() -> list[Mutant]:
    """Return the mutants of all lists."""
    return [mutant for machine in LISTS for mutant in _read_list(machine)]


def _read_list(machine: str) -> list[Mutant]:
    mutants: list[Mutant] = []
    for line in LISTS[machine].read_text().splitlines():
        if line.startswith("== "):
            mutants.append(Mutant(line.removeprefix("== "), machine))
        elif line.startswith("@@ "):
            mutants[-1].changes.append(Change(line.removeprefix("@@ "), "", ""))
        elif line and line[0] in " -+":
            change = mutants[-1].changes.pop()
            old, new = (f"{line[1:]}\n" * (line[0] in signs) for signs in (" -", " +"))
            mutants[-1].changes.append(Change(change.file, change.old + old, change.new + new))
    return mutants


@dataclass(frozen=True)
class Verdict:
    """The result of hunting a mutant.

    :param mutant: the mutant.
    :param state: ``"killed"``: an invariant was violated. ``"SURVIVED"``: none was. ``"NO VERDICT"``: the schedules did
        not run to their end, because the mutant does not run or its process was ended.
    :param reason: the violation, or the last line of the output instead.
    :param seconds: how long it took.
    """

    mutant: Mutant
    state: str
    reason: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether the machine detected the mutant."""
        return self.state == "killed"


def hunt(mutant: Mutant, *, schedules: int, seconds: float, seed: int) -> Verdict:
    """Run the machine on a mutant until it is killed or a limit is reached.

    :param mutant: the mutant.
    :param schedules: number of schedules at most.
    :param seconds: time at most, in seconds.
    :param seed: seed of the first round.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in COPIED:
            source, target = ROOT / name, Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        mutant.apply(Path(folder))
        options = (
            "--machine",
            mutant.machine,
            "--schedules",
            schedules,
            "--seconds",
            seconds,
            "--seed",
            seed,
            "--processes",
            1,
        )
        done = subprocess.run(
            [sys.executable, "-m", "tests.placement.soak", "--no-shrink", *map(str, options)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=seconds + 300,
        )
    found = [line for line in done.stdout.splitlines() if line.startswith("VIOLATION, ")]
    violated = done.returncode == 1 and bool(found) and "AssertionError" in found[0]
    state = "killed" if violated else "SURVIVED" if done.returncode == 0 else "NO VERDICT"
    reason = (found or (done.stderr or done.stdout).strip().splitlines() or ["nothing"])[-1]
    return Verdict(mutant, state, reason.partition("AssertionError: ")[2] or reason, time.monotonic() - began)


def main(argv: Sequence[str] | None = None) -> int:
    """Hunt the mutants and print the result of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only mutants whose name contains this")
    parser.add_argument("--machine", choices=LISTS, help="only mutants of this machine")
    parser.add_argument("--schedules", type=int, default=6000, help="for each mutant at most (default 6000)")
    parser.add_argument("--seconds", type=float, default=240, help="for each mutant at most (default 240)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round (default 1)")
    options = parser.parse_args(argv)

    began = time.monotonic()
    chosen = [
        mutant
        for mutant in read_mutants()
        if options.machine in (None, mutant.machine)
        and (not options.names or any(name in mutant.name for name in options.names))
    ]
    states: Counter[str] = Counter()

    def work(mutant: Mutant) -> Verdict:
        return hunt(mutant, schedules=options.schedules, seconds=options.seconds, seed=options.seed)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for verdict in pool.map(work, chosen):
            states[verdict.state] += 1
            print(
                f"{verdict.state:10} {verdict.seconds:5.0f} s  {verdict.mutant.name}: {verdict.reason[:100]}",
                flush=True,
            )
    listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    print(f"\n{len(chosen)} mutants: {listed}, {time.monotonic() - began:.0f} s")
    return 0 if states["killed"] == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
