"""Clipping: cuts a prompt to a maximum number of tokens, and limits the answer's tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from sweep.gateway.call import Call, text_parts
from sweep.gateway.settings import Clip

TOKENIZED_PART = 1 << 18  # characters that are tokenized at once
CUTS = 8  # attempts at a cut, since the ends of a cut text may be tokenized differently
DEFAULT_ANSWER = 16  # tokens of a completion without max_tokens, according to OpenAI's API
MOST_ASKED = 10**9  # tokens counted of a request's limit, which may have a thousand digits
LIMIT_KEYS = ("max_completion_tokens", "max_tokens")


class Clipped(NamedTuple):
    """A request's tokens before and after clipping; equal if nothing was cut, 0 if not counted."""

    input_before: int = 0
    input_after: int = 0
    output_before: int = 0
    output_after: int = 0

    @property
    def input_saved(self) -> int:
        return self.input_before - self.input_after

    @property
    def output_saved(self) -> int:
        """The tokens of the answer that the client requested but will not get."""
        return self.output_before - self.output_after

    @property
    def header(self) -> bytes:
        """Return the message to the client: `input=900->512, output=256->64`; empty if nothing was cut."""
        parts = [f"input={self.input_before}->{self.input_after}"] if self.input_saved else []
        if self.output_saved:
            parts.append(f"output={self.output_before}->{self.output_after}")
        return ", ".join(parts).encode()


@dataclass(frozen=True)
class Clipper:
    """Applies the bounds with the tokenizer of the served model."""

    bounds: Clip
    tokenizer: Tokenizer | None = None  # needed to bound the input

    def clip(self, call: Call) -> tuple[Call, Clipped]:
        """Return the call within the bounds, and its token counts. A call within the bounds is returned unchanged."""
        if self.bounds.input_tokens is None and self.bounds.output_tokens is None:
            return call, Clipped()
        content = {**call.content}
        before, after = self._clip_input(content)
        asked, allowed = self._clip_output(call.path, content)
        clipped = Clipped(before, after, asked, allowed)
        changed = clipped.input_saved or content != call.content
        return (call.with_content(content) if changed else call), clipped

    def _clip_input(self, content: dict[str, Any]) -> tuple[int, int]:
        if self.bounds.input_tokens is None or self.tokenizer is None:
            return 0, 0
        if "messages" in content:
            content["messages"] = [_copied(message) for message in content["messages"]]
            return self._clip_messages(content["messages"], self.bounds.input_tokens)
        prompt = content["prompt"]
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            content["prompt"], before, after = self._clip_prompt(prompt, self.bounds.input_tokens)
            return before, after
        cuts = [self._clip_prompt(each, self.bounds.input_tokens) for each in prompt]
        content["prompt"] = [cut[0] for cut in cuts]
        return sum(cut[1] for cut in cuts), sum(cut[2] for cut in cuts)

    def _clip_prompt(self, prompt: Any, limit: int) -> tuple[Any, int, int]:
        if isinstance(prompt, str):
            assert self.tokenizer is not None
            return clip_text(prompt, limit, self.bounds.keep, self.tokenizer)
        if len(prompt) <= limit:
            return prompt, len(prompt), len(prompt)
        head, tail = parts(limit, self.bounds.keep)
        return prompt[:head] + prompt[len(prompt) - tail :], len(prompt), limit

    def _clip_messages(self, messages: list[dict[str, Any]], limit: int) -> tuple[int, int]:
        """Cut the longest messages in place, except system messages, until all contents have at most `limit` tokens.

        In a multi-part message, cut the longest text parts. Only texts are counted: the tokens of a chat template or an
        image depend on the engine.
        """
        assert self.tokenizer is not None
        texts = [text for message in messages for text in _texts(message)]
        counts = count_tokens([text.value for text in texts], self.tokenizer)
        before = sum(counts)
        for index in sorted(range(len(texts)), key=lambda i: (texts[i].is_system, -counts[i])):
            excess = sum(counts) - limit
            if excess <= 0 or texts[index].is_system:
                break
            room = max(counts[index] - excess, 1)
            cut, _, counts[index] = clip_text(texts[index].value, room, self.bounds.keep, self.tokenizer, bare=True)
            texts[index].holder[texts[index].key] = cut
        return before, sum(counts)

    def _clip_output(self, path: str, content: dict[str, Any]) -> tuple[int, int]:
        """Cap the answer's length in the request body; return the tokens requested and allowed. A request without a
        limit gets one, with 0 tokens saved, since its natural length is unknown.
        """
        limit = self.bounds.output_tokens
        if limit is None:
            return 0, 0
        named = [key for key in (*LIMIT_KEYS, "min_tokens") if isinstance(content.get(key), int)]
        asked = min(max((content[key] for key in named), default=0), MOST_ASKED)
        for key in named:
            content[key] = min(content[key], limit)
        if not set(LIMIT_KEYS) & set(named) and (path != "/v1/completions" or limit < DEFAULT_ANSWER):
            content["max_tokens"] = limit
        return asked, min(asked, limit)


