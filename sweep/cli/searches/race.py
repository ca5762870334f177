"""A race within an ordinary run: its points, and how their rows are compared."""

from collections.abc import Mapping, Sequence, Set

from sweep.base.config import CAPACITIES, PERCENTILES, ConfigError, did_you_mean
from sweep.base.wording import count, number
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import RunPaths, trials_table
from sweep.drive.row_writer import TableRows
from sweep.numbers.quantity import Statistic, columns
from sweep.numbers.warnings import AS_OFFERED
from sweep.plan.axes import LADDER_AXES
from sweep.plan.pending import pending_launches
from sweep.plan.plan import Plan, hourly_price, launched_per_replicate
from sweep.search.race import FEWEST_BLOCKS, Race

PRICED = "cost_per_million_tokens"  # the quantity that needs prices
NEEDS_SLO = {"goodput", "steady_goodput", "goodput_share"}
ADVISED = 8  # deployments from which a plan with enough replicates mentions the race


class PlannedRace(Race):
    """The race between the points of a plan, judged by the rows in a ledger."""

    def __init__(self, plan: Plan, ledger: Ledger, paths: RunPaths) -> None:
        self.plan, self.ledger, self.paths = plan, ledger, paths
        points = [(deployment, trials) for deployment in plan.deployments for trials in deployment.points()]
        self.names = [f"{deployment.describe()} {trials[0].describe_point()}" for deployment, trials in points]
        self.numbers = {trial.trial_id: point for point, (_, trials) in enumerate(points) for trial in trials}
        super().__init__([[trial.trial_id for trial in trials] for _, trials in points], self._judge)
        launches = pending_launches(plan, ledger)
        awaited = {trial.trial_id for launch in launches if not launch.unavailable for trial in launch.trials}
        self.settle(self.numbers.keys() - awaited)

    def _judge(self, counted: list[str]) -> Mapping[int, str]:
        from analysis.load import run_of_rows  # imports pandas, which a run without a race does not need
        from analysis.quantities import compared_column
        from analysis.racing import retired_trials

        assert self.plan.settings.race is not None
        counting = set(counted)
        planned = [
            (deployment, trial, row)
            for deployment in self.plan.deployments
            for trial in deployment.trials
            if trial.trial_id in counting and (row := self.ledger.rows.get(trial.trial_id)) is not None
        ]
        table = trials_table(TableRows(self.plan, planned, []))
        run = run_of_rows(self.paths, table, next(self.plan.entries("")))
        quantity = compared_column(self.plan.settings.race, (), self.plan.settings.percentiles)
        racing = {trial for trial, point in self.numbers.items() if point not in self.ends}
        after, reasons = f"after {self.complete} of {self.replicates} replicates", dict[int, str]()
        for trial, best, judged in retired_trials(run, quantity, racing, self.looks):
            if judged.figures is None:
                reasons[self.numbers[trial]] = f"surely the best {after}: no rival is left"
                continue
            ratio, low, high = map(number, judged.figures)
            leader = self.names[self.numbers[best]]
            times = f"{quantity.in_sentence} {ratio}× ({low} to {high}) of {leader}"
            reasons[self.numbers[trial]] = f"surely not the best {after}: {times}"
        return reasons


def race_of(plan: Plan, ledger: Ledger, paths: RunPaths) -> PlannedRace | None:
    """Return the race of a plan, replayed over the rows so far; None if the plan has no race."""
    return PlannedRace(plan, ledger, paths) if plan.settings.race else None


def _is_factorial(plan: Plan) -> bool:
    """Return whether a plan switches several settings of an engine on and off: `sweep explain` needs all points."""
    knobs = [key for key in plan.axes if key.startswith(("backend.", "gateway."))]
    values = [{repr(trial.coordinates.get(key)) for trial in plan.trials} for key in knobs]
    return len(knobs) > 1 and all(len(different) <= 2 for different in values)


def race_lines(plan: Plan) -> list[str]:
    """Return the lines that a plan has about its race, or about what a race would save.

    Raises ConfigError for a race that cannot be run.
    """
    settings, launches = plan.settings, len(plan.launches)
    separate = launched_per_replicate(settings, len(plan.deployments)) and len(plan.deployments) > 1
    if settings.race is None:
        fits = separate and settings.replicates >= FEWEST_BLOCKS and len(plan.deployments) >= ADVISED
        fits &= settings.slo is None and settings.capacity is None and LADDER_AXES[0] not in plan.axes
        fits &= not _is_factorial(plan)
        most = f"up to {launches - 2 * len(plan.deployments)} of {count(launches, 'launch')}"
        return [f"advice: race=true would save {most}, if few configurations are near the best"] if fits else []
    problems = {
        "expected slo=null; a configuration that loses at one load may be best within an SLO": settings.slo is not None,
        f"expected replicates={FEWEST_BLOCKS} or more": settings.replicates < FEWEST_BLOCKS,
        "expected several deployments, and a launch for each replicate": not separate,
    }
    expected = "expected true, or a quantity by which configurations can be ranked"
    check_objective(plan, ("race", settings.race), expected, rankable(settings.percentiles).keys(), problems)
    last = f" to {settings.replicates - 1}" if settings.replicates > FEWEST_BLOCKS else ""
    between = f"{2 * len(plan.deployments)} to {count(launches, 'launch')}"
    drops = f"after 2{last} replicates, points that are surely not the best by {settings.race} are dropped"
    lines = [f"race: {drops}; {between}; the best of a task and load is dropped in at most 5% of races"]
    if settings.race in AS_OFFERED and any(trial.load.open_loop for trial in plan.trials):
        lines.append(f"advice: no point is dropped if an open loop sets {settings.race}; try a latency: race=ttft_p50")
    return lines


def rankable(percentiles: Sequence[float]) -> dict[str, Statistic]:
    """Return the columns that rank configurations without an SLO."""
    return {
        name: statistic
        for name, statistic in columns(percentiles).items()
        if statistic.quantity.better and statistic.quantity.name not in NEEDS_SLO
    }


def check_objective(
    plan: Plan, typed: tuple[str, str], expected: str, declared: Set[str], problems: dict[str, bool]
) -> None:
    """Raise ConfigError if the typed (key, quantity) is not declared, if its price is missing, or if a problem applies.

    A search of its own and a ladder are problems of every objective.
    """
    settings, (key, quantity) = plan.settings, typed
    usual = {name for name, statistic in columns(PERCENTILES).items() if statistic.quantity.headline} & declared
    backends = [deployment.backend for deployment in plan.deployments]
    prices = [hourly_price(backend, settings.hardware) or backend.price_per_million_tokens for backend in backends]
    shared = {
        f"{expected}; {did_you_mean(quantity, usual)}": quantity not in declared,
        "expected a price, e.g. hardware.price_per_hour=4": quantity == PRICED and None in prices,
        "expected no capacity, which is a search of its own": bool(settings.capacity) and quantity not in CAPACITIES,
        "expected no ladder; the shares of its steps need all of them": LADDER_AXES[0] in plan.axes,
    }
    for problem, applies in (shared | problems).items():
        if applies:
            raise ConfigError(f"{key}={quantity}: {problem}")
