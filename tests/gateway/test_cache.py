"""The gateway's cache: whose answer is served to whom, how it streams, and what is kept of it."""

import asyncio
import contextlib
import json
import re
import threading
import time
import tracemalloc

import httpx
import numpy as np
import pytest

from sweep.gateway.caching.answer import complete_answer
from sweep.gateway.caching.cache import AnswerCache, Entry, NearestVectors
from sweep.gateway.caching.embedding import Embedder
from sweep.gateway.caching.flight import Flight, FlightMemory
from sweep.gateway.caching.keys import IGNORED_HEADERS, IGNORED_PREFIX, AnswerKey, is_deterministic, key_of
from sweep.gateway.call import Call
from sweep.gateway.settings import Cache
from tests.gateway.test_gateway import (
    CHAT,
    COMPLETIONS,
    connection_to,
    decisions,
    metric,
    post,
    read_answer,
    request_bytes,
)
from tests.support.gateway_stand import STREAM_HEAD, engine, gateway, plain
from tests.support.simulated_engine import ROOT
from tests.support.waiting import wait_until

PRIME, NEAR, OTHER = "Is 7 prime?", "Is 8 prime?", "Who wrote Hamlet?"
ASK = {"model": "m", "prompt": PRIME, "max_tokens": 3, "temperature": 0, "stream": True}
STREAM = [(b"content-type", b"text/event-stream")]


def talkative(pause=0.0):
    """An engine that answers each request with its number, as vLLM would: an id, a time, usage at the end."""
    numbers = iter(range(1000))
    lock = threading.Lock()

    def script(connection, request):
        with lock:
            number = next(numbers)
        content = request.content
        head = {"id": f"cmpl-{number:08}", "created": 1000 + number, "model": "m"}
        if not content.get("stream"):
            choice = {"text": f" answer {number}", "finish_reason": "stop"}
            usage = {"prompt_tokens": 4, "completion_tokens": 2}
            plain(json.dumps({**head, "choices": [choice], "usage": usage}).encode())(connection, request)
            return
        choices = [[{"text": " answer", "finish_reason": None}], [{"text": f" {number}", "finish_reason": "stop"}], []]
        events = [{**head, "choices": each} for each in choices]
        events[-1]["usage"] = {"prompt_tokens": 4, "completion_tokens": 2}
        connection.sendall(STREAM_HEAD)
        for event in [json.dumps(each) for each in events] + ["[DONE]"]:
            part = f"data: {event}\n\n".encode()
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            time.sleep(pause)
        connection.sendall(b"0\r\n\r\n")

    return engine(script)


def text_of(answer):
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


def result(answer):
    return answer.headers.get("x-gateway-cache", "none")


# -- who gets whose answer


def test_a_kept_answer_streams_like_a_new_one(tmp_path):
    log = tmp_path / "log"
    with talkative() as behind, gateway(behind.url, cache={}, log=log) as url:
        first, again = post(url, ASK, **{"x-request-id": "one"}), post(url, ASK, **{"x-request-id": "two"})
        assert (result(first), result(again)) == ("miss", "exact")
        assert len(behind.received) == 1
        assert metric(url, "gateway_tokens_saved_total") == 6
        assert metric(url, "gateway_cache_entries") == 1
    assert text_of(first) == text_of(again) == " answer 0"
    assert again.headers["content-type"] == first.headers["content-type"]
    ours, theirs = (each.text.split("\n\n") for each in (again, first))
    assert len(ours) == len(theirs)
    assert ours[-2] == "data: [DONE]"
    head, old = (json.loads(each[0].removeprefix("data: ")) for each in (ours, theirs))
    assert head["id"] != old["id"]
    assert head["id"].startswith("cmpl-")
    assert abs(head["created"] - time.time()) < 5
    hit = decisions(log)[1]
    assert (hit["cache"], hit["origin"], hit["similarity"]) == ("exact", "one", 1.0)
    assert (hit["cached_input_tokens"], hit["cached_output_tokens"]) == (4, 2)


def test_the_events_of_a_kept_stream_come_one_by_one():
    with talkative() as behind, gateway(behind.url, cache={"event_interval": 0.05}) as url:
        post(url, ASK)
        with httpx.stream("POST", url + COMPLETIONS, json=ASK) as answer:
            times = [time.monotonic() for _ in answer.iter_raw()]
    assert len(times) >= 4
    assert times[-1] - times[0] > 0.1


