"""The simulated engine behind TLS of its own: it logs the same true times, without a proxy in the path.

    python -m benchmarks.tls_server --config JSON

Its certificate is made at the start, and nobody trusts it.
"""

import contextlib
import functools
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from backends.simulated_server.__main__ import SimulatedServer, main
from backends.simulated_server.connection import ClientConnection


class TlsConnection(ClientConnection):
    """Reads and writes TLS records. A request's arrival is that of the bytes which completed its record."""

    def __init__(self, *arguments: Any) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._in, self._out, server_side=True)
        self._greeted = False
        super().__init__(*arguments)

    def _received(self, data: bytes) -> None:
        self._in.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self._greeted:
                self._tls.do_handshake()
                self._greeted = True
            while plain := self._tls.read(1 << 18):
                super()._received(plain)
        self._flush()

    def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def _flush(self) -> None:
        if records := self._out.read():
            super().write(records)


class TlsServer(SimulatedServer):
    """The listening socket whose connections use TLS."""

    connection = TlsConnection


@functools.cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory(prefix="sweep-tls-") as name:
        key, certificate = Path(name) / "key.pem", Path(name) / "certificate.pem"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
        subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context.load_cert_chain(certificate, key)
    return context


if __name__ == "__main__":
    _context()
    main(server=TlsServer)
