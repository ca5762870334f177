"""Queries a running endpoint before planning, for its model's name and the form of requests that it accepts."""

import contextlib
import json
import os
import re
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from backends.launch.control_client import ControlClient
from sweep.base.config import ConfigError, build, first_line, parent_mapping, shortened
from sweep.base.exits import Outage
from sweep.base.options import ConfigPath
from sweep.base.records import (
    API_VERSION,
    TYPED_APIS,
    UNKNOWN,
    Request,
    key_header,
    proxy_of,
    request_path,
    tls_context,
    tls_remedy,
)
from sweep.client import wire
from sweep.plan.command_line import CommandLine, parse_command_line

TIMEOUT = 10.0  # s
LONGEST_PROBE = 3 * TIMEOUT  # s for the answer to the probe
LONGEST_MODEL_NAME = 200  # characters of a model's name
PROBE_TOKENS = 16  # tokens of the answer to the probe; the Responses API accepts no fewer
MOST_PROBES = 12
NO_SUCH_PATH = (404, 405, 501)  # statuses of a server that does not speak a dialect
# vLLM, SGLang, llama.cpp, Ollama, LM Studio, TGI, LMDeploy, LiteLLM.
USUAL_PORTS = (8000, 30000, 8080, 11434, 1234, 3000, 23333, 4000)
CONNECT_TIMEOUT, LOCAL_TIMEOUT = 0.2, 2.0  # s, of a server on this machine
REQUEST_PATH = re.compile(r"(/v\d[^/]*)?(/chat)?/(completions|responses|messages|generate_stream)(?=$|\?)")
BODY_KEY = "extra_body."
TOO_MANY = 429  # no outage: a quota may be used up for days
BUSY = (TOO_MANY, 502, 503, 504)  # statuses of an endpoint that may answer later: no reason to try another dialect
# What `sweep run URL` measures, unless other options of these groups, or these keys, are typed.
SHORT = "backend=openai cluster=inline tracking=none workload=synthetic load=closed"
SHORT_KEYS = "workload.input_tokens=128 workload.output_tokens=32 workload.num_requests=64 load.concurrency=4"
# Words in an error response, and the setting that avoids the error.
PROBE_REMEDIES: dict[str, tuple[str, Any]] = {
    "max_completion_tokens": ("max_tokens_field", "max_completion_tokens"),
    "max_tokens": ("max_tokens_field", "max_completion_tokens"),
    "continuous_usage": ("continuous_usage", False),
    "ignore_eos": ("ignores_eos", False),
    "stream_options": ("extra_body.stream_options", None),
    "temperature": ("extra_body.temperature", None),
    "store": ("extra_body.store", None),  # of the Responses API
}


def with_model(arguments: Sequence[str], options: ConfigPath) -> list[str]:
    """Return the command line with the endpoint's model added, if it has an endpoint but neither model nor experiment.

    A URL among the arguments means an endpoint, with defaults for all settings not typed. Raises Outage for an endpoint
    that may be starting; ConfigError if it does not answer otherwise, or serves several models.
    """
    arguments = written_out(arguments)
    endpoint = _endpoint(line := parse_command_line(arguments), options)
    if endpoint is None or "model" in line.typed:
        return arguments
    name = endpoint.served_model()
    return [*arguments, f'model="{name}"' if "'" in name else f"model='{name}'"]


def with_dialect(arguments: Sequence[str], options: ConfigPath) -> tuple[list[str], str | None]:
    """Return the command line with the settings that its endpoint needs, and a line on how it answered a short request.

    Raises ConfigError if TLS fails, e.g. because the certificate is not trusted; Outage if the endpoint cannot be
    reached or is busy, since the ids of its trials depend on these settings.
    """
    endpoint = _endpoint(line := parse_command_line(arguments), options)
    varied = any(key.startswith(("backend.", "model")) for key in line.axes)
    if endpoint is None or varied or line.scalars.get("dry_run"):
        return list(arguments), None
    model = str(line.scalars.get("model"))
    named = options.load("model", model).get("served_name") if model in options.choices("model") else None
    changes, answered = endpoint.probe(str(line.scalars.get("model.served_name", named or model)), line.typed)
    return [*arguments, *changes], answered


def check_schemes(backends: Iterable[Any]) -> None:
    """Refuse endpoints whose TLS fails, or that expect TLS at an http:// address, before requests wait for an answer.

    Other failures are left to the launch, since a node may reach what this machine does not. Raises ConfigError.
    """
    for backend in {each.url: each for each in backends if not each.launches}.values():
        endpoint = _Endpoint(backend.model_dump())
        endpoint.client.timeout = httpx.Timeout(LOCAL_TIMEOUT)
        try:
            with endpoint.client:
                endpoint.models()
        except httpx.HTTPError as error:
            if remedy := endpoint.tls_problem(error):
                raise ConfigError(f"backend.url={endpoint.url}: {shortened(first_line(error))}{remedy}") from None
        except (ConfigError, OSError, ValueError, KeyError, TypeError):
            continue  # no list of models


