"""The verdict on a trial, based on its engine, its time limits, its requests and the measuring client."""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sweep.base.exits import Cause, Exit
from sweep.base.records import Outcome, Records
from sweep.client.measurement import STALLED, ClientReport, Measurement
from sweep.disk.row import Verdict
from sweep.node.work import RunningEngine, Work
from sweep.numbers.chunks import Floats, Mask, as_floats, blocks, token_times
from sweep.numbers.quantile import quantile
from sweep.numbers.quantities.answers import LENGTH_TOLERANCE, has_other_length
from sweep.numbers.quantities.latency import lag, service_ttft, turnaround, turnaround_share
from sweep.numbers.selection import measured, succeeded, total_tokens, was_sent
from sweep.plan.plan import Trial

TIMED_OUT = "trial_timeout"  # the reason to stop when a trial reaches its limit
OVERLOADED = "the load is too high"  # beginning of the reason to stop when too many requests are in flight
ALL_FAILED = "no request succeeded"  # likewise, when so many have failed that the trial cannot be a result
STEP_BACK = 1e-3  # s by which a chunk's stamp may precede the previous stamp, since kernel stamps are converted
BUSY_ELSEWHERE = 0.5  # share of a core: a late client that used less had to wait for other processes
LATE = 0.005  # s of lag that do not matter
LARGEST_TURNAROUND_SHARE = 0.01  # share of the users' time, for loads in which users wait for the client
LARGEST_CPU_SHARE = 0.9  # share of a core; above it a client process is the bottleneck
BURST_COST = 50e-6  # s of lag allowed per request due at the same time, since they are sent one by one
OTHER_LENGTH = (
    "with ignore_eos: set backend.ignores_eos=false if the server does not support it, "
    "or workload.ignore_eos=false for answers of any length"
)
SHARED_STAMPS = 0.01  # share of chunks read together by a late loop above which gaps are falsified
BURST = 0.01  # s within which requests count as due at the same time
EXIT_WITHIN = 5.0  # s after a trial within which an engine that no longer serves should exit
SERVERS_OWN = ("status", "engine")  # kinds of errors whose detail comes from the server
NO_SERVICE = ("connect:", "reset:", "closed:", "status: 5")  # prefixes of the errors that a dying engine causes
GONE = ("connect:", "reset:", "closed:", "status: 502", "status: 503", "status: 504")  # including a proxy's errors


