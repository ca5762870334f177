"""The failure policy: whose fault a failure is, whether it is final, and whether, when and where it is retried.

These are pure functions of (outcome, exit, history, settings). The ledger stores, the node reports, the driver acts.
RULES defines what follows from an outcome; an Exit decides whose fault a failure is, and whether to wait:

| exit | a failed launch or trial | while a node is prepared |
|---|---|---|
| SIGKILL, SIGTERM; its supervisor was killed | surroundings: never final, not counted as a repetition | – |
| likewise, but its log names its own watchdog (Blame.ITSELF) | engine: final if it repeats | – |
| a signal of ENGINE_SIGNALS | engine: final if it repeats | – |
| words of a broken node (Blame.NODE) | surroundings: the node is quarantined, not used again | an answer |
| words of something that the user can fix (Blame.USER) | engine, never final | an answer, never final |
| an exit status, words without an outage | engine: final if it repeats | an answer: its trials fail at once |
| words of a tool that its table lists as an outage | surroundings | waited for, up to `patience` |
| an OSError number of OUTAGE_ERRORS; HTTP 408, 429, 5xx | surroundings | waited for |
| a full disk | – | waited for in a build; else no more launches on that node |
| a Cause of SURROUNDINGS | surroundings | waited for if it is OUTAGE or UNREACHABLE |
| an endpoint is gone; a port or GPU memory is in use | surroundings | its launch is waited for (`is_unavailable`) |
| another sweep has leased a partner's GPUs | – | its launch is waited for, without a limit (`NodeBusy`) |
| any other Cause | engine | an answer |
| HTTP 401, 403 of a hub or registry | surroundings | an answer |

| a failed trial is retried | when |
|---|---|
| in this run | once, when nothing else remains to start, on a node where it did not fail (`retry=in_run`); once more |
| | elsewhere when its node is quarantined: two deployments fail only there, or one reports it as broken |
| by the next command | unless it succeeded, is final on these drivers (`retry_failed`: even then), or `retry=none` |

| an attempt at a launch | is repeated |
|---|---|
| lost with its node or worker | up to MAX_LOSSES times |
| ended by an error in this project's code | up to `attempts` times |
| not started by its node | for `cluster.wait_for_nodes` |
| whose node could not be prepared | while the breaker is open |

An engine is launched up to `attempts` times on its node (`launches_again`), and over all launches of its deployment
(`hopeless`). A run pauses when DEPLOYMENTS fail to prepare in a row, and ends (status 75) if the failures last.
"""

import errno
import re
import signal
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sweep.base.config import Settings
from sweep.base.exits import Blame, Cause, Exit, exit_of
from sweep.base.records import Fault, Outcome
from sweep.base.time_factor import scaled

Cells = Mapping[str, Any]
NextRun = Literal["done", "retried", "judged anew"]


class Rule(NamedTuple):
    """The consequences of an outcome for later trials and runs."""

    next_run: NextRun  # whether a later run of the command retries it
    fault: Fault | None  # of a failure; ENGINE: unless its exit shows otherwise
    at_launch: bool = False  # one such launch ends the deployment's other launches, unless a trial succeeded
    of_engine: bool = False  # after `attempts` of them in a row, the deployment's other trials are not run
    of_node: bool = False  # may be the node's fault, and may lead to its quarantine


RULES: Mapping[Outcome, Rule] = {
    Outcome.OK: Rule("done", None),
    Outcome.OOM_LOAD: Rule("done", None, at_launch=True, of_engine=True),  # ends its launch's trials at once
    Outcome.OOM_RUN: Rule("done", None),  # and censors larger batches
    Outcome.CENSORED: Rule("done", None),
    Outcome.CANCELLED: Rule("judged anew", None),
    Outcome.UNAVAILABLE: Rule("judged anew", None),
    Outcome.DROPPED: Rule("judged anew", None),  # by the race, from the rows
    Outcome.LAUNCH_FAILED: Rule("retried", Fault.ENGINE, at_launch=True, of_engine=True, of_node=True),
    Outcome.LAUNCH_TIMEOUT: Rule("retried", Fault.ENGINE, at_launch=True, of_engine=True, of_node=True),
    Outcome.ENGINE_CRASHED: Rule("retried", Fault.ENGINE, of_engine=True, of_node=True),
    Outcome.HUNG: Rule("retried", Fault.ENGINE, of_engine=True, of_node=True),
    Outcome.INVALID: Rule("retried", Fault.ENGINE),  # the engine's fault if all requests failed (`engine_failed`)
    Outcome.CLIENT_LIMITED: Rule("retried", Fault.SURROUNDINGS),
    Outcome.DISTURBED: Rule("retried", Fault.SURROUNDINGS),
}
SETTLED = frozenset(outcome for outcome, rule in RULES.items() if rule.next_run == "done")
FAILED = frozenset(outcome for outcome, rule in RULES.items() if rule.next_run == "retried")  # status 1
NODE_FAULTS = frozenset(outcome for outcome, rule in RULES.items() if rule.of_node)

# Whose fault ----------------------------------------------------------------------------------------------------------

