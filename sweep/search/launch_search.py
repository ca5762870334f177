"""A search for a capacity on one launch: it makes its probes' trials, is told their rows, and ends with a claim."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

from sweep.base.config import CapacitySearch, ConfigError, Settings, build, content_hash, first_line, split_bound
from sweep.base.exits import Cause
from sweep.base.records import Outcome, TrialProgress
from sweep.base.wording import count, duration_text, number
from sweep.disk.run_files import RunPaths
from sweep.drive.policy import stored_exit
from sweep.numbers.warnings import Severity, trial_warnings
from sweep.plan.plan import Deployment, Trial, identity_of, judging, trial_id_of
from sweep.search.capacity import Claim, Probe, ProbeResult
from sweep.search.claim_details import ProbeRow, claim_details, task_of
from sweep.search.probes import WARM_UP, proposer_of, read_probe

OVERTIME = 1.5  # budgets, after which a launch begins no other probe
PROBE_TRIES = 3  # of a probe that was disturbed, or whose trial was cut off
PROBES_APART = 100  # of a launch; the replicates of the next launch's probes begin here
STOPPED = "the run was stopped"
RISKS = {
    "requests/s": "in simulation 12 of 761 such claims were too high, which leaves a risk of up to 2.5%",
    "users": "in simulation 0 of 43 intervals began too high, which leaves a risk of up to 7%",
}


@dataclass(frozen=True)
class SearchedPoint:
    """A point of a plan whose capacity is searched, one launch after another."""

    deployment: Deployment  # without trials
    trial: Trial  # as planned: the probes differ in load and number of requests
    settings: Settings
    closed: Mapping[str, Any]  # settings of the closed loops with which a search for a rate begins

    @property
    def name(self) -> str:
        """The key of its claim: configuration and task, and the replicate if there are several."""
        replicate = f" replicate {self.trial.replicate}" if self.settings.replicates > 1 else ""
        return f"{self.deployment.describe()} {task_of(self.trial)}{replicate}"

    def seed(self, launch: int, order: int) -> int:
        """Return the seed of a probe, by which its row is found; `launch` counts the launches of this point."""
        return int(content_hash([self.trial.trial_id, *([launch] if launch else []), order], 8), 16)

    def rate_of(self, load: Mapping[str, Any]) -> float:
        """Return the rate in the settings of a probe's load, in requests/s; 0 for users."""
        if load["name"] != self.trial.load.name or not hasattr(self.trial.load, "at_rate"):
            return float(load.get("rate") or 0.0)
        natural = self.trial.load.mean_rate / self.trial.load.speed
        return float(f"{natural * load['speed']:.4g}")  # as it was before it became a speed

    def probe_trial(self, probe: Probe, launch: int, order: int) -> Trial:
        """Return a probe as a trial. Raises ConfigError if the workload has too few requests."""
        base, load = self.trial, dict(self.trial.config["load"])
        own_load = not probe.users or base.load.name == "closed"
        key = "concurrency" if probe.users else "speed" if hasattr(base.load, "at_rate") else "rate"
        if key == "speed":
            scaled = base.load.at_rate(probe.rate, probe.requests)
            load |= {"speed": scaled.speed, "repeat": scaled.repeat}
        else:
            load = (load if own_load else dict(self.closed)) | {key: probe.users or probe.rate}
        workload = {"warmup_requests": WARM_UP, **base.config["workload"], "num_requests": probe.requests}
        changed = {name: workload[name] for name in ("warmup_requests", "num_requests")}
        built: Any = build(load, "load")
        built_workload = base.workload.model_copy(update=changed)
        built_workload.check_count(built.count(probe.requests))
        content = {group: digest for group, digest in base.content.items() if group != "load" or own_load}
        parts = [
            identity_of(build(workload, "workload"), content.get("workload")),
            identity_of(built, content.get("load")),
        ]
        seed = self.seed(launch, order)
        replicate = PROBES_APART * (launch * self.settings.replicates + base.replicate) + order
        own_launch = self.deployment.replicate is not None and self.deployment.backend.launches
        judged_by = judging(self.settings)
        trial_id = trial_id_of(self.deployment.deployment_id, parts, replicate, seed, own_launch, judged_by)
        config = {**base.config, "load": load, "workload": workload}
        coordinates = {**base.coordinates, f"load.{key}": load[key]}
        label = base.describe_point().replace(base.load.describe(), built.describe(), 1)
        return Trial(trial_id, built_workload, built, replicate, seed, coordinates, config, content, label)


