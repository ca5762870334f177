"""Warnings about results, as data: their definition, and the checks that need only the row of one trial.

warnings.yaml declares the warnings about one trial. Checks that compare trials or points are in `analysis.warnings`.
"""

import inspect
import math
import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sweep.base.config import Strict
from sweep.base.wording import count
from sweep.numbers.quantities.answers import MERGED
from sweep.numbers.quantities.latency import MOSTLY
from sweep.numbers.quantities.load import GROWING
from sweep.numbers.quantity import BUFFERED, columns
from sweep.numbers.steady import LIFETIMES

SHARED_EVENTS = 0.01  # share of the events above which they affect the p99 of the gaps
MISCOUNT = 0.1  # relative difference between the server's token count and the model's tokenizer
LEAST_DEVIATION = 0.001  # of the requested tokens: less is rounding
TIME_ROUNDING = 1e-5  # s: stamps are in ns, and their differences in floats
LATE_GATEWAY = 0.005  # s
FOREIGN_CPU = 0.1  # share of the engine's cores
TOO_SHORT = re.compile("shorter than|fewer than|turned over once|no steady state detected")  # reasons for no window
LENGTH_MARGIN = 1.5  # suggested length of a trial, as a multiple of the shortest that may have a steady state
LOW_RATE = 0.95  # share of the offered rate
_LATENCIES = {
    name: column for name, column in columns().items() if column.quantity.kind == "latency" and not column.steady
}
STEADY_DIFFERS = 0.1  # relative difference of a quantile over the whole run
_PAIRED = tuple(  # the quantiles over the whole run that the steady state also has
    name
    for name, column in _LATENCIES.items()
    if column.quantity.name in ("ttft", "tpot", "e2el") and column.name not in ("mean", "max")
)
TTFT_COLUMNS = tuple(name for name, column in _LATENCIES.items() if column.quantity.name == "ttft")
E2EL = tuple(name for name, column in _LATENCIES.items() if column.quantity.name == "e2el")
AS_OFFERED = ("output_throughput", "total_throughput", "request_throughput", "cost_per_million_tokens")
_STEADY = {name: column for name, column in columns().items() if column.steady}
STEADY_LATENCIES = tuple(name for name, column in _STEADY.items() if column.quantity.kind == "latency")
COLUMN_GROUPS = {  # of columns, by their name in warnings.yaml
    "latencies": tuple(_LATENCIES),
    "steady_columns": tuple(_STEADY),
    "steady_latencies": STEADY_LATENCIES,
    "steady_p99": tuple(name for name in STEADY_LATENCIES if _STEADY[name].name == "p99"),
    "paired": _PAIRED,
    "p99": tuple(name for name, column in _LATENCIES.items() if column.name == "p99"),
    "ttft": TTFT_COLUMNS,
    "e2el": E2EL,
    "streamed": tuple(name for name, column in _LATENCIES.items() if column.quantity.spaced),
    "token_columns": ("output_tokens", *AS_OFFERED[:2], "cost_per_million_tokens", "tpot_e2e_mean"),
    "as_offered": AS_OFFERED,
    "arrivals": tuple(name for name, column in _LATENCIES.items() if column.quantity.name in ("ttft", "itl")),
}


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


class Check(NamedTuple):
    kind: WarningKind
    columns: tuple[str, ...]  # the function's parameters
    required: tuple[str, ...]  # the parameters without a default
    function: Callable[..., Any]


# Checks of one trial -------------------------------------------------------------------------------------------------
# warnings.yaml declares them. One without a message there is a function, whose parameters are columns of the row.


class DeclaredWarning(Strict):
    """An entry of warnings.yaml. The bounds apply to `figure`, or to the column `bounded`."""

    severity: Severity
    meaning: str
    remedy: str
    quantities: tuple[str, ...] = ()
    lowest_is_worst: bool = False
    figure: str = ""
    bounded: str | None = None
    above: float = -math.inf
    at_least: float = -math.inf
    below: float = math.inf
    when: str | None = None
    without: tuple[str, ...] = ()
    message: str | None = None  # columns in braces are filled in

    def check(self, code: str, functions: Mapping[str, Any]) -> Check:
        """Return the check that the entry, or the function of its name, defines."""
        affected = [column for name in self.quantities for column in COLUMN_GROUPS.get(name, (name,))]
        kind = WarningKind(code, self.severity, self.meaning, self.remedy, tuple(affected), self.lowest_is_worst)
        if self.message is None:
            function = functions[code.replace("-", "_")]
            parameters = {} if code in READS else inspect.signature(function).parameters
            required = tuple(name for name in parameters if parameters[name].default is inspect.Parameter.empty)
            return Check(kind, READS.get(code, tuple(parameters)), required, function)
        named = [name for _, name, _, _ in string.Formatter().parse(self.message) if name]
        required = tuple(dict.fromkeys(name for name in (self.figure, self.bounded, self.when, *named) if name))
        return Check(kind, (*required, *self.without), required, partial(self._evidence, (*required, *self.without)))

    def _evidence(self, columns: Sequence[str], *values: Any) -> Evidence | None:
        row = dict(zip(columns, values, strict=True))
        value = row[self.bounded or self.figure]
        raised = value > self.above and value >= self.at_least and value < self.below
        raised = raised and (self.when is None or row[self.when]) and all(row[name] is None for name in self.without)
        return Evidence(row[self.figure], str(self.message).format(**row)) if raised else None


