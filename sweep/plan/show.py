"""The plan in words: what will be run and why, what cannot run here, and what it will take."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from rich.console import Console, OverflowMethod

from sweep.config import next_time
from sweep.disk.ledger import Ledger
from sweep.plan.details import point_details
from sweep.plan.estimate import Assumed, History, estimate
from sweep.plan.packing import Node
from sweep.plan.pending import reasons, todo
from sweep.plan.plan import Deployment, Plan, elsewhere
from sweep.wording import count

SHOWN_TRIALS = 200  # beyond which the plan is shown by deployment
FEW_REQUESTS = 0.5  # of the duration asked for: random arrivals of some dozens are hardly ever through before
FEW_CORES = 4  # for each GPU (or deployment on a CPU): server, engine, client and what the system needs
WIDTH_OF_A_PIPE = 160  # characters; a terminal knows its own, and COLUMNS goes before both


def make_console() -> Console:
    """Where a run is told: as wide as the terminal, or wide enough for the tables where there is none."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if known else WIDTH_OF_A_PIPE)


def print_plan(
    console: Console, plan: Plan, ledger: Ledger, history: History, nodes: Sequence[Node], details: bool
) -> None:
    """What will be run, what was replaced for lack of a GPU, what cannot run here and why, and what it will take."""
    left = [deployment for deployment in todo(plan, ledger) if not deployment.unavailable]
    why = reasons(plan, left, ledger) if ledger.rows else {}
    lines = [f"no GPU here: {text}" for text in plan.replaced]
    _say(console, [*lines, _headline(plan, left)])
    if details:
        _say_cut(console, _trials(plan, left, why, console.width))
    lines = [f"to run: {count(number, 'trial')}: {reason}" for reason, number in Counter(why.values()).most_common()]
    lines += [f"unavailable: {one.describe()}: {one.unavailable}" for one in plan.deployments if one.unavailable]
    lines += [f"warning: {text}" for text in plan_warnings(plan, nodes)]
    lines += [f"expected: {text}" for text in _expected(plan, left, history, nodes)]
    _say(console, lines)


def print_details(console: Console, plan: Plan) -> None:
    """Print every point in full."""
    _say(console, point_details(plan))


