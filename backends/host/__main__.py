"""`python -m backends.host`: serves a library in this process over the OpenAI completions protocol, with streaming.

Runs in the engine's environment, so it needs only the standard library and what every such environment has. Greedy
decoding, one event per token, list prompts as one batch, token-id prompts, exact lengths by ignore_eos.
"""

import argparse
import asyncio
import importlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backends.host import offline
from backends.host.batches import Batches, Call, GenerationFailed, failure
from backends.host.continuous import Continuous
from backends.host.http import Connection, HTTPError, Query, error_body, serve_connections
from backends.host.library import ContinuousLibrary, Forgetful, Library, Row, Settings
from backends.host.text import Detokenizer, Tokenizer

REFUSED = {"n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "logprobs": (None,)}


class Host:
    """One loaded model behind HTTP."""

    def __init__(
        self,
        library: Library | ContinuousLibrary,
        tokenizer: Tokenizer,
        name: str,
        context: int | None,
        max_batch: int,
    ) -> None:
        self.version = library.version
        self.tokenizer = tokenizer
        self.name = name
        self.context = context or tokenizer.context or sys.maxsize
        loop = asyncio.get_running_loop()
        self.batches: Batches | Continuous
        if isinstance(library, ContinuousLibrary):
            self.batches = Continuous(library, loop)
        else:
            self.batches = Batches(library, max_batch, loop)

    async def handle(self, query: Query, connection: Connection) -> None:
        match query.method, query.path:
            case "GET", "/health":
                await connection.answer({})
            case "GET", "/version":
                await connection.answer({"version": self.version})
            case "GET", "/v1/models":
                model = {"id": self.name, "object": "model", "max_model_len": self.context}
                await connection.answer({"object": "list", "data": [model]})
            case "GET", "/metrics":
                lines = (f"host_{name} {float(value)!r}\n" for name, value in self.batches.readings().items())
                await connection.answer("".join(lines))
            case "POST", "/tokenize":
                tokens = self.prompts(query.json())[0]
                await connection.answer({"count": len(tokens), "max_model_len": self.context, "tokens": tokens})
            case "POST", "/v1/completions":
                await self.complete(query.json(), connection)
            case "POST", "/measure":
                await self.measure(query.json(), connection)
            case "POST", "/reset_caches":
                await self.reset_caches(connection)
            case _:
                raise HTTPError(404, f"{query.method} {query.path} is not served here", "NotFoundError")

    async def complete(self, body: dict[str, Any], connection: Connection) -> None:
        call = self.call(body)
        answer = Answer(self.name, call, self.tokenizer, body)
        self.batches.submit(call)
        try:
            while True:
                event = await call.events.get()
                if connection.gone:
                    raise ConnectionResetError("the client has gone")
                if event is None:
                    break
                if isinstance(event, GenerationFailed):
                    await self.fail(event, connection)
                    return
                chunks = answer.take(event)
                if answer.stream:
                    await connection.send_events(chunks)
        finally:
            call.abort()
        if answer.stream:
            await connection.send_events(answer.last_chunks())
            await connection.end_events()
        else:
            await connection.answer(answer.whole())

    async def measure(self, body: dict[str, Any], connection: Connection) -> None:
        """A whole trial in one call (see `offline`): only for a library that is stepped."""
        batches = self.batches
        if not isinstance(batches, Continuous):
            raise HTTPError(404, "this library cannot be measured inside", "NotFoundError")
        warmup, rows = (
            [row for one in body[phase] for row in self.call({**one, "ignore_eos": body.get("ignore_eos")}).rows]
            for phase in ("warmup", "requests")
        )
        order = offline.Order(**body["order"])
        stopped = threading.Event()
        result = _alone(batches, lambda: offline.measure(batches.library, warmup, rows, order, stopped))
        while not result.done():
            await asyncio.wait([result], timeout=0.1)
            if connection.gone:
                stopped.set()
        found = result.result()
        if isinstance(found, GenerationFailed):
            await self.fail(found, connection)
        else:
            await connection.answer(found)

    async def reset_caches(self, connection: Connection) -> None:
        """Have the library forget earlier prompts: {"success": bool}."""
        batches, library = self.batches, self.batches.library
        if not isinstance(batches, Continuous) or not isinstance(library, Forgetful):
            raise HTTPError(404, "this library cannot be told to forget", "NotFoundError")
        found = await _alone(batches, lambda: {"success": library.reset_caches()})
        if isinstance(found, GenerationFailed):
            await self.fail(found, connection)
        else:
            await connection.answer(found)

    async def fail(self, failed: GenerationFailed, connection: Connection) -> None:
        """An error status as long as nothing has been sent; after that, an error event in the stream."""
        body = error_body(str(failed), failed.kind, 500)
        if not connection.streaming:
            await connection.answer(body, 500)
            return
        await connection.send_events([body])
        await connection.end_events()

    def call(self, body: dict[str, Any]) -> Call:
        """The rows that a request asks for. HTTPError for what this host cannot do."""
        if body.get("temperature") or body.get("use_beam_search"):
            raise HTTPError(400, "this host decodes greedily: temperature must be 0")
        for key, allowed in REFUSED.items():
            if body.get(key) not in allowed:
                raise HTTPError(400, f"{key}={body[key]!r} is not supported")
        if body.get("model") not in (None, self.name):
            raise HTTPError(404, f"The model `{body['model']}` does not exist; served: {self.name}", "NotFoundError")
        prompts = self.prompts(body)
        max_tokens = body.get("max_tokens", 16)
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise HTTPError(400, f"max_tokens must be a positive whole number, not {max_tokens!r}")
        for prompt in prompts:
            if len(prompt) + max_tokens > self.context:
                raise HTTPError(
                    400,
                    f"This model's maximum context length is {self.context} tokens. However, you requested "
                    f"{max_tokens} output tokens and your prompt contains {len(prompt)} input tokens.",
                )
        ends = frozenset() if body.get("ignore_eos") else self.tokenizer.ends
        return Call([Row(prompt, max_tokens, ends) for prompt in prompts])

    def prompts(self, body: dict[str, Any]) -> list[list[int]]:
        """A string, a list of strings, a list of token ids, or a list of such lists, as lists of token ids."""
        given = body.get("prompt")
        if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
            given = [given]
        if not isinstance(given, list) or not given:
            raise HTTPError(400, "prompt must be a string, a list of strings, or one or more lists of token ids")
        prompts = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in given]
        for prompt in prompts:
            if not isinstance(prompt, list) or not prompt:
                raise HTTPError(400, "a prompt must have at least one token")
            if not all(type(token) is int and 0 <= token < self.tokenizer.vocabulary for token in prompt):
                raise HTTPError(400, f"token ids must be whole numbers below {self.tokenizer.vocabulary}")
        return prompts


