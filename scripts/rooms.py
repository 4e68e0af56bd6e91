"""The rooms of the package, and which room imports which, read from the code. For the map and for the test of rooms."""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "airflow_provider_runa"
ROOT = Path(__file__).parent.parent / PACKAGE

#: What a room is for.
ROOMS = {
    "operators": "orders, campaigns, checks",
    "transfers": "pay the rows of a query",
    "decorators": "@task.runa_order, …payout",
    "sensors": "wait for orders, or for a balance",
    "triggers": "wait in the triggerer; only GETs",
    "cli": "runa-status, runa-reconcile",
    "links": "links in Airflow's UI",
    "utils": "arguments, masking, failures",
    "hooks": "connection to client or ledger",
    "campaign": "many rows, one ledger",
    "placement": "one order, exactly once",
    "api": "Runa as it is",
    "sandbox": "a local Runa API",
}


def modules() -> Iterator[Path]:
    """Yield the files of the package."""
    yield from sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    """Return the room of a module; for a module at the package's root, its own name.

    :param module: full name, such as ``airflow_provider_runa.api.client``.
    """
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@functools.cache
def imports_of(source: str) -> frozenset[str]:
    """Return the names of all modules that a source text imports, also inside functions.

    Imports for type checking only are left out: they do not exist when the code runs.

    :param source: the text of a module.
    """
    found: set[str] = set()
    tree = ast.parse(source)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # "from package import room" imports a room as well.
            found |= {node.module} if node.module != PACKAGE else {f"{PACKAGE}.{name.name}" for name in node.names}
    return frozenset(found)


def arrows() -> dict[str, set[str]]:
    """Return for each room the other rooms and root modules that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        room = room_of(module)
        for name in imports_of(path.read_text(encoding="utf-8")):
            if name.startswith(f"{PACKAGE}.") and (other := room_of(name)) != room:
                found[room].add(other)
    return dict(found)
