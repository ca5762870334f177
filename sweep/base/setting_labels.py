"""Labels: the settings that distinguish a deployment or a trial from its siblings, in a few words.

The plan, live view, log, status, tables, report and trackers all use these labels.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.base.wording import flow

LADDER = "ladder"  # the axis whose value is the name of a ladder's step
PARENT = "ladder_parent"  # a step's parent, which the ladder already shows
TRIAL_MARK = "#"  # between a run and a trial's id: RUN#TRIAL
REQUEST_COUNT = "workload.num_requests"  # the amount measured, which rarely distinguishes points

Coordinates = Mapping[str, Any]  # dotted key -> value


def labels(names: Sequence[str], settings: Sequence[Coordinates]) -> list[str]:
    """Return labels: each name with the settings that differ among its items, e.g. `vllm max-num-seqs=2`.

    A ladder's step stands for the settings that it changes. The number of requests is omitted if the other settings are
    enough.
    """
    siblings: dict[str, list[Coordinates]] = defaultdict(list)
    for label, mapping in zip(names, settings, strict=True):
        siblings[label].append(mapping)
    keys = {label: _telling(group) for label, group in siblings.items()}
    return [" ".join([label, *described(mapping, keys[label])]) for label, mapping in zip(names, settings, strict=True)]


def _telling(settings: Sequence[Coordinates]) -> list[str]:
    """Return the keys whose values differ, in order of appearance; with a ladder, keys that differ within a step."""
    keys = dict.fromkeys(key for mapping in settings for key in mapping if key != PARENT)
    varying = [key for key in keys if _differs(settings, key)]
    others = [key for key in varying if key != REQUEST_COUNT]
    if _kinds(settings, others) == _kinds(settings, varying):  # zipped with another axis, e.g. the batch size
        varying = others
    if LADDER not in varying:
        return varying
    steps: dict[Any, list[Coordinates]] = defaultdict(list)
    for mapping in settings:
        steps[mapping.get(LADDER)].append(mapping)
    within = [key for key in varying if any(_differs(step, key) for step in steps.values())]
    return [LADDER, *within]


def _kinds(settings: Sequence[Coordinates], keys: Sequence[str]) -> int:
    return len({repr([mapping.get(key) for key in keys]) for mapping in settings})


def _differs(settings: Sequence[Coordinates], key: str) -> bool:
    return _kinds(settings, [key]) > 1


def as_typed(value: Any) -> str:
    """Return a setting's value as a user types it: `true`, not `True`."""
    return flow(value) if isinstance(value, bool | list | dict) else str(value)


def described(settings: Coordinates, keys: Sequence[str]) -> list[str]:
    """Return `name=value` for each key that is set; for a ladder's step, only its name."""
    shared = Counter(map(short, keys))
    names = {key: "" if key == LADDER else f"{short(key) if shared[short(key)] == 1 else key}=" for key in keys}
    return [f"{name}{as_typed(settings[key])}" for key, name in names.items() if settings.get(key) is not None]


def dotted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration as dotted keys with values, without `_target_` keys."""
    settings: dict[str, Any] = {}
    for key, setting in config.items():
        if isinstance(setting, Mapping):
            settings |= {f"{key}.{inner_key}": inner for inner_key, inner in dotted(setting).items()}
        elif key != "_target_":
            settings[key] = setting
    return settings


def short(key: str) -> str:
    """Return the last part of a dotted key."""
    return key.rpartition(".")[2]
