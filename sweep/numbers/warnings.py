"""Warnings about results, as data: their definition, and the checks that need only the row of one trial.

A check is a function with a docstring, registered in a list; its name is the warning's code. Checks that compare trials
or points are in `analysis.warnings`.
"""

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from sweep.base.wording import count
from sweep.numbers.quantities.answers import MERGED
from sweep.numbers.quantities.latency import MOSTLY
from sweep.numbers.quantities.load import GROWING
from sweep.numbers.quantity import BUFFERED, columns
from sweep.numbers.steady import LIFETIMES

WHAT_TO_DO: Mapping[str, str] = yaml.safe_load(Path(__file__).with_name("remedies.yaml").read_text("utf-8"))
REQUESTS_FOR_P99 = 100  # with fewer requests, the p99 is nearly the largest value
BUSY_CLIENT = 0.7  # share of a core
LOW_AGREEMENT = 0.9  # share of the reference's greedy tokens
LOW_QUALITY = 0.98  # share of the reference's likelihood
SHARED_EVENTS = 0.01  # share of the events above which they affect the p99 of the gaps
MISCOUNT = 0.1  # relative difference between the server's token count and the model's tokenizer
HIDDEN = 0.1  # of the output tokens
LEAST_DEVIATION = 0.001  # of the requested tokens: less is rounding
CACHED = 0.05  # of the input: the single token that begins all prompts is less
REPLAY = 0.005  # of the input
TIME_ROUNDING = 1e-5  # s: stamps are in ns, and their differences in floats
LATE_GATEWAY = 0.005  # s
FOREIGN_CPU = 0.1  # share of the engine's cores
LIMITED = 0.01  # share of the time
TOO_SHORT = re.compile("shorter than|fewer than|turned over once|no steady state detected")  # reasons for no window
LENGTH_MARGIN = 1.5  # suggested length of a trial, as a multiple of the shortest that may have a steady state
LOW_RATE = 0.95  # share of the offered rate
ODD = 0.01  # share of the answers
PADDED = 5.0  # multiple of the gap between later arrivals
_LATENCIES = {
    name: column for name, column in columns().items() if column.quantity.kind == "latency" and not column.steady
}
LATENCIES = tuple(_LATENCIES)
STEADY_COLUMNS = tuple(name for name, column in columns().items() if column.steady)
STEADY_LATENCIES = tuple(name for name in STEADY_COLUMNS if columns()[name].quantity.kind == "latency")
STEADY_DIFFERS = 0.1  # relative difference of a quantile over the whole run
_PAIRED = tuple(  # the quantiles over the whole run that the steady state also has
    name
    for name, column in _LATENCIES.items()
    if column.quantity.name in ("ttft", "tpot", "e2el") and column.name not in ("mean", "max")
)
STEADY_P99 = tuple(name for name in STEADY_LATENCIES if columns()[name].name == "p99")
P99 = tuple(name for name, column in _LATENCIES.items() if column.name == "p99")
TTFT_COLUMNS = tuple(name for name, column in _LATENCIES.items() if column.quantity.name == "ttft")
E2EL = tuple(name for name, column in _LATENCIES.items() if column.quantity.name == "e2el")
STREAMED = tuple(name for name, column in _LATENCIES.items() if column.quantity.spaced)
TOKEN_COLUMNS = ("output_tokens", "output_throughput", "total_throughput", "cost_per_million_tokens", "tpot_e2e_mean")
AS_OFFERED = ("output_throughput", "total_throughput", "request_throughput", "cost_per_million_tokens")
ARRIVALS = tuple(name for name, column in _LATENCIES.items() if column.quantity.name in ("ttft", "itl"))


class Severity(StrEnum):
    """The severity of a warning, the most serious first."""

    SEVERE = "severe"  # the value does not mean what its name says: do not compare it
    WARNING = "warning"  # the value is less certain, or holds under a condition
    INFO = "info"  # worth knowing when the value is quoted


