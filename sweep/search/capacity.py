"""The search for a capacity: given measured probes, it proposes the next one, and finally states a claim.

Most of a probe's noise comes from which requests were sent, and these are known. So a twin is fed with the same
requests; only the difference between its results for them and for a long run is used. The same probes always give the
same claim. The constants were chosen on simulated deployments (docs/capacity.md): the risk is calibrated, not proven.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from sweep.base.wording import count
from sweep.search.twin import UNLIMITED, Costs, Floats, Integers, Limits, Replay, Requests, Twin

NEAR = 0.12  # maximum |log(rate / estimate)| of the probes that the estimate is computed from
LOOKS = 2.0  # standard errors between the estimate and the claim: 95% one-sided, with repeated looks
FLOOR = 0.02  # of the log capacity: what the twin itself does not know
SAFETY = 0.008  # of the log capacity: by so much simulated claims were too high too often
SAFETY_OF_ENDPOINT = 0.014  # the same, where the twin does not know the limits
NARROW = 0.0175  # of the log capacity: the standard error at which a search ends
MOST_LENGTHS = 30.0  # of probes in all, after which the interval is the answer
LEAST = 5.0  # full probes' lengths near the estimate before it does
CONFIRMING = 2.0  # probes' lengths of a fresh run at the claim
CONFIRMATIONS = 6
STEP = 0.012  # minimum step down of the log claim after a run that fails to confirm it; 1.5 times larger each time
LIGHT = 0.45  # share of the saturated throughput: a rate that every deployment sustains
FEWEST_LIGHT = 12  # requests at that rate: enough for a first fit, where a request takes many seconds
LONG_RUN = 20_000  # requests
FIRST_USERS = 32  # at first, if the deployment's limits are unknown
MOST_USERS = 1024
SHARE_OF_BUDGET = 0.1  # of a probe, at most
FINDING_USERS = 0.05  # of a budget, if the first saturated run is served one by one
HIGHEST = 0.98  # times the saturated throughput: no rate above it is steady
RISING = 1.15  # more users than this much less throughput are tried
ALONE = 5  # requests, one after another, that tell whether a bound can be met at all
DRIFTING = 3.0  # standard errors between the twin's errors in both halves of the probes: the deployment has changed
ALIKE = 0.2, 5.0  # scales of a bound with which the twin is like the deployment; beyond them, probes count more
NOT_FAILING = 0.99  # times the lowest rate that failed: no estimate above it is credible
DEPENDENT = 10  # requests count for one, where the twin is unlike the deployment
POINTS_OF_CURVE = 12  # rates at which the twin's shares are shown
ANSWERED = sys.float_info.max  # s: a limit that only failed requests exceed, for a bound on their share
BATCH_SIZE = 40  # requests, of a batch for which the twin's error is taken: longer than a queue's memory


class LatencyBound(NamedTuple):
    """A bound on a latency: the share of the requests that must be within the limit. `p90 <= 0.2 s` has share 0.9."""

    quantity: str  # ttft, tpot or e2el
    limit: float  # s
    share: float = 0.9

    def good(self, run: Replay, scale: float = 1.0) -> Floats:
        """Return 1.0 for each request within the bound, 0.0 beyond it, nan if its latency is undefined."""
        latencies = getattr(run, self.quantity)
        return np.where(np.isnan(latencies), np.nan, latencies <= self.limit * scale)

    def describe(self) -> str:
        """Return the bound as text: `ttft.p90 <= 0.2 s`, or `failed <= 1%`."""
        if self.limit == ANSWERED:
            return f"failed <= {100 * (1 - self.share):g}%"
        return f"{self.quantity}.p{100 * self.share:g} <= {self.limit:g} s"


@dataclass(frozen=True)
class CapacityQuestion:
    """The question that a search answers: what is the highest rate at which every bound is met?"""

    bounds: Sequence[LatencyBound]
    arrivals: Callable[[int, int], Floats]  # (count, seed) -> times at one request per second
    lengths: Callable[[int, int], tuple[Integers, Integers]] | None = None  # None: the probes' lengths are drawn again
    limits: Limits | None = None  # set by benchmarks alone; None: read off the saturated run, if no flag sets them
    flags: Limits | None = None  # that an engine's flags set
    shortest: float = 60.0  # s of a probe: longer than the machine's own noise remembers
    requests: int = 1000  # of a probe, at saturation
    budget: float = float("inf")  # s of measurement, after which the interval is the answer


class Probe(NamedTuple):
    """A trial to run: an open loop with this rate, or a closed loop with this many users."""

    requests: int
    rate: float = 0.0  # requests/s
    users: int = 0

    @property
    def seconds(self) -> float:
        """The expected duration in s, without what is in flight at the end; 0 for a closed loop, if unknown."""
        return self.requests / self.rate if self.rate else 0.0

    def describe(self) -> str:
        """The load: `32 users` or `1.5 requests/s`."""
        return count(self.users, "user") if self.users else f"{self.rate:g} requests/s"


@dataclass(frozen=True)
class Claim:
    """The answer: this launch sustained the load `lower` within the bounds while it was measured."""

    status: Literal["confirmed", "interval", "above", "impossible", "drift", "refused"]
    lower: float  # in `unit`; 0: none was shown
    upper: float  # 0: unknown
    limit: str = ""  # the bound that is exceeded first, in words
    probes: int = 0
    seconds: float = 0.0  # of measurement
    ended: str = ""  # why an interval ended early, if not by its budget
    unit: str = "requests/s"  # or users


class Shares(NamedTuple):
    """The share of good requests at a load, for each bound."""

    load: float  # requests/s or users
    good: list[float]


@dataclass(frozen=True)
class ProbeResult:
    """A probe and its measurement."""

    probe: Probe
    run: Replay
    seconds: float


class Capacity:
    """A proposer: `tell` it a probe's result, `ask` it for the next probe, and call `claim` at any time."""

    def __init__(self, question: CapacityQuestion) -> None:
        self.question = question
        self.phase = "single"  # the next phases: saturate, light, probe, confirm, and done or above
        self.measured: list[ProbeResult] = []
        self.twin = Twin(question.limits or Limits())
        self.scales = [1.0] * len(question.bounds)  # of each bound, for the twin to have the measured shares
        self.throughput = math.inf  # requests/s, of the busiest closed loop
        self.saturated = False  # whether more users would bring no more throughput
        self.ended = ""  # why no probe can follow, if not by evidence or the budget
        self.users = 2 * question.limits.running if question.limits else FIRST_USERS
        self.estimate = math.nan
        self.unlike = False  # the twin and the deployment
        self.passing, self.failing = 0.0, math.inf  # requests/s, by the probes alone
        self.below = self.above = math.inf  # log widths of the interval around it
        self.drift_by_bound = [0.0] * len(question.bounds)  # of the share of good requests; 0 if in the noise
        self.limiting_bound: LatencyBound | None = None  # the bound that is exceeded first
        self.claimed_rate, self.confirmation_runs, self.is_confirmed = math.nan, 0, False
        self.floor = math.inf  # of the log capacity: the twin's own error, larger after short probes
        self.light_probes = 1  # open loops before the probes near the estimate
        self.earlier_throughput = 0.0  # requests/s, of a lost launch with `users`; 0: unknown
        self._drawn: dict[tuple[int, int], Requests] = {}  # the twin's, at 1/s, by their number and that of the probes

    def continue_from(self, earlier: Any) -> None:
        """Begin with what the search on a lost launch learned: the bounds that one request meets, the users that
        saturate the deployment, and the twin's fit. Its probes are no evidence for this launch, which may be faster.
        """
        if earlier.phase == "single":
            return
        self.phase, self.users = "saturate", earlier.users
        self.earlier_throughput = earlier.throughput if earlier.saturated else earlier.earlier_throughput
        if self.earlier_throughput:
            most = earlier.most_throughput or 0.0
            self.users = min((users for users, rate in earlier.loops if RISING * rate >= most), default=earlier.users)
            self.twin = Twin(earlier.twin.limits)
            self.twin.costs, self.scales, self.estimate = earlier.twin.costs, [*earlier.scales], earlier.estimate
            self.unlike = earlier.unlike

    def ask(self) -> Probe | None:
        """Return the next probe; None when the search has ended."""
        match self.phase:
            case "single":
                return Probe(ALONE, users=1)
            case "saturate":
                count = max(self.question.requests // 2 if self.question.limits else 0, 5 * self.users // 2)
                return Probe(count, users=self.users)
            case "light":
                return self._open(LIGHT * self.throughput, 0.25, FEWEST_LIGHT)
            case "probe":
                return self._open(self.estimate, 1.0 if len(self._open_probes) < 2 else 2.0)
            case "confirm":
                return self._open(self.claimed_rate, CONFIRMING)
        return None

    def _open(self, rate: float, lengths: float, fewest: int = BATCH_SIZE) -> Probe | None:
        rate = float(f"{rate:.4g}")
        probe = Probe(max(fewest, round(rate * lengths * self._unit)), rate)
        left = (self.question.budget - self._spent) * min(rate, self.throughput)
        if probe.requests > left and left >= BATCH_SIZE and self.phase != "confirm":
            return probe._replace(requests=int(left))
        return probe if probe.requests <= left else None

    @property
    def _full(self) -> float:
        """Return the probe length, in s, for which the risk was calibrated."""
        return max(self.question.shortest, self.question.requests / self.throughput)

    @property
    def _unit(self) -> float:
        return min(self._full, SHARE_OF_BUDGET * self.question.budget)

    @property
    def _lower(self) -> float:
        margin = SAFETY if self.question.limits else SAFETY_OF_ENDPOINT
        lower = self.estimate * math.exp(-max(self.below, self.floor) - margin)
        if not self.unlike:
            return lower
        sustained = [probed.probe.rate for probed in self.measured if probed.probe.rate and self._excess(probed) >= 0]
        highest = max((rate for rate in sustained if rate < self.failing), default=0.0)
        return max(min(lower, highest), self.passing if self.passing < self.failing else 0.0)

    @property
    def _spent(self) -> float:
        return sum(probed.seconds for probed in self.measured)

    @property
    def _open_probes(self) -> list[ProbeResult]:
        return [probed for probed in self.measured if probed.probe.rate][self.light_probes :]

    def tell(self, measured: ProbeResult) -> None:
        """Process the result of the probe that `ask` returned."""
        self.measured.append(measured)
        if not np.isfinite(measured.run.e2el).any():
            self.phase, self.ended = "done", f"all requests failed at {measured.probe.describe()}"
            self.failing = min(self.failing, measured.probe.rate or math.inf)
        match self.phase:
            case "single":
                missed = (bound for bound in self.question.bounds if np.nanmean(bound.good(measured.run)) == 0)
                self.limiting_bound = next(missed, None)
                self.phase = "done" if self.limiting_bound else "saturate"
                if self.question.limits is None and math.isfinite(self.question.budget):
                    served = FINDING_USERS * self.question.budget * ALONE / measured.seconds  # served one by one
                    self.users = int(np.clip(2 * served / 5, 2, FIRST_USERS))
            case "saturate":
                self._saturated(measured)
            case "light":
                saturated = self.measured[-2].run
                self.twin.begin(saturated, measured.run)
                self.twin.fit([saturated, measured.run], 160)
                sustained = measured.probe.rate if self._excess(measured) > 0 else 0.0
                self.estimate = max(self._capacity_of_twin(), sustained)
                self.phase = "probe"
            case "probe":
                self._probed()
            case "confirm":
                self._take_confirmation(measured)

    def _saturated(self, measured: ProbeResult) -> None:
        earlier, self.throughput = self.throughput, _throughput(measured.run)
        if self.earlier_throughput:
            self._adapt_twin()
            return
        limits_unknown = self.question.limits is None  # then only the throughput shows when it is saturated
        rising = limits_unknown and (not math.isfinite(earlier) or self.throughput > RISING * earlier)
        if limits_unknown:
            affordable = 0.2 * self.question.budget * self.throughput / 2.5  # users, if more of them bring nothing
            larger_user_counts = [n for n in (4 * self.users, 2 * self.users) if n <= min(MOST_USERS, affordable)]
            if rising and larger_user_counts:
                self.users = larger_user_counts[0]
                return
            if rising:  # how far up it goes is unknown
                self.throughput *= 1.5
            self.throughput = max(self.throughput, 0.0 if math.isinf(earlier) else earlier)
            decoding = _most_decoding(measured.run)
            self.twin.limits = self.question.flags or Limits()
            if self.twin.limits.running == UNLIMITED and decoding < 0.9 * self.users:
                self.twin.limits = self.twin.limits._replace(running=decoding)
        self.saturated, self.phase = not rising, "light"

    def end_at_client(self) -> bool:
        """Go on below a closed loop with more users than the client can serve; return whether a smaller one was."""
        smaller = self.phase == "saturate" and math.isfinite(self.throughput)
        if smaller:
            self.twin.limits, self.phase = self.question.flags or Limits(), "light"
        return smaller

    def _adapt_twin(self) -> None:
        """Scale a lost launch's twin, and the rate it sustained, by the ratio of the saturated throughputs."""
        self.saturated, self.phase = True, "light"
        if not math.isnan(self.estimate):
            ratio = self.earlier_throughput / self.throughput
            self.twin.costs = Costs(*(ratio * cost for cost in self.twin.costs))
            self.estimate = max(self.estimate / ratio, 0.0 if self.unlike else self._capacity_of_twin())
            self.light_probes, self.phase = 0, "probe"

    @property
    def longest(self) -> float:
        """The longest limit of a bound on a latency, in s."""
        return max(bound.limit for bound in self.question.bounds if bound.limit < ANSWERED)

    def is_hopeless(self, probe: Probe, in_flight: int, seconds: float) -> bool:
        """Return whether so many requests are in flight after this time that the probe's rate is surely too high.

        Served in order at the saturated throughput, twice as many of them as a bound allows would exceed it.
        """
        in_order = [bound for bound in self.question.bounds if bound.quantity != "tpot"]
        if not probe.rate or self.phase not in ("probe", "confirm") or not in_order or seconds < 2 * self.longest:
            return False
        waiting = (bound.limit * self.throughput + 2 * (1 - bound.share) * probe.requests for bound in in_order)
        return in_flight > self.users + min(waiting)

    def _probed(self) -> None:
        probes = self._open_probes
        if len(probes) <= 3:
            self.twin.fit([probed.run for probed in self.measured if probed.probe.users != 1][-3:], 80)
        nearby = [probed for probed in probes if abs(math.log(probed.probe.rate / self.estimate)) < NEAR] or probes[-1:]
        twins = [self.twin.run(probed.run.requests) for probed in nearby]
        errors = [self._match(j, nearby, twins) for j in range(len(self.question.bounds))]
        self.estimate = self._capacity_of_twin(self.estimate)
        lengths = sum(len(probed.run.arrivals) / probed.probe.rate for probed in nearby) / self._full
        self.floor = FLOOR * math.sqrt(max(1.0, LEAST / lengths))
        if not self._narrow(errors, nearby):  # by the twin a bound is exceeded first that no probe has come near
            beyond = 1.06 * max(probed.probe.rate for probed in nearby)
            self.estimate = min(max(self.estimate, beyond), HIGHEST * self.throughput)
            if nearby[-1].probe.rate > 0.99 * HIGHEST * self.throughput and lengths > 0.99 * LEAST:
                self.phase = "above"
                return
        credible = self._within_evidence(probes)
        narrow = credible and self.below <= LOOKS * NARROW and lengths > 0.99 * LEAST and self._lower > 0
        if narrow and any(self.drift_by_bound):
            self.phase = "done"
        elif narrow:
            self.claimed_rate = self._lower
            self.phase = "confirm"
        elif self._spent > MOST_LENGTHS * self._unit:
            self.phase = "done"

    def _within_evidence(self, probes: list[ProbeResult]) -> bool:
        """If the twin is unlike the deployment: move the estimate off rates that probes show to be too high or low.

        Returns False if the estimate was at such a rate.
        """
        self.unlike = self.unlike or not all(ALIKE[0] <= scale <= ALIKE[1] for scale in self.scales)
        for probed in probes if self.unlike else ():
            spread = 2 * math.sqrt(DEPENDENT / len(probed.run.arrivals))
            if self._excess(probed) < -spread:
                self.failing = min(self.failing, probed.probe.rate)
            elif self._excess(probed) > spread:
                self.passing = max(self.passing, probed.probe.rate)
        if self.passing >= self.failing or self.passing < self.estimate < NOT_FAILING * self.failing:
            return True
        if self.estimate <= self.passing:
            self.estimate = math.sqrt(self.passing * min(self.failing, 1.2 * self.passing))
        else:
            self.estimate = math.sqrt(max(self.passing, 0.7 * self.failing) * self.failing)
        return False

    def _excess(self, probed: ProbeResult) -> float:
        """Return how far the share of good requests exceeds the tightest bound's share, in standard deviations.

        It is negative if a bound is exceeded.
        """
        return min(
            float(np.nanmean(bound.good(probed.run)) - bound.share) / math.sqrt(bound.share * (1 - bound.share))
            for bound in self.question.bounds
        )

    def _take_confirmation(self, measured: ProbeResult) -> None:
        """Lower the claim if a fresh run at its rate misses a bound, after the twin has removed this run's luck."""
        twin, long = self.twin.run(measured.run.requests), self._long_run(self.claimed_rate, 5 * LONG_RUN)
        missing = -1.0
        for bound, scale in zip(self.question.bounds, self.scales, strict=True):
            luck = np.nanmean(bound.good(twin, scale)) - np.nanmean(bound.good(long, scale))
            missing = max(missing, bound.share - (np.nanmean(bound.good(measured.run)) - np.clip(luck, -0.1, 0.1)))
        if missing > 0:
            step = STEP * 1.5**self.confirmation_runs
            self.claimed_rate *= math.exp(-float(np.clip(missing / 1.5, step, max(step, 0.06))))
        self.confirmation_runs, self.is_confirmed = self.confirmation_runs + 1, missing <= 0
        if self.is_confirmed or self.confirmation_runs == CONFIRMATIONS:
            self.phase = "done"

    def _match(self, j: int, nearby: list[ProbeResult], twins: list[Replay]) -> float | None:
        """Scale a bound so that the twin has the measured share; return the standard error, None near share 1."""
        bound, self.drift_by_bound[j] = self.question.bounds[j], 0.0
        good = [bound.good(probed.run) for probed in nearby]
        pooled = np.concatenate([getattr(twin, bound.quantity) for twin in twins])
        pooled = pooled[np.isfinite(pooled)]
        share = float(np.nanmean(np.concatenate(good)))
        if share > 1 - (1 - bound.share) / 20:
            self.scales[j] = float(np.clip(np.quantile(pooled, 1 - (1 - bound.share) / 5) / bound.limit, 1, 5))
            return None
        self.scales[j] = float(np.clip(np.quantile(pooled, np.clip(share, 0.02, 1)) / bound.limit, 0.01, 100))
        if bound.limit == ANSWERED and share >= bound.share:
            self.scales[j] = 1.0  # the twin's requests never fail; once too many do, the probes count more
        errors = []
        for probed, twin, measured in zip(nearby, twins, good, strict=True):
            expected = bound.good(twin, self.scales[j])
            most_batches = 20 * max(1.0, float(probed.run.arrivals[-1]) / self._unit)
            number = int(np.clip(len(expected) // BATCH_SIZE, 3, most_batches))
            differences = (each[np.isfinite(each)] for each in np.array_split(measured - expected, number))
            errors.append(np.array([each.mean() for each in differences if each.size]))
        variance = _variance(errors, share, sum(map(len, good)))
        earlier, later = np.array_split(np.concatenate(errors), 2)
        change = float(later.mean() - earlier.mean())
        if abs(change) > DRIFTING * 2 * math.sqrt(variance):
            self.drift_by_bound[j] = change
        return math.sqrt(variance) * (1 + 2.5 / sum(map(len, errors)))

    def _narrow(self, errors: list[float | None], nearby: list[ProbeResult]) -> bool:
        """Find the interval around the estimate; return False if the twin exceeds a bound that no probe came near."""
        slower, faster = (self._long_run(self.estimate * factor, 3 * LONG_RUN // 2) for factor in (0.97, 1.03))
        distance = float(np.mean([abs(math.log(probed.probe.rate / self.estimate)) for probed in nearby]))
        self.below, self.above, self.limiting_bound, unseen = -math.inf, math.inf, None, False
        for bound, scale, error in zip(self.question.bounds, self.scales, errors, strict=True):
            low, high = (float(np.nanmean(bound.good(run, scale))) for run in (slower, faster))
            if bound.limit == ANSWERED:
                low = high = float(np.nanmean(np.concatenate([bound.good(probed.run) for probed in nearby])))
            slope = max((low - high) / 0.06, 0.05)
            if error is None:
                unseen = unseen or min(low, high) < 1 - (1 - bound.share) * 0.7
                continue
            offset = ((low + high) / 2 - bound.share) / slope  # log distance of this bound's capacity from the estimate
            spread = LOOKS * math.hypot(error / slope, 0.25 * distance)
            if spread - offset > self.below:
                self.below, self.limiting_bound = spread - offset, bound
            self.above = min(self.above, offset + spread)
        if self.limiting_bound is None or unseen:
            self.below, self.above = 0.3, math.inf
            return False
        self.below, self.above = max(self.below, 0.0), max(self.above, 0.0)
        return True

    def _capacity_of_twin(self, near: float = math.nan) -> float:
        """Return the highest rate at which the twin's long run meets all bounds, by bisection on the logarithm."""
        low, high, halvings = math.log(0.02 * self.throughput), math.log(1.1 * self.throughput), 11
        if math.isfinite(near):
            low, high, halvings = math.log(near / 1.4), math.log(near * 1.4), 8
        for _ in range(halvings):
            middle = (low + high) / 2
            missing = self._missing(self._long_run(math.exp(middle), LONG_RUN))
            low, high = (middle, high) if missing <= 0 else (low, middle)
        return min(math.exp((low + high) / 2), HIGHEST * self.throughput)

    def _missing(self, run: Replay) -> float:
        """Return how far the twin's share of good requests is below the tightest bound; negative if it meets all."""
        scaled = zip(self.question.bounds, self.scales, strict=True)
        return max(bound.share - float(np.nanmean(bound.good(run, scale))) for bound, scale in scaled)

    def _long_run(self, rate: float, count: int) -> Replay:
        """Return the twin's run of many fresh requests at this rate, without the start, when the queue is empty."""
        drawn_from = count, 0 if self.question.lengths else len(self.measured)
        if drawn_from not in self._drawn:
            self._drawn[drawn_from] = Requests(self.question.arrivals(count, 77), *self._lengths(count))
        requests = self._drawn[drawn_from]
        return self.twin.run(requests._replace(arrivals=requests.arrivals / rate)).section(slice(count // 10, None))

    def _lengths(self, count: int) -> tuple[Integers, Integers]:
        if self.question.lengths is not None:
            return self.question.lengths(count, 77)
        lengths = np.concatenate([[probed.run.inputs, probed.run.outputs] for probed in self.measured], axis=1)
        drawn = np.random.default_rng(77).integers(lengths.shape[1], size=count)
        return lengths[0, drawn], lengths[1, drawn]

    @property
    def most_throughput(self) -> float | None:
        """The highest throughput of a closed loop, in requests/s; None before one."""
        return max((rate for _, rate in self.loops), default=None)

    @property
    def loops(self) -> list[tuple[int, float]]:
        """The users and the throughput, in requests/s, of each closed loop with an answer."""
        probed = [each for each in self.measured if each.probe.users > 1 and np.isfinite(each.run.e2el).any()]
        return [(each.probe.users, _throughput(each.run)) for each in probed]

    @property
    def bounds(self) -> Sequence[LatencyBound]:
        return self.question.bounds

    def measured_shares(self) -> list[Shares]:
        """Return the shares that the open loops measured."""
        runs = [(probed.probe.rate, probed.run) for probed in self.measured if probed.probe.rate]
        return [shares_of(rate, run, self.question.bounds) for rate, run in runs]

    def twin_shares(self) -> list[Shares]:
        """Return the twin's shares in long runs over the range of the probes' rates; none before there is a twin."""
        rates = [shares.load for shares in self.measured_shares()]
        if math.isnan(self.estimate) or len(rates) < 2:
            return []
        curve = np.geomspace(min(rates), 1.03 * max(rates), POINTS_OF_CURVE)
        runs = [(float(rate), self._long_run(rate, LONG_RUN // 4)) for rate in curve]
        return [shares_of(rate, run, self.question.bounds, self.scales) for rate, run in runs]

    def claim(self) -> Claim:
        """Return what the probes so far show."""
        highest = self.throughput if self.saturated else 0.0
        claim = Claim("interval", 0.0, highest, probes=len(self.measured), seconds=self._spent, ended=self.ended)
        if self.limiting_bound and math.isnan(self.estimate):
            return replace(claim, status="impossible", limit=self.limiting_bound.describe())
        if math.isinf(self.below):
            return claim
        unbounded = "saturation" if self.saturated else ""
        claim = replace(claim, limit=self.limiting_bound.describe() if self.limiting_bound else unbounded)
        if change := next(filter(None, self.drift_by_bound), 0.0):
            drift = f"the deployment became {'slower' if change < 0 else 'faster'} while it was measured"
            claim = replace(claim, status="drift", ended=self.ended or drift)
        if self.phase == "above":
            return replace(claim, status="above", lower=self._open_probes[-1].probe.rate)
        upper = min(self.estimate * math.exp(max(self.above, self.floor)), highest or math.inf)
        lower = self.claimed_rate
        if math.isnan(lower):
            lower, upper = self._lower, min(upper, self.failing)
        if lower >= self.failing:
            lower, upper = 0.0, min(upper, self.failing)
        claim = replace(claim, lower=lower, upper=max(lower, upper) if math.isfinite(upper) else 0.0)
        if self.is_confirmed:
            return replace(claim, status="confirmed")
        if self.confirmation_runs == CONFIRMATIONS:
            unconfirmed = f"{CONFIRMATIONS} runs at lower and lower claims did not confirm one"
            return replace(claim, ended=self.ended or unconfirmed)
        return claim


def shares_of(load: float, run: Replay, bounds: Sequence[LatencyBound], scales: Sequence[float] = ()) -> Shares:
    """Return a run's shares of good requests; `scales` are those of the bounds, for a twin."""
    scaled = zip(bounds, scales or [1.0] * len(bounds), strict=True)
    good = [bound.good(run, scale) for bound, scale in scaled]
    return Shares(load, [float(np.nanmean(each)) if np.isfinite(each).any() else math.nan for each in good])


def _variance(errors: list[Floats], share: float, count: int) -> float:
    """Return the variance of the mean error over all batches, which allows for the correlation of neighbours."""
    flat = np.concatenate(errors)
    mean, batches = float(flat.mean()), len(flat)
    squares = float((flat - mean) @ (flat - mean))
    lagged = sum(float((batch[1:] - mean) @ (batch[:-1] - mean)) for batch in errors)
    correlation = float(np.clip(lagged / max(squares, 1e-12), 0, 0.8))
    variance = squares / (batches - 1) / batches * (1 + correlation) / (1 - correlation)
    return max(variance, 0.3 * share * (1 - share) / count) * (1 + 100 / count)


def _throughput(run: Replay) -> float:
    """Answers per second while all users of a closed loop were busy, after the first fifth."""
    ends = np.sort((run.arrivals + run.e2el)[np.isfinite(run.e2el)])
    busy = ends[(ends >= ends[len(ends) // 5]) & (ends <= run.arrivals.max())]
    if len(busy) < 10 or np.ptp(busy) < 0.2 * ends[-1]:  # hardly more requests than users
        return len(ends) / float(ends[-1])
    return float(np.polyfit(busy, np.arange(len(busy)), 1)[0])  # answers may end in waves, so fit a line through all


def _most_decoding(run: Replay) -> int:
    """Return the most requests that were decoding at once: the deployment's limit, if it was full."""
    valid = np.isfinite(run.e2el)
    times = np.concatenate([(run.arrivals + latency)[valid] for latency in (run.ttft, run.e2el)])
    changes = np.repeat([1, -1], int(valid.sum()))[np.argsort(times, kind="stable")]
    return max(1, int(np.cumsum(changes).max()))
