"""Measures the noise of a machine: how much successive launches of one configuration differ on it (A/A).

A run's launches are divided into blocks. A block has one launch if the launches of both sides took turns, else as many
launches as a side has. Two successive blocks form an A/A comparison, whose true difference is zero. The root mean
square of the differences is the error of comparing two such blocks, with as many degrees of freedom as comparisons.
Unlike the spread within a side, it includes the machine's drift between two blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import special

from analysis.compare.matching import LEAST_PAUSE, Match, begins_of, configurations, launch_of, machines
from analysis.compare.sides import Side, side
from analysis.statistics.intervals import CONFIDENCE, FloatArray
from analysis.statistics.power import Error
from sweep.base.config import ConfigError
from sweep.base.wording import count, duration_text

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

        Raises ConfigError if the run has too few launches for blocks of this size.
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
        """Return whether the median pause between such blocks is at least half as long as `pause` (SIMILAR_PAUSE)."""
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
    figures = pd.DataFrame({"log": logarithms(ordered, column), "begin": begins_of(ordered)})
    launches = figures.groupby(launch_of(ordered), sort=False).agg({"log": "mean", "begin": "min"})
    launches = launches[launches["log"].notna()]
    launches = launches.iloc[: len(launches) // (2 * size) * 2 * size]
    means = launches["log"].to_numpy(np.float64).reshape(-1, 2, size).mean(axis=2)
    pause = launches["begin"].diff().dt.total_seconds().to_numpy(np.float64)[size :: 2 * size]
    return pd.DataFrame({"difference": means[:, 1] - means[:, 0], "pause": pause})


def apart_text(match: Match) -> str:
    """Return `20 min apart` or `one after the other`; empty for sides that took turns, or if unknown."""
    if match.took_turns or math.isnan(match.pause):
        return ""
    return f"{duration_text(match.pause)} apart" if match.pause >= LEAST_PAUSE else "one after the other"


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


def logarithms(trials: pd.DataFrame, column: str) -> "pd.Series[float]":
    """Return the logarithms of a column; NaN for values of 0 or less."""
    values = trials[column].astype("float64")
    return values.where(values > 0).map(np.log)


def figure_of(trials: pd.DataFrame, column: str) -> float:
    """Return the geometric mean over the launches (ratios are of these means); NaN if there is no value."""
    if column not in trials or trials.empty:
        return math.nan
    return math.exp(logarithms(trials, column).groupby(launch_of(trials)).mean().mean())
