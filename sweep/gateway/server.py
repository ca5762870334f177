"""The gateway's server process: uvicorn on uvloop and httptools, on loopback by default."""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backends.launch.relay import TOKEN_VARIABLE
from sweep.base.config import ConfigError
from sweep.base.records import LARGEST_HEAD
from sweep.gateway.app import GatewayApp
from sweep.gateway.caching.source import AnswerSource
from sweep.gateway.clipping import Clipper
from sweep.gateway.engines import Engines, raise_file_limit
from sweep.gateway.metrics import Metrics
from sweep.gateway.settings import RESET_VARIABLE, Gateway
from sweep.inputs.tokenizer import load_tokenizer

BACKLOG = 16384  # connections waiting to be accepted
HEADER_TIMEOUT = 30.0  # s within which the headers of a request must arrive
HEAD_TOO_LARGE = f"The request's headers exceed {LARGEST_HEAD} bytes."
MOST_PIPELINED = 16  # requests that may wait on a connection behind the one that is answered


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits: on the size of headers and trailers, on the time until headers are complete, and
    on the requests that wait on a connection.
    """

    on_leave: Callable[[], None] | None = None  # called when the client leaves
    _has_head = False  # time of the latest request
    _framing = 0  # bytes in a row that are in no body: headers, trailers, chunk sizes

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(HEADER_TIMEOUT, self._end_late_head)

    def data_received(self, data: bytes) -> None:
        self._framing += len(data)
        super().data_received(data)
        if self._head_timer is None and not self._is_answering():  # the headers are still incomplete
            self._head_timer = self.loop.call_later(HEADER_TIMEOUT, self._end_late_head)
        if self._framing > LARGEST_HEAD and not self.transport.is_closing():
            self.send_400_response(HEAD_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """Reject the request; if it follows one that is being answered, without mixing both answers."""
        if self.pipeline or (self._is_answering() and self.cycle.response_started):
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _end_late_head(self) -> None:
        self._head_timer = None
        if not self._is_answering():
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_head = False
        extensions: dict[str, Any] = {"gateway.connection": self}
        self.scope["extensions"] = extensions

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # later headers are trailers, which a proxy in front has not checked (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > LARGEST_HEAD:
            raise ValueError(HEAD_TOO_LARGE)  # passed to the parser, which rejects the request
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError("too many requests on one connection")
        self._has_head, self._framing = True, 0
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)
        if self.on_leave is not None:
            self.on_leave()


@dataclass(frozen=True)
class Service:
    """The settings of a gateway's process."""

    settings: Gateway
    to: tuple[str, ...]  # URLs of the engines
    host: str = "127.0.0.1"
    port: int = 0  # 0: any free port
    tokenizer: Path | None = None  # folder of the served model's tokenizer, needed for a bound on the input
    log: str | None = None  # file for one line per request
    reset_key: str = ""  # key with which a client may empty the cache; "": no client may
    path: str | None = None  # path of requests at the engines; None: the path of the client's request
    token: str = ""  # for engines on other nodes of a cluster, behind a relay

    def serve_forever(self) -> None:
        """Serve until a signal ends it. Raises ConfigError if the address cannot be used."""
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(self.serve())

    def listen(self) -> socket.socket:
        """Return the listening socket."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(f"--host {self.host} --port {self.port}: {error.strerror or error}") from None

    @contextlib.asynccontextmanager
    async def _application(self) -> AsyncIterator[GatewayApp]:
        metrics = Metrics(self.log)
        engines = Engines(self.to, self.settings, metrics, self.path, self.token)
        clipper = Clipper(self.settings.clip, None if self.tokenizer is None else load_tokenizer(self.tokenizer))
        source = None if self.settings.cache is None else AnswerSource(self.settings.cache, metrics)
        app = GatewayApp(self.settings, engines, clipper, source, metrics, self.reset_key)
        beside = (engines.watch(), engines.watch_connections(), metrics.watch_loop(), app.watch_clients())
        tasks = [asyncio.create_task(work) for work in beside]
        try:
            yield app
        finally:
            for task in tasks:
                task.cancel()
            engines.close()

    async def serve(self, on_ready: Callable[[str, uvicorn.Server], None] | None = None) -> None:
        """Serve; `on_ready` is called with the URL and the server object, which it can stop."""
        raise_file_limit()
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # its messages may quote requests or answers
        with self.listen() as listener:
            async with self._application() as app:
                gc.freeze()  # the garbage collector need not scan ten thousand answers again and again
                config = uvicorn.Config(
                    app,
                    http=PatientProtocol,
                    ws="none",
                    lifespan="off",
                    access_log=False,
                    log_level="critical",
                    proxy_headers=False,
                    server_header=False,
                    date_header=False,
                    timeout_keep_alive=75,
                    timeout_graceful_shutdown=5,
                )
                server = uvicorn.Server(config)
                host, port = listener.getsockname()[:2]
                url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                print(f"listening on {url}, in front of {', '.join(self.to)}", flush=True)
                if on_ready is not None:
                    on_ready(url, server)
                await server.serve(sockets=[listener])


def main(arguments: Sequence[str]) -> None:
    """Serve with settings given as JSON; a deployment starts the gateway this way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", action="append", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--log")
    parser.add_argument("--path")
    parser.add_argument("--settings", default="{}")
    options = parser.parse_args(arguments)
    settings = Gateway.model_validate_json(options.settings)
    key, token = (os.environ.get(name, "") for name in (RESET_VARIABLE, TOKEN_VARIABLE))
    to, listened = tuple(options.to), (options.host, options.port)
    Service(settings, to, *listened, options.tokenizer, options.log, key, options.path, token).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
