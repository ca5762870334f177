"""Agreement of the cache's answers with the engine's answers: it sends both prompts again, one after the other."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
from tokenizers import Tokenizer

from backends.launch.control_client import ControlClient
from sweep.base.records import Request, proxy_of, tls_context
from sweep.client import wire

MOST_COMPARED = 32  # maximum number of hits, since the engine has to answer each prompt
COMPARE_TIMEOUT = 120.0  # s, timeout of one answer


def served_equal(
    decisions: Mapping[str, Mapping[str, Any]],
    requests: Sequence[Request],
    target: wire.Target,
    gateway: str,
    tokenizer: Tokenizer | None,
) -> float | None:
    """Return the share of token positions at which the cache's answer to a similar prompt equals the engine's greedy
    answer.

    It covers up to `MOST_COMPARED` hits, evenly spaced; None if there are no hits, or the tokenizer is unknown.
    """
    hits = [each for each in requests if decisions.get(each.request_id, {}).get("cache") == "semantic"]
    if not hits or tokenizer is None:
        return None
    equal = positions = 0
    at_gateway, proxy = replace(target, url=gateway, path=None), proxy_of(target.url, target.proxy)
    without_proxy = {f"all://{httpx.URL(gateway).netloc.decode()}": None}
    tls, via = tls_context(target.verify_tls), proxy.url if proxy else None
    with ControlClient(timeout=COMPARE_TIMEOUT, verify=tls, proxy=via, mounts=without_proxy) as client:
        for request in hits[:: -(-len(hits) // MOST_COMPARED)]:
            try:
                texts = [_answer_text(client, each, request) for each in (at_gateway, target)]
            except httpx.TransportError:  # after one failure, each further request would probably take as long
                break
            except (httpx.HTTPError, ValueError):
                continue
            served, own = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
            equal += sum(a == b for a, b in zip(served, own, strict=False))
            positions += max(len(served), len(own))
    return equal / positions if positions else None


def _answer_text(client: httpx.Client, target: wire.Target, request: Request) -> str:
    body = wire.call(target, [request]).partition(b"\r\n\r\n")[2]
    headers = wire.header_fields(target, target.api_key_env and os.environ[target.api_key_env])
    url = httpx.URL(target.url).join(target.request_path)
    answer = client.post(url, content=body, headers=headers).raise_for_status()
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event).get("choices") or []]
    return "".join(choice.get("text") or (choice.get("delta") or {}).get("content") or "" for choice in choices)