def judge(work: Work, trial: Trial, running: RunningEngine, result: Measurement, logged: Mapping[Path, int]) -> Verdict:
    """Decide the outcome: check the engine's death, then a stall or time limit, the requests, and the client.

    `logged` is each engine's log position before the trial, so that earlier messages about memory are ignored.
    """
    requests = judge_requests(result.records, max_failed=work.settings.max_failed)
    if requests.outcome is not Outcome.OK and _share_without_service(result.records, NO_SERVICE):
        deadline = time.monotonic() + EXIT_WITHIN  # an engine may take longer to exit than its requests take to fail
        while running.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
    gateway, dead = running.gateway, running.dead()
    log = (dead or running.engine).log_tail()
    if gateway is not None and not gateway.alive():
        front = gateway.process
        died = f"the gateway died: {front.exit_reason()}"
        return Verdict(outcome=Outcome.ENGINE_CRASHED, reason=died, exit=front.exit(), log_tail=front.log_tail())
    if dead is not None:
        crashed = Outcome.OOM_RUN if dead.ran_out_of_memory(logged[dead.log]) else Outcome.ENGINE_CRASHED
        return Verdict(outcome=crashed, reason=dead.exit_reason(), exit=dead.exit(), log_tail=log)
    if (early := result.report.stopped or "") == STALLED:
        silent = f"no token of any request for stall_timeout={work.settings.stall_timeout:g} s"
        return Verdict(outcome=Outcome.HUNG, reason=silent, exit=Exit(Cause.STALLED), log_tail=log)
    if early == TIMED_OUT:
        late = f"not finished within trial_timeout={work.settings.trial_timeout:g} s"
        return Verdict(outcome=Outcome.HUNG, reason=late, exit=Exit(Cause.TRIAL_TIMEOUT), log_tail=log)
    if early.startswith(OVERLOADED):
        if reason := limited(result.report, result.records):
            return Verdict(outcome=Outcome.CLIENT_LIMITED, reason=reason)
        return Verdict(outcome=Outcome.CENSORED, reason=early)
    missing = trial.num_requests - result.records.phase.count("measured")
    if missing > 0 and trial.load.duration is None and not early.startswith(ALL_FAILED):
        # An incomplete trial is no result, even if all sent requests succeeded; only load.duration may cut it short.
        partial = Outcome.ENGINE_CRASHED if early else Outcome.INVALID
        unsent = f"{missing} of {trial.num_requests} requests were never sent; {early or 'the reason is unknown'}"
        return Verdict(outcome=partial, reason=unsent, exit=Exit(Cause.UNSENT), log_tail=log)
    if requests.outcome is not Outcome.OK:
        if running.ran_out_of_memory(logged):
            outcome = Outcome.OOM_RUN
        else:
            outcome = Outcome.HUNG if only_timeouts(result.records) else Outcome.INVALID
        exit, gone = requests.exit, _share_without_service(result.records, GONE) == 1
        if not work.deployment.backend.launches:
            exit = Exit(Cause.UNREACHABLE if gone else Cause.ENDPOINT)
        failed = "; ".join(filter(None, (requests.reason, early.partition("; ")[2])))
        return Verdict(outcome=outcome, reason=failed, exit=exit, log_tail=log)
    if has_fixed_length(work, trial) and (reason := other_length(result.records, work.settings.max_failed)):
        return Verdict(outcome=Outcome.INVALID, reason=reason, exit=Exit(Cause.OTHER_LENGTH))
    steps = result.report.clock_steps
    if steps and result.report.stamp_source in ("kernel", "mixed"):  # the client's own stamps are monotonic
        stepped = f"the host's clock was set ({steps} times): timestamps within a second before may be off by as much"
        return Verdict(outcome=Outcome.INVALID, reason=stepped, exit=Exit(Cause.CLOCK))
    if reason := limited(result.report, result.records):
        return Verdict(outcome=Outcome.CLIENT_LIMITED, reason=reason)
    return Verdict(outcome=Outcome.OK)


def _ended(records: Records) -> Mask:
    """Return the measured requests whose end is the engine's: they were sent, and not cut off since all others failed.

    Requests that were never sent are in the quantiles.
    """
    cut_off = [(error or "").startswith(f"cancelled: {ALL_FAILED}") for error in records.error]
    return measured(records) & was_sent(records) & ~np.asarray(cut_off, np.bool_)


def _share_without_service(records: Records, errors: tuple[str, ...]) -> float:
    """Return the share of measured requests that were sent and failed with an error that begins with one of these."""
    mask = _ended(records)
    failed = (error for error, chosen in zip(records.error, mask, strict=True) if chosen and error is not None)
    return sum(error.startswith(errors) for error in failed) / max(1, int(mask.sum()))


def has_fixed_length(work: Work, trial: Trial) -> bool:
    """Return whether answers must have exactly the requested length: end tokens are ignored, no gateway clips."""
    gateway = work.deployment.gateway
    clipped = gateway is not None and gateway.clip.output_tokens is not None
    return bool(work.deployment.backend.ignores_eos and trial.workload.ignore_eos and not clipped)


