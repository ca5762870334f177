"""The share of the input that was in the engine's prompt cache: expected and actual."""

from collections.abc import Sequence

import numpy as np

from sweep.base.records import UNKNOWN, Records, Sample
from sweep.numbers.chunks import Mask
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import succeeded, total_tokens

HITS, QUERIES = "prefix_cache_hits_total", "prefix_cache_queries_total"


@quantity(unit="share", kind="validity", label="Expected prefix hits")
def expected_prefix_hit_rate(shared_prefix_share: float | None) -> float | None:
    """share of the prompts' text that repeats the start of an earlier prompt of the trial, in blocks of 64 characters;
    null if every prompt has a unique prefix, and for replays, which have `recorded_prefix_hit_rate`.
    """
    return shared_prefix_share


@quantity(unit="share", kind="validity", label="Prefix hits")
def prefix_hit_rate(samples: Sequence[Sample], begin: float, input_tokens: int | None) -> float | None:
    """cached input tokens / input tokens that were looked up (or all input tokens), from the engine's counters."""
    hits, queries = increase(samples, begin, HITS), increase(samples, begin, QUERIES)
    asked_for = input_tokens if queries is None else queries
    return None if hits is None or not asked_for else hits / asked_for


@quantity(unit="tokens", kind="validity", type=int, label="Cached input tokens")
def cached_tokens(records: Records, mask: Mask) -> int | None:
    """Σ input tokens of the successful requests that were in the server's prompt cache, from the answers' usage
    (`prompt_tokens_details.cached_tokens`); null if no usage reports them.
    """
    return total_tokens(records.cached_tokens, _with_cached(records, mask))


@quantity(unit="share", kind="validity", label="Cached input")
def cached_share(cached_tokens: int | None, records: Records, mask: Mask) -> float | None:
    """cached input tokens / input tokens, for successful requests whose usage reports the cached tokens."""
    inputs = total_tokens(records.input_tokens, _with_cached(records, mask))
    return None if cached_tokens is None or not inputs else cached_tokens / inputs


def _with_cached(records: Records, mask: Mask) -> Mask:
    stated: Mask = np.asarray(records.cached_tokens) != UNKNOWN
    return mask & succeeded(records) & stated


def increase(samples: Sequence[Sample], begin: float, series: str, device: str = "") -> float | None:
    """Return the increase of a counter over the measured part: from the last reading before it to the final reading."""
    readings = [(sample.time, sample.value) for sample in samples if (sample.series, sample.device) == (series, device)]
    if len(readings) < 2:
        return None
    before = [value for time, value in readings if time <= begin] or [readings[0][1]]
    return readings[-1][1] - before[-1]
