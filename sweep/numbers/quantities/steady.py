"""The steady state (detected in `sweep.numbers.steady`): its window, and throughputs within it.

Throughputs cover arrivals in the window: tokens, completions, and input tokens of requests whose first token arrived.
All are null if there is no window.
"""

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Floats, Mask, as_floats, token_times, tokens_within, within
from sweep.numbers.drift import drift_after, drift_over, drift_within
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import Window, first_send, per_second, sent_within, succeeded, total_tokens

STARTUP_SHARE = 0.2  # share of a run above which whole-run results include a long start-up
IN_WINDOW = {"kind": "throughput", "better": "higher", "steady": True}


@quantity(unit="s", kind="validity", steady=True)
def steady_begin(window: Window) -> float | None:
    """beginning of the window, from the trial's start."""
    return window.begin


@quantity(unit="s", kind="validity", steady=True)
def steady_end(window: Window) -> float | None:
    """end of the window, from the trial's start."""
    return window.end


@quantity(unit="", kind="validity", type=str, steady=True)
def steady_method(window: Window) -> str:
    """the rule that found the window, or why no window was found."""
    return window.method


@quantity(unit="tokens/s", **IN_WINDOW, label="Output throughput", short="Throughput", headline={"": 1})
def steady_output_throughput(records: Records, mask: Mask, window: Window) -> float | None:
    """output tokens that arrived in the window / the window's length."""
    return per_second(_tokens(records, mask, window), _length(window))


@quantity(unit="tokens/s", **IN_WINDOW, label="Total throughput")
def steady_total_throughput(records: Records, mask: Mask, window: Window) -> float | None:
    """(output tokens that arrived in the window + input tokens of requests whose first token did so) / its length."""
    tokens = _tokens(records, mask, window)
    begun = mask & succeeded(records) & _inside(records, token_times(records)[0], window)
    inputs = total_tokens(records.input_tokens, begun) if begun.any() else 0
    return per_second(tokens + inputs, _length(window)) if tokens and inputs is not None else None


@quantity(unit="requests/s", **IN_WINDOW, label="Request throughput")
def steady_request_throughput(records: Records, mask: Mask, window: Window) -> float | None:
    """successful requests whose last token arrived in the window / the window's length."""
    completed = mask & succeeded(records) & _inside(records, token_times(records)[1], window)
    return per_second(int(np.sum(completed)), _length(window))


@quantity(unit="requests", kind="count", type=int, steady=True, label="Requests", headline={"": -1})
def steady_num_requests(records: Records, mask: Mask, window: Window) -> int | None:
    """measured requests sent in the window, including failed requests; the `steady_*` latencies are based on them."""
    return int(sent_within(records, mask, window).sum()) or None


@quantity(unit="requests", kind="count", type=int, better="lower", steady=True, label="Failed", headline={"": 0})
def steady_num_failed(records: Records, mask: Mask, window: Window) -> int | None:
    """failed requests among `steady_num_requests`."""
    inside = sent_within(records, mask, window)
    return int((inside & ~succeeded(records)).sum()) if inside.any() else None


@quantity(unit="", kind="validity", steady=True)
def steady_drift(records: Records, mask: Mask, window: Window) -> float | None:
    """e2el in the second half of the window / in the first; null unless p50 or p90 differs by 10% and every tenth of
    one half is above every tenth of the other half.
    """
    return drift_within(records, mask, window)


@quantity(unit="", kind="validity", better="lower", steady=True)
def steady_drift_after(records: Records, mask: Mask, window: Window) -> float | None:
    """e2el of the requests sent after the window / of the window's requests; null unless their p50 or p90 is 25% above
    the window's and above every tenth of the window.
    """
    return drift_after(records, mask, window)


@quantity(unit="", kind="validity")
def drift(records: Records, mask: Mask) -> float | None:
    """e2el of later measured requests / of earlier requests; null unless p50 or p90 differs by 20% and every later
    tenth of the requests is above (or below) every earlier tenth.
    """
    return drift_over(records, mask)


@quantity(unit="share", kind="validity", better="lower")
def startup_share(records: Records, mask: Mask, window: Window, duration: float | None) -> float | None:
    """(steady_begin − first sent) / duration."""
    if window.begin is None or not duration:
        return None
    return max(0.0, window.begin - first_send(records, mask)) / duration


@quantity(unit="", kind="validity", type=bool)
def startup_transient(startup_share: float | None) -> bool | None:
    """whether startup_share is above 0.2: whole-run results then include a long start-up."""
    return None if startup_share is None else startup_share > STARTUP_SHARE


def _tokens(records: Records, mask: Mask, window: Window) -> int | None:
    answered = mask & succeeded(records)
    if window.begin is None or window.end is None or total_tokens(records.streamed_tokens, answered) is None:
        return None
    return tokens_within(records, answered, window.begin, window.end)


def _inside(records: Records, event: Floats, window: Window) -> Mask:
    """Return the requests whose event (s since they were sent) is in the window."""
    if window.begin is None or window.end is None:
        return np.zeros(len(records), np.bool_)
    return within(as_floats(records.sent) + event, window.begin, window.end)


def _length(window: Window) -> float | None:
    return None if window.begin is None or window.end is None else window.end - window.begin