@dataclass(frozen=True)
class WarningKind:
    """The properties that all warnings with one code share."""

    code: str
    severity: Severity
    meaning: str
    remedy: str
    quantities: tuple[str, ...]  # the affected columns; empty: all
    lowest_is_worst: bool

    def concerns(self, columns: Collection[str]) -> bool:
        """Return whether the warning concerns any of these columns."""
        return not self.quantities or not {*self.quantities}.isdisjoint(columns)


@dataclass(frozen=True)
class ResultWarning:
    """A reason not to take a result at face value. If it names no trials or points, it concerns the whole run."""

    kind: WarningKind
    figure: float  # the number that triggered it
    message: str  # what happened, with the number
    trials: tuple[str, ...] = ()  # their ids
    points: tuple[int, ...] = ()  # their positions in the summary

    @property
    def code(self) -> str:
        return self.kind.code


class Evidence(NamedTuple):
    """The number that a check found, a message that quotes it, and the trials or points concerned."""

    figure: float
    message: str
    trials: tuple[str, ...] = ()
    points: tuple[int, ...] = ()


F = TypeVar("F", bound=Callable[..., Any])


class Check(NamedTuple):
    kind: WarningKind
    columns: tuple[str, ...]  # the function's parameters
    required: tuple[str, ...]  # the parameters without a default
    function: Callable[..., Any]


