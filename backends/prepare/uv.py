"""uv, with the user's settings of pip.

uv is fast and can omit a distribution that others depend on, which pip cannot. It reads no pip.conf, so the user's
settings of pip (indexes, find-links, certificate, time-out) are handed over, in uv's environment and not on its command
line: an index URL may hold a password.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from uv import find_uv_bin

from backends.base import Progress
from backends.launch import task
from backends.prepare import programs


class EnvironmentFailed(Exception):
    """An environment cannot be provided. One line: which one, why, and where the build's log is."""


class Uv:
    """uv for one environment: its output goes to `log`, the lines that tell how far it is to the user too."""

    def __init__(self, name: str, cache_dir: Path, log: Path, progress: Progress, index: Sequence[str] = ()) -> None:
        self.name, self.log, self.progress = name, log, progress
        pip = pip_settings()
        self.settings = uv_settings(pip, index)
        # The one setting that uv takes from no variable.
        self.no_index = ("--no-index",) if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else ()
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
            raise EnvironmentFailed(f"environment {self.name} cannot be {verb}: {message}; log: {self.log}") from None

    def _report(self, line: str) -> None:
        if line.startswith(("Downloading", "Resolved", "Prepared", "Installed", "Bytecode", "   Building")):
            self.progress(f"environment {self.name}: {line.strip()}")


def pip_settings() -> dict[str, str]:
    """Return the user's settings of pip, by option name ("index-url"): PIP_* before [install] before [global]."""
    answer = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentFailed(f"pip's settings cannot be read: {last}; see `{sys.executable} -m pip config list`")
    pairs = (line.partition("=") for line in answer.stdout.splitlines() if "=" in line)
    settings = {name.strip(): str(ast.literal_eval(value)) for name, _, value in pairs}
    merged: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        merged |= {key.split(".", 1)[1]: value for key, value in settings.items() if key.startswith(f"{section}.")}
    return merged


def uv_settings(pip: Mapping[str, str], index: Sequence[str] = ()) -> dict[str, str]:
    """Translate pip's settings into uv's environment variables, with an environment's own indexes besides.

    Local folders that do not exist are omitted.
    """
    settings = {
        # pip takes the best version over all indexes, uv by default only looks at the first that has the name.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_LINK_MODE": os.environ.get("UV_LINK_MODE", "hardlink"),
        "UV_NO_PROGRESS": "1",
    }

    def give(variable: str, value: str | None) -> None:
        if value and variable not in os.environ:  # the user's settings of uv itself go first
            settings[variable] = value

    extra = [url for url in pip.get("extra-index-url", "").split() if _exists(url)]
    links = [link for link in pip.get("find-links", "").split() if _exists(link)]
    give("UV_DEFAULT_INDEX", pip.get("index-url"))
    give("UV_INDEX", " ".join(extra))
    if index:
        settings["UV_INDEX"] = " ".join([*index, *filter(None, [settings.get("UV_INDEX", os.environ.get("UV_INDEX"))])])
    give("UV_FIND_LINKS", ",".join(links))
    give("UV_INSECURE_HOST", " ".join(pip.get("trusted-host", "").split()))
    give("SSL_CERT_FILE", pip.get("cert"))
    give("UV_HTTP_TIMEOUT", pip.get("timeout") or pip.get("default-timeout"))
    return settings


def _exists(place: str) -> bool:
    """Return whether a URL or folder can be used: one on the network always, a local one if it exists."""
    parts: Any = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return True
    return Path(unquote(parts.path)).expanduser().exists()
