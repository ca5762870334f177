"""Answers on the wire: every dialect and every trouble, cut at every byte."""

import asyncio
import itertools
import json
import os
import re
import resource
import socket
import ssl
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sweep.base.clock import StampClock
from sweep.base.records import UNKNOWN, Api, Proxy, Request, Timeouts
from sweep.client import wire
from sweep.client.dialects.text import AnswerText
from sweep.client.job import ResultFiles
from sweep.client.modes import Dispatch
from sweep.client.poller import Poller
from sweep.client.stamped_connection import PATIENT_READ_SIZE, READ_SIZE, Counters, ServerAddress, StampedConnection
from sweep.client.wire import Answer, Target


def sse(*events: object, newline: bytes = b"\n") -> bytes:
    out = b""
    for event in events:
        text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
        out += b"data: " + text.encode() + newline * 2
    return out


def completion(text: str, index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
    ids = {key: more.pop(key) for key in ("token_ids",) if key in more}
    return {"id": "cmpl-1f", "object": "text_completion", "created": 7, "model": "m", "choices": [choice | ids]} | more


def chat(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"id": "c1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}


def usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": input_tokens, "total_tokens": 0, "completion_tokens": output_tokens}


def final(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {"id": "cmpl-1f", "choices": [], "usage": usage(input_tokens, output_tokens)}


def tgi(index: int, text: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
    token = {"id": 300 + index, "text": text, "logprob": -1.5 - index / 8, "special": False}
    return {"index": index, "token": token, "generated_text": "all" if details else None, "details": details}


def typed(*events: dict[str, Any]) -> bytes:
    """Events with their types beside the data."""
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def responses(delta: str, number: int, kind: str = "output_text") -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "item_id": "m1", "delta": delta, "sequence_number": number}


def responses_end(kind: str, **response: Any) -> bytes:
    return typed({"type": f"response.{kind}", "response": response})


def messages(key: str, text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": f"{key}_delta", key: text}}


RESPONSES_USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 4,
    "output_tokens_details": {"reasoning_tokens": 2},
}
MESSAGES_START = {"usage": {"input_tokens": 3, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 1}}
TGI_END = {"finish_reason": "length", "generated_tokens": 4, "seed": None, "input_length": 12}
TEXTS = [" the", " 12", ' say \\"hi\\"', "\n\n", " \\", " ü→", '"text":"', " end"]
STREAMS: dict[str, tuple[Api, int, bytes]] = {
    "completions": ("completions", 1, sse(*map(completion, TEXTS), completion("!", finish="length"), "[DONE]")),
    "final usage": ("completions", 1, sse(completion(" a"), completion(" b", finish="stop"), final(9, 3), "[DONE]")),
    "running usage": (
        "completions",
        1,
        sse(
            *(completion(f" t{n}", usage=usage(5, n)) for n in (1, 2, 3, 7, 8, 10, 11)),
            completion("", finish="stop", usage=usage(5, 12)),
            final(5, 12),
            "[DONE]",
        ),
    ),
    "usage beside the end": (
        "completions",
        1,
        sse(*(completion(f" t{n}") for n in range(4)), completion("", finish="stop", usage=usage(5, 4)), "[DONE]"),
    ),
    "all in one event": ("completions", 1, sse(completion(" all of it", finish="stop", usage=usage(5, 4)), "[DONE]")),
    "token ids": (
        "completions",
        1,
        sse(
            *(completion(" t", token_ids=list(range(n))) for n in (1, 1, 0, 3, 12)), completion("", 0, "stop"), "[DONE]"
        ),
    ),
    "list": (
        "completions",
        3,
        sse(
            *(completion(f" {n}", n % 3) for n in range(9)),
            *(completion(".", n, "length") for n in (2, 0, 1)),
            final(30, 12),
            "[DONE]",
        ),
    ),
    "list with usage": (
        "completions",
        2,
        sse(
            *(completion(" x", n % 2, usage=usage(5 + n % 2, 1 + n // 2)) for n in range(8)),
            completion("", 1, "length", usage=usage(6, 4)),
            completion("", 0, "length", usage=usage(5, 4)),
            final(11, 8),
            "[DONE]",
        ),
    ),
    "chat": (
        "chat",
        1,
        sse(
            chat({"role": "assistant", "content": ""}),
            chat({"reasoning_content": "hm"}),
            chat({"reasoning_content": " 1"}),
            chat({"content": "a"}),
            chat({"content": " b"}),
            chat({}, "stop"),
            final(3, 4),
            "[DONE]",
        ),
    ),
    "tgi": ("tgi", 1, sse(*(tgi(n, f" w{n}") for n in (1, 2, 3)), tgi(4, ".", TGI_END))),
    "responses": (
        "responses",
        1,
        typed({"type": "response.created", "response": {"status": "queued"}})
        + typed(*(responses(f" r{n}", n, "reasoning_text") for n in range(2)), responses("", 2))
        + typed(*(responses(text, 3 + n) for n, text in enumerate((" a", " b"))))
        + responses_end("incomplete", usage=RESPONSES_USAGE, incomplete_details={"reason": "max_output_tokens"}),
    ),
    "failed response": ("responses", 1, typed(responses(" a", 1)) + responses_end("failed", error={"message": "boom"})),
    "messages": (
        "messages",
        1,
        typed({"type": "message_start", "message": MESSAGES_START}, {"type": "ping"}, messages("thinking", "hm"))
        + typed(messages("signature", "ab"), *(messages("text", text) for text in TEXTS))
        + typed({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}})
        + typed({"type": "message_stop"}),
    ),
    "messages overloaded": (
        "messages",
        1,
        typed(
            messages("text", " a"), {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        ),
    ),
    "call without arguments": (
        "messages",
        1,
        typed({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "name": "now"}})
        + typed(messages("partial_json", ""))
        + typed({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}}),
    ),
    "function call": (
        "responses",
        1,
        typed({"type": "response.output_item.added", "item": {"type": "function_call", "name": "now"}})
        + typed(responses("{}", 1, "function_call_arguments"))
        + responses_end("completed", usage=RESPONSES_USAGE),
    ),
    "error without a name": (
        "responses",
        1,
        typed(responses(" a", 1)) + sse({"type": "error", "code": "server_error", "message": "boom"}),
    ),
    "comments": (
        "completions",
        1,
        b": ping\n\n" + sse(completion(" a")) + b":\n\nevent: x\nid: 3\n\n" + sse(completion(" b"), "[DONE]"),
    ),
    "crlf": ("completions", 1, b"\xef\xbb\xbf" + sse(*map(completion, TEXTS), "[DONE]", newline=b"\r\n")),  # and a BOM
    "two data lines": ("completions", 1, b'data: {"choices":[{"text":\ndata: "x"}]}\n\n' + sse("[DONE]")),
    "no last blank line": ("completions", 1, sse(completion(" a"), completion(" b", finish="stop"))[:-2]),
    "no blanks in JSON": ("completions", 1, sse(json.dumps(completion(" a")), json.dumps(completion(" b")), "[DONE]")),
    "error event": ("completions", 1, sse(completion(" a"), {"error": {"message": "boom", "code": 503}}, "[DONE]")),
    "broken JSON": ("completions", 1, sse(completion(" a"), '{"choices', completion(" b"), "[DONE]")),
    "strange shape": ("completions", 1, sse({"choices": [7]}, completion(" b"), "[DONE]")),
    "other index": ("completions", 2, sse(completion(" a", 1), completion(" a", 1), completion(" b", 5), "[DONE]")),
    "cut short": ("completions", 1, sse(completion(" a"), completion(" b"))),
    "nothing": ("completions", 1, sse("[DONE]")),
}


def read(api: Api, prompts: int, pieces: Sequence[bytes], status: int = 200, complete: bool = True) -> Answer:
    """An answer from the pieces of its body; piece i arrives (i + 1) ms after the send."""
    answer = Answer(api, prompts)
    answer.status, answer.sent = status, 1
    answer.header(b"Content-Type", b"text/event-stream; charset=utf-8")
    for number, piece in enumerate(pieces, 1):
        answer.body(piece, 1 + number * 1_000_000)
    if complete:
        answer.complete(1 + len(pieces) * 1_000_000)
    return answer


def outcome(answer: Answer) -> list[tuple[Any, ...]]:
    return [
        (list(s.chunk_tokens), len(s.chunk_us), s.input_tokens, s.total, s.source, s.finish_reason, answer.error_of(s))
        for s in answer.streams
    ]


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


EXPECTED: dict[str, list[tuple[Any, ...]]] = {
    "completions": [([1] * 9, 9, UNKNOWN, UNKNOWN, "events", "length", None)],
    "final usage": [([1, 1], 2, 9, 3, "final usage", "stop", None)],
    "running usage": [([1, 1, 1, 4, 1, 2, 1, 1], 8, 5, 12, "running usage", "stop", None)],
    "usage beside the end": [([1] * 4, 4, 5, 4, "final usage", "stop", None)],
    "all in one event": [([4], 1, 5, 4, "running usage", "stop", None)],
    "token ids": [([1, 1, 3, 12], 4, UNKNOWN, 17, "ids", "stop", None)],
    "list": [([1] * 4, 4, UNKNOWN, 4, "final usage", "length", None)] * 3,
    "list with usage": [
        ([1] * 4, 4, 5, 4, "running usage", "length", None),
        ([1] * 4, 4, 6, 4, "running usage", "length", None),
    ],
    "chat": [([1] * 4, 4, 3, 4, "final usage", "stop", None)],
    "tgi": [([1] * 4, 4, 12, 4, "ids", "length", None)],
    "responses": [([1] * 4, 4, 9, 4, "final usage", "length", None)],
    "failed response": [([1], 1, UNKNOWN, UNKNOWN, "events", None, "engine: boom")],
    "messages": [([1] * 9, 9, 12, 9, "final usage", "stop", None)],
    "call without arguments": [([1], 1, UNKNOWN, 5, "final usage", "tool_use", None)],
    "function call": [([1, 1], 2, 9, 4, "final usage", "stop", None)],
    "error without a name": [([1], 1, UNKNOWN, UNKNOWN, "events", None, "engine: server_error boom")],
    "messages overloaded": [([1], 1, UNKNOWN, UNKNOWN, "events", None, "engine: overloaded_error Overloaded")],
    "comments": [([1, 1], 2, UNKNOWN, UNKNOWN, "events", None, None)],
    "crlf": [([1] * 8, 8, UNKNOWN, UNKNOWN, "events", None, None)],
    "two data lines": [([1], 1, UNKNOWN, UNKNOWN, "events", None, None)],
    "no last blank line": [([1, 1], 2, UNKNOWN, UNKNOWN, "events", "stop", None)],
    "no blanks in JSON": [([1, 1], 2, UNKNOWN, UNKNOWN, "events", None, None)],
    "error event": [([1], 1, UNKNOWN, UNKNOWN, "events", None, "engine: 503 boom")],
    "broken JSON": [([1, 1], 2, UNKNOWN, UNKNOWN, "events", None, 'protocol: an event is not JSON: {"choices')],
    "cut short": [([1, 1], 2, UNKNOWN, UNKNOWN, "events", None, "closed: the stream ended without its end mark")],
    "nothing": [([], 0, UNKNOWN, UNKNOWN, "events", None, "empty: the stream ended without a token")],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_stream_means_what_it_says(name: str) -> None:
    api, prompts, data = STREAMS[name]
    assert outcome(read(api, prompts, [data])) == EXPECTED[name]


def test_an_answer_that_begins_with_white_space_after_reasoning_has_a_first_token() -> None:
    events = [chat({"reasoning_content": "hm"}), *(chat({"content": text}) for text in ("\n\n", "Hello", " b"))]
    (stream,) = read("chat", 1, [sse(*events, chat({}, "stop"), "[DONE]")]).streams
    assert stream.answer_us not in (None, UNKNOWN)


@pytest.mark.parametrize("name", STREAMS)
def test_one_cut_anywhere_changes_nothing(name: str) -> None:
    api, prompts, data = STREAMS[name]
    whole = outcome(read(api, prompts, [data]))
    for place in range(1, len(data)):
        assert outcome(read(api, prompts, cut(data, [place]))) == whole, place
    assert outcome(read(api, prompts, [data[i : i + 1] for i in range(len(data))])) == whole


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_cuts_anywhere_change_nothing(name: str, data: st.DataObject) -> None:
    api, prompts, stream = STREAMS[name]
    places = data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=30))
    assert outcome(read(api, prompts, cut(stream, places))) == outcome(read(api, prompts, [stream]))


def visible(character: str) -> bool:
    blank = unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp")
    return not blank and character not in "\u115f\u1160\u2800\u3164\uffa0"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(texts, st.integers(0, 40)), min_size=1, max_size=12), st.booleans(), st.booleans(), st.data())
def test_the_short_cut_agrees_with_json(
    tokens: list[tuple[str, int]], ascii_only: bool, counted: bool, data: st.DataObject
) -> None:
    """Whatever the texts hold, the counts are those that parsing every event gives."""
    seen, ahead, events, expected = 0, 0, [], []
    for text, count in tokens:
        seen += count
        event = completion(text, usage=usage(3, seen)) if counted else completion(text)
        events.append(json.dumps(event, separators=(",", ":"), ensure_ascii=ascii_only))
        if counted:  # text that comes before its count is a token, which the count includes later
            owed = min(ahead, count)
            carried = sum(expected) and not any(visible(each) for text, _ in tokens[: len(expected)] for each in text)
            early = int(count == owed and bool(text) and not carried)
            ahead += early - owed
            expected.append(max(count - owed, early))
        else:
            expected.append(int(bool(text)))
    seen_text = [count for count in range(len(tokens)) if any(map(visible, tokens[count][0]))]
    first = min(seen_text, default=len(tokens) - 1)  # what comes before any visible text belongs to the first chunk
    expected[: first + 1] = [sum(expected[: first + 1])]
    stream = sse(*events, "[DONE]")
    places = data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=10))
    answer = read("completions", 1, cut(stream, places))
    assert list(answer.streams[0].chunk_tokens) == [count for count in expected if count]
    assert answer.error is None


