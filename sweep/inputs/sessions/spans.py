"""Reads spans of OpenTelemetry's conventions for generative AI (OTLP as JSON): each call of a model is a turn.

Times are ns since 1970. A span holds its call's whole prompt, if content was captured. A turn follows the call that
ended last among those that surely came before it: where the two branches part, theirs had ended when its own began. So
sub-agents at work side by side do not wait for each other, and their agent continues after the last of them.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from sweep.base.config import ConfigError, shortened
from sweep.base.records import UNKNOWN, Message
from sweep.inputs.sessions.messages import Talk, list_of, tool_definitions
from sweep.inputs.sessions.turns import Turn

SPANS = "resourceSpans"  # the key of each export
START, END, BRANCH = "startTimeUnixNano", "endTimeUnixNano", "branch"
INPUT_TOKENS, OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
FORMER = {INPUT_TOKENS: "gen_ai.usage.prompt_tokens", OUTPUT_TOKENS: "gen_ai.usage.completion_tokens"}  # names to v1.26
OPERATION, CONVERSATION = "gen_ai.operation.name", "gen_ai.conversation.id"
INSTRUCTIONS, PROMPT = "gen_ai.system_instructions", "gen_ai.input.messages"
DEFINITIONS = "gen_ai.tool.definitions"
LONGEST_ID = 64  # characters; OTLP's ids have 16 and 32
DEEPEST = 200  # spans around a call
CALLS = ("chat", "generate_content", "text_completion")  # operations that call a model
EARLIEST, LATEST = 10**18, 10**19  # ns since 1970, i.e. the years 2001 and 2286: other numbers have another unit
CALL, RESULT = "tool_call", "tool_call_response"  # types of parts


class Branching(NamedTuple):
    """A span on the way to a call, or its trace or session, with everything in it."""

    name: str
    start: int  # ns
    end: int


class _Span(NamedTuple):
    trace: str
    name: str
    parent: str
    start: int
    end: int
    attributes: dict[str, Any]

    @property
    def is_call(self) -> bool:
        return self.attributes.get(OPERATION) in CALLS


def span_rows(exports: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a row for each model call, in order of start time. Raises ValueError if the order of the spans is unclear.

    BRANCH of a row has the Branchings from its session to the call.
    """
    spans = dict[str, _Span]()
    for span in _spans_of(exports):
        if spans.setdefault(span.name, span) is not span:
            raise ValueError(f"span {span.name} appears twice; expected different spans")
    calls = sorted((span for span in spans.values() if span.is_call), key=lambda span: (span.start, span.name))
    if not calls:
        raise ValueError(f"no span is a model call; expected {OPERATION} to be one of {', '.join(CALLS)}")
    sessions = dict[str, str]()  # by trace
    for span in spans.values():
        named = str(span.attributes.get(CONVERSATION) or "")
        if named and sessions.setdefault(span.trace, named) != named:
            problem = f"trace {span.trace} has two values of {CONVERSATION}"
            raise ValueError(f"{problem}; expected one conversation in a trace")
    branches = [(sessions.get(call.trace, call.trace), *_branch(call, spans)) for call in calls]
    limits = dict[str, tuple[int, int]]()
    for call, branch in zip(calls, branches, strict=True):
        for name in branch:
            itself = spans.get(name, call)
            begin, end = limits.get(name, (call.start, call.end))
            limits[name] = min(begin, call.start, itself.start), max(end, call.end, itself.end)
    return [
        {name: call.attributes.get(name, call.attributes.get(FORMER.get(name, ""))) for name in (*FORMER, PROMPT)}
        | {name: call.attributes.get(name) for name in (INSTRUCTIONS, DEFINITIONS)}
        | {START: call.start, END: call.end}
        | {BRANCH: [Branching(name, *limits[name]) for name in branch]}
        for call, branch in zip(calls, branches, strict=True)
    ]


def _spans_of(exports: Sequence[Any]) -> Iterator[_Span]:
    for number, export in enumerate(exports, 1):
        try:
            groups = [scope for resource in export[SPANS] for scope in resource.get("scopeSpans", ())]
            spans = [
                (span, {each["key"]: _attribute(each["value"]) for each in span.get("attributes", ())})
                for scope in groups
                for span in scope.get("spans", ())
            ]
            names = [[str(span.get(key) or "") for key in ("traceId", "spanId", "parentSpanId")] for span, _ in spans]
        except (TypeError, LookupError, AttributeError, ValueError, OverflowError):
            raise ValueError(f"export {number}: expected {SPANS} in OTLP JSON") from None
        for (span, attributes), (trace, name, parent) in zip(spans, names, strict=True):
            if not (trace and name and max(map(len, (trace, name, parent))) <= LONGEST_ID):
                problem = f"export {number}: a span without traceId and spanId"
                raise ValueError(f"{problem}; expected both, of at most {LONGEST_ID} characters")
            times = [shortened(span.get(key)) for key in (START, END)]
            begin, end = (int(time) if time.isdecimal() else 0 for time in times)
            if not EARLIEST <= begin <= end < LATEST or (begin == end and attributes.get(OPERATION) in CALLS):
                problem = f"span {name}: {START}={times[0]}, {END}={times[1]}"
                raise ValueError(f"{problem}; expected ns since 1970, and a later end")
            yield _Span(trace, f"{trace}/{name}", parent and f"{trace}/{parent}", begin, end, attributes)


