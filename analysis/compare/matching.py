"""Matches the configurations of two sides, and gives the reasons if they cannot be compared."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import pandas as pd

from analysis.compare.sides import Side, TrialSettings
from analysis.quantities import LabelledColumn
from analysis.statistics.contests import BY_OUTPUT, UNEQUAL, warnings_of_trials
from analysis.statistics.pooled import THROUGHPUTS, lack_requests, pooled_columns
from analysis.warnings import CHECKS, UNEQUAL_INPUTS
from sweep.base.setting_labels import labels
from sweep.numbers.warnings import Severity, WarningKind

NAMES = ("backend.name", "model.name", "workload.name", "load.name")
QUESTION_PARTS = ("model", "workload", "load")  # settings and files that must be equal to compare
QUESTION_PREFIXES = tuple(f"{part}." for part in QUESTION_PARTS)
MOST_SETTINGS = 3  # settings that a reason lists
FACTS = {name: name for name in ("engine_version", "dtype", "driver", "commit")} | {
    "client_stamp_source": "measured by"  # the clock, or an imported row's tool
}
UNPOOLED = next(check.kind for check in CHECKS if check.kind.code == "unpooled-statistics")
LONGEST_TURN = 2  # launches of one side in a row, if each replicate has both sides in random order
LEAST_PAUSE = 60  # s from one side to the other, if they did not take turns
BY_INPUT = ("total_throughput", "ttft")  # quantities that depend on the length of prompts


@dataclass(frozen=True)
class Match:
    """A configuration that is present on both sides, or on only one."""

    label: str
    first: pd.DataFrame  # the configuration's trials; empty if a side lacks it
    second: pd.DataFrame
    differences: tuple[str, ...] = ()  # engine settings in which the sides differ
    obstacle: str = ""  # why the sides are not compared at all
    unpooled: frozenset[str] = frozenset()  # columns that hold means over trials, since requests are missing

    def obstacle_of(self, compared: LabelledColumn) -> str:
        """Return why the sides are not compared by this column; empty if they are compared."""
        for counted, affected, most in (("output", BY_OUTPUT, UNEQUAL), ("input", BY_INPUT, UNEQUAL_INPUTS)):
            means = [_tokens_a_request(trials, f"{counted}_tokens") for trials in (self.first, self.second)]
            if compared.quantity in affected and all(means) and max(means) / min(means) > most:
                return f"tokens: {means[0]:.0f} and {means[1]:.0f} {counted} tokens a request"
        severe = [kind.code for kind in self.warnings_about(compared) if kind.severity is Severity.SEVERE]
        return self.obstacle or ", ".join(severe)

    def warnings_about(self, compared: LabelledColumn) -> list[WarningKind]:
        """Return the warnings about this column in the sides' trials, without infos."""
        return [each for each in self._kinds if each.severity is not Severity.INFO and each.concerns([compared.column])]

    @cached_property
    def _kinds(self) -> list[WarningKind]:
        """Return the kinds of warnings about the trials of both sides."""
        alike = [*warnings_of_trials(self.first), *warnings_of_trials(self.second)]
        kinds = dict.fromkeys(warning.kind for warnings in alike for warning in warnings)
        return [*kinds, *([replace(UNPOOLED, quantities=tuple(self.unpooled))] if self.unpooled else [])]

    @cached_property
    def pause(self) -> float:
        """Seconds from one side's last launch to the other side's first; NaN if unknown, negative if they overlap."""
        begins = [begin.dropna() for begin in self._begins]
        if not all(map(len, begins)):
            return math.nan
        earlier, later = sorted(begins, key=min)
        return float((later.min() - earlier.max()).total_seconds())

    @cached_property
    def took_turns(self) -> bool:
        """True if the launches of both sides alternated within minutes, so that a drift of the machine affects both."""
        if not self.pause < LEAST_PAUSE or any(begin.isna().any() for begin in self._begins):
            return False
        sides = zip(self._begins, (self.first, self.second), strict=True)
        launches = [begin.groupby(launch_of(trials)).min() for begin, trials in sides]
        order = sorted((begin, number) for number, of_side in enumerate(launches) for begin in of_side)
        return max(len(list(turn)) for _, turn in groupby(number for _, number in order)) <= LONGEST_TURN

    @cached_property
    def _begins(self) -> "list[pd.Series[pd.Timestamp]]":
        """The start of each side's trials."""
        return [begins_of(trials) for trials in (self.first, self.second)]


