"""The key of a request: what must be equal before another request's answer may be served."""

import hashlib
import json
import secrets
from typing import Any, NamedTuple

from sweep.gateway.call import Call

CREDENTIALS = frozenset(
    (b"authorization", b"api-key", b"x-api-key", b"cookie", b"openai-organization", b"openai-project")
)
SINGLE = ("n", "best_of")  # answers to one request
UNCACHED = frozenset((b"no-cache", b"no-store"))  # directives of Cache-Control; others may begin with `no-` too
CHANGED_BY_PROMPT = ("echo", "prompt_logprobs", "use_beam_search")  # the answer has the prompt in it, or is no sampling
SECRET_BYTES = 32
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)
DIGEST_BYTES = 20


class AnswerKey(NamedTuple):
    """Digests of a request: of all but its question, and of the question. Neither can be turned back."""

    context: bytes
    question: bytes


class Keys:
    """Makes keys with a secret of its own: a dump of the process's memory tells nobody which prompts were asked."""

    def __init__(self) -> None:
        self.secret = secrets.token_bytes(SECRET_BYTES)

    def of(self, call: Call) -> AnswerKey | None:
        """The key of a request; None if no answer to it may be kept: it is not deterministic, or asks for none."""
        question = call.question
        if question is None or not is_deterministic(call.content) or _bypasses_cache(call):
            return None
        credentials = sorted((name, value) for name, value in call.headers if name in CREDENTIALS)
        context = [call.path, call.context(), [[name.hex(), value.hex()] for name, value in credentials]]
        text = _ENCODER.encode([context, question.is_text])
        content = json.dumps(question.parts) if question.parts else question.text
        return AnswerKey(self._digest(text), self._digest(content))

    def _digest(self, text: str) -> bytes:
        data = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=self.secret).digest()


def _bypasses_cache(call: Call) -> bool:
    """Return whether a request asks for a new answer, or that its answer not be stored."""
    directives = call.header(b"cache-control").lower().split(b",")
    return any(directive.partition(b"=")[0].strip() in UNCACHED for directive in directives)


def is_deterministic(content: dict[str, Any]) -> bool:
    """Return whether equal requests have equal answers: the most probable token each time, and one answer."""
    temperature = content.get("temperature")
    greedy = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    single = all(content.get(name) in (None, 1) for name in SINGLE)
    return greedy and single and not any(content.get(name) for name in CHANGED_BY_PROMPT)