def test_the_short_cut_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    loads = json.loads

    def counted(data: bytes) -> Any:
        parsed.append(data)
        return loads(data)

    monkeypatch.setattr(json, "loads", counted)
    read("completions", 1, [sse(*(completion(f" {n}", usage=usage(5, n)) for n in range(1, 200)), "[DONE]")])
    assert len(parsed) == 1


def test_an_event_has_the_stamp_of_its_last_byte() -> None:
    first, second = sse(completion(" a")), sse(completion(" b"))
    data = first + second
    for place in range(1, len(data)):
        answer = read("completions", 1, cut(data, [place]), complete=False)
        arrivals = [us // 1000 for us in answer.streams[0].chunk_us]
        assert arrivals == [1 if place >= len(first) else 2, 2], place


def test_events_of_one_read_share_their_stamp() -> None:
    """Those of one stream: a step of a list of prompts comes in one read, two steps should not."""
    step = [sse(*(completion(" a", n) for n in prompts)) for prompts in ((0, 1, 2), (0, 1, 2), (1,), (1, 2))]
    assert read("completions", 3, step, complete=False).shared == 0
    assert read("completions", 3, [step[0], step[1] + step[2], step[3]], complete=False).shared == 1


def test_an_answer_of_several_tokens_an_event_is_urgent_in_time() -> None:
    answer = Answer("completions", 1, patient_until=127)
    answer.status, answer.sent = 200, 1
    answer.header(b"Content-Type", b"text/event-stream")
    for seen in range(4, 128, 4):
        assert answer.tokens < answer.patient_until
        answer.body(sse(completion(" x", usage=usage(5, seen))), 1 + seen)
    assert answer.tokens >= answer.patient_until, "the next event is the last"


@pytest.mark.parametrize(("total", "shares"), [(12, [4, 4, 4]), (37, [12, 12, 13])])
def test_usage_of_a_list_is_shared_out_by_its_events(total: int, shares: list[int]) -> None:
    events = [completion(f" {n}", n % 3) for n in range(12)]
    answer = read("completions", 3, [sse(*events, final(30, total), "[DONE]")])
    assert [(stream.source, stream.total) for stream in answer.streams] == [("final usage", n) for n in shares]


def test_a_failed_call_leaves_finished_streams_alone() -> None:
    data = sse(completion(" a", 0), completion(" b", 1, "stop"), {"error": "late"})
    answer = read("completions", 2, [data])
    assert [answer.error_of(stream) for stream in answer.streams] == ["engine: late", None]


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_engine_gave_up_is_an_error(reason: str) -> None:
    answer = read("completions", 2, [sse(completion(" a", 0, "stop"), completion(" b", 1, reason), "[DONE]")])
    assert answer.error is None
    assert [answer.error_of(stream) for stream in answer.streams] == [None, f"engine: finish_reason {reason}"]


def test_a_running_count_is_not_taken_for_the_final_one() -> None:
    data = sse(completion(" a", usage=usage(5, 1)), completion(" b", usage=usage(5, 2)))
    assert read("completions", 1, [data]).streams[0].total == 2


@pytest.mark.parametrize(("status", "data"), [(500, b"[" * 60_000), (200, b"data: " + b"[" * 60_000)])
def test_an_answer_nested_too_deep_fails_alone(status: int, data: bytes) -> None:
    assert str(read("completions", 1, [data], status).error).startswith("protocol: RecursionError")


def test_tgi_error_in_a_200() -> None:
    data = sse({"error": "Model is overloaded", "error_type": "overloaded"})
    assert read("tgi", 1, [data]).error == "engine: overloaded Model is overloaded"


@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        (
            503,
            [(b"Retry-After", b"7")],
            b'{"error":{"message":"busy","code":503}}',
            "status: 503 retry_after=7 503 busy",
        ),
        (429, [(b"retry-after", b"0.5")], b"slow down", "status: 429 retry_after=0.5 slow down"),
        (500, [], b"", "status: 500"),
        (200, [(b"content-type", b"application/json")], b'{"a": 1}', 'protocol: not an event stream: {"a": 1}'),
        (
            200,
            [],
            b'{"error": null, "output": []}',
            'protocol: not an event stream; the server ignored stream=true: {"error": null, "output": []}',
        ),
    ],
)
def test_answers_that_are_no_streams(status: int, headers: list[tuple[bytes, bytes]], body: bytes, error: str) -> None:
    answer = Answer("completions")
    answer.status = status
    for name, value in headers:
        answer.header(name, value)
    for piece in cut(body, range(1, len(body))):
        answer.body(piece, 5)
    answer.complete(6)
    assert answer.error == error


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_model_without_a_chat_template_is_named_with_the_remedy(api: Api) -> None:
    """vLLM's words (vllm#18140)."""
    answer = Answer(api)
    answer.status = 400
    answer.body(b'{"error": {"message": "you must provide a chat template if the tokenizer does not define one."}}', 1)
    answer.complete(2)
    assert answer.error is not None
    assert ("set backend.api=completions" in answer.error) == (api == "chat")
    assert "tokenizer does not define one" in answer.error


