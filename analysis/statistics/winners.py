"""The best point of each quantity among those that were asked the same."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.headline import HEADLINE
from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.estimates import estimate
from analysis.statistics.intervals import CONFIDENCE, Estimate
from analysis.statistics.standings import Standing, question_columns

MOST_LINES_NAMED = 3  # points in a sentence
MOST_COMPARISONS = 3  # of which each is reported by itself; more are counted


class Best(NamedTuple):
    """The best figure of a quantity in one comparison, and the point that has it."""

    quantity: LabelledColumn
    estimate: Estimate
    point: "pd.Series[Any]"
    tied: pd.DataFrame  # the points not told apart from it
    compared: int  # points


def best(points: pd.DataFrame, columns: Sequence[str] = HEADLINE) -> list[Best]:
    """The best of each quantity in each comparison: never across tasks, loads, models or hardware."""
    results: list[Best] = []
    for column in columns:
        labelled, name = labelled_column(column), f"{column}_standing"
        if labelled is None or name not in points or points[name].isna().all():
            continue
        compared = points[points[name].notna()]
        for _, group in compared.groupby(question_columns(points), sort=False, dropna=False):
            point = group[group[name] == Standing.BEST].iloc[0]
            tied = group[group[name] == Standing.TIED]
            results.append(Best(labelled, estimate(point, column), point, tied, len(group)))
    return results


class Tally(NamedTuple):
    """The number of times that each line was the sole best of a quantity."""

    quantity: LabelledColumn
    wins: Counter[str]
    undecided: int  # comparisons in which the best is not told apart from another
    comparisons: int


def tallies(results: Sequence[Best]) -> list[Tally]:
    """The results by quantity, for runs with many comparisons; the points have a `line`."""
    groups: dict[str, list[Best]] = {}
    for result in results:
        groups.setdefault(result.quantity.column, []).append(result)
    return [
        Tally(
            group[0].quantity,
            Counter(str(each.point["line"]) for each in group if each.tied.empty),
            sum(not each.tied.empty for each in group),
            len(group),
        )
        for group in groups.values()
    ]


def tally_text(tally: Tally) -> str:
    """`vllm in 5, tgi in 2; in 1 the best is not told apart from another; of equal engines 1 in 20 is named`."""
    wins = ", ".join(f"{line} in {number}" for line, number in tally.wins.most_common(MOST_LINES_NAMED))
    undecided = f"in {tally.undecided} the best is not told apart from another" if tally.undecided else ""
    chance = f"of equal engines 1 in {round(1 / (1 - CONFIDENCE))} is named" if tally.wins else ""
    return "; ".join(filter(None, [wins, undecided, chance]))


def tied_text(result: Best) -> str:
    """The lines not told apart from the best, in words; empty if there are none."""
    lines = list(dict.fromkeys(result.tied["line"]))
    if not lines:
        return ""
    more = len(lines) - MOST_LINES_NAMED
    named = ", ".join(lines) if more <= 1 else f"{', '.join(lines[:MOST_LINES_NAMED])} and {more} others"
    return f"not told apart from {named}"
