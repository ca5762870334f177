"""A search for a capacity: each probe is an ordinary trial, and the same command continues from the rows."""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console

from sweep.base.config import (
    PERCENTILES,
    ConfigError,
    Settings,
    content_hash,
    first_line,
    read_slo,
    split_bound,
)
from sweep.base.exits import Cause
from sweep.base.records import Outcome
from sweep.base.whole_file import write_whole
from sweep.base.wording import count, duration_text, number
from sweep.cli.searches.claim_details import ProbeRow, claim_details
from sweep.disk.ledger import Ledger
from sweep.disk.object_store import is_url
from sweep.disk.run_files import RunPaths
from sweep.drive.driver import RunResult
from sweep.drive.policy import stored_exit
from sweep.numbers.warnings import Severity, trial_warnings
from sweep.plan.compose import Composition
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.search.capacity import Capacity, Claim, Probe
from sweep.search.probes import WARM_UP, proposer_of, read_probe
from sweep.search.users import UserCapacity

SEARCHED = ("load.rate", "load.concurrency", "workload.num_requests")  # the search chooses them
OVERTIME = 1.5  # budgets, after which a command begins no other probe
RISKS = {
    "requests/s": "in simulation 0 of 12 such claims were too high, which leaves a risk of up to 22%",
    "users": "in simulation 0 of 43 intervals began too high, which leaves a risk of up to 7%",
}
ENDPOINT = {"backend": "openai", "workload": "serving", "load": "poisson", "cluster": "inline", "tracking": "none"}
ENDPOINT |= {"retry": "next_run"}
PROBE_TRIES = 3  # of a probe that was disturbed, or whose trial was cut off
LENGTHS = {"workload.input_tokens": "512", "workload.output_tokens": "128"}


@dataclass
class Search:
    """Searches the capacity of each point of a run's plan, one after another."""

    base: Composition
    plan_of: Callable[[Composition], Plan]
    measure: Callable[[Plan, str], RunResult]  # runs one trial of a plan, by its id
    ledger: Ledger  # has the rows of earlier probes, which are not measured again
    paths: RunPaths
    console: Console

    def __post_init__(self) -> None:
        assert self.base.settings.capacity is not None
        self.budget = self.base.settings.capacity.budget
        self.closed = self.base.options.load("load", "closed")
        self.seeds: list[dict[int, int]] = []
        self.probes = replace(self.base, points=[], coordinates=[], seeds=self.seeds)
        self.plan = self.plan_of(self.base)
        self.claims: dict[str, dict[str, Any]] = {}
        self.rows: list[ProbeRow] = []  # of the point's probes
        self.result = RunResult(interrupted=False, unfinished=0, table_changed=False)
        self.began = 0.0

    def run(self) -> None:
        """Search every point, until the user interrupts or the run has to stop."""
        self.paths.claims.unlink(missing_ok=True)
        for deployment, trial in [(launched, trial) for launched in self.plan.deployments for trial in launched.trials]:
            if not self.result.interrupted and not self.result.unfinished:
                self.began = time.monotonic()
                self._search(deployment, trial)

    def _search(self, deployment: Deployment, trial: Trial) -> None:
        proposer, ended = proposer_of(trial, self.base.settings), ""
        self.rows.clear()
        try:
            while not ended and (probe := proposer.ask()):
                ended = self._probe(deployment, trial, proposer, probe)
        except KeyboardInterrupt:
            if not self.ledger.rows:
                raise
            self.result, ended = self.result._replace(interrupted=True), "interrupted"
        except Exception as error:
            ended = first_line(error)
            raise
        finally:
            claim = proposer.claim()
            claim = without_doubt(replace(claim, ended=ended or claim.ended), self.rows, self.base.settings.slo or ())
            details = claim_details(proposer, claim, self.rows, (deployment, trial), self.base.settings)
            described = asdict(claim) | {"lines": [*claim_lines(claim)]} | details
            self.claims[f"{details['configuration']} {details['task']}"] = described
            write_whole(self.paths.claims, json.dumps(self.claims, indent=1) + "\n")

    def _probe(self, deployment: Deployment, base: Trial, proposer: Capacity | UserCapacity, probe: Probe) -> str:
        """Measure a probe and tell the proposer; return why no further probe can follow, or ""."""
        trial = self._planned(base, probe, len(proposer.measured))
        row = self.ledger.valid_row(trial.trial_id)
        for _ in range(PROBE_TRIES):
            if row is not None and is_evidence(row):
                break
            if time.monotonic() - self.began > OVERTIME * self.budget:
                return f"{OVERTIME:g} times its budget has passed"
            self.result = self.measure(self.plan, trial.trial_id)._replace(table_changed=True)
            row = self.ledger.valid_row(trial.trial_id)
            if self.result.interrupted or self.result.unfinished:
                return "interrupted" if self.result.interrupted else "the run had to stop"
            if row is None or row["outcome"] == Outcome.INVALID:
                break
        if row is None or not is_evidence(row):
            return f"{row['outcome']}: {row.get('reason')}" if row else f"no result at {probe.describe()}"
        files = self.paths.trial(deployment.deployment_id, str(row["attempt"]), trial.trial_id)
        proposer.tell(read_probe(probe, files.requests))
        self.rows.append((probe, row))
        if (claim := proposer.claim()).lower:
            spent = f"{duration_text(claim.seconds)} of {duration_text(self.budget)} measured"
            line = f"so far {interval_text(claim)}, by {claim.limit or 'an unknown limit'}; {spent}"
            self.console.print(line, markup=False, soft_wrap=True)
        return ""

    def _planned(self, base: Trial, probe: Probe, order: int) -> Trial:
        """Add a probe to the plan, and return its trial."""
        key = "concurrency" if probe.users else "rate"
        closed = base.config["load"] if base.load.name == "closed" else self.closed
        load = {**(closed if probe.users else base.config["load"]), key: probe.users or probe.rate}
        workload = {"warmup_requests": WARM_UP, **base.config["workload"], "num_requests": probe.requests}
        seed = int(content_hash([base.trial_id, order], 8), 16)
        self.probes.points.append({**base.config, "load": load, "workload": workload})
        self.probes.coordinates.append({**base.coordinates, f"load.{key}": load[key]})
        self.seeds.append({order: seed})
        self.plan = self.plan_of(self.probes)
        return next(trial for trial in self.plan.trials if trial.seed == seed)


