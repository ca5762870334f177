"""A trial measured again: do its figures differ from the first ones by more than two launches of one point do?

The spread between launches is the run's: the components of variance (`variance`) pooled over its points. They count as
RUN_FREEDOM degrees of freedom beside the point's own replicates (G. K. Smyth 2004). Two measurements differ by the
square root of two times it. Figures are logarithms, and the intervals hold for all figures together (Sidak 1967).
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from analysis.quantities import labelled_column
from analysis.results import RunResults
from analysis.statistics.intervals import CONFIDENCE
from analysis.statistics.variance import SPREAD_OF, Components
from sweep.base.wording import count

RUN_FREEDOM = 4.0  # of the run's spread beside the spread of one of its points
NO_SPREAD = "one launch of each point does not show how much launches differ: measure with replicates=3 or more"


class Reproduction(StrEnum):
    """The result of measuring a trial again."""

    REPRODUCED = "reproduced within noise"
    DIFFERS = "differs"
    UNKNOWN = "cannot tell"


class Noise(NamedTuple):
    """The spread of a figure between launches of one point, on the logarithm: 0.02 is 2 %."""

    deviation: float
    freedom: float  # degrees of freedom behind it


class FigureChange(NamedTuple):
    """One figure of both measurements; `most` is the largest relative change that noise explains, NaN if unknown."""

    column: str
    before: float
    after: float
    most: float

    @property
    def change(self) -> float:
        """The relative change: -0.03 is 3 % less."""
        return self.after / self.before - 1

    @property
    def differs(self) -> bool:
        """True if the change is larger than noise explains, either way."""
        return abs(math.log(self.after / self.before)) > math.log1p(self.most)

    def describe(self) -> str:
        """`output throughput 81.2 → 79.9 tokens/s (-1.6 %, noise up to 7.1 %)`."""
        label = labelled_column(self.column)
        assert label is not None
        noise = "noise unknown" if math.isnan(self.most) else f"noise up to {self.most:.1%}"
        figures = f"{label.shown(self.before)} → {label.shown(self.after)} {label.unit}"
        return f"{label.in_sentence} {figures} ({self.change:+.1%}, {noise})"


def point_noise(results: RunResults, trial_id: str) -> dict[str, Noise]:
    """The noise of each of SPREAD_OF at a trial's point, as far as the run shows it.

    An engine that was launched is launched again: then the spread between launches must be known.
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
    prior_freedom = min(RUN_FREEDOM, max(0.0, pooled - replicate_freedom))  # of its other points
    freedom = replicate_freedom + prior_freedom
    variance = (squares + prior_freedom * spread.deviation**2) / freedom if freedom else 0.0
    return Noise(math.sqrt(variance), freedom)


def figure_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], noises: Mapping[str, Noise]
) -> list[FigureChange]:
    """The figures of SPREAD_OF that both measurements have, against the noise if it is known."""
    columns = [name for name in SPREAD_OF if _positive(before.get(name)) and _positive(after.get(name))]
    level = CONFIDENCE ** (1 / max(1, sum(name in noises for name in columns)))
    return [
        FigureChange(name, before[name], after[name], _most(noises[name], level) if name in noises else math.nan)
        for name in columns
    ]


def _positive(value: Any) -> bool:
    return value is not None and float(value) > 0


def _most(noise: Noise, level: float) -> float:
    return math.expm1(float(special.stdtrit(noise.freedom, (1 + level) / 2)) * noise.deviation * math.sqrt(2))


def finding(changes: list[FigureChange]) -> tuple[Reproduction, str]:
    """The result of all figures, and its reason."""
    judged = [change for change in changes if not math.isnan(change.most)]
    if not judged:
        return Reproduction.UNKNOWN, NO_SPREAD if changes else "no figure in common"
    beyond = [change for change in judged if change.differs]
    if not beyond:
        return Reproduction.REPRODUCED, f"{count(len(judged), 'figure')}, {CONFIDENCE:.0%} for all of them together"
    return Reproduction.DIFFERS, ", ".join(
        f"{label.in_sentence} by {change.change:+.1%}"
        for change in beyond
        if (label := labelled_column(change.column)) is not None
    )
