"""Prints a plan: the trials to run and why, trials unavailable here, warnings and the expected cost."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console, OverflowMethod

from backends.prepare import environments, locks
from sweep.base.config import ConfigError, Settings, cache_directory, next_time
from sweep.base.records import TYPED_APIS
from sweep.base.wording import count, duration_text
from sweep.inputs.load import Trace
from sweep.inputs.sessions.turns import SessionWorkload, orders_of_roles
from sweep.inputs.tokenizer import template_objection
from sweep.inputs.workload import Workload
from sweep.plan.capacity.plan_points import PlanPoint, capacity_warnings, least_time, plan_points, tokenizer_here
from sweep.plan.packing import Node, start_order
from sweep.plan.pending import PendingWork
from sweep.plan.plan import Deployment, Plan, Trial, elsewhere

MOST_TRIALS_LISTED = 200  # a larger plan is listed by deployment
MOST_STARTS_LISTED = 8  # maximum number of a block's launches
FEW_REQUESTS = 0.5  # share of the requested duration; a few dozen random arrivals rarely end earlier
FEW_CORES = 4  # per GPU (or deployment on a CPU), for server, engine, client and system
PIPE_WIDTH = 160  # characters, if there is no terminal and no COLUMNS


def print_plan(console: Console, plan: Plan, pending: PendingWork, nodes: Sequence[Node], details: bool) -> None:
    """Print what will be run, what was replaced for lack of a GPU, what is unavailable and why, and the estimate.

    With `details` also the trials, their order, and how the estimate was computed.
    """
    hardware, estimate = plan.settings.hardware, pending.estimate
    because = "no GPU here: " if hardware.platform == "cpu" else ""
    cache = cache_directory(plan.settings.cache_dir)
    pairs = ((deployment, trial.workload) for deployment in plan.deployments for trial in deployment.trials)
    workloads = {(d.model.name, d.backend.api, repr(workload)): (d, workload) for d, workload in pairs}.values()
    loads = {id(trial.load): trial.load for trial in plan.trials}.values()
    notes = dict.fromkeys(note for each in workloads for note in _notes(*each, cache))
    notes |= dict.fromkeys(note for load in loads for note in load.notes())
    lines = [*([because + "; ".join(plan.replaced)] if plan.replaced else []), *notes]
    if slo := plan.settings.slo:
        lines.append(f"SLO: {', '.join(f'{latency} ≤ {1000 * limit:,g} ms' for latency, limit in slo.items())}")
    _print(console, [*lines, _headline(plan, pending.runnable)])
    if details:
        # Cut at the terminal's width: the reasons are printed in full below the table.
        overflow: OverflowMethod = "ellipsis" if console.is_terminal else "ignore"
        for line in _trials(plan, pending, console.width):
            console.print(line, markup=False, no_wrap=True, overflow=overflow, crop=console.is_terminal)
    counts = Counter(pending.reasons.values()).most_common()
    lines = [f"to run: {count(number, 'trial')}: {reason}" for reason, number in counts]
    if pending.final_failures:
        trials = count(pending.final_failures, "trial")
        lines.append(f"not retried: {trials} failed twice with the same message; retry_failed=true runs them again")
    lines += not_locked(plan)
    lines += [f"unavailable: {d.describe()}: {d.unavailable}" for d in plan.deployments if d.unavailable]
    points = plan_points(plan)
    lines += [f"warning: {text}" for text in plan_warnings(plan, pending, nodes, points)]
    if details:
        lines += starts(pending)
    lines += [f"expected: {text}" for text in (estimate.messages if details else estimate.messages[:1])]
    if details or estimate.seconds is None:
        lines += [f"expected: {text}" for text in least_time(points, hardware.name)]
    _print(console, [*lines, *(f"expected: {text}" for text in least_replays(plan))])


def _notes(deployment: Deployment, workload: Workload, cache: Path) -> list[str]:
    """Return a workload's notes. Raises ConfigError for messages that the model's chat template refuses."""
    if not isinstance(workload, SessionWorkload) or not workload.replays or workload.needs_token_ids:
        return workload.notes(cache)
    backend, model, tokenizer = deployment.backend, deployment.model, tokenizer_here(deployment, cache)
    if tokenizer and backend.launches and backend.api in ("chat", *TYPED_APIS) and "chat-template" not in backend.flags:
        for roles in orders_of_roles(workload):
            if objection := template_objection(model.tokenizer_folder(cache), roles):
                problem = f"the chat template of {model.name} refuses the roles {', '.join(roles)} ({objection})"
                raise ConfigError(f"workload={workload.name}: {problem}; expected roles that it accepts")
    return workload.notes(cache, tokenizer)


def least_replays(plan: Plan) -> list[str]:
    """Return for each point with gaps or recorded times how long its first trial lasts at least because of them."""
    lines = dict[str, str]()
    for trial in plan.trials:
        name = trial.describe_point()
        has_times = trial.workload.replays or isinstance(trial.load, Trace)
        if has_times and name not in lines and len(lines) < MOST_STARTS_LISTED:
            seconds = trial.mode().least_duration(trial.workload.longest_gaps(trial.num_requests, trial.seed))
            seconds = min(seconds, trial.load.duration or seconds)
            lines[name] = f"{name}: at least {duration_text(seconds)} of gaps and arrivals in its first trial"
    return list(lines.values())


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def _headline(plan: Plan, runnable: Sequence[Deployment]) -> str:
    hardware = plan.settings.hardware
    price = f"${hardware.price_per_hour}/h" if hardware.price_per_hour else "no price set"
    only_endpoints = plan.deployments and all(elsewhere(d.backend, hardware) for d in plan.deployments)
    where = "at an endpoint" if only_endpoints else f"on {hardware.name} ({price})"
    to_run = sum(len(deployment.trials) for deployment in runnable)
    launches = count(sum(launch.backend.launches for launch in plan.launches), "launch")
    return (
        f"plan {plan.settings.name}: {count(len(plan.deployments), 'deployment')}, {launches}, "
        f"{count(len(plan.trials), 'trial')}, {to_run} to run, {where}; results in {plan.settings.out}"
    )


def starts(pending: PendingWork) -> list[str]:
    """Return a line for each block: the launches of one replicate, in starting order."""
    names = {launch.launch_key: launch.describe() for launch in pending.runnable}
    blocks: dict[int, list[str]] = {}
    for need in start_order(pending.estimate.expected.needs):
        blocks.setdefault(need.block, []).append(names[need.key])
    if len(blocks) < 2:
        return []
    lines = [f"start: replicate {block}: {_first(labels)}" for block, labels in blocks.items()]
    return [f"{line} (random order)" for line in lines[:-1]] + [f"{lines[-1]} (longest first)"]


def _first(labels: Sequence[str]) -> str:
    more = len(labels) - MOST_STARTS_LISTED
    return ", then ".join(labels[:MOST_STARTS_LISTED]) + (f", then {more} more" if more > 0 else "")


def _trials(plan: Plan, pending: PendingWork, width: int) -> Iterator[str]:
    """Yield a line for each deployment and, in a small plan, each of its trials; with requests if they fit."""
    to_run = {trial.trial_id for deployment in pending.runnable for trial in deployment.trials}
    state = {t.trial_id: "unavailable" if d.unavailable else "done" for d in plan.deployments for t in d.trials}
    state |= {trial_id: pending.reasons.get(trial_id, "to run") for trial_id in to_run}
    label_width = max((len(trial.describe()) for trial in plan.trials), default=0)
    state_width = max(map(len, state.values()), default=0)
    number_of = Counter(launch.deployment_id for launch in plan.launches)
    for deployment in plan.deployments:
        number = sum(trial.trial_id in to_run for trial in deployment.trials)
        summary = "unavailable" if deployment.unavailable else f"{number} to run"
        noun = "launch" if deployment.backend.launches else "turn"
        launches = count(number_of[deployment.deployment_id], noun)
        trials = count(len(deployment.trials), "trial")
        yield f"{deployment.deployment_id}  {deployment.describe()}: {launches}, {trials}, {summary}"
        if len(state) > MOST_TRIALS_LISTED:
            continue
        for trial in deployment.trials:
            line = f"  {trial.trial_id}  {trial.describe():<{label_width}}  {state[trial.trial_id]}"
            requests = f"{'':<{state_width - len(state[trial.trial_id])}}  {_requests(trial)}"
            yield line + requests if len(line + requests) <= width else line


def _requests(trial: Trial) -> str:
    """Return `64 requests, 128 in, 64 out`; no lengths for prompts from a file."""
    lengths = [f"{getattr(trial.workload, f'{side}put_tokens', None)} {side}" for side in ("in", "out")]
    return ", ".join([count(trial.num_requests, "request"), *(text for text in lengths if text[0].isdigit())])


def few_requests_note(plan: Plan) -> list[str]:
    """Return warnings about timed loads whose requests are all sent long before the requested duration."""
    warnings: dict[str, None] = {}
    for trial in {(id(trial.load), id(trial.workload)): trial for trial in plan.trials}.values():
        duration, requests = trial.load.duration, trial.num_requests
        last = None if duration is None else trial.mode().last_arrival()
        if last is not None and last < FEW_REQUESTS * duration:
            few = f"all {requests} requests are due within {last:.1f} s; raise workload.num_requests to fill the time"
            warnings[f"load.duration={duration:g}: {trial.load.describe()}: {few}"] = None
    return list(warnings)


def plan_warnings(plan: Plan, pending: PendingWork, nodes: Sequence[Node], points: list[PlanPoint]) -> list[str]:
    """Return the warnings about a plan, one line each."""
    of_loads = [*past_deadline(plan), *few_cores(plan, nodes), *few_requests_note(plan), *beyond_context(plan)]
    of_nodes = [*broken_drivers(nodes), *substituted(plan), *little_disk(plan.settings, pending.runnable, nodes)]
    return [*of_nodes, *of_loads, *capacity_warnings(plan, points)]


def not_locked(plan: Plan) -> list[str]:
    """Return a line for each environment not locked yet; the run will lock it, so its ids will differ."""
    specs = {d.environment.name: d.environment for d in plan.deployments if d.environment and not d.unavailable}
    return [
        f"not locked yet: environment {name} for {locks.node_target(spec)}: the run resolves it; ids will differ"
        for name, spec in specs.items()
        if locks.needed(spec)
    ]


def substituted(plan: Plan) -> list[str]:
    """Return notes on engines with a different build from the newest nodes', or another number format, and why."""
    notes = [note for deployment in plan.deployments if not deployment.unavailable for note in deployment.notes]
    return list(dict.fromkeys(notes))


