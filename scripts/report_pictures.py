"""Takes the pictures of a run: its report in a headless Chromium, and its terminal output at 80 columns.

`python -m scripts.report_pictures RUN/report.html` writes docs/images/report.png, report_dark.png, report_phone.png and
report_terminal.svg. `--fragment '#explore?ttft=0.2'` opens the page at that address; `--name slo` changes the names to
slo.png, ….
"""

import argparse
import base64
import contextlib
import io
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from analysis.report.terminal import screen_of
from analysis.results import open_results
from sweep.base.config import ROOT
from tests.support.browser import Browser, missing, opened_browser

IMAGES = ROOT / "docs" / "images"


class View(NamedTuple):
    """A screen: its CSS pixels, its colour scheme, and the suffix of the picture's name."""

    width: int
    height: int
    scale: int  # pixels of the picture per CSS pixel
    scheme: str
    suffix: str


VIEWS = (
    View(1440, 1200, 1, "light", ""),
    View(1440, 1200, 1, "dark", "_dark"),
    View(390, 844, 2, "light", "_phone"),
)


def take(browser: Browser, page: Path, fragment: str, view: View, picture: Path) -> None:
    """Write the top of the page as a PNG. An address that chooses a view is scrolled back to the first screen."""
    size = {"width": view.width, "height": view.height, "deviceScaleFactor": view.scale}
    browser.devtools("Emulation.setDeviceMetricsOverride", **size, mobile=view.scale > 1)
    browser.devtools("Emulation.setScrollbarsHidden", hidden=True)
    browser.media(scheme=view.scheme)
    browser.open(page, fragment)
    browser.run("scrollTo(0, 0)")
    picture.write_bytes(base64.b64decode(browser.devtools("Page.captureScreenshot", format="png")["data"]))


def write_terminal(run: Path, picture: Path) -> None:
    """Write the end of a run as a terminal of 80 columns shows it; its fonts are the reader's own."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, highlight=False)
    with contextlib.chdir(run.parent):  # so that the commands name no folder of this machine
        console.print(screen_of(open_results(run.name)))
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=f"sweep summary {run.name}"), flags=re.DOTALL)
    picture.write_text(svg, encoding="utf-8")


def main() -> None:
    """Take the pictures of one report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.html of a run")
    parser.add_argument("--fragment", default="", help="part of the address that selects a view")
    parser.add_argument("--name", default="report", help="name of the pictures (default: report)")
    arguments = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    if not arguments.report.is_file():
        parser.error(f"report: no file {arguments.report}; `sweep report RUN` writes RUN/report.html")
    with tempfile.TemporaryDirectory() as folder, opened_browser(Path(folder)) as browser:
        for view in VIEWS:
            picture = IMAGES / f"{arguments.name}{view.suffix}.png"
            take(browser, arguments.report.resolve(), arguments.fragment, view, picture)
            print(picture)
    picture = IMAGES / f"{arguments.name}_terminal.svg"
    write_terminal(arguments.report.resolve().parent, picture)
    print(picture)


if __name__ == "__main__":
    main()
