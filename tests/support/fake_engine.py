"""A fake engine for tests of the lifetime: an HTTP server and a detached helper that ignores SIGTERM.

fake_engine.py PORT [--delay S] [--say TEXT] [--exit STATUS] [--taken-once FILE] [--deaf]
                       [--flood MIB] [--apart WORD]
"""

import argparse
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"version": "1.2.3"}' if self.path == "/version" else b"{}"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        return


def detach_helper(word: str) -> None:
    """Like a worker that an engine starts in a session of its own, twice removed; with a word, without environment."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if word:
                os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", word], {})
            while True:
                time.sleep(60)
        os._exit(0)
    os.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--say", default="starting")
    parser.add_argument("--exit", type=int)
    parser.add_argument("--taken-once", type=Path)
    parser.add_argument("--deaf", action="store_true", help="never listens")
    parser.add_argument("--flood", type=int, default=0, help="MiB that it logs when it starts")
    parser.add_argument("--apart", default="", help="a word on the command line of its helper")
    arguments = parser.parse_args()
    print(arguments.say, flush=True)
    for _ in range(arguments.flood):
        print("x" * (1 << 20), flush=True)
    detach_helper(arguments.apart)
    time.sleep(arguments.delay)
    if arguments.taken_once and not arguments.taken_once.exists():
        arguments.taken_once.write_text(str(arguments.port))
        sys.exit("OSError: [Errno 98] Address already in use")
    if arguments.exit is not None:
        sys.exit(arguments.exit)
    if arguments.deaf:
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