def declared_checks(path: Path, functions: Mapping[str, Any]) -> list[Check]:
    """Return the checks that a YAML file declares, in its order."""
    entries = yaml.safe_load(path.read_text("utf-8"))
    return [DeclaredWarning.model_validate(entry).check(code, functions) for code, entry in entries.items()]


def trial_warnings(row: Mapping[str, Any], checks: Sequence[Check] | None = None) -> list[ResultWarning]:
    """Return the warnings about one trial; an empty list for a trial without a result (see its outcome)."""
    warnings: list[ResultWarning] = []
    for check in (TRIAL_CHECKS if checks is None else checks) if row["outcome"] == "ok" else ():
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


def failed_requests(num_failed: int, num_requests: int, client_sent: int, client_offered: int) -> Evidence | None:
    share = _share(num_failed - (client_offered - client_sent), num_requests)  # without requests that were never sent
    return Evidence(share, f"{share:.1%} of requests failed") if share > 0 else None


def earlier_attempts(earlier_attempts: int, earlier_failed: int, earlier_reasons: str) -> Evidence | None:
    attempts = "an earlier attempt" if earlier_attempts == 1 else f"{earlier_attempts} earlier attempts"
    message = f"{earlier_failed:,} requests failed in {attempts}: {earlier_reasons}"
    return Evidence(earlier_attempts, message) if earlier_attempts else None


def unsent_requests(client_sent: int, client_offered: int) -> Evidence | None:
    share = 1 - _share(client_sent, client_offered)
    return Evidence(share, f"{share:.0%} of the requests that were due were never sent") if share > 0 else None


def rate_not_reached(realised_rate: float, offered_rate: float) -> Evidence | None:
    share = _share(realised_rate, offered_rate)
    return Evidence(share, f"requests were sent at {share:.0%} of the requested rate") if share < LOW_RATE else None


def growing_queue(queue_growth: float) -> Evidence | None:
    message = f"the queue grew until the last request (score {queue_growth:.1f}; the limit is {GROWING:g})"
    return Evidence(queue_growth, message) if queue_growth >= GROWING else None


def caches_not_reset(caches_reset: bool) -> Evidence | None:
    return None if caches_reset else Evidence(0, "the engine's caches were not reset before the trial")


def other_recorded_lengths(replay_exact_lengths: float) -> Evidence | None:
    share = 1 - replay_exact_lengths
    return Evidence(replay_exact_lengths, f"{share:.1%} of the turns differ in length") if share else None


def other_turns(replay_exact_turns: float) -> Evidence | None:
    share = 1 - replay_exact_turns
    return Evidence(replay_exact_turns, f"{share:.1%} of the turns differ from the recorded turns") if share else None


def early_turns(earliest_turn: float) -> Evidence | None:
    early = -earliest_turn
    return Evidence(earliest_turn, f"a turn was sent {early * 1e3:.2f} ms early") if early > TIME_ROUNDING else None


def cut_sessions(sessions_cut: int, sessions_not_begun: int | None = None) -> Evidence | None:
    cut = sessions_cut + (sessions_not_begun or 0)
    return Evidence(cut, f"{count(cut, 'session')} cut short or never begun") if cut else None


def truncated_history(truncated_turns: int) -> Evidence | None:
    number = truncated_turns
    return Evidence(number, f"{count(number, 'turn')} sent without their oldest part") if number else None


def steady_state_differs(*figures: float | None) -> Evidence | None:
    pairs = zip(_PAIRED, figures[: len(_PAIRED)], figures[len(_PAIRED) :], strict=True)
    share, worst = max((off_steady(whole, steady), name) for name, whole, steady in pairs)
    title = f"{_LATENCIES[worst].quantity.label} {_LATENCIES[worst].name}"
    message = f"{title} over the whole run differs by {share:.0%} from the steady state"
    return Evidence(share, message) if share else None


def off_steady(whole: float | None, steady: float | None) -> float:
    """Return the relative difference between whole run and steady state; 0 for up to 10%."""
    share = abs(whole / steady - 1) if whole and steady else 0.0
    return share if share > STEADY_DIFFERS else 0.0


def drift_over_trial(drift: float) -> Evidence | None:
    return Evidence(abs(math.log(drift)), f"latency changed {drift:.2f}-fold during the trial")


