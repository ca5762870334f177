"""A search for a capacity: each probe is an ordinary trial, and the same command continues from the stored rows."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from sweep.base.config import ConfigError, content_hash, read_slo
from sweep.base.records import Outcome
from sweep.base.whole_file import write_whole
from sweep.base.wording import count, duration_text, number
from sweep.disk.ledger import Ledger
from sweep.disk.object_store import is_url
from sweep.disk.run_files import RunPaths, read_claims
from sweep.plan.compose import Composition
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.search.capacity import Capacity, Claim, Probe
from sweep.search.probes import WARM_UP, measured_of, question_of

SEARCHED = ("load.rate", "workload.num_requests")  # the search chooses them
OVERTIME = 1.5  # multiple of the budget after which a command begins no further probe
RISK = "in simulation 0 of 26 such claims were too high, which leaves a risk of up to 11%"
ENDPOINT = {"backend": "openai", "workload": "serving", "load": "poisson", "cluster": "inline", "tracking": "none"}
ENDPOINT |= {"retry": "next_run"}
PROBE_TRIES = 3  # attempts at a probe that other processes or a network disturbed
LENGTHS = {"workload.input_tokens": "512", "workload.output_tokens": "128"}


class Search:
    """Searches the capacity of each point of a run's plan, one after another."""

    def __init__(
        self, base: Composition, make: Callable[[Composition], Plan], ledger: Ledger, paths: RunPaths, console: Console
    ) -> None:
        """`make` plans a composition; `ledger` has the rows of earlier probes, which are not measured again."""
        self.base, self.make, self.ledger, self.paths, self.console = base, make, ledger, paths, console
        self.closed = base.options.load("load", "closed")
        self.points: list[dict[str, Any]] = []
        self.coordinates: list[dict[str, Any]] = []
        self.seeds: list[dict[int, int]] = []
        self.plan = make(base)
        self.claims: dict[str, Claim] = {}
        self.interrupted = False
        self.began = 0.0

    def run(self, measure: Callable[[Plan], bool]) -> None:
        """Search every point; `measure` runs the pending trials of a plan, and returns whether the user interrupted."""
        for deployment, trial in [(launched, trial) for launched in self.plan.deployments for trial in launched.trials]:
            if trial.replicate == 0 and not self.interrupted:
                self.began = time.monotonic()
                self._search(deployment, trial, measure)

    def _search(self, deployment: Deployment, trial: Trial, measure: Callable[[Plan], bool]) -> None:
        proposer, ended = Capacity(question_of(trial, self.base.settings)), ""
        try:
            while not ended and (probe := proposer.ask()):
                ended = self._probe(deployment, trial, proposer, probe, measure)
        except KeyboardInterrupt:
            self.interrupted, ended = True, "interrupted"
        claim = proposer.claim()
        self.claims[f"{deployment.describe()} {trial.name}"] = replace(claim, ended=ended or claim.ended)
        claims = {name: asdict(claim) | {"lines": [*claim_lines(claim)]} for name, claim in self.claims.items()}
        write_whole(self.paths.claims, json.dumps(claims, indent=1) + "\n")

    def _probe(
        self, deployment: Deployment, base: Trial, proposer: Capacity, probe: Probe, measure: Callable[[Plan], bool]
    ) -> str:
        """Measure a probe and give the result to the proposer; return why the search must end, or ""."""
        key, order = "concurrency" if probe.users else "rate", len(proposer.measured)
        load = {**(self.closed if probe.users else base.config["load"]), key: probe.users or probe.rate}
        workload = {"warmup_requests": WARM_UP, **base.config["workload"], "num_requests": probe.requests}
        seed = int(content_hash([base.trial_id, order], 8), 16)
        self.points.append({**base.config, "load": load, "workload": workload})
        self.coordinates.append({**base.coordinates, f"load.{key}": load[key]})
        self.seeds.append({order: seed})
        self.plan = self.make(replace(self.base, points=self.points, coordinates=self.coordinates, seeds=self.seeds))
        trial = next(trial for trial in self.plan.trials if trial.seed == seed)
        row = self.ledger.valid_row(trial.trial_id)
        for _ in range(PROBE_TRIES):
            if (row is not None and _is_measured(row)) or self.interrupted:
                break
            if time.monotonic() - self.began > OVERTIME * proposer.question.budget:
                return f"{OVERTIME:g} times its budget has passed"
            self.interrupted = measure(self.plan)
            row = self.ledger.rows.get(trial.trial_id)
        if self.interrupted or row is None:
            return "interrupted" if self.interrupted else "the deadline"
        if not _is_measured(row):
            return f"{row['outcome']}: {row.get('reason')}"
        files = self.paths.trial(deployment.deployment_id, str(row["attempt"]), trial.trial_id)
        proposer.tell(measured_of(probe, files.requests))
        if (claim := proposer.claim()).lower:
            spent = f"{duration_text(claim.seconds)} of {duration_text(proposer.question.budget)} measured"
            so_far = f"so far between {number(claim.lower)} and {number(claim.upper)} requests/s"
            self.console.print(f"{so_far}, by {claim.limit}; {spent}", markup=False, soft_wrap=True)
        return ""