def match(first: Side, second: Side) -> list[Match]:
    """Match the sides' configurations that have equal names and axes, ignoring the keys that selected a side.

    If each side has one engine and the engines differ, the engines are compared.
    """
    axes = {axis for side in (first, second) for axis in side.run.axes if "." in axis}
    selected = first.selected | second.selected
    keys = [key for key in dict.fromkeys([*NAMES, *sorted(axes)]) if key not in selected]
    grouped = [_grouped(side, keys) for side in (first, second)]
    single = all(side.trials["deployment_id"].nunique() == 1 for side in (first, second))
    if single and not grouped[0].keys() & grouped[1].keys():
        keys = [key for key in keys if not key.startswith("backend.")]
        grouped = [_grouped(side, keys) for side in (first, second)]
    configurations = list(dict.fromkeys([*grouped[0], *grouped[1]]))
    settings = [dict(zip(keys, cells, strict=True)) for cells in configurations]
    return [
        _match(label, grouped[0].get(cells, []), grouped[1].get(cells, []), (first, second))
        for label, cells in zip(_labels(settings), configurations, strict=True)
    ]


def begins_of(trials: pd.DataFrame) -> "pd.Series[pd.Timestamp]":
    """Return the start of each trial; NaT if unknown."""
    return pd.to_datetime(trials.get("started_at", pd.Series(pd.NaT, trials.index)), utc=True)


def launch_of(trials: pd.DataFrame) -> "pd.Series[str]":
    """Return the launch of each trial, or its replicate if sweep did not launch the engine."""
    replicate = trials["replicate"].astype(str)
    return trials["launch"].fillna(replicate) if "launch" in trials else replicate


def configurations(side: Side) -> list[pd.DataFrame]:
    """Return the trials of each configuration of a side."""
    keys = list(dict.fromkeys([*NAMES, *sorted(axis for axis in side.run.axes if "." in axis)]))
    return [side.trials.iloc[rows] for rows in _grouped(side, keys).values()]


def _grouped(side: Side, keys: Sequence[str]) -> dict[tuple[Any, ...], list[int]]:
    """Return the positions of each configuration's trials."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, settings in enumerate(side.settings):
        groups.setdefault(tuple(settings.get(key) for key in keys), []).append(index)
    return groups


def _labels(settings: Sequence[TrialSettings]) -> list[str]:
    """Label each configuration by its distinguishing settings; a single configuration by its names."""
    varying = [key for key in NAMES[:3] if len({trial.get(key) for trial in settings}) > 1]
    further = [{key: setting for key, setting in trial.items() if key not in NAMES[:3]} for trial in settings]
    names = [" ".join(str(trial[key]) for key in varying if trial.get(key)) for trial in settings]
    texts = [label.strip() for label in labels(names, further)]
    return texts if all(texts) else [" ".join(str(trial[key]) for key in NAMES if trial.get(key)) for trial in settings]


def _match(label: str, first: list[int], second: list[int], sides: tuple[Side, Side]) -> Match:
    trials = sides[0].trials.iloc[first], sides[1].trials.iloc[second]
    missing = [side.text for side, positions in zip(sides, (first, second), strict=True) if not positions]
    if missing:
        return Match(label, *trials, obstacle=f"no result in {missing[0]}")
    settings = [side.settings[positions[0]] for side, positions in zip(sides, (first, second), strict=True)]
    compared = {*settings[0], *settings[1]}
    if any(frame["config"].isna().all() for frame in trials):  # imported rows have few facts
        compared = {*settings[0]} & {*settings[1]}
    differing = [key for key in sorted(compared) if settings[0].get(key) != settings[1].get(key)]
    of_question = [key for key in differing if key.startswith(QUESTION_PREFIXES)]
    engine = [
        f"{key} {settings[0].get(key)} → {settings[1].get(key)}"
        for key in differing
        if key not in {*of_question, NAMES[0]}
    ]
    engine += [f"{fact} {a} → {b}" for fact, a, b in _facts(*trials)]
    unpooled = frozenset[str]()
    for side, of_side in zip(sides, trials, strict=True):
        if lack_requests(side.run, of_side):
            unpooled |= pooled_columns(side.run).keys() - THROUGHPUTS.keys()
    return Match(label, *trials, tuple(engine), _obstacle(of_question, settings, *trials), unpooled)


def _facts(first: pd.DataFrame, second: pd.DataFrame) -> Iterable[tuple[str, str, str]]:
    """Return the differing facts of the sides' rows (e.g. versions, failures): name and both values."""
    for column, fact in FACTS.items():
        if column in first and column in second:
            texts = [", ".join(sorted(trials[column].dropna().unique())) for trials in (first, second)]
            if texts[0] != texts[1] and all(texts):
                yield fact, texts[0], texts[1]
    failed, requests = ([int(each[name].sum()) for each in (first, second)] for name in ("num_failed", "num_requests"))
    if any(failed) and min(requests):
        before, after = (f"{share[0] / share[1]:.1%}" for share in zip(failed, requests, strict=True))
        yield "failed requests", before, after