def register(
    checks: list[Check],
    severity: Severity,
    remedy: str | None,
    quantities: tuple[str, ...] = (),
    lowest_is_worst: bool = False,
    columns: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Return a decorator that adds a check to a list; its name is the code, its docstring the meaning.

    The function's parameters are the columns that it needs, unless `columns` lists them (these may be null). Without
    `remedy`, the text in WHAT_TO_DO for its code is used.
    """

    def add(function: F) -> F:
        code = function.__name__.replace("_", "-")
        kind = WarningKind(
            code, severity, inspect.getdoc(function) or "", remedy or WHAT_TO_DO[code], quantities, lowest_is_worst
        )
        parameters = {} if columns else inspect.signature(function).parameters
        required = tuple(name for name in parameters if parameters[name].default is inspect.Parameter.empty)
        checks.append(Check(kind, columns or tuple(parameters), required, function))
        return function

    return add


# Checks of one trial -------------------------------------------------------------------------------------------------
# Their parameters are columns of the row; a check is skipped if one without a default is null.

TRIAL_CHECKS: list[Check] = []
_severe, _warning, _info = (partial(register, TRIAL_CHECKS, severity, None) for severity in Severity)


def trial_warnings(row: Mapping[str, Any], checks: Sequence[Check] = TRIAL_CHECKS) -> list[ResultWarning]:
    """Return the warnings about one trial; an empty list for a trial without a result (see its outcome)."""
    warnings: list[ResultWarning] = []
    for check in checks if row["outcome"] == "ok" else ():
        if any(row.get(name) is None for name in check.required):
            continue
        evidence = check.function(*(row.get(name) for name in check.columns))
        if evidence is not None:
            warnings.append(ResultWarning(check.kind, evidence.figure, evidence.message, trials=(row["trial_id"],)))
    return warnings


def warning_codes(row: Mapping[str, Any]) -> list[str]:
    """Return the column `warnings` of a trials row."""
    return [warning.code for warning in trial_warnings(row)]


def _share(part: float, total: float) -> float:
    return part / total if total else math.nan  # NaN is neither above nor below any limit


@_severe(lowest_is_worst=True)
def low_agreement(agreement: float, coarser_format: str | None = None) -> Evidence | None:
    """Fewer than 90% of the greedy tokens agree with the reference, and no coarser format explains it."""
    low = agreement < LOW_AGREEMENT and coarser_format is None
    return Evidence(agreement, f"agreement with the reference is {agreement:.0%}") if low else None


@_warning(lowest_is_worst=True)
def low_agreement_of_coarser_format(agreement: float, coarser_format: str) -> Evidence | None:
    """Under 90% of the greedy tokens agree with the reference, in a format declared coarser than the model's format."""
    message = f"agreement with the reference is {agreement:.0%} in {coarser_format}"
    return Evidence(agreement, message) if agreement < LOW_AGREEMENT else None


@_info(lowest_is_worst=True)
def inexact_agreement(agreement: float) -> Evidence | None:
    """Some greedy tokens, at most 10%, differ from the reference's tokens."""
    inexact = LOW_AGREEMENT <= agreement < 1
    return Evidence(agreement, f"agreement with the reference is {agreement:.1%}") if inexact else None


@_warning(("quality",), lowest_is_worst=True)
def low_quality(quality: float, quality_high: float) -> Evidence | None:
    """The likelihood per token of bundled text is below 98% of the reference likelihood, by more than its interval."""
    return Evidence(quality, f"quality is {quality:.1%} of the reference's") if quality_high < LOW_QUALITY else None


@_warning(LATENCIES)
def failed_requests(num_failed: int, num_requests: int, client_sent: int, client_offered: int) -> Evidence | None:
    """Some requests failed, too few to make the trial invalid."""
    share = _share(num_failed - (client_offered - client_sent), num_requests)  # without requests that were never sent
    return Evidence(share, f"{share:.1%} of requests failed") if share > 0 else None


@_warning()
def earlier_attempts(earlier_attempts: int, earlier_failed: int, earlier_reasons: str) -> Evidence | None:
    """Too many requests failed in earlier attempts at the endpoint; the point's failures include them."""
    attempts = "an earlier attempt" if earlier_attempts == 1 else f"{earlier_attempts} earlier attempts"
    message = f"{earlier_failed:,} requests failed in {attempts}: {earlier_reasons}"
    return Evidence(earlier_attempts, message) if earlier_attempts else None


@_warning(LATENCIES)
def unsent_requests(client_sent: int, client_offered: int) -> Evidence | None:
    """Requests that were due were not sent: the load's duration was over, or the turn before them failed."""
    share = 1 - _share(client_sent, client_offered)
    return Evidence(share, f"{share:.0%} of the requests that were due were never sent") if share > 0 else None


@_warning(LATENCIES, lowest_is_worst=True)
def rate_not_reached(realised_rate: float, offered_rate: float) -> Evidence | None:
    """Requests were sent at less than 95% of the requested rate."""
    share = _share(realised_rate, offered_rate)
    return Evidence(share, f"requests were sent at {share:.0%} of the requested rate") if share < LOW_RATE else None


@_severe((*TTFT_COLUMNS, *E2EL, "goodput", "goodput_share"))
def growing_queue(queue_growth: float) -> Evidence | None:
    """The requests in flight and e2el grow over the whole trial of an open loop: the load is above capacity."""
    message = f"the queue grew until the last request (score {queue_growth:.1f}; the limit is {GROWING:g})"
    return Evidence(queue_growth, message) if queue_growth >= GROWING else None


@_warning(lowest_is_worst=True)
def caches_not_reset(caches_reset: bool) -> Evidence | None:
    """The engine's caches could not be reset before the trial, so they may hold earlier prompts."""
    return None if caches_reset else Evidence(0, "the engine's caches were not reset before the trial")


@_warning()
def shared_prefixes(expected_prefix_hit_rate: float) -> Evidence | None:
    """The prompts have no unique prefixes, so parts of them may be in the engine's prompt cache."""
    share = expected_prefix_hit_rate
    return Evidence(share, f"prompts without unique prefixes; {share:.0%} of their text repeats earlier prompts")


@_warning()
def prompt_cache_hits(prefix_hit_rate: float, sessions_not_begun: int | None = None) -> Evidence | None:
    """More than 5% of the input was in the engine's prompt cache, and no recorded prompts are replayed."""
    share = prefix_hit_rate
    if share <= CACHED or sessions_not_begun is not None:  # a replay
        return None
    return Evidence(share, f"{share:.0%} of the input came from the engine's prompt cache")


@_warning()
def cached_input(cached_share: float, sessions_not_begun: int | None = None) -> Evidence | None:
    """The answers' usage reports more than 5% of the input as cached, and no recorded prompts are replayed."""
    share = cached_share
    if share <= CACHED or sessions_not_begun is not None:  # a replay
        return None
    return Evidence(share, f"{share:.0%} of the input was cached, according to the answers' usage")


@_severe()
def other_prefixes(replay_hit_error: float) -> Evidence | None:
    """A replay's prompts share different prefixes than the recorded prompts, for more than 0.5% of the input."""
    share = replay_hit_error
    message = f"{share:.1%} of the input differs from the recorded prompts in its shared prefixes"
    return Evidence(share, message) if share > REPLAY else None


@_warning()
def unrecorded_hits(cache_hit_difference: float) -> Evidence | None:
    """The engine's cache supplied more of a replay's input than an infinite cache could: it had seen prompts before."""
    share = cache_hit_difference
    message = f"the engine's cache supplied {share:.1%} more of the input than an infinite cache could"
    return Evidence(share, message) if share > REPLAY else None


@_severe(lowest_is_worst=True)
def other_recorded_lengths(replay_exact_lengths: float) -> Evidence | None:
    """Prompts or answers of a replay do not have the recorded tokens."""
    share = 1 - replay_exact_lengths
    return Evidence(replay_exact_lengths, f"{share:.1%} of the turns differ in length") if share else None


@_severe(lowest_is_worst=True)
def other_turns(replay_exact_turns: float) -> Evidence | None:
    """Turns of a replay differ from the recorded turns in the blocks of their prompts, their parents or their gaps."""
    share = 1 - replay_exact_turns
    return Evidence(replay_exact_turns, f"{share:.1%} of the turns differ from the recorded turns") if share else None


@_severe()
def other_schedule(replay_schedule_error: float) -> Evidence | None:
    """Turns of a replay were due at other times than recorded."""
    error = replay_schedule_error
    message = f"a turn was due {error:.3g} s from its recorded time"
    return Evidence(error, message) if error > TIME_ROUNDING else None


@_severe(lowest_is_worst=True)
def early_turns(earliest_turn: float) -> Evidence | None:
    """A turn was sent too early: before the end of its parent's answer plus its gap."""
    early = -earliest_turn
    return Evidence(earliest_turn, f"a turn was sent {early * 1e3:.2f} ms early") if early > TIME_ROUNDING else None


@_warning()
def cut_sessions(sessions_cut: int, sessions_not_begun: int | None = None) -> Evidence | None:
    """Sessions were cut short or never began, so later turns, with the longest histories, are missing."""
    cut = sessions_cut + (sessions_not_begun or 0)
    return Evidence(cut, f"{count(cut, 'session')} cut short or never begun") if cut else None


@_warning()
def truncated_history(truncated_turns: int) -> Evidence | None:
    """Turns of a replay were sent without the oldest part of their history, which does not fit the context."""
    number = truncated_turns
    return Evidence(number, f"{count(number, 'turn')} sent without their oldest part") if number else None


@_warning()
def startup_transient(startup_transient: bool, startup_share: float) -> Evidence | None:
    """The time before the steady state is a large part of the trial."""
    return Evidence(startup_share, f"the start-up took {startup_share:.0%} of the trial") if startup_transient else None


@_warning(_PAIRED, columns=(*_PAIRED, *(f"steady_{name}" for name in _PAIRED)))
def steady_state_differs(*figures: float | None) -> Evidence | None:
    """A quantile of TTFT, TPOT or E2EL over the whole run differs by more than 10% from the steady state."""
    pairs = zip(_PAIRED, figures[: len(_PAIRED)], figures[len(_PAIRED) :], strict=True)
    share, worst = max((off_steady(whole, steady), name) for name, whole, steady in pairs)
    title = f"{_LATENCIES[worst].quantity.label} {_LATENCIES[worst].name}"
    message = f"{title} over the whole run differs by {share:.0%} from the steady state"
    return Evidence(share, message) if share else None


def off_steady(whole: float | None, steady: float | None) -> float:
    """Return the relative difference between whole run and steady state; 0 for up to 10%."""
    share = abs(whole / steady - 1) if whole and steady else 0.0
    return share if share > STEADY_DIFFERS else 0.0


@_warning(P99, lowest_is_worst=True)
def few_requests(num_requests: int) -> Evidence | None:
    """The p99 is based on fewer than 100 requests."""
    few = num_requests < REQUESTS_FOR_P99
    return Evidence(num_requests, f"p99 over only {num_requests:,} requests") if few else None


@_warning(STEADY_P99, lowest_is_worst=True)
def few_steady_requests(steady_num_requests: int) -> Evidence | None:
    """Fewer than 100 requests were sent in the steady state."""
    few = steady_num_requests < REQUESTS_FOR_P99
    return Evidence(steady_num_requests, f"only {steady_num_requests:,} requests in the steady state") if few else None


@_warning(STEADY_LATENCIES)
def drift_within_steady_state(steady_drift: float) -> Evidence | None:
    """Latency differs between the two halves of the steady state."""
    return Evidence(steady_drift, f"latency changed {steady_drift:.2f}-fold within the steady state")


@_warning(STEADY_COLUMNS)
def drift_after_steady_state(steady_drift_after: float) -> Evidence | None:
    """Requests sent after the steady state were slower than requests during it."""
    return Evidence(steady_drift_after, f"latency grew {steady_drift_after:.2f}-fold after the steady state")


@_warning((*LATENCIES, "output_throughput", "total_throughput", "request_throughput"))
def drift_over_trial(drift: float) -> Evidence | None:
    """The latency of later requests differs by 20% or more from earlier requests."""
    return Evidence(abs(math.log(drift)), f"latency changed {drift:.2f}-fold during the trial")


@_info()
def no_steady_state(
    steady_method: str, num_requests: int, duration: float, e2el_p50: float, e2el_p90: float, e2el_max: float
) -> Evidence | None:
    """No steady state was found, so there are no steady_* values."""
    missing, _, reason = steady_method.partition(": ")
    if missing != "none":
        return None
    settled = max(LIFETIMES * e2el_p90, e2el_max)
    needed = math.ceil(num_requests * LENGTH_MARGIN * (settled + 2 * e2el_p50) / duration) if duration else 0
    longer = f"; {max(needed, 2 * num_requests):,} requests may show one" if TOO_SHORT.search(reason) else ""
    return Evidence(num_requests, f"no steady state: {reason}{longer}")


@_warning(ARRIVALS)
def client_timestamps(client_stamp_source: str, client_loop_lag_p99: float) -> Evidence | None:
    """The client, not the kernel, took the timestamps of some arrivals."""
    lag, by_client = client_loop_lag_p99, client_stamp_source in ("user", "mixed")
    return Evidence(lag, f"the client stamped arrivals, up to {lag * 1e3:.1f} ms late (p99)") if by_client else None


@_warning(("itl_p99",))
def shared_timestamps(buffered_share: float) -> Evidence | None:
    """Between 1 and 10% of the events arrived together with another event of the same answer."""
    shared = SHARED_EVENTS < buffered_share <= BUFFERED
    message = f"{buffered_share:.1%} of events arrived together with another"
    return Evidence(buffered_share, message) if shared else None


@_severe()
def odd_answers(odd_answer_share: float) -> Evidence | None:
    """At least 1% of the answers are unlike the others, or do not have the requested length."""
    odd = odd_answer_share >= ODD
    return Evidence(odd_answer_share, f"{odd_answer_share:.1%} of the answers are unlike the others") if odd else None


@_severe()
def other_model(other_model_share: float, served_model: str) -> Evidence | None:
    """Answers name a different model from the requested model, or several models."""
    message = f"{other_model_share:.0%} of the answers name a different model from the requested model ({served_model})"
    return Evidence(other_model_share, message) if other_model_share > 0 else None


@_severe(TTFT_COLUMNS)
def padded_first_token(first_gap_ratio: float) -> Evidence | None:
    """The first arrival is early, but the gap to the second is over five times the gaps between later arrivals."""
    message = f"the gap before the second arrival is {first_gap_ratio:.0f} times the later gaps"
    return Evidence(first_gap_ratio, message) if first_gap_ratio > PADDED else None


@_info(TTFT_COLUMNS)
def closed_connections(closed_share: float) -> Evidence | None:
    """Most connections were closed after their answer, so each request had to set up a new connection."""
    closed = closed_share > MOSTLY
    return (
        Evidence(closed_share, f"connections were closed after {closed_share:.0%} of the answers") if closed else None
    )


@_warning(("total_throughput", *TTFT_COLUMNS))
def prompt_tokens_differ(tokens_per_word: float, prompts_counted: bool) -> Evidence | None:
    """The server's count of the input tokens does not fit the text that was sent, or its length."""
    message = f"{tokens_per_word:.2f} input tokens per word of the prompts"
    return None if prompts_counted else Evidence(abs(math.log(max(tokens_per_word, 1e-9))), message)


@_info((*TOKEN_COLUMNS, *STREAMED))
def unverified_tokens(
    token_source: str, tokens_per_event: float, character_throughput: float, recounted_share: float | None = None
) -> Evidence | None:
    """Only the server counted its output tokens; since there is no tokenizer, its count is unverified."""
    checked = recounted_share is not None or {"text", "events"} & {*token_source.split(", ")}
    message = f"unverified tokens, {tokens_per_event:.2f} per event; {character_throughput:,.0f} characters/s"
    return None if checked else Evidence(tokens_per_event, message)


@_severe((*STREAMED, *ARRIVALS, "goodput"))
def buffered_stream(buffered_share: float) -> Evidence | None:
    """More than 10% of the events arrived together with another event of the answer, or the answer was held back."""
    buffered = buffered_share > BUFFERED
    message = f"{buffered_share:.0%} of events arrived together with another"
    return Evidence(buffered_share, message) if buffered else None


@_severe((*TOKEN_COLUMNS, *STREAMED))
def uncounted_tokens(token_source: str) -> Evidence | None:
    """The server did not count its output tokens, and neither could the model's tokenizer."""
    return Evidence(1, "the output tokens were not counted") if "events" in token_source.split(", ") else None


@_warning(TOKEN_COLUMNS)
def own_token_count(token_source: str) -> Evidence | None:
    """The server did not count its output tokens: the model's tokenizer counted them in the text."""
    by_tokenizer = "text" in token_source.split(", ")
    return Evidence(1, "output tokens counted in the text by the model's tokenizer") if by_tokenizer else None


@_warning((*TOKEN_COLUMNS, *STREAMED))
def token_counts_differ(recounted_share: float, token_source: str) -> Evidence | None:
    """The server's count of the output tokens differs by more than 10% from the count by the model's tokenizer."""
    if token_source == "ids" or abs(recounted_share - 1) <= MISCOUNT:
        return None
    share = f"{recounted_share:.0%} of the tokens that the server counted are in the text"
    return Evidence(abs(math.log(recounted_share)) if recounted_share > 0 else math.inf, share)


@_warning(ARRIVALS)
def unstamped_tokens(tokens_per_event: float, token_source: str) -> Evidence | None:
    """There are over 5% more tokens than events, and no event reports how many tokens it contains."""
    silent = "final usage" in token_source.split(", ") and tokens_per_event > MERGED
    return Evidence(tokens_per_event, f"{tokens_per_event:.2f} tokens per event") if silent else None


@_warning(TOKEN_COLUMNS)
def hidden_tokens(hidden_share: float) -> Evidence | None:
    """More than 10% of the output tokens were never sent: hidden reasoning, counted by the server."""
    hidden = hidden_share > HIDDEN
    return Evidence(hidden_share, f"{hidden_share:.0%} of the output tokens were never sent") if hidden else None


@_warning(("duration", "request_throughput", *E2EL))
def other_lengths(output_length_ratio: float) -> Evidence | None:
    """Answers are shorter or longer than requested: the engine ignores ignore_eos, or does not support it."""
    other = abs(output_length_ratio - 1)
    return (
        Evidence(other, f"answers contain {output_length_ratio:.1%} of the requested tokens")
        if other > LEAST_DEVIATION
        else None
    )


@_warning()
def filtered_answers(finish_content_filter_share: float) -> Evidence | None:
    """A content filter ended some answers."""
    share = finish_content_filter_share
    return Evidence(share, f"a content filter ended {share:.1%} of the answers") if share > 0 else None


@_info(AS_OFFERED)
def throughput_as_offered(below_saturation: bool, offered_rate: float) -> Evidence | None:
    """An open loop below saturation: the load, not the engine, sets its throughput and cost."""
    return Evidence(offered_rate, f"as offered, {offered_rate:.3g} requests/s") if below_saturation else None


@_info()
def busy_client(client_cpu: float) -> Evidence | None:
    """A process of the client used more than 70% of a core."""
    return Evidence(client_cpu, f"the client used {client_cpu:.0%} of a core") if client_cpu > BUSY_CLIENT else None


@_warning()
def foreign_cpu(foreign_cpu_share: float, foreign_processes: str) -> Evidence | None:
    """Other processes used more than 10% of the engine's cores."""
    if foreign_cpu_share <= FOREIGN_CPU:
        return None
    by = f": {foreign_processes}" if foreign_processes else ", all of which have ended"
    return Evidence(foreign_cpu_share, f"other processes used {foreign_cpu_share:.0%} of the engine's cores{by}")


@_warning()
def foreign_gpu(foreign_gpu_processes: int, foreign_processes: str) -> Evidence | None:
    """Other processes used one of the engine's GPUs."""
    message = f"other processes on a GPU of the engine: {foreign_gpu_processes} ({foreign_processes})"
    return Evidence(foreign_gpu_processes, message) if foreign_gpu_processes else None


@_warning()
def gpu_thermal_limit(gpu_thermal_share: float) -> Evidence | None:
    """A GPU's clock was lowered for more than 1% of the time because of its temperature."""
    message = f"temperature lowered the GPU's clock for {gpu_thermal_share:.0%} of the time"
    return Evidence(gpu_thermal_share, message) if gpu_thermal_share > LIMITED else None


@_info()
def gpu_power_limit(gpu_power_share: float) -> Evidence | None:
    """A GPU's clock was lowered for more than 1% of the time because of its power limit."""
    message = f"the power limit lowered the GPU's clock for {gpu_power_share:.0%} of the time"
    return Evidence(gpu_power_share, message) if gpu_power_share > LIMITED else None


@_warning()
def cpu_throttled(cpu_throttled_share: float) -> Evidence | None:
    """The CPU quota was used up in more than 1% of its periods."""
    message = f"the CPU quota was used up in {cpu_throttled_share:.0%} of its periods"
    return Evidence(cpu_throttled_share, message) if cpu_throttled_share > LIMITED else None


@_warning()
def cpu_thermal_limit(cpu_thermal_limits: int) -> Evidence | None:
    """Cores of the engine were slowed down because of their temperature."""
    message = f"temperature slowed down the engine's cores {count(cpu_thermal_limits, 'time')}"
    return Evidence(cpu_thermal_limits, message) if cpu_thermal_limits else None


@_warning()
def replayed(engine_facts: str) -> Evidence | None:
    """The trial was not measured in this run: its row comes from a table of measured rows (cluster.replay)."""
    return Evidence(1, "replayed from a table, not measured here") if '"replayed": ' in engine_facts else None


@_info()
def uncommitted_code(commit: str) -> Evidence | None:
    """This project's code had uncommitted changes."""
    return Evidence(1, f"measured with uncommitted code ({commit})") if commit.endswith("+") else None


@_warning(ARRIVALS)
def late_gateway(gateway_loop_lag_p99: float) -> Evidence | None:
    """The event loop of the gateway in front of the engine was more than 5 ms late (p99)."""
    lag = gateway_loop_lag_p99
    return Evidence(lag, f"the gateway's loop was {lag * 1e3:.1f} ms late (p99)") if lag > LATE_GATEWAY else None


@_severe()
def false_hits(false_hit_rate: float) -> Evidence | None:
    """The gateway's cache answered prompts with the answers to prompts with a different meaning."""
    share = false_hit_rate
    return Evidence(share, f"{share:.1%} of the requests got the answer to a different question") if share > 0 else None