COUNTS = [-5, -1, 10**9, 10**300, float("nan"), "7", [1], True]


@pytest.mark.parametrize("count", COUNTS, ids=str)
@pytest.mark.parametrize("key", ["completion_tokens", "prompt_tokens", "cached", "reasoning", "tgi"])
def test_a_malformed_count_fails_its_request_and_never_the_measuring_process(
    tmp_path: Path, key: str, count: Any
) -> None:
    """-5 in a running usage ended the process, and with it the timings of all other requests."""
    usage: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 2}
    details = {"cached": "prompt_tokens_details", "reasoning": "completion_tokens_details"}.get(key, key)
    usage[details] = {f"{key}_tokens": count} if details != key else count
    last = {"token": {"text": " b"}, "details": TGI_END | {"generated_tokens": count}}
    content = last if key == "tgi" else completion(" b") | {"usage": usage}
    events = [completion(" a") | {"usage": {"completion_tokens": 1}}, content, completion("", finish="stop")]
    pieces = [sse(event) for event in (events[1:2] if key == "tgi" else events)]
    answer = read("tgi" if key == "tgi" else "completions", 1, [*pieces, sse("[DONE]")])
    ResultFiles(tmp_path, 0).add(Dispatch(0, 0, 0, 0), answer, 0)
    assert answer.error is None or answer.error.startswith("protocol: ")
    if isinstance(count, int) and count < 0:
        assert answer.error is not None