def test_a_kept_plain_answer_is_served_to_plain_requests_only():
    ask = ASK | {"stream": False}
    with talkative() as behind, gateway(behind.url, cache={}) as url:
        first, again, streamed = post(url, ask), post(url, ask), post(url, ASK)
    assert [result(each) for each in (first, again, streamed)] == ["miss", "exact", "miss"]
    assert again.json()["choices"] == first.json()["choices"]
    assert again.json()["id"] != first.json()["id"]


@pytest.mark.parametrize(("threshold", "results"), [(0.8, "semantic"), (0.95, "miss")])
def test_a_similar_question_is_answered_above_the_threshold(threshold, results):
    with talkative() as behind, gateway(behind.url, cache={"threshold": threshold}) as url:
        post(url, ASK)
        near, other = post(url, ASK | {"prompt": NEAR}), post(url, ASK | {"prompt": OTHER})
    assert (result(near), result(other)) == (results, "miss")
    if results == "semantic":
        assert float(near.headers["x-gateway-similarity"]) == pytest.approx(0.907, abs=0.01)
        assert text_of(near) == " answer 0"


def test_exact_mode_answers_the_same_question_only():
    with talkative() as behind, gateway(behind.url, cache={"mode": "exact", "threshold": 0.1}) as url:
        results = [result(post(url, ASK | {"prompt": prompt})) for prompt in (PRIME, NEAR, PRIME)]
    assert results == ["miss", "miss", "exact"]


def test_a_message_in_text_parts_is_a_question_too():
    def talk(*texts, kind="text"):
        parts = [{"type": kind, "text": text} for text in texts]
        messages = [{"role": "user", "content": parts}]
        return {"model": "m", "messages": messages, "max_tokens": 3, "temperature": 0, "stream": True}

    with talkative() as behind, gateway(behind.url, cache={"threshold": 0.8}) as url:
        asked = [talk(PRIME), talk(PRIME), talk(NEAR), talk("Is 7", "prime?"), talk("Is 7\nprime?")]
        results = [result(post(url, each, CHAT)) for each in asked]
        assert results == ["miss", "exact", "semantic", "miss", "miss"]
        assert result(post(url, talk(PRIME, kind="image_url"), CHAT)) == "none", "no text alone"
    with talkative() as behind, gateway(behind.url, cache={"mode": "exact"}) as url:
        asked = [talk("a\nb", "c"), talk("a", "b\nc"), talk("a\nb", "c")]
        assert [result(post(url, each, CHAT)) for each in asked] == ["miss", "miss", "exact"]


def test_chats_are_kept_by_their_last_message():
    def talk(question, system="Be brief.", *history):
        said = [("system", system), *history, ("user", question)]
        messages = [{"role": role, "content": text} for role, text in said]
        return {"model": "m", "messages": messages, "max_tokens": 3, "temperature": 0, "stream": True}

    with talkative() as behind, gateway(behind.url, cache={"threshold": 0.8}) as url:
        asked = [(PRIME, "Be brief."), (NEAR, "Be brief."), (NEAR, "Be verbose.")]
        assert [result(post(url, talk(*each), CHAT)) for each in asked] == ["miss", "semantic", "miss"]
        before = ("user", "Hi."), ("assistant", "Hello.")
        asked = [before, before, [("user", "Hi."), ("user", "Hello.")], [before[0], ("assistant", "Hi!")], before[:1]]
        results = [result(post(url, talk(PRIME, "Be brief.", *history), CHAT)) for history in asked]
        assert results == ["miss", "exact", "miss", "miss", "miss"], "other roles, another answer, and none"


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"max_tokens": 4}, {"seed": 1}, {"stop": ["x"]}, {"logit_bias": {"5": 1}}, {"user": "u"}]
)
def test_no_answer_crosses_models_or_parameters(change):
    with talkative() as behind, gateway(behind.url, cache={"threshold": 0}) as url:
        assert [result(post(url, ask)) for ask in (ASK, ASK | change)] == ["miss", "miss"]


