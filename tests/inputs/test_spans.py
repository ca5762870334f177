"""OpenTelemetry's spans, through the whole command: their calls are sent as turns, with their gaps and sub-agents."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import analysis
from benchmarks.replay import alarms, changed_requests
from sweep.__main__ import main
from sweep.base.records import Message, Request
from sweep.client import wire
from sweep.inputs.sessions.recorded import Recorded
from sweep.inputs.sessions.spans import DEEPEST
from tests.inputs.test_prompts import QUICK, measure, write
from tests.inputs.test_sessions import check_plan

BEGIN = 1_790_000_000_000_000_000  # ns
SYSTEM = {"gen_ai.system_instructions": [{"type": "text", "content": "You may use tools. " * 12}]}
Attributes = dict[str, Any]


def value(content: Any) -> dict[str, Any]:
    """Encode an attribute as OTLP does; lists as JSON text, as most instrumentations do."""
    if isinstance(content, int):
        return {"intValue": str(content)}
    return {"stringValue": content if isinstance(content, str) else json.dumps(content)}


def span(name: str, parent: str, begin: float, end: float, trace: str = "t", **attributes: Any) -> dict[str, Any]:
    """Return a span with times in s since BEGIN."""
    times = {f"{key}TimeUnixNano": str(BEGIN + round(s * 1e9)) for key, s in (("start", begin), ("end", end))}
    keys = [{"key": key, "value": value(content)} for key, content in attributes.items()]
    return {"traceId": trace, "spanId": name, "parentSpanId": parent, "name": name, **times, "attributes": keys}


def said(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "parts": [{"type": "text", "content": text}]} for n, text in enumerate(texts)]


def call(
    name: str, parent: str, begin: float, end: float, *texts: str, trace: str = "t", **more: Any
) -> dict[str, Any]:
    counts = {"gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 4}
    prompt = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": said(*(texts or (name,)))}
    return span(name, parent, begin, end, trace, **(SYSTEM | counts | prompt | more))


def export(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "x"}, "spans": list(spans)}]}]}


CALLED = {"type": "tool_call", "id": "c1", "name": "find", "arguments": {"what": "a"}}
RESULT = {"type": "tool_call_response", "id": "c1", "response": {"found": 3}}
WITH_TOOLS = {
    "gen_ai.input.messages": [
        *said("Go."),
        {"role": "assistant", "parts": [{"type": "text", "content": "Wait."}, CALLED]},
        {"role": "tool", "parts": [RESULT]},
    ],
    "gen_ai.tool.definitions": [{"type": "function", "name": "find", "parameters": {"type": "object"}}],
}
AGENT = {"gen_ai.operation.name": "invoke_agent"}
JOB = [  # exported as spans end: a main agent, which starts two sub-agents at once and continues after the longer one
    call("plan", "main", 0.0, 0.1, "Go."),
    call("a1", "a", 0.2, 0.3, "Find a."),
    call("b1", "b", 0.2, 0.4, "Find b."),
    call("a2", "a", 0.35, 0.5, "Find a.", "Where?", "Here."),
    span("a", "main", 0.15, 0.6, **AGENT),
    span("b", "main", 0.15, 0.45, **AGENT),
    call("sum", "main", 0.7, 0.8, **WITH_TOOLS),
    span("main", "", 0.0, 0.9, **AGENT),
]
FOLLOWS = {"plan": None, "a1": "plan", "b1": "plan", "a2": "a1", "sum": "a2", "next": "sum", "other": None}
GAPS = {"plan": 0, "a1": 0.1, "b1": 0.1, "a2": 0.05, "sum": 0.2, "next": 0.2, "other": 0}
NEXT = [call("next", "", 1.0, 1.1, "And c?", trace="u", **{"gen_ai.conversation.id": "c"})]
NAMED = [*JOB[:-1], span("main", "", 0.0, 0.9, **AGENT, **{"gen_ai.conversation.id": "c"})]
OTHER = [call("other", "gone", 0.3, 1.2, "Hello.", trace="v")]


def order(*spans: dict[str, Any]) -> list[str]:
    begun = sorted(spans, key=lambda each: (each["startTimeUnixNano"], each["spanId"]))
    return [each["name"] for each in begun if each["name"] in FOLLOWS]


@pytest.mark.slow
@pytest.mark.parametrize("load", ["recorded", "closed load.concurrency=2"])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_spans_are_replayed_as_sessions_of_agents_and_sub_agents(
    tmp_path: Path, capsys: Any, load: str, ending: str
) -> None:
    exports = [export(*NAMED), export(*NEXT, *OTHER)]
    file = tmp_path / f"spans.{ending}"
    file.write_text(
        json.dumps(export(*NAMED, *NEXT, *OTHER)) if ending == "json" else "\n".join(map(json.dumps, exports))
    )
    line = [*QUICK, "backend.prefix_block=16", "workload=recorded", f"workload.file={file}", "workload.num_requests=7"]
    line += [f"load={load.split()[0]}", *load.split()[1:], "backend.api=chat", "backend.batch_form=streams"]
    row = measure(*line, f"out={tmp_path / 'out'}")
    assert alarms(row.dropna().to_dict()) <= {"unrecorded-hits"}  # the simulated engine counts words, not tokens
    assert (row["replay_exact_turns"], row["replay_exact_lengths"]) == (1, 1)
    assert row["earliest_turn"] >= -1e-6
    names = order(*NAMED, *NEXT, *OTHER)
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    check_plan(capsys.readouterr().out, 2, requests, row)
    sent = {names[int(each["request_id"].rpartition("-")[2])]: each for _, each in requests.iterrows()}
    parents = {sent[name]["request_id"]: name for name in names}
    assert {name: parents.get(each["parent"]) for name, each in sent.items()} == FOLLOWS
    assert {name: pytest.approx(each["gap"] or 0) for name, each in sent.items() if each["gap"] == each["gap"]} == {
        name: gap for name, gap in GAPS.items() if FOLLOWS[name]
    }
    assert sent["next"]["session"] == sent["plan"]["session"] != sent["other"]["session"]
    assert set(requests["output_tokens"]) == {4}
    if load == "recorded":
        assert [sent["plan"]["scheduled"], sent["other"]["scheduled"]] == pytest.approx([0, 0.3])
        assert row["replay_schedule_error"] < 1e-6


INSTRUCTION, FOUND, ARGUMENTS = SYSTEM["gen_ai.system_instructions"][0]["content"], '{"found": 3}', '{"what": "a"}'
FIND = {"name": "find", "parameters": {"type": "object"}}
FLAT = {"name": "find", "arguments": {"what": "a"}}
CALLING: dict[str, Any] = {"role": "assistant", "content": "Wait."}
OPENAI = [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": ARGUMENTS}}]
USE = [{"type": "tool_use", "id": "c1", "name": "find", "input": {"what": "a"}}]
SHAREGPT = f"Wait.\n<tool_call>\n{FLAT}\n</tool_call>"  # in Python's literals, as Hermes' first conversations
NUMBERED = "call_1"  # the id of a call without one


def talk(*turns: Any, **row: Any) -> dict[str, Any]:
    """Return a conversation that calls a tool, in the form of its turns."""
    asked = [] if "system" in row else [{"role": "system", "content": INSTRUCTION}]
    return {
        "messages": [*asked, {"role": "user", "content": "Go."}, *turns, {"role": "assistant", "content": "3"}]
    } | row


TALKS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> the call's text and id, and a row
    "OpenAI": (
        *("Wait.", "c1"),
        talk(
            CALLING | {"tool_calls": OPENAI},
            {"role": "tool", "tool_call_id": "c1", "content": FOUND},
            tools=[{"type": "function", "function": FIND}],
        ),
    ),
    "OpenAI without text": (
        *("", "c1"),
        talk(CALLING | {"content": None, "tool_calls": OPENAI}, {"role": "tool", "content": FOUND}, tools=[FIND]),
    ),
    "OpenAI's functions": (
        *("Wait.", NUMBERED),
        talk(
            CALLING | {"function_call": {"name": "find", "arguments": ARGUMENTS}},
            {"role": "function", "name": "find", "content": FOUND},
            functions=[FIND],
        ),
    ),
    "Anthropic": (
        *("Wait.", "c1"),
        talk(
            {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, *USE]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": FOUND}]},
            system=INSTRUCTION,
            tools=[{"name": "find", "input_schema": {"type": "object"}}],
        ),
    ),
    "ShareGPT": (
        *("", NUMBERED),
        talk(
            {"from": "function_call", "value": json.dumps(FLAT)},
            {"from": "observation", "value": FOUND},
            tools=json.dumps([FIND]),
        ),
    ),
    "Hermes": (
        *("Wait.", NUMBERED),
        talk(
            {"from": "gpt", "value": SHAREGPT},
            {"from": "tool", "value": f"<tool_response>\n{FOUND}\n</tool_response>"},
            tools=json.dumps([FIND]),
        ),
    ),
}


@pytest.mark.parametrize("form", ["spans", *TALKS])
def test_tools_are_sent_as_each_protocol_has_them(tmp_path: Path, form: str) -> None:
    text, name, row = TALKS.get(form, ("Wait.", "c1", export(call("x", "", 0, 1, **WITH_TOOLS))))
    file, turns = write(tmp_path / "s.json", [row]), 1 if form == "spans" else 2
    *_, request = Recorded(name="r", file=str(file), num_requests=turns).requests(None, turns, 1)
    chat, responses, messages = (
        json.loads(wire.call(wire.Target("http://h", "m", api=api), [request]).partition(b"\r\n\r\n")[2])
        for api in ("chat", "responses", "messages")
    )
    called = {"id": name, "type": "function", "function": {"name": "find", "arguments": ARGUMENTS}}
    assert chat["messages"][2:] == [
        {"role": "assistant", "content": text or None, "tool_calls": [called]},
        {"role": "tool", "content": FOUND, "tool_call_id": name},
    ]
    assert chat["tools"] == [{"type": "function", "function": FIND}]
    assert responses["input"][2:] == [
        *([{"role": "assistant", "content": text}] if text else []),
        {"type": "function_call", "call_id": name, "name": "find", "arguments": ARGUMENTS},
        {"type": "function_call_output", "call_id": name, "output": FOUND},
    ]
    assert responses["tools"] == [{"type": "function", **FIND}]
    blocks = [{"type": "text", "text": text}] if text else []
    assert messages["messages"][1:] == [
        {"role": "assistant", "content": [*blocks, {**USE[0], "id": name}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": name, "content": FOUND}]},
    ]
    assert messages["tools"] == [{"name": "find", "input_schema": {"type": "object"}}]
    assert messages["system"].endswith(INSTRUCTION)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("api", "fault"), [("chat", ""), ("responses", ""), ("messages", ""), ("chat", "roles"), ("chat", "tools")]
)
def test_a_conversation_with_tools_is_replayed_and_a_lost_role_or_tool_is_caught(
    tmp_path: Path, api: str, fault: str
) -> None:
    file = write(tmp_path / "t.jsonl", [row for _, _, row in TALKS.values()])
    line = [*QUICK, "workload=recorded", f"workload.file={file}", f"workload.num_requests={2 * len(TALKS)}"]
    line += ["load=closed", "load.concurrency=6"]

    def changed(request: Request) -> Request:
        prompt = tuple(part._replace(role="user") for part in request.prompt if isinstance(part, Message))
        return replace(request, prompt=prompt if fault == "roles" else request.prompt, tools="")

    with changed_requests(lambda requests: [changed(each) for each in requests] if fault else requests):
        row = measure(*line, f"backend.api={api}", "backend.batch_form=streams", f"out={tmp_path / 'out'}")
    raised = alarms(row.dropna().to_dict())
    assert ("other-turns" in raised) == bool(raised) == bool(fault)
    assert row["num_failed"] == 0


def test_spans_without_content_give_only_lengths(tmp_path: Path, capsys: Any) -> None:
    bare = [call(name, "", begin, begin + 0.1, **{"gen_ai.input.messages": ""}) for name, begin in (("x", 0), ("y", 1))]
    file = write(tmp_path / "s.json", "")
    file.write_text(json.dumps(export(*bare)))
    line = [*QUICK, "workload=recorded", f"workload.file={file}", "workload.num_requests=2", "load=recorded"]
    assert main([*line, "dry_run=true", f"out={tmp_path / 'out'}"]) == 2
    assert "row 1: gen_ai.input.messages=''; expected JSON; workload.prefixes=false replay" in capsys.readouterr().err
    requests = Recorded(name="r", file=str(file), prefixes=False, num_requests=2).requests(None, 2, 1)
    assert [(request.parent, request.output_tokens) for request in requests] == [(-1, 4), (-1, 4)]


FOUND_ONE = WITH_TOOLS["gen_ai.input.messages"][-1:]
FAILED = {"gen_ai.usage.output_tokens": 0}
INFINITE = {"attributes": [{"key": "k", "value": {"intValue": float("inf")}}]}


def prompt(role: str, *parts: Any, then: Any = ()) -> dict[str, Any]:
    """Return a call whose prompt has a message of these parts, after a question if it is an answer."""
    before = said("a") if role == "assistant" else []
    return call("x", "", 0, 1, **{"gen_ai.input.messages": [*before, {"role": role, "parts": parts}, *then]})


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([call("x", "", 0, 1), call("x", "", 2, 3)], "span t/x appears twice"),
        ([call("x", "y", 0, 1), span("y", "z", 0, 1), span("z", "y", 0, 1)], "span t/y: is among its own parents"),
        ([call("x", "y", 0, 1), call("y", "", 0, 2)], "span t/x: is inside the call t/y; expected one span for each"),
        ([call("x", "", 1, 0.5)], "expected ns since 1970, and a later end"),
        ([call("x", "", 0, 1) | {"startTimeUnixNano": "1790000000000"}], "startTimeUnixNano=1790000000000, "),
        ([span("y", "", 0, 1)], "no span is a model call; expected gen_ai.operation.name to be one of chat, "),
        ([call(name, "", 0, 1, **{"gen_ai.conversation.id": name}) for name in "xy"], "trace t has two values of gen_"),
        ([call("x", "", 0, 1, **FAILED)], "gen_ai.usage.output_tokens=0; expected a whole number of at least 1"),
        ([call("x", "", 0, 1, "Hi.", "Hello.")], "row 1: the role assistant after assistant; expected"),
        ([prompt("assistant", CALLED, CALLED | {"id": "c2"}, then=FOUND_ONE)], "assistant after a tool call without a"),
        ([call("x", "", 0, 1, **{"gen_ai.input.messages": said("a")[:1] * 2})], "the role user after user"),
        ([prompt("user", {"type": "blob"})], "has a part of type blob; expected text"),
        ([prompt("user", {"type": "text"})], "has a text part with content=None; expected text"),
        ([prompt("assistant", CALLED | {"arguments": "{"})], "expected a name and an object as arguments"),
        (
            [call("x", "", 0, 1, **{"gen_ai.tool.definitions": [{"type": "web_search", "name": "w"}]})],
            "expected functions with names",
        ),
        (
            [call("x", "y0", 0, 1), *(span(f"y{n}", f"y{n + 1}", 0, 1) for n in range(DEEPEST + 1))],
            f"span t/x: is inside more than {DEEPEST} spans",
        ),
        ([call("x", "", 0, 1, "half \ud83d")], "row 1: a lone surrogate in a turn; expected valid Unicode"),
        ([call("x", "", 0, 1) | INFINITE], "export 1: expected resourceSpans in OTLP JSON"),
        ([call("x", "", 0, 1) | {"attributes": 7}], "export 1: expected resourceSpans in OTLP JSON"),
        ([{"spanId": "x"}], "export 1: a span without traceId and spanId; expected both"),
        ([call("x" * 65, "", 0, 1)], "a span without traceId and spanId; expected both, of at most 64 characters"),
        ([call("x", "", 0, 1) | {"startTimeUnixNano": "9" * 5000}], "startTimeUnixNano=999"),
    ],
)
def test_spans_of_no_clear_order_or_unit_are_refused(tmp_path: Path, capsys: Any, spans: Any, message: str) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps(export(*spans)))
    line = [*QUICK, "workload=recorded", f"workload.file={file}", "workload.num_requests=1", "load=closed"]
    assert main([*line, "dry_run=true", f"out={tmp_path / 'out'}"]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert len(printed.splitlines()) == 1
