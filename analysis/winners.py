"""The best point of each quantity."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.headline import HEADLINE
from analysis.quantities import LabelledColumn, labelled_column
from analysis.stats import Estimate
from analysis.summary import estimate


class Best(NamedTuple):
    """The best mean of a quantity, and the point that has it."""

    quantity: LabelledColumn
    estimate: Estimate
    point: "pd.Series[Any]"


def best(points: pd.DataFrame, columns: Sequence[str] = HEADLINE) -> list[Best]:
    """The best mean of each quantity for each model: models do not compete, a small one is always faster."""
    results: list[Best] = []
    for column in columns:
        shown = labelled_column(column)
        if shown is None or shown.better is None or column not in points:
            continue
        measured = points[points[column].notna()]
        for _, of_model in measured.groupby("model", sort=False, dropna=False):
            place = int(of_model[column].argmax() if shown.better == "higher" else of_model[column].argmin())
            point = of_model.iloc[place]
            results.append(Best(shown, estimate(point, column), point))
    return results