def _alone(
    batches: Continuous, work: Callable[[], dict[str, Any]]
) -> asyncio.Future[dict[str, Any] | GenerationFailed]:
    """What `work` returns in the library's thread while nothing else runs there, or how it failed."""
    result: asyncio.Future[dict[str, Any] | GenerationFailed] = batches.loop.create_future()

    def run() -> None:
        try:
            found: dict[str, Any] | GenerationFailed = work()
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the answer to this call
            found = failure(error, batches.library)
        batches.loop.call_soon_threadsafe(result.set_result, found)

    batches.alone(run)
    return result


class Answer:
    """One answer in the making: the events of a call as OpenAI's chunks, and its totals."""

    def __init__(self, model: str, call: Call, tokenizer: Tokenizer, body: dict[str, Any]) -> None:
        self.call = call
        self.stream = bool(body.get("stream"))
        options = body.get("stream_options") or {}
        self.include_usage = bool(options.get("include_usage"))
        self.continuous_usage = self.include_usage and bool(options.get("continuous_usage_stats"))
        self.token_ids = bool(body.get("return_token_ids"))
        self.head = {
            "id": f"cmpl-{id(call):x}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.detokenizers = [Detokenizer(tokenizer) for _ in call.rows]
        self.texts: list[list[str]] = [[] for _ in call.rows]
        self.counts = [0] * len(call.rows)

    def take(self, step: Sequence[tuple[int, int]]) -> list[dict[str, Any] | str]:
        """One step's tokens as chunks, one a token."""
        return [self._chunk(index, token) for index, token in step]

    def _chunk(self, index: int, token: int) -> dict[str, Any]:
        row = self.call.rows[index]
        self.counts[index] += 1
        # The library's thread may be ahead of us: only the row's last token carries the reason why it ended.
        reason = row.finish_reason if row.done and self.counts[index] == len(row.tokens) else None
        text = self.detokenizers[index].add(token) + (self.detokenizers[index].flush() if reason else "")
        self.texts[index].append(text)
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        if self.token_ids:
            choice["token_ids"] = [token]
        chunk = {**self.head, "choices": [choice]}
        if self.continuous_usage:
            chunk["usage"] = _usage(len(row.prompt), self.counts[index])
        return chunk

    def last_chunks(self) -> list[dict[str, Any] | str]:
        return [{**self.head, "choices": [], "usage": self._total()}] if self.include_usage else []

    def whole(self) -> dict[str, Any]:
        """The answer to a request that did not ask for a stream."""
        choices = []
        for index, row in enumerate(self.call.rows):
            text = "".join(self.texts[index])
            choice = {"index": index, "text": text, "logprobs": None, "finish_reason": row.finish_reason}
            choices.append({**choice, "token_ids": row.tokens} if self.token_ids else choice)
        return {**self.head, "choices": choices, "usage": self._total()}

    def _total(self) -> dict[str, int]:
        return _usage(sum(len(row.prompt) for row in self.call.rows), sum(self.counts))


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def serve(listener: socket.socket, library: Library | ContinuousLibrary, arguments: argparse.Namespace) -> None:
    tokenizer = Tokenizer(arguments.model)
    host = Host(library, tokenizer, arguments.served_name, arguments.max_model_len, arguments.max_batch)
    # Long prompts of a whole batch are one body: only the headers are limited.
    server = await asyncio.start_server(serve_connections(host.handle), sock=listener, limit=2**16, backlog=4096)
    print(f"host: serving {arguments.served_name} on {listener.getsockname()}", file=sys.stderr)
    await server.serve_forever()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="backends.host", description=__doc__)
    parser.add_argument("--library", required=True, help="module with a function load(settings)")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--served-name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch", type=int, default=1, help="prompts of queued requests joined to one batch")
    parser.add_argument("--max-model-len", type=int, help="context length, if not the model's own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", type=json.loads, default={}, help="JSON object for the library's loading function")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    # Taken before the model is loaded, so that a port in use is noticed at once; refuses connections until `serve`.
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((arguments.host, arguments.port))
    module = importlib.import_module(arguments.library)
    settings = Settings(arguments.model, arguments.device, arguments.dtype, arguments.seed, arguments.flags)
    library = module.load(settings)
    asyncio.run(serve(listener, library, arguments))


if __name__ == "__main__":
    main()
