"""A completions endpoint with known timing: answers are tokens at given times, and some requests fare worse.

    with timed_server(ttft=0.1, slow_every=30, slow=5.0) as url: ...

Every `slow_every`-th request waits `slow` s for its first token, every `silent_every`-th never gets one, and every
answer stalls for `stall` s before its token number `stall_at`. From request `later_from` on, `ttft` is `later` times as
long. Requests are counted from the first that comes.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


@contextlib.contextmanager
def timed_server(**timing: float) -> Iterator[str]:
    """The endpoint's URL; it ends with the block."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in timing.items()]
    with subprocess.Popen([sys.executable, str(Path(__file__)), *flags], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


async def _answer(writer: asyncio.StreamWriter, number: int, asked: int, timing: argparse.Namespace) -> None:
    """Write the events of one answer at their times; nothing is late because of what came before it."""
    if timing.silent_every and number % timing.silent_every == 0:
        await asyncio.sleep(3600)
    slow = timing.slow_every and number % timing.slow_every == 0
    loop = asyncio.get_running_loop()
    later = timing.later if timing.later_from and number >= timing.later_from else 1.0
    due = loop.time() + (timing.slow if slow else timing.ttft * later)
    writer.write(HEAD)
    for token in range(1, asked + 1):
        due += timing.stall if token == timing.stall_at else 0.0
        await asyncio.sleep(due - loop.time())
        choice = {"index": 0, "text": " w", "finish_reason": "length" if token == asked else None}
        _event(writer, {"choices": [choice], "usage": {"prompt_tokens": 16, "completion_tokens": token}})
        due += timing.itl
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _event(writer: asyncio.StreamWriter, content: object) -> None:
    data = f"data: {json.dumps(content)}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def _serve(timing: argparse.Namespace) -> None:
    numbers = itertools.count(1)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if not head.startswith(b"post "):
                    writer.write(NOT_FOUND)
                    continue
                length = int(head.partition(b"content-length:")[2].split()[0])
                body = json.loads(await reader.readexactly(length))
                number = -1 if b"x-request-id: probe" in head else next(numbers)  # an endpoint's probe
                await _answer(writer, number, body["max_tokens"], timing)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", timing.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, value in {"ttft": 0.1, "itl": 0.01, "slow": 5.0, "stall": 0.0, "later": 1.0}.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    for name in ("slow-every", "silent-every", "stall-at", "later-from", "port"):
        parser.add_argument(f"--{name}", type=int, default=0)
    asyncio.run(_serve(parser.parse_args()))
