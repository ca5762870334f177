"""Builds answers with typed events: OpenAI's Responses and Anthropic's Messages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.simulated_server.answers import WORD, Dialect, SequenceCounts


def _typed(kind: str, **content: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **content}, separators=(',', ':'))}\n\n".encode()


@dataclass(slots=True)
class Responses(Dialect):
    """An answer of the Responses API: numbered events; the last has the usage."""

    number: int = 1

    def opening(self) -> bytes:
        """Return the events before the first delta."""
        item = {"id": self.request_id, "type": "message", "role": "assistant", "content": []}
        return _typed("response.created", sequence_number=0, response={"model": self.model}) + _typed(
            "response.output_item.added", sequence_number=1, item=item
        )

    def token(self, sequence: SequenceCounts, count: int) -> bytes:
        """Return one delta of `count` tokens."""
        self.number += 1
        return _typed("response.output_text.delta", sequence_number=self.number, output_index=0, delta=WORD * count)

    def closing(self, sequences: Sequence[SequenceCounts]) -> bytes:
        """Return the end of an answer that reached its token limit."""
        (sequence,) = sequences
        usage = {
            "input_tokens": sequence.input_tokens,
            "output_tokens": sequence.made,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        incomplete = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "usage": usage}
        return _typed("response.incomplete", sequence_number=self.number + 1, response=incomplete)

    def error(self, message: str) -> bytes:
        """Return the event of a failed answer."""
        return _typed("response.failed", response={"error": {"code": "server_error", "message": message}})


@dataclass(slots=True)
class Messages(Dialect):
    """An answer of the Messages API: content blocks, followed by both token counts."""

    def opening(self) -> bytes:
        """Return the events before the first delta."""
        message = {"role": "assistant", "model": self.model, "content": [], "usage": {"output_tokens": 1}}
        block = {"type": "text", "text": ""}
        return (
            _typed("message_start", message=message)
            + _typed("content_block_start", index=0, content_block=block)
            + _typed("ping")
        )

    def token(self, sequence: SequenceCounts, count: int) -> bytes:
        """Return one delta of `count` tokens."""
        return _typed("content_block_delta", index=0, delta={"type": "text_delta", "text": WORD * count})

    def closing(self, sequences: Sequence[SequenceCounts]) -> bytes:
        """Return the end of an answer that reached its token limit."""
        (sequence,) = sequences
        usage = {"input_tokens": sequence.input_tokens, "output_tokens": sequence.made}
        return (
            _typed("content_block_stop", index=0)
            + _typed("message_delta", delta={"stop_reason": "max_tokens", "stop_sequence": None}, usage=usage)
            + _typed("message_stop")
        )

    def error(self, message: str) -> bytes:
        """Return the event of a failed answer."""
        return _typed("error", error={"type": "api_error", "message": message})


TYPED_ANSWERS = {"responses": Responses, "messages": Messages}
