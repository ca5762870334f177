"""Parses a command line in Hydra's override grammar, and the values of an axis."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString, Transformer
from hydra.errors import HydraException

from sweep.base.config import POINT_GROUPS, ConfigError, first_line, shortened
from sweep.base.options import ConfigPath

Assignments = dict[str, Any]  # dotted key or group -> value

# A key and a value without a character of the grammar; in an address or a model's name some are no list or call.
PLAIN_TEXT = re.compile(r"(\+?[\w./]+)=([^][{}(),'\"\\$]+)")
ONE_NAME = re.compile(r"""(\+?(?:model|backend\.url))=([^[{,'"\\$][^,"\\$]*)""")
SCHEMELESS = re.compile(r"([\w.-]+:\d+|localhost|\d+\.\d+\.\d+\.\d+)(/\S*)?")
MODEL_NAME = r"""(?:[\w.+-]+|'[^'\\]*'|"[^"\\]*")"""
MODEL_NAMES = re.compile(rf"(\+?model(?:\.name|\.served_name)?)=({MODEL_NAME}(?:,{MODEL_NAME})*)")
MOST_PLANNED = 100_000  # trials; more would be a typing mistake, and fill the memory


class CommandLine(NamedTuple):
    """The user's command line, parsed: for each key one value, or the values of an axis."""

    experiment: str | None
    scalars: Assignments
    axes: dict[str, list[Any]]

    @property
    def typed(self) -> Assignments:
        """Every key with its value or list of values."""
        return {**self.scalars, **self.axes}


def is_point_key(key: str) -> bool:
    """Return whether a dotted key or group belongs to a point; only these keys may be axes."""
    return key.split(".")[0] in POINT_GROUPS


def point_keys(assignments: Mapping[str, Any]) -> Assignments:
    return {key: value for key, value in assignments.items() if is_point_key(key)}


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Parse Hydra's override grammar; a sweep (`a=1,2`, `range(1,9)`) defines an axis of the plan."""
    experiment: str | None = None
    scalars: Assignments = {}
    axes: dict[str, list[Any]] = {}
    for argument in arguments:
        override = _parse_override(_quoted_names(_quoted_slo(argument)))
        key, typed = override.key_or_group, shortened(argument.lstrip("+"))
        scalars.pop(key, None)  # the last value of a repeated key is used, so that a wrapper's keys can be overridden
        axes.pop(key, None)
        if key == "experiment":
            if override.is_sweep_override():
                raise ConfigError(f"{typed}: expected the name of a single experiment")
            experiment = str(override.value())
        elif override.is_sweep_override():
            if key == "model" and ", " in argument:
                raise ConfigError(
                    f"{typed}: expected model='\"A, B\"' for one name with a comma, or model=A,B for two models"
                )
            axes[key] = _sweep_values(override, argument)
        elif is_point_key(key) and override.value() in ([], "") and not ("." in key and argument[-1] in "'\""):
            raise ConfigError(f"{key}=[]: an axis needs at least one value")
        else:
            scalars[key] = _as_typed(key, override.value(), argument)
    return CommandLine(experiment, scalars, axes)


def axis_values(key: str, values: Any) -> list[Any]:
    """Return the values of an axis as written in YAML: a list, or a string in Hydra's sweep grammar."""
    if isinstance(values, str):
        override = _parse_override(f"{key}={values}")
        values = _sweep_values(override, f"{key}={values}") if override.is_sweep_override() else [override.value()]
    elif not isinstance(values, list):
        values = [values]
    if not values:
        raise ConfigError(f"{key}=[]: an axis needs at least one value")
    return list(values)


def _quoted_slo(argument: str) -> str:
    """Quote the bounds in `slo=ttft=200ms,tpot=0.05s`, since their comma does not separate values of an axis."""
    key, _, bounds = argument.partition("=")
    is_plain = key in ("slo", "ask.slo") and bounds not in ("", "null") and bounds[0] not in "{'\""
    return f"{key}='{bounds}'" if is_plain and "'" not in bounds else argument


def _quoted_names(argument: str) -> str:
    """Quote the names of models, so that names such as 1e5 and true are text."""
    if not (plain := MODEL_NAMES.fullmatch(argument)) or plain[2] == "null":
        return argument
    names = re.findall(MODEL_NAME, plain[2])
    return f"{plain[1]}=" + ",".join(name if name[0] in "'\"" else f"'{name}'" for name in names)


def _as_typed(key: str, chosen: Any, argument: str) -> Any:
    """Return a value; the names in `workload.models` stay as typed, since 1e5 and true are names too."""
    names = re.findall(r"[{,]\s*([^\s:,{}]+)\s*:", argument)
    is_renamed = key == "workload.models" and isinstance(chosen, dict) and len(names) == len(chosen)
    return dict(zip(names, chosen.values(), strict=True)) if is_renamed else chosen


def _parse_override(argument: str) -> Override:
    typed = shortened(argument)
    try:
        override = OverridesParser.create().parse_overrides([argument])[0]
    except ValueError as error:  # a number with thousands of digits
        raise ConfigError(f"{typed}: {first_line(error)}") from None
    except HydraException:
        plain = PLAIN_TEXT.fullmatch(argument) or ONE_NAME.fullmatch(argument)
        if plain:  # e.g. a URL with a query, or a folder with non-ASCII letters
            quoted = '{}="{}"' if "'" in plain[2] else "{}='{}'"
            return OverridesParser.create().parse_overrides([quoted.format(*plain.groups())])[0]
        if argument.startswith("-"):
            raise ConfigError(f"{typed}: unknown option; expected key=value, such as dry_run=true, or --help") from None
        if "=" not in argument:
            is_experiment = argument in ConfigPath.of_user().choices("experiment")
            remedy = f"; did you mean +experiment={typed}?" if is_experiment else ", without spaces around ="
            remedy = f"; did you mean http://{typed}?" if SCHEMELESS.fullmatch(argument) else remedy
            raise ConfigError(f"{typed}: expected key=value{remedy}") from None
        quoting = "put a value with brackets or commas in quotes, \"key='value'\""
        raise ConfigError(f"{typed}: not an override such as key=value; {quoting}") from None
    if override.package is not None:
        raise ConfigError(f"{typed}: a package (@{override.package}) is not supported; expected key=value")
    if override.type == OverrideType.DEL:
        raise ConfigError(f"{typed}: deleting a key is not supported; set a value, or drop points with exclude")
    return override


def _sweep_values(override: Override, argument: str) -> list[Any]:
    typed = shortened(argument)
    try:
        values = list(itertools.islice(override.sweep_iterator(transformer=Transformer.identity), MOST_PLANNED + 1))
    except (HydraException, ArithmeticError, ValueError):  # the last two come from range()
        raise ConfigError(f"{typed}: expected a list (1,2), range() or choice(), without glob()") from None
    if len(values) > MOST_PLANNED:
        raise ConfigError(f"{typed}: too many values; expected at most {MOST_PLANNED:,}")
    return [value.text if isinstance(value, QuotedString) else value for value in values]
