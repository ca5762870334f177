"""The gateway: bytes pass unchanged, requests are clipped and spread, and neither clients nor engines harm it."""

import asyncio
import contextlib
import json
import re
import select
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from sweep.__main__ import main
from sweep.base.records import LARGEST_HEAD
from sweep.gateway.call import Call
from sweep.gateway.clipping import clip_text, count_tokens
from sweep.gateway.engines import EngineState, Router, raise_file_limit
from sweep.gateway.server import MOST_PIPELINED
from sweep.gateway.settings import RESET_HEADER
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from tests.support.gateway_stand import RESET, STREAM_HEAD, chunked, engine, gateway, plain, stream
from tests.support.simulated_engine import ROOT, simulated
from tests.support.waiting import wait_until

# A stream with all that a rewriting proxy would spoil: odd spaces, comments, other line ends, half characters.
EVENTS = (
    b': keep-alive\n\ndata: {"id": "x",  "choices": [{"index":0,"text":"\xc3',
    b'\xa9", "finish_reason" : null}]}\n\n',
    b'data: {"choices":[{"text":" tail","finish_reason":"stop"}]}\r\n\r\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":2}}\n\ndata: [DONE]\n\n',
)
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ASK = {"model": "m", "prompt": "Hello there", "max_tokens": 2, "stream": True}
TALK = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


def post(url, content, path=COMPLETIONS, **headers):
    return httpx.post(url + path, json=content, headers=headers, timeout=20)


def decisions(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def metric(url, name):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)


# -- pass-through


@pytest.mark.parametrize(("path", "content"), [(COMPLETIONS, ASK), (CHAT, TALK)])
def test_a_stream_passes_byte_for_byte(path, content):
    with engine(stream(*EVENTS)) as behind, gateway(behind.url) as url:
        body = json.dumps(content, indent=3).encode()  # not as we would write it
        answer = httpx.post(url + path, content=body, headers={"x-request-id": "r-1", "authorization": "Bearer k"})
    assert answer.content == b"".join(EVENTS)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    (request,) = behind.received
    assert (request.path, request.body) == (path, body)
    assert request.headers["x-request-id"] == "r-1"
    assert request.headers["authorization"] == "Bearer k"


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request", b"429 Too Many Requests", b"500 Internal"])
def test_a_plain_answer_passes_with_its_status_and_headers(status):
    body = b'{"choices" :[{"text":"\\u00e9"}],\n "usage":{}}'
    with engine(plain(body, status)) as behind, gateway(behind.url) as url:
        answer = post(url, ASK | {"stream": False})
    assert (answer.status_code, answer.content) == (int(status[:3]), body)
    assert answer.headers["x-engine"] == "yes"
    assert "transfer-encoding" not in answer.headers


