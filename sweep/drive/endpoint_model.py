"""The model of a running endpoint: the endpoint is asked if the command line names none."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from sweep.base.config import ConfigError, first_line, parent_mapping, shortened
from sweep.base.options import ConfigPath
from sweep.plan.command_line import parse_command_line

TIMEOUT = 10.0  # s


def with_model(arguments: Sequence[str], options: ConfigPath) -> list[str]:
    """A command line with the model of its endpoint, if it has an endpoint but neither model nor experiment.

    Raises:
        ConfigError: if the endpoint cannot be asked, or serves several models.
    """
    line = parse_command_line(arguments)
    choice, endpoint_keys = line.scalars.get("backend"), {"backend.url", "backend.api_key_env"}
    if line.experiment or "model" in line.typed or endpoint_keys & line.axes.keys() or not isinstance(choice, str):
        return list(arguments)
    if choice not in options.choices("backend"):
        return list(arguments)  # planning says what was expected
    settings = {"backend": options.load("backend", choice)}
    for key in line.scalars:
        if key.startswith("backend."):
            parent_mapping(settings, key)[key.rpartition(".")[2]] = line.scalars[key]
    backend = settings["backend"]
    if not re.fullmatch(r"https?://[^@\s]+", str(backend.get("url"))):
        return list(arguments)  # launched here, or refused by planning
    return [*arguments, f"model='{_served_model(backend)}'"]


def _served_model(backend: Mapping[str, Any]) -> str:
    """The one model that an endpoint serves, by its own list."""
    url = str(backend["url"]).rstrip("/")
    path = "/models" if urlsplit(url).path.endswith("/v1") else "/v1/models"
    headers = {str(name): str(value) for name, value in (backend.get("headers") or {}).items()}
    if key := os.environ.get(str(backend.get("api_key_env"))):
        headers["Authorization"] = f"Bearer {key}"
    request = f"backend.url={url}: was asked for its model, as no model=NAME is given"
    try:
        verify = bool(backend.get("verify_tls", True))
        answer = httpx.get(url + path, headers=headers, timeout=TIMEOUT, verify=verify).raise_for_status().json()
        names = [str(model["id"]) for model in answer["data"]]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"{request}: {shortened(first_line(error))}; start it, or give model=NAME") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{request}: {path} has no list of models; give model=NAME") from None
    if len(names) != 1 or "'" in names[0]:
        raise ConfigError(f"{request}: it serves {shortened(', '.join(names) or 'none')}; give model=NAME of one")
    return names[0]
