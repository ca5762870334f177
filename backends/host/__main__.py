"""`python -m backends.host`: serves a library with the OpenAI completions API and greedy decoding."""

import argparse
import asyncio
import importlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.host import offline
from backends.host.batches import BatchQueue, GenerationFailed, HostedCall, failure
from backends.host.continuous import ContinuousQueue
from backends.host.http import HostConnection, HTTPError, Query, error_body, serve_connections
from backends.host.library import ContinuousLibrary, Library, LibrarySettings, PromptRow
from backends.host.text import Detokenizer, Tokenizer

# Required values of these request keys: they mean greedy decoding and a single answer.
ALLOWED: dict[str, tuple[Any, ...]] = {"temperature": (None, 0), "use_beam_search": (None, False), "logprobs": (None,)}
ALLOWED |= {"n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, "")}


class LibraryServer:
    """One loaded model behind HTTP."""

    def __init__(
        self, library: Library | ContinuousLibrary, tokenizer: Tokenizer, name: str, context: int | None, max_batch: int
    ) -> None:
        self.version = library.version
        self.tokenizer = tokenizer
        self.name = name
        self.context = context or tokenizer.context or sys.maxsize
        self.trial = offline.OfflineTrial()  # the trial that `measure` runs
        loop = asyncio.get_running_loop()
        self.batches: BatchQueue | ContinuousQueue = (
            ContinuousQueue(library, loop)
            if isinstance(library, ContinuousLibrary)
            else BatchQueue(library, max_batch, loop)
        )

    async def handle(self, query: Query, connection: HostConnection) -> None:
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
            case "POST", "/v1/completions":
                await self.complete(query.json(), connection)
            case "POST", "/measure":
                await self.measure(query.json(), connection)
            case "GET", "/progress":
                counts = {"generated": self.batches.generated_tokens, "counts": self.trial.counts()}
                await connection.answer(counts)
            case "POST", "/log_probabilities":
                await self.log_probabilities(query.json(), connection)
            case "POST", "/reset_caches":
                await self.reset_caches(connection)
            case _:
                raise HTTPError(404, f"{query.method} {query.path} is not served here", "NotFoundError")

    async def complete(self, body: dict[str, Any], connection: HostConnection) -> None:
        call = self.call(body)
        answer = Completion(self.name, call, self.tokenizer, body)
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
                chunks = [answer.chunk(index, token) for index, token in event]
                if answer.stream:
                    await connection.send_events(chunks)
        finally:
            call.abort()
        if answer.stream:
            await connection.send_events(answer.last_chunks())
            await connection.end_events()
        else:
            await connection.answer(answer.complete())

    async def measure(self, body: dict[str, Any], connection: HostConnection) -> None:
        """Measure a trial in one call (see `offline`); only for a library with `step`."""
        batches = self.batches
        if not isinstance(batches, ContinuousQueue):
            raise HTTPError(404, "this library does not support in-process timing", "NotFoundError")
        ignore = {"ignore_eos": body.get("ignore_eos")}
        warmup, measured = (
            offline.lockstep(
                [row for request in body[phase] for row in self.call(request | ignore).rows], body["batch_size"]
            )
            for phase in ("warmup", "requests")
        )
        self.trial = trial = offline.OfflineTrial(warmup, measured, body.get("duration"))
        stopped = threading.Event()
        await self.exclusively(batches, connection, lambda: trial.run(batches, stopped), stopped)

    async def log_probabilities(self, body: dict[str, Any], connection: HostConnection) -> None:
        """Answer {"texts": lists of token ids} with {"log_probabilities": a list per text, first token excluded}."""
        batches, compute = self.batches, getattr(self.batches.library, "log_probabilities", None)
        if compute is None:
            raise HTTPError(404, "this library does not support log-probabilities of a text", "NotFoundError")
        texts = self.prompts({"prompt": body.get("texts")})
        if isinstance(batches, ContinuousQueue):
            await self.exclusively(
                batches, connection, lambda: {"log_probabilities": compute(texts)}, threading.Event()
            )
        else:
            await connection.answer({"log_probabilities": await asyncio.to_thread(compute, texts)})

    async def reset_caches(self, connection: HostConnection) -> None:
        """Clear the library's prompt cache, and answer {"success": bool}."""
        batches, reset = self.batches, getattr(self.batches.library, "reset_caches", None)
        if not isinstance(batches, ContinuousQueue) or reset is None:
            raise HTTPError(404, "this library has no cache reset", "NotFoundError")
        await self.exclusively(batches, connection, lambda: {"success": reset()}, threading.Event())

    async def exclusively(
        self,
        batches: ContinuousQueue,
        connection: HostConnection,
        work: Callable[[], dict[str, Any]],
        stopped: threading.Event,
    ) -> None:
        """Answer with the result of `work`, run exclusively in the library's thread. A disconnect sets `stopped`."""
        result: asyncio.Future[dict[str, Any] | GenerationFailed] = batches.loop.create_future()

        def run() -> None:
            try:
                answer: dict[str, Any] | GenerationFailed = work()
            except Exception as error:  # noqa: BLE001 - a library's exception is the answer to this call
                answer = failure(error, batches.library)
            batches.loop.call_soon_threadsafe(result.set_result, answer)

        batches.exclusively(run)
        while not result.done():
            await asyncio.wait([result], timeout=0.1)
            if connection.gone:
                stopped.set()
        answer = result.result()
        if isinstance(answer, GenerationFailed):
            await self.fail(answer, connection)
        else:
            await connection.answer(answer)

    async def fail(self, failed: GenerationFailed, connection: HostConnection) -> None:
        """Send an error status if nothing has been sent yet, otherwise an error event in the stream."""
        body = error_body(str(failed), failed.kind, 500)
        if not connection.streaming:
            await connection.answer(body, 500)
            return
        await connection.send_events([body])
        await connection.end_events()

    def call(self, body: dict[str, Any]) -> HostedCall:
        """Build the call from a request's body. Raises HTTPError for unsupported options."""
        for key, allowed in ALLOWED.items():
            if body.get(key) not in allowed:
                raise HTTPError(400, f"{key}={body[key]!r} is not supported: this server decodes greedily")
        if body.get("model") not in (None, self.name):
            raise HTTPError(404, f"The model `{body['model']}` does not exist; served: {self.name}", "NotFoundError")
        prompts = self.prompts(body)
        max_tokens = body.get("max_tokens", 16)
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise HTTPError(400, f"max_tokens must be a positive whole number, not {max_tokens!r}")
        for prompt in prompts:
            if len(prompt) + max_tokens > self.context:
                limit = f"This model's maximum context length is {self.context} tokens."
                raise HTTPError(400, f"{limit} Requested: {len(prompt)} input and {max_tokens} output tokens.")
        ends = frozenset() if body.get("ignore_eos") else self.tokenizer.ends
        return HostedCall([PromptRow(prompt, max_tokens, ends) for prompt in prompts])

    def prompts(self, body: dict[str, Any]) -> list[list[int]]:
        """Return the prompts as token ids; a request may send one or more strings or lists of token ids."""
        content = body.get("prompt")
        if isinstance(content, str) or (isinstance(content, list) and content and isinstance(content[0], int)):
            content = [content]
        if not isinstance(content, list) or not content:
            raise HTTPError(400, "prompt must be a string, a list of strings, or one or more lists of token ids")
        prompts = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in content]
        for prompt in prompts:
            if not isinstance(prompt, list) or not prompt:
                raise HTTPError(400, "a prompt must have at least one token")
            if not all(type(token) is int and 0 <= token < self.tokenizer.vocabulary for token in prompt):
                raise HTTPError(400, f"token ids must be whole numbers below {self.tokenizer.vocabulary}")
        return prompts


