"""Turns a command line into settings and points: Hydra composes, and the experiment's axes are expanded.

An axis is a config group (`backend`) or a dotted key (`load.batch_size`). Composing takes milliseconds, so each
combination of config groups is composed once, and its points are updated copies; ten thousand points take seconds.
`config` and `planning` validate the points.
"""

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.base.config import (
    ASKED_BUDGET,
    GROUPS,
    POINT_GROUPS,
    RUN_GROUPS,
    CapacitySearch,
    Cluster,
    ConfigError,
    FoundHardware,
    Hardware,
    Settings,
    did_you_mean,
    locate,
    nearest,
    one_of,
    parent_mapping,
    read_slo,
    shortened,
    validate,
)
from sweep.base.exits import Outage
from sweep.base.options import PRIMARY, ConfigPath
from sweep.base.wording import flow
from sweep.inputs.hub import REPOSITORY
from sweep.inputs.model import ServedModel
from sweep.inputs.rows import READERS
from sweep.plan.axes import FORMS, PlanSpec, brief, in_words
from sweep.plan.command_line import MOST_PLANNED, Assignments, CommandLine, is_point_key, parse_command_line, point_keys

TOP_LEVEL = {*Settings.model_fields, *FORMS, *GROUPS}  # keys of an experiment
PROMPTS_WORKLOAD = "prompts"  # conf/workload/prompts.yaml, for a file of prompts named on the command line
SERVED_MODEL = "served"  # conf/model/served.yaml, for a model that is known only by an endpoint's name for it
SERVED_TARGET = f"{ServedModel.__module__}.{ServedModel.__qualname__}"

Point = dict[str, Any]
Obstacle = Callable[[str, Mapping[str, Any], str | None], str | None]


@dataclass(frozen=True)
class Composition:
    """The settings of a run, its points before validation, and descriptions of replacements made for lack of a GPU."""

    settings: Settings
    points: list[Point]  # each maps backend, model, workload and load to their settings
    coordinates: list[Assignments]  # each point's values on the axes, by dotted key
    replaced: list[str] = field(default_factory=list)
    options: ConfigPath = field(default_factory=ConfigPath)
    origins: dict[str, str] = field(default_factory=dict)  # "model=mine" -> the user's file that defines it
    seeds: list[dict[int, int]] | None = None  # replicate to run -> its seed, per point; None: all of the plan's


@dataclass
class _Request:
    """The experiment and the command line combined, before points are expanded."""

    plan: PlanSpec
    chosen: Assignments  # the chosen option of each point group that is not an axis
    scalars: Assignments  # dotted keys with the same value in all points
    settings: dict[str, Any]
    replaced: list[str] = field(default_factory=list)


def compose_run(
    arguments: Sequence[str],
    find_hardware: Callable[[Cluster], str],
    options: ConfigPath | None = None,
    obstacle: Obstacle = lambda group, option, cache_dir: None,
) -> Composition:
    """Compose a command line into settings and points; `find_hardware` returns the profile if hardware is `auto`.

    `obstacle` returns why a model or workload, given its keys, cannot be fetched, or None if it can.

    Raises ConfigError if the request is not valid; Outage if it is unknown whether a model or data set can be fetched,
    except in a dry run.
    """
    composer = _Composer(parse_command_line(arguments), options or ConfigPath())
    line, base = composer.line, composer.base
    _refuse_unknown_keys(line, base)
    published = PlanSpec.parse({key: base[key] for key in FORMS})
    typed = PlanSpec.parse({key: value for key, value in line.scalars.items() if key in FORMS})
    before = _both(published, typed)
    request = _Request(
        plan=before,
        chosen=dict(composer.chosen),
        scalars={key: value for key, value in point_keys(line.scalars).items() if key not in POINT_GROUPS},
        settings=_interpolated(_with_typed({key: base[key] for key in base if key in Settings.model_fields}, line)),
    )
    hardware = _hardware(request.settings, find_hardware, composer)
    if request.settings["form"] == "published":
        if not before.published:
            raise ConfigError("form=published: the experiment has no separate published form; expected default")
        if hardware.platform == "cpu":
            raise ConfigError("form=published: no GPU here, where a smaller form runs; expected default")
        _replace_keys(request, line, before.published)
    if hardware.platform == "cpu":
        request.replaced += _replace_keys(request, line, before.without_gpu)
        _replace_unreachable("model", request, line, composer.options, obstacle)
    _replace_unreachable("workload", request, line, composer.options, obstacle)
    if any(map(is_point_key, line.typed)):
        request.settings["durations"] = None  # the durations apply only to the unmodified experiment
    settings = _settings(request.settings, line, hardware)
    plan = request.plan = request.plan.with_typed({**point_keys(line.scalars), **request.scalars}, line.axes)
    request.scalars = {key: value for key, value in request.scalars.items() if key not in plan.grid}
    _check_conditions(request, published, typed, composer.options)
    coordinates = list(plan.expand({**request.chosen, **request.scalars}))
    if (trials := len(coordinates) * settings.replicates) > MOST_PLANNED:
        raise ConfigError(f"replicates={settings.replicates}: {trials:,} trials; expected at most {MOST_PLANNED:,}")
    points = [composer.point(request, assignments) for assignments in coordinates]
    if not points:
        raise ConfigError("exclude: drops every point of the experiment; at least one must remain")
    settings = settings.model_copy(update={"baseline": _checked_baseline(settings.baseline, line, coordinates, before)})
    _refuse_values_of_none(line, plan, coordinates)
    _refuse_keys_of_some(line, plan, points)
    return Composition(settings, points, coordinates, request.replaced, composer.options, composer.origins)


