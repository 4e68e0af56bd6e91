"""The documentation site: the pages in this folder, and a reference from the docstrings of every public module.

``make docs`` builds it and treats every warning as an error. It downloads nothing: names of other projects are plain
text.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("AIRFLOW_HOME", str(ROOT / ".build" / "airflow"))  # importing Airflow writes its settings

from airflow_provider_runa import __version__  # noqa: E402 - from this tree, not from an installed version

project = "airflow-provider-runa"
version = release = __version__
html_title = f"{project} {release}"
html_theme = "furo"
html_show_copyright = False
html_use_index = html_domain_indices = False  # the search finds more, and the tables are too wide for a phone

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
exclude_patterns = ["reference/modules.rst"]  # only one link; the package's page has all modules
if not (ROOT / "CHANGELOG.md").exists():
    exclude_patterns.append("changelog.md")

# Links to headings, and task lists, as on a repository page.
myst_heading_anchors = 3
myst_enable_extensions = ["tasklist"]

# Modules are discovered, so a new module is included automatically.
apidoc_modules = [
    {
        "path": "../airflow_provider_runa",
        "destination": "reference",
        "separate_modules": True,
        "module_first": True,
        "max_depth": 2,
        "exclude_patterns": ["../airflow_provider_runa/sandbox"],  # a command: see commands.md
        "automodule_options": {"members", "undoc-members", "show-inheritance"},
    }
]
autodoc_default_options = {"exclude-members": "model_config", "ignore-module-all": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
add_module_names = False

OTHERS = [
    *("airflow", "fastapi", "httpx", "openlineage", "pydantic", "rich", "sqlalchemy", "starlette", "tenacity"),
    *sys.stdlib_module_names,
]

# An unknown name is an error, unless it is documented elsewhere, or is a type or a private base class.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", rf"({'|'.join(OTHERS)})\..*"),
    (
        "py:.*",
        "AirflowFailException|Connection|Context|Decimal|PokeReturnValue|SecretStr|Task|TaskDecorator|date|datetime|timedelta",
    ),
    # Types of the models' fields, and parts of their annotations.
    ("py:class", r"Code|Currency|Distribution|FaceValue|Moment|Products|Field|StringConstraints|P|lambda|dict\[str"),
    ("py:class", r"airflow_provider_runa\.(.*\.)?(_[\w.]+|T)"),
]


class CommandLine(Directive):
    """``.. commandline:: module``: the ``--help`` text of a command."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        parser: argparse.ArgumentParser = module._parser()
        return [nodes.literal_block(text=text, language="none") for text in _helps(parser)]


def _helps(parser: argparse.ArgumentParser) -> list[str]:
    helps = [parser.format_help()]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps += [command.format_help() for command in action.choices.values()]
    return helps


def _name(app: Sphinx, page: str, source: list[str]) -> None:
    """Shorten the title of a reference page to what fits on a line, and remove the titles of its lists."""
    if page.startswith("reference/"):
        title = page.removeprefix("reference/airflow_provider_runa").removeprefix(".") or "Modules"
        text = re.sub(r"^(Subpackages|Submodules)\n-+\n", "", source[0], flags=re.MULTILINE)
        source[0] = re.sub(r"\A.+\n=+\n", f"{title}\n{'=' * len(title)}\n", text)


def setup(app: Sphinx) -> None:
    """Add what the pages need."""
    app.add_directive("commandline", CommandLine)
    app.connect("source-read", _name)