@pytest.mark.slow
def test_the_command_passes_what_the_simulated_engine_says(tmp_path):
    """`sweep gateway` against the simulated engine: byte for byte, and no prompt in its log or its output."""
    log = tmp_path / "decisions.jsonl"
    with simulated(itl={"mean": 0.001}) as (behind, _):
        command = [sys.executable, "-m", "sweep", "gateway", "--to", behind, "--port", "0", "--log", str(log)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        try:
            line = process.stdout.readline()
            url = line.split()[2].rstrip(",")
            assert url.startswith("http://127.0.0.1:"), "loopback by default"
            for path, content in ((COMPLETIONS, ASK), (CHAT, TALK)):
                content = content | {"max_tokens": 20, "temperature": 0, "stream_options": {"include_usage": True}}
                answers = (post(each, content, path, **{"x-request-id": "same"}).content for each in (behind, url))
                direct, through = (re.sub(rb'"created": *\d+', b"", answer) for answer in answers)  # whole seconds
                assert through == direct
                assert through.count(b"data: ") > 20
        finally:
            process.terminate()
            printed = line + process.communicate()[0]
    assert [each["request_id"] for each in decisions(log)] == ["same", "same"]
    assert "Hello" not in printed + log.read_text()


def test_models_and_health_and_metrics():
    with engine(plain(b'{"data": []}')) as behind, gateway(behind.url) as url:
        assert httpx.get(f"{url}/v1/models").json() == {"data": []}
        assert httpx.get(f"{url}/health").json() == {"healthy": True}
        post(url, ASK)
        assert metric(url, "gateway_requests_total") == 1
        assert httpx.get(f"{url}/gateway/state").json()["looks"] >= 0
        assert httpx.get(f"{url}{COMPLETIONS}").status_code == 405
        assert httpx.get(f"{url}/nothing").status_code == 404


# -- clipping

TOKENIZER = load_tokenizer(SHIPPED_TOKENIZER)
TEXT = " ".join(f"The {n}. sentence of a long story says little, ünlike the others." for n in range(60))


@pytest.mark.parametrize("limit", [1, 7, 64, 200])
@pytest.mark.parametrize("part", [1 << 18, 97])
def test_a_clipped_text_is_a_part_of_the_text_within_its_tokens(limit, part, monkeypatch):
    """Also if the text is tokenized in parts, which may cut tokens in two."""
    monkeypatch.setattr("sweep.gateway.clipping.TOKENIZED_PART", part)
    count = len(TOKENIZER.encode(TEXT).ids)
    for keep, fits in (
        ("head", TEXT.startswith),
        ("tail", TEXT.endswith),
        ("both", lambda text: any(TEXT.startswith(text[:i]) and TEXT.endswith(text[i:]) for i in range(len(text) + 1))),
    ):
        cut, before, after = clip_text(TEXT, limit, keep, TOKENIZER)
        split = 2 * (len(TEXT) // part)
        assert count <= before <= count + split
        assert fits(cut), keep
        assert 0 <= after - len(TOKENIZER.encode(cut).ids) <= split
        special = len(TOKENIZER.encode("").ids)
        assert after <= max(limit, special + 1)
        assert after >= limit - 3 - split, "no more is cut than has to be"
    beginning = len(TOKENIZER.encode(TEXT[:50], add_special_tokens=False).ids)
    assert count_tokens([TEXT, "", TEXT[:50]], TOKENIZER)[1:] == [0, beginning]


def test_requests_are_clipped_and_the_client_is_told(tmp_path):
    log = tmp_path / "log"
    clip = {"input_tokens": 50, "keep": "tail", "output_tokens": 8}
    count = len(TOKENIZER.encode(TEXT).ids)
    with engine(stream(*EVENTS)) as behind, gateway(behind.url, clip=clip, tokenizer=SHIPPED_TOKENIZER, log=log) as url:
        answer = post(url, ASK | {"prompt": TEXT, "max_tokens": 100, "min_tokens": 100})
        unchanged = post(url, ASK)
        ids = post(url, ASK | {"prompt": list(range(80))})
        talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
        talk += [{"role": "assistant", "content": "Well."}, {"role": "user", "content": "So?"}]
        chat = post(url, {"messages": talk}, CHAT)
        image = {"type": "image_url", "image_url": {"url": "data:,"}}
        parts = [{"type": "text", "text": "Look:"}, image, {"type": "text", "text": TEXT}]
        in_parts = post(url, {"messages": [{"role": "user", "content": parts}]}, CHAT)
        metrics = metric(url, "gateway_clipped_requests_total"), metric(url, "gateway_tokens_saved_total")
    clipped, same, numbers, messages, cut_parts = (request.content for request in behind.received)
    assert TEXT.endswith(clipped["prompt"])
    after = len(TOKENIZER.encode(clipped["prompt"]).ids)
    assert after <= 50
    assert answer.headers["x-gateway-clipped"] == f"input={count}->{after}, output=100->8"
    assert (clipped["max_tokens"], clipped["min_tokens"]) == (8, 8)
    assert "x-gateway-clipped" not in unchanged.headers
    assert same == ASK
    assert numbers["prompt"] == list(range(30, 80))
    assert ids.headers["x-gateway-clipped"] == "input=80->50"
    history = messages["messages"]
    assert [*history[:1], history[1]["role"], *history[2:]] == [talk[0], "user", *talk[2:]]
    assert TEXT.endswith(history[1]["content"])
    assert messages["max_tokens"] == 8
    assert "input=" in chat.headers["x-gateway-clipped"]
    look, picture, story = cut_parts["messages"][0]["content"]
    assert (look["text"], picture) == ("Look:", image)
    assert TEXT.endswith(story["text"])
    remaining = [TOKENIZER.encode(part["text"], add_special_tokens=False).ids for part in (look, story)]
    assert f"->{sum(map(len, remaining))}," in in_parts.headers["x-gateway-clipped"] + ","
    first = decisions(log)[0]
    sizes = [first[f"{side}put_{when}"] for side in ("in", "out") for when in ("before", "after")]
    assert sizes == [count, after, 100, 8]
    assert metrics[0] == 4
    assert metrics[1] > count - 50 + 92


# -- several engines


def say(name):
    return plain(json.dumps({"engine": name}).encode())


def spread(url, prompts):
    return [post(url, ASK | {"prompt": prompt}).json()["engine"] for prompt in prompts]


def test_round_robin_takes_turns():
    with engine(say("a")) as one, engine(say("b")) as two, gateway(one.url, two.url, routing="round_robin") as url:
        assert spread(url, ["x"] * 4) in (["a", "b"] * 2, ["b", "a"] * 2)


def test_the_least_busy_engine_gets_the_next():
    def slow(connection, request):
        time.sleep(0.5)
        say("slow")(connection, request)

    with engine(slow) as busy, engine(say("idle")) as idle, gateway(busy.url, idle.url) as url:

        async def both():
            async with httpx.AsyncClient() as client:
                first = asyncio.ensure_future(client.post(url + COMPLETIONS, json=ASK))
                while not busy.received:
                    await asyncio.sleep(0.01)
                    if first.done():  # the idle one had the first turn
                        first = asyncio.ensure_future(client.post(url + COMPLETIONS, json=ASK))
                more = [(await client.post(url + COMPLETIONS, json=ASK)).json()["engine"] for _ in range(4)]
                await first
                return more

        assert asyncio.run(both()) == ["idle"] * 4


def test_a_prefix_stays_with_the_engine_that_has_it():
    prefixes = ["first " * 40, "second " * 40, "third " * 40, "fourth " * 40]
    with engine(say("a")) as one, engine(say("b")) as two, gateway(one.url, two.url, routing="prefix") as url:
        homes = spread(url, prefixes)
        assert set(homes) == {"a", "b"}
        for ending in ("what?", "why?"):
            assert spread(url, [prefix + ending for prefix in prefixes]) == homes


def test_a_conversation_stays_with_its_engine():
    def turns(last):
        return [[{"role": "user", "content": f"{word} " * 40}, *last] for word in ("red", "blue", "green", "grey")]

    with engine(say("a")) as one, engine(say("b")) as two, gateway(one.url, two.url, routing="prefix") as url:
        homes = []
        for last in ([], [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "again"}]):
            path = url + "/v1/chat/completions"
            answers = [httpx.post(path, json={"model": "m", "messages": messages}) for messages in turns(last)]
            homes.append([answer.json()["engine"] for answer in answers])
        assert homes[0] == homes[1]
        assert set(homes[0]) == {"a", "b"}


def test_the_longest_prefix_decides_unless_its_engine_is_much_busier():
    one, two = EngineState("one"), EngineState("two")
    router = Router([one, two], "prefix")
    common, longer = "x" * 64, "x" * 64 + "y" * 64

    def choose(prompt, busy_one, busy_two):
        one.in_flight, two.in_flight = busy_one, busy_two
        return router.choose(prompt, set())

    assert choose(longer, 1, 0) is two
    assert choose(longer, 0, 4) is two
    assert choose(common, 0, 5) is one, "the other is too busy"
    assert [choose(longer + end, 0, 0) for end in "abc"] == [two] * 3, "though the other has its beginning"
    assert choose(longer, 0, 5) is one


def test_a_session_keeps_its_engine_though_another_got_its_system_prompt_later():
    """The questions are shorter than a block, so only whole messages tell the sessions apart."""
    one, two = EngineState("one"), EngineState("two")
    router = Router([one, two], "prefix")

    def choose(*said, busy=0):
        one.in_flight = busy
        messages = [{"role": "user", "content": word} for word in said]
        body = json.dumps({"messages": [{"role": "system", "content": "Be brief. " * 30}, *messages]}).encode()
        return router.choose(Call("/v1/chat/completions", [], body, json.loads(body)).opening, set())

    assert [choose("red"), choose("blue", busy=5)] == [one, two]
    assert [choose("red", "yes", "more"), choose("blue", "yes", "more")] == [one, two]


def test_a_dead_engine_gets_nothing_and_no_request_fails(tmp_path):
    with engine(say("b")) as two:
        with engine(say("a")) as one:
            dead = one.url
        with gateway(dead, two.url, routing="round_robin", health_interval=0.05) as url:
            assert spread(url, ["x"] * 6) == ["b"] * 6
            assert metric(url, "gateway_retries_total") <= 1, "after the first failure it is known"
            assert httpx.get(f"{url}/health").status_code == 200


def test_without_an_engine_the_status_says_so():
    with engine(say("a")) as one:
        dead = one.url
    with gateway(dead) as url:
        answer = post(url, ASK)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "no engine answered" in answer.json()["error"]["message"]
        assert httpx.get(f"{url}/health").status_code == 503


def test_a_busy_engine_is_passed_over_for_another():
    busy = plain(b"{}", b"503 Service Unavailable")
    with engine(busy) as one, engine(say("b")) as two, gateway(one.url, two.url, routing="round_robin") as url:
        assert spread(url, ["x"] * 4) == ["b"] * 4
    with engine(busy) as one, gateway(one.url) as url:
        assert post(url, ASK).status_code == 503


def test_nothing_is_tried_again_after_the_first_token():
    def dies(connection, request):
        event = EVENTS[2]
        connection.sendall(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(event), event))
        connection.shutdown(socket.SHUT_RDWR)

    with engine(dies) as one, engine(dies) as two, gateway(one.url, two.url) as url:
        body = read_to_the_end(url)
    assert len(one.received) + len(two.received) == 1
    assert EVENTS[2] in body