@pytest.mark.parametrize(
    ("status", "most", "error"),
    [
        ("200 OK", wire.LARGEST_EVENT, "bytes without the end of an event"),
        ("500 Oops", wire.LARGEST_REFUSAL, "status: 500 data: xx"),
        ("200 OK\r\ncontent-encoding: br", 1, "content-encoding br"),
    ],
)
def test_an_event_or_an_error_without_end_ends_its_request(status: str, most: int, error: str) -> None:
    """Its connection was read on until a time-out: two minutes, or ten without a token."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: text/event-stream\r\ncontent-length: 9999999999\r\n\r\n".encode()
    answer, _ = receive([head + b"data: ", *[b"x" * READ_SIZE] * (most // READ_SIZE)], "completions", 1)
    assert error in (answer.error or "")


def test_headers_and_trailers_without_end_fail_their_request() -> None:
    """The parser keeps a header until its end, and no token shows that the engine stalls."""
    whole, long = http(sse(completion(" a")), 40), b"x" * READ_SIZE
    for begun in (b"HTTP/1.1 200 OK\r\nX-Long: ", whole.removesuffix(b"\r\n") + b"X-Long: "):
        answer, _ = receive([begun, b"x", long], "completions", 1)
        assert (answer.error or "").endswith("bytes of headers without an end")


# -- through HTTP's framing, on a socket


def http(body: bytes, chunk: int | None) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    if chunk is None:
        return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head + b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def http_by_event(body: bytes) -> list[bytes]:
    events = [event + b"\n\n" for event in body.replace(b"\r\n", b"\n").split(b"\n\n") if event]
    framed = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    return [http(b"", 1)[: -len(b"0\r\n\r\n")] + framed[0], *framed[1:], b"0\r\n\r\n"]


class NoLoop:
    """A loop that is told things and does nothing: the test itself calls the reader."""

    def remove_writer(self, *arguments: object) -> None: ...
    def create_task(self, coroutine: Any) -> "asyncio.Future[None]":
        coroutine.close()
        return asyncio.Future(loop=asyncio.new_event_loop())


class NoPoller:
    """The same, in the place of what watches the sockets: it notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def remove(self, fd: int, patient: bool) -> None:
        self.told.append("remove patient" if patient else "remove urgent")

    def set_patient(self, fd: int, patient: bool) -> None:
        self.told.append("patient" if patient else "urgent")

    def alert(self, now: float) -> None:
        self.told.append("alert")


