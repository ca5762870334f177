"""A stand-in for a package index: the wheels of a folder, behind a server that fails as often as it is told to."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Index(http.server.ThreadingHTTPServer):
    """PEP 503's simple index of the wheels in `folder`; the next `failures` questions get status 503."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.failures, self.questions = folder, 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        index = self.server
        index.questions += 1
        name = self.path.strip("/").split("/")[-1]
        if index.failures > 0:
            index.failures -= 1
            self._answer(503, b"")
        elif name.endswith(".whl"):
            self._answer(200, (index.folder / name).read_bytes())
        else:
            wheels = [path.name for path in index.folder.glob("*.whl") if path.name.split("-")[0] == name]
            links = "".join(f'<a href="/files/{wheel}">{wheel}</a>' for wheel in wheels)
            self._answer(200 if wheels else 404, links.encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Index]:
    """Serve the wheels of a folder within the block."""
    with Index(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
