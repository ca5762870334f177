"""An endpoint that runs already, asked before planning: for its model, and for the requests that it answers."""

import json
import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from sweep.base.config import ConfigError, first_line, parent_mapping, shortened
from sweep.base.options import ConfigPath
from sweep.base.records import API_VERSION, UNKNOWN, Request, key_header, request_path, tls_context, tls_remedy
from sweep.client import wire
from sweep.plan.command_line import CommandLine, parse_command_line

TIMEOUT = 10.0  # s
TOKENS = 4  # of the answer to the probe
MOST_PROBES = 8
OPTION = "openai"  # the option of conf/backend that attaches
SHORT = {  # what `sweep run URL` measures, unless more is typed
    "backend": OPTION,
    "cluster": "inline",
    "tracking": "none",
    "workload": "synthetic",
    "workload.input_tokens": "128",
    "workload.output_tokens": "32",
    "workload.num_requests": "64",
    "load": "closed",
    "load.concurrency": "4",
}
# Words of a refusal, and the settings that do without what is refused.
REMEDIES = {
    "max_completion_tokens": ("max_tokens_field", "max_completion_tokens"),
    "continuous_usage": ("continuous_usage", False),
    "stream_options": ("continuous_usage", False),
    "ignore_eos": ("ignore_eos", False),
}


def with_model(arguments: Sequence[str], options: ConfigPath) -> list[str]:
    """A command line with the model of its endpoint, if it has an endpoint but neither model nor experiment.

    A URL among the arguments stands for an endpoint, with defaults for what is not typed beside it.

    Raises:
        ConfigError: if the endpoint cannot be asked, or serves several models.
    """
    arguments = _written_out(arguments)
    endpoint = _endpoint(line := parse_command_line(arguments), options)
    if endpoint is None or "model" in line.typed:
        return arguments
    return [*arguments, f"model='{endpoint.served_model()}'"]


def with_dialect(arguments: Sequence[str], options: ConfigPath) -> tuple[list[str], str | None]:
    """A command line with the settings that its endpoint needs to be asked, and a line about what it answered.

    Raises:
        ConfigError: if its certificate is not trusted, or TLS fails otherwise.
    """
    endpoint = _endpoint(line := parse_command_line(arguments), options)
    varied = any(key.startswith(("backend.", "model")) for key in line.axes)
    if endpoint is None or varied or line.scalars.get("dry_run"):
        return list(arguments), None
    model = line.scalars.get("model.served_name", line.scalars.get("model"))
    changes, answered = endpoint.probe(str(model), line.scalars)
    return [*arguments, *changes], answered


def _endpoint(line: CommandLine, options: ConfigPath) -> "_Endpoint | None":
    """The endpoint of a command line without experiment; None without one that can be asked."""
    choice, endpoint_keys = line.scalars.get("backend"), {"backend.url", "backend.api_key_env"}
    if line.experiment or endpoint_keys & line.axes.keys() or not isinstance(choice, str):
        return None
    if choice not in options.choices("backend"):
        return None  # planning says what was expected
    settings = {"backend": options.load("backend", choice)}
    for key in line.scalars:
        if key.startswith("backend."):
            parent_mapping(settings, key)[key.rpartition(".")[2]] = line.scalars[key]
    backend = settings["backend"]
    is_endpoint = re.fullmatch(r"https?://[^@\s]+", str(backend.get("url")))
    return _Endpoint(backend) if is_endpoint else None  # else launched here, or refused by planning


def _written_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with an endpoint's URL as settings, and with defaults for what is not typed beside it."""
    urls = [argument for argument in arguments if re.match(r"https?://", argument)]
    others = [argument for argument in arguments if argument not in urls]
    if len(urls) != 1:
        return list(arguments)
    typed = parse_command_line(others).typed
    groups = {key for key in typed if "." not in key}
    defaults = {key: value for key, value in SHORT.items() if key not in typed and key.partition(".")[0] not in groups}
    defaults |= {"load": SHORT["load"]} if "load" not in groups else {}
    return [*(f"{key}={value}" for key, value in defaults.items()), f"backend.url='{urls[0]}'", *others]