def no_steady_state(
    steady_method: str, num_requests: int, duration: float, e2el_p50: float, e2el_p90: float, e2el_max: float
) -> Evidence | None:
    missing, _, reason = steady_method.partition(": ")
    if missing != "none":
        return None
    settled = max(LIFETIMES * e2el_p90, e2el_max)
    needed = math.ceil(num_requests * LENGTH_MARGIN * (settled + 2 * e2el_p50) / duration) if duration else 0
    longer = f"; {max(needed, 2 * num_requests):,} requests may show one" if TOO_SHORT.search(reason) else ""
    return Evidence(num_requests, f"no steady state: {reason}{longer}")


def client_timestamps(client_stamp_source: str, client_loop_lag_p99: float) -> Evidence | None:
    lag, by_client = client_loop_lag_p99, client_stamp_source in ("user", "mixed")
    return Evidence(lag, f"the client stamped arrivals, up to {lag * 1e3:.1f} ms late (p99)") if by_client else None


def shared_timestamps(buffered_share: float) -> Evidence | None:
    shared = SHARED_EVENTS < buffered_share <= BUFFERED
    message = f"{buffered_share:.1%} of events arrived together with another"
    return Evidence(buffered_share, message) if shared else None


def closed_connections(closed_share: float) -> Evidence | None:
    closed = closed_share > MOSTLY
    return (
        Evidence(closed_share, f"connections were closed after {closed_share:.0%} of the answers") if closed else None
    )


def prompt_tokens_differ(tokens_per_word: float, prompts_counted: bool) -> Evidence | None:
    message = f"{tokens_per_word:.2f} input tokens per word of the prompts"
    return None if prompts_counted else Evidence(abs(math.log(max(tokens_per_word, 1e-9))), message)


def unverified_tokens(
    token_source: str, tokens_per_event: float, character_throughput: float, recounted_share: float | None = None
) -> Evidence | None:
    checked = recounted_share is not None or {"text", "events"} & {*token_source.split(", ")}
    message = f"unverified tokens, {tokens_per_event:.2f} per event; {character_throughput:,.0f} characters/s"
    return None if checked else Evidence(tokens_per_event, message)


def buffered_stream(buffered_share: float) -> Evidence | None:
    buffered = buffered_share > BUFFERED
    message = f"{buffered_share:.0%} of events arrived together with another"
    return Evidence(buffered_share, message) if buffered else None


def uncounted_tokens(token_source: str) -> Evidence | None:
    return Evidence(1, "the output tokens were not counted") if "events" in token_source.split(", ") else None


def own_token_count(token_source: str) -> Evidence | None:
    by_tokenizer = "text" in token_source.split(", ")
    return Evidence(1, "output tokens counted in the text by the model's tokenizer") if by_tokenizer else None


def token_counts_differ(recounted_share: float, token_source: str) -> Evidence | None:
    if token_source == "ids" or abs(recounted_share - 1) <= MISCOUNT:
        return None
    share = f"{recounted_share:.0%} of the tokens that the server counted are in the text"
    return Evidence(abs(math.log(recounted_share)) if recounted_share > 0 else math.inf, share)


def unstamped_tokens(tokens_per_event: float, token_source: str) -> Evidence | None:
    silent = "final usage" in token_source.split(", ") and tokens_per_event > MERGED
    return Evidence(tokens_per_event, f"{tokens_per_event:.2f} tokens per event") if silent else None


def other_lengths(output_length_ratio: float) -> Evidence | None:
    other = abs(output_length_ratio - 1)
    return (
        Evidence(other, f"answers contain {output_length_ratio:.1%} of the requested tokens")
        if other > LEAST_DEVIATION
        else None
    )


def foreign_cpu(foreign_cpu_share: float, foreign_processes: str) -> Evidence | None:
    if foreign_cpu_share <= FOREIGN_CPU:
        return None
    by = f": {foreign_processes}" if foreign_processes else ", all of which have ended"
    return Evidence(foreign_cpu_share, f"other processes used {foreign_cpu_share:.0%} of the engine's cores{by}")


def cpu_thermal_limit(cpu_thermal_limits: int) -> Evidence | None:
    message = f"temperature slowed down the engine's cores {count(cpu_thermal_limits, 'time')}"
    return Evidence(cpu_thermal_limits, message) if cpu_thermal_limits else None


def replayed(engine_facts: str) -> Evidence | None:
    return Evidence(1, "replayed from a table, not measured here") if '"replayed": ' in engine_facts else None


def uncommitted_code(commit: str) -> Evidence | None:
    return Evidence(1, f"measured with uncommitted code ({commit})") if commit.endswith("+") else None


def late_gateway(gateway_loop_lag_p99: float) -> Evidence | None:
    lag = gateway_loop_lag_p99
    return Evidence(lag, f"the gateway's loop was {lag * 1e3:.1f} ms late (p99)") if lag > LATE_GATEWAY else None


READS = {"steady-state-differs": (*_PAIRED, *(f"steady_{name}" for name in _PAIRED))}  # columns that may be null
TRIAL_CHECKS = declared_checks(Path(__file__).with_name("warnings.yaml"), globals())
