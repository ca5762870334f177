"""Forecasts the time left of a running sweep.

The remaining work is simulated with the scheduler's policy (`sweep.plan.simulate`). Each trial and launch takes as long
as similar ones in this run or in earlier runs. Trials without measurements are ignored.
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
SHARE = 0.02  # share of the driver's time, at most, for estimates
FIRST_SHARE = 0.05  # share of a trial's requests after which its pace predicts its duration


class Forecast:
    """The durations in a run so far, and the forecast from them."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.needs = {need.key: need for need in expected.needs}
        self.trials: dict[tuple[str, str], list[float]] = defaultdict(list)  # s of trials that ended in this run
        self.launches: dict[str, list[float]] = defaultdict(list)
        self.means: dict[str, float] = {}  # mean trial duration of each engine, in s; updated like the fields below
        self.mean_trial: float | None = None
        self.mean_launch: float | None = None
        self.searches: dict[str, tuple[float, float]] = {}  # by launch: s left of its searches, and when (monotonic)
        self.next = 0.0  # monotonic

    def finished(self, launch: Deployment, trial: Trial, row: Mapping[str, Any]) -> None:
        """Add a row of this run."""
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
        waiting: Iterable[Need] = (),
    ) -> float | None:
        """Estimate the seconds left; None if nothing similar has been measured.

        `elapsed` has the seconds since the last event of each running launch, `progress` the progress of its trial.
        `waiting` are the launches that a search has not begun.
        """
        began = time.monotonic()
        self._take_means()
        needs = list(waiting)
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
        """Return the expected seconds until a launch ends; None if its trials, or their durations, are unknown."""
        if state.launch.searched:
            key, now = state.launch.launch_key, time.monotonic()
            searching, since = self.searches.get(key, (self.needs[key].seconds, now - elapsed))
            return max(0.0, searching - (now - since))
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
        """Return a trial's expected seconds: from trials of its kind in this run, else in earlier runs, else the mean
        of its engine's trials in this run, else the mean of all trials.
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
        """Compute the mean durations once, since there may be ten thousand remaining trials."""
        by_engine: dict[str, list[float]] = defaultdict(list)
        for (engine, _), durations in self.trials.items():
            by_engine[engine] += durations
        self.means = {engine: fmean(durations) for engine, durations in by_engine.items()}
        self.mean_trial = _mean(by_engine)
        self.mean_launch = _mean(self.launches)


def _mean(durations: Mapping[str, Sequence[float]]) -> float | None:
    """Return the mean over all engines; None if there are no durations."""
    return fmean(chain.from_iterable(durations.values())) if durations else None


def _kind(launch: Deployment, trial: Trial) -> tuple[str, str]:
    """Return a trial's kind: a key shared by all replicates of a point."""
    return launch.deployment_id, trial.describe_point()


def _left_of_running(expected: float | None, progress: TrialProgress) -> float | None:
    """Return the seconds left of the running trial, from its pace once known, else from its expected duration."""
    if progress.share >= FIRST_SHARE:
        return progress.seconds * (1 - progress.share) / progress.share
    return None if expected is None else max(0.0, expected - progress.seconds)
