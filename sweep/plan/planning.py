"""Turns composed points into a Plan: every point is validated, assigned to a Deployment, and given an id.

Ids are hashes of everything known at planning that could change a result. So the same command resumes, and a changed
flag reruns only the affected trials. Planning uses no clock and no GPU. It reads the files behind a model or a workload
once: it hashes a folder, and queries the hub for the commit of a revision (and, for an engine in an image, for the
storage format of its weights).
"""

import functools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from backends.base import AMPERE, Backend, EnvironmentSpec
from backends.prepare.fit import older
from backends.tables import check
from sweep.base.config import ConfigError, Settings, build, cache_directory, content_hash, one_of
from sweep.base.exits import Outage
from sweep.base.options import ConfigPath
from sweep.base.records import PROTOCOL_VERSION
from sweep.base.setting_labels import labels
from sweep.gateway.settings import Gateway
from sweep.inputs.draft import draft_model
from sweep.inputs.sessions.traces import LENGTHS_ALONE
from sweep.inputs.sessions.turns import SessionWorkload
from sweep.inputs.workload import Workload
from sweep.plan.command_line import Assignments
from sweep.plan.compose import Composition, Point
from sweep.plan.plan import Deployment, Plan, Trial, identity_of, judging, launched_per_replicate, trial_id_of

ROUTER = "router"  # the default option of conf/gateway in front of replicas


class Surroundings(NamedTuple):
    """Facts about the environment that planning needs, passed as functions, so that planning has no side effects."""

    fingerprint: Callable[[Any, str], str]  # (backend, platform) -> hash of the locked environment
    unavailable: Callable[[Any, str], str | None]  # (backend, platform) -> why it cannot run here
    environment: Callable[[Any, str], EnvironmentSpec | None] = lambda backend, platform: None
    capability: str | None = None  # the lowest compute capability of the nodes' GPUs, if it is known
    replayed: Any = None  # the MeasuredTable that answers in place of engines: its digest gives ids of their own


def make_plan(composition: Composition, surroundings: Surroundings) -> Plan:
    """Validate every point, group the points into deployments, and give everything its id.

    Raises ConfigError, naming the first invalid key of a point; Outage if a package index or hub does not answer.
    """
    settings = composition.settings
    builder = _Builder(settings, surroundings, composition.options)
    deployments_of = [builder.deploy(point) for point in composition.points]
    seeds_of: Sequence[dict[int, int] | None] = composition.seeds or [None] * len(composition.points)
    parts = zip(deployments_of, composition.points, composition.coordinates, seeds_of, strict=True)
    for deployment, point, values, seeds in parts:
        builder.add(deployment, point, values, seeds)
    deployments = _labelled(list(builder.deployments.values()))
    for deployment in deployments if composition.seeds is None else ():
        deployment.trials[:] = _blocked_order(deployment.trials, settings.seed)
    axes = sorted({axis for coordinates in composition.coordinates for axis in coordinates})
    return Plan(settings, deployments, axes, composition.replaced, composition.origins)


class _Part(NamedTuple):
    """A validated object of a config group, with its contribution to ids."""

    built: Any  # pinned to the commits that its revisions point to now
    digest: str | None  # digest of the content that it refers to
    identity: str


