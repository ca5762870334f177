"""Presents a comparison: lines and a table per quantity for people, and records for scripts."""

import math
from collections import Counter
from collections.abc import Sequence

from analysis.compare.conditions import Condition, failures, unjudged
from analysis.compare.verdicts import CHANGES, GUESSED_NOISE, MINUTES, Finding, PointComparison
from analysis.point_names import listed
from analysis.table import KEY, NONE, Cell, Column, Line, Output, Table
from sweep.base.wording import count, duration_text

MOST_CHANGE = 10.0  # a larger change is printed as 'over 1000%'
VERDICT_STYLES = {
    Finding.FASTER: "green",
    Finding.SLOWER: "red",
    Finding.UNDECIDED: "yellow",
    Finding.INCOMPARABLE: "dim",
}
AS_SUMMARISED = "as in sweep summary: from the requests of all launches"
RATIO = "geometric mean over the launches, other / reference; not the ratio of the two values"
RATIO_INTERVAL = "95% interval of the ratio (docs/metrics.md)"
VERDICT = "faster, slower, equal within the margin, tie or not comparable, worded for the quantity"
NOT_IN_TURNS = (
    "The sides did not take turns (measured {}), so no interval covers a change of the machine in between. Measure "
    "both in one run, or add a --noise with such pauses; without it, a change below {:.0%} is attributed to the "
    "machine, which is a guess."
)
OF_SPEED = {Finding.FASTER: "faster", Finding.SLOWER: "slower"}
OF_COST = {Finding.FASTER: "cheaper", Finding.SLOWER: "more expensive"}


def headline(comparisons: Sequence[PointComparison], margin: float) -> list[str]:
    """Return one sentence per side and quantity: how many configurations are faster, slower, equal or undecided."""
    groups: dict[tuple[str, str, str], list[PointComparison]] = {}
    for each in comparisons:
        groups.setdefault((each.other, each.reference, each.quantity.in_sentence), []).append(each)
    return [
        f"{name}: {other} against {reference}: {_tally(group, margin)}"
        for (other, reference, name), group in groups.items()
    ]


def _tally(group: Sequence[PointComparison], margin: float) -> str:
    counts = Counter(verdict_text(each, margin) for each in group)
    codes = dict.fromkeys(code for each in group for code in each.codes)
    tally = ", ".join(f"{verdict} in {number}" for verdict, number in counts.most_common()) + f" of {len(group)}"
    return tally + (f"; warnings: {listed(list(codes))}" if codes else "")


def verdict_text(comparison: PointComparison, margin: float) -> str:
    """Return a verdict worded for the quantity, e.g. `faster` or `equal within 3%` (less memory is not `faster`)."""
    if comparison.verdict is Finding.EQUAL:
        return f"equal within {margin:.0%}"
    unit = comparison.quantity.unit
    verdicts = OF_SPEED if unit in ("s", "ms") or unit.endswith("/s") else OF_COST if unit.startswith("$") else {}
    return verdicts.get(comparison.verdict, str(comparison.verdict))


def reach(comparisons: Sequence[PointComparison]) -> list[str]:
    """Return lines on each quantity's smallest detectable change: with these launches, and in 10, 30 and 120 minutes.

    They also give the launches that detect the CHANGES, and the machine's noise if it was measured separately.
    """
    lines = list(dict.fromkeys(f"noise of {one.quantity.in_sentence}: {one.noise}" for one in comparisons if one.noise))
    for name in dict.fromkeys(each.quantity.in_sentence for each in comparisons):
        alike = [each for each in comparisons if each.quantity.in_sentence == name and math.isfinite(each.smallest)]
        if not alike:
            continue
        widest = max(alike, key=lambda each: each.smallest)
        detected = f"{count(widest.units, 'launch')} per side detect a change of {_percent(widest.smallest)}"
        later = [
            f"{minutes} minutes {_percent(change)}"
            for minutes, change in zip(MINUTES, widest.in_minutes, strict=False)
            if math.isfinite(change)
        ]
        budgets = [_budget(widest, *pair) for pair in zip(CHANGES, widest.launches, strict=True) if pair[1]]
        parts = [f"{name}: {detected} (9 times in 10, in any configuration)"]
        parts += filter(None, (", ".join(later).replace("minutes", "minutes detect", 1), ", ".join(budgets)))
        lines.append(f"{'. '.join(parts)}.")
    return lines


def _budget(comparison: PointComparison, change: float, launches: int) -> str:
    """Return the launches that a change needs, e.g. `10% takes 6 launches per side (3 min)`."""
    minutes = launches * comparison.launch_minutes
    time = f" ({duration_text(60 * minutes)})" if minutes else ""
    return f"{change:.0%} takes {count(launches, 'launch')} per side{time}"


