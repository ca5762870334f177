"""The host's protocol, on a fake library whose tokens are known: each is the one after the last."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from backends.host.__main__ import LibraryServer
from backends.host.http import serve_connections
from backends.host.library import EmitTokens, PromptRow
from backends.host.text import Detokenizer, Tokenizer
from tests.support.waiting import wait_until

VOCABULARY, CONTEXT, BOS, EOS = 320, 64, 0, 1
TOKENS = 300  # of the tokenizer: those above never come from text


class Counting:
    """Fails where a prompt holds one of the tokens below; waits at the gate before each batch."""

    version = "9.9"
    fails_at_once, fails_in_the_middle, out_of_memory = 310, 311, 312

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.step_seconds = 0.0
        self.steps = 0

    def generate(self, batch: Sequence[PromptRow], emit: EmitTokens) -> None:
        self.gate.wait(10)
        self.batches.append(len(batch))
        self._fail_at(batch, self.fails_at_once, RuntimeError("first step failed"))
        last = [row.prompt[-1] for row in batch]
        while not all(row.done for row in batch):
            last = [(token + 1) % VOCABULARY for token in last]
            emit(list(enumerate(last)))
            self.steps += 1
            time.sleep(self.step_seconds)
            self._fail_at(batch, self.fails_in_the_middle, RuntimeError("second step failed"))
            self._fail_at(batch, self.out_of_memory, RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))

    def _fail_at(self, batch: Sequence[PromptRow], token: int, error: Exception) -> None:
        if any(token in row.prompt for row in batch):
            raise error

    def memory(self) -> Mapping[str, float]:
        return {"kv_cache_bytes": 4096.0}

    def clear(self) -> None:
        """Holds nothing."""


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog, héllo wörld"] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token_id": EOS, "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def library():
    return Counting()


@contextlib.contextmanager
def hosted(library, model, max_batch: int = 1) -> Iterator[httpx.Client]:
    """A host in a thread, by its client."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    loop, started = asyncio.new_event_loop(), threading.Event()

    async def main() -> None:
        host = LibraryServer(library, Tokenizer(model), "tiny", None, max_batch)
        async with await asyncio.start_server(serve_connections(host.handle), sock=listener):
            started.set()
            await asyncio.Future()

    task = loop.create_task(main())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])), daemon=True)
    thread.start()
    started.wait(10)
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20) as client:
        yield client
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)


@pytest.fixture
def serve(model, library):
    """serve(max_batch) -> the client of a host of the library."""
    with contextlib.ExitStack() as stack:
        yield lambda max_batch=1: stack.enter_context(hosted(library, model, max_batch))
        library.gate.set()


def events(answer: httpx.Response) -> list[dict]:
    """The chunks of a stream, whose last event must be [DONE]."""
    assert answer.headers["content-type"] == "text/event-stream"
    data = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


def ask(client: httpx.Client, prompt, max_tokens: int = 4, **more) -> httpx.Response:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **more}
    return client.post("/v1/completions", json=body)


