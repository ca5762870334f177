"""Speculative decoding and preemption, from the engine's counters over the measured part."""

import json
from collections.abc import Sequence

from sweep.base.records import Sample
from sweep.numbers.quantities.prompt_cache import increase
from sweep.numbers.quantity import quantity

DRAFTS, DRAFTED = "spec_decode_drafts_total", "spec_decode_draft_tokens_total"
ACCEPTED, ACCEPTED_AT = "spec_decode_accepted_tokens_total", "spec_decode_accepted_at_position_total"
ACCEPT_RATE, ACCEPT_LENGTH = "spec_decode_accept_rate", "spec_decode_accept_length"
PREEMPTIONS = "preemptions_total"


@quantity(unit="share", kind="throughput", better="higher", label="Acceptance rate", short="Accepted")
def acceptance_rate(samples: Sequence[Sample], begin: float) -> float | None:
    """drafted tokens that the model accepted / drafted tokens; if not counted, the mean of the rate that the engine
    reports; null if it does not speculate.
    """
    accepted, drafted = increase(samples, begin, ACCEPTED), increase(samples, begin, DRAFTED)
    if accepted is None:
        return _of_gauge(samples, begin, ACCEPT_RATE)
    return accepted / drafted if drafted else None


@quantity(unit="tokens/step", kind="throughput", better="higher", label="Acceptance length")
def acceptance_length(samples: Sequence[Sample], begin: float) -> float | None:
    """1 + accepted tokens / drafts: tokens per sequence in a step with a draft; if not counted, the mean of the length
    that the engine reports; null if it does not speculate.
    """
    accepted, drafts = increase(samples, begin, ACCEPTED), increase(samples, begin, DRAFTS)
    if accepted is None:
        return _of_gauge(samples, begin, ACCEPT_LENGTH)
    return 1 + accepted / drafts if drafts else None


def _of_gauge(samples: Sequence[Sample], begin: float, series: str) -> float | None:
    """Return the mean of a gauge over the measured part; None if it is 0, i.e. the engine drafts nothing."""
    readings = [sample.value for sample in samples if sample.series == series and sample.time >= begin]
    return sum(readings) / len(readings) if any(readings) else None


@quantity(unit="", kind="throughput", type=str, label="Acceptance by position")
def acceptance_by_position(samples: Sequence[Sample], begin: float) -> str | None:
    """for each position in a draft, the share of drafts whose token there was accepted, as a JSON list; null if not
    counted."""
    drafts = increase(samples, begin, DRAFTS)
    positions = sorted({int(sample.device) for sample in samples if sample.series == ACCEPTED_AT and sample.device})
    counts = [increase(samples, begin, ACCEPTED_AT, str(position)) or 0.0 for position in positions]
    return json.dumps([round(count / drafts, 4) for count in counts]) if drafts and counts else None


@quantity(unit="preemptions", kind="throughput", type=int, better="lower", label="Preemptions")
def preemptions(samples: Sequence[Sample], begin: float) -> int | None:
    """sequences that the engine preempted because the KV cache was full, to be recomputed; null if not counted."""
    count = increase(samples, begin, PREEMPTIONS)
    return None if count is None else round(count)
