"""The messages of a conversation, with calls of tools and their results, in an order that chat templates allow."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sweep.base.config import shortened
from sweep.base.records import Message
from sweep.inputs.sessions.turns import check_sendable

BEFORE = {  # the roles that may precede a message; "": it is the first
    "system": ("",),
    "user": ("", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


class Talk:
    """Collects the messages of one conversation. Its methods raise ValueError for what no chat template accepts."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._open: list[str] = []  # ids of the latest calls that have no result yet
        self._calls = 0

    def say(self, role: str, text: str, calls: Sequence[Any] = ()) -> None:
        """Add a message; the calls of an assistant are in OpenAI's, Anthropic's or OpenTelemetry's form."""
        if role == "tool":
            self.result(text)
        else:
            listed = [self._call(each) for each in calls]
            self._add(Message(role, text, _json_text(listed) if listed else ""))
            self._open = [each["id"] for each in listed]

    def result(self, content: Any, call: Any = None) -> None:
        """Add the result of the call with this id; without an id, of the first call that has none."""
        name = str(call or next(iter(self._open), ""))
        if name not in self._open:
            raise ValueError(f"a tool result for {shortened(name)!r}; expected the id of a call without a result")
        self._open.remove(name)
        self._add(Message("tool", content if isinstance(content, str) else _json_text(content), answers=name))

    def _add(self, message: Message) -> None:
        before = self.messages[-1].role if self.messages else ""
        if before not in BEFORE.get(message.role, ()):
            place = f"after {before}" if before else "first"
            raise ValueError(f"the role {message.role} {place}; expected an order that chat templates allow")
        if self._open and message.role != "tool":
            raise ValueError(f"the role {message.role} after a tool call without a result; expected all results first")
        check_sendable(message.text)
        self.messages.append(message)

    def _call(self, raw: Any) -> dict[str, str]:
        """Return a call of a tool, with its arguments as JSON text; without an id it gets a number."""
        call = raw if isinstance(raw, Mapping) else {}
        function = each if isinstance(each := call.get("function"), Mapping) else call
        arguments: Any = next((function[key] for key in ("arguments", "input") if function.get(key)), {})
        arguments, is_object = arguments if isinstance(arguments, str) else _json_text(arguments), False
        with suppress(ValueError, RecursionError):
            is_object = isinstance(json.loads(arguments), dict)
        if not (function.get("name") and is_object):
            raise ValueError(f"tool_call={shortened(repr(raw))}; expected a name and an object as arguments")
        self._calls += 1
        name = str(call.get("id") or f"call_{self._calls}")
        return {"id": name, "name": str(function["name"]), "arguments": arguments}


def tool_definitions(listed: Sequence[Any]) -> str:
    """Return definitions of tools, in the same forms as their calls, as a Request has them. Raises ValueError."""
    tools = []
    for raw in listed:
        tool = raw if isinstance(raw, Mapping) else {}
        function = each if isinstance(each := tool.get("function"), Mapping) else tool
        if tool.get("type") not in (None, "function") or not function.get("name"):
            raise ValueError(f"tools have {shortened(repr(raw))}; expected functions with names")
        schema = function.get("parameters") or function.get("input_schema")
        fields = {"name": function["name"], "description": function.get("description"), "parameters": schema}
        tools.append({key: field for key, field in fields.items() if field})
    text = _json_text(tools) if tools else ""
    check_sendable(text)
    return text


def list_of(row: Mapping[str, Any], name: str) -> list[Any]:
    """Return a row's list, which may be JSON text; empty if it has none. Raises ValueError."""
    content = row.get(name)
    try:
        content = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        raise ValueError(f"{name}={shortened(repr(content))}; expected JSON") from None
    if content is not None and not isinstance(content, list):
        raise ValueError(f"{name}={shortened(repr(content))}; expected a list")
    return content or []


def _json_text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, default=str)