@pytest.mark.parametrize(
    "header", ["authorization", "x-api-key", "cookie", "x-goog-api-key", "X-Auth-Token", "Remote-User", "anything"]
)
def test_no_answer_crosses_headers(header):
    with talkative() as behind, gateway(behind.url, cache={"threshold": 0}) as url:
        keys = ["Bearer a", "Bearer b", "Bearer a"]
        assert [result(post(url, ASK, **{header: key})) for key in keys] == ["miss", "miss", "exact"]
        assert result(post(url, ASK)) == "miss", "nor to those without one"
        assert [call.headers.get(header.lower()) for call in behind.received] == ["Bearer a", "Bearer b", None]


def test_no_answer_crosses_the_order_of_a_headers_values():
    """A proxy appends its value to the client's, and the engine takes the last, or the first."""
    calls = [
        Call("/v1/completions", [(b"x-user", value) for value in values], b"", ASK)
        for values in ((b"a", b"b"), (b"b", b"a"))
    ]
    assert len({key_of(call) for call in calls}) == 2


def test_an_answer_crosses_the_headers_that_docs_gateway_exempts():
    exempt = re.search(r"These headers are exempt: (.*?)\.", (ROOT / "docs/gateway.md").read_text(), re.DOTALL)
    names = [name.replace("*", "Retry-Count") for name in re.findall(r"`(.*?)`", exempt[1])]
    assert {name.lower().encode() for name in names} == IGNORED_HEADERS | {IGNORED_PREFIX + b"retry-count"}
    with talkative() as behind, gateway(behind.url, cache={"threshold": 0}) as url:
        asked = [post(url, ASK, **dict.fromkeys(names, each)) for each in ("a", "b")]
    assert [result(answer) for answer in asked] == ["miss", "exact"]


@pytest.mark.parametrize(
    ("change", "deterministic"),
    [
        ({}, True),
        ({"temperature": 0.0, "n": 1}, True),
        ({"temperature": None}, False),
        ({"temperature": 0.1}, False),
        ({"temperature": False}, False),
        ({"n": 2}, False),
        ({"best_of": 3}, False),
        ({"echo": True}, False),
    ],
)
def test_only_deterministic_requests_are_kept(change, deterministic):
    assert is_deterministic(ASK | change) == deterministic


def test_what_is_not_deterministic_passes():
    warm = ASK | {"temperature": 1.0}
    with talkative() as behind, gateway(behind.url, cache={}) as url:
        assert [result(post(url, warm)) for _ in range(2)] == ["none", "none"]
        no_store = [post(url, ASK, **{"cache-control": each}) for each in ("no-cache", "No-Store")]
        several = [post(url, ASK | {"prompt": ["a", "b"]}) for _ in range(2)]
        assert {result(each) for each in no_store + several} == {"none"}
        assert len(behind.received) == 6


@pytest.mark.parametrize(
    ("directives", "is_kept"),
    [
        (b"no-transform", True),
        (b"max-age=60, no-transform", True),
        (b"max-age=60,No-Store", False),
        (b"no-transform, no-cache", False),
        (b'no-cache="x-field"', False),
    ],
)
def test_other_directives_of_cache_control_do_not_pass_the_cache(directives, is_kept):
    call = Call(COMPLETIONS, [(b"cache-control", directives)], b"", ASK)
    assert (key_of(call) is not None) == is_kept


def test_token_ids_are_compared_exactly():
    with talkative() as behind, gateway(behind.url, cache={"threshold": 0}) as url:
        prompts = [[1, 2, 3], [1, 2, 4], [1, 2, 3], "1 2 3"]
        assert [result(post(url, ASK | {"prompt": each})) for each in prompts] == ["miss", "miss", "exact", "miss"]


# -- single flight


def send(stack, url, content=ASK):
    """A connection on which a request has been sent."""
    connection = stack.enter_context(connection_to(url))
    connection.sendall(request_bytes(content))
    return connection


@pytest.mark.slow
def test_equal_prompts_under_way_share_one_answer():
    for single_flight, results in ((True, ["miss"] + ["shared"] * 3), (False, ["miss"] * 4)):
        with contextlib.ExitStack() as stack:
            behind = stack.enter_context(talkative(pause=0.1))
            url = stack.enter_context(gateway(behind.url, cache={"single_flight": single_flight}))
            answers = [read_answer(each).decode() for each in [send(stack, url) for _ in range(4)]]
            assert sorted(re.findall("x-gateway-cache: (.*)\r", "".join(answers))) == results
            assert len(behind.received) == results.count("miss")
            if single_flight:
                assert len({each.partition("\r\n\r\n")[2] for each in answers}) == 1


