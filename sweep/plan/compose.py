"""From a command line to settings and points: Hydra composes, and the experiment's axes are expanded over it.

An axis is a config group (`backend`) or a dotted key (`load.batch_size`). Composing costs about 90 ms, so each
combination of config groups is composed once and its points are dictionaries updated from it; ten thousand points take
seconds. Validation of what comes out is in `config` and `plan`.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Transformer
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config import (
    CONF,
    POINT_GROUPS,
    Cluster,
    ConfigError,
    Hardware,
    Settings,
    Tracking,
    locate,
    one_of,
    validate,
)

RUN_GROUPS = ("hardware", "cluster", "tracking")
PLAN_KEYS = ("grid", "zip", "ladder", "when", "exclude", "without_gpu")
SHAPES: dict[str, tuple[tuple[type[Any], ...], str]] = {  # of the plan on a command line
    "grid": ((dict,), "{axis: values}"),
    "zip": ((dict, list, type(None)), "{axis: values}, or a list of those"),
    "when": ((dict,), "{key: {axis: value}}"),
    "exclude": ((list,), "[{axis: value}]"),
    "ladder": ((list,), "[{step: name, set: {key: value}}]"),
    "without_gpu": ((dict, type(None)), "{key: value}"),
}
LADDER_AXES = ("ladder", "ladder_parent")  # what a step is called and what it stands on, as an axis
SERVED_MODEL = "served"  # conf/model/served.yaml: a model known only by the name that an endpoint serves it under

Point = dict[str, Any]
Assignments = dict[str, Any]  # dotted key or group -> value


class CommandLine(NamedTuple):
    """What the user typed: one value, or the values of an axis, per key."""

    experiment: str | None
    scalars: Assignments
    axes: dict[str, list[Any]]


@dataclass(frozen=True)
class Composition:
    """The settings of a run, its points before validation, and in plain words what was replaced for lack of a GPU."""

    settings: Settings
    points: list[Point]  # each: backend, model, workload, load as mappings
    coordinates: list[Assignments]  # each point's values on the axes, under their dotted keys
    replaced: list[str] = field(default_factory=list)


def group_choices(group: str) -> list[str]:
    """The names of the YAML files of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Hydra's override grammar, with a sweep (`a=1,2`, `range(1,9)`) meaning an axis of the plan.

    Raises:
        ConfigError: for what the grammar refuses.
    """
    experiment: str | None = None
    scalars: Assignments = {}
    axes: dict[str, list[Any]] = {}
    for argument in arguments:
        override = _parse_override(argument)
        key = override.key_or_group
        scalars.pop(key, None)  # given twice, the last counts, as a wrapper around a command expects
        axes.pop(key, None)
        if key == "experiment":
            if override.is_sweep_override():
                raise ConfigError(f"{argument.lstrip('+')}: one experiment a command; allowed is the name of one")
            experiment = str(override.value())
        elif override.is_sweep_override():
            axes[key] = _sweep_values(override, argument)
        elif _is_point_key(key) and override.value() in ([], ""):
            raise ConfigError(f"{key}=[]: an axis needs at least one value")
        else:
            scalars[key] = override.value()
    return CommandLine(experiment, scalars, axes)


def _parse_override(argument: str) -> Override:
    try:
        override = OverridesParser.create().parse_overrides([argument])[0]
    except HydraException as error:
        if argument.startswith("-"):
            raise ConfigError(f"{argument}: no such option; allowed are --help and key=value (dry_run=true)") from None
        raise ConfigError(f"{argument}: not an override such as key=value ({str(error).splitlines()[-1]})") from None
    if override.type == OverrideType.DEL:
        raise ConfigError(f"{argument}: nothing can be deleted; set a value, or drop points with exclude")
    return override


def _sweep_values(override: Override, argument: str) -> list[Any]:
    try:
        return list(override.sweep_iterator(transformer=Transformer.identity))
    except HydraException:
        raise ConfigError(f"{argument}: allowed are a list (1,2), range(), choice() and glob-free sweeps") from None


def axis_values(key: str, values: Any) -> list[Any]:
    """The values of an axis as written in YAML: a list, or a string in Hydra's sweep grammar.

    Raises:
        ConfigError: if there is none.
    """
    if isinstance(values, str):
        override = _parse_override(f"{key}={values}")
        values = _sweep_values(override, f"{key}={values}") if override.is_sweep_override() else [override.value()]
    elif not isinstance(values, list):
        values = [values]
    if not values:
        raise ConfigError(f"{key}=[]: an axis needs at least one value")
    return list(values)


def compose_run(arguments: Sequence[str], find_hardware: Callable[[Cluster], str]) -> Composition:
    """Everything that a command line asks for; `find_hardware` names the profile when hardware is `auto`.

    Raises:
        ConfigError: for anything that is not a valid request.
    """
    line = parse_command_line(arguments)
    known = group_choices("experiment")
    if line.experiment is not None and line.experiment not in known:
        raise one_of("experiment", line.experiment, known)
    base = _compose(line.experiment, _run_choices(line))
    _refuse_unknown_keys(line, base)
    for key in SHAPES:
        _check_shape(key, line.scalars.get(key, base[key]))
    limits = _limits(base, line)
    base.update({key: value for key, value in line.scalars.items() if key in base and key not in _groups()})
    base["when"] = limits
    typed = {**line.scalars, **line.axes}  # before `without_gpu` adds its own
    settings = _settings(line, base, find_hardware)
    published = _axes_of(base)
    replaced: list[str] = []
    if settings.hardware.platform == "cpu":
        replaced = _replace_without_gpu(base, line)
        settings = _settings(line, base, find_hardware)
    axes = _override_axes(base, line)
    given = any(key.split(".")[0] == "baseline" for key in line.scalars)
    _check_baseline(settings.baseline, [axes] if given else [axes, published])
    _refuse_conditions_on_nothing(line, axes)
    points, coordinates = [], []
    composer = _Composer(line, base, axes["grid"])
    for assignments in expand(**axes):
        points.append(composer.point(assignments))
        coordinates.append(assignments)
    if not points:
        raise ConfigError("exclude: drops every point of the experiment; allowed is a plan of at least one")
    _refuse_values_of_none(typed, axes, coordinates)
    _refuse_keys_of_some(line, axes["when"], points)
    return Composition(settings, points, coordinates, replaced)


def expand(
    grid: Mapping[str, Any],
    zip: Any,  # the key's name in YAML
    ladder: Sequence[Mapping[str, Any]],
    when: Mapping[str, Mapping[str, Any]],
    exclude: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
) -> Iterator[Assignments]:
    """The assignments of every point: the cross product of grid axes, zipped groups and ladder steps.

    An axis named in `when` is left out of points that do not match its condition; points that become equal are one.
    What is the same for all points (`chosen`: config groups and dotted keys) counts in conditions as axes do.
    """
    factors: list[list[Assignments]] = [[{key: value} for value in axis_values(key, grid[key])] for key in grid]
    factors += [_zipped(group) for group in _groups_in_step(zip) if group]
    if ladder:
        factors.append(list(_ladder_steps(ladder)))
    seen: set[str] = set()
    for combination in itertools.product(*factors):
        assignments = {key: value for part in combination for key, value in part.items()}
        for axis, condition in when.items():
            if axis in assignments and not _matches({**chosen, **assignments}, condition):
                del assignments[axis]
        if any(_matches({**chosen, **assignments}, pattern) for pattern in exclude):
            continue
        identity = repr(sorted(assignments.items(), key=lambda item: item[0]))
        if identity not in seen:
            seen.add(identity)
            yield assignments


def _groups_in_step(zipped: Any) -> list[Mapping[str, Any]]:
    """The groups under `zip`: none, one mapping, or a list of them."""
    return [zipped] if isinstance(zipped, Mapping) else list(zipped or [])


def _zipped(group: Mapping[str, Any]) -> list[Assignments]:
    columns = {key: axis_values(key, values) for key, values in group.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"zip={lengths}: axes walked in step need equally many values")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _ladder_steps(ladder: Sequence[Mapping[str, Any]]) -> Iterator[Assignments]:
    """Each step adds its `set` to that of its parent: the step before it, or the one named."""
    steps: dict[str, Assignments] = {}
    previous: str | None = None
    for entry in ladder:
        unknown = set(entry) - {"step", "set", "parent"}
        if unknown or "step" not in entry:
            raise ConfigError(
                f"ladder={_flow(dict(entry))}: allowed is {{step: name, set: {{key: value}}, parent: name}}"
            )
        step, parent = str(entry["step"]), entry.get("parent", previous)
        if parent is not None and parent not in steps:
            raise one_of(f"ladder.{step}.parent", parent, list(steps))
        steps[step] = {**(steps[parent] if parent else {}), **entry.get("set", {})}
        previous = step
        yield {"ladder": step, "ladder_parent": parent, **steps[step]}


def _matches(assignments: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    return all(
        assignments.get(key) in value if isinstance(value, list) else assignments.get(key) == value
        for key, value in pattern.items()
    )


class _Composer:
    """Points from assignments: one composition per combination of config groups, then updated as dictionaries."""

    def __init__(self, line: CommandLine, base: Mapping[str, Any], grid: Mapping[str, Any]) -> None:
        self.line = line
        self.choices: Assignments = {**base["chosen"], **_given(line, POINT_GROUPS)}
        self.scalars = _scalars(line, grid)
        composed = {group: base[group] for group in POINT_GROUPS}
        self.cache: dict[tuple[tuple[str, Any], ...], tuple[Point, bool]] = {
            tuple(sorted(base["composed_for"].items())): (composed, "${" in repr(composed))
        }

    def point(self, assignments: Assignments) -> Point:
        groups = {**self.choices, **{key: assignments[key] for key in POINT_GROUPS if key in assignments}}
        config, interpolated = self._base(groups)
        point = {group: dict(values) for group, values in config.items()}
        for key, value in {**self.scalars, **assignments}.items():
            if "." in key:
                _assign(point, key, value)
        return _resolved(point) if interpolated else point

    def _base(self, groups: Assignments) -> tuple[Point, bool]:
        key = tuple(sorted(groups.items()))
        if key not in self.cache:
            composed = _compose(self.line.experiment, groups)
            config = {group: composed[group] for group in POINT_GROUPS}
            self.cache[key] = (config, "${" in repr(config))
        return self.cache[key]


def _assign(point: Point, dotted: str, value: Any) -> None:
    """Set a dotted key; mappings on the way are copied, since points of one composition share them."""
    *parents, last = dotted.split(".")
    here = point
    for depth, name in enumerate(parents):
        child = here.get(name)
        if child is not None and not isinstance(child, Mapping):
            raise ConfigError(f"{dotted}={value!r}: {'.'.join(parents[: depth + 1])} is a value and has no keys")
        here[name] = dict(child or {})
        here = here[name]
    here[last] = copy.deepcopy(value)


def _resolved(point: Point) -> Point:
    try:
        container = OmegaConf.to_container(OmegaConf.create(point), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _compose(experiment: str | None, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Hydra's composition as plain data, with the chosen option of each group under `chosen`."""
    served = None
    overrides = [f"+experiment={experiment}"] if experiment else []
    for group, choice in choices.items():
        known = group_choices(group)
        if not isinstance(choice, str | int):
            raise one_of(group, str(choice), known)
        if choice not in known and group == "model":
            served, choice = choice, SERVED_MODEL
        elif choice not in known:
            raise one_of(group, str(choice), known)
        overrides.append(f"{group}={choice}")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides, return_hydra_config=True)
            chosen = {str(group): choice for group, choice in composed.hydra.runtime.choices.items()}
            with_hydra = OmegaConf.to_container(composed, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{experiment or 'config'}: {' '.join(str(error).split())[:300]}") from None
    assert isinstance(with_hydra, dict)
    container = {str(key): value for key, value in with_hydra.items() if key != "hydra"}
    if served is not None:
        container["model"]["name"] = str(served)
    container["chosen"] = {group: chosen[group] for group in POINT_GROUPS}
    if served is not None:
        container["chosen"]["model"] = served
    container["composed_for"] = dict(container["chosen"])  # `chosen` may be replaced for lack of a GPU
    return container


def _groups() -> tuple[str, ...]:
    return POINT_GROUPS + RUN_GROUPS


def _given(line: CommandLine, groups: Iterable[str]) -> Assignments:
    return {group: line.scalars[group] for group in groups if group in line.scalars}


def _run_choices(line: CommandLine) -> Assignments:
    return _given(line, _groups())


def _scalars(line: CommandLine, grid: Mapping[str, Any]) -> Assignments:
    """What is set in all points: a scalar that has become an axis of one value is set where that applies alone."""
    return {key: value for key, value in line.scalars.items() if _is_point_key(key) and key not in grid}


def _is_point_key(key: str) -> bool:
    return key.split(".")[0] in POINT_GROUPS


def _refuse_unknown_keys(line: CommandLine, base: Mapping[str, Any]) -> None:
    allowed = {key for key in base if key not in ("chosen", "composed_for")}
    for key in [*line.scalars, *line.axes]:
        if key.split(".")[0] not in allowed:
            raise one_of("key", key, list(allowed | {"experiment"}))
    for key in line.axes:
        if not _is_point_key(key):
            values = ",".join(str(value) for value in line.axes[key])
            raise ConfigError(f"{key}={values}: takes one value; axes are keys of {', '.join(POINT_GROUPS)}")


def _settings(line: CommandLine, base: Mapping[str, Any], find_hardware: Callable[[Cluster], str]) -> Settings:
    """The settings, with hardware=auto resolved to a profile."""
    config = copy.deepcopy({key: base[key] for key in base if key in Settings.model_fields})
    for key, value in line.scalars.items():
        if "." in key and not _is_point_key(key) and not key.startswith("hardware."):
            _assign(config, key, value)
    config["cluster"] = validate(Cluster, config["cluster"], "cluster")
    config["tracking"] = validate(Tracking, config["tracking"], "tracking")
    hardware = dict(config["hardware"])
    if hardware.get("name") == "auto":
        # A dry run says what there is now; a run waits for the nodes of a cluster that are still to join.
        cluster = config["cluster"].model_copy(update={"wait_for_nodes": 0.0} if config["dry_run"] else {})
        hardware = yaml.safe_load((CONF / "hardware" / f"{find_hardware(cluster)}.yaml").read_text())
        hardware["assumed"] = not any(key.startswith("hardware.") for key in line.scalars)
    for key, value in line.scalars.items():
        if key.startswith("hardware."):
            _assign(hardware, key.removeprefix("hardware."), value)
    config["hardware"] = validate(Hardware, hardware, "hardware")
    if config["out"] is None:
        config["out"] = str(Path("results") / str(config["name"]))
    settings = validate(Settings, config, "")
    assert isinstance(settings, Settings)
    return settings


def _replace_without_gpu(base: dict[str, Any], line: CommandLine) -> list[str]:
    """Apply the experiment's `without_gpu`, except what the user asked for; say in plain words what was replaced."""
    replaced: list[str] = []
    given = {**line.scalars, **line.axes}
    for key, value in (base["without_gpu"] or {}).items():
        if key == "grid":
            if not isinstance(value, Mapping):
                raise ConfigError(f"without_gpu.grid={_flow(value)}: allowed is {SHAPES['grid'][1]}")
            for axis, values in value.items():
                if axis not in given:
                    old = base["grid"].get(axis)
                    base["grid"][axis] = values
                    replaced.append(f"{axis}: {_words(values)} instead of {_words(old)}")
        elif key in given:
            continue
        elif key in POINT_GROUPS:
            replaced.append(f"{key}: {value} instead of {base['chosen'][key]}")
            base["chosen"][key] = value
        elif "." in key and _is_point_key(key):
            replaced.append(f"{key}: {value}")
            line.scalars[key] = value
        elif key in base and key not in _groups():
            replaced.append(f"{key}: {_words(value)} instead of {_words(base[key])}")
            base[key] = value
        else:
            raise one_of("without_gpu", key, [*POINT_GROUPS, *PLAN_KEYS, *Settings.model_fields])
    return replaced


def _words(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "nothing"
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _axes_of(base: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(base[key]) for key in ("grid", "zip", "ladder", "when", "exclude", "chosen")}


def _check_baseline(baseline: Mapping[str, Any] | None, plans: Sequence[Mapping[str, Any]]) -> None:
    """Each value must be one that its axis has in one of these; whether there is such an axis, the plan checks.

    The experiment's own baseline may be left out of the present run (`backend=vllm`): then nothing is compared.
    """
    for key, value in (baseline or {}).items():
        found = [point[key] for axes in plans for point in expand(**axes) if key in point]
        if found and value not in found:
            raise one_of(f"baseline.{key}", value, list({str(other) for other in found}))


def _limits(base: Mapping[str, Any], line: CommandLine) -> dict[str, Any]:
    """The experiment's `when` with the command line's: added, not put instead, unless that is empty."""
    given = line.scalars.get("when", base["when"])
    return {**base["when"], **given} if given else {}


def _check_shape(key: str, value: Any) -> None:
    """Raise ConfigError for a plan that is no mapping or list of what it takes."""
    kinds, allowed = SHAPES[key]
    parts = value if isinstance(value, list) else value.values() if key == "when" and isinstance(value, dict) else []
    fits = isinstance(value, kinds) and all(isinstance(part, Mapping) for part in parts)
    if not fits or (key == "ladder" and not all(isinstance(step.get("set", {}), Mapping) for step in value)):
        raise ConfigError(f"{key}={_flow(value)}: allowed is {allowed}")


def _flow(value: Any) -> str:
    """YAML of one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).splitlines()[0]


def _refuse_values_of_none(
    typed: Mapping[str, Any], axes: Mapping[str, Any], coordinates: Sequence[Assignments]
) -> None:
    """What the user typed must not vanish because its `when` suits no point."""
    for key, value in typed.items():
        if key in axes["when"] and key in axes["grid"] and not any(key in point for point in coordinates):
            raise ConfigError(
                f"{key}={_words(value)}: no point of the plan meets its condition, {_flow(axes['when'][key])}; to set "
                f"it in all points, add 'when={{{key}: {{}}}}'"
            )


def _refuse_keys_of_some(line: CommandLine, when: Mapping[str, Any], points: Iterable[Point]) -> None:
    """A key that only some of the chosen options have: the user says where it applies."""
    used = {group: {str(point[group]["name"]): point[group]["_target_"] for point in points} for group in POINT_GROUPS}
    for key, value in {**line.scalars, **line.axes}.items():
        group, *fields = key.split(".")
        if group not in POINT_GROUPS or not fields or key in when:
            continue
        fitting = {name for name, target in used[group].items() if fields[0] in locate(target, group).model_fields}
        if fitting and fitting != set(used[group]):
            others, some = ", ".join(sorted(set(used[group]) - fitting)), ",".join(sorted(fitting))
            raise ConfigError(
                f"{key}={_words(value)}: unknown to {others}; to set it for the others, add "
                f"'when={{{key}: {{{group}: [{some}]}}}}'"
            )


def _override_axes(base: Mapping[str, Any], line: CommandLine) -> dict[str, Any]:
    """The experiment's axes after the command line: a key given there replaces the axis, or becomes one."""
    axes = _axes_of(base)
    zipped: list[Any] = _groups_in_step(axes["zip"])
    given = {**{key: [value] for key, value in line.scalars.items() if _is_point_key(key)}, **line.axes}
    for key, values in given.items():
        for group in zipped:
            group.pop(key, None)
        for step in axes["ladder"]:
            step.get("set", {}).pop(key, None)
        if key in line.axes or key in axes["grid"] or key in axes["when"]:
            axes["grid"][key] = values
    axes["chosen"] |= _scalars(line, axes["grid"])
    for where, key in _keys_of(axes):
        if not _is_point_key(key):
            raise ConfigError(f"{where}.{key}: an axis is a key of {', '.join(POINT_GROUPS)}")
    return axes


def _keys_of(axes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every key that the plan gives a value or a condition, and where it says so."""
    yield from (("grid", key) for key in axes["grid"])
    yield from (("zip", key) for group in _groups_in_step(axes["zip"]) for key in group)
    yield from (("ladder.set", key) for step in axes["ladder"] for key in step.get("set", {}))
    yield from (("when", key) for key in axes["when"])
    conditions = [
        *((f"when.{key}", of) for key, of in axes["when"].items()),
        *(("exclude", of) for of in axes["exclude"]),
    ]
    yield from ((where, key) for where, of in conditions for key in of if key not in LADDER_AXES)


def _refuse_conditions_on_nothing(line: CommandLine, axes: Mapping[str, Any]) -> None:
    """What the user typed must mean something in this plan; an experiment's own may speak of an axis replaced since."""
    varied = {key for where, key in _keys_of(axes) if where in ("grid", "zip", "ladder.set")}
    known = sorted({*varied, *axes["chosen"], *(LADDER_AXES if axes["ladder"] else ())})
    for pattern in (*line.scalars.get("exclude", ()), *line.scalars.get("when", {}).values()):
        for key in pattern:
            if key not in known:
                raise ConfigError(f"{key}={_words(pattern[key])}: no axis of this plan; allowed are {', '.join(known)}")
