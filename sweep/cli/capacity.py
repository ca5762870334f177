"""A search for a capacity: each probe is an ordinary trial, and the same command goes on from the rows."""

import json
import re
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
from sweep.disk.run_files import RunPaths
from sweep.plan.compose import Composition
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.search.capacity import Capacity, Claim, Probe
from sweep.search.probes import CLAIMS, WARM_UP, measured_of, question_of

RISK = "about 8 % of such claims are too high in simulation, by at most 2 %"
ENDPOINT = {"backend": "openai", "workload": "serving", "load": "poisson", "cluster": "inline", "tracking": "none"}
PROBE_TRIES = 3  # of a probe that its surroundings spoiled
LENGTHS = {"workload.input_tokens": "512", "workload.output_tokens": "128"}


class Search:
    """The searches of a run, one for each point of its plan, one after another."""

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

    def run(self, measure: Callable[[Plan], bool]) -> None:
        """Search every point; `measure` runs the pending trials of a plan, and returns whether the user interrupted."""
        for deployment, trial in [(each, trial) for each in self.plan.deployments for trial in each.trials]:
            if trial.replicate == 0 and not self.interrupted:
                self._search(deployment, trial, measure)

    def _search(self, deployment: Deployment, trial: Trial, measure: Callable[[Plan], bool]) -> None:
        proposer, ended = Capacity(question_of(trial, self.plan.settings)), ""
        try:
            while not ended and (probe := proposer.ask()):
                ended = self._probe(deployment, trial, proposer, probe, measure)
        except KeyboardInterrupt:
            self.interrupted, ended = True, "interrupted"
        self.claims[f"{deployment.describe()} {trial.name}"] = replace(proposer.claim(), ended=ended)
        claims = {name: asdict(claim) for name, claim in self.claims.items()}
        write_whole(self.paths.out / CLAIMS, json.dumps(claims, indent=1) + "\n")

    def _probe(
        self, deployment: Deployment, base: Trial, proposer: Capacity, probe: Probe, measure: Callable[[Plan], bool]
    ) -> str:
        """Measure a probe and tell the proposer; return why no other can follow, if none can."""
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
            self.interrupted = measure(self.plan)
            row = self.ledger.rows.get(trial.trial_id)
        if self.interrupted or row is None:
            return "interrupted" if self.interrupted else "the deadline"
        if not _is_measured(row):
            return f"{row['outcome']}: {row.get('reason')}"
        files = self.paths.trial(deployment.deployment_id, str(row["attempt"]), trial.trial_id)
        proposer.tell(measured_of(probe, files.requests))
        if (claim := proposer.claim()).lower:
            self.console.print(f"so far between {number(claim.lower)} and {number(claim.upper)} requests/s")
        return ""


def _is_measured(row: Mapping[str, Any]) -> bool:
    return row["outcome"] in (Outcome.OK, Outcome.INVALID) and bool(row["num_requests"])  # failures are evidence too


def check_search(plan: Plan) -> str:
    """Return the line that a plan has about its search. Raises ConfigError for what cannot be searched."""
    assert plan.settings.capacity is not None
    for deployment in plan.deployments:
        if deployment.backend.launches:
            launched = f"backend={deployment.backend.name}: is launched again for each probe"
            raise ConfigError(f"{launched}; expected a running engine, backend=openai backend.url=URL, for a capacity")
        for trial in deployment.trials:
            question_of(trial, plan.settings)
    budget = duration_text(plan.settings.capacity.budget)
    return f"capacity: {count(len(plan.trials), 'point')}, at most {budget} of measuring each; a probe is a trial"


def claim_lines(claim: Claim) -> Iterator[str]:
    """Yield the claim, what limits it, and how sure it is: a line each."""
    low, high = number(claim.lower), number(claim.upper)
    limit, sure = f"{claim.limit} is met first" if claim.limit else "unknown", ""
    match claim.status:
        case "impossible":
            shown, limit = "none: a single request misses the bound", claim.limit
        case "above":
            shown, limit = f"more than {low} requests/s", "no bound is met before the deployment is saturated"
        case "confirmed":
            shown, sure = f"{low} requests/s (between {low} and {high})", f"{RISK}; "
        case _:
            shown = f"between {low} and {high} requests/s" if claim.lower else f"unknown, at most {high} requests/s"
            sure = f"the search ended first ({claim.ended or 'its budget'}); "
    sure += f"of this launch while it was measured; {count(claim.probes, 'probe')}, {duration_text(claim.seconds)}"
    yield from (f"capacity: {shown}", f"limit:    {limit}", f"how sure: {sure} of measuring")


def arguments_of_run(url: str, slo: str, budget: str, overrides: Sequence[str]) -> tuple[list[str], Path]:
    """Return the arguments of `sweep run` for an endpoint, and the folder. Raises ConfigError for unreadable bounds."""
    read_slo(slo)
    place = re.sub(r"[^\w.]+", "-", url.partition("//")[2] or url).strip("-")
    keys = ENDPOINT | LENGTHS | {"backend.url": url, "slo": slo, "out": f"results/capacity-{place}"}
    keys |= {"capacity.budget": budget} | dict(override.split("=", 1) for override in overrides if "=" in override)
    return [f"{key}={value}" for key, value in keys.items()], Path(keys["out"])
