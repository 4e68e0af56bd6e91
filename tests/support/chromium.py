"""A headless Chromium for the tests that look at Airflow's UI, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

MISSING = "there is no Chromium on this machine: install one with `make chromium` (as root, on Debian)"

#: How long a page may take to show what is waited for, in milliseconds.
_LONGEST_WAIT = 30_000

#: No sandbox, since root has none; nothing that asks the network by itself.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_program() -> str | None:
    """Return the path of Chromium; ``None`` if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def start_chromium(program: str) -> Iterator[BrowserContext]:
    """Run a browser without a window until the block ends.

    :param program: see :func:`find_program`.
    :returns: a fresh profile, whose pages are 1280 by 800 and wait 30 s for what they are asked for.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=_LONGEST_WAIT)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=_FLAGS) as browser,
        browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce") as context,
    ):
        context.set_default_timeout(_LONGEST_WAIT)
        yield context
