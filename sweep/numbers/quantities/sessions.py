"""Sessions: their duration, their turns, and the certificate of how exactly a replay repeats the recording."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Floats, Mask, as_floats
from sweep.numbers.quantile import statistics
from sweep.numbers.quantities.latency import e2el, tpot, ttft
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import per_second, succeeded, total_tokens, with_failures


class ReplayHits(NamedTuple):
    """A replay's prompts, as sent and as recorded, both in an infinite prefix cache."""

    recorded_tokens: int  # of the prompts that were sent, as the file states them
    recorded: int  # tokens of these with which an earlier prompt began
    sent_tokens: int
    sent: int
    misplaced: int  # tokens: Σ over turns of |hits as sent − hits as recorded|
    later: float | None = None  # share of the input of later turns, as sent, that is in the cache
    fits: bool = False  # whether the engine's own cache surely has room for all prompts and answers


class ReplayProof(NamedTuple):
    """How a replay compares with its recording."""

    sessions: int  # in the file's part that was to be replayed
    hits: ReplayHits | None  # None: prompts contain the engine's own answers, so no file has them
    exact_lengths: float | None  # share of the answered turns
    exact_turns: float | None  # share of the turns that were sent
    earliest: float | None  # s
    truncated: int | None = None  # turns sent without their oldest part; None: a longer turn is refused
    schedule_error: float | None = None  # s


class Sessions(NamedTuple):
    """The sessions of a trial that have several turns. Each array has shape (sessions,)."""

    duration: Floats  # s from the first turn's schedule or send to the last token; infinite if a turn failed; NaN: cut
    cut: Mask  # whether turns were never due


def sessions(records: Records, mask: Mask) -> Sessions:
    """Return the sessions with at least one turn that was due."""
    mask = mask & (np.asarray(records.session) != UNKNOWN)
    ids, member = np.unique(np.asarray(records.session)[mask], return_inverse=True)
    scheduled, sent = as_floats(records.scheduled)[mask], as_floats(records.sent)[mask]
    begin = np.where(np.isnan(scheduled), sent, scheduled)
    end = begin + e2el(records)[mask]
    begins, ends = np.full(ids.size, np.inf), np.full(ids.size, -np.inf)
    np.fmin.at(begins, member, begin)
    np.fmax.at(ends, member, end)
    failed, turns = np.zeros(ids.size, np.bool_), np.zeros(ids.size, np.int64)
    np.logical_or.at(failed, member, ~succeeded(records)[mask])
    turns[member] = np.asarray(records.session_turns)[mask]
    cut = np.bincount(member, minlength=ids.size) < turns
    duration = np.where(failed, np.inf, np.where(cut, np.nan, ends - begins))
    several = turns > 1
    return Sessions(duration[several], cut[several])


@quantity(unit="s", kind="latency", per="session", better="lower", label="session duration")
def session_duration(records: Records, mask: Mask) -> Floats:
    """last token of a session's turns − its first turn's schedule (else its send); infinite if a turn failed.
    Excludes sessions of one turn, and sessions that `duration` cut short. Shape (sessions,), s.
    """
    return sessions(records, mask).duration


@quantity(unit="sessions", kind="count", type=int)
def num_sessions(records: Records, mask: Mask) -> int | None:
    """sessions of several turns, with at least one turn that was due; null if every request stands alone."""
    return sessions(records, mask).cut.size or None


@quantity(unit="sessions/h", kind="throughput", better="higher", label="Sessions per hour")
def sessions_per_hour(records: Records, mask: Mask, duration: float | None) -> float | None:
    """sessions of several turns that ended without a failure / duration × 3600."""
    ended = int(np.isfinite(sessions(records, mask).duration).sum())
    rate = per_second(ended, duration)
    return None if rate is None else rate * 3600


@quantity(unit="sessions", kind="validity", type=int, label="Sessions cut")
def sessions_cut(records: Records, mask: Mask) -> int | None:
    """sessions of several turns, with turns that were never due because `duration` was over; null if every request
    stands alone.
    """
    cut = sessions(records, mask).cut
    return int(cut.sum()) if cut.size else None


def _by_turn(latency: Callable[[Records], Floats], later: bool, probability: float) -> None:
    """Declare a latency of the first or the later turns of sessions, as a quantile."""
    name, turn = latency.__name__, "later" if later else "first"
    statistic = "median" if probability == 0.5 else f"p{probability * 100:.0f}"
    which = "all turns but the first" if later else "the first turns of sessions with several turns"
    since = ", counted from the end of the gap" if later and latency is ttft else ""

    def figure(records: Records, mask: Mask) -> float | None:
        turns = np.asarray(records.turn)
        if not np.any(turns[mask] > 0):
            return None
        chosen = mask & ((turns > 0) if later else (turns == 0)) & (np.asarray(records.session_turns) > 1)
        values = with_failures(latency(records), ~succeeded(records))[chosen]
        return statistics(values, [100 * probability])[column]

    column = f"p{probability * 100:.0f}"
    figure.__name__ = f"{turn}_turn_{name}_{column}"
    figure.__doc__ = f"{statistic} {name} of {which}{since}; a failed turn counts as infinite."
    quantity(unit="s", kind="latency", better="lower", label=f"{name.upper()} of {turn} turns {column}")(figure)


for _latency, _later, _probability in (
    *((ttft, False, 0.5), (ttft, True, 0.5), (ttft, True, 0.99)),
    *((tpot, False, 0.5), (tpot, True, 0.5)),
):
    _by_turn(_latency, _later, _probability)


