"""Searches for capacities: each probe is an ordinary trial, and the same command continues from the rows."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweep.base.config import (
    PERCENTILES,
    CapacitySearch,
    ConfigError,
    DamagedFile,
    read_slo,
    slo_in_units,
    split_bound,
)
from sweep.base.wording import count, duration_text
from sweep.disk.ledger import Ledger, LedgerRow
from sweep.disk.object_store import is_url
from sweep.disk.run_files import RunPaths, read_claims, write_plan, write_whole
from sweep.drive import policy
from sweep.node.events import Claimed, Proposed
from sweep.plan.compose import Composition
from sweep.plan.estimate import Expected
from sweep.plan.packing import Need, Node, need_of
from sweep.plan.pending import PendingWork
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.plan.simulate import simulate
from sweep.search.capacity import Probe
from sweep.search.claim_details import asked_of, with_fresh_launch
from sweep.search.launch_search import OVERTIME, STOPPED, LaunchSearch, SearchedPoint, is_evidence
from sweep.search.probes import check_point, mean_lengths

SEARCHED = ("load.rate", "load.concurrency", "load.speed", "workload.num_requests")  # the search chooses them
ENDPOINT = {"backend": "openai", "workload": "serving", "load": "poisson", "cluster": "inline", "tracking": "none"}
ENDPOINT |= {"retry": "next_run"}
LENGTHS = {"workload.input_tokens": "512", "workload.output_tokens": "128"}


@dataclass
class PointState:
    """A point of a run, its present launch, and its claim once there is one."""

    point: SearchedPoint
    search: LaunchSearch  # on the present launch; it is told only what an endpoint's earlier rows say
    earlier: LaunchSearch | None = None  # on the launch before, which was lost
    record: dict[str, Any] | None = None  # the claim of this run, or of an earlier run with the same rows
    measured: list[str] = field(default_factory=list)  # probes of its last launch in earlier runs
    concluded: bool = False  # whether no launch is needed in this run
    lost: int = 0  # launches in this run that ended before the claim


class PlannedCapacity:
    """The searches of a plan: each launch searches its points one after another, and launches run side by side.

    An engine's probes count for the launch that measured them. If it is lost, the next launch begins with what they
    showed (`continue_from`), and measures its own.
    """

    def __init__(
        self,
        base: Plan,
        composition: Composition,
        ledger: Ledger,
        paths: RunPaths,
        command: str,
        expect: Callable[[list[Deployment]], Expected],
    ) -> None:
        self.settings, self.ledger, self.paths, self.command = base.settings, ledger, paths, command
        self.expect = expect
        self.plan = replace(base, deployments=[], axes=sorted({*base.axes, *SEARCHED[:3]}))
        closed = composition.options.load("load", "closed")
        try:
            earlier = read_claims(paths)
        except DamagedFile:
            earlier = {}  # the rows have all that it says
        by_seed = {(row["deployment_id"], row["seed"]): trial_id for trial_id, row in ledger.rows.items()}
        self.groups: dict[str, list[PointState]] = {}  # by key of the launch
        self.running: dict[str, list[str]] = {}  # the probes of each running launch, by its key
        for launch in base.launches:
            bare = replace(launch, trials=[])
            points = [SearchedPoint(bare, trial, self.settings, closed) for trial in launch.trials]
            self.groups[launch.launch_key] = [self._restored(point, by_seed, earlier) for point in points]
        self._write_claims()

    def _restored(
        self, point: SearchedPoint, by_seed: dict[tuple[str, int], str], earlier: dict[str, Any]
    ) -> PointState:
        """Return a point's state by the rows of earlier runs, which become part of the plan."""
        deployment, state = point.deployment, PointState(point, LaunchSearch(point, 0, self.paths))
        launches, trials = 1, self._measured(point, 0, by_seed)
        while deployment.backend.launches and (later := self._measured(point, launches, by_seed)):
            launches, trials = launches + 1, later
        state.measured = [trial.trial_id for trial in trials]
        if deployment.unavailable:
            self._conclude(state, f"unavailable: {deployment.unavailable}")
        if deployment.unavailable or not trials:  # a question has many launches that no earlier run began
            return state
        rows = [row for trial in trials if (row := self.ledger.valid_row(trial.trial_id)) is not None]
        record = earlier.get(point.name, {})
        evidence = [row["trial_id"] for row in rows if is_evidence(row)]
        search = state.search.settings.model_dump()
        unchanged = {"slo": slo_in_units(self.settings.slo), "search": search, "trials": evidence}
        if "budget" in record:  # of an earlier version
            record["search"] = CapacitySearch(budget=record["budget"]).model_dump()
        settled = not any(map(self._is_due, rows)) and len(rows) == len(trials) > 0
        if settled and record.get("finished") and all(record.get(key) == value for key, value in unchanged.items()):
            state.record, state.concluded = record, True
            return state
        for _ in range(launches - 1):
            self._begin_next(state)
        self._replay(state.search)
        if state.search.next() is None:
            self._conclude(state)
        elif deployment.backend.launches and state.search.rows:
            self._begin_next(state)
        return state

    def _measured(self, point: SearchedPoint, launch: int, by_seed: dict[tuple[str, int], str]) -> list[Trial]:
        """Return the probes of a launch that have a row, and add them to the plan."""
        trials: list[Trial] = []
        while trial_id := by_seed.get((point.deployment.deployment_id, point.seed(launch, len(trials)))):
            config = json.loads(self.ledger.rows[trial_id]["config"])
            load, requests = config["load"], config["workload"]["num_requests"]
            rate = point.rate_of(load)
            probe = Probe(requests, rate, 0 if rate else load["concurrency"])
            trial = point.probe_trial(probe, launch, len(trials))
            if trial.trial_id != trial_id:
                break
            trials.append(trial)
            self.plan.add(point.deployment, trial)
        return trials

    def _is_due(self, row: LedgerRow) -> bool:
        return policy.needs_run(row, self.ledger.history(row["trial_id"]), self.settings)

    def _replay(self, search: LaunchSearch, last: bool = False) -> None:
        """Tell a search the rows of its probes, until one is missing or is measured again; `last`: none is."""
        while trial := search.next():
            row = self.ledger.valid_row(trial.trial_id)
            if row is None or not (is_evidence(row) or last or not self._is_due(row)):
                return
            try:
                measured = search.read(row)
            except (DamagedFile, FileNotFoundError):  # e.g. the node was lost before it had sent the file
                return
            search.tell(row, measured)

    def _begin_next(self, state: PointState) -> None:
        """Begin the search on the next launch with what the present launch's rows show."""
        self._replay(state.search)
        state.earlier = state.search
        state.search = LaunchSearch(state.point, state.earlier.launch + 1, self.paths, state.earlier)

    def pending(self, of_grid: PendingWork, nodes: Sequence[Node]) -> PendingWork:
        """Return the work of a run whose searches add the launches."""
        todo = [[state for state in states if not state.concluded] for states in self.groups.values()]
        needs = [self._expected(states).needs[0] for states in todo if states]
        return of_grid.of_search(len(self.plan.trials), simulate(needs, nodes).makespan or None)

    # The driver's interface ------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return all(state.concluded for states in self.groups.values() for state in states)

    def ask(self, has_room: Callable[[Need], bool]) -> tuple[Deployment, Expected] | None:
        """Return the next launch that there is room for, with its expected durations; None if none is wanted now."""
        for key in sorted(self.groups, key=lambda key: -self.groups[key][0].point.deployment.gpu_count):
            if started := self.start(key, has_room):
                return started
        return None

    def start(self, key: str, has_room: Callable[[Need], bool]) -> tuple[Deployment, Expected] | None:
        """Return a launch with its expected durations if it is wanted, does not run, and has room."""
        states = [state for state in self.groups[key] if not state.concluded]
        for state in states:
            if state.search.next() is None:  # the workload has too few requests
                self._conclude(state)
        states = [state for state in states if not state.concluded]
        if not states or key in self.running or not has_room(need_of(states[0].point.deployment)):
            return None
        launch = self._launch(states)
        for trial in launch.trials:
            self._begin(launch, trial)
        return launch, self._expected(states)

    def wanted(self, most: int) -> list[Need]:
        """Return what the next launches need, for an autoscaler: at most so many."""
        return self.waiting()[:most]

    def waiting(self) -> list[Need]:
        """Return what all launches need that have not begun, with the measuring time of their searches."""
        waiting = [states for key, states in self.groups.items() if key not in self.running]
        todo = [[state for state in states if not state.concluded] for states in waiting]
        return [need_of(states[0].point.deployment, _seconds_left(states)) for states in todo if states]

    def _begin(self, launch: Deployment, trial: Trial) -> None:
        self.running.setdefault(launch.launch_key, []).append(trial.trial_id)
        self.plan.add(launch, trial)
        write_plan(self.paths, self.plan.entries(self.command))

    def _launch(self, states: list[PointState]) -> Deployment:
        trials = [(trial, state.search) for state in states if (trial := state.search.next())]
        searched = {trial.trial_id: search for trial, search in trials}
        return replace(states[0].point.deployment, trials=[trial for trial, _ in trials], searched=searched)

    def _expected(self, states: list[PointState]) -> Expected:
        """Return what a launch needs, and its expected durations: its searches spend what is left of their budgets."""
        launch = self._launch(states)
        expected = self.expect([launch])
        seconds = expected.launches.get(launch.launch_key, 0.0) + _seconds_left(states)
        return expected._replace(needs=[need._replace(seconds=seconds) for need in expected.needs])

    def settle(self, trial_ids: Iterable[str]) -> str | None:
        """Conclude the points whose launch failed: they have no capacity."""
        ended = set(trial_ids)
        for states in self.groups.values():
            for state in states:
                trial = None if state.concluded else state.search.next()
                row = self.ledger.rows.get(trial.trial_id) if trial and trial.trial_id in ended else None
                if row is not None and not is_evidence(row):
                    self._conclude(state, f"{row['outcome']}: {row.get('reason')}")
                    self._give_up(state.point.deployment.deployment_id)
                    self._write_claims()
        return None

    def _give_up(self, deployment_id: str) -> None:
        """Conclude the points of a deployment whose further launches would fail too."""
        of_it = next(each for each in self.plan.deployments if each.deployment_id == deployment_id)
        rows = [row for trial in of_it.trials if (row := self.ledger.rows.get(trial.trial_id))]
        if (failed := policy.hopeless(rows, self.settings.attempts)) is not None:
            for key, states in self.groups.items():
                for state in states if key not in self.running else ():
                    if state.point.deployment.deployment_id == deployment_id and not state.concluded:
                        self._conclude(state, f"{failed['outcome']}: {failed.get('reason')}")

    def hear(self, launch: Deployment, event: Any) -> str | None:
        """Take note of a probe or a claim of a launch, or of its end."""
        states = self.groups[launch.launch_key]
        match event:
            case Proposed(trial=trial):
                self._begin(launch, trial)
            case Claimed(name, record):
                state = next(state for state in states if state.point.name == name)
                state.record, state.concluded = record, record["ended"] != STOPPED
                self._write_claims()
            case _:
                cut_off = {trial for trial in self.running.pop(launch.launch_key, ()) if trial not in self.ledger.rows}
                for deployment in self.plan.deployments:
                    deployment.trials[:] = [each for each in deployment.trials if each.trial_id not in cut_off]
                for state in states:
                    self._after_end(state)
        return None

    def _after_end(self, state: PointState) -> None:
        """If a launch ended before its claim: go on with another launch, or at the endpoint."""
        first = state.search.next()
        if state.concluded or first is None or first.trial_id not in self.ledger.rows:
            return
        launches = state.point.deployment.backend.launches
        if launches or not state.record:
            self._replay(state.search)
        if launches and state.search.next() is None:  # the launch was lost after its last probe
            self._conclude(state)
        elif launches:
            self._begin_next(state)
            state.lost += 1
            if state.lost >= self.settings.attempts:
                self._conclude(state, f"its launch was lost {count(state.lost, 'time')}")
        self._write_claims()

    # The claims ------------------------------------------------------------------------------------------------------

    def _conclude(self, state: PointState, ended: str = "") -> None:
        state.record, state.concluded = state.search.record(ended), True

    @property
    def claims(self) -> dict[str, dict[str, Any]]:
        """The claims so far, by point, and of each task's fresh launch if all of its launches have a claim."""
        claims = {s.point.name: s.record for states in self.groups.values() for s in states if s.record}
        alike: dict[tuple[str, str], list[str]] = {}
        for name, record in claims.items():
            alike.setdefault((record["configuration"], record["task"]), []).append(name)
        for names in alike.values() if self.settings.replicates > 1 else ():
            if len(names) == self.settings.replicates:
                claims |= zip(names, with_fresh_launch([claims[name] for name in names]), strict=True)
        return claims

    def _write_claims(self) -> None:
        write_whole(self.paths, self.paths.claims, json.dumps(self.claims, indent=1) + "\n")

    def write(self) -> dict[str, dict[str, Any]]:
        """Write the claims, also of searches that were stopped; return them by point."""
        for states in self.groups.values():
            for state in states:
                if not state.record:
                    first = state.search.next()
                    begun = bool(state.search.rows) or (first is not None and first.trial_id in self.ledger.rows)
                    search = state.search if begun or state.earlier is None else state.earlier
                    self._replay(search, last=True)
                    state.record = search.record(STOPPED)
        self._write_claims()
        write_plan(self.paths, self.plan.entries(self.command))
        return self.claims


