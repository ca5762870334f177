"""An endpoint whose answers come at known times and are counted, merged, hidden or held back as a test wants it."""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORD = " word"  # one token of the tokenizer that the project ships


@dataclass(frozen=True)
class Script:
    """One answer: token i (from 0) is made `ttft` + i × `itl` s after the request, and sent when its event is full."""

    ttft: float = 0.05
    itl: float = 0.02
    tokens: int | None = None  # of the visible answer; None: as many as were asked for
    tokens_per_event: int = 1
    events_per_write: int | None = 1  # held back until there are so many; None: until the end
    hidden: int = 0  # tokens that only usage counts
    details: bool = True  # usage says how many were hidden
    reasoning: int = 0  # of the visible tokens, those of the reasoning before the answer
    usage: Literal["final", "running", "running zero", "zero", "ids", "none"] = "final"
    overcount: float = 1.0  # times the tokens, in usage
    prompt_tokens: int = 16
    finish: str = "length"
    text: Literal["same", "own", "canned"] = "same"  # one word again and again, or words of the answer's own, or of all
    lengths: tuple[int, ...] = ()  # tokens of the answers, in turn
    odd_every: int = 0  # every so many answers is an error in one event at once, that counts all tokens
    early: dict[str, Any] | None = None  # a choice that is sent at once, before the first token is made
    replay: float | None = None  # s between the events of an answer that is held back to its end
    burst: int | None = None  # events that are held back together, to be replayed
    model: tuple[str, ...] = ()  # its name, in turn
    close: bool = False  # the connection after each answer

    def writes(self, body: dict[str, Any], number: int = 0) -> Iterator[tuple[float, bytes]]:
        """When to write what, for the request of this number, from 1."""
        for due, data in self._writes(body, number):
            if self.model:
                name = json.dumps(self.model[number % len(self.model)]).encode()
                data = data.replace(b'{"id":"x"', b'{"model":%b,"id":"x"' % name)
            yield due, data.replace(b"word", b"word%d" % number) if self.text == "own" else data

    def _writes(self, body: dict[str, Any], number: int) -> Iterator[tuple[float, bytes]]:
        total = body["max_tokens"] if self.tokens is None else self.tokens
        if self.lengths:
            total = self.lengths[number % len(self.lengths)]
        if self.odd_every and number % self.odd_every == 0:
            choice = {"index": 0, "text": "Error: the upstream model is overloaded", "finish_reason": "length"}
            yield 0.002, _sse({"id": "x", "choices": [choice]})
            yield 0.002, _sse({"choices": [], "usage": self._usage(total)}) + b"data: [DONE]\n\n"
            return
        if self.early is not None:
            usage = {"usage": self._usage(1)} if self.usage == "running" else {}
            yield 0.0, _sse({"id": "x", "choices": [{"index": 0, "finish_reason": None} | self.early], **usage})
        starts = range(0, total, self.tokens_per_event)
        pending: list[bytes] = []
        for count, start in enumerate(starts, 1):
            end = min(start + self.tokens_per_event, total)
            pending.append(self._event("messages" in body, start, end, end == total))
            if self.replay is not None:
                if end == total or (self.burst and count % self.burst == 0):
                    for place, event in enumerate(pending):
                        yield self.ttft + (end - 1) * self.itl + place * self.replay, event
                    pending = []
            elif end == total or (self.events_per_write and count % self.events_per_write == 0):
                yield self.ttft + (end - 1) * self.itl, b"".join(pending)
                pending = []
        last = _sse({"choices": [], "usage": self._usage(total)}) if self.usage not in ("none", "ids") else b""
        yield self.ttft + (total - 1) * self.itl + total * (self.replay or 0), last + b"data: [DONE]\n\n"

    def _event(self, chat: bool, start: int, end: int, last: bool) -> bytes:
        text = WORD * (end - start)
        if self.text != "same":  # hardly compressible, as text is
            text = "".join(f"{WORD}{hash_of(token)}" for token in range(start, end))
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish if last else None}
        if chat:
            choice["delta"] = {"reasoning_content" if end <= self.reasoning else "content": text}
        else:
            choice["text"] = text
        if self.usage == "ids":
            choice["token_ids"] = list(range(start, end))
        event: dict[str, Any] = {"id": "x", "object": "chunk", "choices": [choice]}
        if self.usage.startswith("running"):
            event["usage"] = self._usage(end if self.usage == "running" or last else None)
        return _sse(event)

    def _usage(self, visible: int | None) -> dict[str, Any]:
        if visible is None or self.usage == "zero":
            return {"prompt_tokens": 0, "completion_tokens": 0}
        counted = round(visible * self.overcount) + self.hidden
        details = {"completion_tokens_details": {"reasoning_tokens": self.hidden + self.reasoning}}
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": counted} | (details if self.details else {})


def hash_of(number: int) -> int:
    """A number that does not look like the one before it."""
    return number * 2654435761 % 99991


def _sse(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


@contextlib.contextmanager
def token_server(script: Script) -> Iterator[str]:
    """Its URL, while it serves on loopback: in a process of its own, which does not wait for the test's."""
    command = [sys.executable, "-m", "tests.support.token_server", json.dumps(asdict(script))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def _serve(script: Script) -> None:
    numbers = itertools.count(1)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                body = await _read(reader)
                await _answer(script, body, writer, next(numbers) if body else 0)
                if script.close and body:
                    break
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The body of the next request; empty if it has none."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    body: dict[str, Any] = json.loads(await reader.readexactly(size) or b"{}")
    return body


async def _answer(script: Script, body: dict[str, Any], writer: asyncio.StreamWriter, number: int) -> None:
    if not body:
        writer.write(HEAD % (b"application/json", 2, b"{}"))
        return
    loop = asyncio.get_running_loop()
    begun = loop.time()
    writer.write(STREAM_HEAD.replace(b"chunked", b"chunked\r\nConnection: close") if script.close else STREAM_HEAD)
    for due, data in script.writes(body, number):
        if (pause := begun + due - loop.time()) > 0:
            await asyncio.sleep(pause)
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    writer.write(b"0\r\n\r\n")


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # a late server would send several events at once
    asyncio.run(_serve(Script(**json.loads(sys.argv[1]))))