class Completion:
    """An answer under construction: the call's events as OpenAI chunks, and their totals."""

    def __init__(self, model: str, call: HostedCall, tokenizer: Tokenizer, body: dict[str, Any]) -> None:
        self.call = call
        self.stream = bool(body.get("stream"))
        options = body.get("stream_options") or {}
        self.include_usage = bool(options.get("include_usage"))
        self.continuous_usage = self.include_usage and bool(options.get("continuous_usage_stats"))
        self.token_ids = bool(body.get("return_token_ids"))
        self.head: dict[str, Any] = {"id": f"cmpl-{id(call):x}", "object": "text_completion", "model": model}
        self.head["created"] = int(time.time())
        self.special = body.get("skip_special_tokens") is False
        self.detokenizers = [Detokenizer(tokenizer, self.special) for _ in call.rows]
        self.tokenizer = tokenizer
        self.counts = [0] * len(call.rows)

    def chunk(self, index: int, token: int) -> dict[str, Any]:
        """Return the chunk for one token."""
        row = self.call.rows[index]
        self.counts[index] += 1
        # The library's thread may be ahead of this thread, so only the row's last token carries the finish reason.
        reason = row.finish_reason if row.done and self.counts[index] == len(row.tokens) else None
        text = self.detokenizers[index].add(token) + (self.detokenizers[index].flush() if reason else "")
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        if self.token_ids:
            choice["token_ids"] = [token]
        chunk = {**self.head, "choices": [choice]}
        if self.continuous_usage:
            chunk["usage"] = _usage_totals(len(row.prompt), self.counts[index])
        return chunk

    def last_chunks(self) -> list[dict[str, Any]]:
        return [{**self.head, "choices": [], "usage": self._total()}] if self.include_usage else []

    def complete(self) -> dict[str, Any]:
        """Return the whole answer, for a request without streaming."""
        choices = []
        for index, row in enumerate(self.call.rows):
            text = self.tokenizer.decode(row.tokens, self.special)
            choice = {"index": index, "text": text, "logprobs": None, "finish_reason": row.finish_reason}
            choices.append({**choice, "token_ids": row.tokens} if self.token_ids else choice)
        return {**self.head, "choices": choices, "usage": self._total()}

    def _total(self) -> dict[str, int]:
        return _usage_totals(sum(len(row.prompt) for row in self.call.rows), sum(self.counts))


def _usage_totals(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def serve(listener: socket.socket, library: Library | ContinuousLibrary, arguments: argparse.Namespace) -> None:
    tokenizer = Tokenizer(arguments.model)
    host = LibraryServer(library, tokenizer, arguments.served_name, arguments.max_model_len, arguments.max_batch)
    # A batch of long prompts arrives in one body, so only the size of the headers is limited.
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
    parser.add_argument("--max-batch", type=int, default=1, help="maximum prompts of queued requests in one batch")
    parser.add_argument("--max-model-len", type=int, help="context length (default: the model's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", type=json.loads, default={}, help="JSON object for the library's loading function")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    # The port is bound before the model is loaded, so a busy port fails at once. It refuses connections until `serve`.
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((arguments.host, arguments.port))
    module = importlib.import_module(arguments.library)
    settings = LibrarySettings(arguments.model, arguments.device, arguments.dtype, arguments.seed, arguments.flags)
    library = module.load(settings)
    asyncio.run(serve(listener, library, arguments))


if __name__ == "__main__":
    main()
