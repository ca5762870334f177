"""A stand-in for Text Generation Inference 3.3: no model, but its wire contract, read from its source.

    tgi_stand_in.py --model-id DIR --port P [any flag of text-generation-launcher]

A token is a word, and the answer is w1 w2 w3 ... It answers /health, /info, /metrics, /generate, /generate_stream and
/v1/completions as TGI does: streams are always HTTP 200, errors are events, /generate_stream has no [DONE]; there is
no ignore_eos; more than --max-concurrent-requests are refused at once; new tokens beyond 1,024 come after a stall;
after an out-of-memory the shard dies, and the server with it.

What the real one takes from its model and GPU comes from the environment: STAND_IN_EOS (tokens after which every answer
ends), STAND_IN_ITL (s a token), STAND_IN_MEMORY (sequences at once that fit), STAND_IN_STALL (s at each 1,024 tokens).
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.host.http import HostConnection, HTTPError, Query, serve_connections

CHUNK = 1024  # DEFAULT_GENERATION_LENGTH
OOM = "Server error: CUDA out of memory. Tried to allocate 2.00 GiB."


@dataclass
class Failure(Exception):
    """An error as TGI has it: its words, its type, and the status of an answer that is not a stream."""

    error: str
    kind: str
    status: int

    @property
    def body(self) -> dict[str, str]:
        return {"error": self.error, "error_type": self.kind}


class StandIn:
    def __init__(self, arguments: argparse.Namespace, ended: asyncio.Event) -> None:
        self.arguments = arguments
        self.ended = ended
        self.eos = int(os.environ.get("STAND_IN_EOS", 10**9))
        self.itl = float(os.environ.get("STAND_IN_ITL", 0.0))
        self.memory = int(os.environ.get("STAND_IN_MEMORY", 10**9))
        self.stall = float(os.environ.get("STAND_IN_STALL", 0.0))
        self.running = self.requests = self.refused = 0
        self.out_of_memory = False

    async def handle(self, query: Query, connection: HostConnection) -> None:
        match query.method, query.path:
            case "GET", "/health":
                connection.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            case "GET", "/info":
                await connection.answer(self.info())
            case "GET", "/metrics":
                await connection.answer(self.metrics())
            case "POST", "/generate":
                await self.generate(query.json(), connection)
            case "POST", "/generate_stream":
                await self.generate_stream(query.json(), connection)
            case "POST", "/v1/completions":
                await self.completions(query.json(), connection)
            case _:
                raise HTTPError(404, "")

    def info(self) -> dict[str, Any]:
        return {
            "model_id": self.arguments.model_id,
            "max_concurrent_requests": self.arguments.max_concurrent_requests,
            "max_input_tokens": self.arguments.max_input_tokens,
            "max_total_tokens": self.arguments.max_total_tokens,
            "router": "text-generation-router",
            "version": "3.3.7-stand-in",
        }

    def metrics(self) -> str:
        return (
            f"# TYPE tgi_queue_size gauge\ntgi_queue_size 0\n"
            f"# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size {self.running}\n"
            f"# TYPE tgi_batch_current_max_tokens gauge\ntgi_batch_current_max_tokens {16 * self.running}\n"
            f"# TYPE tgi_batch_max_total_tokens gauge\ntgi_batch_max_total_tokens 1024\n"
            f"# TYPE tgi_request_count counter\ntgi_request_count {self.requests}\n"
            f'# TYPE tgi_request_failure counter\ntgi_request_failure{{err="overloaded"}} {self.refused}\n'
        )

    async def tokens(self, inputs: str, wanted: int | None) -> AsyncIterator[tuple[int, str | None]]:
        """(index, finish_reason) of each token. Raises Failure where TGI's own generation would."""
        self.requests += 1
        if self.running >= self.arguments.max_concurrent_requests:
            self.refused += 1
            raise Failure("Model is overloaded", "overloaded", 429)
        wanted = self.validate(len(inputs.split()), wanted)
        self.running += 1
        try:
            for index in range(1, wanted + 1):
                await asyncio.sleep(self.itl + (self.stall if index > 1 and index % CHUNK == 1 else 0))
                if self.running > self.memory:
                    self.out_of_memory = True
                if self.out_of_memory:
                    raise Failure(f"Request failed during generation: {OOM}", "generation", 424)
                reason = "eos_token" if index == self.eos else "length" if index == wanted else None
                yield index, reason
                if reason:
                    return
        finally:
            self.running -= 1
            if self.out_of_memory and not self.running:
                asyncio.get_running_loop().call_later(0.05, self.ended.set)

    def validate(self, inputs: int, wanted: int | None) -> int:
        longest, total = self.arguments.max_input_tokens, self.arguments.max_total_tokens
        if inputs > longest:
            words = f"`inputs` must have less than {longest} tokens. Given: {inputs}"
        elif wanted is not None and inputs + wanted > total:
            words = (
                f"`inputs` tokens + `max_new_tokens` must be <= {total}. "
                f"Given: {inputs} `inputs` tokens and {wanted} `max_new_tokens`"
            )
        else:
            return total - inputs if wanted is None else wanted
        raise Failure(f"Input validation error: {words}", "validation", 422)

    async def generate(self, body: dict[str, Any], connection: HostConnection) -> None:
        inputs, parameters = body["inputs"], body.get("parameters") or {}
        try:
            found = [pair async for pair in self.tokens(inputs, parameters.get("max_new_tokens"))]
        except Failure as failure:
            await connection.answer(failure.body, failure.status)
            return
        answer: dict[str, Any] = {"generated_text": _text(len(found))}
        if parameters.get("details"):
            tokens = [_token(index) for index, _ in found]
            details = {"finish_reason": found[-1][1], "generated_tokens": len(found), "seed": None}
            answer["details"] = {**details, "prefill": [], "tokens": tokens}
        await connection.answer(answer)

    async def generate_stream(self, body: dict[str, Any], connection: HostConnection) -> None:
        inputs, parameters = body["inputs"], body.get("parameters") or {}
        try:
            async for index, reason in self.tokens(inputs, parameters.get("max_new_tokens")):
                event = {"index": index, "token": _token(index), "generated_text": None, "details": None}
                if reason:
                    event["generated_text"] = _text(index)
                    if parameters.get("details"):
                        counts = {"generated_tokens": index, "seed": None, "input_length": len(inputs.split())}
                        event["details"] = {"finish_reason": reason, **counts}
                await connection.send_events([event])
        except Failure as failure:
            await connection.send_events([failure.body])
        await _end(connection)

    async def completions(self, body: dict[str, Any], connection: HostConnection) -> None:
        """The OpenAI route; unknown keys, ignore_eos among them, are passed over."""
        inputs = body["prompt"]
        head = {"object": "text_completion", "id": "", "created": 0, "model": "tgi", "system_fingerprint": "3.3.7"}
        try:
            async for index, reason in self.tokens(inputs, body.get("max_tokens")):
                finish = {"eos_token": "stop"}.get(reason or "", reason or "")
                choice = {"index": 0, "text": f" w{index}", "logprobs": None, "finish_reason": finish}
                event = {**head, "choices": [choice]}
                if reason:
                    length = len(inputs.split())
                    event["usage"] = {
                        "prompt_tokens": length,
                        "completion_tokens": index,
                        "total_tokens": length + index,
                    }
                await connection.send_events([event])
        except Failure as failure:
            await connection.send_events([{"error": {"message": failure.error, "http_status_code": 422}}])
        await connection.end_events()