def judge_requests(records: Records, *, max_failed: float = 0.05) -> Verdict:
    """Return the verdict on a trial's requests, with its reason: `invalid` if too many failed, none returned a token,
    or time ran backwards. `max_failed` is the maximum share of measured requests that may fail. The reason includes the
    most common error.
    """
    mask = _ended(records)
    total = int(mask.sum())
    failed = Counter(error for error, chosen in zip(records.error, mask, strict=True) if chosen and error is not None)
    count = failed.total()
    if total == 0:
        return _invalid("no measured request was sent", Exit(Cause.NONE_SENT))
    if count == total:
        commonest, message = _commonest(failed)
        return _invalid(f"none of {total} requests completed; {commonest}", Exit(Cause.NONE_COMPLETED, words=message))
    if count / total > max_failed:
        commonest, message = _commonest(failed)
        share = f"{count / total:.1%}; allowed {max_failed:.1%}"
        reason = f"{count} of {total} requests failed ({share}); {commonest}"
        return _invalid(reason, Exit(Cause.MANY_FAILED, words=message))
    if np.all(np.isnan(service_ttft(records)[mask & succeeded(records)])):
        return _invalid(f"none of {total} requests returned a token", Exit(Cause.NO_TOKEN))
    back = (np.max(-np.diff(block.us)[block.inside()], initial=0) for block in blocks(records, mask))
    if (step := float(max(back, default=0)) / 1e6) > STEP_BACK:
        reason = f"receive stamps go back by {step:.6f} s: the host's clock was set during the trial"
        return _invalid(reason, Exit(Cause.CLOCK))
    return Verdict(outcome=Outcome.OK)


def _invalid(reason: str, exit: Exit) -> Verdict:
    return Verdict(outcome=Outcome.INVALID, reason=reason, exit=exit)


def other_length(records: Records, most: float) -> str | None:
    """Return how answers' lengths differ from the requested (ignore_eos), with the remedy; None if they agree.

    `most` is the maximum share of answers that may differ by more than the tolerance.
    """
    answered = measured(records) & succeeded(records)
    counts = records.streamed_tokens, records.asked_output_tokens
    tokens, asked_tokens = (total_tokens(column, answered) for column in counts)
    if tokens is None or asked_tokens is None:
        return None
    lengths, requested = (np.asarray(column, np.float64)[answered] for column in counts)
    share = float(has_other_length(lengths, requested).mean())
    mean = not_honoured(int(answered.sum()), tokens, asked_tokens)
    if mean or share <= most:
        return mean
    differing = f"{share:.0%} of the answers ({lengths.min():.0f} to {lengths.max():.0f} tokens)"
    return f"{differing} are over 10% longer or shorter than requested {OTHER_LENGTH}"


def not_honoured(answers: int, tokens: int, asked_tokens: int) -> str | None:
    """Return how token totals differ from the totals requested with ignore_eos, with the remedy; None if they agree."""
    if not asked_tokens or abs(tokens / asked_tokens - 1) <= LENGTH_TOLERANCE:
        return None
    means = f"answers have {tokens / answers:.1f} output tokens on average, not the {asked_tokens / answers:.1f}"
    return f"{means} requested {OTHER_LENGTH}"


def _commonest(errors: Counter[str]) -> tuple[str, str]:
    """Return the most common kind of error ("kind: detail" in a Record) with one example of it, and the server's
    message in that example.
    """
    kinds: Counter[str] = Counter()
    for error, count in errors.items():
        kinds[error.partition(":")[0]] += count
    kind, count = kinds.most_common(1)[0]
    example = next(error for error, _ in errors.most_common() if error.partition(":")[0] == kind)
    message = example if kind in SERVERS_OWN else kind
    return f"most common: {kind}, {count} times, e.g. {example!r}", message


def only_timeouts(records: Records) -> bool:
    """Return whether all measured requests timed out: the engine accepts connections but never answers."""
    mask = _ended(records)
    errors = [error for error, chosen in zip(records.error, mask, strict=True) if chosen]
    return bool(errors) and all(error is not None and error.startswith("timeout_") for error in errors)


