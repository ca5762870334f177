"""uv for the environments of engines: fast, and able to omit a distribution that others depend on, which pip cannot."""

import re
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

from backends.base import Progress
from backends.launch import task
from backends.prepare import programs
from backends.prepare.pip_settings import UnreadableSettings, no_index, pip_settings, uv_settings
from sweep.base.exits import Failed

DOWNLOAD = re.compile(r"Downloading \S+ \(([\d.]+)(KiB|MiB|GiB)\)")  # as uv announces one
MEBIBYTES = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
LARGE_DOWNLOAD = 50.0  # MiB; smaller ones are reported together


class EnvironmentFailed(Failed):
    """An environment cannot be provided. One line: which one, why, and where the build's log is."""


class Uv:
    """uv for one environment, logged, its progress shown. Raises EnvironmentFailed by pip's settings."""

    def __init__(self, name: str, cache_dir: Path, log: Path, progress: Progress, index: Sequence[str] = ()) -> None:
        self.name, self.log, self.progress = name, log, progress
        self.downloads: list[float] = []  # MiB
        try:
            pip = pip_settings()
        except UnreadableSettings as error:
            raise EnvironmentFailed(str(error)) from None
        self.settings, self.no_index = uv_settings(pip, index), no_index(pip)
        # Beside the environments: on one file system uv links instead of copying, and an empty HOME does no harm.
        self.settings.setdefault("UV_CACHE_DIR", str(cache_dir.expanduser().absolute() / "uv"))

    def pip(self, command: str, *arguments: str, **more: str) -> None:
        """Run `uv pip COMMAND`. Raises EnvironmentFailed."""
        self.run("pip", command, *self.no_index, *arguments, **more)

    def run(self, *arguments: str, **more: str) -> None:
        """Run uv; `more` are environment variables. Raises EnvironmentFailed."""
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
            line = f"{line}, {len(self.downloads)} downloads of together {sum(self.downloads):,.0f} MiB"
        if line.startswith(("Downloading", "Resolved", "Prepared", "Installed", "Bytecode", "   Building")):
            self.progress(f"environment {self.name}: {line.strip()}")
