"""Judges a repeated trial: does it differ from the first by more than the noise between launches explains? The
spread between launches comes from the run. Its components of variance (`variance`), pooled over its points, are
weighted as RUN_FREEDOM degrees of freedom relative to the point's replicates (G. K. Smyth 2004). The two measurements
are compared as one launch per side, with an error (`power.Error`) as in every comparison. Values are compared as
logarithms, with joint intervals for all quantities (Sidak 1967). A trial counts as reproduced only if the intervals
could have revealed a difference.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.quantities import LabelledColumn, labelled_column
from analysis.results import RunResults
from analysis.statistics.intervals import CONFIDENCE
from analysis.statistics.power import Error
from analysis.statistics.variance import SPREAD_OF, Components
from sweep.base.wording import count

RUN_FREEDOM = 4.0  # weight of the run's spread relative to the point's spread
MOST_NOISE = 0.10  # noise above which a quantity cannot be called reproduced, since it could hide such a change
NO_SPREAD = "one launch of each point does not show how much launches differ; measure with replicates=3 or more"


class Reproduction(StrEnum):
    """The result of measuring a trial again."""

    REPRODUCED = "reproduced within noise"
    DIFFERS = "differs"
    UNKNOWN = "cannot tell"


class Noise(NamedTuple):
    """The spread of a quantity between launches of one point, as a standard deviation of logarithms (0.02: 2%)."""

    deviation: float
    freedom: float  # degrees of freedom of the spread

    def most(self, level: float) -> float:
        """Return the largest relative change between two launches that noise explains at this level."""
        return math.expm1(Error(self.deviation * math.sqrt(2), self.freedom, 1, known=True).half_width(level))


class FigureChange(NamedTuple):
    """A quantity in both measurements. `most` is the largest relative change that noise explains; NaN if unknown."""

    column: str
    before: float
    after: float
    most: float

    @property
    def _label(self) -> LabelledColumn:
        label = labelled_column(self.column)
        assert label is not None
        return label

    @property
    def name(self) -> str:
        """The quantity's name for use in a sentence."""
        return self._label.in_sentence

    @property
    def change(self) -> float:
        """The relative change, e.g. -0.03 for 3% less."""
        return self.after / self.before - 1

    @property
    def differs(self) -> bool:
        """True if the change, up or down, is larger than noise explains."""
        return abs(math.log(self.after / self.before)) > math.log1p(self.most)

    def describe(self) -> str:
        """Describe the change, e.g. `output throughput 81.2 → 79.9 tokens/s (-1.6%, noise up to 7.1%)`."""
        label = self._label
        noise = "noise unknown" if math.isnan(self.most) else f"noise up to {self.most:.1%}"
        figures = f"{label.shown(self.before)} → {label.shown(self.after)} {label.unit}"
        return f"{self.name} {figures} ({self.change:+.1%}, {noise})"


def point_noise(results: RunResults, trial_id: str) -> dict[str, Noise]:
    """Return the noise of the quantities in SPREAD_OF at a trial's point, if the run shows it.

    An engine that sweep launched is launched again, so the spread between launches must be known.
    """
    placed = results.layout.placed(results.run.ok)
    trial = placed[placed["trial_id"] == trial_id].iloc[0]
    launched = pd.notna(trial["launch"])
    siblings = placed[placed["point"] == trial["point"]]
    noises = {
        spread.quantity.column: _noise(spread, siblings[spread.quantity.column], placed)
        for spread in results.components
        if not launched or any("launch" in name for name in spread.shares)
    }
    return {column: noise for column, noise in noises.items() if noise.freedom > 0}


def _noise(spread: Components, siblings: "pd.Series[float]", placed: pd.DataFrame) -> Noise:
    logs = np.log(siblings[siblings > 0].to_numpy(np.float64))
    replicate_freedom = max(0, len(logs) - 1)
    squares = float(((logs - logs.mean()) ** 2).sum()) if replicate_freedom else 0.0
    if "launch" in spread.shares:
        pooled = spread.launches - placed["deployment_id"].nunique()
    else:
        pooled = spread.trials - int((placed["point"].value_counts() > 1).sum())
    prior_freedom = min(RUN_FREEDOM, max(0.0, pooled - replicate_freedom))  # estimated from the run's other points
    freedom = replicate_freedom + prior_freedom
    variance = (squares + prior_freedom * spread.deviation**2) / freedom if freedom else 0.0
    return Noise(math.sqrt(variance), freedom)


def figure_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], noises: Mapping[str, Noise]
) -> list[FigureChange]:
    """Return the changes of the SPREAD_OF quantities that both measurements have, with the noise if known."""
    columns = [name for name in SPREAD_OF if _positive(before.get(name)) and _positive(after.get(name))]
    level = CONFIDENCE ** (1 / max(1, sum(name in noises for name in columns)))
    return [
        FigureChange(name, before[name], after[name], noises[name].most(level) if name in noises else math.nan)
        for name in columns
    ]


def _positive(value: Any) -> bool:
    return value is not None and float(value) > 0


def finding(changes: list[FigureChange]) -> tuple[Reproduction, str]:
    """Return the overall result and its reason."""
    if beyond := [change for change in changes if change.differs]:
        return Reproduction.DIFFERS, ", ".join(f"{change.name} by {change.change:+.1%}" for change in beyond)
    if not changes or any(math.isnan(change.most) for change in changes):
        return Reproduction.UNKNOWN, NO_SPREAD if changes else "no quantity in common"
    if noisy := [change for change in changes if change.most > MOST_NOISE]:
        names = ", ".join(f"{change.name} up to {change.most:.1%}" for change in noisy)
        return (
            Reproduction.UNKNOWN,
            f"noise of {names}; expected at most {MOST_NOISE:.0%}: measure with more replicates",
        )
    return Reproduction.REPRODUCED, f"{count(len(changes), 'value')}, {CONFIDENCE:.0%} for all of them together"