@quantity(unit="share", kind="validity", label="Cached input of later turns")
def later_turn_cached_share(records: Records, mask: Mask) -> float | None:
    """cached input tokens / input tokens of later turns, for answers whose usage reports cached tokens."""
    later = mask & succeeded(records) & (np.asarray(records.turn) > 0) & (np.asarray(records.cached_tokens) != UNKNOWN)
    cached, inputs = (total_tokens(column, later) for column in (records.cached_tokens, records.input_tokens))
    return cached / inputs if cached is not None and inputs else None


# The certificate of a replay ------------------------------------------------------------------------------------------


@quantity(unit="share", kind="validity", label="Recorded prefix hits")
def recorded_prefix_hit_rate(certificate: ReplayProof) -> float | None:
    """share of the sent turns' input that an infinite prefix cache would hold, by the file's blocks or messages; null
    unless the workload replays recorded prompts, and for live answers. The cache has the engine's block size, else 16
    tokens.
    """
    hits = certificate.hits
    return hits and hits.recorded / max(1, hits.recorded_tokens)


@quantity(unit="share", kind="validity", label="Prefix hits as sent")
def sent_prefix_hit_rate(certificate: ReplayProof) -> float | None:
    """share of the sent turns' input that an infinite prefix cache would hold, by the prompts as sent; null for live
    answers, which only the engine's own tokens could tell.
    """
    hits = certificate.hits
    return hits and hits.sent / max(1, hits.sent_tokens)


@quantity(unit="share", kind="validity", label="Prefix hits of later turns as sent")
def later_turn_sent_hit_rate(certificate: ReplayProof) -> float | None:
    """share of the input of later turns that such a cache would have: the most that later_turn_cached_share can be."""
    return certificate.hits and certificate.hits.later


@quantity(unit="share", kind="validity", better="lower", label="Misplaced prefixes")
def replay_hit_error(certificate: ReplayProof) -> float | None:
    """Σ over turns of |tokens in an infinite prefix cache: as sent − as recorded| / input tokens as recorded."""
    hits = certificate.hits
    return hits and hits.misplaced / max(1, hits.recorded_tokens)


@quantity(unit="share", kind="validity", label="Prefix hits above the ideal")
def cache_hit_difference(
    sent_prefix_hit_rate: float | None, cached_share: float | None, prefix_hit_rate: float | None
) -> float | None:
    """cached_share (prefix_hit_rate if no usage reports the cached tokens) − sent_prefix_hit_rate. Negative: the
    engine's cache held less than an infinite cache. Positive: it had seen prompts before. null if no hits are counted.
    """
    counted = prefix_hit_rate if cached_share is None else cached_share
    return None if counted is None or sent_prefix_hit_rate is None else counted - sent_prefix_hit_rate


@quantity(unit="share", kind="validity", better="lower", label="Missed prefix hits")
def missed_prefix_hits(certificate: ReplayProof, cache_hit_difference: float | None) -> float | None:
    """−cache_hit_difference, at least 0; null unless prompts are token ids for one engine whose cache has room for all
    of them and their answers.
    """
    if cache_hit_difference is None or certificate.hits is None or not certificate.hits.fits:
        return None
    return max(0.0, -cache_hit_difference)


@quantity(unit="share", kind="validity", better="higher", label="Exact lengths")
def replay_exact_lengths(certificate: ReplayProof) -> float | None:
    """share of the answered turns whose prompt and answer have exactly the recorded tokens; with live answers, whose
    answer has. Of messages in a template, the engine must count at least one token for each word that a turn adds.
    """
    return certificate.exact_lengths


@quantity(unit="share", kind="validity", better="higher", label="Exact turns")
def replay_exact_turns(certificate: ReplayProof) -> float | None:
    """share of the sent turns that equal the recorded turns in their blocks or words, parent and gap."""
    return certificate.exact_turns


@quantity(unit="", kind="validity", type=str, label="Not certified")
def replay_unchecked(certificate: ReplayProof, cached_share: float | None, prefix_hit_rate: float | None) -> str | None:
    """what the certificate cannot check, and why; null if it checks everything."""
    if certificate.hits is None:
        return "prefix hits and prompts' lengths: prompts contain the engine's own answers"
    return "the engine's hits: it counts none" if cached_share is None and prefix_hit_rate is None else None


@quantity(unit="s", kind="validity", label="Earliest turn")
def earliest_turn(certificate: ReplayProof) -> float | None:
    """smallest sent − (end of the parent's answer + recorded gap) of any later turn: negative if a turn was early."""
    return certificate.earliest


@quantity(unit="s", kind="validity", better="lower", label="Schedule error")
def replay_schedule_error(certificate: ReplayProof) -> float | None:
    """largest difference between when a turn was due and when it should have been. With `load=recorded` a session
    should be due at its recorded time; a later turn always at the end of its parent's answer plus its gap.
    """
    return certificate.schedule_error


@quantity(unit="turns", kind="validity", type=int, better="lower", label="Truncated turns")
def truncated_turns(certificate: ReplayProof) -> int | None:
    """turns of a replay sent without the oldest part of their history, to fit the context; null unless
    `workload.truncate` is set. replay_exact_lengths and replay_exact_turns leave them out.
    """
    return certificate.truncated


@quantity(unit="sessions", kind="validity", type=int, label="Sessions not begun")
def sessions_not_begun(certificate: ReplayProof, records: Records, mask: Mask) -> int:
    """replayed sessions of which no turn was due."""
    return max(0, certificate.sessions - np.unique(np.asarray(records.session)[mask]).size)
