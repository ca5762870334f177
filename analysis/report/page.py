"""Joins a report's parts into one file: a template's sections, the script, and the data that the script reads.

templates/ has the layout.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.point_names import listed
from analysis.report.page_data import as_block
from analysis.report.tables import LARGEST_TABLE
from analysis.statistics.intervals import CONFIDENCE
from analysis.table import one_line
from sweep.base.wording import printable

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
SCRIPT = ("data", "state", "answer", "figure", "table", "details", "controls")  # in order, in templates/script
MOST_WARNINGS = 3  # open under "What to doubt"; the rest of the warnings are closed
SECTION = re.compile(r'<section[^>]* id="([a-z]+)"[^>]*>\s*<h2[^>]*>(.*?)</h2>')
CODE = re.compile(r"`([^`]+)`")


def code_marked(text: str) -> Markup:
    """Return a text written by sweep as markup; words between backticks become code."""
    return Markup(CODE.sub(r"<code>\1</code>", escape(printable(text))))


def _more_points(count: int) -> str:
    return f", with {count - LARGEST_TABLE} more points" if count > LARGEST_TABLE else ""


TEMPLATES = Environment(
    loader=FileSystemLoader(TEMPLATE_FOLDER),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
)
TEMPLATES.filters |= {"code_marked": code_marked, "one_line": one_line}
TEMPLATES.globals |= {
    "confidence": f"{CONFIDENCE:.0%}",
    "largest_table": LARGEST_TABLE,
    "most_warnings": MOST_WARNINGS,
    "listed": listed,
    "more_points": _more_points,
}


class Lead(NamedTuple):
    """A line below the title about a run's outcome."""

    text: str
    name: str = ""  # the run's name, on a page of several runs
    link: str = ""  # link to the run's report


def page(title: str, leads: Sequence[Lead], template: str, parts: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return the document: the template's sections for these parts, and the data that the script draws."""
    explorable, script = is_explorable(data), _script()
    sections = Markup(TEMPLATES.get_template(template).render(**parts, explorable=explorable))
    return TEMPLATES.get_template("report.html").render(
        title=title,
        leads=leads,
        sections=sections,
        anchors=[pair for pair in SECTION.findall(sections) if pair[0] != "results" or not explorable],
        explorable=explorable,
        data=as_block(data),
        script=script,
        script_hash=f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}",
    )


def is_explorable(data: Mapping[str, Any]) -> bool:
    """Return whether there is anything to draw in the data."""
    return any(data["points"]["n"]) and bool(data["quantities"])


def _script() -> Markup:
    """Return the page's script, joined from the files that a designer edits. Its names are local to the script."""
    parts = ((TEMPLATE_FOLDER / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPT)
    return Markup('(() => {\n"use strict";\n' + "".join(parts) + "})();\n")
