"""The user's pip settings for uv, which does not read pip.conf. Passed as variables: URLs may hold passwords."""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class UnreadableSettings(Exception):
    """pip cannot read its settings. The message has the reason and a command that shows them."""


def pip_settings() -> dict[str, str]:
    """Return pip's settings by option; PIP_* beats [install], which beats [global]. Raises UnreadableSettings."""
    answer = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise UnreadableSettings(f"pip's settings cannot be read: {last}; see `{sys.executable} -m pip config list`")
    pairs = (line.partition("=") for line in answer.stdout.splitlines() if "=" in line)
    settings = {name.strip(): str(ast.literal_eval(value)) for name, _, value in pairs}
    merged: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        merged |= {key.split(".", 1)[1]: value for key, value in settings.items() if key.startswith(f"{section}.")}
    return merged


def uv_settings(pip: Mapping[str, str], index: Sequence[str] = ()) -> dict[str, str]:
    """Translate pip's settings and an environment's indexes into uv's variables, without folders that do not exist."""
    settings = {
        # pip takes the best version from all indexes; by default uv uses only the first index that has the package.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_LINK_MODE": os.environ.get("UV_LINK_MODE", "hardlink"),
        "UV_NO_PROGRESS": "1",
    }

    def give(variable: str, value: str | None) -> None:
        if value and variable not in os.environ:  # the user's uv settings take precedence
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
    give("SSL_CLIENT_CERT", pip.get("client-cert"))
    give("ALL_PROXY", pip.get("proxy"))
    give("UV_HTTP_TIMEOUT", pip.get("timeout") or pip.get("default-timeout"))
    return settings


def no_index(pip: Mapping[str, str]) -> tuple[str, ...]:
    """Return uv's arguments to forbid every index, if pip's settings forbid them. uv has no variable for this."""
    return ("--no-index",) if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else ()


def _exists(place: str) -> bool:
    """Return whether a URL or folder can be used. A network URL is always accepted; a local folder must exist."""
    parts: Any = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return True
    return Path(unquote(parts.path)).expanduser().exists()