def is_evidence(row: Mapping[str, Any]) -> bool:
    """Whether a row shows how an endpoint copes with its load: the trial is OK, or many but not all requests failed."""
    if row["outcome"] != Outcome.INVALID:
        return bool(row["outcome"] == Outcome.OK)
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


def check_search(plan: Plan) -> str:
    """Return the plan's line about its search. Raises ConfigError if its capacity cannot be searched."""
    assert plan.settings.capacity is not None
    if plan.settings.replicates > 1:
        raise ConfigError(f"replicates={plan.settings.replicates}: expected 1 for a capacity search")
    if is_url(plan.settings.out):
        raise ConfigError(f"out={plan.settings.out}: expected a folder for a capacity search")
    for key in SEARCHED:
        axis = sorted({trial.coordinates[key] for trial in plan.trials if key in trial.coordinates})
        if len(axis) > 1:
            raise ConfigError(f"{key}={','.join(map(str, axis))}: expected no axis; a capacity search chooses the load")
    for deployment in plan.deployments:
        if deployment.backend.launches:
            launched = f"backend={deployment.backend.name}: would be launched again for each probe"
            raise ConfigError(f"{launched}; expected backend=openai backend.url=URL for a capacity search")
        for trial in deployment.trials:
            proposer_of(trial, plan.settings)
    budget = plan.settings.capacity.budget
    longest = f"{duration_text(budget)} of measurement and {duration_text(OVERTIME * budget)} in total"
    return f"capacity: {count(len(plan.trials), 'point')}, each at most {longest}; a probe is a trial"


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


def folder_of(command: str, url: str) -> str:
    """Return the folder for a command's results at an endpoint: `results/capacity-127.0.0.1-8000`."""
    address = re.sub(r"[^\w.]+", "-", url.partition("//")[2] or url).strip("-")
    return f"results/{command}-{address}"


def arguments_of_run(url: str, slo: str, budget: str, overrides: Sequence[str]) -> tuple[list[str], Path]:
    """Return the arguments of `sweep run` for an endpoint, and the folder. Raises ConfigError for bad input."""
    bounds = read_slo(slo) or {}
    if stray := [override for override in overrides if "=" not in override]:
        raise ConfigError(f"{stray[0]}: expected KEY=VALUE")
    typed = {override.partition("=")[0] for override in overrides}
    options = {"slo": "expected --slo", "capacity.budget": "expected --budget"}
    options |= dict.fromkeys(SEARCHED, "expected no setting; the search chooses it")
    if refused := sorted(typed & options.keys()):
        raise ConfigError(f"{refused[0]}: {options[refused[0]]}")
    if stored := [override for override in overrides if override.startswith("out=") and is_url(override[4:])]:
        raise ConfigError(f"{stored[0]}: expected a folder for a capacity search")  # before the store is asked
    lengths = {} if "workload" in typed else LENGTHS
    keys = ENDPOINT | lengths | {"backend.url": url, "slo": slo, "out": folder_of("capacity", url)}
    percentiles = {*PERCENTILES, *filter(None, (split_bound(name)[1] for name in bounds))}
    if len(percentiles) > len(PERCENTILES):
        keys |= {"percentiles": f"[{','.join(f'{percentile:g}' for percentile in sorted(percentiles))}]"}
    keys |= {"capacity.budget": budget} | dict(override.split("=", 1) for override in overrides)
    return [f"{key}={setting}" for key, setting in keys.items()], Path(keys["out"])