class _Builder:
    """Adds points one by one; equal parts are validated only once, so that ten thousand points are quick."""

    def __init__(self, settings: Settings, surroundings: Surroundings, options: ConfigPath) -> None:
        self.settings = settings
        self.surroundings = surroundings
        self.options = options
        self.deployments: dict[str, Deployment] = {}
        self.parts: dict[str, _Part] = {}
        self.cache = cache_directory(settings.cache_dir)
        self.trial_ids: set[str] = set()
        self.judged_by = judging(settings)

    def deploy(self, point: Point) -> Deployment:
        """Return the deployment of a point; points that differ only in workload and load share one."""
        backend, model, gateway = (self._part(group, point[group]) for group in ("backend", "model", "gateway"))
        if backend.built.launches and not model.built.launchable:
            raise one_of("model", model.built.name, self.options.choices("model"))
        if backend.built.replicas > 1 and not isinstance(gateway.built, Gateway):
            gateway = self._part("gateway", self.options.load("gateway", ROUTER))
        front = gateway if isinstance(gateway.built, Gateway) else None
        api, inside = backend.built.api, backend.built.traits.timed_inside
        if front is not None and (inside or api not in ("completions", "chat")):
            speaks = "is timed inside" if inside else f"speaks {api}"
            raise ConfigError(
                f"gateway={gateway.built.name}: supports completions and chat, but {backend.built.name} {speaks}; "
                "expected gateway=none"
            )
        return self._deployment(backend, model, front, self._draft(backend.built))

    def add(
        self, deployment: Deployment, point: Point, coordinates: Assignments, seeds: Mapping[int, int] | None = None
    ) -> None:
        """Add the trials of a point once all deployments are known; `seeds`: fixed seeds of replicates, for a rerun."""
        workload, load = (self._part(group, point[group]) for group in ("workload", "load"))
        workload.built.check_count(load.built.count(workload.built.num_requests))  # errors if a trace is too short
        load.built.check_pairing(workload.built)
        _check_replay(workload.built, deployment)
        if deployment.backend.traits.timed_inside and load.built.mode(1, 0).batch() is None:
            problem = f"{deployment.backend.name} is timed in-process, in lockstep batches"
            raise ConfigError(f"load={load.built.name}: {problem}; expected load=batch")
        if workload.built.models and deployment.backend.traits.timed_inside:
            problem = f"{deployment.backend.name} has one model"
            raise ConfigError(f"workload.models={', '.join(workload.built.models)}: {problem}; expected {{}}")
        if workload.built.temperature and not deployment.backend.wire.samples:
            problem = f"{deployment.backend.name} decodes greedily"
            raise ConfigError(f"workload.temperature={workload.built.temperature:g}: {problem}; expected 0")
        anew = launched_per_replicate(self.settings, len(self.deployments)) and deployment.backend.launches
        parts = [workload.identity, load.identity]
        content = _content(workload=workload, load=load)
        for replicate in range(self.settings.replicates) if seeds is None else seeds:
            # Independent of the backend, so that prompts are equal; dependent on the load, so that no cache helps.
            seed = int(content_hash([self.settings.seed, *parts, replicate], 8), 16)
            seed = seed if seeds is None else seeds[replicate]
            # The first replicate starts on a fresh engine either way.
            own_launch = anew and replicate > 0
            trial_id = trial_id_of(deployment.deployment_id, parts, replicate, seed, own_launch, self.judged_by)
            if trial_id not in self.trial_ids:
                fitted = _fitted(workload.built, deployment, seed)
                self.trial_ids.add(trial_id)
                trial = Trial(trial_id, fitted, load.built, replicate, seed, coordinates, point, content)
                deployment.trials.append(trial)

    def _part(self, group: str, mapping: Mapping[str, Any]) -> _Part:
        key = group + json.dumps(mapping, sort_keys=True, default=str)
        if key not in self.parts:
            built: Any = build(mapping, group)
            try:
                if hasattr(built, "check"):
                    built.check()
                folders = [] if group == "backend" else [self.cache]
                digest = built.digest(*folders) if hasattr(built, "digest") else None
            except ValueError as error:
                message = str(error) if str(error).startswith(group) else f"{group}: {error}"
                raise _unusable(error, message) from None
            pinned = built.pinned(self.cache) if hasattr(built, "pinned") else built
            self.parts[key] = _Part(pinned, digest, identity_of(built, digest))
        return self.parts[key]

    def _draft(self, engine: Backend) -> _Part | None:
        """Return the draft model named in an engine's flags, checked and digested like the model itself."""
        draft = engine.draft(self.settings.hardware.platform) if engine.launches else None
        built = draft_model(*draft) if draft else None
        if draft is None or built is None:
            return None
        try:
            built.check()
            digest = built.digest(self.cache)
        except ValueError as error:
            raise _unusable(error, f"backend.flags.{engine.flag_rules.draft}={draft[0]}: {error}") from None
        return _Part(built.pinned(self.cache), digest, content_hash([digest]))

    def _deployment(
        self, backend: _Part, model: _Part, gateway: _Part | None, draft: _Part | None = None
    ) -> Deployment:
        engine, hardware, surroundings = backend.built, self.settings.hardware, self.surroundings
        gpu_count = engine.gpu_count if hardware.platform == "cuda" else 0
        environment = surroundings.fingerprint(engine, hardware.platform)
        on = [hardware.platform, hardware.accelerator, gpu_count]
        on += [part.identity for part in (gateway, draft) if part is not None]
        on += [surroundings.replayed.digest] if surroundings.replayed else []
        deployment_id = content_hash([PROTOCOL_VERSION, backend.identity, model.identity, environment, *on])
        if deployment_id not in self.deployments:
            spec = surroundings.environment(engine, hardware.platform)
            if problem := check.refused(engine, spec):
                raise ConfigError(problem)
            capability = surroundings.capability if gpu_count else None
            refused, notes = bfloat16(engine, model.built, capability)
            unmade = None
            if spec is not None and spec.image:
                unmade = engine.conversion_obstacle(functools.partial(model.built.is_quantised, self.cache))
            if spec is not None and spec.substitutes:
                notes = (f"{engine.name}: environment {spec.name} {spec.substitutes}", *notes)
            notes = (*notes, *check.warnings(engine, spec))
            self.deployments[deployment_id] = Deployment(
                deployment_id,
                engine,
                model.built,
                gpu_count,
                hardware.accelerator,
                unavailable=surroundings.unavailable(engine, hardware.platform) or refused or unmade,
                notes=notes,
                content=_content(backend=backend, model=model, **({"draft": draft} if draft else {})),
                draft=draft.built if draft else None,
                environment=spec,
                gateway=None if gateway is None else gateway.built,
            )
        return self.deployments[deployment_id]


