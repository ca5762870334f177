"""A question in place of a grid: what may be launched, the results so far, and the answer."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sweep.base.config import CAPACITIES, split_bound
from sweep.base.records import UNMEASURED, Outcome
from sweep.base.wording import count, duration_text, number
from sweep.cli.searches.capacity import searching_time
from sweep.cli.searches.race import check_objective, rankable
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import RunPaths, write_plan, write_whole
from sweep.drive import policy
from sweep.numbers.quantity import PERFORMANCE, columns, percentile_name
from sweep.plan.compose import Composition
from sweep.plan.estimate import Expected
from sweep.plan.packing import Need, Node, need_of
from sweep.plan.pending import PendingWork
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.search.ask import BestQuestion, BestSearch, NextLaunch, ObjectiveScale, Proposer, Result, longest
from sweep.search.model import Space
from sweep.search.tpe import TpeSearch, has_optuna, usual_launches

USUAL_START, USUAL_TRIAL = 60.0, 30.0  # s; until durations are known
REPEATS = 8  # launches of one configuration, at most
MOST_POINTS = 4000  # whose joint distribution the model draws from
SHOWN_NOISE = 0.03  # between launches, up to which docs/measurements/ask.md shows how often the answer is right
USUAL_LAUNCHES = (1.6, 2.6)  # launches / √configurations of the searches there, at a noise of 2 and 5%
PER_GPU = "_per_gpu"  # the end of a quantity that is no column
THROUGHPUT_PER_GPU = "output_throughput_per_gpu"
NO_CERTAINTY = "unknown, since Optuna states no certainty (docs/ask.md)"
UNCHOSEN = "Optuna did not choose them"
CHARTED = 30  # points whose predicted bands are kept


def grid_of(composition: Composition, replicates: int = 1) -> Composition:
    """Return a question's grid, with so many launches of each configuration."""
    update = {"replicates": replicates, "relaunch": "per_replicate"}
    return replace(composition, settings=composition.settings.model_copy(update=update))