def _seconds_left(states: Iterable[PointState]) -> float:
    return sum(state.search.seconds_left for state in states)


def check_search(plan: Plan) -> None:
    """Raise ConfigError if a plan's capacity cannot be searched."""
    backends = [deployment.backend for deployment in plan.deployments]
    if plan.settings.replicates > 1 and not all(backend.launches for backend in backends):
        problem = "expected 1 for a capacity search at an endpoint, which is not launched again"
        raise ConfigError(f"replicates={plan.settings.replicates}: {problem}")
    if plan.settings.cluster.replay is not None:
        raise ConfigError(f"cluster.replay={plan.settings.cluster.replay}: expected null; a table has no probes")
    if is_url(plan.settings.out):
        raise ConfigError(f"out={plan.settings.out}: expected a folder for a capacity search")
    for key in SEARCHED:
        axis = sorted({trial.coordinates[key] for trial in plan.trials if key in trial.coordinates})
        if len(axis) > 1:
            raise ConfigError(f"{key}={','.join(map(str, axis))}: expected no axis; a capacity search chooses the load")
    for deployment in plan.deployments:
        if deployment.backend.traits.timed_inside:
            problem = f"backend={deployment.backend.name}: is timed inside its own process, in batches"
            raise ConfigError(f"{problem}; expected an engine that serves requests, for a capacity search")
        for trial in deployment.trials:
            check_point(trial, plan.settings)