# -- trust


def read_to_the_end(url, content=ASK):
    """The raw bytes of an answer, also of one that breaks off."""
    with connection_to(url) as connection:
        connection.sendall(request_bytes(content))
        return read_answer(connection)


def request_bytes(content):
    body = json.dumps(content).encode()
    return f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def read_answer(connection):
    received = b""
    while not received.endswith(b"0\r\n\r\n") and (part := connection.recv(65536)):
        received += part
    return received


def connection_to(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"{}", "prompt: required"),
        (b'{"prompt": 5}', "prompt: expected"),
        (b'{"prompt": [5.5]}', "prompt: expected"),
        (b'{"prompt": ["a", 5]}', "prompt: expected"),
        (b'{"prompt": [null]}', "prompt: expected"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
    ],
)
def test_a_malformed_body_is_400(body, complaint):
    with engine(say("a")) as behind, gateway(behind.url) as url:
        answer = httpx.post(url + COMPLETIONS, content=body)
        assert answer.status_code == 400
        assert complaint in answer.json()["error"]["message"]
        assert httpx.post(url + CHAT, json={"messages": [{}, 1]}).status_code == 400
        assert not behind.received
        assert spread(url, ["x"]) == ["a"]


@pytest.mark.parametrize(
    "content",
    ["5", "{}", "[]", "[1]", "[[]]", '[{"text": 5}]', '[{"type": "text"}]', '[{"type": "text", "text": ""}, 3]'],
)
def test_odd_contents_are_the_engines_to_judge(content):
    body = b'{"temperature": 0, "messages": [{"role": "user", "content": %b}]}' % content.encode()
    clip = {"input_tokens": 2}
    with engine(say("a")) as behind, gateway(behind.url, cache={}, clip=clip, tokenizer=SHIPPED_TOKENIZER) as url:
        assert httpx.post(url + CHAT, content=body).json() == {"engine": "a"}
        assert behind.received[0].body == body


