"""A search for the highest number of users of a closed loop: a curve through all probes decides, without a twin.

A closed loop slows down with its deployment, so probes with the same number of users differ little.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sweep.search.capacity import (
    ALONE,
    BATCH_SIZE,
    MOST_USERS,
    SHARE_OF_BUDGET,
    Claim,
    LatencyBound,
    Probe,
    ProbeResult,
    Shares,
    shares_of,
)
from sweep.search.twin import Floats, Integers, Replay

LEVEL, OWN_LEVEL = 0.005, 0.001  # risk of a decision on one side: by the curve, and by a number's own probes alone
LONGEST = 60.0  # s of a first probe
SETTLING, MEASURED = 6, 3  # requests of each user: before the queue is as full as it gets, and after that at least
CANDIDATES = 60  # numbers of users at which the curve is evaluated, beside those that were measured
DECISIVE = 60  # more requests: if all are good, a p90 is met
MOST_REPEATS = 4  # most probes of one number of users
CLOSE = 0.05  # relative width of an interval that is narrow enough, if it is wider than one user
NEARBY = math.log(2.5)  # of the numbers of users that the curve goes through
STEEPEST = 30.0  # standard deviation of the slope before anything is measured


class SharesOfBatches(NamedTuple):
    """The shares of good requests in batches of requests, for a bound."""

    users: Floats
    good: Floats
    sizes: Floats  # requests


class UserCapacity:
    """A proposer: `tell` it a probe's result, `ask` it for the next probe, and call `claim` at any time."""

    def __init__(self, bounds: Sequence[LatencyBound], budget: float = math.inf) -> None:
        self.bounds, self.budget = bounds, budget
        self.measured: list[ProbeResult] = []
        self.impossible: LatencyBound | None = None
        self.sustained, self.failing = 0, MOST_USERS + 1  # numbers of users that are decided
        self.promising = 0  # the highest number below `failing` whose own probes meet the bounds, decided or not
        self.likely = 1, MOST_USERS  # numbers of users that the curve decides, measured or not
        self.limiting_bound: LatencyBound | None = None  # the bound that is exceeded by the fewest users
        self.earlier: list[ProbeResult] = []  # of lost launches: they show how long a probe takes
        self.starts: Sequence[int] = ()  # numbers of users to begin with: the ends of a lost launch's interval

    def continue_from(self, earlier: Any) -> None:
        """Begin at the ends of the interval that the search on a lost launch had; its probes are no evidence here."""
        self.earlier = [*earlier.earlier, *earlier.measured]
        ends = earlier.failing, earlier.sustained or earlier.promising
        self.starts = [users for users in ends if 1 < users <= MOST_USERS] or earlier.starts

    def ask(self) -> Probe | None:
        """Return the next probe; None when the search has ended."""
        if not self.measured and not self.earlier:
            return Probe(ALONE, users=1)
        for users in () if self.impossible else self._undecided():
            rate, unit = self._rate(users), min(LONGEST, SHARE_OF_BUDGET * self.budget) * 2 ** self._looks(users) / 2
            least = (SETTLING + MEASURED + 1) * users + DECISIVE
            count = min(max(least, round(rate * unit)), rate * (self.budget - self._spent))
            if count >= least:
                return Probe(int(count), users=users)
        return None

    def _rate(self, users: int) -> float:
        """Return the expected throughput of this many users, in requests/s, from the closest probe and its growth."""
        probes = [*self.earlier, *self.measured]
        rates = sorted((probed.probe.users, probed.probe.requests / probed.seconds) for probed in probes)
        fewer = [pair for pair in rates if pair[0] <= users] or rates[:1]
        slower = next((pair for pair in reversed(fewer) if pair[0] < fewer[-1][0]), (0, 0.0))
        growth = math.log(fewer[-1][1] / slower[1]) / math.log(fewer[-1][0] / slower[0]) if slower[0] else 1.0
        return float(fewer[-1][1] * max(1.0, users / fewer[-1][0]) ** np.clip(growth, 0.0, 1.0))

    @property
    def most_throughput(self) -> float | None:
        """The highest throughput of a probe, in requests/s; None before one."""
        return max((probed.probe.requests / probed.seconds for probed in self._loops), default=None)

    def end_at_client(self) -> bool:
        """Return False: the number of users is what is searched."""
        return False

    def _looks(self, users: int) -> int:
        return sum(probed.probe.users == users for probed in self._loops)

    @property
    def _loops(self) -> list[ProbeResult]:
        return [probed for probed in self.measured if probed.probe.requests > ALONE]

    @property
    def longest(self) -> float:
        """The longest limit of a bound, in s."""
        return max(bound.limit for bound in self.bounds)

    def is_hopeless(self, probe: Probe, in_flight: int, seconds: float) -> bool:
        """Return False: the users of a closed loop wait for their answers."""
        return False

    @property
    def _spent(self) -> float:
        return sum(probed.seconds for probed in self.measured)

    @property
    def _narrow(self) -> bool:
        return self.failing - self.sustained <= max(1, CLOSE * self.sustained)

    def _undecided(self) -> Sequence[int]:
        """Return the numbers of users to probe next, the best first; empty if the rest is too close to decide."""
        if starts := [n for n in self.starts if self.sustained < n < self.failing and not self._looks(n)]:
            return starts
        most = max((probed.probe.users for probed in self._loops), default=1)
        if self.failing > MOST_USERS:
            return sorted({min(4 * most, MOST_USERS), min(2 * most, MOST_USERS)} - {most}, reverse=True)
        if self._narrow:
            return ()
        if self.failing > 2 * max(1, self.promising):
            middle = round(math.sqrt(max(0.5, self.promising) * self.failing))
            if not self._looks(middle):
                return (middle,)
        for users in self.likely:
            if self.sustained < users < self.failing and not self._looks(users):
                return (users,)
        low = self.sustained or min(math.ceil(self.failing / 4), self.failing - 1)
        within = range(max(1, low), self.failing + 1)
        looks = {users: self._looks(users) for users in within}
        fresh = [users for users in within if not looks[users]]
        if fresh and all(count != 1 for count in looks.values()):  # the ends do not narrow the interval
            return (fresh[len(fresh) // 2],)
        return sorted((users for users in within if 0 < looks[users] < MOST_REPEATS), key=looks.__getitem__)

    def tell(self, measured: ProbeResult) -> None:
        """Process the result of the probe that `ask` returned."""
        self.measured.append(measured)
        if measured.probe.requests == ALONE:
            missed = (bound for bound in self.bounds if np.nanmean(bound.good(measured.run)) == 0)
            self.impossible = next(missed, None)
            return
        probed = sorted({probed.probe.users for probed in self._loops})
        between = np.linspace(max(1, self.promising), min(self.failing, probed[-1]), CANDIDATES).astype(int)
        every = np.unique([*probed, *between])
        batches = [self._batches(bound) for bound in self.bounds]
        shares = [bound.share for bound in self.bounds]
        decided = np.array([decided_by(*of_bound, every) for of_bound in zip(batches, shares, strict=True)])
        exceeded, met = (decided == -1).any(axis=0), (decided == 1).all(axis=0)
        measured_at = np.isin(every, probed)
        self.failing = int(min(every[exceeded & measured_at], default=MOST_USERS + 1))
        if self.failing <= MOST_USERS:
            self.limiting_bound = self.bounds[int(decided[:, every == self.failing].argmin())]
        self.sustained = int(max(every[met & measured_at & (every < self.failing)], default=0))
        worst = {n: min(map(margin_of, batches, shares, [n] * len(shares))) for n in probed if n < self.failing}
        self.promising = max((n for n, margin in worst.items() if margin >= 0), default=0)
        above = every[exceeded & (every > self.sustained)]
        below = every[met & (every < (above[0] if len(above) else self.failing))]
        self.likely = int(below[-1]) if len(below) else 0, int(above[0]) if len(above) else MOST_USERS

    def _settled(self) -> Iterator[tuple[int, Replay]]:
        """Yield each probe's users with its requests while all users are served and the queue is full."""
        for probed in self._loops:
            yield probed.probe.users, probed.run.section(slice(SETTLING * probed.probe.users, -probed.probe.users))

    def measured_shares(self) -> list[Shares]:
        """Return the shares that the closed loops measured."""
        return [shares_of(users, settled, self.bounds) for users, settled in self._settled()]

    def twin_shares(self) -> list[Shares]:
        """Return nothing: there is no twin."""
        return []

    def _batches(self, bound: LatencyBound) -> SharesOfBatches:
        rows = []
        for users, settled in self._settled():
            good = bound.good(settled)
            good = good[~np.isnan(good)]
            number = max(len(good) // BATCH_SIZE, min(4, len(good) // 10), 1)
            for batch in np.array_split(good, number) if len(good) else ():
                rows.append((users, batch.mean(), len(batch)))
        return SharesOfBatches(*np.array(rows, np.float64).T) if rows else SharesOfBatches(*np.zeros((3, 0)))

    def claim(self) -> Claim:
        """Return what the probes so far show."""
        sustained, limit = self.sustained, self.impossible or self.limiting_bound
        highest = self.failing - 1 if self.failing <= MOST_USERS else 0
        words = limit.describe() if limit else ""
        claim = Claim("interval", sustained, highest, words, len(self.measured), self._spent, unit="users")
        if self.impossible or self.failing == 1:
            return replace(claim, status="impossible", upper=0)
        if sustained == MOST_USERS:
            return replace(claim, status="above")
        return replace(claim, status="confirmed") if sustained and self._narrow else claim


def margin_of(batches: SharesOfBatches, share: float, users: int) -> float:
    """Return how far the share of good requests at one number of users exceeds a share; nan without requests."""
    own = batches.users == users
    return float(np.average(batches.good[own], weights=batches.sizes[own])) - share if own.any() else math.nan


def decided_by(batches: SharesOfBatches, share: float, every: Integers) -> Integers:
    """Return `decisions`, corrected by each number's own probes: these have priority; unclear if they disagree."""
    decided = decisions(batches, every, share)
    for index in np.flatnonzero(np.isin(every, batches.users)):
        own = SharesOfBatches(*(column[batches.users == every[index]] for column in batches))
        (alone,) = decisions(own, every[index : index + 1], share, OWN_LEVEL)
        agreed = margin_of(own, share, every[index]) * decided[index] > 0
        decided[index] = alone or (decided[index] if agreed else 0)
    return decided


def decisions(batches: SharesOfBatches, every: Integers, share: float, level: float = LEVEL) -> Integers:
    """Return for each number of users 1 if more than this share of all requests is good, -1 if less, 0 if unclear.

    A logistic curve in the logarithm of the users goes through the batches near each number. The interval's variance is
    the sandwich (White 1982), which has the correlation of requests within batches. The interval is at least as wide as
    for independent requests. The risk is `level` on each side.
    """
    from scipy import stats  # here, since a run without a search imports this module too

    verdicts = np.zeros(len(every), np.int64)
    logs, goal = np.log(batches.users), math.log(share / (1 - share))
    for index, users in enumerate(every):
        near = np.abs(logs - math.log(users)) <= NEARBY
        number = int(near.sum())
        if number < 4:
            continue
        x = np.column_stack([np.ones(number), logs[near] - math.log(users)])
        size = batches.sizes[near]
        good = (size * batches.good[near] + 0.5 / number) / (size + 1 / number)  # neither all nor none
        prior = np.diag([0.0, STEEPEST**-2])
        curve = np.array([math.log(good.mean() / (1 - good.mean())), 0.0])
        for _ in range(25):
            expected = 1 / (1 + np.exp(-np.clip(x @ curve, -30, 30)))
            bread = (x.T * (size * expected * (1 - expected))) @ x + prior + 1e-9 * np.eye(2)
            curve = curve + np.clip(np.linalg.solve(bread, x.T @ (size * (good - expected)) - prior @ curve), -2, 2)
        errors = x.T * (size * (good - expected))
        inverse = np.linalg.inv(bread)
        sandwich = (inverse @ (errors @ errors.T) @ inverse)[0, 0] * number / (number - 2)
        spread = max(
            float(stats.t.ppf(1 - level, number - 2)) * math.sqrt(sandwich),
            float(stats.norm.ppf(1 - level)) * math.sqrt(inverse[0, 0]),
        )
        verdicts[index] = 1 if curve[0] - spread > goal else -1 if curve[0] + spread < goal else 0
    return verdicts