def limited(report: ClientReport, records: Records) -> str | None:
    """Return why the client, not the engine, limited this trial, with the remedy; None if the client kept up.

    The client is the bottleneck if one of its processes used more than 90% of a core, or if it sent late
    (`_late_sends`). If the process takes the timestamps, an event loop later (p99) than the limit is a bottleneck too.
    If the kernel takes them, a late loop falsifies only gaps, by reading several chunks at once. Then the loop must be
    later (p99) than the median time between chunks and than 5 ms, with over 1% of chunks read together. (A punctual
    loop also reads bursts together.)
    """
    remedy = "use more client processes (client.processes), reserve a core for the client, or lower the load"
    if report.cpu > LARGEST_CPU_SHARE:
        return f"a client process used {report.cpu:.0%} of a core: {remedy}"
    first = service_ttft(records)
    mask = measured(records) & succeeded(records) & ~np.isnan(first)
    if not mask.any():
        return None
    allowed = max(LATE, 0.1 * float(np.median(first[mask])))
    if late := _late_sends(records, mask, allowed):
        if report.cpu < BUSY_ELSEWHERE:
            remedy = "another process kept the client's core busy: rerun when the machine is idle"
            if turnaround_share(records, mask) is not None:
                remedy += ", or request longer answers (workload.output_tokens)"
        return f"{late}: {remedy}"
    loop = report.loop_lag_p99
    shared = report.multi_event_reads > SHARED_STAMPS * len(records.chunk_us)
    if shared and loop > max(LATE, _chunks_apart(records, mask)):
        return (
            f"the client's loop was {loop * 1e3:.1f} ms late (p99), more than the time between chunks, and "
            f"{report.multi_event_reads} reads returned several chunks: {remedy}"
        )
    if report.stamp_source not in ("kernel", "engine") and report.loop_lag_p99 > allowed:
        return f"the client took the timestamps, and its loop was {loop * 1e3:.1f} ms late (p99): {remedy}"
    return None


def _late_sends(records: Records, mask: Mask, allowed: float) -> str | None:
    """Return how much late sending by the client changed the load; None if the delay was acceptable.

    In an open loop, `lag` (p99) may be `allowed` seconds: a tenth of the median `service_ttft`, or 5 ms. To this come
    50 µs for each request that was due at the same time and sent earlier. Without a schedule, `turnaround` delays the
    whole load instead of one request: it may be 1% of its users' time.
    """
    share = turnaround_share(records, mask)
    if share is not None:
        if share <= LARGEST_TURNAROUND_SHARE:
            return None
        mean = float(np.mean(turnaround(records)[mask]))
        return (
            f"the client took {mean * 1e3:.2f} ms (mean) from an answer to the next send, {share:.2%} of its users' "
            f"time (limit: {LARGEST_TURNAROUND_SHARE:.0%})"
        )
    lags = np.sort(lag(records)[mask] - BURST_COST * _left_before(records, mask))
    # With few requests the p99 is near the largest lag. One late request is an accident of the machine; two are a
    # pattern.
    late = min(quantile(lags, 0.99), float(lags[-2:][0]))
    if late <= allowed:
        return None
    return f"requests were sent {late * 1e3:.1f} ms late (p99; limit: {allowed * 1e3:.1f} ms)"


def _chunks_apart(records: Records, mask: Mask) -> float:
    """Return the median over requests of the mean time between chunks, in s; infinite if no request has two chunks."""
    first, last = token_times(records)
    gaps = np.diff(np.asarray(records.offsets)) - 1
    several = mask & (gaps > 0)
    return float(np.median((last - first)[several] / gaps[several])) if several.any() else np.inf


def _left_before(records: Records, mask: Mask) -> Floats:
    """Return, for each request, the number of requests due together with it and sent before it. Shape (chosen,)."""
    due, sent = np.floor(as_floats(records.released)[mask] / BURST), as_floats(records.sent)[mask]
    order = np.lexsort((sent, due))
    _, first, count = np.unique(due[order], return_index=True, return_counts=True)
    before = np.empty(due.size)
    before[order] = np.arange(due.size) - np.repeat(first, count)
    return before