class Parser:
    """The parser, which notes what it is given."""

    def __init__(self, connection: StampedConnection, parsed: list[bytes]) -> None:
        self._parser, self._parsed = httptools.HttpResponseParser(connection), parsed

    def feed_data(self, data: bytes) -> None:
        self._parsed.append(data)
        self._parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


def receive(
    pieces: Sequence[bytes],
    api: Api,
    prompts: int,
    patient_until: int = 0,
    poller: NoPoller | None = None,
    parsed: list[bytes] | None = None,
) -> tuple[Answer, Counters]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ended: list[Answer] = []
    counters = Counters()
    address = ServerAddress(socket.AF_UNIX, (), "", None, 1.0)
    loop: Any = NoLoop()
    watched_by: Any = poller or NoPoller()
    connection = StampedConnection(
        loop, watched_by, address, StampClock(), counters, lambda _, answer: ended.append(answer)
    )
    parser: Any = Parser(connection, [] if parsed is None else parsed)
    connection._sock, connection._parser = ours, parser
    with ours, theirs:
        connection.begin(b"request", Answer(api, prompts, patient_until))
        for piece in pieces:
            theirs.sendall(piece)
            connection._readable()
            if poller:
                poller.told.append("read")
    assert len(ended) == 1
    return ended[0], counters


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(STREAMS)), st.sampled_from([None, 1, 7, 64, 1000]), st.data())
def test_http_cut_anywhere_gives_the_same_records(name: str, chunk: int | None, data: st.DataObject) -> None:
    api, prompts, body = STREAMS[name]
    wired = http(body, chunk)
    places = data.draw(st.lists(st.integers(1, len(wired) - 1), max_size=20))
    answer, _ = receive(cut(wired, places), api, prompts)
    assert outcome(answer) == outcome(read(api, prompts, [body]))


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_read_of_one_chunk_is_what_the_parser_would_make_of_it(name: str) -> None:
    api, prompts, body = STREAMS[name]
    lower = http_by_event(body)
    upper = [re.sub(rb"^[0-9a-f]+", lambda size: size[0].upper(), piece) for piece in lower]
    padded = [re.sub(rb"^([0-9a-f]+)\r", rb"0\1;some=extension\r", piece) for piece in lower]
    parsed: dict[str, list[bytes]] = {"lower": [], "upper": [], "padded": []}
    for pieces, seen in zip((lower, upper, padded), parsed.values(), strict=True):
        answer, _ = receive(pieces, api, prompts, parsed=seen)
        assert outcome(answer) == outcome(read(api, prompts, [body]))
    # Of the usual form: the head, one chunk to know where the parser stands, and the end.
    assert parsed["lower"] == (lower if len(lower) < 3 else [*lower[:2], lower[-1]])
    assert parsed["padded"] == padded


