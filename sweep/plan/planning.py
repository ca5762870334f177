"""From composed points to a Plan: every point validated, grouped into Deployments, and given its id.

Ids are hashes of everything known at planning that could change a result, so the same command resumes and changing one
flag reruns exactly what it touches. No clock and no GPU is asked; what a model or a workload points to is read once: a
folder is hashed, the hub asked which commit a revision is.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from backends.base import EnvironmentSpec
from sweep.config import POINT_GROUPS, ConfigError, Settings, build, cache_directory, content_hash, one_of
from sweep.labels import labels
from sweep.options import ConfigPath
from sweep.plan.command_line import Assignments
from sweep.plan.compose import Composition, Point
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.records import PROTOCOL_VERSION

T = TypeVar("T")

# Fields of a backend that say how it is run here and cannot change a result.
NOT_IN_ID = {"port", "launch_timeout", "stop_grace", "metric_names"}


class Surroundings(NamedTuple):
    """The outside facts that planning needs, as functions, so that the plan itself stays free of effects."""

    fingerprint: Callable[[Any, str], str]  # (backend, platform) -> hash of the locked environment
    unavailable: Callable[[Any, str], str | None]  # (backend, platform) -> why it cannot run here
    environment: Callable[[Any, str], EnvironmentSpec | None] = lambda backend, platform: None


def make_plan(composition: Composition, surroundings: Surroundings) -> Plan:
    """Validate every point, group them into deployments and give everything its id.

    Raises:
        ConfigError: naming the first key that a point may not have.
    """
    settings = composition.settings
    builder = _Builder(settings, surroundings, composition.options)
    for point, coordinates in zip(composition.points, composition.coordinates, strict=True):
        builder.add(point, coordinates)
    deployments = _labelled(list(builder.deployments.values()))
    for deployment in deployments:
        deployment.trials[:] = _blocked_order(deployment.trials, settings.seed)
    axes = sorted({axis for coordinates in composition.coordinates for axis in coordinates})
    _check_baseline(settings.baseline, axes)
    return Plan(settings, deployments, axes, composition.replaced, composition.origins)


class _Builder:
    """Adds points one by one; equal parts are validated once, which is what makes ten thousand points quick."""

    def __init__(self, settings: Settings, surroundings: Surroundings, options: ConfigPath) -> None:
        self.settings = settings
        self.surroundings = surroundings
        self.options = options
        self.deployments: dict[str, Deployment] = {}
        self.objects: dict[str, BaseModel] = {}
        self.identities: dict[int, Any] = {}
        self.digests: dict[int, str | None] = {}
        self.cache = cache_directory(settings.cache_dir)
        self.seen: set[str] = set()
        # Settings of the run that change a row all the same: how requests are timed out and how trials are judged.
        self.judged_by = settings.model_dump(mode="json", include={"max_failed", "relaunch"})
        self.judged_by["timeouts"] = asdict(settings.client.timeouts)

    def add(self, point: Point, coordinates: Assignments) -> None:
        backend, model, workload, load = (self._object(group, point[group]) for group in POINT_GROUPS)
        if backend.launches and not model.launchable:
            raise one_of("model", model.name, self.options.choices("model"))
        load.count(workload.num_requests)  # a trace that is too short says so here
        deployment = self._deployment(backend, model)
        for replicate in range(self.settings.replicates):
            seed = self._seed(workload, load, replicate)
            parts = [self._identity(group, part) for group, part in (("workload", workload), ("load", load))]
            identity = [deployment.deployment_id, *parts, replicate, seed, self.judged_by]
            trial_id = content_hash(identity)
            if trial_id not in self.seen:
                self.seen.add(trial_id)
                content = self._content(workload=workload, load=load)
                deployment.trials.append(Trial(trial_id, workload, load, replicate, seed, coordinates, point, content))

    def _object(self, group: str, mapping: Mapping[str, Any]) -> Any:
        key = group + json.dumps(mapping, sort_keys=True, default=str)
        if key not in self.objects:
            built = build(mapping, group)
            check = getattr(built, "check", None)
            if check is not None:
                _at_the_door(check, group)
            self.objects[key] = built
        return self.objects[key]

    def _identity(self, group: str, built: Any) -> Any:
        """The parts of an object that can change a result: its fields and the digest of the content behind it."""
        if id(built) not in self.identities:
            fields = built.model_dump(mode="json", exclude=NOT_IN_ID)
            identity = [type(built).__qualname__, fields, self._digest(group, built)]
            self.identities[id(built)] = content_hash(identity)
        return self.identities[id(built)]

    def _digest(self, group: str, built: Any) -> str | None:
        """The digest of the content behind an object; computed once, since it may read much or ask the hub."""
        if id(built) not in self.digests:
            where = [self.cache] if group == "model" else []
            has = hasattr(built, "digest")
            self.digests[id(built)] = _at_the_door(lambda: built.digest(*where), group) if has else None
        return self.digests[id(built)]

    def _content(self, **parts: Any) -> dict[str, str]:
        digests = {group: self._digest(group, part) for group, part in parts.items()}
        return {group: digest for group, digest in digests.items() if digest is not None}

    def _deployment(self, backend: Any, model: Any) -> Deployment:
        hardware = self.settings.hardware
        environment = self.surroundings.fingerprint(backend, hardware.platform)
        gpu_count = backend.gpus if hardware.platform == "cuda" else 0
        deployment_id = content_hash(
            [
                PROTOCOL_VERSION,
                self._identity("backend", backend),
                self._identity("model", model),
                environment,
                hardware.platform,
                hardware.accelerator,
                gpu_count,
            ]
        )
        if deployment_id not in self.deployments:
            unavailable = self.surroundings.unavailable(backend, hardware.platform)
            content = self._content(backend=backend, model=model)
            pinned = model.pinned(self.cache)
            self.deployments[deployment_id] = Deployment(
                deployment_id,
                backend,
                pinned,
                gpu_count,
                hardware.accelerator,
                unavailable=unavailable,
                content=content,
                environment=self.surroundings.environment(backend, hardware.platform),
            )
        return self.deployments[deployment_id]

    def _seed(self, workload: Any, load: Any, replicate: int) -> int:
        """Never of the backend: all see the same prompts. Of the load: no cache may answer for an earlier trial."""
        parts = [self._identity("workload", workload), self._identity("load", load)]
        return int(content_hash([self.settings.seed, *parts, replicate], 8), 16)


def _labelled(deployments: list[Deployment]) -> list[Deployment]:
    """The same deployments and trials, each with the settings that set it apart from its siblings."""
    names = labels([deployment.name for deployment in deployments], [_settings_of(each) for each in deployments])
    labelled = []
    for deployment, name in zip(deployments, names, strict=True):
        trials = deployment.trials
        texts = labels([trial.name for trial in trials], [trial.coordinates for trial in trials])
        trials = [replace(trial, label=text) for trial, text in zip(trials, texts, strict=True)]
        labelled.append(replace(deployment, label=name, trials=trials))
    return labelled


def _settings_of(deployment: Deployment) -> dict[str, Any]:
    """The values on the axes that all trials of a deployment share."""
    first, *rest = (trial.coordinates for trial in deployment.trials)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def _at_the_door(check: Callable[[], T], group: str) -> T:
    try:
        return check()
    except ValueError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(group) else f"{group}: {message}") from None


def _blocked_order(trials: list[Trial], seed: int) -> list[Trial]:
    """Replicates as blocks of random order: a slow drift of the machine then falls on every setting alike."""
    ordered: list[Trial] = []
    for replicate in sorted({trial.replicate for trial in trials}):
        block = [trial for trial in trials if trial.replicate == replicate]
        random.Random(f"{seed}/{replicate}").shuffle(block)
        ordered += block
    return ordered


def _check_baseline(baseline: Mapping[str, Any] | None, axes: list[str]) -> None:
    for key in baseline or {}:
        if key not in axes:
            raise ConfigError(f"baseline.{key}: not an axis of this plan; allowed: {', '.join(axes) or 'none'}")