class PlannedAsk:
    """The search that answers a plan's question. It depends on the rows in the ledger, in their order."""

    def __init__(
        self,
        full: Plan,
        grid: Plan,
        launches_of_grid: int,
        ledger: Ledger,
        paths: RunPaths,
        command: str,
        expect: Callable[[list[Deployment]], Expected],
    ) -> None:
        """`full` has the trials of every launch that may be asked for, and `grid` those of the first."""
        self.ledger, self.paths, self.command, self.expect = ledger, paths, command, expect
        self.launches_of_grid = launches_of_grid
        self.deployments = [deployment for deployment in full.deployments if not deployment.unavailable]
        self.replicates = [sorted({trial.replicate for trial in each.trials}) for each in self.deployments]
        points = [(place, trials) for place, each in enumerate(self.deployments) for trials in each.points()]
        self.points = [{trial.replicate: trial for trial in trials} for _, trials in points]
        self.configuration = np.array([configuration for configuration, _ in points], np.int64)
        self.places = {
            trial.trial_id: (point, replicate)
            for point, trials in enumerate(self.points)
            for replicate, trial in trials.items()
        }
        self.plan = replace(grid, deployments=[])
        assert full.settings.ask is not None
        self.best = full.settings.ask.best
        self.question, self.names, self.unit = question_of(full, self.deployments, points)
        needs = self.expect(grid.launches)
        starts = [needs.launches.get(launch.launch_key) for launch in grid.launches]
        start_seconds = [seconds for seconds in starts if seconds is not None]
        trial_seconds = list(needs.trials.values())
        seconds = (
            float(np.median(start_seconds)) if start_seconds else USUAL_START,
            float(np.median(trial_seconds)) if trial_seconds else USUAL_TRIAL,
        )
        search = TpeSearch if full.settings.ask.search == "optuna" else BestSearch
        space = space_of(self.deployments, points)
        self.search: Proposer = search(space, self.question, seconds, longest(len(self.deployments)))
        self.awaited: dict[int, set[str]] = {}  # by point: trials of launches that have not ended
        self.used: set[tuple[int, int]] = set()  # (configuration, replicate) that were launched
        self.told: dict[str, str] = {}  # trial -> the outcome that the search knows
        self.planned: tuple[Any, list[Need]] = None, []  # the needs of the next launches, and what they depend on
        self.last = ""
        self._restore()

    def _restore(self) -> None:
        """Tell the search the rows of earlier runs."""
        for trial_id in [trial_id for trial_id in self.ledger.rows if trial_id in self.places]:
            if self.ledger.valid_row(trial_id) is not None:
                self._add_to_plan(trial_id)
                self._tell(trial_id)

    def pending(self, of_grid: PendingWork, nodes: object) -> PendingWork:
        """Return the work of a run whose search adds the launches."""
        return of_grid.of_search(len(self.plan.trials), None)

    # The driver's interface ------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self.search.standing().done or self._proposed([], lambda need: True) is None

    def ask(self, has_room: Callable[[Need], bool]) -> tuple[Deployment, Expected] | None:
        """Return the next launch that there is room for, with its expected durations; None if none is wanted now."""
        while proposed := self._proposed(self._pending(), has_room):
            if begun := self._begin(*proposed):
                return begun
        return None

    def wanted(self, most: int) -> list[Need]:
        """Return what the next launches need, at most so many: an autoscaler adds nodes for them."""
        pending = self._pending()
        state = len(self.search.results), tuple(pending)
        if self.planned[0] != state:
            needs: list[Need] = []
            while len(needs) < most and (launch := self.search.ask(pending)):
                needs.append(need_of(self.deployments[launch.configuration]))
                pending += launch.points
            self.planned = state, needs
        return self.planned[1]

    def waiting(self) -> list[Need]:
        """Return nothing: how many launches a question needs is unknown."""
        return []

    def settle(self, trial_ids: Iterable[str]) -> str | None:
        """Use the rows of trials that ended; return a line about the leader if it is new."""
        for trial_id in trial_ids:
            if trial_id in self.places:
                self.awaited.get(self.places[trial_id][0], set()).discard(trial_id)
                self._tell(trial_id)
        return self._news()

    def hear(self, launch: Deployment, event: Any) -> str | None:
        """Do nothing: the rows say all."""
        return None

    def _pending(self) -> list[int]:
        """Return the points of launches that have not ended, once for each."""
        return [point for point, trials in self.awaited.items() for _ in trials]

    def _proposed(self, pending: list[int], has_room: Callable[[Need], bool]) -> tuple[NextLaunch, int] | None:
        """Return the next launch and its replicate."""
        used_up = [place for place in range(len(self.deployments)) if self._replicate(place) is None]
        self.search.excluded = set(map(int, np.flatnonzero(np.isin(self.configuration, used_up))))
        rooms: dict[tuple[Any, ...], bool] = {}

        def fits(configuration: int) -> bool:
            need = need_of(self.deployments[configuration])
            kind = (*need.kind, need.endpoint)
            if kind not in rooms:
                rooms[kind] = has_room(need)
            return rooms[kind]

        if (launch := self.search.ask(pending, fits)) is None:
            return None
        replicate = self._replicate(launch.configuration)
        assert replicate is not None
        return launch, replicate

    def _begin(self, chosen: NextLaunch, replicate: int) -> tuple[Deployment, Expected] | None:
        """Return a launch that begins, with its expected durations; None if it has ended already."""
        deployment = self.deployments[chosen.configuration]
        wanted = {self.points[point][replicate].trial_id for point in chosen.points}
        trials = [trial for trial in deployment.trials if trial.trial_id in wanted]
        self.used.add((chosen.configuration, replicate))
        for trial in trials:
            self.awaited.setdefault(self.places[trial.trial_id][0], set()).add(trial.trial_id)
            self._add_to_plan(trial.trial_id)
        write_plan(self.paths, self.plan.entries(self.command))
        launch = replace(deployment, trials=trials, replicate=replicate)
        return launch, self.expect([launch])

    # What is known ---------------------------------------------------------------------------------------------------

    def _replicate(self, configuration: int) -> int | None:
        """Return the next replicate of a configuration; None if it was launched as often as it may be."""
        replicates = self.replicates[configuration]
        return next((replicate for replicate in replicates if (configuration, replicate) not in self.used), None)

    def _add_to_plan(self, trial_id: str) -> None:
        """Add a trial to what was asked, which is the plan of the run's files."""
        point, replicate = self.places[trial_id]
        self.plan.add(self.deployments[self.configuration[point]], self.points[point][replicate])

    def _tell(self, trial_id: str) -> None:
        row, (point, replicate) = self.ledger.rows[trial_id], self.places[trial_id]
        configuration = int(self.configuration[point])
        self.used.add((configuration, replicate))
        outcome = str(row["outcome"])
        unknown = outcome in (*UNMEASURED, Outcome.DISTURBED) and outcome != Outcome.CENSORED  # a smaller load ran out
        if self.told.get(trial_id) == outcome or unknown:
            return
        self.told[trial_id] = outcome
        figures = tuple(self._figure(row, name) for name in self.names) if outcome == Outcome.OK else (None,)
        if self.best.endswith(PER_GPU) and figures[0] is not None:
            figures = (figures[0] / self.search.space.gpus[configuration], *figures[1:])
        positive = tuple(figure for figure in figures if figure is not None and figure > 0)
        launch = configuration * REPEATS + replicate
        points = np.flatnonzero(self.configuration == configuration).tolist()
        worked = any(result.values for result in self.search.results if result.point in points)
        if policy.RULES[Outcome(outcome)].at_launch and not worked:  # no load of the configuration can be measured
            self.search.tell([Result(each, launch, None, True) for each in points])
        else:
            self.search.tell([Result(point, launch, positive if len(positive) == len(self.names) else None)])

    @staticmethod
    def _figure(row: Mapping[str, Any], name: str) -> float | None:
        figure = row.get(name)
        return float(figure) if isinstance(figure, int | float) and math.isfinite(figure) else None

    # The answer ------------------------------------------------------------------------------------------------------

    def _news(self) -> str | None:
        """Return a line about the leader if it is new."""
        standing = self.search.standing()
        if standing.leader is None:
            return None
        sure = f"after {count(self.search.launches, 'launch')}"
        if standing.probability is not None:
            sure = f"sure to {standing.probability:.0%}; {count(standing.open or 0, 'point')} may be best"
        line = f"so far {self.name(standing.leader)}: {self._figure_text(standing.leader)}, {sure}"
        before, self.last = self.last, line
        return line if line != before else None

    def name(self, point: int) -> str:
        trial = next(iter(self.points[point].values()))
        return f"{self.deployments[self.configuration[point]].describe()} {trial.describe_point()}"

    def _mean(self, point: int) -> float:
        """Return the mean of what was measured at a point."""
        return float(np.mean([told.values[0] for told in self.search.results if told.point == point and told.values]))

    def _figure_text(self, point: int) -> str:
        return f"{self.best} {number(self._mean(point))} {self.unit}".strip()

    def answer(self) -> dict[str, Any]:
        """Return what is known, with `lines` that say it."""
        search, question = self.search, self.question
        standing, noise = search.standing(), search.launch_noise
        measured = {result.point for result in search.results if result.values}
        failed = {result.point for result in search.results} - measured
        dropped = {self.name(point): f"failed: {self._reason(point)}" for point in sorted(failed)}
        sure = standing.done and standing.sure
        stated = sure and noise is not None and noise <= SHOWN_NOISE
        leader = None if standing.leader is None else self.name(standing.leader)
        lines = list(self._lines(leader, sure, stated, noise))
        in_grid = f"the grid has {count(len(self.points), 'point')} in {count(self.launches_of_grid, 'launch')}"
        failures = f"; {count(len(failed), 'point')} failed" if failed else ""
        lines += [
            f"measured: {count(len(measured), 'point')} in {count(search.launches, 'launch')}; {in_grid}{failures}"
        ]
        launched = {int(self.configuration[point]) for point in measured | failed}
        unlaunched = [each.describe() for place, each in enumerate(self.deployments) if place not in launched]
        if unlaunched and (sure or standing.probability is None):
            unlikely = f"with a probability of less than {1 - question.sure:.0%} the best one is not the answer"
            reason = f"not launched: {UNCHOSEN if standing.probability is None else unlikely}"
            dropped |= dict.fromkeys(unlaunched, reason)
            lines += [f"dropped:  {count(len(unlaunched), 'configuration')} {reason}"]
        return {
            "best": leader,
            "quantity": self.best,
            "unit": self.unit,
            "value": None if standing.leader is None else self._figure_text(standing.leader),
            "within": question.within,
            "sure": question.sure if stated else None,
            "probability": None if standing.probability is None else round(standing.probability, 3),
            "open": standing.open,
            "launch_noise": None if noise is None else round(noise, 4),
            "measured": {self.name(point): self._mean(point) for point in sorted(measured)},
            "dropped": dropped,
            "predicted": {
                self.name(point): [float(f"{end:.4g}") for end in ends] for point, ends in search.bands(CHARTED)
            },
            "launches": search.launches,
            "launches_of_grid": self.launches_of_grid,
            "lines": lines,
        }

    def _reason(self, point: int) -> str:
        of_launch = self.deployments[self.configuration[point]].trials  # a launch that failed has a row at one load
        trials = [*self.points[point].values(), *of_launch]
        rows = [self.ledger.rows.get(trial.trial_id) for trial in trials]
        return next((f"{row['outcome']}: {row.get('reason')}" for row in rows if row), "no row")

    def _lines(self, leader: str | None, sure: bool, stated: bool, noise: float | None) -> Iterable[str]:
        standing, question = self.search.standing(), self.question
        spread = "launch noise unknown" if noise is None else f"launches of a configuration differ by {noise:.1%}"
        if leader is None:
            measured, failed = any(result.values for result in self.search.results), self.done and self.search.results
            if failed and not measured:
                yield "best:     none: every point failed"
                return
            yield f"best:     {'no point meets the bounds' if measured else 'no point has a result yet'}"
            certainty = f"{standing.none_fits:.0%} by the model" if standing.none_fits is not None else NO_CERTAINTY
            yield f"how sure: {certainty}; {spread}"
            return
        yield f"best:     {leader}: {self._figure_text(standing.leader or 0)}"
        within = f"within {question.within:.0%} of the best of {count(len(self.points), 'point')}"
        if standing.probability is None:
            ended = "" if standing.done else "the search ended early; "
            yield f"how sure: {ended}{NO_CERTAINTY}; {spread}"
        elif stated:
            yield f"how sure: {within}, {question.sure:.0%} sure; {spread}"
        elif sure:
            doubt = f"shown for a launch noise up to {SHOWN_NOISE:.0%} only (docs/ask.md)"
            yield f"how sure: {within} by the model ({standing.probability:.0%}), {doubt}; {spread}"
        else:
            ended = "ended early" if not standing.done else "spent its launches"
            open_points = f"{count(standing.open or 0, 'point')} may be best"
            unsure = f"not sure, the search {ended}: {within} with a probability of {standing.probability:.0%}"
            yield f"how sure: {unsure}; {open_points}; {spread}"

    def write(self) -> dict[str, dict[str, Any]]:
        """Write the answer into the results folder; return it by the name of its quantity."""
        answers = {f"best {self.best}": self.answer()}
        write_whole(self.paths, self.paths.asked, json.dumps(answers, indent=1) + "\n")
        return answers