class _Composer:
    """Makes points from assignments: composes each combination of config groups once, then updates copies."""

    def __init__(self, line: CommandLine, options: ConfigPath) -> None:
        self.line, self.options = line, options
        self.origins: dict[str, str] = {}
        experiments = options.choices("experiment")
        if line.experiment is not None and line.experiment not in experiments:
            raise one_of("experiment", line.experiment, experiments)
        self.note_origin("experiment", line.experiment)
        typed = {group: line.scalars[group] for group in GROUPS if group in line.scalars}
        self.base, chosen = self._compose(typed)
        self.chosen: Assignments = {group: chosen[group] for group in POINT_GROUPS}
        for group in RUN_GROUPS:
            self.note_origin(group, chosen[group])
        # By chosen options: the groups of a point, and whether they contain anything to interpolate.
        self.cache: dict[tuple[Any, ...], tuple[Point, bool]] = {}
        self._add(self.chosen, self.base)

    def point(self, request: _Request, assignments: Assignments) -> Point:
        chosen = {group: assignments.get(group, request.chosen[group]) for group in POINT_GROUPS}
        if tuple(chosen.values()) not in self.cache:
            self._add(chosen, self._compose(chosen)[0])
        config, interpolated = self.cache[tuple(chosen.values())]
        point = {group: dict(values) for group, values in config.items()}
        for key, value in {**request.scalars, **assignments}.items():
            if "." in key:
                _assign(point, key, value)
        if point["model"]["_target_"] == SERVED_TARGET and point["backend"].get("url") is None:
            point["model"] = _by_address(point["model"], self.options)
        return _resolved(point) if interpolated else point

    def note_origin(self, group: str, name: object) -> None:
        """Record the file of an option if it comes from a user's folder."""
        if (path := self.options.origin(group, name)) is not None:
            self.origins[f"{group}={name}"] = str(path)

    def _add(self, chosen: Assignments, config: Mapping[str, Any]) -> None:
        point = {group: config[group] for group in POINT_GROUPS}
        self.cache[tuple(chosen.values())] = point, "${" in repr(point)
        for group, name in chosen.items():
            self.note_origin(group, name)

    def _is_alias(self, model: str, choices: Mapping[str, Any]) -> bool:
        """Return whether an option's hub model is only the name of an endpoint's model: then no hub is queried."""
        backend = choices.get("backend")
        at_endpoint = backend in self.options.choices("backend") and self.options.load("backend", backend).get("url")
        return bool(at_endpoint) and str(self.options.load("model", model).get("_target_")).endswith(".HubModel")

    def _compose(self, choices: Mapping[str, Any]) -> tuple[dict[str, Any], Assignments]:
        """Return Hydra's composition as plain data, and the option chosen in each group."""
        overrides = [f"+experiment='{self.line.experiment}'"] if self.line.experiment else []
        served = file = None
        for group, choice in choices.items():
            names = self.options.choices(group)
            if (
                group == "model"
                and isinstance(choice, str)
                and (choice not in names or self._is_alias(choice, choices))
            ):
                served, choice = choice, SERVED_MODEL
            elif group == "workload" and choice not in names and Path(str(choice)).suffix.lower() in READERS:
                file, choice = str(choice), PROMPTS_WORKLOAD
            elif choice not in names:
                raise one_of(group, choice, names)
            overrides.append(f"{group}='{choice}'")
        composed = self.options.compose(PRIMARY, overrides)
        config, chosen = composed.values, composed.choices
        for group in POINT_GROUPS:  # a user's file may lack keys that all built-in options have
            for key in ("_target_", "name") if isinstance(config[group], Mapping) else ():
                if not isinstance(config[group].get(key), str):
                    meant = "the dotted name of a class" if key == "_target_" else "a name"
                    value = shortened(repr(config[group].get(key)))
                    raise ConfigError(f"{group}={chosen[group]}: {key}={value}: expected {meant}")
        if served is not None:
            config["model"]["name"] = chosen["model"] = served
        if file is not None:
            config["workload"] |= {"name": Path(file).stem, "file": file}
            chosen["workload"] = file
        return config, chosen


