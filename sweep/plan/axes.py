"""The plan keys of an experiment (`grid`, `zip`, `ladder`, …), and the points that they expand to."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, field_validator

from sweep.base.config import POINT_GROUPS, RUN_GROUPS, ConfigError, Settings, Strict, one_of, shortened
from sweep.base.wording import flow
from sweep.plan.command_line import MOST_PLANNED, Assignments, axis_values, is_point_key

LADDER_AXES = ("ladder", "ladder_parent")  # ladder axes: the step's name, and the name of the step it builds on


class LadderStep(Strict):
    """A step of a ladder: its settings are added to its parent's settings."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    step: str
    set: Assignments = Field(default_factory=dict)
    parent: str | None = None  # None: the previous step


class PlanSpec(Strict):
    """The keys of an experiment that define its points. An error quotes a field's description after "expected"."""

    grid: Assignments = Field(default_factory=dict, description="{axis: values}")
    zip: list[Assignments] = Field(default_factory=list, description="{axis: values}, or a list of such mappings")
    ladder: list[LadderStep] = Field(default_factory=list, description="[{step: name, set: {key: value}}]")
    when: dict[str, Assignments] = Field(default_factory=dict, description="{key: {axis: value}}")
    exclude: list[Assignments] = Field(default_factory=list, description="[{axis: value}]")
    without_gpu: Assignments = Field(default_factory=dict, description="{key: value}")
    published: Assignments = Field(default_factory=dict, description="{key: value}")

    @field_validator("zip", mode="before")
    @classmethod
    def _groups(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value or []

    @classmethod
    def parse(cls, fields: Mapping[str, Any], under: str = "") -> "PlanSpec":
        """Return the plan that these keys describe, after checking each; `under` is their parent key, with a dot."""
        try:
            plan = cls.model_validate(dict(fields))
        except ValidationError as error:
            key = str(error.errors()[0]["loc"][0])
            raise ConfigError(f"{under}{key}={brief(fields[key])}: expected {FORMS[key]}") from None
        plan._check_keys(under)
        return plan

    def _check_keys(self, under: str) -> None:
        axes = [("grid", self.grid), ("when", self.when), *(("zip", group) for group in self.zip)]
        in_steps = {key for step in self.ladder for key in step.set}
        counts = Counter(key for group in (self.grid, *self.zip, in_steps) for key in group)
        if twice := [key for key, count in counts.items() if count > 1]:
            raise ConfigError(f"{under}{twice[0]}: the axis occurs in two of grid, zip and ladder; keep one")
        axes += [("ladder.set", step.set) for step in self.ladder]
        conditions = [(f"when.{key}", condition) for key, condition in self.when.items()]
        conditions += [("exclude", pattern) for pattern in self.exclude]
        keys = [(where, key) for where, mapping in axes for key in mapping]
        keys += [(where, key) for where, mapping in conditions for key in mapping if key not in LADDER_AXES]
        for where, key in keys:
            if not is_point_key(key):
                raise ConfigError(f"{under}{where}.{key}: expected a key of {', '.join(POINT_GROUPS)}")
        for form, replacements in (("without_gpu", self.without_gpu), ("published", self.published)):
            _check_replacements(form, replacements)

    def values(self) -> dict[str, list[Any]]:
        """Return each axis with all its values."""
        axes = {key: axis_values(key, values) for part in (self.grid, *self.zip) for key, values in part.items()}
        for step in self._steps():
            for key, value in step.items():
                axes.setdefault(key, []).append(value)
        return axes

    def with_typed(self, scalars: Assignments, axes: Mapping[str, list[Any]]) -> "PlanSpec":
        """Return the plan with the command line applied: a typed key replaces an axis or adds one."""
        typed = {**{key: [value] for key, value in scalars.items()}, **axes}
        varied = {**self.grid, **self.when, **axes}

        def without_typed(assignments: Assignments) -> Assignments:
            return {key: value for key, value in assignments.items() if key not in typed}

        return self.model_copy(
            update={
                "grid": {**self.grid, **{key: values for key, values in typed.items() if key in varied}},
                "zip": [without_typed(group) for group in self.zip],
                "ladder": [step.model_copy(update={"set": without_typed(step.set)}) for step in self.ladder],
            }
        )

    def expand(self, chosen: Mapping[str, Any]) -> Iterator[Assignments]:
        """Yield the assignments of every point: the cross product of grid axes, zipped groups and ladder steps.

        An axis in `when` is omitted from points that do not match its condition. Equal points are yielded once.
        `chosen` holds config groups and dotted keys that all points share; a condition may refer to them too.
        """
        factors: list[list[Assignments]] = [
            [{key: value} for value in axis_values(key, values)] for key, values in self.grid.items()
        ]
        factors += [_in_step(group) for group in self.zip if group]
        if self.ladder:
            factors.append(list(self._steps()))
        if (product := math.prod(map(len, factors))) > MOST_PLANNED:
            lengths = ", ".join(f"{key} ({len(values)})" for key, values in self.values().items())
            raise ConfigError(f"{lengths}: {product:,} combinations; expected at most {MOST_PLANNED:,}")
        keys: set[str] = set()
        for combination in itertools.product(*factors):
            assignments = {key: value for part in combination for key, value in part.items()}
            for axis, condition in self.when.items():
                if axis in assignments and not _matches({**chosen, **assignments}, condition):
                    del assignments[axis]
            if any(_matches({**chosen, **assignments}, pattern) for pattern in self.exclude):
                continue
            identity = repr(sorted(assignments.items(), key=lambda item: item[0]))
            if identity not in keys:
                keys.add(identity)
                yield assignments

    def _steps(self) -> Iterator[Assignments]:
        """Yield each step's settings: its `set` added to its parent's settings (by default the previous step's)."""
        steps: dict[str, Assignments] = {}
        previous: str | None = None
        for entry in self.ladder:
            parent = entry.parent if "parent" in entry.model_fields_set else previous
            if parent is not None and parent not in steps:
                raise one_of(f"ladder.{entry.step}.parent", parent, list(steps))
            steps[entry.step] = {**(steps[parent] if parent else {}), **entry.set}
            previous = entry.step
            yield {"ladder": entry.step, "ladder_parent": parent, **steps[entry.step]}


def _check_replacements(form: str, replacements: Assignments) -> None:
    """Raise ConfigError for a form's key that no experiment has, or a value that does not fit the key."""
    replaceable = {*FORMS, *Settings.model_fields} - {"without_gpu", "published", "form", *RUN_GROUPS}
    for key in replacements:
        if key not in replaceable and not is_point_key(key):
            raise one_of(form, key, {*POINT_GROUPS, *replaceable})
    if replacements:
        PlanSpec.parse({key: replacements[key] for key in FORMS if key in replacements}, f"{form}.")


FORMS = {key: str(field.description) for key, field in PlanSpec.model_fields.items()}


def _in_step(group: Mapping[str, Any]) -> list[Assignments]:
    """Return the assignments of zipped axes, whose values are combined in parallel."""
    columns = {key: axis_values(key, values) for key, values in group.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"zip={brief(lengths)}: zipped axes must have equally many values")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _matches(assignments: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    return all(
        assignments.get(key) in value if isinstance(value, list) else assignments.get(key) == value
        for key, value in pattern.items()
    )


def brief(value: Any) -> str:
    """Return a value as one line of YAML, shortened for a message."""
    return shortened(flow(value))


def in_words(value: Any) -> str:
    """Return a value for use in a sentence: a list without brackets, and "nothing" for an empty list."""
    return "nothing" if value in (None, {}, []) else shortened(flow(value).strip("[]"))