class LaunchSearch:
    """The search for a point's capacity on one of its launches: `next` trial, `tell` its row, and the claim's record.

    It uses no clock and no engine. The same rows always give the same claim.
    """

    def __init__(
        self, point: SearchedPoint, launch: int, paths: RunPaths, earlier: "LaunchSearch | None" = None
    ) -> None:
        self.point, self.launch, self.paths = point, launch, paths
        self.proposer = proposer_of(point.trial, point.settings, point.deployment.backend)
        if earlier is not None:  # on the launch before, which was lost
            self.proposer.continue_from(earlier.proposer)
        self.rows: list[ProbeRow] = []
        self.trials: list[str] = []  # ids of the probes whose rows count
        self.ended = ""  # why no probe can follow, if not by evidence or the measuring time
        self.cut_off = 0  # times that the endpoint was gone
        self.due: tuple[Probe, Trial] | None = None  # the next probe

    @property
    def settings(self) -> CapacitySearch:
        assert self.point.settings.capacity is not None
        return self.point.settings.capacity

    @property
    def budget(self) -> float:
        return self.settings.budget

    @property
    def seconds_left(self) -> float:
        """The measuring time that is left, in s."""
        return max(0.0, self.budget - self.proposer.claim().seconds)

    @property
    def due_seconds(self) -> float:
        """The expected duration of the next probe, in s; 0 if it is unknown."""
        return self.due[0].seconds if self.due else 0.0

    def is_hopeless(self, progress: TrialProgress) -> bool:
        """Return whether the running probe need not go on, since its load is too high."""
        assert self.due is not None, "there is a next probe"
        return self.proposer.is_hopeless(self.due[0], progress.in_flight, progress.seconds)

    def next(self) -> Trial | None:
        """Return the next probe's trial; None if the search has ended."""
        if not self.ended and self.due is None and (probe := self.proposer.ask()):
            most = self.settings.trials
            if most is not None and len(self.rows) >= most:
                self.ended = f"{count(most, 'trial')} were measured"
                return None
            try:
                self.due = probe, self.point.probe_trial(probe, self.launch, len(self.rows))
            except ConfigError as error:  # the workload has too few requests
                self.ended = first_line(error)
        return None if self.ended or self.due is None else self.due[1]

    def read(self, row: Mapping[str, Any]) -> ProbeResult | None:
        """Return what the next probe measured, from its requests on disk; None if it is no evidence."""
        assert self.due is not None, "there is a next probe"
        probe, trial = self.due
        if not is_evidence(row):
            return None
        files = self.paths.trial(self.point.deployment.deployment_id, str(row["attempt"]), trial.trial_id)
        return read_probe(probe, files.requests, self.proposer.longest)

    def tell(self, row: Mapping[str, Any], measured: ProbeResult | None) -> str:
        """Use the next probe's row and measurement; return what is known so far, or "" if that is nothing."""
        assert self.due is not None, "there is a next probe"
        probe, trial = self.due
        if measured is None:
            if row["outcome"] == Outcome.CLIENT_LIMITED and self.proposer.end_at_client():
                self.due = None
            else:
                self.ended = f"{row['outcome']}: {row.get('reason')}"
            return ""
        self.proposer.tell(measured)
        self.rows.append((probe, row))
        self.trials.append(trial.trial_id)
        self.due = None
        claim = self.proposer.claim()
        if not claim.lower and not claim.upper:
            return ""
        known = [interval_text(claim), *([f"by {claim.limit}"] if claim.limit else [])]
        if math.isfinite(estimate := getattr(self.proposer, "estimate", math.nan)):
            known.append(f"estimate {number(estimate)}")
        following = self.proposer.ask()
        to_narrow = f"; next: {count(following.requests, 'request')}, {following.describe()}" if following else ""
        left = f"{duration_text(self.seconds_left)} of {duration_text(self.budget)} left"
        return f"so far {', '.join(known)}; {left}{to_narrow}"

    def record(self, ended: str = "") -> dict[str, Any]:
        """Return the claim as in capacity.json; `ended`: why the search ended early, if it did."""
        point, claim = self.point, self.proposer.claim()
        claim = replace(claim, ended=self.ended or ended or claim.ended)
        claim = without_doubt(claim, self.rows, point.settings.slo or ())
        of_point = (point.deployment, point.trial)
        launches = {row["launch"] for _, row in self.rows if row.get("launch")}
        gave_up = claim.ended not in ("", STOPPED) and point.deployment.backend.launches
        return (
            asdict(claim)
            | {"lines": [*claim_lines(claim)]}
            | claim_details(self.proposer, claim, self.rows, of_point, point.settings)
            | {"replicate": point.trial.replicate, "launch": next(iter(launches), None)}
            | {"search": self.settings.model_dump(), "trials": self.trials}
            | {"finished": gave_up or self.proposer.ask() is None}
        )