@pytest.mark.slow
def test_a_body_that_is_nested_too_deeply_is_400():
    statuses = set()
    with engine(say("a")) as behind, gateway(behind.url, cache={}) as url:
        for depth in range(970, 1000):  # what can be read at one depth cannot be written at another
            body = b'{"prompt": "x", "temperature": 0, "more": ' + b"[" * depth + b"]" * depth + b"}"
            statuses.add(httpx.post(url + COMPLETIONS, content=body).status_code)
    assert statuses == {200, 400}


def test_a_malformed_head_is_400():
    with gateway("http://127.0.0.1:9") as url, connection_to(url) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("pause", [0, 0.3], ids=["in one packet", "after the head"])
def test_a_trailer_is_no_header(pause):
    """Whatever a proxy in front checks or sets (authorization, X-Forwarded-User) cannot be added behind its back."""
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nX-First: 1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = chunked(json.dumps(ASK).encode()).removesuffix(b"\r\n")
    with engine(stream(b"data: [DONE]\n\n")) as behind, gateway(behind.url) as url, connection_to(url) as connection:
        for _ in range(2):  # the second on the same connection
            connection.sendall(head)
            time.sleep(pause)
            connection.sendall(body + b"Authorization: Bearer evil\r\nX-Forwarded-User: root\r\n\r\n")
            assert b" 200 OK" in read_answer(connection)
    for call in behind.received:
        assert call.content == ASK
        assert call.headers["x-first"] == "1"
        assert not {"authorization", "x-forwarded-user"} & set(call.headers)


