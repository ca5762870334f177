"""The time left of a running sweep, by the scheduler's own estimate.

The remaining work is run through the scheduling policy (`sweep.plan.simulate`), each trial and launch with its kind's
duration in this run, or in earlier ones. Unmeasured trials say nothing about the pace.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean, median
from typing import Any

from sweep.base.records import UNMEASURED, Outcome, TrialProgress
from sweep.drive.launch_state import LaunchState, Stage
from sweep.plan.estimate import Expected, trial_seconds
from sweep.plan.packing import Need, Node
from sweep.plan.plan import Deployment, Trial
from sweep.plan.simulate import simulate

ESTIMATE_INTERVAL = 5.0  # s between two estimates
SHARE = 0.02  # of the driver's time, at most, for them
FIRST_SHARE = 0.05  # of a trial's requests, from which its own pace says how long it takes


class Forecast:
    """The durations of a run so far, and the forecast from them."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.needs = {need.key: need for need in expected.needs}
        self.trials: dict[tuple[str, str], list[float]] = defaultdict(list)  # s, of those that ended in this run
        self.launches: dict[str, list[float]] = defaultdict(list)
        self.means: dict[str, float] = {}  # s, of the trials of each engine; as of the last update, as those below
        self.mean_trial: float | None = None
        self.mean_launch: float | None = None
        self.next = 0.0  # monotonic

    def finished(self, launch: Deployment, trial: Trial, row: Mapping[str, Any]) -> None:
        """Take in a row of this run."""
        seconds = trial_seconds(row) if Outcome(row["outcome"]) not in UNMEASURED else None
        if seconds is not None:
            self.trials[_kind(launch, trial)].append(seconds)
            if row.get("startup_seconds") is not None:
                self.launches[launch.deployment_id].append(float(row["startup_seconds"]))

    def due(self) -> bool:
        """Return whether it is time for another estimate."""
        return time.monotonic() >= self.next

    def update(
        self,
        states: Iterable[LaunchState],
        nodes: Sequence[Node],
        elapsed: Mapping[str, float],
        progress: Mapping[str, TrialProgress],
    ) -> float | None:
        """Estimate the seconds that are left; None without any basis.

        `elapsed` are the seconds since the last event of each running launch, `progress` their trials'.
        """
        began = time.monotonic()
        self._take_means()
        needs: list[Need] = []
        complete = True
        for state in states:
            if state.stage is not Stage.PENDING and not state.stage.active:
                continue
            key = state.launch.launch_key
            seconds = self._left_of(state, elapsed.get(key, 0.0), progress.get(key))
            complete &= seconds is not None
            block = -1 if state.stage.active else self.needs[key].block
            needs.append(self.needs[key]._replace(seconds=seconds or 0.0, block=block))
        spans = simulate(needs, nodes).spans if needs and complete else []
        now = time.monotonic()
        self.next = now + max(ESTIMATE_INTERVAL, (now - began) / SHARE)
        return max((span.end for span in spans), default=None if needs else 0.0)

    def _left_of(self, state: LaunchState, elapsed: float, progress: TrialProgress | None) -> float | None:
        """The seconds until a launch has ended; None if its trials' durations are unknown."""
        total = 0.0
        for index, trial in enumerate(state.pending_trials):
            seconds = self._trial(state.launch, trial)
            if index == 0 and state.stage.active and progress is not None:
                seconds = _left_of_running(seconds, progress)
                elapsed = 0.0
            if seconds is None:
                return None
            total += seconds
        measures = state.stage.active and (progress is not None or bool(state.outcomes))
        launching = 0.0 if measures else self._launch(state.launch)
        return max(0.0, launching - elapsed) + total if state.stage.active else launching + total

    def _trial(self, launch: Deployment, trial: Trial) -> float | None:
        """The seconds of its kind in this run, else in earlier ones, else of this run's trials of its engine, or all of
        them.
        """
        if durations := self.trials.get(_kind(launch, trial)):
            return median(durations)
        if trial.trial_id in self.expected.trials:
            return self.expected.trials[trial.trial_id]
        return self.means.get(launch.deployment_id, self.mean_trial)

    def _launch(self, launch: Deployment) -> float:
        if durations := self.launches.get(launch.deployment_id):
            return median(durations)
        if launch.launch_key in self.expected.launches:
            return self.expected.launches[launch.launch_key]
        return self.mean_launch or 0.0

    def _take_means(self) -> None:
        """Compute the means once for all remaining trials: there may be ten thousand."""
        by_engine: dict[str, list[float]] = defaultdict(list)
        for (engine, _), durations in self.trials.items():
            by_engine[engine] += durations
        self.means = {engine: fmean(durations) for engine, durations in by_engine.items()}
        self.mean_trial = _mean(by_engine)
        self.mean_launch = _mean(self.launches)


def _mean(durations: Mapping[str, Sequence[float]]) -> float | None:
    """The mean over all engines; None without any."""
    return fmean(chain.from_iterable(durations.values())) if durations else None


def _kind(launch: Deployment, trial: Trial) -> tuple[str, str]:
    """Trials that differ only in their replicate are of one kind."""
    return launch.deployment_id, trial.describe_point()


def _left_of_running(expected: float | None, progress: TrialProgress) -> float | None:
    """The rest of the running trial, by its own pace once that is known, otherwise by its kind's duration."""
    if progress.share >= FIRST_SHARE:
        return progress.seconds * (1 - progress.share) / progress.share
    return None if expected is None else max(0.0, expected - progress.seconds)
