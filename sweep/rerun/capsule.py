"""A capsule: everything that a row says of itself, in ten lines that can be mailed and run again anywhere.

Each line is a key and JSON. The lock of the engine's environment is in it, compressed, so a capsule needs no folder.
"""

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import RunNotFound
from analysis.reproduction import Noise, point_noise
from analysis.results import RunResults, open_results
from analysis.variance import SPREAD_OF
from backends.prepare import locks
from sweep.config import ConfigError, did_you_mean, first_line, shortened
from sweep.disk import object_store, run_files
from sweep.disk.run_files import run_folder
from sweep.labels import TRIAL_MARK
from sweep.rerun.circumstances import Circumstances, circumstances

STANDARD_INPUT = "-"
FEWEST_CHARACTERS = 4  # of an id that is not whole


@dataclass(frozen=True)
class Capsule:
    """One row: what is run again, what it was measured with, and what came of it. The fields are a capsule's lines."""

    capsule: str  # where it is from, RUN#TRIAL
    trial: dict[str, Any]  # trial_id, experiment, label, replicate, seed, started_at
    config: dict[str, Any]  # resolved
    coordinates: dict[str, Any]  # its values on the axes of its experiment
    settings: dict[str, Any]  # of its run, where they are not the defaults
    digests: dict[str, str]  # of the files that its configuration points to
    locks: dict[str, str]  # the lock of its environment by the name of its file, compressed
    circumstances: Circumstances
    figures: dict[str, float]
    noise: dict[str, Noise]  # of these figures between launches, where its run tells it

    def text(self) -> str:
        """The capsule's ten lines."""
        return "".join(f"{name}: {json.dumps(value)}\n" for name, value in asdict(self).items())

    def lock_texts(self) -> dict[str, str]:
        """The content of the locks, by the names of their files."""
        return {name: zlib.decompress(base64.b64decode(packed)).decode() for name, packed in self.locks.items()}


def parse_capsules(text: str) -> list[Capsule]:
    """Read capsules with empty lines between them; raises ConfigError if there is none, or one cannot be read."""
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if not parts:
        raise ConfigError("capsule: is empty; allowed are the lines that sweep rerun RUN#TRIAL --capsule prints")
    return [parse_capsule(part) for part in parts]


def parse_capsule(text: str) -> Capsule:
    """Read a capsule's lines, in any order.

    Raises:
        ConfigError: for a line that is none of a capsule's, or one that is missing or damaged.
    """
    allowed = [field.name for field in fields(Capsule)]
    values: dict[str, Any] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, colon, content = line.partition(":")
        if key not in allowed or not colon:
            raise ConfigError(f"capsule: {shortened(key)}: no key of a capsule; {did_you_mean(key, allowed)}")
        try:
            values[key] = json.loads(content)
        except ValueError as error:
            raise ConfigError(f"capsule: {key}: cannot be read ({first_line(error)}); copy the whole line") from None
    if missing := [name for name in allowed if name not in values]:
        raise ConfigError(f"capsule: {missing[0]}: required, but not given")
    try:
        values["noise"] = {column: Noise(*map(float, noise)) for column, noise in values["noise"].items()}
        capsule = Capsule(**values)
        capsule.lock_texts(), capsule.trial["trial_id"], int(capsule.trial["seed"]), capsule.config["backend"]["name"]
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise ConfigError(f"capsule: cannot be read ({type(error).__name__}: {first_line(error)})") from None
    return capsule