def written_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a URL replaced by `backend.url=...`, and defaults for all settings not typed."""
    urls = [argument for argument in arguments if re.match(r"https?://", argument, re.IGNORECASE)]
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
    """Return the endpoint configured on a command line; None if it names an experiment or no endpoint."""
    choice, endpoint_keys = line.scalars.get("backend"), {"backend.url", "backend.api_key_env"}
    if line.experiment or endpoint_keys & line.axes.keys() or choice not in options.choices("backend"):
        return None  # planning reports the error
    settings = {"backend": options.load("backend", str(choice))}
    for key in line.scalars:
        if key.startswith("backend."):
            parent_mapping(settings, key)[key.rpartition(".")[2]] = line.scalars[key]
    if not re.fullmatch(r"(?i:https?)://[^@/?#\s]+([/?#]\S*)?", str(settings["backend"].get("url"))):
        return None  # an engine to launch, or rejected by planning
    build(settings["backend"], "backend")  # so that the same mistakes are rejected as in planning
    return _Endpoint(settings["backend"])


def local_server() -> str:
    """Return the address of the only server at a usual local port. Raises ConfigError if there is none, or several."""
    servers = []
    for port in USUAL_PORTS:
        with contextlib.suppress(OSError, httpx.HTTPError, ValueError, KeyError, TypeError):  # no server of models
            socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT).close()
            endpoint = _Endpoint({"url": f"http://127.0.0.1:{port}"})
            with endpoint.client:
                endpoint.client.timeout = httpx.Timeout(LOCAL_TIMEOUT)
                endpoint.models()
            servers.append(endpoint.url)
    if len(servers) != 1:
        ports = ", ".join(map(str, USUAL_PORTS))
        seen = f"servers at {', '.join(servers)}" if servers else f"no server at 127.0.0.1, ports {ports}"
        raise ConfigError(f"{seen}; expected the URL of one server, such as http://127.0.0.1:8000")
    return servers[0]


class _Endpoint:
    """The endpoint of a command line, described by its backend's settings."""

    def __init__(self, backend: Mapping[str, Any]) -> None:
        self.backend = backend
        self.url = str(backend["url"]).rstrip("/")
        self.origin = "{0.scheme}://{0.netloc}".format(urlsplit(self.url))
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:  # e.g. of 256.1.1.1
            raise ConfigError(f"backend.url={self.url}: {error}") from None
        self.headers = {str(name): str(value) for name, value in (backend.get("headers") or {}).items()}
        self.key = os.environ.get(str(backend.get("api_key_env"))) or None
        if self.key:
            header, scheme = backend.get("auth_header"), backend.get("auth_scheme")
            try:
                self.headers |= [key_header(str(backend.get("api")), header, scheme, self.key)]
            except ValueError as error:
                raise ConfigError(f"backend.api_key_env={backend.get('api_key_env')}: {error}") from None
        verify = tls_context(bool(backend.get("verify_tls", True)))
        fresh = httpx.Limits(max_keepalive_connections=0)  # a server may close a connection after it has answered
        try:
            proxy = proxy_of(self.url, backend.get("proxy", "none"))
        except ValueError as error:
            raise ConfigError(f"backend.proxy=environment: {error}") from None
        address, self.proxied = proxy.url if proxy else None, proxy is not None
        self.client = ControlClient(verify=verify, timeout=TIMEOUT, limits=fresh, proxy=address)

    def models(self) -> list[str]:
        """Return the names in the endpoint's own list of models, without LoRA adapters, which name their parent.

        If the usual request is rejected, it tries /models without a version, and the key as the Messages API sends it.
        """
        url = REQUEST_PATH.sub(r"\1", self.url)
        requests = [(request_path(url, path), self.headers) for path in ("/v1/models", "/models")]
        if self.key and not (self.backend.get("auth_header") or self.backend.get("auth_scheme")):
            messages = wire.Target(self.url, "", "messages", headers=self.backend.get("headers") or {})
            requests.append((requests[0][0], wire.header_fields(messages, self.key)))
        rejections = list[httpx.HTTPStatusError]()
        for path, headers in requests:
            try:
                listed = json.loads(self._read(path, headers))["data"]
                parents = {str(model["id"]): model.get("parent") for model in listed}
                return [name for name, parent in parents.items() if not parent]
            except httpx.HTTPStatusError as error:
                rejections.append(error)
            except RecursionError:
                raise ValueError("its list is nested too deeply") from None
        raise rejections[0]

    def served_model(self) -> str:
        """Return the name of the only model in the endpoint's list. Raises ConfigError if there is not exactly one."""
        path = request_path(self.url, "/v1/models")
        request = f"backend.url={self.url}: queried for its model, since no model=NAME is given"
        try:
            names = self.models()
        except httpx.HTTPError as error:
            remedy, variable = tls_remedy(error) or self._tls_address(error), self.backend.get("api_key_env")
            if variable and not self.key and isinstance(error, httpx.HTTPStatusError):
                remedy = f"; backend.api_key_env={variable} is not set or empty: export it"
            problem = f"{request}: {shortened(first_line(error))}{remedy or '; start it, or add model=NAME'}"
            raise (ConfigError if remedy or not _is_starting(error) else Outage)(problem) from None
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{request}: {path} returned no list of models; add model=NAME") from None
        if len(names) != 1 or not _is_plain(names[0]):
            listed = ", ".join(name if name.isprintable() else ascii(name) for name in names)
            raise ConfigError(f"{request}: it serves {shortened(listed or 'none')}; add model=NAME")
        return names[0]

    def _read(self, path: str, headers: Mapping[str, str]) -> bytes:
        """Return the body of a GET. Raises httpx.HTTPError, also for a body that is too large or arrives too slowly."""
        reply = self.client.get(self.origin + path, headers=headers)
        if location := reply.has_redirect_location and reply.headers["location"]:
            remedy = wire.direct_address(location, "/v1/models")
            raise ConfigError(f"backend.url={self.url}: redirects to {shortened(location)}; {remedy}")
        return reply.raise_for_status().content

    def probe(self, model: str, typed: Mapping[str, Any]) -> tuple[list[str], str]:
        """Send short requests until one is answered; return the settings it used, and a line that describes the answer.

        Only settings that were not typed are changed. If an answer does not end, or each is an error, that is left to
        the trial, which uses the dialect that came closest: its error says more than a 404 for another dialect. Raises
        Outage for an endpoint that may answer later.
        """
        asking = ("path", "continuous_usage", "token_ids", "max_tokens_field", "extra_body", "api")
        names = (*asking, "headers", "auth_header", "auth_scheme")
        fields = {name: self.backend[name] for name in names if self.backend.get(name) is not None}
        first = wire.Target(self.url, model, ignore_eos=bool(self.backend.get("ignores_eos", True)), **fields)
        apis = [first.api] if "backend.api" in typed else sorted(wire.PATHS, key=lambda api: api != first.api)
        plain: dict[str, Any] = {"token_ids": False, "ignores_eos": False, "continuous_usage": False}
        pending: deque[dict[str, Any]] = deque({"api": api, **(plain if api in TYPED_APIS else {})} for api in apis)
        if "backend.path" not in typed and not API_VERSION.search(urlsplit(self.url).path.rstrip("/")):
            versioned = [api for api in apis if wire.PATHS[api].startswith("/v1")]
            pending.extend({"api": api, "path": wire.PATHS[api].removeprefix("/v1")} for api in versioned)
        closest: tuple[int, list[str], str] = (-1, [], "")  # nearness, settings and error
        for _ in range(min(MOST_PROBES, len(pending) + len(PROBE_REMEDIES))):
            change = pending.popleft()
            target = _changed(first, change)
            answer = self._ask(target)
            if isinstance(answer, str):
                return [], f"{self.url}: no answer to a first request ({answer})"
            if answer.status in BUSY:
                reason = f"no answer to a first request ({shortened(answer.error)})"
                if answer.status != TOO_MANY:
                    raise Outage(f"backend.url={self.url}: {reason}")
                return [], f"{self.url}: {reason}"
            error = answer.error_of(answer.streams[0])
            implied = plain if target.api in TYPED_APIS else {}
            needed = [name for name in change if name not in implied and change[name] != self.backend.get(name, "")]
            typing = [f"backend.{name}={json.dumps(change[name])}" for name in needed]
            if error is None:
                return typing, _description(target, answer)
            nearness = 2 if answer.status == 200 else 1 if answer.status not in NO_SUCH_PATH else 0
            closest = max(closest, (nearness, typing, error), key=lambda attempt: attempt[0])
            for words, (name, setting) in PROBE_REMEDIES.items():
                settled = {f"backend.{name}", name.replace("extra_body", "workload"), name} & {*typed, *change}
                if answer.status in (400, 422) and words in error and not settled:
                    pending.appendleft({**change, name: setting})
                    break
            if not pending:
                break
        nearness, typing, problem = closest
        return typing if nearness else [], f"{self.url}: a first request failed ({shortened(problem)})"

    def _ask(self, target: wire.Target) -> wire.Answer | str:
        """Return the answer to a short request, or the reason for its failure.

        Raises ConfigError if TLS fails; Outage if the endpoint cannot be reached.
        """
        request = Request("probe", "Count from one to four.", PROBE_TOKENS, UNKNOWN, "warmup")
        body = wire.call(target, [request]).partition(b"\r\n\r\n")[2]
        headers = wire.header_fields(target, self.key) | {"x-request-id": "probe"}
        answer, until = wire.Answer(target.api), time.monotonic() + LONGEST_PROBE
        try:
            with self.client.stream("POST", self.origin + target.request_path, content=body, headers=headers) as reply:
                answer.status, answer.sent = reply.status_code, time.monotonic_ns()
                for name, header in reply.headers.raw:
                    answer.header(name, header)
                for part in reply.iter_raw():
                    answer.body(part, time.monotonic_ns())
                    if answer.chunks > wire.ENDLESS[1] or time.monotonic() > until:
                        return "its answer does not end"
            answer.complete(time.monotonic_ns())
            if answer.status == 400 and "HTTPS" in str(answer.error):
                reply.raise_for_status()
        except httpx.HTTPError as error:
            if "SSL" in str(error):
                raise ConfigError(f"backend.url={self.url}: TLS fails ({error}){tls_remedy(error)}") from None
            if remedy := self._tls_address(error):
                raise ConfigError(f"backend.url={self.url}: {shortened(first_line(error))}{remedy}") from None
            if isinstance(error, httpx.HTTPStatusError):
                return answer
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not tls_remedy(error):
                raise Outage(f"backend.url={self.url}: {shortened(first_line(error))}") from None
            return tls_remedy(error).lstrip("; ") or shortened(first_line(error))
        return answer

    def tls_problem(self, error: httpx.HTTPError) -> str:
        """Return "; " and a remedy if a request failed because of TLS, or for lack of it; "" otherwise."""
        return tls_remedy(error) if "SSL" in str(error) else self._tls_address(error)

    def _tls_address(self, error: Exception) -> str:
        """Return "; " and a remedy if an http:// address fails where TLS is answered; "" otherwise."""
        parts = urlsplit(self.url)
        if parts.scheme != "http" or self.proxied or isinstance(error, httpx.ConnectError | httpx.TimeoutException):
            return ""
        try:
            with socket.create_connection((parts.hostname or "", parts.port or 80), LOCAL_TIMEOUT) as plain:
                tls_context(False).wrap_socket(plain, server_hostname=parts.hostname).close()
        except OSError as reply:
            if "_ALERT_" not in str(reply):  # an alert is a reply of TLS
                return ""
        return f"; the server expects TLS: set backend.url=https{self.url.removeprefix('http')}"