def _by_address(model: Mapping[str, Any], options: ConfigPath) -> dict[str, Any]:
    """Return the model that an engine loads by this name: a folder or a hub repository; otherwise `model` itself."""
    name = str(model["name"])
    settings = {key: value for key, value in model.items() if key not in ("_target_", "name")}
    if name.startswith(("/", "./", "../", "~/")) or os.path.isdir(name):
        folder = Path(name).expanduser()
        return {**options.load("model", "path"), "name": folder.resolve().name, "path": name, **settings}
    if REPOSITORY.fullmatch(name):
        return {**options.load("model", "hub"), "name": name, "repo": name, **settings}
    return dict(model)


def _assign(point: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key, copying the mappings along its path, since points of one composition share them."""
    mapping = parent_mapping(point, dotted)
    parents, _, last = dotted.rpartition(".")
    if parents.endswith("flags"):  # an engine's flags may be spelt with - or _: keep the file's spelling
        last = next((name for name in mapping if name.replace("_", "-") == last.replace("_", "-")), last)
    mapping[last] = copy.deepcopy(value)


def _interpolated(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the run's settings with interpolations resolved, since settings may refer to each other."""
    return _resolved(settings) if "${" in repr(settings) else settings


def _resolved(mapping: Mapping[str, Any]) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(OmegaConf.create(dict(mapping)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _both(published: PlanSpec, typed: PlanSpec) -> PlanSpec:
    """Return the experiment's plan with its keys replaced by the command line's; only `when` is merged."""
    update = typed.model_dump(exclude_unset=True)
    if typed.when:  # an empty `when` drops the experiment's
        update["when"] = {**published.when, **typed.when}
    return PlanSpec.parse({**published.model_dump(exclude_unset=True), **update})


def _hardware(config: Mapping[str, Any], find_hardware: Callable[[Cluster], str], composer: _Composer) -> Hardware:
    """Return the hardware profile; hardware=auto is resolved to a profile."""
    hardware, auto = config["hardware"], composer.options.load("hardware", "auto")
    if hardware.get("name") != auto["name"]:
        return validate(Hardware, hardware, "hardware")
    cluster = validate(Cluster, config["cluster"], "cluster")
    # A dry run uses the nodes that are present; a run waits for cluster nodes that have not joined yet.
    name = find_hardware(cluster.model_copy(update={"wait_for_nodes": 0.0} if config["dry_run"] else {}))
    composer.note_origin("hardware", name)
    changed = {key: value for key, value in hardware.items() if auto.get(key) != value}
    profile = {**composer.options.load("hardware", name), **changed}
    return validate(Hardware if changed else FoundHardware, profile, "hardware")


def _settings(settings: Mapping[str, Any], line: CommandLine, hardware: Hardware) -> Settings:
    config = _interpolated(_with_typed(settings, line)) | {"hardware": hardware}
    if config["out"] is None:
        config["out"] = str(Path("results") / str(config["name"]))
    found = validate(Settings, config, "")
    search = found.capacity or CapacitySearch()
    if found.ask is not None and found.ask.of_capacity and "budget" not in search.model_fields_set:
        found = found.model_copy(update={"capacity": search.model_copy(update={"budget": ASKED_BUDGET})})
    if found.ask is None or found.ask.slo is None:
        return found
    if found.slo is not None:
        raise ConfigError("ask.slo: slo is set as well; keep one")
    return found.model_copy(update={"slo": read_slo(found.ask.slo)})


def _with_typed(settings: Mapping[str, Any], line: CommandLine) -> dict[str, Any]:
    config = dict(settings)
    for key, value in line.scalars.items():
        if not is_point_key(key) and key not in (*FORMS, *RUN_GROUPS):
            _assign(config, key, value)
    return config


def _replace_keys(request: _Request, line: CommandLine, replacements: Assignments) -> list[str]:
    """Replace keys of the experiment, except those that the user typed; return each replacement as text."""
    plan = request.plan
    grid, parts = dict(plan.grid), plan.model_dump(exclude_unset=True)
    replaced = []

    def put(target: dict[str, Any], key: str, value: Any) -> None:
        before = f" instead of {_in_sentence(target[key])}" if target.get(key) else ""
        replaced.append(f"{key}: {_in_sentence(value)}{before}")
        target[key] = value

    for key, value in replacements.items():
        if key == "grid":
            for axis in value:
                if axis not in line.typed:
                    put(grid, axis, value[axis])
        elif key in line.typed:
            continue
        elif key in request.chosen:
            put(request.chosen, key, value)
        elif key in FORMS:
            put(parts, key, value)
        elif is_point_key(key):
            request.scalars[key] = value
            replaced.append(f"{key}: {in_words(value)}")
        else:
            put(request.settings, key, value)
    in_step = PlanSpec.parse({key: parts[key] for key in ("zip", "ladder") if key in replacements}).values()
    request.plan = PlanSpec.parse({**parts, "grid": {axis: grid[axis] for axis in grid if axis not in in_step}})
    return replaced


def _in_sentence(value: Any) -> str:
    """Return a value for a sentence, mappings too: `load.batch_size 1, 8 with workload.num_requests 20, 24`."""
    if isinstance(value, Mapping):
        return " with ".join(f"{key} {_in_sentence(entry)}" for key, entry in value.items())
    if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        return " and ".join(map(_in_sentence, value))
    return in_words(value)


def _replace_unreachable(
    group: str, request: _Request, line: CommandLine, options: ConfigPath, obstacle: Obstacle
) -> None:
    """Replace a model or data set that cannot be fetched by its file's `instead`, unless the user typed it."""
    name = request.chosen[group]
    if group in line.typed or group in request.plan.grid or name not in options.choices(group):
        return
    part = options.load(group, name)
    instead, fields = part.get("instead"), locate(part["_target_"], group).model_fields
    # Check with the keys set for it: dataset=FOLDER is a local copy.
    part |= {key: request.scalars[f"{group}.{key}"] for key in fields if f"{group}.{key}" in request.scalars}
    try:
        reason = obstacle(group, part, request.settings["cache_dir"]) if instead else None
    except Outage as error:
        if not request.settings["dry_run"]:  # a short outage must not make the run measure something else
            raise Outage(f"{error} ({group}={instead} needs no download)") from None
        reason = str(error)
    if reason is not None:
        request.chosen[group], request.settings["durations"] = instead, None
        weights = " (random weights)" if group == "model" else ""
        request.replaced.append(f"{group}: {instead}{weights} instead of {name}: {reason}")


def _check_conditions(request: _Request, published: PlanSpec, typed: PlanSpec, options: ConfigPath) -> None:
    """Reject a condition on a key that the plan lacks, or on a value that the key cannot have.

    An experiment's conditions may also refer to axes that the command line replaced, and to any option of a group.
    """
    plan, chosen = request.plan, {**request.chosen, **request.scalars}
    axes, groups = plan.values(), {group: options.choices(group) for group in POINT_GROUPS}
    defined = {*axes, *published.values(), *chosen}
    for key in plan.when:  # the key may be meant for the command line, unless its name is close to an axis
        if key not in defined and (axis := nearest(key, axes)):
            raise ConfigError(f"when.{key}: not an axis of this plan; did you mean {axis}?")
    strict = [*typed.exclude, *typed.when.values()]
    for pattern in (*plan.exclude, *plan.when.values()):
        for key, condition in pattern.items():
            if key not in defined:
                raise ConfigError(f"{key}={in_words(condition)}: not an axis here; {did_you_mean(key, defined)}")
            options_of: Mapping[str, Sequence[str]] = {} if pattern in strict else groups
            if key in (options_of or axes):
                allowed = [*options_of.get(key, ()), *axes.get(key, ()), *([chosen[key]] if key in chosen else ())]
                for value in condition if isinstance(condition, list) else [condition]:
                    if value not in allowed:
                        raise one_of(key, value, {str(other) for other in allowed})


def _checked_baseline(
    baseline: Mapping[str, Any] | None, line: CommandLine, coordinates: Sequence[Assignments], before: PlanSpec
) -> Mapping[str, Any] | None:
    """Return the baseline, after checking that each of its keys is an axis, and each value is on that axis.

    A value in an experiment's baseline may be missing from this run (`backend=vllm`): then nothing is compared. So may
    an axis that is another engine's: then there is no baseline.
    """
    typed = any(key.split(".")[0] == "baseline" for key in line.scalars)
    axes = {axis for assignments in coordinates for axis in assignments}
    for key, value in (baseline or {}).items():
        if key not in axes and not typed and key in before.values():
            return None
        if key not in axes:
            expected = ", ".join(sorted(axes)) or "none"
            raise ConfigError(f"baseline.{key}: not an axis of this plan; expected: {expected}")
        values = [assignments[key] for assignments in coordinates if key in assignments]
        if value not in values + ([] if typed else before.values().get(key, [])):
            raise one_of(f"baseline.{key}", value, {str(other) for other in values})
    return baseline


def _refuse_unknown_keys(line: CommandLine, base: Mapping[str, Any]) -> None:
    """Reject unknown keys in the experiment and on the command line, which would have no effect."""
    where = f"experiment={line.experiment}: "
    for key, value in base.items():
        if key == "experiment":
            raise ConfigError(f"{where}the first line must be `# @package _global_`, or the file's keys have no effect")
        if key not in TOP_LEVEL:
            reason = Settings.removal(key) or f"unknown key; {did_you_mean(key, TOP_LEVEL)}"
            raise ConfigError(f"{where}{key}={brief(value)}: {reason}")
        if key in GROUPS and not isinstance(value, Mapping):
            raise ConfigError(
                f"{where}{key}={brief(value)}: choose an option under defaults, `- override /{key}: NAME`"
            )
    fields = {group: locate(base[group]["_target_"], group).model_fields for group in POINT_GROUPS}
    dotted = [f"{group}.{name}" for group in fields for name in fields[group]]
    for key in line.typed:
        if key.split(".")[0] not in TOP_LEVEL:
            reason = Settings.removal(key) or f"unknown; {did_you_mean(key, {*TOP_LEVEL, 'experiment'}, dotted)}"
            raise ConfigError(f"key={key}: {reason}")
    for key in line.axes:
        if not is_point_key(key):
            values = shortened(",".join(str(value) for value in line.axes[key]))
            raise ConfigError(f"{key}={values}: expected one value; lists are for keys of {', '.join(POINT_GROUPS)}")


def _refuse_values_of_none(line: CommandLine, plan: PlanSpec, coordinates: Sequence[Assignments]) -> None:
    """Reject typed values without effect: the `when` of their key matches no point."""
    for key, value in line.typed.items():
        if key in plan.when and key in plan.grid and not any(key in point for point in coordinates):
            raise ConfigError(
                f"{key}={in_words(value)}: no point of the plan meets the condition {flow(plan.when[key])}; to set it "
                f"in all points, add 'when={{{key}: {{}}}}'"
            )


def _refuse_keys_of_some(line: CommandLine, plan: PlanSpec, points: Iterable[Point]) -> None:
    """Reject a key that only some of the chosen options have: the user must specify where it applies."""
    used = {group: {str(point[group]["name"]): point[group]["_target_"] for point in points} for group in POINT_GROUPS}
    for key, value in line.typed.items():
        group, *fields = key.split(".")
        if group not in POINT_GROUPS or not fields or key in plan.when:
            continue
        fitting = {name for name, target in used[group].items() if fields[0] in locate(target, group).model_fields}
        if fitting and fitting != set(used[group]):
            missing, some = ", ".join(sorted(set(used[group]) - fitting)), ",".join(sorted(fitting))
            raise ConfigError(
                f"{key}={in_words(value)}: no such key in {missing}; to set it only for {some}, add "
                f"'when={{{key}: {{{group}: [{some}]}}}}'"
            )