def test_an_oversized_body_is_413():
    with engine(say("a")) as behind, gateway(behind.url, largest_body=10_000) as url:
        announced = post(url, ASK | {"prompt": "x" * 200_000})
        unannounced = httpx.post(url + COMPLETIONS, content=(b"x" * 5000 for _ in range(20)))
        assert [announced.status_code, unannounced.status_code] == [413, 413]
        assert "10000 bytes" in announced.json()["error"]["message"]
        assert not behind.received


def test_a_body_that_does_not_come_is_408():
    with gateway("http://127.0.0.1:9", request_timeout=0.2) as url, connection_to(url) as connection:
        connection.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_head_that_does_not_come_ends_the_connection(monkeypatch):
    monkeypatch.setattr("sweep.gateway.server.HEADER_TIMEOUT", 0.2)
    with gateway("http://127.0.0.1:9") as url, connection_to(url) as connection:
        connection.sendall(b"POST /v1/comp")
        assert connection.recv(1000) == b""
    with engine(stream(*EVENTS)) as behind, gateway(behind.url) as url, connection_to(url) as connection:
        connection.sendall(request_bytes(ASK))
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"POST /v1/comp")  # nor that of a later request
        assert connection.recv(1000) == b""
    with engine(stream(*EVENTS)) as behind, gateway(behind.url) as url, connection_to(url) as connection:
        connection.sendall(request_bytes(ASK))
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        begin = time.monotonic()
        with contextlib.suppress(ConnectionError):  # empty lines drip in, and are no head
            while time.monotonic() < begin + 5 and not select.select([connection], [], [], 0.05)[0]:
                connection.sendall(b"\r\n")
        assert 0.2 <= time.monotonic() - begin < 2


@pytest.mark.parametrize("ending", [b"", b"\r\n\r\n"])
def test_a_head_that_is_too_large_is_400(ending):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * LARGEST_HEAD + ending
    with gateway("http://127.0.0.1:9") as url, connection_to(url) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1000) == b""