STREAM = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def test_one_event_a_token_with_its_id_and_the_usage_so_far(serve):
    *chunks, last = events(ask(serve(), [10, 20], 3, return_token_ids=True, **STREAM))
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[21], [22], [23]]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_usage_is_only_given_when_asked_for(serve):
    client = serve()
    assert all("usage" not in chunk for chunk in events(ask(client, "a", stream=True)))
    *chunks, last = events(ask(client, "a", stream=True, stream_options={"include_usage": True}))
    assert all("usage" not in chunk for chunk in chunks)
    assert last["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_list_of_prompts_is_one_batch(serve, library, size):
    prompts = [[10 + i, 30 + i] for i in range(size)]
    *chunks, last = events(ask(serve(max_batch=1), prompts, 5, return_token_ids=True, **STREAM))
    assert library.batches == [size]
    for index in range(size):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert [chunk["choices"][0]["token_ids"][0] for chunk in own] == [31 + index + step for step in range(5)]
        assert own[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert last["usage"] == {"prompt_tokens": 2 * size, "completion_tokens": 5 * size, "total_tokens": 7 * size}


def test_eos_ends_a_prompt_of_a_batch_unless_it_is_ignored(serve):
    client = serve()
    prompts = [[50], [VOCABULARY - 2]]  # the second comes to EOS = 1 with its third token
    body = ask(client, prompts, 6).json()
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop"]
    assert body["usage"]["completion_tokens"] == 6 + 3
    body = ask(client, prompts, 6, ignore_eos=True, return_token_ids=True).json()
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "length"]
    assert body["choices"][1]["token_ids"] == [VOCABULARY - 1, 0, 1, 2, 3, 4]


def test_streamed_text_is_the_whole_text(serve, model):
    client = serve()
    chunks = events(ask(client, "héllo", 40, stream=True, return_token_ids=True))
    tokens = [chunk["choices"][0]["token_ids"][0] for chunk in chunks]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == ask(client, "héllo", 40).json()["choices"][0]["text"]
    assert text == Tokenizer(model).decode(tokens)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": [5] * 61}, "maximum context length is 64 tokens"),
        ({"prompt": []}, "prompt must be a string"),
        ({"prompt": [[]]}, "at least one token"),
        ({"prompt": {"a": 1}}, "prompt must be a string"),
        ({"prompt": [5, VOCABULARY]}, f"whole numbers below {VOCABULARY}"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be a positive whole number, not 0"),
        ({"prompt": "a", "temperature": 0.7}, "temperature=0.7 is not supported: this server decodes greedily"),
        ({"prompt": "a", "n": 2}, "n=2 is not supported"),
        ({"prompt": "a", "model": "other"}, "The model `other` does not exist; served: tiny"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_host_lives_on(serve, body, words):
    client = serve()
    answer = client.post("/v1/completions", json={"max_tokens": 4, **STREAM, **body})
    assert answer.status_code == (404 if "model" in body else 400)
    assert words in answer.json()["error"]["message"]
    assert ask(client, "a").status_code == 200


def test_what_is_not_http_or_json_is_refused(serve):
    client = serve()
    assert client.post("/v1/completions", content=b"{no json").status_code == 400
    assert client.post("/v1/completions", content=b"[1]").status_code == 400
    assert client.get("/nothing").status_code == 404
    with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=5) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
        assert raw.recv(4096) is not None
    assert client.get("/health").status_code == 200


def test_a_failure_before_the_first_token_is_a_status(serve):
    client = serve()
    answer = ask(client, [Counting.fails_at_once], **STREAM)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "RuntimeError: first step failed"
    assert ask(client, "a").status_code == 200


def test_a_failure_in_the_middle_is_an_error_event(serve):
    client = serve()
    *_, last = events(ask(client, [Counting.fails_in_the_middle], **STREAM))
    assert last["error"]["type"] == "internal_error"
    *_, last = events(ask(client, [Counting.out_of_memory], **STREAM))
    assert last["error"]["type"] == "out_of_memory"
    assert "CUDA out of memory" in last["error"]["message"]
    assert ask(client, "a").status_code == 200


def test_out_of_memory_can_be_read_from_the_log(serve, capfd):
    from backends.base import Backend as Adapter

    ask(serve(), [Counting.out_of_memory])
    log = capfd.readouterr().err
    assert "host: generation failed, out of memory: RuntimeError: CUDA out of memory" in log
    assert Adapter(name="x").log.ran_out_of_memory(log)


@pytest.mark.parametrize(("max_batch", "expected"), [(1, [1, 1, 1, 1, 1]), (3, [1, 3, 1]), (8, [1, 4])])
def test_queued_requests_are_joined_up_to_max_batch(serve, library, max_batch, expected):
    client = serve(max_batch)
    library.gate.clear()
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(ask, client, [10])
        wait_for_metric(client, "host_requests_running", 1)
        others = [pool.submit(ask, client, [20 + i], 2 + i, return_token_ids=True) for i in range(4)]
        wait_for_metric(client, "host_requests_waiting", 4)
        library.gate.set()
        assert first.result().status_code == 200
        for i, other in enumerate(others):
            assert other.result().json()["choices"][0]["token_ids"] == [21 + i + step for step in range(2 + i)]
    assert library.batches == expected


def wait_for_metric(client: httpx.Client, name: str, value: float) -> None:
    wait_until(lambda: metrics(client)[name] == value, 10, f"{name} is {value}")


def metrics(client: httpx.Client) -> dict[str, float]:
    pairs = (line.split(" ") for line in client.get("/metrics").text.splitlines())
    return {name: float(value) for name, value in pairs}


def test_metrics_count_tokens_and_show_memory(serve):
    client = serve()
    ask(client, [[10, 11, 12], [13]], 5)
    found = metrics(client)
    assert found["host_prompt_tokens_total"] == 4
    assert found["host_generation_tokens_total"] == 10
    assert found["host_requests_running"] == found["host_requests_waiting"] == 0
    assert found["host_kv_cache_bytes"] == 4096


def test_a_client_that_goes_away_is_not_worked_for(serve, library):
    client = serve()
    library.step_seconds = 0.02
    body = {"prompt": [5], "max_tokens": 60, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_raw())
    wait_for_metric(client, "host_requests_running", 0)
    assert library.steps < 30


def test_facts_about_the_model(serve):
    client = serve()
    assert client.get("/version").json() == {"version": "9.9"}
    assert client.get("/v1/models").json()["data"][0] == {"id": "tiny", "object": "model", "max_model_len": CONTEXT}


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_detokenised_text_is_told_as_soon_as_characters_are_complete(model, text):
    tokenizer = Tokenizer(model)
    tokens = tokenizer.encode(text)[1:]
    detokenizer = Detokenizer(tokenizer)
    told = [detokenizer.add(token) for token in tokens]
    assert "".join(told) + detokenizer.flush() == tokenizer.decode(tokens)
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in told)


def test_special_tokens_are_in_the_text_of_who_asks_for_them(model):
    """So the tokens of an answer whose end is ignored can be counted by its text."""
    tokenizer = Tokenizer(model)
    tokens = [*sorted(tokenizer.ends), *tokenizer.encode("so")[1:]]
    for special in (True, False):
        detokenizer = Detokenizer(tokenizer, special)
        text = "".join(map(detokenizer.add, tokens)) + detokenizer.flush()
        assert text == tokenizer.decode(tokens, special)
        counted = len(tokenizer.backend.encode(text, add_special_tokens=False).ids)
        assert (counted == len(tokens)) == special


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(2, VOCABULARY - 1), max_size=60))
def test_any_tokens_can_be_told_at_bounded_cost(model, tokens):
    tokenizer = Tokenizer(model)
    detokenizer = Detokenizer(tokenizer)
    for token in tokens:
        detokenizer.add(token)
        assert len(detokenizer.window) <= 8