def _check_replay(workload: Workload, deployment: Deployment) -> None:
    """Raise ConfigError if an engine cannot replay the prefixes of recorded prompts."""
    backend = deployment.backend
    if workload.replays and backend.traits.timed_inside:
        problem = f"a replay needs a client, and {backend.name} is timed inside its own process"
        raise ConfigError(f"workload={workload.name}: {problem}; {LENGTHS_ALONE}")
    if workload.needs_token_ids and (backend.api != "completions" or not backend.token_ids):
        problem = f"hash_ids are sent as token ids, which {backend.name} ({backend.api}) does not take"
        raise ConfigError(f"workload={workload.name}: {problem}; {LENGTHS_ALONE}")


def _fitted(workload: Workload, deployment: Deployment, seed: int) -> Workload:
    """Return a workload of sessions with the model's context, or the smaller one that is set; others unchanged.

    Raises ConfigError if a turn of a trial with this seed is longer, or if the context to truncate to is unknown.
    """
    if not isinstance(workload, SessionWorkload) or not workload.replays:
        return workload
    backend, own = deployment.backend, getattr(deployment.model, "context", None)
    own = own if backend.launches and backend.traits.computes_model else None
    contexts = [context for context in (own, workload.context) if context]
    if not contexts and workload.truncate:
        problem = f"the context of {deployment.model.name} is unknown"
        raise ConfigError(f"workload.truncate={workload.truncate}: {problem}; set workload.context")
    if not contexts:
        return workload
    context = min(contexts)
    workload = workload.model_copy(update={"context": context})
    inputs, outputs = workload.longest_request(seed)
    if inputs + outputs > context:
        turn = f"a turn of {inputs} input and {outputs} output tokens"
        problem = f"{turn} exceeds the context of {deployment.model.name}; expected at most {context} together"
        remedy = "" if workload.truncate else "; workload.truncate=oldest leaves out the oldest part of such a turn"
        raise ConfigError(f"workload={workload.name}: {problem}{remedy}")
    return workload


def _unusable(error: ValueError, message: str) -> ValueError:
    """Return the error for an unusable part: ConfigError, or the Outage itself."""
    return (Outage if isinstance(error, Outage) else ConfigError)(message)


def bfloat16(engine: Backend, model: Any, capability: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Return (why the engine cannot use bfloat16 on these GPUs, notes on the format used instead); may be empty."""
    asked_for = engine.in_bfloat16(model.dtype)
    by_itself = engine.dtype == model.dtype == "auto" and engine.in_bfloat16(model.stored_dtype or "")
    if not older(capability, AMPERE) or not (asked_for or by_itself):
        return None, ()
    problem = f"{engine.name} {model.name}: GPUs of compute capability {capability} have no bfloat16"
    if asked_for and engine.traits.before_ampere == "refuses":
        return f"{problem}, which the engine rejects: set model.dtype=float16 (or the engine's name for it)", ()
    if engine.traits.before_ampere == "emulates":
        return None, (f"{problem}: the engine emulates it slowly; model.dtype=float16 avoids that",)
    return None, (f"{problem}: the engine computes in float16",)


def _content(**parts: _Part) -> dict[str, str]:
    return {group: part.digest for group, part in parts.items() if part.digest is not None}


def _labelled(deployments: list[Deployment]) -> list[Deployment]:
    """Return the deployments and trials with labels: the settings that distinguish each from its siblings."""
    names = labels([deployment.name for deployment in deployments], [_settings_of(each) for each in deployments])
    labelled = []
    for deployment, name in zip(deployments, names, strict=True):
        trials = deployment.trials
        texts = labels([trial.name for trial in trials], [trial.coordinates for trial in trials])
        trials = [replace(trial, label=text) for trial, text in zip(trials, texts, strict=True)]
        labelled.append(replace(deployment, label=name, trials=trials))
    return labelled


def _settings_of(deployment: Deployment) -> dict[str, Any]:
    """Return the values on the axes that are equal for all of a deployment's trials."""
    first, *rest = (trial.coordinates for trial in deployment.trials)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def _blocked_order(trials: list[Trial], seed: int) -> list[Trial]:
    """Return trials in shuffled blocks, one per replicate, so that a slow drift of the machine affects all alike."""
    ordered: list[Trial] = []
    for replicate in sorted({trial.replicate for trial in trials}):
        block = [trial for trial in trials if trial.replicate == replicate]
        random.Random(f"{seed}/{replicate}").shuffle(block)
        ordered += block
    return ordered