def _obstacle(
    of_question: Sequence[str], settings: Sequence[TrialSettings], first: pd.DataFrame, second: pd.DataFrame
) -> str:
    """Return the first obstacle to a comparison (a different protocol, hardware, model, workload or load), or ""."""
    for subject, facts in (
        ("protocol", [_values(trials, "protocol") for trials in (first, second)]),
        ("hardware", [machines(trials) for trials in (first, second)]),
    ):
        if all(facts) and facts[0] != facts[1]:
            return f"{subject}: {_some(facts[0])} and {_some(facts[1])}"
    if of_question:
        named = [f"{key} {settings[0].get(key)} and {settings[1].get(key)}" for key in of_question[:MOST_SETTINGS]]
        return f"{of_question[0].partition('.')[0]}: " + "; ".join(named)
    digests = [question_digests(trials) for trials in (first, second)]
    for part in (part for part in QUESTION_PARTS if part in digests[0] and part in digests[1]):
        if digests[0][part] != digests[1][part]:
            return f"{part}: its files differ ({digests[0][part]} and {digests[1][part]})"
    return ""


def _values(trials: pd.DataFrame, column: str) -> set[str]:
    return set(trials[column].dropna().astype(str)) if column in trials else set()


def machines(trials: pd.DataFrame) -> set[str]:
    """Return the accelerators or, without accelerators, the processor and number of cores."""
    accelerators = _values(trials, "accelerator")
    hosts = [json.loads(hardware) for hardware in _values(trials, "hardware")]
    return {
        f"{accelerator}, {host.get('cpu')}, {host.get('cores')} cores" if not host.get("gpus") else accelerator
        for accelerator in accelerators or {""}
        for host in hosts or [{"gpus": True}]
    } - {""}


def question_digests(trials: pd.DataFrame) -> dict[str, str]:
    """Return the digests of the files behind model, workload and load, if they have files.

    The digest is empty for a part without files, an imported row, or a row older than digests.
    """
    texts = [json.loads(document) for document in _values(trials, "digests")]
    known = {part: sorted({str(each[part]) for each in texts if part in each}) for part in QUESTION_PARTS}
    return {part: ", ".join(digests) for part, digests in known.items() if digests}


def _some(facts: set[str]) -> str:
    return ", ".join(sorted(facts)[:MOST_SETTINGS])


def _tokens_a_request(trials: pd.DataFrame, column: str) -> float:
    """Return the mean number of tokens per answered request; 0 if unknown."""
    if column not in trials:
        return 0.0
    answered = (trials["num_requests"] - trials["num_failed"]).astype("float64")
    mean = float((trials[column].astype("float64") / answered).mean())
    return mean if mean > 0 else 0.0
