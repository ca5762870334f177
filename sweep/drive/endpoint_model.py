"""The model of a running endpoint: the endpoint is asked if the command line names none."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from sweep.base.config import ConfigError, first_line, parent_mapping, shortened
from sweep.base.options import ConfigPath
from sweep.base.records import key_header, request_path, tls_context, tls_remedy
from sweep.plan.command_line import CommandLine, parse_command_line

TIMEOUT = 10.0  # s
# What `sweep run URL` measures, unless other options of these groups, or these keys, are typed.
SHORT = "backend=openai cluster=inline tracking=none workload=synthetic load=closed"
SHORT_KEYS = "workload.input_tokens=128 workload.output_tokens=32 workload.num_requests=64 load.concurrency=4"


def with_model(arguments: Sequence[str], options: ConfigPath) -> list[str]:
    """A command line with the model of its endpoint, if it has an endpoint, and neither model nor experiment.

    A URL among the arguments stands for an endpoint, with defaults for what is not typed beside it. Raises ConfigError
    if the endpoint cannot be asked, or serves several models.
    """
    arguments = _written_out(arguments)
    endpoint = _endpoint(line := parse_command_line(arguments), options)
    if endpoint is None or "model" in line.typed:
        return arguments
    return [*arguments, f"model='{endpoint.served_model()}'"]


def _written_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with an endpoint's URL as settings, and with defaults for what is not typed beside it."""
    urls = [argument for argument in arguments if re.match(r"https?://", argument)]
    others = [argument for argument in arguments if argument not in urls]
    if len(urls) != 1:
        return list(arguments)
    typed = parse_command_line(others).typed
    groups = [pair for pair in SHORT.split() if pair.partition("=")[0] not in typed]
    keys = [pair for pair in SHORT_KEYS.split() if pair.partition("=")[0] not in typed]
    chosen = {pair.partition("=")[0] for pair in groups}
    defaults = [*groups, *(pair for pair in keys if pair.partition(".")[0] in chosen)]
    return [*defaults, f"backend.url='{urls[0]}'", *others]


def _endpoint(line: CommandLine, options: ConfigPath) -> "_Endpoint | None":
    """The endpoint of a command line without experiment; None without one that can be asked."""
    choice, endpoint_keys = line.scalars.get("backend"), {"backend.url", "backend.api_key_env"}
    if line.experiment or endpoint_keys & line.axes.keys() or choice not in options.choices("backend"):
        return None  # planning says what was expected
    settings = {"backend": options.load("backend", str(choice))}
    for key in line.scalars:
        if key.startswith("backend."):
            parent_mapping(settings, key)[key.rpartition(".")[2]] = line.scalars[key]
    is_endpoint = re.fullmatch(r"https?://[^@\s]+", str(settings["backend"].get("url")))
    return _Endpoint(settings["backend"]) if is_endpoint else None  # else launched here, or refused by planning


class _Endpoint:
    """The endpoint of a command line, by the settings of its backend. No request of it goes through a proxy."""

    def __init__(self, backend: Mapping[str, Any]) -> None:
        self.backend = backend
        self.url = str(backend["url"]).rstrip("/")
        self.origin = "{0.scheme}://{0.netloc}".format(urlsplit(self.url))
        self.headers = {str(name): str(value) for name, value in (backend.get("headers") or {}).items()}
        if key := os.environ.get(str(backend.get("api_key_env"))):
            header = str(backend.get("auth_header") or "Authorization")
            self.headers |= [key_header(header, backend.get("auth_scheme"), key)]
        verify = tls_context(bool(backend.get("verify_tls", True)))
        self.client = httpx.Client(verify=verify, trust_env=False, timeout=TIMEOUT)

    def served_model(self) -> str:
        """The one model that the endpoint serves, by its own list."""
        path = request_path(self.url, "/v1/models")
        request = f"backend.url={self.url}: was asked for its model, as no model=NAME is given"
        try:
            answer = self.client.get(self.origin + path, headers=self.headers).raise_for_status().json()
            names = [str(model["id"]) for model in answer["data"]]
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            remedy = tls_remedy(error) or "; start it, or give model=NAME"
            raise ConfigError(f"{request}: {shortened(first_line(error))}{remedy}") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{request}: {path} has no list of models; give model=NAME") from None
        if len(names) != 1 or "'" in names[0]:
            raise ConfigError(f"{request}: it serves {shortened(', '.join(names) or 'none')}; give model=NAME of one")
        return names[0]