def _is_plain(name: str) -> bool:
    """Return whether a name is text for the command line, and no interpolation such as ${oc.env:HF_TOKEN}."""
    is_text = name.isprintable() and bool(name.strip()) and len(name) <= LONGEST_MODEL_NAME
    return is_text and not ("\\" in name or "${" in name or {*"'\""} <= {*name})


def _is_starting(error: Exception) -> bool:
    """Return whether a failure is what a server answers that has just been started: nothing, or that it is busy."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in BUSY[1:]
    refused = isinstance(error, httpx.ConnectError) and "refused" in str(error)
    return refused or isinstance(error, httpx.ConnectTimeout)


def _changed(target: wire.Target, settings: Mapping[str, Any]) -> wire.Target:
    """Return the target with these settings of its backend; a null in extra_body removes a key of the body."""
    removed = {name: None for key in settings if (name := key.removeprefix(BODY_KEY)) != key}
    changes = {key.replace("ignores_eos", "ignore_eos"): to for key, to in settings.items() if BODY_KEY not in key}
    return replace(target, **changes, extra_body={**target.extra_body, **removed})


def _description(target: wire.Target, answer: wire.Answer) -> str:
    """Describe in one line how an endpoint is queried and how it answers."""
    (stream,) = answer.streams
    tokens = stream.total if stream.total != UNKNOWN else answer.tokens
    length = (
        "ignore_eos honoured"
        if tokens == PROBE_TOKENS
        else f"ignore_eos ignored ({tokens} of {PROBE_TOKENS} tokens received)"
    )
    return (
        f"{target.url}: POST {target.request_path}, model {target.model}, api {target.api}, streams {answer.chunks} "
        f"events, tokens by {stream.source}, prompts as {'text or token ids' if target.token_ids else 'text'}, "
        f"{length if target.ignore_eos else 'no ignore_eos'}, limit {target.max_tokens_field}"
        + "".join(f", without {name}" for name, to in target.extra_body.items() if to is None)
    )
