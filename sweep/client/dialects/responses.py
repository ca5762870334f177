"""OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses-streaming)."""

from typing import Any

from sweep.client.dialects.event import TypedDialect, TypedEvent, usage_of

RESPONSES_REASONS = {"max_output_tokens": "length"}


def responses_body(model: str, messages: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return a request that the server does not store; a single user message is sent as text."""
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    return {
        "model": model,
        "input": messages[0]["content"] if alone else [item for message in messages for item in _items(message)],
        "max_output_tokens": limit,
        "temperature": 0,
        "stream": True,
        "store": False,
    }


def _items(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a chat's message; each call of a tool, and its result, is an item."""
    if message["role"] == "tool":
        result = {"call_id": message["tool_call_id"], "output": message["content"]}
        return [{"type": "function_call_output"} | result]
    calls = [
        {"type": "function_call", "call_id": call["id"], **call["function"]} for call in message.get("tool_calls", ())
    ]
    return [*([{"role": message["role"], "content": message["content"]}] if message["content"] else []), *calls]


def _tool(definition: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function"} | definition


def read_responses(content: dict[str, Any]) -> TypedEvent:
    """Read one event; deltas of text, reasoning, refusals and tool-call arguments are all counted as tokens."""
    kind = str(content.get("type") or "")
    if kind.endswith(".delta"):
        delta = content.get("delta")
        return TypedEvent(delta if isinstance(delta, str) else "", "delta", reasoning="reasoning" in kind)
    if kind == "response.output_item.added":  # a tool call starts with its name, and may have no arguments
        return TypedEvent(str((content.get("item") or {}).get("name") or ""), "name")
    if kind == "error":
        return TypedEvent(error={"code": content.get("code"), "message": content.get("message")})
    if kind in ("response.completed", "response.incomplete", "response.failed"):
        response = content.get("response") or {}
        if kind == "response.failed":
            return TypedEvent(error=response.get("error") or response)
        reason = (response.get("incomplete_details") or {}).get("reason")
        return TypedEvent(finish_reason=RESPONSES_REASONS.get(str(reason), reason) or "stop", usage=_usage(response))
    return TypedEvent()


def _usage(response: dict[str, Any]) -> dict[str, Any]:
    usage = response.get("usage") or {}
    return usage_of(
        prompt_tokens=usage.get("input_tokens"),
        completion_tokens=usage.get("output_tokens"),
        cached_tokens=(usage.get("input_tokens_details") or {}).get("cached_tokens"),
        reasoning_tokens=(usage.get("output_tokens_details") or {}).get("reasoning_tokens"),
    )


RESPONSES = TypedDialect("/v1/responses", responses_body, read_responses, _tool)