class _Endpoint:
    """The endpoint of a command line, by the settings of its backend. No request of it goes through a proxy."""

    def __init__(self, backend: Mapping[str, Any]) -> None:
        self.backend = backend
        self.url = str(backend["url"]).rstrip("/")
        self.headers = {str(name): str(value) for name, value in (backend.get("headers") or {}).items()}
        if key := os.environ.get(str(backend.get("api_key_env"))):
            scheme = backend.get("auth_scheme")
            self.headers |= [key_header(str(backend.get("auth_header") or "Authorization"), scheme, key)]
        parts = urlsplit(self.url)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.client = httpx.Client(
            verify=tls_context(bool(backend.get("verify_tls", True))), trust_env=False, timeout=TIMEOUT
        )

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

    def probe(self, model: str, typed: Mapping[str, Any]) -> tuple[list[str], str]:
        """Send a short request until one is answered; return the settings that it needs, and a line about the answer.

        Only settings that are not typed are changed. An endpoint that does not answer is left to the trial.
        """
        first, problem = self._target(model), ""
        apis = [first.api, *(api for api in wire.PATHS if api != first.api)]
        pending: deque[dict[str, Any]] = deque([{}] if "backend.api" in typed else [{"api": api} for api in apis])
        if "backend.path" not in typed and not API_VERSION.search(urlsplit(self.url).path.rstrip("/")):
            paths = [wire.PATHS[change.get("api", first.api)].removeprefix("/v1") for change in pending]
            pending.extend({**change, "path": path} for change, path in zip(list(pending), paths, strict=True))
        for _ in range(MOST_PROBES):
            if not pending:
                break
            change = pending.popleft()
            answer = self._ask(target := replace(first, **change))
            if isinstance(answer, str):
                return [], f"{self.url}: no answer to a first request ({answer})"
            if not answer.error and answer.chunks:
                return self._settings(change), self._describe(target, answer)
            problem = problem or str(answer.error)
            for words, (name, setting) in REMEDIES.items():
                settled = {f"backend.{name}", name} & {*typed, *change}
                if answer.status == 400 and words in str(answer.error) and not settled:
                    pending.appendleft({**change, name: setting})
                    break
        return [], f"{self.url}: a first request failed ({shortened(problem)})"

    def _target(self, model: str) -> wire.Target:
        names = ("api", "path", "continuous_usage", "token_ids", "max_tokens_field", "extra_body")
        fields = {name: self.backend[name] for name in names if self.backend.get(name) is not None}
        return wire.Target(self.url, model, ignore_eos=bool(self.backend.get("ignores_eos", True)), **fields)

    def _ask(self, target: wire.Target) -> wire.Answer | str:
        """The answer to a short request; why there is none at all. Raises ConfigError where TLS fails."""
        request = Request("probe", "Count from one to four.", TOKENS, UNKNOWN, "warmup")
        body = wire.call(target, [request]).partition(b"\r\n\r\n")[2]
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **self.headers}
        answer = wire.Answer(target.api)
        try:
            with self.client.stream("POST", self.origin + target.request_path, content=body, headers=headers) as reply:
                answer.status, answer.sent = reply.status_code, time.monotonic_ns()
                for name, header in reply.headers.raw:
                    answer.header(name, header)
                for data in reply.iter_raw():
                    answer.body(data, time.monotonic_ns())
            answer.complete(time.monotonic_ns())
        except httpx.HTTPError as error:
            text = shortened(first_line(error))
            if "SSL" in text:
                raise ConfigError(f"backend.url={self.url}: TLS fails ({text}){tls_remedy(error)}") from None
            return text
        return answer

    def _settings(self, change: Mapping[str, Any]) -> list[str]:
        """The settings of a change that are not the endpoint's already, as arguments."""
        names = {"ignore_eos": "ignores_eos"}
        changed = {names.get(name, name): setting for name, setting in change.items()}
        return [
            f"backend.{name}={json.dumps(setting) if isinstance(setting, bool) else setting}"
            for name, setting in changed.items()
            if setting != self.backend.get(name)
        ]

    def _describe(self, target: wire.Target, answer: wire.Answer) -> str:
        """The way in which the endpoint is asked, in one line."""
        (stream,) = answer.streams
        tokens = stream.total if stream.total != UNKNOWN else answer.tokens
        length = "ignore_eos honoured" if tokens == TOKENS else f"ignore_eos ignored ({tokens} of {TOKENS} tokens came)"
        return (
            f"{self.origin}{target.request_path}: model {target.model}, api {target.api}, streams {answer.chunks} events, "
            f"tokens by {stream.source}, prompts as {'text or token ids' if target.token_ids else 'text'}, "
            f"{length if target.ignore_eos else 'no ignore_eos'}, limit {target.max_tokens_field}"
        )