@pytest.mark.slow
def test_a_flight_outlives_the_client_that_began_it_and_ends_with_the_last():
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(talkative(pause=0.3))
        url = stack.enter_context(gateway(behind.url, cache={}))
        first = send(stack, url)
        wait_until(lambda: behind.received)
        second = send(stack, url)
        time.sleep(0.1)
        first.close()
        assert b'" 0"' in read_answer(second)
        send(stack, url, ASK | {"prompt": OTHER}).close()
        time.sleep(0.1)
        assert result(post(url, ASK | {"prompt": OTHER})) == "miss", "what nobody waited for was not finished"


class ScriptedAnswer:
    """An answer whose chunks a test pushes; an exception breaks it off."""

    def __init__(self, *chunks):
        self.status, self.headers = 200, STREAM
        self.chunks: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.is_closed = False
        for chunk in chunks:
            self.chunks.put_nowait(chunk)

    async def read(self):
        chunk = await self.chunks.get()
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def close(self):
        self.is_closed = True


def flight_of(answer, landed=None, begun=None, memory=None):
    async def ask():
        if begun is not None:
            await begun.wait()
        return answer

    landed = [] if landed is None else landed
    return Flight(ask, lambda *complete: landed.append(complete), lambda: None, memory or FlightMemory(1 << 20))


async def text_from(flight):
    answer = await flight.join()
    with contextlib.closing(answer):
        return b"".join([chunk async for chunk in parts_of(answer)])


async def read_together(readers):
    """A scripted answer that has begun, its flight, this many readers who wait for its next chunk, and what landed."""
    engine_answer, landed = ScriptedAnswer(b"a"), []
    flight = flight_of(engine_answer, landed)
    waiting = [asyncio.ensure_future(text_from(flight)) for _ in range(readers)]
    await asyncio.sleep(0.01)
    return engine_answer, flight, waiting, landed


async def parts_of(answer):
    while chunk := await answer.read():
        yield chunk


def test_nobody_joins_a_flight_that_its_last_reader_has_left():
    async def follow():
        engine_answer = ScriptedAnswer(b"begun")
        flight = flight_of(engine_answer)
        with contextlib.closing(await flight.join()):
            assert flight.is_open
        return flight.is_open, engine_answer.is_closed

    assert asyncio.run(follow()) == (False, True), "its answer ends in the middle"


def test_a_reader_of_a_flight_goes_on_where_another_left():
    """The one that waited for the engine leaves: the next chunk is neither lost nor doubled."""

    async def follow():
        engine_answer, _, readers, landed = await read_together(4)
        for chunk, leaving in ((b"b", readers[0]), (b"c", readers[2])):
            leaving.cancel()
            await asyncio.sleep(0.01)
            engine_answer.chunks.put_nowait(chunk)
            await asyncio.sleep(0.01)
        engine_answer.chunks.put_nowait(b"")
        return await asyncio.gather(readers[1], readers[3]), landed

    texts, landed = asyncio.run(follow())
    assert texts == [b"abc"] * 2
    assert landed == [(200, STREAM, [b"a", b"b", b"c"])]


@pytest.mark.parametrize(("largest", "limit"), [(3, 100), (100, 3)])
def test_a_flight_that_is_too_large_keeps_only_what_is_unread(largest, limit, monkeypatch):
    """An answer too large for the cache, or too many under way: one reader goes on, another that lags is cut off."""
    monkeypatch.setattr("sweep.gateway.caching.flight.LARGEST", largest)

    async def follow():
        memory, landed, held = FlightMemory(limit), [], []
        flight = flight_of(ScriptedAnswer(*[b"%d" % digit for digit in range(9)], b""), landed, memory=memory)
        fast, slow = await flight.join(), await flight.join()
        with contextlib.closing(fast), contextlib.closing(slow):
            text = await slow.read()
            assert text == await fast.read()
            async for part in parts_of(fast):
                text += part
                held.append(memory.taken)
            assert not flight.is_open
            with pytest.raises(OSError, match="too slowly"):
                await slow.read()
        return text, max(held), memory.taken, landed

    assert asyncio.run(follow()) == (b"012345678", 3, 0, [])


