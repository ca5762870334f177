"""Runs programs for preparation, e.g. uv, cmake or a converter, and logs their output."""

import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from backends.launch import task
from backends.tables.log_causes import reported_exit
from sweep.base.exits import Exit

KILLED = re.compile(
    r"killed by (signal|sig)|signal 9\b", re.IGNORECASE
)  # how a compiler or interpreter reports that its child was killed
LINES_KEPT = 1000  # lines of a program's output that are kept for an error message


class ToolFailed(Exception):
    """A program ended with an error. `lines` are the last non-empty lines of its output."""

    def __init__(self, status: int, lines: list[str]) -> None:
        self.status, self.lines, self.last = status, lines, lines[-1] if lines else "no output"
        super().__init__(f"exit status {status}: {self.last}")


def printed(message: str) -> Exit:
    """Classify the exit of a program that printed this message about its failure."""
    exit = reported_exit(message)
    return replace(exit, outage=exit.outage or KILLED.search(message) is not None)


def run(
    command: list[str], environ: Mapping[str, str], log: Path, on_line: Callable[[str], None] = lambda line: None
) -> None:
    """Run a program. Append its output to `log` and pass each line to `on_line`. Raises ToolFailed, task.Stopped."""
    lines: deque[str] = deque(maxlen=LINES_KEPT)
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with log.open("a") as file, task.program(command, environ, **streams, errors="replace") as process:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            lines.append(line.strip())
            on_line(line.rstrip("\n"))
    if process.returncode != 0:
        raise ToolFailed(process.returncode, [line for line in lines if line])


def distributions(python: str) -> list[Path]:
    """Return the metadata folders of an interpreter's distributions, including inherited folders and Debian's."""
    prefix = Path(python).parent.parent
    prefixes, settings = [prefix], prefix / "pyvenv.cfg"
    if settings.is_file():
        pairs = (line.partition("=") for line in settings.read_text().splitlines())
        values = {name.strip(): value.strip() for name, _, value in pairs}
        if values.get("include-system-site-packages") == "true":
            prefixes.append(Path(values["home"]).parent)
    places = [place for each in prefixes for place in (each / "lib", each / "local" / "lib")]
    return sorted({path for place in places for path in place.glob("python*/*-packages/*-info")})