def test_what_looks_like_a_chunk_inside_one_is_left_to_the_parser() -> None:
    event, last = sse(completion(" a")), sse(completion(" b", finish="stop"), "[DONE]")
    looks, whole = b"5\r\nhello\r\n", b"%x\r\n%b\r\n"
    comment = b":" + looks + looks + b"\n"
    head = http(b"", 1)[: -len(b"0\r\n\r\n")]
    pieces = [head, *[whole % (len(event), event)] * 2, b"%x\r\n:" % len(comment), looks, looks, b"\n\r\n"]
    pieces += [whole % (len(last), last), b"0\r\n\r\n"]
    answer, _ = receive(pieces, "completions", 1)
    assert outcome(answer) == outcome(read("completions", 1, [event + event + comment + last]))
    assert answer.error is None


def test_a_chunk_without_its_end_is_no_chunk() -> None:
    event = sse(completion(" a"))
    good = b"%x\r\n%b\r\n" % (len(event), event)
    answer, _ = receive([http(b"", 1)[: -len(b"0\r\n\r\n")], good, good, good[:-2] + b"xy"], "completions", 1)
    assert (answer.error or "").startswith("protocol")


def test_a_new_connection_begins_with_a_head_wherever_the_last_one_was_left() -> None:
    head, event = http(b"", 1)[: -len(b"0\r\n\r\n")], sse(completion(" a"))
    chunk = b"%x\r\n%b\r\n" % (len(event), event)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        served.append(True)
        for piece in (head, chunk, chunk) if len(served) == 1 else (b"5\r\nhello\r\n", head, chunk):
            writer.write(piece)
            await asyncio.sleep(0.02)
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        address = ServerAddress(socket.AF_INET, server.sockets[0].getsockname(), "", None, 5.0)
        ended = asyncio.Event()
        connection = StampedConnection(loop, Poller(loop), address, StampClock(), Counters(), lambda *_: ended.set())
        await connection.open()
        first, second = Answer("completions"), Answer("completions")
        connection.begin(b"request", first)
        while first.chunks < 2:
            await asyncio.sleep(0.01)
        connection.abandon("timeout_between: in the middle of an answer")
        ended.clear()
        connection.begin(b"request", second)
        await asyncio.wait_for(ended.wait(), 10)
        assert (second.error or "").startswith("protocol")
        connection.close()
        server.close()

    served: list[bool] = []
    asyncio.run(story())