@pytest.mark.parametrize(
    "content",
    [
        *({"usage": {"prompt_tokens": count}} for count in ("x", -5, [1], 1.5, 10**400)),
        {"usage": {"prompt_tokens": 1, "completion_tokens": {}}},
        {"choices": 5},
        {"choices": {"finish_reason": "stop"}},
    ],
)
def test_an_answer_with_impossible_numbers_passes_and_is_not_kept(content):
    body = json.dumps({"choices": [{"text": "x", "finish_reason": "stop"}]} | content).encode()
    with engine(plain(body)) as behind, gateway(behind.url, cache={"mode": "exact"}) as url:
        answers = [post(url, ASK) for _ in range(2)]
    assert [(answer.status_code, answer.content, result(answer)) for answer in answers] == [(200, body, "miss")] * 2


def test_a_flight_that_breaks_off_breaks_off_for_all():
    async def follow():
        engine_answer, flight, readers, landed = await read_together(3)
        engine_answer.chunks.put_nowait(ConnectionResetError())
        results = await asyncio.gather(*readers, return_exceptions=True)
        return [type(each) for each in results], landed, engine_answer.is_closed, flight.is_open

    assert asyncio.run(follow()) == ([ConnectionResetError] * 3, [], True, False)


def test_a_flight_whose_reader_leaves_before_the_answer_begins_goes_on_for_another():
    async def follow():
        begun = asyncio.Event()
        engine_answer = ScriptedAnswer(b"a", b"")
        flight = flight_of(engine_answer, begun=begun)
        first, second = (asyncio.ensure_future(text_from(flight)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        begun.set()
        return await second

    assert asyncio.run(follow()) == b"a"


# -- what is kept


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"data: [DONE]\n\n",
        b'data: {"choices":[{"finish_reason":"stop"}]}\n\n',  # no end
        b'data: {"choices":[{"finish_reason":null}]}\n\ndata: [DONE]\n\n',
        b'data: {"choices":[{"finish_reason":"abort"}]}\n\ndata: [DONE]\n\n',
        b'data: {"choices":[{"finish_reason":"stop"}]}\n\ndata: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n',
        b"data: nonsense\n\ndata: [DONE]\n\n",
        b"data: " + b"[" * 100_000 + b"\n\ndata: [DONE]\n\n",
        b'data: {"choices":[{"finish_reason":["stop"]}],"usage":"none"}\n\ndata: [DONE]\n\n',
        b"\x00\xff\n\ndata: [DONE]\n\n",
    ],
)
def test_no_broken_stream_is_kept(body):
    assert complete_answer(200, STREAM, [body[:5], body[5:]], "r") is None
    assert complete_answer(200, [(b"content-type", b"application/json")], [body], "r") is None


def test_a_complete_stream_is_kept_whatever_its_chunks():
    body = b'data: {"id":"x","choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    for cut in range(len(body)):
        answer = complete_answer(200, STREAM, [body[:cut], body[cut:]], "r")
        assert answer is not None
        assert len(answer.parts) == 2
        assert answer.output_tokens == 1
    assert complete_answer(500, STREAM, [body], "r") is None
    assert complete_answer(200, [*STREAM, (b"content-encoding", b"gzip")], [body], "r") is None


def entry(number, vector=None):
    answer = complete_answer(200, STREAM, [b'data: {"choices":[{"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'], "r")
    assert answer is not None
    return Entry(AnswerKey(b"context", b"%d" % number), vector, answer, stored_at=float(number))


def test_the_least_recently_served_makes_room():
    cache = AnswerCache(Cache(capacity=3, ttl=None), 4)
    for number in range(3):
        cache.add(entry(number))
    assert cache.same(AnswerKey(b"context", b"0"))
    cache.add(entry(3))
    remaining = {number for number in range(4) if cache.same(AnswerKey(b"context", b"%d" % number))}
    assert remaining == {0, 2, 3}
    assert len(cache) == 3


