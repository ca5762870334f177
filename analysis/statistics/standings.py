"""The points that are best among those asked the same, and those not told apart from the best."""

from enum import StrEnum

import numpy as np
import pandas as pd

from analysis.headline import ASKED, HEADLINE
from analysis.quantities import labelled_column
from analysis.statistics.comparison import Trials, fit, indistinguishable
from analysis.statistics.ratios import Positions, positions

GPUS = "backend.gpus"  # of one engine: configurations on several and on one are no rivals


class Standing(StrEnum):
    """A point's standing among those that were asked the same."""

    BEST = "best"
    TIED = "not told apart from the best"
    BEHIND = "behind"


def question_columns(points: pd.DataFrame) -> list[str]:
    """The columns that say what was asked, and of how many GPUs: points that agree in them are compared."""
    return [str(key) for key in points if str(key).split(".")[0] in ASKED or key == GPUS]


def standings(points: pd.DataFrame, figures: pd.DataFrame, measured: pd.DataFrame, trials: Trials) -> pd.DataFrame:
    """`<headline>_standing` of each point; null where nothing else was asked the same.

    `figures` are those of the points, as they are shown; `measured` those of the trials.
    """
    groups = points.groupby(question_columns(points), dropna=False, sort=False)
    question: Positions = np.asarray(groups.ngroup(), np.int64)
    trials_at = positions(trials.point, len(points))
    columns: dict[str, list[str | None]] = {}
    for headline in HEADLINE:
        labelled = labelled_column(headline)
        if headline not in measured or labelled is None or labelled.better is None:
            continue
        column: list[str | None] = [None] * len(points)
        shown = figures[headline].to_numpy(np.float64) * (1 if labelled.better == "higher" else -1)
        values = measured[headline].to_numpy(np.float64)
        for members in _groups(question, np.isfinite(shown)):
            rows = np.concatenate([trials_at[point] for point in members])
            local = trials.select(rows)._replace(point=np.searchsorted(members, trials.point[rows]))
            best = int(np.argmax(shown[members]))
            tied = indistinguishable(fit(values[rows], local, len(members)), best, labelled.better)
            for index, point in enumerate(members):
                column[point] = Standing.BEST if index == best else Standing.TIED if tied[index] else Standing.BEHIND
        columns[f"{headline}_standing"] = column
    return pd.DataFrame(columns, index=points.index, dtype=object)


def _groups(question: Positions, usable: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> list[Positions]:
    """The usable points of each question that has two or more, ascending."""
    usable_points = np.flatnonzero(usable)
    if not len(usable_points):
        return []
    order = usable_points[np.argsort(question[usable_points], kind="stable")]
    parts = np.split(order, np.flatnonzero(np.diff(question[order])) + 1)
    return [part for part in parts if len(part) > 1]
