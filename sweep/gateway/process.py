"""The gateway in front of an engine, launched, watched and read by its deployment."""

import contextlib
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from backends.base import Backend, Launch
from backends.declarations import Traits
from backends.launch import server
from backends.launch.relay import TOKEN_HEADER, TOKEN_VARIABLE
from sweep.base.config import import_path
from sweep.base.exits import Cause, Exit, Failed
from sweep.base.records import PROXY_VARIABLES, Outcome
from sweep.gateway.settings import RESET_HEADER, RESET_VARIABLE, Gateway

DECISIONS = "decisions.jsonl"  # log of decisions in the gateway's folder
GATEWAY_TIMEOUT = 30.0  # s


class GatewayProcess(Backend):
    """The gateway's process, with the interface of a backend."""

    # It reaches an endpoint as this process does. Variables have full names, since a proxy's may hold a password.
    traits = Traits(computes_model=False, inherits=("SSL_CERT_FILE", "SSL_CERT_DIR", *PROXY_VARIABLES))

    name: str = "gateway"
    to: tuple[str, ...]  # URLs of the engines
    settings: Gateway
    tokenizer: Path | None = None  # folder of the served model's tokenizer, needed for a bound on the input
    reset_key: str = ""
    token: str = ""  # for engines on other nodes
    path: str | None = None  # path of requests at the engines

    def command(self, launch: Launch) -> list[str]:
        arguments = [part for url in self.to for part in ("--to", url)]
        arguments += ["--host", launch.host, "--port", str(launch.port)]
        arguments += ["--settings", self.settings.model_dump_json(), "--log", str(launch.workdir / DECISIONS)]
        if self.tokenizer is not None:
            arguments += ["--tokenizer", str(self.tokenizer.resolve())]
        if self.path is not None:
            arguments += ["--path", self.path]
        return [sys.executable, "-m", "sweep.gateway.server", *arguments]

    def environment(self, launch: Launch) -> dict[str, str]:
        keys = {RESET_VARIABLE: self.reset_key, TOKEN_VARIABLE: self.token}
        return {"PYTHONPATH": import_path(), **keys, **super().environment(launch)}


class GatewaySilent(Failed):
    """The gateway does not answer the deployment that started it."""


class GatewayReport(NamedTuple):
    """A gateway's report on a trial: its decisions by request, and its loop's lag (p99, in seconds)."""

    decisions: dict[str, dict[str, Any]]
    loop_lag_p99: float | None


class RunningGateway:
    def __init__(self, process: server.Engine, reset_key: str = "") -> None:
        self.process, self.url = process, process.url
        self._headers = {RESET_HEADER: reset_key}
        self._log = process.launch.workdir / DECISIONS
        self._begin = 0  # bytes; where the current trial's decisions begin in the log

    def alive(self) -> bool:
        return self.process.alive()

    def reset(self) -> None:
        """Empty the gateway's cache for a new trial. Raises GatewaySilent if the gateway does not answer."""
        try:
            url = f"{self.url}/gateway/reset"
            httpx.post(url, headers=self._headers, timeout=GATEWAY_TIMEOUT, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise GatewaySilent(
                f"the gateway's cache was not emptied before the trial: {error}", Exit(Cause.GATEWAY)
            ) from None
        self._begin = self._log.stat().st_size if self._log.exists() else 0

    def report(self) -> GatewayReport:
        """Return the gateway's decisions and lag since the reset."""
        lag = None
        with contextlib.suppress(httpx.HTTPError, ValueError):  # the gateway has died
            state = httpx.get(f"{self.url}/gateway/state", timeout=GATEWAY_TIMEOUT, trust_env=False).json()
            lag = state["loop_lag_p99"]
        decisions: dict[str, dict[str, Any]] = {}
        if self._log.exists():
            with self._log.open("rb") as file:
                file.seek(self._begin)
                for line in file:
                    if line.endswith(b"\n"):
                        decision = json.loads(line)
                        decisions[decision["request_id"]] = decision
        return GatewayReport(decisions, lag)


@contextlib.contextmanager
def running_gateway(
    settings: Gateway | None,
    engines: Sequence[server.Engine],
    folder: Path,
    tokenizer_folder: Callable[[], Path | None],
    marker: str,
) -> Iterator[RunningGateway | None]:
    """Start a gateway in front of these engines, on their cores, with files in `folder`; yield None if it is off.

    Raises LaunchError. `tokenizer_folder` returns the served model's tokenizer, or None if it is unknown; it is called
    only for a bound on the input.
    """
    if settings is None:
        yield None
        return
    tokenizer = None if settings.clip.input_tokens is None else tokenizer_folder()
    if settings.clip.input_tokens is not None and tokenizer is None:
        reason = "gateway.clip.input_tokens: the model's tokenizer is unknown; set model.tokenizer"
        raise server.LaunchError(Outcome.LAUNCH_FAILED, reason, Exit(Cause.NO_TOKENIZER))
    # The engine's launch is not copied: it may be in a container without the gateway's code.
    engine_launch = engines[0].launch
    launch = Launch(
        model=engine_launch.model,
        served_name=engine_launch.served_name,
        workdir=folder,
        python=sys.executable,
        threads=engine_launch.threads,
        cpus=tuple(sorted({core for engine in engines for core in engine.launch.cpus})),
    )
    verify_tls = settings.verify_tls and all(engine.backend.verify_tls for engine in engines)
    backend = engines[0].backend
    proxied = not backend.launches and "environment" in (settings.proxy, backend.proxy)
    update = {"verify_tls": verify_tls, "proxy": "environment" if proxied else "none"}
    urls = tuple(engine.backend.url or engine.url for engine in engines)
    key, path = secrets.token_urlsafe(), getattr(engines[0].backend, "path", None)
    if path and urls[0].rstrip("/").endswith("/v1"):  # the gateway removes /v1 from its engines' addresses
        path = "/v1" + path.removeprefix("/v1")
    process = GatewayProcess(
        to=urls,
        settings=settings.model_copy(update=update),
        tokenizer=tokenizer,
        reset_key=key,
        token=engines[-1].headers.get(TOKEN_HEADER, ""),
        path=path,
        launch_timeout=120.0,
    )
    with server.running(process, launch, marker=f"{marker}/gateway") as front:
        yield RunningGateway(front, key)