def space_of(deployments: list[Deployment], points: list[tuple[int, list[Trial]]]) -> Space:
    """Return the points of a plan with the levels of the settings that vary between its deployments."""
    loads = [_load(trials[0]) for _, trials in points]
    keys = sorted({key for _, trials in points for key in trials[0].coordinates if not key.startswith("load")})
    first = {configuration: trials[0] for configuration, trials in reversed(points)}
    levels, ordered = [], []
    for key in keys:
        chosen = [first[configuration].coordinates.get(key) for configuration in range(len(deployments))]
        numeric = all(isinstance(setting, int | float) and not isinstance(setting, bool) for setting in chosen)
        names: list[Any] = chosen if numeric else [repr(setting) for setting in chosen]
        different = sorted(set(names))
        levels.append([different.index(name) for name in names])
        ordered.append(numeric and len(different) > 2)
    by_configuration = np.array(levels, np.int64).T.reshape(len(deployments), len(keys))
    gpus = np.array([max(1, deployment.gpu_count) for deployment in deployments], float)
    places = np.array([configuration for configuration, _ in points])
    return Space(by_configuration, tuple(ordered), places, np.array(loads), gpus)


def _load(trial: Trial) -> float:
    """Return the size of a trial's load, 1 if it has none."""
    sizes = [size for size in trial.load_columns().values() if isinstance(size, int | float)]
    return float(sizes[0]) if sizes else 1.0


