"""Measures the noise of a machine: how much successive launches of one configuration differ on it (A/A).

A run's launches are divided into blocks. A block has one launch if the launches of both sides took turns, else as many
launches as a side has. Two successive blocks form an A/A comparison, whose true difference is zero. The root mean
square of the differences is the error of comparing two such blocks, with as many degrees of freedom as comparisons.
Unlike the spread within a side, it includes the machine's drift between two blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pandas as pd
from scipy import special

from analysis.compare.matching import configurations, machines
from analysis.compare.sides import Side, side
from analysis.statistics.intervals import CONFIDENCE, FloatArray
from analysis.statistics.power import Error
from sweep.base.config import ConfigError
from sweep.base.wording import count, duration_text

LONGEST_TURN = 2  # launches of one side in a row, if each replicate has both sides in random order
LEAST_PAUSE = 60  # s between the launches of the two sides
SIMILAR_PAUSE = 2  # factor by which a pause may exceed the pauses of the A/A comparisons
FEWEST_COMPARISONS = 3  # minimum comparisons of blocks for a reliable error


@dataclass(frozen=True)
class MachineNoise:
    """A run in which configurations were launched repeatedly without a change."""

    text: str  # the run as the user wrote it
    configurations: Sequence[pd.DataFrame]  # the trials of each
    _compared: dict[tuple[str, int], pd.DataFrame] = field(default_factory=dict, repr=False)

    def error(self, launches: int, column: str, in_turns: bool) -> Error:
        """Return the error of a comparison with this many launches per side, from A/A comparisons of such blocks.

        Raises:
            ConfigError: if the run has too few launches for blocks of this size.
        """
        size = 1 if in_turns else launches
        differences = self._differences(column, size)
        if len(differences) < FEWEST_COMPARISONS:
            blocks = f"blocks of {count(size, 'launch')}" if size > 1 else "pairs of launches"
            raise ConfigError(
                f"--noise {self.text}: {len(differences)} A/A comparisons of {column} between {blocks}; expected at "
                f"least {FEWEST_COMPARISONS}: {2 * FEWEST_COMPARISONS * size} launches of one configuration"
                + ("" if size == 1 else ", or both sides in one run, where they take turns")
            )
        error = math.sqrt(float(np.mean(differences**2)) / (launches / size))
        return Error(error, float(len(differences)), launches, known=True)

    def covers(self, pause: float, launches: int, column: str) -> bool:
        """Return whether half of the A/A comparisons of blocks this large had a pause as long between the blocks."""
        if not pause >= LEAST_PAUSE:
            return True
        pauses = self._blocks(column, launches)["pause"]
        return bool(pauses.median() >= pause / SIMILAR_PAUSE)

    def description(self, column: str) -> str:
        """Describe the noise: `two launches of one configuration differ by up to 9% (95%, 40 pairs in results/aa)`."""
        differences = self._differences(column, 1)
        if not len(differences):
            return ""
        quantile = float(special.stdtrit(len(differences), (1 + CONFIDENCE) / 2))
        most = math.expm1(quantile * math.sqrt(float(np.mean(differences**2))))
        pairs = count(len(differences), "pair")
        source = f"{CONFIDENCE:.0%}, {pairs} in {self.text}"
        return f"two launches of one configuration differ by up to {most:.1%} ({source})"

    def _differences(self, column: str, size: int) -> FloatArray:
        """Return differences of logarithms between successive blocks of `size` launches, for all configurations."""
        return self._blocks(column, size)["difference"].to_numpy(np.float64)

    def _blocks(self, column: str, size: int) -> pd.DataFrame:
        """Return the `difference` of each pair of successive blocks, and the `pause` between them in seconds."""
        if (column, size) not in self._compared:
            parts = [_pairs_of_blocks(trials, column, size) for trials in self.configurations if column in trials]
            empty = pd.DataFrame({"difference": np.zeros(0), "pause": np.zeros(0)})
            self._compared[column, size] = pd.concat(parts) if parts else empty
        return self._compared[column, size]


def _pairs_of_blocks(trials: pd.DataFrame, column: str, size: int) -> pd.DataFrame:
    ordered = trials.sort_values("started_at" if "started_at" in trials else "replicate", kind="stable")
    begin = pd.to_datetime(ordered.get("started_at", pd.Series(pd.NaT, ordered.index)), utc=True)
    figures = pd.DataFrame({"log": logarithms(ordered, column), "begin": begin})
    launches = figures.groupby(launch_of(ordered), sort=False).agg({"log": "mean", "begin": "min"})
    launches = launches[launches["log"].notna()]
    launches = launches.iloc[: len(launches) // (2 * size) * 2 * size]
    means = launches["log"].to_numpy(np.float64).reshape(-1, 2, size).mean(axis=2)
    pause = launches["begin"].diff().dt.total_seconds().to_numpy(np.float64)[size :: 2 * size]
    return pd.DataFrame({"difference": means[:, 1] - means[:, 0], "pause": pause})


def took_turns(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Return whether the launches of both sides alternated, so that a drift of the machine affects both."""
    if not all("started_at" in trials and trials["started_at"].notna().all() for trials in (first, second)):
        return False
    begins = [trials.groupby(launch_of(trials))["started_at"].min() for trials in (first, second)]
    order = sorted((begin, side_number) for side_number, each in enumerate(begins) for begin in each)
    return max(len(list(turn)) for _, turn in groupby(number for _, number in order)) <= LONGEST_TURN


def apart_text(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """Return `20 min apart` or `one after the other`; empty for sides that took turns, or if unknown."""
    pause = pause_between(first, second)
    if took_turns(first, second) or math.isnan(pause):
        return ""
    return f"{duration_text(pause)} apart" if pause >= LEAST_PAUSE else "one after the other"


def pause_between(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """Return the seconds from one side's last launch to the other's first; NaN if unknown, negative if they overlap."""
    begins = [pd.to_datetime(each.get("started_at", pd.Series(dtype=str)).dropna()) for each in (first, second)]
    if not all(map(len, begins)):
        return math.nan
    earlier, later = sorted(begins, key=min)
    return float((later.min() - earlier.max()).total_seconds())


def noise_of(text: str, sides: Sequence[Side]) -> MachineNoise:
    """Return the noise measured in RUN or RUN@KEY=VALUE,...

    Raises:
        ConfigError: if it was measured on a different machine from the sides, or as in `side`.
        RunNotFound, DamagedFile: as in `side`.
    """
    measured = side(text)
    noise_machines = machines(measured.trials)
    for compared in sides:
        side_machines = machines(compared.trials)
        if noise_machines and side_machines and noise_machines != side_machines:
            names = (", ".join(sorted(each)) for each in (noise_machines, side_machines))
            raise ConfigError(f"--noise {text}: measured on {', not on '.join(names)}")
    return MachineNoise(text, configurations(measured))


def launch_of(trials: pd.DataFrame) -> "pd.Series[str]":
    """Return the launch of each trial, or its replicate if sweep did not launch the engine."""
    replicate = trials["replicate"].astype(str)
    return trials["launch"].fillna(replicate) if "launch" in trials else replicate


def logarithms(trials: pd.DataFrame, column: str) -> "pd.Series[float]":
    """Return the logarithms of a column; NaN for values of 0 or less."""
    values = trials[column].astype("float64")
    return values.where(values > 0).map(np.log)


def figure_of(trials: pd.DataFrame, column: str) -> float:
    """Return the geometric mean over the launches (ratios are of these means); NaN if there is no value."""
    if column not in trials or trials.empty:
        return math.nan
    return math.exp(logarithms(trials, column).groupby(launch_of(trials)).mean().mean())
