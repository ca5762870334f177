"""The details of a plan's points, to compare with a paper: command, dtype, context, lengths, counts, deviations."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from sweep.base.config import cache_directory
from sweep.base.wording import count
from sweep.gateway.settings import Gateway
from sweep.plan.capacity.demand import SAMPLE, input_lengths
from sweep.plan.capacity.footprint import planned_launch
from sweep.plan.capacity.plan_points import plan_points, tokenizer_here
from sweep.plan.plan import Deployment, Plan, Trial

OUR_VARIABLE = "PYTHONPATH"  # lets the engine's process import this project; differs between machines


def point_details(plan: Plan) -> Iterator[str]:
    """Yield lines about each deployment and, below it, about each of its points with all replicates."""
    cache = cache_directory(plan.settings.cache_dir)
    demands = {(point.deployment.deployment_id, point.label): point.demand.describe() for point in plan_points(plan)}
    for deployment in plan.deployments:
        yield f"{deployment.deployment_id}  {deployment.describe()}"
        platform = plan.settings.hardware.platform
        yield from (f"  {line}" for line in _engine(deployment, platform))
        for reason in plan.study_differences.get(deployment.backend.name, ()):
            yield f"  not as published: {reason}"
        for trials in deployment.points():
            label = trials[0].describe_point()
            demand = demands.get((deployment.deployment_id, label), "memory and time cannot be estimated")
            yield f"  {label}: {'; '.join([*_requests(deployment, trials, cache), demand])}"


def _engine(deployment: Deployment, platform: str) -> Iterator[str]:
    backend, model = deployment.backend, deployment.model
    launch = planned_launch(deployment)
    if not backend.launches:
        yield f"endpoint: {backend.url}"
    else:
        try:
            yield f"command: {shlex.join(backend.command(launch))}"
        except (OSError, ValueError) as error:  # the engine's command depends on its converted weights
            yield f"command: known once its weights are prepared ({error})"
        environ = {name: value for name, value in backend.environment(launch).items() if name != OUR_VARIABLE}
        yield f"environment: {' '.join(f'{name}={shlex.quote(value)}' for name, value in environ.items())}"
    context = getattr(model, "context", None)
    if backend.replicas > 1:
        yield f"{backend.replicas} replicas behind the router ({deployment.gateway.routing})"
    yield from _gateway(deployment)
    gpus = f"{count(deployment.gpu_count, 'GPU')} ({deployment.accelerator or 'any'})" if platform == "cuda" else "CPU"
    dtype = "as stored in the weights" if launch.dtype == "auto" else launch.dtype
    longest = f"{context} tokens" if context else "the model's"
    packages = f"; environment {deployment.environment.name}" if deployment.environment else ""
    yield f"dtype: {dtype}; context: {longest}; on {gpus}{packages}"


def _gateway(deployment: Deployment) -> Iterator[str]:
    """Yield a line about a gateway's effect on requests; no line if there is no gateway."""
    gateway = deployment.gateway
    if isinstance(gateway, Gateway):
        clip, cache = gateway.clip, gateway.cache
        parts = []
        if clip.input_tokens or clip.output_tokens:
            parts.append(f"clip {clip.input_tokens or 'any'}/{clip.output_tokens or 'any'} tokens")
        if cache is not None:
            parts.append(f"cache {cache.mode}" + (f" {cache.threshold:g}" if cache.mode == "semantic" else ""))
        yield f"gateway: {', '.join(parts) or 'passes requests on'}"


def _requests(deployment: Deployment, trials: Sequence[Trial], cache: Path) -> Iterator[str]:
    """Describe the requests of a point: their number, lengths, and the limit on their answers."""
    first = trials[0]
    workload, number = first.workload.fetched(cache), first.num_requests
    yield f"{count(number, 'request')} after {first.load.warmup(workload.warmup_requests)} of warm-up"
    if (due := first.mode().last_arrival()) is not None:
        yield f"the last one due after {due:g} s"
    requests = workload.requests(tokenizer_here(deployment, cache), min(number, SAMPLE), first.seed)
    estimated = not hasattr(workload, "input_tokens") and any(request.input_tokens < 0 for request in requests)
    lengths = input_lengths(workload, requests)
    yield f"input {'estimated from its characters, about ' if estimated else ''}{_lengths(lengths)}"
    most = "" if workload.ignore_eos and deployment.backend.ignores_eos else "at most "
    yield f"output {most}{_lengths([request.output_tokens for request in requests])}"
    yield f"{count(len(trials), 'replicate')}, seeds {', '.join(str(trial.seed) for trial in trials)}"


def _lengths(tokens: Sequence[int]) -> str:
    if min(tokens) == max(tokens):
        return f"{tokens[0]} tokens"
    of_sample = f", first {SAMPLE} requests" if len(tokens) == SAMPLE else ""
    return f"{min(tokens)} to {max(tokens)} tokens (mean {sum(tokens) / len(tokens):.0f}{of_sample})"
