"""The twin: a small queue model of a deployment, fed with exactly the arrivals and lengths that the client sent.

It batches continuously: prompts are computed in chunks and stall decoding. If the KV cache is full, the youngest
request is preempted and computed again. Steps between two events are summed in closed form.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import ceil, inf, isnan, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Columns = tuple[Any, ...]  # arrivals, context tokens, remaining tokens, times of the first and last token
UNLIMITED = 10**12
FIT_REQUESTS = 1500  # maximum requests of each run that the twin is fitted to
EVEN = np.ones(1)  # the pace of a deployment without noise


class Costs(NamedTuple):
    """Seconds per step: a constant, plus the costs of each running sequence, token in the KV cache and prompt token."""

    step: float
    per_running: float
    per_cached_token: float
    per_prompt_token: float


class Limits(NamedTuple):
    """The most that a deployment processes at once."""

    running: int = UNLIMITED  # sequences
    cached_tokens: int = UNLIMITED  # tokens in the KV cache
    step_tokens: int = 2048  # prompt tokens in a step


class Requests(NamedTuple):
    """The requests of a run, in order of arrival."""

    arrivals: Floats  # s; in a closed loop the queue sets them
    inputs: Integers  # tokens
    outputs: Integers
    users: int = 0  # users of a closed loop; 0: an open loop


@dataclass(frozen=True)
class Replay:
    """The requests of a run in order of arrival, with latencies in s: inf for a failed request, nan if undefined."""

    arrivals: Floats  # s
    inputs: Integers  # tokens
    outputs: Integers
    ttft: Floats
    tpot: Floats
    e2el: Floats
    users: int = 0  # users of a closed loop; 0: an open loop

    @property
    def requests(self) -> Requests:
        """Return the requests without their latencies."""
        return Requests(self.arrivals, self.inputs, self.outputs, self.users)

    def section(self, requests: slice | NDArray[np.bool_]) -> "Replay":
        """Return the replay with only some of its requests."""
        return replace(self, **{name: column[requests] for name, column in vars(self).items() if name != "users"})


def _event_loop(columns: Columns, users: int, costs: Costs, limits: Limits, pace: list[float], horizon: float) -> None:
    """Fill in the times of first and last tokens: functions of numbers that benchmarks.deployments can compile.

    Written for plain Python too: no calls, attributes or heap work that an event does not need.
    """
    arrivals, context, remaining, first, last = columns
    constant, per_running, per_cached_token, per_prompt_token = costs
    most_running, most_cached, step_tokens = limits
    count, seconds = len(arrivals), len(pace)
    issued = count if users == 0 else min(users, count)
    end_step = [-1] * count  # last step of each running request; a heap entry that differs from it is stale
    ends, admissions, preempted = (
        [2**62],
        [0][1:],
        [0][1:],
    )  # a heap of end step · count + request, with a last; two stacks
    running = cached = step = following = prompt_left = 0
    prefilling, clock, speed, preempts = -1, 0.0, pace[0], False
    due = arrivals[0] if count > 0 else inf  # of the request that follows
    while clock < horizon:
        pause = constant + per_running * running + per_cached_token * cached
        tokens = admitted = 0
        while (prefilling >= 0 or due <= clock or (preempts and len(preempted) > 0)) and tokens < step_tokens:
            if prefilling < 0:
                batch = running + admitted
                again = preempts and len(preempted) > 0
                candidate = preempted[-1] if again else following
                prompt_left = context[candidate]  # alone it always fits
                if batch >= most_running or (batch > 0 and cached + prompt_left + 1 + batch > most_cached):
                    break
                if again:
                    preempted.pop()
                else:
                    following += 1
                    due = arrivals[following] if following < issued else inf
                prefilling = candidate
                cached += prompt_left
            chunk = step_tokens - tokens
            if prompt_left <= chunk:
                chunk = prompt_left
                admissions.append(prefilling)
                admitted += 1
                prefilling = -1
            tokens += chunk
            prompt_left -= chunk
        if seconds > 1:
            speed = pace[int(clock) % seconds]
        if tokens > 0:
            clock += speed * (pause + per_prompt_token * tokens)
            step += 1
            cached += running
        elif running > 0:
            if running > 1 and cached + running > most_cached:
                preempts = True
                preempted.append(_preempt_youngest(columns, admissions, end_step, step))
                cached -= context[preempted[-1]]
                running -= 1
                pause = constant + per_running * running + per_cached_token * cached
            while preempts and end_step[ends[0] % count] != ends[0] // count:
                heappop(ends)
            steps = ends[0] // count - step
            if cached + steps * running > most_cached:
                steps = max(1, (most_cached - cached) // running)
            once = speed * pause
            growth = speed * per_cached_token * running
            if clock < due < inf and not (preempts and len(preempted) > 0):
                steps = min(steps, _steps_within(due - clock, once, growth))
            clock += steps * once + growth * steps * (steps - 1) / 2
            step += steps
            cached += running * steps
        elif due < inf:
            clock = max(clock, due)
            continue
        else:
            break
        ended, after = 0, (step + 1) * count
        while ends[0] < after:
            entry = heappop(ends)
            request = entry % count
            if preempts and end_step[request] != entry // count:
                continue
            last[request], end_step[request] = clock, -1
            cached -= context[request] + remaining[request]
            ended += 1
        running += admitted - ended
        for index in range(-admitted, 0):
            request = admissions[index]
            if not preempts or isnan(first[request]):
                first[request] = clock
            remaining[request] -= 1
            context[request] += 1
            if remaining[request] > 0:
                cached += 1
                end_step[request] = step + remaining[request]
                heappush(ends, end_step[request] * count + request)
            else:
                last[request] = clock
                cached -= context[request] - 1
                running -= 1
                ended += 1
        if users > 0:
            for _ in range(min(ended, count - issued)):
                arrivals[issued] = clock
                issued += 1
            due = arrivals[following] if following < issued else inf


def _steps_within(wait: float, once: float, growth: float) -> int:
    """Return the steps until `wait` s have passed, 1 or more; the first takes `once` s, and each `growth` s longer."""
    linear = once - growth / 2
    return max(1, ceil(2 * wait / (linear + sqrt(linear * linear + 2 * growth * wait))))


def _preempt_youngest(columns: Columns, admissions: list[int], end_step: list[int], step: int) -> int:
    """Stop the request that was admitted last, whose context is to be computed again, and return it."""
    _, context, remaining, _, _ = columns
    while end_step[admissions[-1]] < 0:
        admissions.pop()
    youngest = admissions.pop()
    unanswered = end_step[youngest] - step
    context[youngest] += remaining[youngest] - unanswered
    remaining[youngest], end_step[youngest] = unanswered, -1
    return youngest


COMPILED = _steps_within, _preempt_youngest, _event_loop  # by benchmarks.deployments, in order
as_column: Callable[[Any], Any] = np.ndarray.tolist  # lists are faster than arrays in plain Python


def run_queue(costs: Costs, limits: Limits, requests: Requests, pace: Floats = EVEN, horizon: float = inf) -> Replay:
    """Run requests through the queue until all end, or until `horizon` s; `pace` scales the steps in each second."""
    arrivals, inputs, outputs, users = requests
    unknown = np.full(len(inputs), np.nan)
    filled = (np.zeros(len(inputs)) if users else arrivals, inputs, outputs, unknown, unknown)
    columns = tuple(as_column(column.copy()) for column in filled)
    _event_loop(columns, users, costs, limits, as_column(pace), horizon)
    due, first, last = (np.asarray(columns[index]) for index in (0, 3, 4))
    tpot = (last - first) / np.where(outputs > 1, outputs - 1, np.nan)
    return Replay(due, inputs, outputs, first - due, tpot, last - due, users)


class Twin:
    """Fits the costs of a queue to the latencies of the latest runs."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.costs = Costs(0.01, 0.001, 0.0, 1e-5)

    def run(self, requests: Requests, costs: Costs | None = None) -> Replay:
        """Return the twin's run of these requests, with these costs or else its own."""
        return run_queue(costs or self.costs, self.limits, requests)

    def begin(self, saturated: Replay, light: Replay) -> None:
        """Guess the costs from a saturated run and a lightly loaded run."""
        saturated, light = (run.section(np.isfinite(run.e2el)) for run in (saturated, light))  # requests that succeeded
        crowded, alone = np.nanmedian(saturated.tpot), np.nanquantile(light.tpot, 0.1)
        step = 0.8 * min(alone, crowded)
        share = max(crowded - step, 0.1 * step) / min(self.limits.running, saturated.users)
        prompt = max(np.quantile(light.ttft, 0.3) - step, 1e-4) / float(np.mean(light.inputs))
        self.costs = Costs(step, 0.7 * share, 0.3 * share / np.mean(light.inputs + light.outputs / 2), prompt)

    def fit(self, runs: list[Replay], evaluations: int) -> None:
        """Fit the costs to the log latencies of these runs; errors above a factor of 1.65 count as 1.65."""
        shortened = [run.section(slice(FIT_REQUESTS)) for run in runs]
        start = np.log(np.maximum(self.costs, 1e-12))

        from scipy import optimize  # here, since a run without a search imports this module too

        def loss(logs: Floats) -> float:
            costs, total = Costs(*np.exp(logs)), 0.0
            for run in shortened:
                twin = self.run(run.requests, costs)
                total += 3 * _distance(twin.tpot, run.tpot) + 0.3 * _distance(twin.ttft, run.ttft)
            return float(total + 1e-4 * np.sum((logs - start) ** 2))

        simplex = start + np.vstack([np.zeros(4), 0.25 * np.eye(4)])
        fitted = optimize.fmin(loss, start, maxfun=evaluations, initial_simplex=simplex, disp=False)
        self.costs = Costs(*np.exp(fitted))


def _distance(ours: Floats, measured: Floats) -> float:
    valid = np.isfinite(ours) & np.isfinite(measured) & (measured > 0) & (ours > 0)
    return float(np.minimum(np.log(ours[valid] / measured[valid]) ** 2, 0.25).mean()) if valid.any() else 0.0
