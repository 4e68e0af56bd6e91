"""``make docs/images/map.svg``: draws the rooms of the package and the imports between them, from the code.

python -m scripts.map > docs/images/map.svg

An arrow leads from a room to one that it imports. Arrows that follow from others are left out.
"""

from __future__ import annotations

from html import escape

from scripts.rooms import ROOMS, arrows

#: Room -> column and row of its box.
PLACES = {
    "decorators": (0.0, 0),
    "transfers": (1.0, 0),
    "cli": (2.0, 0),
    "operators": (1.0, 1),
    "sensors": (3.0, 1),
    "links": (0.0, 2),
    "triggers": (2.0, 2),
    "hooks": (1.5, 3),
    "utils": (3.0, 3),
    "campaign": (1.5, 4),
    "placement": (2.0, 5),
    "api": (2.0, 6),
    "sandbox": (3.5, 6),
}

WIDTH, HEIGHT = 230, 56
COLUMN, ROW = 262, 104
MARGIN = 24

STYLE = """
  rect.page { fill: #ffffff }
  rect.room { fill: #f4f1ff; stroke: #7c6bd6 }
  rect.pure { fill: #e6f6ec; stroke: #2f9e5f }
  text { font: 600 15px sans-serif; fill: #1c1b22; text-anchor: middle }
  text.what { font: 12px sans-serif; fill: #4a4857 }
  text.note { font: 12px sans-serif; fill: #4a4857; text-anchor: start }
  line { stroke: #8a879c; stroke-width: 1.4; marker-end: url(#head) }
"""

#: Rooms that import no Airflow.
PURE = ("api", "placement", "campaign", "sandbox")


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows that do not follow from others."""

    def reaches(start: str, end: str, *, without: tuple[str, str]) -> bool:
        return any(
            (start, room) != without and (room == end or reaches(room, end, without=without))
            for room in sorted(graph.get(start, ()))
        )

    return {
        room: {other for other in others if not reaches(room, other, without=(room, other))}
        for room, others in graph.items()
    }


def draw() -> str:
    """Return the picture as SVG."""
    graph = {
        room: {other for other in others if other in ROOMS}
        for room, others in sorted(arrows().items())
        if room in ROOMS
    }
    width = int(MARGIN * 2 + COLUMN * max(column for column, _ in PLACES.values()) + WIDTH)
    height = MARGIN * 2 + ROW * max(row for _, row in PLACES.values()) + HEIGHT + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="The rooms of the package, and which room imports which">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#8a879c"/></marker></defs>',
        f'<rect class="page" width="{width}" height="{height}" rx="8"/>',
    ]
    for room, others in reduced(graph).items():
        parts += [_arrow(room, other) for other in sorted(others)]
    parts += [_box(room) for room in PLACES]
    note = "An arrow leads to what a room imports. Green: no Airflow in it."
    parts.append(f'<text class="note" x="{MARGIN}" y="{height - 14}">{note}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _corner(room: str) -> tuple[float, float]:
    column, row = PLACES[room]
    return MARGIN + column * COLUMN, MARGIN + row * ROW


def _box(room: str) -> str:
    x, y = _corner(room)
    middle = x + WIDTH / 2
    kind = "pure" if room in PURE else "room"
    return (
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{middle:g}" y="{y + 23:g}">{room}/</text>'
        f'<text class="what" x="{middle:g}" y="{y + 42:g}">{escape(ROOMS[room])}</text>'
    )


def _arrow(room: str, other: str) -> str:
    (x1, y1), (x2, y2) = _corner(room), _corner(other)
    start, end = x1 + WIDTH / 2, x2 + WIDTH / 2
    shift = max(-WIDTH / 3, min(WIDTH / 3, (start - end) / 4))
    return f'<line x1="{start - shift:g}" y1="{y1 + HEIGHT:g}" x2="{end + shift:g}" y2="{y2 - 2:g}"/>'


if __name__ == "__main__":
    print(draw(), end="")