def _is_measured(row: Mapping[str, Any]) -> bool:
    return row["outcome"] in (Outcome.OK, Outcome.INVALID) and bool(row["num_requests"])  # failures are evidence too


def check_search(plan: Plan) -> str:
    """Return the plan's line about its search. Raises ConfigError if its capacity cannot be searched."""
    assert plan.settings.capacity is not None
    if plan.settings.replicates > 1:
        raise ConfigError(f"replicates={plan.settings.replicates}: expected 1 for a capacity")
    if is_url(plan.settings.out):
        raise ConfigError(f"out={plan.settings.out}: expected a folder for a capacity")
    for key in SEARCHED:
        axis = sorted({trial.coordinates[key] for trial in plan.trials if key in trial.coordinates})
        if len(axis) > 1:
            raise ConfigError(f"{key}={','.join(map(str, axis))}: expected no axis; a capacity search chooses it")
    for deployment in plan.deployments:
        if deployment.backend.launches:
            launched = f"backend={deployment.backend.name}: would be launched again for each probe"
            raise ConfigError(f"{launched}; expected a running engine, backend=openai backend.url=URL, for a capacity")
        for trial in deployment.trials:
            question_of(trial, plan.settings)
    budget = plan.settings.capacity.budget
    longest = f"{duration_text(budget)} of measuring and {duration_text(OVERTIME * budget)} in all"
    return f"capacity: {count(len(plan.trials), 'point')}, each at most {longest}; a probe is a trial"


def claim_lines(claim: Claim) -> Iterator[str]:
    """Yield three lines: the claim, what limits the capacity, and how certain the claim is."""
    low, high = number(claim.lower), number(claim.upper)
    limit, sure = f"{claim.limit} is reached first" if claim.limit else "unknown", ""
    match claim.status:
        case "impossible":
            shown, limit = "none: a single request misses the bound", claim.limit
        case "above":
            shown, limit = f"more than {low} requests/s", "no bound is met before the deployment is saturated"
        case "confirmed":
            shown, sure = f"{low} requests/s (between {low} and {high})", f"{RISK}; "
        case _:
            shown = f"between {low} and {high} requests/s" if claim.lower else "unknown"
            shown += f", at most {high} requests/s" if claim.upper and not claim.lower else ""
            sure = f"the search ended early: {claim.ended or 'its budget is spent'}; "
    sure += f"of this launch while it was measured; {count(claim.probes, 'probe')}, {duration_text(claim.seconds)}"
    yield from (f"capacity: {shown}", f"limit:    {limit}", f"how sure: {sure} of measuring")


def all_claim_lines(paths: RunPaths) -> list[str]:
    """Return the lines of a run's claims; each claim follows its point's name if there are several points."""
    claims = read_claims(paths)
    names = {name: [name] if len(claims) > 1 else [] for name in claims}
    return [line for name, claim in claims.items() for line in (*names[name], *claim["lines"])]


def folder_of(command: str, url: str) -> str:
    """Return the folder for a command's results at an endpoint: `results/capacity-127.0.0.1-8000`."""
    address = re.sub(r"[^\w.]+", "-", url.partition("//")[2] or url).strip("-")
    return f"results/{command}-{address}"


def arguments_of_run(url: str, slo: str, budget: str, overrides: Sequence[str]) -> tuple[list[str], Path]:
    """Return the arguments of `sweep run` for an endpoint, and the folder. Raises ConfigError for bad input."""
    read_slo(slo)
    if stray := [override for override in overrides if "=" not in override]:
        raise ConfigError(f"{stray[0]}: expected KEY=VALUE")
    typed = {override.partition("=")[0] for override in overrides}
    options = {"slo": "expected --slo", "capacity.budget": "expected --budget"}
    options |= dict.fromkeys(SEARCHED, "expected no setting; the search chooses it")
    if refused := sorted(typed & options.keys()):
        raise ConfigError(f"{refused[0]}: {options[refused[0]]}")
    if stored := [override for override in overrides if override.startswith("out=") and is_url(override[4:])]:
        raise ConfigError(f"{stored[0]}: expected a folder for a capacity")
    lengths = {} if "workload" in typed else LENGTHS
    keys = ENDPOINT | lengths | {"backend.url": url, "slo": slo, "out": folder_of("capacity", url)}
    keys |= {"capacity.budget": budget} | dict(override.split("=", 1) for override in overrides)
    return [f"{key}={setting}" for key, setting in keys.items()], Path(keys["out"])
