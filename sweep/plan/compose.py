"""From a command line to settings and points: Hydra composes, and the experiment's axes are expanded over it.

An axis is a config group (`backend`) or a dotted key (`load.batch_size`). Composing costs about 90 ms, so each
combination of config groups is composed once and its points are dictionaries updated from it; ten thousand points take
seconds. Validation of what comes out is in `config` and `planning`.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config import (
    POINT_GROUPS,
    Cluster,
    ConfigError,
    FoundHardware,
    Hardware,
    Settings,
    Tracking,
    did_you_mean,
    locate,
    one_of,
    validate,
)
from sweep.options import PRIMARY, ConfigPath
from sweep.plan.axes import FORMS, RUN_GROUPS, PlanSpec, flow, in_words
from sweep.plan.command_line import Assignments, CommandLine, is_point_key, parse_command_line, point_keys

GROUPS = POINT_GROUPS + RUN_GROUPS
TOP_LEVEL = {*Settings.model_fields, *FORMS, *GROUPS}  # keys of an experiment
SERVED_MODEL = "served"  # conf/model/served.yaml: a model known only by the name that an endpoint serves it under

Point = dict[str, Any]


@dataclass(frozen=True)
class Composition:
    """The settings of a run, its points before validation, and in plain words what was replaced for lack of a GPU."""

    settings: Settings
    points: list[Point]  # each: backend, model, workload, load as mappings
    coordinates: list[Assignments]  # each point's values on the axes, under their dotted keys
    replaced: list[str] = field(default_factory=list)
    options: ConfigPath = field(default_factory=ConfigPath)
    origins: dict[str, str] = field(default_factory=dict)  # "model=mine" -> the user's file that it came from


@dataclass(frozen=True)
class _Request:
    """The request of experiment and command line, before points are expanded."""

    plan: PlanSpec
    chosen: Assignments  # the option of each point group where it is no axis
    scalars: Assignments  # dotted keys with the same value in all points
    settings: dict[str, Any]


def compose_run(
    arguments: Sequence[str], find_hardware: Callable[[Cluster], str], options: ConfigPath | None = None
) -> Composition:
    """Compose everything that a command line asks for; `find_hardware` names the profile when hardware is `auto`.

    Raises:
        ConfigError: for anything that is not a valid request.
    """
    composer = _Composer(parse_command_line(arguments), options or ConfigPath())
    line, base = composer.line, composer.base
    _refuse_unknown_keys(line, base)
    published, typed = _plans(line, base)
    request = _Request(
        plan=_both(published, typed),
        chosen=composer.chosen,
        scalars={key: value for key, value in point_keys(line.scalars).items() if key not in POINT_GROUPS},
        settings={
            key: base[key] if key in GROUPS else line.scalars.get(key, base[key])
            for key in base
            if key in Settings.model_fields
        },
    )
    hardware = _hardware(line, request.settings, find_hardware, composer)
    replaced: list[str] = []
    if hardware.platform == "cpu":
        request, replaced = _without_gpu(request, line)
    settings = _settings(line, request.settings, hardware)
    plan = request.plan.with_typed({**point_keys(line.scalars), **request.scalars}, line.axes)
    request = replace(request, plan=plan, scalars={k: v for k, v in request.scalars.items() if k not in plan.grid})
    _check_conditions(request, published, typed, composer)
    _check_baseline(settings.baseline, line, request, _both(published, typed), composer.chosen)
    coordinates = list(plan.expand({**request.chosen, **request.scalars}))
    points = [composer.point(request, assignments) for assignments in coordinates]
    if not points:
        raise ConfigError("exclude: drops every point of the experiment; at least one must remain")
    _refuse_values_of_none(line, plan, coordinates)
    _refuse_keys_of_some(line, plan, points)
    return Composition(settings, points, coordinates, replaced, composer.options, composer.origins)


class _Composer:
    """Points from assignments: one composition per combination of config groups, then updated as dictionaries."""

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
        self.cache = {_sorted(self.chosen): _point_of(self.base)}

    def point(self, request: _Request, assignments: Assignments) -> Point:
        """The configuration of one point."""
        config, interpolated = self._point(
            {group: assignments.get(group, option) for group, option in request.chosen.items()}
        )
        point = {group: dict(values) for group, values in config.items()}
        for key, value in {**request.scalars, **assignments}.items():
            if "." in key:
                _assign(point, key, value)
        return _resolved(point) if interpolated else point

    def note_origin(self, group: str, name: object) -> None:
        """Remember an option that is the user's own."""
        if (path := self.options.origin(group, name)) is not None:
            self.origins[f"{group}={name}"] = str(path)

    def _point(self, chosen: Assignments) -> tuple[Point, bool]:
        key = _sorted(chosen)
        if key not in self.cache:
            self.cache[key] = _point_of(self._compose(chosen)[0])
            for group, name in chosen.items():
                self.note_origin(group, name)
        return self.cache[key]

    def _compose(self, choices: Mapping[str, Any]) -> tuple[dict[str, Any], Assignments]:
        """Hydra's composition as plain data, and the option chosen of each group."""
        overrides = [f"+experiment={self.line.experiment}"] if self.line.experiment else []
        served = None
        for group, choice in choices.items():
            names = self.options.choices(group)
            if group == "model" and isinstance(choice, str) and choice not in names:
                served, choice = choice, SERVED_MODEL
            elif choice not in names:
                raise one_of(group, choice, names)
            overrides.append(f"{group}={choice}")
        composed = self.options.compose(PRIMARY, overrides)
        chosen: Assignments = {str(group): option for group, option in composed.hydra.runtime.choices.items()}
        values = OmegaConf.to_container(composed, resolve=False)
        assert isinstance(values, dict)
        config = {str(key): value for key, value in values.items() if key != "hydra"}
        if served is not None:
            config["model"]["name"] = chosen["model"] = served
        return config, chosen