def _say(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _say_cut(console: Console, lines: Iterable[str]) -> None:
    """A table's rows, never folded: what a terminal has no room for is cut; the reasons are said in full below."""
    overflow: OverflowMethod = "ellipsis" if console.is_terminal else "ignore"
    for line in lines:
        console.print(line, markup=False, no_wrap=True, overflow=overflow, crop=console.is_terminal)


def _headline(plan: Plan, left: Sequence[Deployment]) -> str:
    hardware = plan.settings.hardware
    price = f"${hardware.price_per_hour}/h" if hardware.price_per_hour else "no price set"
    somewhere = plan.deployments and all(elsewhere(one.backend, hardware) for one in plan.deployments)
    where = "at an endpoint" if somewhere else f"on {hardware.name} ({price})"
    to_run = sum(len(deployment.trials) for deployment in left)
    return (
        f"plan {plan.settings.name}: {count(len(plan.deployments), 'deployment')}, {count(len(plan.trials), 'trial')}, "
        f"{to_run} to run, {where}; results in {plan.settings.out}"
    )


def _trials(plan: Plan, left: Sequence[Deployment], why: Mapping[str, str], width: int) -> Iterator[str]:
    """A line for each deployment, and of a small plan one for each of its trials; seeds only where they fit."""
    to_run = {trial.trial_id for deployment in left for trial in deployment.trials}
    state = {
        trial.trial_id: _state(deployment, trial.trial_id in to_run, why.get(trial.trial_id, "to run"))
        for deployment in plan.deployments
        for trial in deployment.trials
    }
    words = max((len(trial.describe()) for trial in plan.trials), default=0)
    states = max(map(len, state.values()), default=0)
    for deployment in plan.deployments:
        own = [trial.trial_id for trial in deployment.trials]
        what = "unavailable" if deployment.unavailable else f"{sum(one in to_run for one in own)} to run"
        yield f"{deployment.deployment_id}  {deployment.describe()}: {count(len(own), 'trial')}, {what}"
        if len(plan.trials) > SHOWN_TRIALS:
            continue
        for trial in deployment.trials:
            line = f"  {trial.trial_id}  {trial.describe():<{words}}  {state[trial.trial_id]}"
            seed = f"{'':<{states - len(state[trial.trial_id])}}  seed {trial.seed:>10}"
            yield line + seed if len(line + seed) <= width else line


def _state(deployment: Deployment, to_run: bool, why: str) -> str:
    if deployment.unavailable:
        return "unavailable"
    return why if to_run else "done"


def _expected(plan: Plan, left: Sequence[Deployment], history: History, nodes: Sequence[Node]) -> list[str]:
    """How long it will take and what it will cost."""
    if not left:
        return []
    simulated = plan.settings.cluster.simulate
    assumed = None
    if simulated is not None and simulated.seconds_per_trial is not None:
        assumed = Assumed(simulated.seconds_per_trial, simulated.seconds_per_launch)
    return list(estimate(plan, left, history, nodes, assumed).words)


def few_requests(plan: Plan) -> list[str]:
    """Loads by the clock that are through with their requests long before the duration that was asked for."""
    seen: set[tuple[int, int]] = set()
    found: dict[str, None] = {}
    for trial in plan.trials:
        load, count = trial.load, trial.num_requests
        if load.duration is None or (id(load), count) in seen:
            continue
        seen.add((id(load), count))
        last = load.mode(count, trial.seed).last_arrival()
        if last is not None and last < FEW_REQUESTS * load.duration:
            few = f"all {count} requests are due within {last:.1f} s; raise workload.num_requests to fill the time"
            found.setdefault(f"load.duration={load.duration:g}: {load.describe()}: {few}")
    return list(found)


def plan_warnings(plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """What the user should know before the plan runs, one line each."""
    return [*past_deadline(plan), *few_cores(plan, nodes), *few_requests(plan), *beyond_context(plan)]


def past_deadline(plan: Plan) -> list[str]:
    """No error: a loop around the command ends so, and what is done is still reported."""
    now, deadline = datetime.now(), plan.settings.deadline
    passed = deadline is not None and next_time(deadline, now) < now
    return [f"deadline={deadline} has passed: nothing is started"] if passed else []


def beyond_context(plan: Plan) -> list[str]:
    """Models whose context is too short for what is asked of them: one line each, of the longest workload."""
    longest: dict[str, tuple[int, str]] = {}
    for deployment in plan.deployments:
        backend, model = deployment.backend, deployment.model
        context = getattr(model, "context", None)
        if deployment.unavailable or context is None or not (backend.launches and backend.computes_model):
            continue
        for workload in {id(trial.workload): trial.workload for trial in deployment.trials}.values():
            asked = getattr(workload, "input_tokens", 0), getattr(workload, "output_tokens", 0)
            if sum(asked) > max(context, longest.get(model.name, (0, ""))[0]):
                said = f"workload {workload.name}: {asked[0]} input + {asked[1]} output tokens are more than"
                text = f"{said} the context of {model.name}, {context}; engines refuse such requests or cut them short"
                longest[model.name] = sum(asked), text
    return [text for _, text in longest.values()]


def few_cores(plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """Nodes on which engine and measuring client would be in each other's way."""
    cuda = plan.settings.hardware.platform == "cuda"
    used = [node for node in nodes if node.gpus or not cuda]
    if not any(one.backend.launches for one in plan.deployments if not one.unavailable):
        return []
    poor = {node.address: node.cpus / max(1, node.gpus if cuda else 1) for node in used}
    return [
        f"{address}: {cores:g} cores for each {'GPU' if cuda else 'deployment'}, one of them the measuring client's; "
        f"an engine short of cores is measured slow (wanted: {FEW_CORES} or more)"
        for address, cores in poor.items()
        if cores < FEW_CORES
    ]
