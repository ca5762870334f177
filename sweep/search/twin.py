"""The twin: a small queue model of a deployment, fed with exactly the arrivals and lengths that the client sent.

It batches continuously: prompts are computed in chunks and stall decoding. If the KV cache is full, the youngest
request is preempted and computed again. Steps between two events are summed in closed form.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
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
    """Fill in the times of first and last tokens: functions of numbers that benchmarks.deployments can compile."""
    arrivals, context, _, _, _ = columns
    count = len(arrivals)
    issued = count if users == 0 else min(users, count)
    end_step = [-1] * count  # last step of each running request; a heap entry that differs from it is stale
    ends, admissions, preempted = [0][1:], [0][1:], [0][1:]  # a heap of end step · count + request; and two stacks
    running = cached = step = following = prompt_left = 0
    prefilling, clock = -1, 0.0
    while clock < horizon:
        pause = costs.step + costs.per_running * running + costs.per_cached_token * cached
        tokens = admitted = 0
        while tokens < limits.step_tokens:
            if prefilling < 0:
                batch = running + admitted
                waiting = following < issued and arrivals[following] <= clock
                candidate = preempted[-1] if len(preempted) > 0 else following if waiting else -1
                if candidate < 0 or not _prompt_fits(context[candidate], batch, cached, limits):
                    break
                if len(preempted) > 0:
                    preempted.pop()
                else:
                    following += 1
                prefilling, prompt_left = candidate, context[candidate]
                cached += prompt_left
            chunk = min(prompt_left, limits.step_tokens - tokens)
            tokens += chunk
            prompt_left -= chunk
            if prompt_left == 0:
                admissions.append(prefilling)
                admitted += 1
                prefilling = -1
        speed = pace[int(clock) % len(pace)]
        steps = 1
        if tokens > 0:
            clock += speed * (pause + costs.per_prompt_token * tokens)
        elif running > 0:
            if running > 1 and cached + running > limits.cached_tokens:
                preempted.append(_preempt_youngest(columns, admissions, end_step, step))
                cached -= context[preempted[-1]]
                running -= 1
            while end_step[ends[0] % count] != ends[0] // count:
                heappop(ends)
            steps = min(ends[0] // count - step, max(1, (limits.cached_tokens - cached) // running))
            once = speed * (costs.step + costs.per_running * running + costs.per_cached_token * cached)
            growth = speed * costs.per_cached_token * running
            if len(preempted) == 0 and following < issued and arrivals[following] > clock:
                steps = min(steps, _steps_within(arrivals[following] - clock, once, growth))
            clock += steps * once + growth * steps * (steps - 1) / 2
        elif following < issued:
            clock = max(clock, arrivals[following])
            continue
        else:
            break
        step += steps
        cached += running * steps
        ended, freed = _end_answers(columns, ends, end_step, step, clock)
        if admitted > 0:
            new = admissions[len(admissions) - admitted :]
            at_once, added = _begin_answers(columns, new, ends, end_step, step, clock)
            ended += at_once
            freed -= added
        cached -= freed
        running += admitted - ended
        if users > 0:
            for _ in range(min(ended, count - issued)):
                arrivals[issued] = clock
                issued += 1


def _steps_within(wait: float, once: float, growth: float) -> int:
    """Return the steps until `wait` s have passed, 1 or more; the first takes `once` s, and each `growth` s longer."""
    linear = once - growth / 2
    return max(1, math.ceil(2 * wait / (linear + math.sqrt(linear * linear + 2 * growth * wait))))


def _prompt_fits(prompt: int, batch: int, cached: int, limits: Limits) -> bool:
    """Return whether a prompt of so many tokens fits beside a batch; alone it always does."""
    return batch < limits.running and (batch == 0 or cached + prompt + 1 + batch <= limits.cached_tokens)


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


def _end_answers(columns: Columns, ends: list[int], end_step: list[int], step: int, clock: float) -> tuple[int, int]:
    """End the answers that are due by a step; return their number, and the tokens that they had in the KV cache."""
    _, context, remaining, _, last = columns
    count, ended, freed = len(end_step), 0, 0
    while len(ends) > 0 and ends[0] < (step + 1) * count:
        request, due = ends[0] % count, ends[0] // count
        heappop(ends)
        if end_step[request] == due:
            last[request], end_step[request] = clock, -1
            freed += context[request] + remaining[request]
            ended += 1
    return ended, freed


def _begin_answers(
    columns: Columns, admitted: list[int], ends: list[int], end_step: list[int], step: int, clock: float
) -> tuple[int, int]:
    """Add the first tokens of answers; return the number of answers that end with them, and tokens for the KV cache."""
    _, context, remaining, first, last = columns
    count, ended, added = len(end_step), 0, 0
    for request in admitted:
        if math.isnan(first[request]):
            first[request] = clock
        remaining[request] -= 1
        context[request] += 1
        added += 1
        if remaining[request] > 0:
            end_step[request] = step + remaining[request]
            heappush(ends, end_step[request] * count + request)
        else:
            last[request] = clock
            added -= context[request]
            ended += 1
    return ended, added


COMPILED = (
    _steps_within,
    _prompt_fits,
    _preempt_youngest,
    _end_answers,
    _begin_answers,
    _event_loop,
)  # by benchmarks.deployments, in order
as_column: Callable[[Any], Any] = np.ndarray.tolist  # lists are faster than arrays in plain Python


def run_queue(
    costs: Costs, limits: Limits, requests: Requests, pace: Floats = EVEN, horizon: float = math.inf
) -> Replay:
    """Run requests through the queue until all end, or until `horizon` s; `pace` scales the steps in each second."""
    arrivals, inputs, outputs, users = requests
    unknown = np.full(len(inputs), np.nan)
    filled = (np.zeros(len(inputs)) if users else arrivals, inputs, outputs, unknown, unknown)
    columns = tuple(as_column(column.copy()) for column in filled)
    _event_loop(columns, users, costs, limits, as_column(pace), horizon)
    due, _, _, first, last = map(np.asarray, columns)
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