def is_evidence(row: Mapping[str, Any]) -> bool:
    """Whether a row shows how an engine copes with its load: the trial is OK, was ended since its load was too high,
    or many but not all requests failed.
    """
    if row["outcome"] != Outcome.INVALID:
        return bool(row["outcome"] in (Outcome.OK, Outcome.CENSORED))
    exit, share = stored_exit(row), (row.get("num_failed") or 0) / (row.get("num_requests") or 1)
    allowed = json.loads(row["settings"]).get("max_failed", Settings.model_fields["max_failed"].default)
    return exit is not None and exit.cause in (Cause.MANY_FAILED, Cause.ENDPOINT) and allowed < share < 1


def without_doubt(claim: Claim, rows: Sequence[ProbeRow], slo: Iterable[str]) -> Claim:
    """Return a claim, or a refusal if the probe next to it has a severe warning about a latency of the SLO.

    A queue that grows above the claimed rate is evidence for the claim.
    """
    load = attrgetter("users" if claim.unit == "users" else "rate")
    probed = [pair for pair in rows if load(pair[0])] if claim.lower else rows[-1:]
    if not probed:
        return claim
    probe, row = min(reversed(probed), key=lambda pair: abs(load(pair[0]) - claim.lower))
    latencies = [f"{split_bound(name)[0]}_p90" for name in slo]
    for warning in trial_warnings(row):
        expected = warning.code == "growing-queue" and probe.rate > claim.lower
        if warning.kind.severity == Severity.SEVERE and warning.kind.concerns(latencies) and not expected:
            ended = f"{warning.code} at {probe.describe()}: {warning.message}"
            return replace(claim, status="refused", lower=0.0, upper=0.0, limit="", ended=ended)
    return claim


def interval_text(claim: Claim) -> str:
    """Return a claim's interval as text; one end may be unknown."""
    low, high = ends_of(claim)
    if claim.lower == claim.upper != 0:
        return f"{low} {claim.unit}"
    if claim.lower:
        return f"between {low} and {high} {claim.unit}" if claim.upper else f"at least {low} {claim.unit}"
    return f"unknown, at most {high} {claim.unit}" if claim.upper else "unknown"


def ends_of(claim: Claim) -> tuple[str, str]:
    """The ends of a claim's interval as text."""
    ends = claim.lower, claim.upper
    low, high = (f"{end:.0f}" if claim.unit == "users" else number(end) for end in ends)
    return low, high


def claim_lines(claim: Claim) -> Iterator[str]:
    """Yield the claim, what limits it, and how sure it is: a line each."""
    limit, sure = f"{claim.limit} is exceeded first" if claim.limit else "unknown", ""
    limit = "the deployment is saturated before a bound is exceeded" if claim.limit == "saturation" else limit
    match claim.status:
        case "impossible":
            answer, limit = "none: a single request exceeds the bound", claim.limit
        case "above":
            highest = "before the deployment is saturated" if claim.upper else "at the highest load that was tried"
            answer, limit = f"more than {ends_of(claim)[0]} {claim.unit}", f"no bound is exceeded {highest}"
        case "confirmed":
            interval = f" ({interval_text(claim)})" if claim.lower < claim.upper else ""
            answer, sure = f"{ends_of(claim)[0]} {claim.unit}{interval}", f"{RISKS[claim.unit]}; "
        case _:
            answer, sure = interval_text(claim), f"the search ended early: {claim.ended or 'its budget is spent'}; "
    sure += f"valid for this launch at this time; {count(claim.probes, 'probe')}, {duration_text(claim.seconds)}"
    yield from (f"capacity: {answer}", f"limit:    {limit}", f"how sure: {sure} of measurement")
