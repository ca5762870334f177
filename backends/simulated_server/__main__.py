"""The simulated engine's command line and listening socket. Requests go to the engine or are answered at once."""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import sys
import time

import uvloop

import backends.simulated_server
from backends.simulated_server.answers import plain_answer
from backends.simulated_server.config import Config
from backends.simulated_server.connection import ClientConnection
from backends.simulated_server.engine import SimulatedEngine
from sweep.base.clock import STAMP_OPTION, realtime_minus_monotonic

APIS = {
    b"/v1/completions": "completions",
    b"/v1/chat/completions": "chat",
    b"/v1/responses": "responses",
    b"/v1/messages": "messages",
    b"/generate_stream": "tgi",
}


class SimulatedServer:
    """The listening socket, and the offset between kernel timestamps and the monotonic clock."""

    connection: type[ClientConnection] = ClientConnection

    def __init__(self, engine: SimulatedEngine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine, self.loop = engine, loop
        self.offset = 0
        self._refresh()

    def _refresh(self) -> None:
        """Update the wall clock's offset every second: kernel timestamps use that clock, and it may be adjusted."""
        self.offset = realtime_minus_monotonic()
        self.loop.call_later(1.0, self._refresh)

    def listen(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(4096)
        listener.setblocking(False)
        self.loop.add_reader(listener.fileno(), self._accept, listener)
        print(f"listening on {host}:{listener.getsockname()[1]}", flush=True)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sys.platform == "linux":
                sock.setsockopt(socket.SOL_SOCKET, STAMP_OPTION, 1)
            self.connection(sock, self.loop, lambda: self.offset, self.answer)

    def answer(self, connection: ClientConnection, url: bytes, body: bytes, request_id: bytes, arrival: int) -> None:
        path = url.partition(b"?")[0]
        api = APIS.get(path)
        if api is not None:
            self.engine.submit(connection, api, json.loads(body), request_id, arrival)
        elif path in (b"/health", b"/ping"):
            connection.write(plain_answer(200, ""))
        elif path == b"/metrics":
            connection.write(plain_answer(200, self.engine.metrics()))
        elif path == b"/reset_prefix_cache" and self.engine.prefixes:
            self.engine.prefixes.clear()
            connection.write(plain_answer(200, ""))
        elif path == b"/v1/models":
            models = [{"id": self.engine.model, "object": "model", "owned_by": "simulated"}]
            connection.write(plain_answer(200, {"object": "list", "data": models}))
        elif path == b"/version":
            connection.write(plain_answer(200, {"version": "simulated"}))
        else:
            connection.write(
                plain_answer(404, {"error": {"message": f"no such path: {path.decode('latin-1')}", "code": 404}})
            )


def main(arguments: list[str] | None = None, server: type[SimulatedServer] = SimulatedServer) -> None:
    parser = argparse.ArgumentParser(
        description=backends.simulated_server.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: choose a free port and print it")
    parser.add_argument("--model", default="simulated")
    parser.add_argument("--config", default="{}", help="JSON (see Config)")
    options = parser.parse_args(arguments)
    config = Config.model_validate_json(options.config)
    time.sleep(config.startup_seconds)
    if config.die_at_launch == "out_of_memory":
        sys.exit("torch.OutOfMemoryError: CUDA out of memory (simulated): the weights do not fit")
    if config.die_at_launch:
        sys.exit("RuntimeError: simulated failure at launch")
    loop = uvloop.new_event_loop()
    engine = SimulatedEngine(config.slowed(luck=random.gauss(0, 1)), options.model, loop)
    server(engine, loop).listen(options.host, options.port)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, loop.stop)
    with contextlib.closing(engine):
        loop.run_forever()


if __name__ == "__main__":
    main()
