"""A side of a comparison: the trials of a run or of some of its points, with each trial's settings."""

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.load import PARTS, Run, open_run
from sweep.base.config import ConfigError, did_you_mean
from sweep.base.setting_labels import dotted
from sweep.disk.stored_run import run_place

SELECT = "@"  # between a run and the settings that select points
TrialSettings = dict[str, Any]  # dotted key -> value


@dataclass(frozen=True)
class Side:
    """The trials to compare. `selected` holds the keys that chose them; the sides may differ in these keys."""

    text: str  # as the user wrote it
    run: Run
    trials: pd.DataFrame  # the side's trials with a result
    settings: list[TrialSettings]  # each trial's settings
    selected: frozenset[str] = frozenset()


def side(text: str, all_rows: bool = False) -> Side:
    """Return the side for `RUN` or `RUN@KEY=VALUE,...`; RUN is a folder, its name under results/, or a URL. A selection
    applies to all trials measured in the folder. Without a selection the side is the current plan or, with `all_rows`,
    everything.

    Raises:
        ConfigError: if nothing is selected, or the selection is not KEY=VALUE.
        RunNotFound, DamagedFile: as in `analysis.load`.
    """
    run_name, _, selection = text.partition(SELECT)
    return side_of(text, open_run(run_place(run_name), all_rows or bool(selection), kinds=()), selection)


def sides_of_one(run_name: str) -> list[str]:
    """Return a run's sides: its baseline, then one for each other value of the baseline's key. Raises as `side`."""
    run = open_run(run_place(run_name), kinds=())
    ((key, reference),) = [*run.baseline.items()] if len(run.baseline) == 1 else [("", "")]
    name = f"{key}.name" if key in PARTS else key
    others = dict.fromkeys(str(trial_settings(record).get(name)) for record in run.ok.to_dict("records"))
    if not key or len(others.keys() | {str(reference)}) < 2:
        raise ConfigError("RUN: expected two or more, or one with a baseline and another configuration")
    return [f"{run_name}{SELECT}{key}={word}" for word in dict.fromkeys([str(reference), *others])]


def side_of(text: str, run: Run, selection: str = "") -> Side:
    """Return the side made of a run or of its selected trials, named `text`. Raises as `side` does."""
    trials = run.ok
    settings = [trial_settings(record) for record in trials.to_dict("records")]
    wanted_values = _selection(text, selection)
    for key in wanted_values:
        if settings and not any(key in trial for trial in settings):
            keys = sorted({setting for trial in settings for setting in trial})
            raise ConfigError(f"{text}: {key} is not a setting of this run; {did_you_mean(key, keys)}")
    chosen = [all(str(trial.get(key)) == word for key, word in wanted_values.items()) for trial in settings]
    if not any(chosen):
        reason = "no trial with a result" + (f" has {selection}" if selection else "")
        if len(run.not_ok) and trials.empty:
            reason += f"; the first is {run.not_ok['outcome'].iloc[0]}: {run.not_ok['reason'].iloc[0]}"
        raise ConfigError(f"{text}: {reason}")
    return Side(
        text,
        run,
        trials[chosen],
        [trial for trial, is_chosen in zip(settings, chosen, strict=True) if is_chosen],
        frozenset(wanted_values),
    )


def _selection(text: str, selection: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in selection.split(",") if pair]
    if any(not key or not equals for key, equals, _ in pairs):
        raise ConfigError(f"{text}: expected KEY=VALUE pairs after {SELECT}, e.g. results/a@backend=vllm")
    return {f"{key}.name" if key in PARTS else key: word for key, _, word in pairs}


def trial_settings(row: dict[Any, Any]) -> TrialSettings:
    """Return a trial's settings: its whole configuration or, if it has none (imported rows), its columns."""
    text = row.get("config")
    config = dotted(json.loads(text)) if isinstance(text, str) else {}  # missing text is NaN
    settings = {key: json.dumps(value) if isinstance(value, list) else value for key, value in config.items()}
    for part in PARTS:
        settings.setdefault(f"{part}.name", row.get(part))
    for key, value in row.items():
        if "." in str(key) and str(key) not in settings and not pd.isna(value):
            settings[str(key)] = value
    return settings
