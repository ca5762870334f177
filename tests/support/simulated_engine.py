"""A simulated engine for the length of a `with` block, for tests."""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def simulated(**config: Any) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Its URL and process; after the block it has ended and its log is complete."""
    config = {"ttft": {"mean": 0.02}, "itl": {"mean": 0.002}} | config
    command = [sys.executable, "-m", "backends.simulated_server", "--config", json.dumps(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield f"http://127.0.0.1:{line.rsplit(':', 1)[-1].strip()}", process
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def behind_tls(url: str, folder: Path, newest: ssl.TLSVersion | None = None) -> Iterator[str]:
    """A TLS server before a plain one, passing bytes on: its URL. Nobody trusts its certificate, which is
    certificate.pem in the folder. With a `newest` version it demands a certificate of the client."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if newest:
        context.verify_mode, context.maximum_version = ssl.CERT_REQUIRED, newest
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(url.rsplit(":", 1)[1])
        threading.Thread(target=_terminate_tls, args=(server, context, port), daemon=True).start()
        yield f"https://localhost:{server.getsockname()[1]}"


def _terminate_tls(server: socket.socket, context: ssl.SSLContext, port: int) -> None:
    def carry(raw: socket.socket) -> None:
        try:
            front = context.wrap_socket(raw, server_side=True)
        except OSError:
            return
        with contextlib.suppress(OSError), front, socket.create_connection(("127.0.0.1", port)) as back:
            upward = threading.Thread(target=_pump, args=(front, back), daemon=True)
            upward.start()
            _pump(back, front)

    while True:
        try:
            raw, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=carry, args=(raw,), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
