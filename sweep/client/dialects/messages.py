"""Anthropic's Messages API (https://docs.anthropic.com/en/docs/build-with-claude/streaming)."""

import json
from typing import Any

from sweep.client.dialects.event import TypedDialect, TypedEvent, usage_of

MESSAGES_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
TEXT_KEYS = ("text", "thinking", "partial_json", "name")  # of a delta or a block's start; a signature has no tokens
CACHE_COUNTS = ("cache_read_input_tokens", "cache_creation_input_tokens")


def messages_body(model: str, messages: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return a request for a conversation; its system messages have a separate field."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    turns = list[dict[str, Any]]()
    for message in messages:
        turn = _turn(message)
        if message["role"] == "tool" and turns and turns[-1]["role"] == "user":  # results of one answer's calls
            turns[-1]["content"] += turn["content"]
        elif message["role"] != "system":
            turns.append(turn)
    body = {"model": model, "max_tokens": limit, "temperature": 0, "stream": True, "messages": turns}
    return {**body, "system": system} if system else body


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    """Return a chat's message with its calls of tools, or a tool's result, as blocks."""
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
        return {"role": "user", "content": [result]}
    if "tool_calls" not in message:
        return message
    functions = [(call["id"], call["function"]) for call in message["tool_calls"]]
    calls = [
        {"type": "tool_use", "id": name, "name": each["name"], "input": json.loads(each["arguments"])}
        for name, each in functions
    ]
    text = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return {"role": "assistant", "content": [*text, *calls]}


def _tool(definition: dict[str, Any]) -> dict[str, Any]:
    schema = {"input_schema": definition.get("parameters") or {"type": "object"}}
    return {key: definition[key] for key in ("name", "description") if key in definition} | schema


def read_messages(content: dict[str, Any]) -> TypedEvent:
    """Read one event; deltas of text, thinking and tool-call arguments are all counted as tokens."""
    kind, delta = content.get("type"), content.get("delta") or {}
    if kind in ("content_block_delta", "content_block_start"):
        delta = content.get("content_block") or delta  # a tool call starts with its name, and may have no arguments
        key = next((key for key in TEXT_KEYS if delta.get(key)), "")
        return TypedEvent(delta.get(key, ""), key, reasoning=key == "thinking")
    if kind == "message_start":
        return TypedEvent(usage=_prompt_usage((content.get("message") or {}).get("usage") or {}))
    if kind == "message_delta":
        reason = delta.get("stop_reason")
        usage = content.get("usage") or {}
        counts = _prompt_usage(usage) | usage_of(completion_tokens=usage.get("output_tokens"))
        return TypedEvent(finish_reason=MESSAGES_REASONS.get(str(reason), reason), usage=counts)
    return TypedEvent()


def _prompt_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt's counts: Anthropic's `input_tokens` excludes tokens that its cache read or wrote."""
    if not isinstance(usage.get("input_tokens"), int):
        return {}
    cached = usage.get("cache_read_input_tokens")
    return usage_of(
        prompt_tokens=usage["input_tokens"] + sum(usage.get(name) or 0 for name in CACHE_COUNTS), cached_tokens=cached
    )


MESSAGES = TypedDialect(
    "/v1/messages", messages_body, read_messages, _tool, headers={"anthropic-version": "2023-06-01"}
)