SURROUNDINGS = frozenset(
    {
        *(Cause.SUPERVISOR, Cause.UNREACHABLE, Cause.ENDPOINT, Cause.PORT, Cause.GPU_MEMORY, Cause.LEASED),
        *(Cause.NO_TOKENIZER, Cause.CLIENT, Cause.GATEWAY, Cause.CLOCK, Cause.CONTRADICTION, Cause.OUTAGE),
        *(Cause.LOST, Cause.NO_NODE),
    }
)
OUTAGE_ERRORS = {
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EIO),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT),
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # no more launches start on the node
SERVER_ERROR = 500  # this status and above: not a definite answer
NO_ACCESS = (401, 403)  # a definite answer, which the user can change (token, access)
TRY_LATER = (408, 429)  # time-out, too many requests: not a definite answer either
ENGINE_SIGNALS = {  # signals that a program raises itself; other signals come from outside
    *(signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS),
}


def fault_of(outcome: Outcome, exit: Exit) -> Fault | None:
    """Return whose fault a failure is; None if the outcome is not a failure."""
    fault = RULES[outcome].fault
    of_others = was_killed(exit) or exit.cause in SURROUNDINGS or is_outage(exit) or exit.blames == Blame.NODE
    of_others |= exit.http in NO_ACCESS
    return Fault.SURROUNDINGS if fault is Fault.ENGINE and of_others else fault


def was_killed(exit: Exit) -> bool:
    """Return whether another program killed the process: by a signal that programs do not raise themselves."""
    return exit.signal is not None and exit.signal not in ENGINE_SIGNALS and exit.blames != Blame.ITSELF


def is_outage(exit: Exit) -> bool:
    """Return whether a network, hub or disk failed before giving a definite answer, so that a retry may succeed."""
    if exit.http is not None:
        return no_answer(exit.http)
    return exit.outage or exit.errno in OUTAGE_ERRORS or exit.cause in (Cause.OUTAGE, Cause.UNREACHABLE)


def is_unavailable(exit: Exit) -> bool:
    """Return whether a launch or trial ended because a resource was in use or its endpoint was gone."""
    return exit.cause in (Cause.UNREACHABLE, Cause.PORT, Cause.GPU_MEMORY)


def was_interrupted(row: Cells) -> bool:
    """Return whether a trial ended because its endpoint was gone, which says nothing about the engine."""
    return bool(row.get("exit")) and is_unavailable(Exit.restored(row["exit"]))


def no_answer(status: int) -> bool:
    """Return whether an HTTP status is temporary (5xx, time-out, too many requests) and not a definite answer."""
    return status >= SERVER_ERROR or status in TRY_LATER


# Waiting --------------------------------------------------------------------------------------------------------------

FIRST_PAUSE, LONGEST_PAUSE = scaled(1.0), scaled(60.0)  # s before the next retry; doubled each time
FIRST_PATIENCE = scaled(120.0)  # maximum s of outage before any preparation has worked in this run


def is_waited_for(error: BaseException) -> bool:
    """Return whether preparing a node, or planning, is retried after this error."""
    return is_outage(exit_of(error))


def patience(settings: Settings, worked: bool) -> float:
    """Return how long the run waits for an outage to end, in s; `worked`: a preparation has succeeded before."""
    return settings.patience if worked else min(settings.patience, FIRST_PATIENCE)


def next_pause(last: float | None) -> float:
    """Return the pause before the next retry, in seconds."""
    return FIRST_PAUSE if last is None else min(2 * last, LONGEST_PAUSE)


# Final ----------------------------------------------------------------------------------------------------------------


class TrialHistory(NamedTuple):
    """A trial's last failure caused by its engine, and how many times in a row it occurred."""

    answer: str = ""
    times: int = 0

    @property
    def final(self) -> bool:
        """Whether the engine has failed twice in the same way, so that another retry is pointless."""
        return self.times >= 2

    def after(self, row: Cells) -> "TrialHistory":
        """Return the history with one more row of the trial."""
        answer = engine_answer(row)
        if answer is None:
            return TrialHistory()
        return TrialHistory(answer, self.times + 1 if answer == self.answer else 1)


def engine_answer(row: Cells) -> str | None:
    """Return the engine's failure message in a row, without numbers, to recognize repetitions; None if it did not fail.

    The message is the failed check and the engine's output; for rows from before exits were stored, the reason. It is
    None also for failures that the user can fix, so that they are always retried.
    """
    exit = stored_exit(row)
    if row.get("fault") != Fault.ENGINE or (exit is not None and exit.blames == Blame.USER):
        return None
    words = f"{exit.cause} {exit.words}" if exit is not None else row.get("reason") or ""
    return f"{row['outcome']} under driver {row.get('driver')}: {without_numbers(words)}"


