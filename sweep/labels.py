"""Labels: the settings that set a deployment or a trial apart from its siblings, in a few words.

One function serves every place that names one: plan, live view, log, status, tables, report and trackers.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

LADDER = "ladder"  # the axis whose value is the name of a ladder's step
PARENT = "ladder_parent"  # the step that it stands on: said by the ladder itself

Coordinates = Mapping[str, Any]  # dotted key -> value


def labels(names: Sequence[str], settings: Sequence[Coordinates]) -> list[str]:
    """Each name with those of its settings in which items of that name differ, e.g. `vllm tiny-llama max-num-seqs=2`.

    A ladder's step stands for the settings that it changes.
    """
    siblings: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        siblings[name].append(index)
    texts = [""] * len(names)
    for name, indices in siblings.items():
        group = [settings[index] for index in indices]
        keys = varying(group)
        if LADDER in keys:
            keys = [LADDER, *(key for key in keys if key != LADDER and _varies_within_a_step(group, key))]
        for index in indices:
            texts[index] = " ".join([name, *described(settings[index], keys)])
    return texts


def varying(settings: Sequence[Coordinates]) -> list[str]:
    """The keys whose values differ, in the order in which they appear; a key that only some have differs too."""
    keys = dict.fromkeys(key for mapping in settings for key in mapping if key != PARENT)
    return [key for key in keys if len({repr(mapping.get(key)) for mapping in settings}) > 1]


def described(settings: Coordinates, keys: Sequence[str]) -> list[str]:
    """`name=value` for each key that is set; a ladder's step is its name alone."""
    shared = Counter(map(short, keys))
    return [
        str(settings[key]) if key == LADDER else f"{short(key) if shared[short(key)] == 1 else key}={settings[key]}"
        for key in keys
        if settings.get(key) is not None
    ]


def short(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def _varies_within_a_step(settings: Sequence[Coordinates], key: str) -> bool:
    values: dict[Any, set[str]] = defaultdict(set)
    for mapping in settings:
        values[mapping.get(LADDER)].add(repr(mapping.get(key)))
    return any(len(distinct) > 1 for distinct in values.values())
