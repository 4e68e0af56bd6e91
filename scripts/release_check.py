"""``make release-check TAG=v1.2.3``: checks that this tag may be published.

python -m scripts.release_check TAG
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from airflow_provider_runa import __version__

CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"


def section(changelog: str, version: str) -> str | None:
    """Return the section of a changelog about a version, or ``None`` if it has no such heading."""
    found = re.search(rf"^## {re.escape(version)}$\n(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE)
    return found[1] if found else None


def problems(tag: str, version: str, changelog: str) -> list[str]:
    """Return what speaks against publishing a tag, a sentence each.

    :param tag: the tag's name, such as ``v1.2.3``.
    :param version: the package's version.
    :param changelog: the text of the changelog.
    """
    found = []
    if tag != f"v{version}":
        found.append(f"The tag is {tag!r}, but __version__ is {version}: one of them has to change.")
    text = section(changelog, version)
    if text is None:
        found.append(f"CHANGELOG.md has no heading '## {version}'.")
    elif not re.search(r"^### Behaviour changes$\n\s*[^\s#]", text, re.MULTILINE):
        found.append(
            f"CHANGELOG.md says nothing under '### Behaviour changes' of {version}; if there are none, say it."
        )
    return found


def main() -> None:
    """Exit with what speaks against publishing the tag, if anything does."""
    if found := problems(sys.argv[1], __version__, CHANGELOG.read_text()):
        sys.exit("\n".join(["Nothing was published.", *found]))
    print(f"{sys.argv[1]} may be published.")


if __name__ == "__main__":
    main()
