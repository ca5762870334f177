"""A stand-in for the metadata server of a Google Cloud machine: it answers when the value has changed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.support.http_stub import Stub, running


class MetadataServer(ThreadingHTTPServer):
    """It serves one value, computeMetadata/v1/instance/preempted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.preempted, self.asked = threading.Event(), threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(Stub):
    server: MetadataServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        if address.path != "/computeMetadata/v1/instance/preempted" or self.headers["Metadata-Flavor"] != "Google":
            self.send_error(403)
            return
        preempted = self.server.preempted
        if query.get("wait_for_change") == "true" and query.get("last_etag") == f"etag-{preempted.is_set()}":
            self.server.asked.set()
            preempted.wait(float(query["timeout_sec"]))
        value = preempted.is_set()
        self.reply(200, str(value).upper().encode(), {"ETag": f"etag-{value}"})


@contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    with running(server := MetadataServer()):
        try:
            yield server
        finally:
            server.preempted.set()