def question_of(
    plan: Plan, deployments: list[Deployment], points: list[tuple[int, list[Trial]]]
) -> tuple[BestQuestion, list[str], str]:
    """Return a plan's question, the columns of its objective and bounds, and the objective's unit.

    A capacity is no column; the search for it uses the bounds.
    """
    settings = plan.settings
    ask = settings.ask
    assert ask is not None
    if ask.of_capacity:
        objective = ObjectiveScale(-1, np.zeros(len(points)))
        unit = "users" if plan.trials[0].load.name == "closed" else "requests/s"
        return BestQuestion(objective, (), ask.within, ask.sure, settings.seed), [], unit
    column = ask.best.removesuffix(PER_GPU)
    statistic = columns(settings.percentiles)[column]
    load = np.log([_load(trials[0]) for _, trials in points])
    gpus = np.log([max(1, deployments[configuration].gpu_count) for configuration, _ in points])
    sign = -1 if statistic.quantity.better == "higher" else 1
    offset = np.zeros(len(points))
    if statistic.quantity.kind == "cost":
        offset = load - gpus
    elif statistic.quantity.unit.endswith("/s"):
        offset = load - gpus * ask.best.endswith(PER_GPU)
    names = [column]
    for bound in settings.slo or {}:
        latency, percentile = split_bound(bound)
        names.append(f"{latency}_{percentile_name(percentile or usual_percentile(plan))}")
    limits = tuple((settings.slo or {}).values())
    question = BestQuestion(ObjectiveScale(sign, offset), limits, ask.within, ask.sure, settings.seed)
    return question, names, statistic.quantity.unit


