"""The gateway in front of the engine: clipped requests and cache answers. Null if there is no gateway."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Mask
from sweep.numbers.quantities.latency import e2el
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import succeeded

Decisions = Sequence[Mapping[str, Any]]  # decisions about the measured requests, as in the gateway's log
HITS = ("exact", "semantic")
BY_GATEWAY = (*HITS, "shared")
BY_ENGINE = ("miss", "uncacheable")


def _hits(decisions: Decisions) -> list[Mapping[str, Any]]:
    return [each for each in decisions if each.get("cache") in HITS]


def _has_cache(decisions: Decisions) -> bool:
    return any(each.get("cache", "off") != "off" for each in decisions)


def mark_gateway_answers(records: Records, decisions: Decisions) -> None:
    """Mark the Records that the gateway answered: their events are timed by the gateway, not by generation."""
    names = {each["request_id"] for each in decisions if each.get("cache") in BY_GATEWAY}
    for index, name in enumerate(records.request_id):
        if name in names:
            records.gateway_answer[index] = True


@quantity(unit="share", kind="count", label="Clipped requests")
def clipped_share(decisions: Decisions) -> float | None:
    """share of the requests whose prompt or answer was clipped by the gateway."""
    clipped = [each for each in decisions if _cut(each)]
    return len(clipped) / len(decisions) if decisions else None


@quantity(unit="tokens", kind="count", type=int, label="Tokens clipped")
def clipped_tokens(decisions: Decisions) -> int:
    """Σ tokens cut from prompts, and tokens of answers that were requested but not allowed."""
    return sum(map(_cut, decisions))


def _cut(decision: Mapping[str, Any]) -> int:
    before, after = (decision.get(f"input_{end}", 0) + decision.get(f"output_{end}", 0) for end in ("before", "after"))
    return int(before - after)


@quantity(unit="share", kind="count", better="higher", label="Cache hits")
def cache_hit_rate(decisions: Decisions) -> float | None:
    """share of the requests that were answered from the gateway's cache; null if there is no cache."""
    return len(_hits(decisions)) / len(decisions) if _has_cache(decisions) else None


@quantity(unit="share", kind="count", label="Shared answers")
def shared_answer_rate(decisions: Decisions) -> float | None:
    """share of the requests that received the answer of an identical request in flight; null if there is no cache."""
    shared = [each for each in decisions if each.get("cache") == "shared"]
    return len(shared) / len(decisions) if _has_cache(decisions) else None


@quantity(unit="share", kind="validity", better="lower", label="False hits")
def false_hit_rate(decisions: Decisions, meanings: Mapping[str, str]) -> float | None:
    """share of the requests that the cache answered with the answer to a prompt with a different meaning; null if there
    is no cache, or the workload does not label meanings.
    """
    if not _has_cache(decisions) or not meanings:
        return None
    return sum(_is_false(each, meanings) for each in _hits(decisions)) / len(decisions)


@quantity(unit="share", kind="validity", better="lower", label="False among hits")
def false_hit_share(decisions: Decisions, meanings: Mapping[str, str]) -> float | None:
    """false hits / cache hits."""
    hits = _hits(decisions)
    return sum(_is_false(each, meanings) for each in hits) / len(hits) if hits and meanings else None


def _is_false(hit: Mapping[str, Any], meanings: Mapping[str, str]) -> bool:
    return meanings.get(hit["request_id"]) != meanings.get(hit["origin"])


@quantity(unit="share", kind="validity", better="higher", label="Served answers equal")
def served_agreement(served_equal: float | None) -> float | None:
    """share of token positions at which answers served to similar prompts equal the engine's greedy answers to these
    prompts, over up to 32 hits.
    """
    return served_equal


@quantity(unit="tokens", kind="count", type=int, label="Tokens from the cache")
def cache_tokens_saved(decisions: Decisions) -> int | None:
    """Σ tokens of prompts and answers that the cache saved the engine from processing; null if there is no cache."""
    if not _has_cache(decisions):
        return None
    return sum(int(hit["cached_input_tokens"] + hit["cached_output_tokens"]) for hit in _hits(decisions))


@quantity(unit="s", kind="latency", better="higher", label="Latency saved by the cache")
def cache_latency_saved(decisions: Decisions, records: Records, mask: Mask) -> float | None:
    """median e2el of requests answered by the engine − median e2el of cache hits; null if either group is empty."""
    result = {each["request_id"]: each.get("cache") for each in decisions}
    results = np.array([result.get(name, "") or "" for name in records.request_id])
    latencies, answered = e2el(records), mask & succeeded(records)
    engine, cache = (latencies[answered & np.isin(results, names)] for names in (BY_ENGINE, HITS))
    return float(np.median(engine) - np.median(cache)) if engine.size and cache.size else None


@quantity(unit="USD", kind="cost", better="higher", label="Cost saved")
def cache_cost_saved(
    decisions: Decisions,
    price_per_hour: float | None,
    gpu_count: int,
    duration: float | None,
    output_tokens: int | None,
) -> float | None:
    """cost of the trial × output tokens from the cache / output tokens from the engine; null if there is no cache."""
    cached = sum(int(hit["cached_output_tokens"]) for hit in _hits(decisions))
    made = (output_tokens or 0) - cached
    if price_per_hour is None or duration is None or made <= 0 or not _has_cache(decisions):
        return None
    return max(gpu_count, 1) * price_per_hour / 3600 * duration * cached / made


@quantity(unit="s", kind="validity", better="lower", label="Gateway's loop lag")
def gateway_loop_lag_p99(loop_lag: float | None) -> float | None:
    """p99 of the delays of the gateway's event loop, sampled every 10 ms."""
    return loop_lag