def _attribute(value: Mapping[str, Any]) -> Any:
    """Return an attribute's value as OTLP encodes it."""
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [_attribute(each) for each in content.get("values", ())]
    if kind == "kvlistValue":
        return {each["key"]: _attribute(each["value"]) for each in content.get("values", ())}
    return int(content) if kind == "intValue" else content


def _branch(call: _Span, spans: Mapping[str, _Span]) -> list[str]:
    """Return the names of the call's trace, of the spans around it, as far as they were exported, and of itself."""
    branch, around = [call.name], call.parent
    while around:
        span = spans.get(around)
        if around in branch:
            raise ValueError(f"span {around}: is among its own parents; expected a tree")
        if len(branch) > DEEPEST:
            raise ValueError(f"span {call.name}: is inside more than {DEEPEST} spans; expected fewer")
        if span is not None and span.is_call:
            problem = f"span {call.name}: is inside the call {around}"
            raise ValueError(f"{problem}; expected one span for each model call")
        branch.append(around)
        around = "" if span is None else span.parent
    return [call.trace, *reversed(branch)]


def span_parents(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return for each row the index of the row that it follows; UNKNOWN if it begins a session."""
    latest, inside = dict[Branching, tuple[int, int]](), dict[Branching, set[Branching]]()
    for index, row in enumerate(rows):
        for node, child in pairwise(row[BRANCH]):
            inside.setdefault(node, set()).add(child)
            latest[child] = max(latest.get(child, (0, 0)), (row[END], index))
    ordered = {node: sorted(children, key=lambda child: child.end) for node, children in inside.items()}
    ends = {node: [child.end for child in children] for node, children in ordered.items()}
    last = {node: list(accumulate((latest[child] for child in ordered[node]), max)) for node in ordered}
    parents = []
    for row in rows:
        ended = [(node, bisect_right(ends[node], child.start)) for node, child in pairwise(row[BRANCH])]
        parents.append(max((last[node][number - 1] for node, number in ended if number), default=(0, UNKNOWN))[1])
    return parents


def span_turns(rows: Mapping[int, Mapping[str, Any]], lengths: Sequence[tuple[int, int]], key: str) -> list[Turn]:
    """Return a turn for each call, with its whole prompt. Raises ConfigError for a prompt that cannot be sent."""
    turns, listed = list[Turn](), list(rows.values())
    for number, row, parent, (_, output) in zip(rows, listed, span_parents(listed), lengths, strict=True):
        gap = 0.0 if parent == UNKNOWN else (row[START] - listed[parent][END]) / 1e9
        try:
            tools = tool_definitions(list_of(row, DEFINITIONS))
            turns.append(Turn(output, parent, gap, messages=_messages(row), has_history=True, tools=tools))
        except ValueError as error:
            remedy = "workload.prefixes=false replays only the lengths"
            raise ConfigError(f"{key}: row {number}: {error}; {remedy}") from None
    return turns


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the messages of a call's prompt. Raises ValueError."""
    talk = Talk()
    if parts := list_of(row, INSTRUCTIONS):
        talk.say("system", _text_of_parts(parts))
    for message in list_of(row, PROMPT):
        role, parts = (message.get("role"), _parts(message.get("parts"))) if isinstance(message, dict) else (None, [])
        results = [part for part in parts if part.get("type") == RESULT]
        calls = [part for part in parts if role == "assistant" and part.get("type") == CALL]
        text = _text_of_parts([part for part in parts if part not in results and part not in calls])
        for part in results:
            talk.result(part.get("response", part.get("result")), part.get("id"))  # the second until v1.37
        if text or calls or not results:
            talk.say("system" if role == "developer" else shortened(role), text, calls)
    talk.say("assistant", "")  # raises ValueError if nothing may be answered yet, e.g. before a call's result
    return tuple(talk.messages[:-1])


def _parts(parts: Any) -> list[dict[str, Any]]:
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{PROMPT}: parts={shortened(repr(parts))}; expected a list of parts")
    return parts


def _text_of_parts(parts: Any) -> str:
    if odd := next((part for part in _parts(parts) if part.get("type") != "text"), None):
        problem = f"{PROMPT} has a part of type {shortened(odd.get('type'))}"
        raise ValueError(f"{problem}; expected text, a tool call or a tool result")
    texts = [part.get("content") for part in parts]
    if others := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{PROMPT} has a text part with content={shortened(repr(others[0]))}; expected text")
    return "\n\n".join(texts)