def test_a_patient_read_that_left_something_behind_makes_the_socket_urgent() -> None:
    events = [completion(" a")] * 100
    body = sse(*events, "[DONE]")
    wired = http(body, None)
    poller = NoPoller()
    reads = 1 + (len(wired) - PATIENT_READ_SIZE) // READ_SIZE + 1
    answer, _ = receive([wired, *[b""] * (reads - 1)], "completions", 1, patient_until=1000, poller=poller)
    assert poller.told[:2] == ["patient", "urgent"]
    assert answer.chunks == 100


def test_reads_may_wait_until_the_last_token_may_come() -> None:
    events = [completion(text) for text in (" a", " b", " c")]
    pieces = [http(sse(*events, "[DONE]"), None)]
    edges = [len(pieces[0]) - len(sse(*events, "[DONE]")) + len(sse(*events[:number])) for number in (1, 2, 3)]
    poller = NoPoller()
    receive(cut(pieces[0], edges), "completions", 1, patient_until=2, poller=poller)
    assert poller.told == ["patient", "read", "urgent", "read", "read", "read"]
    poller = NoPoller()
    receive(cut(pieces[0], edges), "completions", 1, poller=poller)  # of unknown length
    assert poller.told == ["read"] * 4
    poller = NoPoller()
    receive(pieces, "completions", 1, patient_until=2, poller=poller)
    assert poller.told == ["patient", "alert", "urgent", "read"]


def test_reads_with_several_events_are_counted() -> None:
    body = sse(completion(" a"), completion(" b"), completion(" c"), "[DONE]")
    assert receive([http(body, None)], "completions", 1)[1].multi_event_reads == 1
    edge = len(http(body, None)) - len(body) + len(sse(completion(" a")))
    each = [edge, edge + len(sse(completion(" b")))]
    assert receive(cut(http(body, None), each), "completions", 1)[1].multi_event_reads == 0
    assert receive([http(sse(completion(" a"), "[DONE]"), None)], "completions", 1)[1].multi_event_reads == 0


# -- requests


def body_of(data: bytes) -> dict[str, Any]:
    head, _, body = data.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    content: dict[str, Any] = json.loads(body)
    return content


def test_bodies_of_each_api() -> None:
    request = Request("r-1", (1, 2, 3), 8)
    body = body_of(wire.call(Target("http://h:1", "m", continuous_usage=True, ignore_eos=True), [request]))
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert body == {
        "model": "m",
        "prompt": [1, 2, 3],
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": options,
        "ignore_eos": True,
    }
    text = Request("r-2", "hällo", 8)
    body = body_of(
        wire.call(Target("http://h", "m", api="chat", extra_body={"stream_options": None, "top_k": 1}), [text])
    )
    assert body["messages"] == [{"role": "user", "content": "hällo"}]
    assert "stream_options" not in body
    assert body["top_k"] == 1
    body = body_of(wire.call(Target("http://h", "m", api="tgi"), [text]))
    assert body == {"inputs": "hällo", "parameters": {"max_new_tokens": 8, "do_sample": False, "details": True}}
    warm = [
        body_of(wire.call(Target("http://h", "m", api=api, temperature=0.8), [text]))
        for api in ("tgi", "chat", "messages")
    ]
    assert (warm[0]["parameters"]["do_sample"], warm[0]["parameters"]["temperature"]) == (True, 0.8)
    assert (warm[1]["temperature"], warm[2]["temperature"]) == (0.8, 0.8)
    body = body_of(wire.call(Target("http://h", "m", api="responses"), [text]))
    assert (body["input"], body["max_output_tokens"], body["store"]) == ("hällo", 8, False)
    body = body_of(wire.call(Target("http://h", "m", api="messages"), [text]))
    assert (body["messages"], body["max_tokens"]) == ([{"role": "user", "content": "hällo"}], 8)
    head = wire.head(Target("http://h", "m", api="messages", headers={"anthropic-beta": "x"}), "k1")
    assert {b"POST /v1/messages HTTP/1.1", b"x-api-key: k1", b"anthropic-version: 2023-06-01"} <= {*head.splitlines()}
    body = body_of(wire.call(Target("http://h", "m", batch_form="list"), [text, text]))
    assert body["prompt"] == ["hällo", "hällo"]