def capsules_of(what: str, content: str | None = None) -> list[Capsule]:
    """The capsules of RUN#TRIAL, of all results of RUN, or the one in a file; `content` is that of standard input.

    Raises:
        ConfigError: for what is none of them, a missing trial, or one without a result.
    """
    if content is not None:
        return parse_capsules(content)
    run, mark, trial_id = what.partition(TRIAL_MARK)
    if object_store.is_url(run):
        raise ConfigError(f"{what}: is in an object store; copy it first, sweep copy {run} FOLDER")
    if not mark and Path(what).is_file():
        try:
            return parse_capsules(Path(what).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{what}: {first_line(error)}") from None
    if mark and not trial_id:
        raise ConfigError(f"{what}: after {TRIAL_MARK} comes a trial's id, as trials.parquet has it")
    return _of_run(run, trial_id)


def _of_run(run: str, trial_id: str) -> list[Capsule]:
    folder = run_folder(run)
    try:
        everything = open_results(folder, all_rows=True)
        chosen = _chosen(run, everything.run.trials, trial_id)
        planned = chosen[chosen["in_plan"].fillna(True).astype(bool)]
        if not trial_id:
            chosen = planned[planned["outcome"] == "ok"]
            if chosen.empty:
                raise ConfigError(f"{run}: no trial with a result")
        results = open_results(folder) if len(planned) else everything
    except RunNotFound as error:
        raise ConfigError(str(error)) from None
    if trial_id and (outcome := chosen.iloc[-1]["outcome"]) != "ok":
        raise ConfigError(f"{run}{TRIAL_MARK}{trial_id}: is {outcome}; allowed is a trial with a result")
    kept = run_files.RunPaths(folder).locks
    texts = {path.name: path.read_text() for path in kept.glob("*.txt")}
    axes = _coordinates(folder)
    places = _places(everything.run.trials)
    rows = [each for _, each in chosen.sort_values("started_at").iterrows()]
    return [_capsule(run, row, results, texts, axes, places) for row in rows]


def _chosen(run: str, trials: pd.DataFrame, trial_id: str) -> pd.DataFrame:
    """The rows of a trial, which may be named by the beginning of its id; all without one."""
    if not trial_id:
        return trials
    exact = trials[trials["trial_id"] == trial_id]
    matches = exact if len(exact) else trials[trials["trial_id"].str.startswith(trial_id)]
    ids = matches["trial_id"].unique()
    if len(ids) != 1 or len(trial_id) < FEWEST_CHARACTERS:
        problem = f"{len(ids)} trials begin so" if len(ids) > 1 else "no such trial"
        raise ConfigError(f"{run}{TRIAL_MARK}{trial_id}: {problem}; allowed is an id of its trials.parquet")
    planned = matches[matches["in_plan"].fillna(True).astype(bool)]
    return planned.iloc[-1:] if len(planned) else matches.iloc[-1:]


def _coordinates(folder: Path) -> dict[str, dict[str, Any]]:
    """The coordinates of each trial of the present plan, by id."""
    plan = run_files.RunPaths(folder).plan
    entries = run_files.read_plan(plan) if plan.is_file() else []
    return {entry["trial_id"]: entry["coordinates"] for entry in entries if "coordinates" in entry}


def _places(trials: pd.DataFrame) -> "pd.Series[Any]":
    """The place of each row in its launch: 1 for the first that was measured."""
    return trials.groupby("launch")["started_at"].rank(method="first")


def _capsule(
    run: str,
    frame_row: "pd.Series[Any]",
    results: RunResults,
    lock_texts: Mapping[str, str],
    axes: Mapping[str, dict[str, Any]],
    places: "pd.Series[Any]",
) -> Capsule:
    row = plain_row(frame_row, places)
    trial_id = row["trial_id"]
    if not row.get("config"):
        raise ConfigError(
            f"{run}{TRIAL_MARK}{trial_id}: has no configuration; it was measured by {row['client_stamp_source']}"
        )
    config, digests = json.loads(row["config"]), json.loads(row.get("digests") or "{}")
    names = {column: row[column] for column in results.run.axes if row.get(column) is not None}
    keys = ("trial_id", "experiment", "label", "replicate", "seed", "started_at")
    noise = point_noise(results, trial_id)
    return Capsule(
        f"{run}{TRIAL_MARK}{trial_id}",
        {key: row.get(key) for key in keys},
        config,
        axes.get(trial_id, names),
        _settings_of(row),
        digests,
        {name: _packed(text) for name, text in _locks(digests.get("lock"), lock_texts).items()},
        circumstances(row),
        {column: row[column] for column in SPREAD_OF if row.get(column) is not None},
        noise,
    )


def _settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the row's run, with the bounds and percentiles of its columns."""
    settings: dict[str, Any] = json.loads(row.get("settings") or "{}")
    if row.get("slo"):
        settings["slo"] = json.loads(row["slo"])
    if row.get("percentiles"):
        settings["percentiles"] = [float(each) for each in row["percentiles"].split(", ")]
    return settings


def plain_row(frame_row: "pd.Series[Any]", places: "pd.Series[Any]") -> dict[str, Any]:
    """A row of a frame as Python has it, without what is missing, and with its `place` in its launch."""
    values = {str(name): value for name, value in frame_row.items() if not _missing(value)}
    row = {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value for name, value in values.items()
    }
    place = places.get(frame_row.name)
    return row if place is None or pd.isna(place) else {**row, "place": int(place)}


def _missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _locks(named: str | None, texts: Mapping[str, str]) -> dict[str, str]:
    """The row's lock by the name that an environment looks it up under; of an older row all that its run has.

    A lock that was replaced since lies beside the present one, under another name.
    """
    if named is None:
        return dict(texts)
    name, _, digest = named.partition(" ")
    text = next((text for text in texts.values() if locks.lock_digest(text) == digest), texts.get(name))
    return {} if text is None else {name: text}


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def opened_rows(folder: Path) -> Sequence[dict[str, Any]]:
    """The rows of a run's present plan, each with its `place`."""
    trials = open_results(folder).run.trials
    places = _places(trials)
    return [plain_row(row, places) for _, row in trials.iterrows()]