def test_a_trailer_without_end_is_400():
    """The parser keeps it until its end: a hundred connections took gigabytes."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Long: "
    with gateway("http://127.0.0.1:9") as url, connection_to(url) as connection:
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"x" * 16384)
                if select.select([connection], [], [], 0.05)[0]:
                    break
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(("behind", "answered"), [(MOST_PIPELINED, MOST_PIPELINED + 1), (MOST_PIPELINED + 1, 0)])
def test_few_requests_wait_on_a_connection(behind, answered):
    """Ten thousand fit into one read, and took 40 MB for each connection."""

    def late(connection, received):
        time.sleep(0.3)
        say("a")(connection, received)

    with engine(late) as slow, gateway(slow.url) as url, connection_to(url) as connection:
        connection.sendall(request_bytes(ASK | {"stream": False}) + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * behind)
        received = b""
        with contextlib.suppress(ConnectionError):
            while received.count(b"HTTP/1.1 200 OK") < behind + 1 and (part := connection.recv(65536)):
                received += part
        assert received.count(b"HTTP/1.1 200 OK") == answered


def test_a_plain_answer_of_an_engine_without_end_is_502(monkeypatch):
    """Each health check took what an engine sent in five seconds."""
    monkeypatch.setattr("sweep.gateway.connection.LARGEST_PLAIN", 1 << 20)

    def endless(connection, received):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with engine(endless) as behind, gateway(behind.url) as url:
        assert httpx.get(f"{url}/v1/models", timeout=20).status_code == 502
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("part", [{"prompt": "x" * 15_000}, {"x": [[]] * 100}])  # 15,000 bytes, or 28,000 parsed
def test_requests_wait_for_the_memory_of_those_in_flight(part):
    def late(connection, received):
        time.sleep(0.8)
        say("a")(connection, received)

    with engine(late) as behind, gateway(behind.url, bodies=20_000, request_timeout=0.3) as url:
        with ThreadPoolExecutor() as pool:
            statuses = list(pool.map(lambda _: post(url, ASK | part).status_code, range(2)))
        assert sorted(statuses) == [200, 503]
        chunked = {"content": iter([json.dumps(ASK).encode()]), "headers": {"content-type": "application/json"}}
        assert httpx.post(url + COMPLETIONS, **chunked, timeout=20).status_code == 200, "without a length"
        assert post(url, ASK | part).status_code == 200


def test_a_client_that_does_not_read_loses_its_engine(monkeypatch, tmp_path):
    monkeypatch.setattr("sweep.gateway.app.STALL_CHECK", 0.05)
    closed = []

    def endless(connection, request):
        try:
            connection.sendall(STREAM_HEAD)
            while True:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        except OSError:
            closed.append(True)
            raise

    log = tmp_path / "log"
    with (
        engine(endless) as behind,
        gateway(behind.url, stall_timeout=0.3, log=log) as url,
        connection_to(url) as client,
    ):
        client.sendall(request_bytes(ASK))
        wait_until(lambda: closed)
    assert decisions(log)[0]["status"] == 499


def test_a_client_that_leaves_takes_its_request_with_it(tmp_path):
    gone = []

    def slow(connection, request):
        connection.settimeout(5)
        gone.append(connection.recv(1) == b"")

    log = tmp_path / "log"
    with engine(slow) as behind, gateway(behind.url, log=log) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + COMPLETIONS, json=ASK, timeout=0.3)
        wait_until(lambda: gone)
        assert gone == [True]
        wait_until(log.read_text)
        assert decisions(log)[0]["status"] == 499
    assert len(behind.received) == 1


def test_an_engine_that_dies_in_mid_stream_is_an_error_in_the_stream(tmp_path):
    def dies(connection, request):
        part = EVENTS[0]  # half an event
        connection.sendall(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(part), part))
        connection.shutdown(socket.SHUT_RDWR)

    log = tmp_path / "log"
    with engine(dies) as behind, gateway(behind.url, log=log) as url:
        received = read_to_the_end(url)
    assert received.startswith(b"HTTP/1.1 200")
    assert EVENTS[0] in received
    assert b'\n\ndata: {"error": {"message": "the engine failed before its answer was complete"' in received
    assert not received.endswith(b"0\r\n\r\n"), "the client sees that it is not complete"
    assert decisions(log)[0]["error"] == "EngineFailed"


def test_an_engine_that_dies_in_mid_answer_ends_the_connection():
    def dies(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        connection.shutdown(socket.SHUT_RDWR)

    with engine(dies) as behind, gateway(behind.url) as url, pytest.raises(httpx.RemoteProtocolError):
        post(url, ASK | {"stream": False})


@pytest.mark.parametrize(
    "garbage", [b"\x00\x01\x02 nonsense\r\n\r\n", b"HTTP/1.1 xyz\r\n\r\n", b"HTTP/1.1 200 OK\r\nA\r\n"]
)
def test_an_engine_that_answers_garbage_is_502(garbage):
    def script(connection, request):
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_RDWR)

    with engine(script) as behind, gateway(behind.url, health_interval=1000) as url:
        answer = post(url, ASK)
        assert answer.status_code in (502, 503)
        assert answer.json()["error"]["type"] == "gateway_error"


def test_a_full_disk_loses_the_log_and_no_request():
    with engine(say("a")) as behind, gateway(behind.url, log="/dev/full") as url:
        assert spread(url, ["x"] * 3) == ["a"] * 3
        assert metric(url, "gateway_failed_writes_total") == 3


@pytest.mark.slow
def test_ten_thousand_connections_at_once():
    """All stay open, and those that ask are answered."""
    raise_file_limit()
    with simulated() as (behind, _), contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "sweep", "gateway", "--to", behind, "--port", "0"]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        stack.callback(process.terminate)
        url = process.stdout.readline().split()[2].rstrip(",")
        connections = [stack.enter_context(connection_to(url)) for _ in range(10_000)]
        asking = connections[::50] + connections[-10:]
        for connection in asking:
            connection.sendall(request_bytes(ASK))
        answers = [read_answer(connection) for connection in asking]
        assert psutil.Process(process.pid).num_fds() > 10_000
    assert {(answer[:12], answer.count(b"data: ")) for answer in answers} == {(b"HTTP/1.1 200", 3)}


def test_only_those_with_the_key_may_reset():
    """The address says nothing: behind a proxy on this machine all clients have this machine's."""
    with gateway("http://127.0.0.1:9") as url:
        wait_until(
            lambda: metric(url, "gateway_loop_lag_seconds_count") > 25
        )  # looks at the loop, which a reset forgets
        for headers in ({}, {RESET_HEADER: ""}, {RESET_HEADER: "k"}, {"x-forwarded-for": "127.0.0.1"}):
            assert httpx.post(f"{url}/gateway/reset", headers=headers).status_code == 403
        assert httpx.post(f"{url}/gateway/reset", headers=RESET).status_code == 200
        assert httpx.get(f"{url}/gateway/state").json()["looks"] < 25, "those before are forgotten"
        assert httpx.get(f"{url}/gateway/reset").status_code == 404