def _token(index: int) -> dict[str, Any]:
    return {"id": index, "text": f" w{index}", "logprob": -0.5, "special": False}


def _text(tokens: int) -> str:
    return "".join(f" w{index}" for index in range(1, tokens + 1))


async def _end(connection: HostConnection) -> None:
    connection.writer.write(b"0\r\n\r\n")
    await connection.writer.drain()
    connection.streaming = False


async def serve(arguments: argparse.Namespace) -> None:
    ended = asyncio.Event()
    stand_in = StandIn(arguments, ended)
    server = await asyncio.start_server(serve_connections(stand_in.handle), arguments.hostname, arguments.port)
    print("2026-01-01T00:00:00.000000Z  INFO text_generation_router::server: Connected", flush=True)
    async with server:
        await ended.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--hostname", default="0.0.0.0")
    parser.add_argument("--max-concurrent-requests", type=int, default=128)
    parser.add_argument("--max-input-tokens", type=int, default=1023)
    parser.add_argument("--max-total-tokens", type=int, default=2048)
    for flag in ("num-shard", "dtype", "usage-stats", "prometheus-port", "master-port", "shard-uds-path", "quantize"):
        parser.add_argument(f"--{flag}")
    arguments = parser.parse_args()
    if not (Path(arguments.model_id) / "config.json").exists():
        sys.exit(f"Error: WebserverFailed\n{arguments.model_id} has no config.json")
    print(json.dumps(vars(arguments)), flush=True)
    asyncio.run(serve(arguments))
    print("2026-01-01T00:00:00.000000Z ERROR text_generation_launcher: RuntimeError: CUDA out of memory.")
    print("2026-01-01T00:00:00.000000Z ERROR text_generation_launcher: Shard 0 crashed")
    sys.exit("Error: ShardFailed")


if __name__ == "__main__":
    main()
