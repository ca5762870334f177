"""The slowest requests of the trials that are drawn request by request: where to look when a tail is long."""

from typing import NamedTuple

import numpy as np

from analysis.plotting.chosen_trials import chosen_records
from analysis.results import RunResults
from sweep.base.records import UNKNOWN
from sweep.numbers.chunks import as_floats
from sweep.numbers.quantities.latency import e2el, ttft
from sweep.numbers.selection import measured

MOST_SLOW = 12  # requests that are shown
MOST_SLOW_OF_A_TRIAL = 3


class SlowRequest(NamedTuple):
    """A request and how slow it was for its trial."""

    point: str
    request_id: str
    sent: float  # s from the trial's start
    input_tokens: int | None
    output_tokens: int | None
    ttft: float  # s; NaN for one that failed before its first token
    e2el: float  # s
    times_median: float  # of the end-to-end latencies of its trial
    error: str


def slowest_requests(results: RunResults) -> list[SlowRequest]:
    """The requests whose latency is the largest multiple of their trial's median, the slowest first."""
    slow: list[SlowRequest] = []
    for trial, records in chosen_records(results.run, results.layout):
        if trial["client_stamp_source"] == "engine":
            continue
        mask, first, last, sent = measured(records), ttft(records), e2el(records), as_floats(records.sent)
        latencies = np.where(mask, last, np.nan)
        if not np.isfinite(latencies).any():
            continue
        median = float(np.nanmedian(latencies))
        for index in np.argsort(-np.nan_to_num(latencies, nan=-1.0))[:MOST_SLOW_OF_A_TRIAL]:
            place = int(index)
            if not np.isfinite(latencies[place]) or median <= 0:
                continue
            counts = records.input_tokens[place], records.output_tokens[place]
            input_tokens, output_tokens = (None if count == UNKNOWN else count for count in counts)
            slow.append(
                SlowRequest(
                    results.layout.describe(trial),
                    records.request_id[place],
                    float(sent[place]),
                    input_tokens,
                    output_tokens,
                    float(first[place]),
                    float(last[place]),
                    float(last[place]) / median,
                    records.error[place] or "",
                )
            )
    return sorted(slow, key=lambda each: -each.times_median)[:MOST_SLOW]