def test_a_gateway_without_a_key_is_never_reset():
    command = [sys.executable, "-m", "sweep", "gateway", "--to", "http://127.0.0.1:9", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        url = process.stdout.readline().split()[2].rstrip(",")
        statuses = [httpx.post(f"{url}/gateway/reset", headers=each).status_code for each in ({}, {RESET_HEADER: ""})]
        process.terminate()
    assert statuses == [403, 403]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "127.0.0.1:8000"], "--to 127.0.0.1:8000: expected http(s)://host[:port]"),
        (["--to", "http://x", "gateway.clip.input_tokens=5"], "--tokenizer FOLDER"),
        (["--to", "http://x", "gateway.clip.keep=middle"], "gateway.clip.keep"),
        (["--to", "http://x", "gateway.clp=5"], "did you mean clip"),
        (["--to", "http://x", "gateway=cache", "gateway.cache.mode.x=5"], "gateway.cache.mode is a value and has no"),
        (["--to", "http://x", "gateway=none"], "starts no gateway"),
        (["--to", "http://x", "--host", "203.0.113.1"], "--host 203.0.113.1"),
        (["--to", "http://x", "--port", "0", "--log", "/dev/null/x"], "--log /dev/null/x: Not a directory"),
    ],
)
def test_bad_arguments_are_one_line(capsys, arguments, message):
    assert main(["gateway", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