def test_a_cache_has_a_largest_size():
    cache = AnswerCache(Cache(bytes=3 * entry(0).size + 1, ttl=None), 4)
    for number in range(5):
        cache.add(entry(number))
    assert [bool(cache.same(AnswerKey(b"context", b"%d" % number))) for number in range(5)] == [False] * 2 + [True] * 3
    small = AnswerCache(Cache(bytes=entry(0).size - 1), 4)
    small.add(entry(0))
    assert len(small) == 0


def test_an_answer_is_stale_after_its_time():
    now = [0.0]
    cache = AnswerCache(Cache(ttl=10, threshold=0.5), 2, lambda: now[0])
    vector = np.array([1, 0], np.float32)
    cache.add(entry(0, vector))
    now[0] = 9.0
    assert cache.same(AnswerKey(b"context", b"0"))
    assert cache.similar(AnswerKey(b"context", b"x"), vector)
    now[0] = 11.0
    assert cache.similar(AnswerKey(b"context", b"x"), vector) is None
    assert cache.same(AnswerKey(b"context", b"0")) is None
    assert len(cache) == 0


def test_the_search_keeps_no_other_thread_busy():
    """Threads of BLAS would spin on after it, on the engine's cores."""
    vectors = np.random.default_rng(0).normal(size=(10_000, 256)).astype(np.float32)
    nearest = NearestVectors(256)
    for number, vector in enumerate(vectors):
        nearest.add(entry(number, vector))
    begin = time.process_time() - time.thread_time()
    for vector in vectors[:10]:
        nearest.nearest(vector, 0.5)
        time.sleep(0.01)
    assert time.process_time() - time.thread_time() - begin < 0.02


def test_the_nearest_is_found_exactly_after_any_removal():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest, entries = NearestVectors(16), [entry(number, vector) for number, vector in enumerate(vectors)]
    for each in entries:
        nearest.add(each)
    for each in entries[::3]:
        nearest.remove(each)
    left = [each for number, each in enumerate(entries) if number % 3]
    for question in rng.standard_normal((50, 16)).astype(np.float32):
        question /= np.linalg.norm(question)
        best = max(left, key=lambda each: float(each.vector @ question))
        for threshold in (-1.0, 0.4, 0.5, 0.6, 0.7):
            result = nearest.nearest(question, threshold)
            if float(best.vector @ question) <= threshold:
                assert result is None
                continue
            assert result[0] is best
            assert result[1] == pytest.approx(float(best.vector @ question), rel=1e-5)


def test_the_default_embedder_knows_near_misses_as_near():
    embedder = Embedder()
    prime, near, other = (embedder.embed(text) for text in (PRIME, NEAR, OTHER))
    assert embedder.dimensions == 256
    assert float(prime @ near) == pytest.approx(0.907, abs=0.01)
    assert float(prime @ other) < 0.5
    assert float(np.linalg.norm(embedder.embed("word " * 5000))) == pytest.approx(1, abs=1e-3)
    assert not embedder.embed("").any()


@pytest.mark.parametrize("text", ["to be " * 50_000, "a" * 300_000], ids=["words", "a word"])
def test_a_long_text_takes_no_gigabytes(text):
    embedder = Embedder()
    embedder.embed("to be")
    tracemalloc.start()
    try:
        vector = embedder.embed(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(text)
    assert vector == pytest.approx(embedder.embed(text[: len(text) // 10]), abs=1e-3)


def test_a_vector_is_the_same_whatever_words_were_seen_before(monkeypatch):
    """Also when the words remembered are too many, and are forgotten in the middle of a text."""
    monkeypatch.setattr("sweep.gateway.caching.embedding.REMEMBERED_WORDS", 5)
    text = "the river rose in the night and by morning the bridge was gone"
    vectors = [Embedder().embed(text)]
    embedder = Embedder()
    for before in ("", "in the night", "a b c d e", text, text):
        embedder.embed(before)
        vectors.append(embedder.embed(text))
    tokenizer, rows = embedder._tokenizer, embedder._vectors
    tokens = rows[tokenizer.encode(text, add_special_tokens=False).ids].sum(axis=0)
    vectors.append(tokens / np.linalg.norm(tokens))
    for vector in vectors:
        assert vector == pytest.approx(vectors[0], abs=1e-6)
