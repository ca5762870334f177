"""`sweep gateway`: parses and checks its arguments."""

import argparse
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import yaml

from sweep.base.config import ConfigError, parent_mapping, validate
from sweep.base.options import ConfigPath
from sweep.base.records import proxy_of
from sweep.gateway.server import Service
from sweep.gateway.settings import RESET_VARIABLE, Gateway
from sweep.inputs.tokenizer import load_tokenizer

GROUP = "gateway"


def service(arguments: argparse.Namespace, options: ConfigPath) -> Service:
    """Return the service that a command line describes. Raises ConfigError for an invalid argument."""
    settings = _settings(arguments.overrides, options)
    for url in arguments.to:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(f"--to {url}: expected http(s)://host[:port]")
        try:
            proxy_of(url, settings.proxy)
        except ValueError as error:
            raise ConfigError(f"gateway.proxy=environment: {error}") from None
    if settings.clip.input_tokens is not None and arguments.tokenizer is None:
        limit = settings.clip.input_tokens
        raise ConfigError(f"gateway.clip.input_tokens={limit}: needs the model's tokenizer; add --tokenizer FOLDER")
    if arguments.tokenizer is not None:
        try:
            load_tokenizer(arguments.tokenizer)
        except ValueError as error:
            raise ConfigError(f"--tokenizer {arguments.tokenizer}: {error}") from None
    to, key = tuple(arguments.to), os.environ.get(RESET_VARIABLE, "")
    return Service(settings, to, arguments.host, arguments.port, arguments.tokenizer, arguments.log, key)


def _settings(overrides: Sequence[str], options: ConfigPath) -> Gateway:
    typed: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key.split(".")[0] != GROUP:
            raise ConfigError(f"{override}: expected gateway=NAME or gateway.KEY=VALUE")
        try:
            typed[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{override}: its value is not YAML") from None
    fields = options.load(GROUP, str(typed.pop(GROUP, "clip")))
    if fields.pop("_target_", None) != f"{Gateway.__module__}.{Gateway.__qualname__}":
        raise ConfigError("gateway=none: starts no gateway; expected another option listed by sweep run --help")
    settings = {GROUP: fields}
    for key, value in typed.items():
        parent_mapping(settings, key)[key.rpartition(".")[2]] = value
    return validate(Gateway, settings[GROUP], GROUP)