def searching_time(plan: Plan, nodes: Sequence[Node]) -> float:
    """Return the seconds that a plan's searches take if each spends its budget, without the launches' starts."""
    assert plan.settings.capacity is not None
    launches = [each for each in plan.launches if not each.unavailable]
    needs = [need_of(each, plan.settings.capacity.budget * len(each.trials)) for each in launches]
    return simulate(needs, nodes).makespan


def search_line(plan: Plan, nodes: Sequence[Node]) -> str:
    """Return the plan's lines about its searches: their time, and requests and tokens."""
    assert plan.settings.capacity is not None
    budget, launches = plan.settings.capacity.budget, [each for each in plan.launches if not each.unavailable]
    expected = searching_time(plan, nodes)
    launched = sum(each.backend.launches for each in launches)
    longest = f"about {duration_text(expected)}, at most {duration_text(OVERTIME * expected)}"
    within = f" in {count(launched, 'launch')}, whose time is added to" if launched else ","
    points = f"{count(sum(len(each.trials) for each in launches), 'point')}{within} {longest}"
    line = f"capacity: {points}; each search has {duration_text(budget)}; a probe is a trial"
    return "\n".join([line, *_volume(launches, budget, Path(plan.settings.out))])


def _volume(launches: Sequence[Deployment], budget: float, out: Path) -> list[str]:
    """Return the plan's line about requests and tokens: by earlier claims of all points, or per request/s."""
    earlier: dict[str, tuple[float, float]] = {}  # requests/s: at the claim, and saturated
    for path in sorted(out.parent.glob("*/capacity.json")):
        with suppress(DamagedFile, OSError):  # e.g. of another user
            for claim in read_claims(RunPaths(path.parent)).values():
                if most := claim.get("throughput"):
                    typical = (claim["unit"] != "users" and claim["lower"]) or most
                    earlier[_point_key(claim["configuration"], claim["asked"])] = typical, most
    points = [(launch, trial) for launch in launches for trial in launch.trials]
    known = [earlier.get(_point_key(launch.describe(), asked_of(launch, trial))) for launch, trial in points]
    rates = [pair or (1.0, 1.0) for pair in known] if all(known) else [(1.0, 1.0)] * len(points)
    lengths = [mean_lengths(trial) for _, trial in points]
    texts = []
    for factor, end in ((budget, 0), (OVERTIME * budget, 1)):
        requests = [factor * pair[end] for pair in rates]
        tokens = [sum(n * each[side] for n, each in zip(requests, lengths, strict=True)) for side in (0, 1)]
        of_tokens = f" ({tokens[0]:,.0f} tokens in, {tokens[1]:,.0f} out)" if all(map(math.isfinite, tokens)) else ""
        texts.append(f"{sum(requests):,.0f} requests{of_tokens}")
    source = ", by earlier searches" if all(known) else " for each request/s of throughput"
    return [f"capacity: about {texts[0]}, at most {texts[1]}{source}"] if points else []


def _point_key(configuration: str, asked: Mapping[str, Any]) -> str:
    return json.dumps([configuration, asked], sort_keys=True, default=str)


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
