"""Builds engine environments with uv. It is fast and, unlike pip, can omit a distribution that others depend on."""

import re
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

from backends.base import Progress
from backends.launch import task
from backends.prepare import programs
from backends.prepare.pip_settings import UnreadableSettings, no_index, pip_settings, uv_settings
from sweep.base.exits import Failed

DOWNLOAD = re.compile(r"Downloading \S+ \(([\d.]+)(KiB|MiB|GiB)\)")  # uv's announcement of a download
MEBIBYTES = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
LARGE_DOWNLOAD = 50.0  # MiB; smaller downloads are reported together


class EnvironmentFailed(Failed):
    """An environment cannot be provided. The one-line message names the environment, the reason and the log."""


class Uv:
    """Runs uv for one environment, with a log. Raises EnvironmentFailed if pip's settings cannot be read."""

    def __init__(self, name: str, cache_dir: Path, log: Path, progress: Progress, index: Sequence[str] = ()) -> None:
        self.name, self.log, self.progress = name, log, progress
        self.downloads: list[float] = []  # MiB
        try:
            pip = pip_settings()
        except UnreadableSettings as error:
            raise EnvironmentFailed(str(error)) from None
        self.settings, self.no_index = uv_settings(pip, index), no_index(pip)
        # The cache is next to the environments: within a file system uv links instead of copying. HOME may be unset.
        self.settings.setdefault("UV_CACHE_DIR", str(cache_dir.expanduser().absolute() / "uv"))

    def pip(self, command: str, *arguments: str, **more: str) -> None:
        """Run `uv pip COMMAND`. Raises EnvironmentFailed."""
        self.run("pip", command, *self.no_index, *arguments, **more)

    def run(self, *arguments: str, **more: str) -> None:
        """Run uv, with `more` as environment variables. Raises EnvironmentFailed."""
        try:
            programs.run(
                [find_uv_bin(), *arguments], task.clean_environment(**self.settings, **more), self.log, self._report
            )
        except programs.ToolFailed as failure:
            message = " ".join(line.lstrip("×├─▶╰│ ") for line in failure.lines)[-300:] or "no output"
            verb = "resolved" if "compile" in arguments else "built"
            problem = f"environment {self.name} cannot be {verb}: {message}; log: {self.log}"
            raise EnvironmentFailed(problem, programs.printed(message)) from None

    def _report(self, line: str) -> None:
        if download := DOWNLOAD.match(line):
            size = float(download[1]) * MEBIBYTES[download[2]]
            self.downloads.append(size)
            if size < LARGE_DOWNLOAD:
                return
        if line.startswith("Prepared") and self.downloads:
            line = f"{line}, {len(self.downloads)} downloads, {sum(self.downloads):,.0f} MiB in total"
        if line.startswith(("Downloading", "Resolved", "Prepared", "Installed", "Bytecode", "   Building")):
            self.progress(f"environment {self.name}: {line.strip()}")