def attempts_before(before: Cells | None) -> dict[str, Any]:
    """Return the columns that count a trial's earlier attempts that failed because of its endpoint.

    Without them an unreliable endpoint would look reliable after enough retries. Outages are not counted.
    """
    if before is None or before["outcome"] == Outcome.OK:
        return {}
    exit = stored_exit(before)
    counts = exit is not None and exit.cause == Cause.ENDPOINT
    attempts = (before.get("earlier_attempts") or 0) + counts
    failed = (before.get("earlier_failed") or 0) + counts * (before.get("num_failed") or 0)
    reasons = [before.get("earlier_reasons"), before.get("reason") if counts else None]
    texts = "; ".join(dict.fromkeys(text for text in reasons if text))
    columns = {"earlier_attempts": attempts, "earlier_failed": failed, "earlier_reasons": texts}
    return columns if attempts else {}


def stored_exit(row: Cells) -> Exit | None:
    """Return how a row's trial ended, which is stored only for failures; else None."""
    return Exit.restored(row["exit"]) if row.get("exit") else None


def without_numbers(words: str) -> str:
    """Return a message without the numbers that vary between runs: ports, process ids, times."""
    return re.sub(r"[0-9]+", "", words)


def needs_run(
    row: Cells | None, history: TrialHistory, settings: Settings, drivers: Container[str] | None = None
) -> bool:
    """Return whether the next run of the command measures a trial with this row again.

    `drivers` are the nodes' GPU drivers, if known: a failure under another driver is not final.
    """
    if row is None or (settings.retry_failed and history.final):
        return True
    match RULES[Outcome(row["outcome"])].next_run:
        case "done":
            return False
        case "judged anew":
            return True
    same_driver = drivers is None or row.get("driver") is None or row["driver"] in drivers
    return settings.retry != "none" and not (history.final and same_driver)


# On a node ------------------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """The failure of a launch before its trials ran. It becomes their outcome unless the engine is launched again."""

    outcome: Outcome
    reason: str  # shown to users
    exit: Exit
    log_tail: str | None = None
    good: bool = False  # whether trials succeeded before


def launches_again(failures: Sequence[Failure], attempts: int) -> bool:
    """Return whether an engine is launched again for its remaining trials, given failures since the last success."""
    last = failures[-1]
    of_node = last.exit.blames == Blame.NODE or last.exit.cause == Cause.CONTRADICTION  # a retry would not help
    if last.outcome is Outcome.OOM_LOAD or of_node or len(failures) >= attempts:
        return False
    repeated = {(end.outcome, without_numbers(f"{end.exit.cause} {end.exit.words}")) for end in failures[-2:]}
    counted = [end for end in failures[-2:] if RULES[end.outcome].at_launch and not was_killed(end.exit)]
    return len(counted) < 2 or len(repeated) > 1  # a third launch would fail like these two; kills are not compared


def engine_failed(row: Cells) -> bool:
    """Return whether a trial's row shows that its engine failed at launch or later, or answered no request."""
    if was_interrupted(row):
        return False
    answered_none = row["outcome"] == Outcome.INVALID and row.get("num_failed") == row.get("num_requests") is not None
    return RULES[Outcome(row["outcome"])].of_engine or answered_none


def censored(pending: Iterable[Any], out_of_memory: Collection[Any]) -> list[tuple[Any, str]]:
    """Return the pending trials that would run out of memory because smaller batches did, each with the reason."""
    batches = [(trial.workload, trial.load) for trial in out_of_memory if trial.load.size]
    smaller = (
        (trial, [load for of, load in batches if of == trial.workload and load.size < (trial.load.size or 0)])
        for trial in pending
    )
    return [(trial, f"{loads[0].describe()} already ran out of memory") for trial, loads in smaller if loads]


# In the driver --------------------------------------------------------------------------------------------------------

MAX_LOSSES = 20  # losses of nodes and workers, per launch
QUARANTINE_WAIT = scaled(240.0)  # s before a quarantined node gets launches that fit nowhere else; exceeds any backoff
DEPLOYMENTS = 2  # if this many fail on one node only, or to prepare in a row, they are not at fault
LONGEST_PAUSES = 4  # multiple of the patience after which a paused run ends


def hopeless(rows: Sequence[Cells], attempts: int) -> Cells | None:
    """Return a row which shows that further launches of a deployment are pointless, or None."""
    if any(row["outcome"] == Outcome.OK for row in rows):
        return None
    failed = [row for row in rows if engine_failed(row) and not node_is_broken(row)]
    not_launched = (row for row in failed if RULES[Outcome(row["outcome"])].at_launch)
    return next(not_launched, failed[-1] if len(failed) >= attempts else None)


def most_losses(of_ours: bool, settings: Settings) -> int:
    """Return after how many losses a launch is given up: of nodes and workers, or by errors in sweep's code."""
    return settings.attempts if of_ours else MAX_LOSSES


def retried_at_the_tail(settings: Settings, outcome: Outcome, history: TrialHistory) -> bool:
    """Return whether a failed trial is retried at the end of the run, when nothing else remains to start."""
    return settings.retry == "in_run" and outcome in FAILED and not history.final


def node_is_broken(row: Cells) -> bool:
    """Return whether the engine reports its node as broken in a failed row."""
    exit = stored_exit(row)
    return exit is not None and exit.blames == Blame.NODE


def longest_pause(patience: float, worked: bool) -> float:
    """Return how many seconds a run pauses before it ends; 0 if no preparation has `worked` yet."""
    return LONGEST_PAUSES * patience if worked else 0.0