def broken_drivers(nodes: Sequence[Node]) -> list[str]:
    """Return warnings about nodes whose NVIDIA driver is installed but broken: each launch there would fail."""
    stated = [(node.address, node.facts.broken_driver) for node in nodes if node.facts]
    return [f"node {address}: {problem}; exclude it with cluster.labels" for address, problem in stated if problem]


def little_disk(
    settings: Settings, runnable: Sequence[Deployment], nodes: Sequence[Node], share: float = 1.0
) -> list[str]:
    """Return a line for each node with less disk than this share of the engines and weights to be written there."""
    free = {node.address: node.facts.free_disk for node in nodes if node.facts and node.facts.free_disk is not None}
    cache = cache_directory(settings.cache_dir)
    if not free:
        return []
    specs = {d.environment.name: d.environment for d in runnable if d.environment and d.environment.disk_gb}
    engines = sum(spec.disk_gb or 0.0 for spec in specs.values() if not environments.is_there(spec, cache))
    models = {d.model.name: d.model for d in runnable if d.backend.launches}
    weights = sum(model.missing_bytes(cache) for model in models.values()) / 1e9
    return [
        f"{address}: {room / 1e9:.1f} GB of disk free, but about {engines:g} GB of engines and {weights:.1f} GB of "
        "weights must be written; make space, or move cache_dir to another disk"
        for address, room in free.items()
        if room < share * (engines + weights) * 1e9
    ]