def comparison_columns(margin: float, unit: str = "") -> list[Column[PointComparison]]:
    """Return the columns of comparisons. Differences within the margin are equal; `unit` belongs to the quantity."""

    def verdict(each: PointComparison) -> Cell:
        return Cell(verdict_text(each, margin), style=VERDICT_STYLES.get(each.verdict, ""))

    return [
        Column("reference", "the first RUN, as typed", lambda each: each.reference),
        Column("other", "the run compared with it", lambda each: each.other),
        Column("configuration", "the settings that vary in the run", lambda each: each.label, **KEY),
        Column("column", "the compared column of trials.parquet", lambda each: each.quantity.column),
        Column("reference_value", AS_SUMMARISED, lambda each: each.first, _first, "of `column`", "reference", unit),
        Column("other_value", AS_SUMMARISED, lambda each: each.second, _second, "of `column`", "other", unit),
        Column("ratio", RATIO, lambda each: each.ratio, _ratio),
        Column(
            "ci_low, ci_high", RATIO_INTERVAL, lambda each: (each.low, each.high), _ratio_range, heading="95% interval"
        ),
        Column(
            "units",
            "pairs of launches, or launches of the side with fewer",
            lambda each: each.units,
            _units,
            heading="n",
        ),
        Column("verdict", VERDICT, lambda each: verdict_text(each, margin), verdict, kind="text"),
        Column("reason", "why there is no comparison, or no interval", lambda each: each.reason or None),
        Column(
            "smallest_change",
            "the change that this many launches detect, nine times in ten",
            lambda each: each.smallest,
            of_value="share",
        ),
        Column("noise", "the machine's noise, from `--noise`", lambda each: each.noise or None),
        Column("apart", "how the sides were measured, if not in turns", lambda each: each.apart or None),
        Column(
            "warnings", "codes of warnings about the values of either side", lambda each: ";".join(each.codes) or None
        ),
        Column("differences", "settings and versions that differ", lambda each: "; ".join(each.differences) or None),
    ]


def _first(each: PointComparison) -> str:
    return each.quantity.shown(each.first)


def _second(each: PointComparison) -> str:
    return each.quantity.shown(each.second)


def _ratio(each: PointComparison) -> str:
    return NONE if math.isnan(each.ratio) else f"{each.ratio:.3f}×"


def _ratio_range(each: PointComparison) -> str:
    return NONE if math.isnan(each.low) else f"{each.low:.3f} to {each.high:.3f}"


def _units(each: PointComparison) -> str:
    return count(each.units, "launch") if each.units else NONE


def tables(comparisons: Sequence[PointComparison], margin: float) -> list[Table[PointComparison]]:
    """Return a table for each quantity and side, titled with both."""
    several = len({each.other for each in comparisons}) > 1
    groups: dict[str, list[PointComparison]] = {}
    for each in comparisons:
        groups.setdefault(each.quantity.label + (f": {each.other}" if several else ""), []).append(each)
    return [Table(comparison_columns(margin, group[0].quantity.unit), group, title) for title, group in groups.items()]


def verdict_reasons(comparisons: Sequence[PointComparison], margin: float) -> list[str]:
    """Return why configurations have no numeric verdict: each reason once, with its configurations."""
    reasons: dict[str, list[str]] = {}
    for each in comparisons:
        if each.reason:
            reasons.setdefault(f"{verdict_text(each, margin)}: {each.reason}", []).append(each.label)
    return [f"{reason} ({listed(list(dict.fromkeys(labels)))})" for reason, labels in reasons.items()]


def changes(comparisons: Sequence[PointComparison]) -> list[str]:
    """Return the differences in settings and versions between the sides' engines, without repetitions."""
    return list(dict.fromkeys(difference for each in comparisons for difference in each.differences))


def _failed(conditions: Sequence[Condition], comparisons: Sequence[PointComparison]) -> list[str]:
    return [
        f"failed: {condition.text}: {comparison.label} {comparison.ratio - 1:+.1%}"
        f" (with 95% confidence {'at most' if condition.sign == '<' else 'at least'}"
        f" {(comparison.all_high if condition.sign == '<' else comparison.all_low) - 1:+.1%})"
        for condition, comparison in failures(conditions, comparisons)
    ]


def comparison_output(comparisons: Sequence[PointComparison], margin: float, conditions: Sequence[Condition]) -> Output:
    """Return the output of `sweep compare`, with the failures last."""
    failed, not_judged = _failed(conditions, comparisons), unjudged(conditions, comparisons)
    changed, apart = changes(comparisons), dict.fromkeys(each.apart for each in comparisons if each.apart)
    parts: list[Line | Table[PointComparison]] = [
        *(Line(line, "bold") for line in headline(comparisons, margin)),
        *([Line(f"differs: {'; '.join(changed)}", "dim")] if changed else []),
        *(Line(NOT_IN_TURNS.format(text, GUESSED_NOISE), "yellow") for text in apart),
        *tables(comparisons, margin),
        *(Line(line, "dim") for line in (*verdict_reasons(comparisons, margin), *reach(comparisons))),
        *(Line(line, "bold red") for line in failed),
        *(Line(f"not judged: {line}", "bold yellow") for line in not_judged),
    ]
    table = Table(comparison_columns(margin), comparisons)
    return Output(parts, table, {"failed": failed, "not_judged": not_judged, "comparisons": table.records()})


def _percent(change: float) -> str:
    if change > MOST_CHANGE:
        return f"over {MOST_CHANGE:.0%}"
    return f"{change:.1%}" if change < 0.1 else f"{change:.0%}"
