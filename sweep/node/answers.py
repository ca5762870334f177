"""Queries a running engine outside any measurement, for greedy continuations and log-probabilities of a text."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
from tokenizers import Tokenizer

from backends.launch.control_client import ControlClient
from backends.launch.server import Engine

ANSWER_TIMEOUT = 300.0  # s for one call
IN_FLIGHT = 8  # prompts in flight at once
LEAST_AHEAD = 2  # tokens to request after a difference
Reply = list[int] | str  # token ids if the engine returns them, else text


class _AnswerClient(ControlClient):
    largest = 16 << 20  # bytes: an answer may have an entry for each token of several prompts


@dataclass
class Comparison:
    """The comparison of one prompt's continuation with the reference, position by position.

    At every position the engine continues the reference's tokens: after a difference it is queried again from that
    position. So it decodes with its cache, as in a measurement, and one difference does not affect all later positions.
    A position at which the engine ends its answer is excluded: in a measurement the end is ignored.
    """

    prompt: list[int]
    expected: list[int]
    ends: frozenset[int]
    position: int = 0
    judged: int = 0
    matched: int = 0
    ahead: int = 0  # tokens to request: all that remain, or fewer after a difference

    @property
    def done(self) -> bool:
        return self.position >= len(self.expected)

    @property
    def prefix(self) -> list[int]:
        return self.prompt + self.expected[: self.position]

    @property
    def tokens(self) -> int:
        return min(self.ahead or len(self.expected), len(self.expected) - self.position)

    def take(self, answer: Sequence[int]) -> None:
        """Compare an answer to `prefix` with the reference, up to its first difference."""
        run = 0
        for token in answer[: len(self.expected) - self.position]:
            correct = token == self.expected[self.position]
            self.position += 1
            if token in self.ends and not correct:
                break
            self.judged += 1
            self.matched += correct
            if not correct:
                break
            run += 1
        else:
            if not answer or len(answer) < self.tokens:
                self.position += 1  # the answer ended at this position
        self.ahead = max(LEAST_AHEAD, 2 * run)


def finish(
    engine: Engine,
    tokenizer: Tokenizer,
    comparisons: Sequence[Comparison],
    limit: float,
    enough: Callable[[Sequence[Comparison]], bool],
) -> list[Comparison]:
    """Query the engine until all comparisons are done, `enough(finished)` is true, or `limit` s have passed.

    Returns the finished comparisons. Raises the errors of httpx.
    """
    finished: list[Comparison] = []
    begin = time.monotonic()
    with _AnswerClient(base_url=engine.url, timeout=ANSWER_TIMEOUT) as http:
        for first in range(0, len(comparisons), IN_FLIGHT):
            part = comparisons[first : first + IN_FLIGHT]
            while (pending := [each for each in part if not each.done]) and time.monotonic() - begin < limit:
                for each, answer in zip(pending, _ask(http, engine, tokenizer, pending), strict=True):
                    if answer is None:
                        each.position += 1  # the engine accepts only text, and no text gives this prefix
                    else:
                        each.take(_ids(tokenizer, answer))
            finished += part
            if time.monotonic() - begin >= limit or enough(finished):
                break
    return finished


def _ask(
    http: httpx.Client, engine: Engine, tokenizer: Tokenizer, pending: Sequence[Comparison]
) -> Iterable[Reply | None]:
    backend = engine.backend
    if backend.api == "completions" and backend.token_ids:
        most = max(each.tokens for each in pending)
        return completions(http, engine, [each.prefix for each in pending], most)
    texts = [_round_trip(tokenizer, each.prefix) for each in pending]

    def one(item: tuple[Comparison, str | None]) -> Reply | None:
        each, text = item
        if text is None:
            return None
        return _tgi(http, text, each.tokens) if backend.api == "tgi" else _completion(http, engine, text, each.tokens)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(one, zip(pending, texts, strict=True)))


def _round_trip(tokenizer: Tokenizer, ids: list[int]) -> str | None:
    """Return a text that tokenizes to exactly these tokens, or None."""
    text = str(tokenizer.decode(ids))
    return text if tokenizer.encode(text).ids == ids else None


def _ids(tokenizer: Tokenizer, answer: Reply) -> list[int]:
    return list(tokenizer.encode(answer, add_special_tokens=False).ids) if isinstance(answer, str) else answer


def completions(http: httpx.Client, engine: Engine, prompts: Any, tokens: int) -> list[Reply]:
    """Return greedy continuations of prompts, in order; all prompts are sent at once."""
    backend = engine.backend
    body = {"model": engine.launch.served_name, "prompt": prompts, "max_tokens": tokens, "temperature": 0}
    body |= backend.extra_body | ({"ignore_eos": True} if backend.ignores_eos else {})
    response = http.post("/v1/completions", json={**body, **backend.wire.show_ids})
    if response.status_code in (400, 422):  # the engine does not support this key
        response = http.post("/v1/completions", json=body)
    choices = sorted(response.raise_for_status().json()["choices"], key=lambda choice: choice.get("index", 0))
    if len(choices) != (1 if isinstance(prompts, str) else len(prompts)):
        raise ValueError(f"{len(choices)} answers to {len(prompts)} prompts")
    return [_answer(choice) for choice in choices]


def _answer(choice: dict[str, Any]) -> Reply:
    if ids := choice.get("token_ids"):
        return list(ids)
    content = (choice.get("logprobs") or {}).get("content")
    return [token["id"] for token in content] if content and "id" in content[0] else str(choice["text"])


def _completion(http: httpx.Client, engine: Engine, prompt: str, tokens: int) -> Reply:
    if engine.backend.api != "completions":
        raise ValueError(f"api={engine.backend.api} gives no plain continuation")
    return completions(http, engine, prompt, tokens)[0]


def _tgi(http: httpx.Client, prompt: str, tokens: int) -> Reply:
    parameters = {"max_new_tokens": tokens, "do_sample": False, "details": True}
    answer = http.post("/generate", json={"inputs": prompt, "parameters": parameters}).raise_for_status().json()
    return [token["id"] for token in answer["details"]["tokens"]]


def log_probabilities(engine: Engine, texts: Sequence[Sequence[int]], limit: float = math.inf) -> list[list[float]]:
    """Return, for each text, the log-probability of each token after the first, given the tokens before it.

    No text is started after `limit` seconds: the result may cover only the first texts. Raises httpx's errors.
    """
    values: list[list[float]] = []
    begin = time.monotonic()
    with _AnswerClient(base_url=engine.url, timeout=ANSWER_TIMEOUT) as http:
        for first in range(0, len(texts), IN_FLIGHT):
            values += _of_texts(http, engine, texts[first : first + IN_FLIGHT])
            if time.monotonic() - begin >= limit:
                break
    return values


def _of_texts(http: httpx.Client, engine: Engine, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    by = engine.backend.wire.log_probabilities
    if by == "host":
        answer = http.post("/log_probabilities", json={"texts": texts}).raise_for_status().json()
        return [list(map(float, values)) for values in answer["log_probabilities"]]
    if by == "token_grammar":
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            return list(pool.map(lambda text: _of_generated(http, text), texts))
    if by == "input_token_logprobs":
        return [_of_input(http, text) for text in texts]
    return [_of_prompt(http, engine, text) for text in texts]


def _of_prompt(http: httpx.Client, engine: Engine, text: Sequence[int]) -> list[float]:
    body = {"model": engine.launch.served_name, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = http.post("/v1/completions", json={**body, "prompt": list(text)}).raise_for_status().json()
    entries = answer["choices"][0]["prompt_logprobs"][1:]
    return [entry[str(token)]["logprob"] for entry, token in zip(entries, text[1:], strict=True)]


def _of_input(http: httpx.Client, text: Sequence[int]) -> list[float]:
    """Return log-probabilities from SGLang's native route; its OpenAI route has none for prompts of token ids."""
    body = {"input_ids": list(text), "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    answer = http.post("/generate", json=body | {"return_logprob": True, "logprob_start_len": 0}).raise_for_status()
    entries = answer.json()["meta_info"]["input_token_logprobs"][1:]
    if [token for _, token, _ in entries] != list(text[1:]):
        raise ValueError("it scored tokens that are not in the text")
    return [float(value) for value, _, _ in entries]


def _of_generated(http: httpx.Client, text: Sequence[int]) -> list[float]:
    """Return llama.cpp's log-probabilities of a text, which a grammar forces it to generate token by token."""
    first, *following = text
    grammar = f"root ::= {' '.join(f'<[{token}]>' for token in following)}"
    body = {"prompt": [first], "n_predict": len(following), "grammar": grammar, "n_probs": 1, "temperature": 0}
    answer = http.post("/completion", json=body | {"cache_prompt": False}).raise_for_status().json()
    entries = answer["completion_probabilities"]
    if [entry["id"] for entry in entries] != following:
        raise ValueError("it generated tokens that are not in the text")
    return [float(entry["logprob"]) for entry in entries]
