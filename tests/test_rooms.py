"""The rooms of the package: what each may import. The arrows lead one way."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.map import draw
from scripts.rooms import PACKAGE, ROOMS, ROOT, arrows, imports_of, modules, room_of

#: Room, or module at the root -> what it may import of the package, besides its version.
MAY_IMPORT = {
    "api": set(),
    "placement": {"api"},
    "campaign": {"api", "placement"},
    "hooks": {"api", "campaign", "get_provider_info"},
    "utils": {"_compat", "api", "placement"},
    "links": set(),
    "triggers": {"api", "hooks", "utils"},
    "sensors": {"api", "hooks", "placement", "triggers", "utils"},
    "operators": {"api", "campaign", "hooks", "links", "placement", "triggers", "utils"},
    "transfers": {"api", "campaign", "operators", "utils"},
    "decorators": {"_compat", "api", "operators", "utils"},
    "cli": {"api", "campaign", "hooks", "operators", "utils"},
    "sandbox": set(),
    "retry_policy": {"api", "campaign", "placement", "utils"},
    "_compat": set(),
    "get_provider_info": set(),
}
AT_THE_ROOT = {"__init__", "_compat", "get_provider_info", "retry_policy"}

#: Rooms that can be read, tested and used without these.
WITHOUT = {
    "api": ("airflow",),
    "placement": ("airflow", "httpx"),
    "campaign": ("airflow", "httpx"),
    "sandbox": ("airflow",),
}

#: Library -> the rooms that import it.
LIBRARIES = {
    "httpx": {"api", "hooks"},
    "tenacity": {"api", "campaign"},
    "sqlalchemy": {"campaign", "cli", "hooks", "operators"},
    "fastapi": {"sandbox"},
    "uvicorn": {"sandbox"},
    "rich": {"cli"},
}


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert arrows().get(room, set()) - {"__version__"} <= MAY_IMPORT[room]


def test_every_room_has_a_rule_and_a_place_on_the_map() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    assert folders <= set(MAY_IMPORT)


def test_there_is_no_circle_of_rooms() -> None:
    """A room is taken away once nothing that is left imports it; in a circle, none can be."""
    left = {room: set(others) for room, others in MAY_IMPORT.items()}
    while free := [room for room in left if not any(room in others for others in left.values())]:
        for room in free:
            del left[room]
    assert not left


@pytest.mark.parametrize("room", sorted(WITHOUT))
def test_a_pure_room_imports_neither_airflow_nor_http(room: str) -> None:
    found = {
        (path.name, name)
        for path in modules()
        if path.is_relative_to(ROOT / room)
        for name in imports_of(path.read_text(encoding="utf-8"))
        if name.partition(".")[0] in WITHOUT[room]
    }
    assert not found


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_where_it_may_be(library: str) -> None:
    found = {
        path.relative_to(ROOT).parts[0].removesuffix(".py")
        for path in modules()
        for name in imports_of(path.read_text(encoding="utf-8"))
        if name.partition(".")[0] == library
    }
    assert found == LIBRARIES[library]


def test_the_root_of_the_package_holds_nothing_else() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == AT_THE_ROOT


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"from {PACKAGE}.operators import payout", f"{PACKAGE}.operators"),
        (f"from {PACKAGE} import operators", f"{PACKAGE}.operators"),
        (f"import {PACKAGE}.operators.payout as x", f"{PACKAGE}.operators.payout"),
        (f"def f():\n    from {PACKAGE}.operators.runa import X", f"{PACKAGE}.operators.runa"),
    ],
)
def test_an_import_is_found_however_it_is_written(source: str, expected: str) -> None:
    assert imports_of(source) == {expected}
    assert room_of(expected) == "operators"


def test_an_import_for_type_checking_is_no_arrow() -> None:
    assert imports_of(f"if TYPE_CHECKING:\n    from {PACKAGE}.operators import X") == set()


def test_the_map_is_what_the_code_says() -> None:
    picture = Path(__file__).parent.parent / "docs" / "images" / "map.svg"
    assert picture.read_text(encoding="utf-8") == draw(), "run `make --always-make docs/images/map.svg`"
