"""The title of a chart: a sentence with the finding that the intervals establish; empty if they establish none."""

from collections import Counter

import numpy as np
import pandas as pd

from analysis.headline import COST, one_price
from analysis.point_names import Layout
from analysis.quantities import LabelledColumn
from analysis.statistics.contests import Standing, question_columns
from sweep.base.wording import count

FEWEST_REQUESTS = 20  # minimum requests at a point; with fewer a chart shows little


def established(layout: Layout, shown: LabelledColumn) -> str:
    """Return which line leads by more than the intervals or, if no line has rivals, the load with a clear optimum."""
    points = layout.points[layout.points[shown.column].notna()]
    points = points[(points["requests"] + points["failed"]).ge(FEWEST_REQUESTS)]
    if points.empty or shown.better is None or (shown.column == COST and one_price(points)):
        return ""
    standing = f"{shown.column}_standing"
    rivals = points[points[standing].notna()] if standing in points else points.iloc[:0]
    return _leaders(rivals, standing, shown) if len(rivals) else _optimum(layout, points, shown)


def _leaders(rivals: pd.DataFrame, standing: str, shown: LabelledColumn) -> str:
    standings = [each.set_index("line")[standing] for _, each in rivals.groupby(question_columns(rivals), dropna=False)]
    decided = [group for group in standings if (group == Standing.BEST).any() and not (group == Standing.TIED).any()]
    wins = Counter(str(group.index[group == Standing.BEST][0]) for group in decided if len(group) > 1)
    extreme, total = "highest" if shown.better == "higher" else "lowest", count(len(standings), "task")
    if wins:
        (leader, times), *others = wins.most_common(3)
        rest = "".join(f", {line} at {wins_of_line}" for line, wins_of_line in others)
        return f"{leader} has the {extreme} {shown.in_sentence} at {times} of {total}{rest}"
    behind = Counter(line for group in standings for line in group.index[group == Standing.BEHIND])
    if not behind:
        return ""
    few = len(behind) <= 2
    subject = f"{' and '.join(behind)} {'is' if len(behind) == 1 else 'are'}" if few else f"{len(behind)} lines are"
    return f"{subject} behind in {shown.in_sentence} at up to {max(behind.values())} of {total}"


def _optimum(layout: Layout, points: pd.DataFrame, shown: LabelledColumn) -> str:
    """Describe the first line that has a value along x clearly better than its other values."""
    for (line, panel), group in points.groupby(["line", "panel"], sort=False) if layout.x else ():
        signed = group[shown.column] if shown.better == "higher" else -group[shown.column]
        place = int(signed.argmax())
        best, others = group.iloc[place], group.drop(index=group.index[place])
        low, high = best[f"{shown.column}_ci_low"], best[f"{shown.column}_ci_high"]
        lows, highs = others[f"{shown.column}_ci_low"], others[f"{shown.column}_ci_high"]
        apart = low > highs if shown.better == "higher" else high < lows
        if len(others) and bool(np.all(apart)):
            where = [str(name) for name, column in ((line, "line"), (panel, "panel")) if points[column].nunique() > 1]
            text = f"{'highest' if shown.better == 'higher' else 'lowest'} at {layout.load(best)}"
            return ", ".join([f"{shown.short} is {text}", *where]) + f": {shown.shown(best[shown.column])} {shown.unit}"
    return ""