def usual_percentile(plan: Plan) -> float:
    """Return the percentile of a bound without one, as the summary chooses it."""
    from analysis.answers.slo_bounds import bounded_percentile  # imports pandas, which other runs do not need

    return bounded_percentile(min(trial.num_requests for trial in plan.trials), plan.settings.percentiles)


def check_ask(plan: Plan, relaunch: str) -> None:
    """Raise ConfigError for a question that cannot be asked."""
    settings = plan.settings
    ask = settings.ask
    assert ask is not None
    declared = {
        name for name, statistic in rankable(settings.percentiles).items() if statistic.quantity.kind in PERFORMANCE
    } | {THROUGHPUT_PER_GPU, *CAPACITIES}
    points = [trials[0] for deployment in plan.deployments for trials in deployment.points()]
    percentiles = [split_bound(name)[1] for name in settings.slo or {}]
    unavailable = [deployment.unavailable for deployment in plan.deployments]
    problems = {
        f"expected a configuration that can be launched; {next(filter(None, unavailable), '')}": all(unavailable),
        "expected no race, which measures a grid": settings.race is not None,
        "expected an axis, e.g. backend.flags.max-num-seqs=64,128": len(points) < 2,
        "expected one workload; the best of one may not be the best of another": _kinds(points, "workload") > 1,
        "expected one load, whose rate or number of users a search chooses": (
            ask.of_capacity and len(points) > len(plan.deployments)
        ),
        "expected engines that are launched, and so can be launched again": (
            ask.of_capacity and not all(deployment.backend.launches for deployment in plan.deployments)
        ),
        "expected one kind of load; its size may be an axis": len({trial.load.name for trial in points}) > 1,
        f"expected at most {MOST_POINTS:,} points, or ask.search=optuna; the grid has {len(points):,}": (
            ask.search == "model" and len(points) > MOST_POINTS
        ),
        "expected Optuna for ask.search=optuna; pip install optuna": ask.search == "optuna" and not has_optuna(),
        "expected relaunch=per_replicate, since a question needs repeated launches": relaunch == "once",
        f"slo: expected a percentile of {', '.join(f'p{each:g}' for each in settings.percentiles)}": any(
            percentile not in (None, *settings.percentiles) for percentile in percentiles
        ),
    }
    expected = "expected a quantity with a better direction"
    check_objective(plan, ("ask.best", ask.best), expected, declared, problems)


def _kinds(points: list[Trial], part: str) -> int:
    return len({json.dumps(trial.config[part], sort_keys=True, default=str) for trial in points})


def ask_line(plan: Plan) -> str:
    """Return the plan's line about its question."""
    ask = plan.settings.ask
    assert ask is not None
    bounds = " within the SLO" if plan.settings.slo else ""
    if ask.search == "optuna":
        return f"ask: the best {ask.best}{bounds}, by Optuna's TPE, which states no certainty"
    search = plan.settings.capacity
    budget = f"; each launch is a search of {duration_text(search.budget)}" if search else ""
    return f"ask: the best {ask.best}{bounds}, within {ask.within:.0%}, {ask.sure:.0%} sure{budget}"


def expected_launches(plan: Plan, replicates: int, pending: PendingWork, nodes: Sequence[Node]) -> list[str]:
    """Return how many launches a question is expected to take, and how long, in two lines."""
    configurations = sum(not deployment.unavailable for deployment in plan.deployments)
    most = longest(configurations)
    in_grid = f"the grid has {count(configurations * replicates, 'launch')}"
    seconds = pending.estimate.seconds / len(pending.launches) if pending.estimate.seconds else None  # of a launch
    if plan.settings.capacity is not None:
        seconds = searching_time(plan, nodes) / configurations
    if plan.settings.ask and plan.settings.ask.search == "optuna":
        few = usual_launches(configurations)
        time = f" ({duration_text(seconds * few)})" if seconds else ""
        return [f"{count(few, 'launch')}{time}, and those that repeat the leader; {in_grid}"]
    low, high = (min(most, max(3, round(usual * math.sqrt(configurations)))) for usual in USUAL_LAUNCHES)
    times = [f" ({duration_text(seconds * each)})" if seconds else "" for each in (low, high, most)]
    usual = f"{low}{times[0]} to {high}{times[1]} launches, at most {most}{times[2]}"
    noise = "for launches that differ by 2 to 5%; at 10% it takes three times as many, and the answer is less sure"
    return [f"{usual}; {in_grid}", noise]