class MessageText(NamedTuple):
    """A text in a message, and the mapping that contains it: the message, or one of its parts."""

    holder: dict[str, Any]
    key: str
    is_system: bool

    @property
    def value(self) -> str:
        return str(self.holder[self.key])


def _copied(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return {**message}
    return {**message, "content": [{**part} if isinstance(part, dict) else part for part in content]}


def _texts(message: dict[str, Any]) -> list[MessageText]:
    system = message.get("role") in ("system", "developer")
    if isinstance(message.get("content"), str):
        return [MessageText(message, "content", system)]
    return [MessageText(part, "text", system) for part in text_parts(message)]


def parts(limit: int, keep: Literal["head", "tail", "both"]) -> tuple[int, int]:
    """Return the numbers of tokens in the head and in the tail, which add up to `limit`."""
    if keep == "both":
        return limit - limit // 2, limit // 2
    return (limit, 0) if keep == "head" else (0, limit)


def clip_text(
    text: str, limit: int, keep: Literal["head", "tail", "both"], tokenizer: Tokenizer, bare: bool = False
) -> tuple[str, int, int]:
    """Return the head, tail or both of a text, at most `limit` tokens, with the number of tokens before and after.

    The text is cut between tokens, so the remainder is unchanged. Special tokens added by the engine are counted,
    unless the text is `bare`.
    """
    special = 0 if bare else len(tokenizer.encode("").ids)
    tokens = _Tokens(text, tokenizer)
    before = after = sum(tokens.counts) + special
    room = max(limit - special, 1)
    cut = text
    for _ in range(CUTS):
        if after <= limit:
            break
        head, tail = parts(room, keep)
        first = tokens.end(head) if head else 0
        last = tokens.begin(tail) if tail else len(text)
        cut = text[:first] + text[last:]
        after = count_tokens([cut], tokenizer)[0] + special
        room = max(room - max(after - limit, 0), 1)
    return cut, before, after


class _Tokens:
    """The tokens of a text, a TOKENIZED_PART at a time: a tokenizer needs about 60 times the memory of its text."""

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self._text, self._tokenizer = text, tokenizer
        self._offsets: dict[int, list[tuple[int, int]]] = {}  # of the last part
        self.counts = [len(self._part(part)) for part in range(max(1, -(-len(text) // TOKENIZED_PART)))]

    def _part(self, part: int) -> list[tuple[int, int]]:
        """Return where each token of a part begins and ends within it."""
        if part not in self._offsets:
            text = self._text[part * TOKENIZED_PART : (part + 1) * TOKENIZED_PART]
            self._offsets = {part: self._tokenizer.encode(text, add_special_tokens=False).offsets}
        return self._offsets[part]

    def end(self, number: int) -> int:
        """Return where the first `number` tokens end."""
        part = 0
        while number > self.counts[part]:
            number -= self.counts[part]
            part += 1
        return part * TOKENIZED_PART + self._part(part)[number - 1][1]

    def begin(self, number: int) -> int:
        """Return where the last `number` tokens begin."""
        part = len(self.counts) - 1
        while number > self.counts[part]:
            number -= self.counts[part]
            part -= 1
        return part * TOKENIZED_PART + self._part(part)[-number][0]


def count_tokens(texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Return the number of tokens in each text. About a TOKENIZED_PART of all texts is tokenized at a time."""
    counts, size = [0] * len(texts), 0

    def batch(piece: tuple[int, str]) -> int:
        nonlocal size
        size += len(piece[1])
        return size // TOKENIZED_PART

    pieces = (
        (i, text[begin : begin + TOKENIZED_PART])
        for i, text in enumerate(texts)
        for begin in range(0, len(text), TOKENIZED_PART)
    )
    for _, group in itertools.groupby(pieces, batch):
        numbers, together = zip(*group, strict=True)
        encodings = tokenizer.encode_batch_fast(list(together), add_special_tokens=False)
        for number, encoding in zip(numbers, encodings, strict=True):
            counts[number] += len(encoding.ids)
    return counts
