"""The key of a request: everything that must be equal before another request's answer may be served."""

import hashlib
import json
from typing import Any, NamedTuple

from sweep.gateway.call import Call

# Headers that identify no client and do not affect the answer. Every other header may be a credential.
IGNORED_HEADERS = {
    *(b"accept", b"accept-encoding", b"accept-language", b"cache-control", b"user-agent"),
    *(b"x-request-id", b"traceparent", b"tracestate"),
}
IGNORED_PREFIX = b"x-stainless-"  # OpenAI's libraries describe themselves and count their retries in these headers
SINGLE = ("n", "best_of")  # number of answers to one request
UNCACHED = frozenset((b"no-cache", b"no-store"))  # directives of Cache-Control
CHANGED_BY_PROMPT = ("echo", "prompt_logprobs", "use_beam_search")  # the answer contains the prompt, or is not sampled
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)
DIGEST_BYTES = 20


class AnswerKey(NamedTuple):
    """Two digests of a request: of its prompt, and of everything else. Neither can be reversed."""

    context: bytes
    question: bytes


def key_of(call: Call) -> AnswerKey | None:
    """Return the key of a request; None if its answer must not be stored (non-deterministic, or no-store)."""
    question, directives = call.question, call.header(b"cache-control").lower().split(b",")
    if question is None or not is_deterministic(call.content):
        return None
    if any(directive.partition(b"=")[0].strip() in UNCACHED for directive in directives):
        return None
    counted = (pair for pair in call.headers if not (pair[0] in IGNORED_HEADERS or pair[0].startswith(IGNORED_PREFIX)))
    headers = sorted(((name.hex(), value.hex()) for name, value in counted), key=lambda pair: pair[0])
    text = _ENCODER.encode([call.path, call.context(), headers, question.is_text])
    return AnswerKey(_digest(text), _digest(json.dumps(question.parts) if question.parts else question.text))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def is_deterministic(content: dict[str, Any]) -> bool:
    """Return whether equal requests get equal answers: greedy decoding and a single answer."""
    temperature = content.get("temperature")
    greedy = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    single = all(content.get(name) in (None, 1) for name in SINGLE)
    return greedy and single and not any(content.get(name) for name in CHANGED_BY_PROMPT)