@pytest.mark.parametrize(
    ("url", "path", "address"),
    [
        ("http://h:1", "/v1/completions", ("h", 1)),
        ("https://h/v1", "/v1/completions", ("h", 443)),
        ("http://[::1]:80/base/", "/base/v1/completions", ("::1", 80)),
        ("http://h/base/v1/", "/base/v1/completions", ("h", 80)),
    ],
)
def test_urls(url: str, path: str, address: tuple[str, int]) -> None:
    target = Target(url, "m")
    assert (target.request_path, target.address) == (path, address)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Target("ftp://h", "m"), "url='ftp://h'"),
        (lambda: Target("http://me:secret@h", "m"), "api_key_env"),
        (lambda: Target("http://h", "m", api="grpc"), "api='grpc'"),
        (lambda: Target("http://h", "m", api="chat", batch_form="list"), "batch_form='list'"),
        (lambda: Target("http://h", "m", headers={"a": "b\r\nc"}), "headers"),
        (lambda: wire.call(Target("http://h", "m"), [Request("a\r\nb", "x", 1)]), "request_id"),
        (lambda: wire.call(Target("http://h", "m", token_ids=False), [Request("a", (1,), 1)]), "token ids"),
        (lambda: wire.call(Target("http://h", "m", api="chat"), [Request("a", (1,), 1)]), "chat accepts text"),
        (lambda: wire.call(Target("http://h", "m", api="tgi"), [Request("a", (1,), 1)]), "api=tgi accepts text"),
        (lambda: Timeouts(total=5000), "total=5000"),
        (lambda: Timeouts(connect=0), "connect=0"),
    ],
)
def test_mistakes_are_refused_at_the_door(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert "secret" not in str(caught.value)


def test_the_key_is_in_the_head_only() -> None:
    assert b"Authorization: Bearer sk-1\r\n" in wire.head(Target("http://h", "m", api_key_env="K"), "sk-1")
    assert b"Authorization" not in wire.head(Target("http://h", "m"), None)
    with pytest.raises(ValueError, match="key cannot be sent in a header"):
        wire.head(Target("http://h", "m", api_key_env="K"), "a\r\nb: c")


@given(st.text(), st.booleans())
@example("\x7f", False)
def test_text_counts_the_same_written_as_it_is_or_escaped(text: str, letters: bool) -> None:
    """Engines write either form, and the first one is not parsed as JSON."""
    forms = [json.dumps(text, ensure_ascii=escaped)[1:-1].encode() for escaped in (False, True)]
    plain, escaped = AnswerText(), AnswerText()
    assert plain.take(forms[0], letters) == escaped.take(forms[1], letters)
    assert plain.characters == escaped.characters == len(text)


@pytest.mark.parametrize("reason", ["too many files", "no TLS"])
def test_a_connection_that_cannot_be_made_leaves_no_half_open_state(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Its request fails with the reason; once the cause is gone, the same connection opens and answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(http(sse(completion(" a"), completion(" b", finish="stop"), "[DONE]"), None))

    async def story() -> None:
        server, ended = await asyncio.start_server(serve, "127.0.0.1", 0), asyncio.Event()
        loop = asyncio.get_running_loop()
        address = ServerAddress(socket.AF_INET, server.sockets[0].getsockname(), "", None, 5.0)
        connection = StampedConnection(loop, Poller(loop), address, StampClock(), Counters(), lambda *_: ended.set())
        if reason == "no TLS":
            connection._address = replace(address, hostname="localhost", tls=ssl.create_default_context())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        failed, answered = Answer("completions"), Answer("completions")
        try:
            if reason == "too many files":
                os.close(lowest_free := os.dup(0))
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            connection.begin(b"request", failed)
            await asyncio.wait_for(ended.wait(), 10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert re.match(r"connect: .*(Too many open files|SSL)", failed.error or ""), failed.error
        assert (connection.is_open, connection._opening, connection.answer) == (False, None, None)
        ended.clear()
        connection._address = address
        connection.begin(b"request", answered)
        await asyncio.wait_for(ended.wait(), 10)
        assert (answered.error, answered.chunks) == (None, 2)
        connection.close()
        server.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "status: 407 from the proxy"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "connect: the proxy opened no tunnel: 'HTTP/1.1 502"),
        (b"", "connect: the proxy opened no tunnel"),
        (b"x" * (64 << 10), "connect: the proxy opened no tunnel"),
        (b"HTTP/1.1 201 Created\r\n\r\n", None),
    ],
)
def test_a_proxys_answer_opens_a_tunnel_or_fails_the_request(answer: bytes, error: str | None) -> None:
    """A refusal is the endpoint's status, not an outage."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if answer and await reader.read(100):
            writer.write(http(sse(completion(" a", finish="stop"), "[DONE]"), None))
        writer.close()

    async def story() -> None:
        server, ended = await asyncio.start_server(serve, "127.0.0.1", 0), asyncio.Event()
        loop, request = asyncio.get_running_loop(), Answer("completions")
        tunnel = Proxy("", ("", 0), "").connect_request("engine.test", 443)
        address = ServerAddress(socket.AF_INET, server.sockets[0].getsockname(), "", None, 5.0, tunnel=tunnel)
        connection = StampedConnection(loop, Poller(loop), address, StampClock(), Counters(), lambda *_: ended.set())
        connection.begin(b"request", request)
        await asyncio.wait_for(ended.wait(), 10)
        assert (request.error or "").startswith(error or ""), request.error
        assert (request.error is None) == (error is None)
        connection.close()
        server.close()

    asyncio.run(story())