def past_deadline(plan: Plan) -> list[str]:
    """Return a warning about a deadline in the past; no error, since a loop around the command ends this way."""
    now, deadline = datetime.now(), plan.settings.deadline
    passed = deadline is not None and next_time(deadline, now) < now
    return [f"deadline={deadline} has passed: no trial will start"] if passed else []


def beyond_context(plan: Plan) -> list[str]:
    """Return a warning for each model whose context is shorter than a request, naming the longest request."""
    longest: dict[str, tuple[int, str]] = {}
    for deployment in plan.deployments:
        backend, model = deployment.backend, deployment.model
        context = getattr(model, "context", None)
        if deployment.unavailable or context is None or not (backend.launches and backend.traits.computes_model):
            continue
        for workload in {id(trial.workload): trial.workload for trial in deployment.trials}.values():
            inputs, outputs = workload.longest_request()
            if inputs + outputs > max(context, longest.get(model.name, (0, ""))[0]):
                excess = f"{inputs} input + {outputs} output tokens exceed the context of {model.name}, {context}"
                problem = f"workload {workload.name}: {excess}; engines reject such requests or truncate them"
                longest[model.name] = inputs + outputs, problem
    return [text for _, text in longest.values()]


def few_cores(plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """Return warnings about nodes with too few cores for engine and measuring client."""
    cuda = plan.settings.hardware.platform == "cuda"
    if not any(deployment.backend.launches for deployment in plan.deployments if not deployment.unavailable):
        return []
    cores_by_node = {
        node.address: node.cpus / max(1, node.gpus if cuda else 1) for node in nodes if node.gpus or not cuda
    }
    return [
        f"{address}: {cores:g} cores for each {'GPU' if cuda else 'deployment'}, including the client's; "
        f"engines with too few cores are slow (recommended: {FEW_CORES} or more)"
        for address, cores in cores_by_node.items()
        if cores < FEW_CORES
    ]