def _sorted(chosen: Assignments) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(chosen.items()))


def _point_of(config: Mapping[str, Any]) -> tuple[Point, bool]:
    """The groups of a point, and whether there is anything to interpolate in them."""
    point = {group: config[group] for group in POINT_GROUPS}
    return point, "${" in repr(point)


def _assign(point: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key; mappings on the way are copied, since points of one composition share them."""
    *parents, last = dotted.split(".")
    mapping = point
    for depth, name in enumerate(parents):
        child = mapping.get(name)
        if child is not None and not isinstance(child, Mapping):
            raise ConfigError(f"{dotted}={value!r}: {'.'.join(parents[: depth + 1])} is a value and has no keys")
        mapping[name] = dict(child or {})
        mapping = mapping[name]
    mapping[last] = copy.deepcopy(value)


def _resolved(point: Point) -> Point:
    try:
        container = OmegaConf.to_container(OmegaConf.create(point), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _plans(line: CommandLine, base: Mapping[str, Any]) -> tuple[PlanSpec, PlanSpec]:
    """The plan of the experiment, and the part of one that was typed."""
    return PlanSpec.parse({key: base[key] for key in FORMS}), PlanSpec.parse(
        {key: value for key, value in line.scalars.items() if key in FORMS}
    )


def _both(published: PlanSpec, typed: PlanSpec) -> PlanSpec:
    """The experiment's plan with the command line's keys in place of its own, except `when`, which adds to it."""
    update = {key: getattr(typed, key) for key in typed.model_fields_set}
    if typed.when:  # an empty one drops the experiment's
        update["when"] = {**published.when, **typed.when}
    return published.model_copy(update=update)


def _hardware(
    line: CommandLine, settings: Mapping[str, Any], find_hardware: Callable[[Cluster], str], composer: _Composer
) -> Hardware:
    """The hardware profile, with hardware=auto resolved to one."""
    config = _with_dotted_keys(line, settings)
    hardware, kind = config["hardware"], Hardware
    auto = composer.options.load("hardware", "auto")
    if hardware.get("name") == auto["name"]:
        cluster = validate(Cluster, config["cluster"], "cluster")
        assert isinstance(cluster, Cluster)
        # A dry run says what there is now; a run waits for the nodes of a cluster that are still to join.
        profile = find_hardware(cluster.model_copy(update={"wait_for_nodes": 0.0} if config["dry_run"] else {}))
        composer.note_origin("hardware", profile)
        changed = {key: value for key, value in hardware.items() if auto.get(key) != value}
        kind = Hardware if changed else FoundHardware
        hardware = {**composer.options.load("hardware", profile), **changed}
    built = validate(kind, hardware, "hardware")
    assert isinstance(built, Hardware)
    return built


def _settings(line: CommandLine, settings: Mapping[str, Any], hardware: Hardware) -> Settings:
    config = _with_dotted_keys(line, settings)
    config |= {
        "hardware": hardware,
        "cluster": validate(Cluster, config["cluster"], "cluster"),
        "tracking": validate(Tracking, config["tracking"], "tracking"),
    }
    if config["out"] is None:
        config["out"] = str(Path("results") / str(config["name"]))
    built = validate(Settings, config, "")
    assert isinstance(built, Settings)
    return built


def _with_dotted_keys(line: CommandLine, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the dotted keys that were typed."""
    config = dict(settings)
    for key, value in line.scalars.items():
        if "." in key and not is_point_key(key):
            _assign(config, key, value)
    return config


def _without_gpu(request: _Request, line: CommandLine) -> tuple[_Request, list[str]]:
    """Apply the plan's `without_gpu`, except what the user typed; say in plain words what was replaced."""
    plan, chosen, scalars, settings = request.plan, dict(request.chosen), dict(request.scalars), dict(request.settings)
    grid, parts = dict(plan.grid), plan.model_dump(exclude_unset=True)
    replaced: list[str] = []

    def put(target: dict[str, Any], key: str, value: Any) -> None:
        replaced.append(f"{key}: {in_words(value)} instead of {in_words(target.get(key))}")
        target[key] = value

    for key, value in plan.without_gpu.items():
        if key == "grid":
            for axis in value:
                if axis not in line.typed:
                    put(grid, axis, value[axis])
        elif key in line.typed:
            continue
        elif key in chosen:
            put(chosen, key, value)
        elif key in FORMS:
            put(parts, key, value)
        elif is_point_key(key):
            scalars[key] = value
            replaced.append(f"{key}: {in_words(value)}")
        else:
            put(settings, key, value)
    return _Request(PlanSpec.parse({**parts, "grid": grid}), chosen, scalars, settings), replaced


def _check_conditions(request: _Request, published: PlanSpec, typed: PlanSpec, composer: _Composer) -> None:
    """Refuse a condition that cannot mean anything: the user's in this plan, the experiment's own in its own."""
    groups = {group: composer.options.choices(group) for group in POINT_GROUPS}
    line = composer.line
    overrides = published.with_typed({}, line.axes)
    overrides.refuse_idle_conditions(published, {**composer.chosen, **point_keys(line.scalars)}, groups)
    request.plan.refuse_idle_conditions(typed, {**request.chosen, **request.scalars}, {})


def _check_baseline(
    baseline: Mapping[str, Any] | None, line: CommandLine, request: _Request, before: PlanSpec, chosen: Assignments
) -> None:
    """Each value must be one that its axis has; whether there is such an axis is checked by `planning`.

    The experiment's own baseline may be left out of the present run (`backend=vllm`): then nothing is compared.
    """
    if not baseline:
        return
    typed = any(key.split(".")[0] == "baseline" for key in line.scalars)
    points = list(request.plan.expand({**request.chosen, **request.scalars}))
    points += [] if typed else before.expand(chosen)
    for key, value in baseline.items():
        values = [point[key] for point in points if key in point]
        if values and value not in values:
            raise one_of(f"baseline.{key}", value, {str(other) for other in values})


def _refuse_unknown_keys(line: CommandLine, base: Mapping[str, Any]) -> None:
    """Every key of the experiment and of the command line must be one of ours, or it would be without effect."""
    where = f"experiment={line.experiment}: "
    for key, value in base.items():
        if key not in TOP_LEVEL:
            raise ConfigError(f"{where}{key}={flow(value)}: unknown key; {did_you_mean(key, TOP_LEVEL)}")
        if key in GROUPS and not isinstance(value, Mapping):
            raise ConfigError(f"{where}{key}={flow(value)}: choose an option under defaults, `- override /{key}: NAME`")
    fields = {group: locate(base[group]["_target_"], group).model_fields for group in POINT_GROUPS}
    dotted = [f"{group}.{name}" for group in fields for name in fields[group]]
    for key in line.typed:
        if key.split(".")[0] not in TOP_LEVEL:
            raise ConfigError(f"key={key}: unknown; {did_you_mean(key, {*TOP_LEVEL, 'experiment'}, dotted)}")
    for key in line.axes:
        if not is_point_key(key):
            values = ",".join(str(value) for value in line.axes[key])
            raise ConfigError(f"{key}={values}: takes one value; axes are keys of {', '.join(POINT_GROUPS)}")


def _refuse_values_of_none(line: CommandLine, plan: PlanSpec, coordinates: Sequence[Assignments]) -> None:
    """Refuse typed values that would silently vanish because their `when` matches no point."""
    for key, value in line.typed.items():
        if key in plan.when and key in plan.grid and not any(key in point for point in coordinates):
            raise ConfigError(
                f"{key}={in_words(value)}: no point of the plan meets its condition, {flow(plan.when[key])}; to set it "
                f"in all points, add 'when={{{key}: {{}}}}'"
            )


def _refuse_keys_of_some(line: CommandLine, plan: PlanSpec, points: Iterable[Point]) -> None:
    """A key that only some of the chosen options have: the user says where it applies."""
    used = {group: {str(point[group]["name"]): point[group]["_target_"] for point in points} for group in POINT_GROUPS}
    for key, value in line.typed.items():
        group, *fields = key.split(".")
        if group not in POINT_GROUPS or not fields or key in plan.when:
            continue
        fitting = {name for name, target in used[group].items() if fields[0] in locate(target, group).model_fields}
        if fitting and fitting != set(used[group]):
            missing, some = ", ".join(sorted(set(used[group]) - fitting)), ",".join(sorted(fitting))
            raise ConfigError(
                f"{key}={in_words(value)}: unknown to {missing}; to set it for the others, add "
                f"'when={{{key}: {{{group}: [{some}]}}}}'"
            )
