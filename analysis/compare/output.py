"""A comparison as people and scripts read it: a table in the terminal, Markdown for a pull request, CSV and JSON."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from analysis.compare.conditions import Condition, failures, unjudged
from analysis.compare.verdicts import CHANGES, MINUTES, Finding, PointComparison
from analysis.points import listed
from sweep.base.wording import count, duration_text, spreadsheet_cell

LONGEST_WORD = 24  # characters of a label in a terminal; a longer word is cut
MOST_CHANGE = 10.0  # a larger change is printed as 'over 1000 %'
HEADINGS = ("configuration", "reference", "other", "ratio", "95 % interval", "n", "verdict")
VERDICT_STYLES = {
    Finding.FASTER: "green",
    Finding.SLOWER: "red",
    Finding.UNDECIDED: "yellow",
    Finding.INCOMPARABLE: "dim",
}
OF_SPEED = {Finding.FASTER: "faster", Finding.SLOWER: "slower"}
OF_COST = {Finding.FASTER: "cheaper", Finding.SLOWER: "more expensive"}


def headline(comparisons: Sequence[PointComparison], margin: float) -> list[str]:
    """One sentence for each side and quantity: in how many configurations it is faster, slower, equal, undecided."""
    groups: dict[tuple[str, str, str], list[PointComparison]] = {}
    for each in comparisons:
        groups.setdefault((each.other, each.reference, each.quantity.in_sentence), []).append(each)
    return [
        f"{name}: {other} against {reference}: {_tally(group, margin)}"
        for (other, reference, name), group in groups.items()
    ]


def _tally(group: Sequence[PointComparison], margin: float) -> str:
    counts = Counter(verdict_text(each, margin) for each in group)
    return ", ".join(f"{verdict} in {number}" for verdict, number in counts.most_common()) + f" of {len(group)}"


def verdict_text(comparison: PointComparison, margin: float) -> str:
    """`faster`, `equal within 3%`, … in the words of the quantity: less memory is neither faster nor cheaper."""
    if comparison.verdict is Finding.EQUAL:
        return f"equal within {margin:.0%}"
    unit = comparison.quantity.unit
    verdicts = OF_SPEED if unit in ("s", "ms") or unit.endswith("/s") else OF_COST if unit.startswith("$") else {}
    return verdicts.get(comparison.verdict, str(comparison.verdict))


def reach(comparisons: Sequence[PointComparison]) -> list[str]:
    """The smallest change that these launches find, and that 10, 30 and 120 minutes of launches would, by quantity.

    Also the launches that find CHANGES, and the noise of the machine where it was measured apart.
    """
    lines = list(
        dict.fromkeys(f"noise of {each.quantity.in_sentence}: {each.noise}" for each in comparisons if each.noise)
    )
    for name in dict.fromkeys(each.quantity.in_sentence for each in comparisons):
        alike = [each for each in comparisons if each.quantity.in_sentence == name and math.isfinite(each.smallest)]
        if not alike:
            continue
        widest = max(alike, key=lambda each: each.smallest)
        line = f"{name}: these {count(widest.units, 'launch')} a side find a change of {_percent(widest.smallest)}"
        later = [
            f"{minutes} minutes {_percent(change)}"
            for minutes, change in zip(MINUTES, widest.in_minutes, strict=False)
            if math.isfinite(change)
        ]
        budgets = [_budget(widest, *pair) for pair in zip(CHANGES, widest.launches, strict=True) if pair[1]]
        parts = [line, *filter(None, (", ".join(later), ", ".join(budgets)))]
        lines.append("; ".join(parts) + " (9 times in 10, in any configuration)")
    return lines


def _budget(comparison: PointComparison, change: float, launches: int) -> str:
    """`10% takes 6 launches a side, 3 min`."""
    minutes = launches * comparison.launch_minutes
    time = f", {duration_text(60 * minutes)}" if minutes else ""
    return f"{change:.0%} takes {count(launches, 'launch')} a side{time}"


def cells(comparison: PointComparison, margin: float) -> tuple[str, ...]:
    """The cells of a comparison, as HEADINGS."""
    each = comparison
    return (
        each.label,
        each.quantity.shown(each.first),
        each.quantity.shown(each.second),
        "—" if math.isnan(each.ratio) else f"{each.ratio:.3f}×",
        "—" if math.isnan(each.low) else f"{each.low:.3f} to {each.high:.3f}",
        count(each.units, "pair" if each.paired else "launch") if each.units else "—",
        verdict_text(each, margin),
    )


def by_table(comparisons: Sequence[PointComparison]) -> dict[str, list[PointComparison]]:
    """The comparisons under the title of their table: a quantity of one side."""
    several = len({each.other for each in comparisons}) > 1
    tables: dict[str, list[PointComparison]] = {}
    for each in comparisons:
        title = f"{each.quantity.label}, {each.quantity.unit}" + (f": {each.other}" if several else "")
        tables.setdefault(title, []).append(each)
    return tables


def verdict_reasons(comparisons: Sequence[PointComparison], margin: float) -> list[str]:
    """Why a verdict is not one of the figures: each reason once, with the configurations."""
    reasons: dict[str, list[str]] = {}
    for each in comparisons:
        if each.reason:
            reasons.setdefault(f"{verdict_text(each, margin)}: {each.reason}", []).append(each.label)
    return [f"{reason} ({listed(list(dict.fromkeys(labels)))})" for reason, labels in reasons.items()]


def _table(title: str, comparisons: Sequence[PointComparison], margin: float) -> Table:
    """The comparisons of one quantity as a table for the terminal."""
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    configuration, *figures, verdict_heading = HEADINGS
    # In a narrow terminal both texts wrap, but no word that fits is cut.
    longest = max(len(word) for text in (configuration, *(each.label for each in comparisons)) for word in text.split())
    result.add_column(configuration, min_width=min(longest, LONGEST_WORD), overflow="fold")
    for heading in figures:
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column(verdict_heading)
    for each in comparisons:
        *rest, verdict = cells(each, margin)
        result.add_row(*map(Text, rest), Text(verdict, style=VERDICT_STYLES.get(each.verdict, "")))
    return result


def changes(comparisons: Sequence[PointComparison]) -> list[str]:
    """The settings and versions in which the engines of the sides differ, once."""
    return list(dict.fromkeys(difference for each in comparisons for difference in each.differences))


def markdown(comparisons: Sequence[PointComparison], margin: float, conditions: Sequence[Condition]) -> str:
    """For a pull request: the failures, what was not judged, the tally, and the table."""
    lines = [f"**{line}**" for line in [*_failed(conditions, comparisons), *_not_judged(conditions, comparisons)]]
    lines += [f"- {line}" for line in headline(comparisons, margin)]
    if changed := changes(comparisons):
        lines.append(f"- differs: {'; '.join(changed)}")
    lines += [f"- {reason}" for reason in verdict_reasons(comparisons, margin)]
    for title, group in by_table(comparisons).items():
        lines += ["", f"{title}:", "", f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
        lines += [f"| {' | '.join(_escaped(cell) for cell in cells(each, margin))} |" for each in group]
    return "\n".join([*lines, "", *reach(comparisons)]).rstrip() + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _failed(conditions: Sequence[Condition], comparisons: Sequence[PointComparison]) -> list[str]:
    return [
        f"failed: {condition.text}: {comparison.label} {comparison.ratio - 1:+.1%}"
        f" ({comparison.low - 1:+.1%} to {comparison.high - 1:+.1%})"
        for condition, comparison in failures(conditions, comparisons)
    ]


def _not_judged(conditions: Sequence[Condition], comparisons: Sequence[PointComparison]) -> list[str]:
    return [f"not judged: {line}" for line in unjudged(conditions, comparisons)]


def terminal_parts(comparisons: Sequence[PointComparison], margin: float, conditions: Sequence[Condition]) -> list[Any]:
    """The lines and tables that the terminal prints, the tally first."""
    changed = changes(comparisons)
    return [
        *(Text(line, style="bold") for line in headline(comparisons, margin)),
        *([Text(f"differs: {'; '.join(changed)}", style="dim")] if changed else []),
        *(_table(title, group, margin) for title, group in by_table(comparisons).items()),
        *(Text(line, style="dim") for line in verdict_reasons(comparisons, margin)),
        *(Text(line, style="dim") for line in reach(comparisons)),
        *(Text(line, style="bold red") for line in _failed(conditions, comparisons)),
        *(Text(line, style="bold yellow") for line in _not_judged(conditions, comparisons)),
    ]


def records(comparisons: Sequence[PointComparison], margin: float) -> list[dict[str, Any]]:
    """One record a comparison: data units, null where there is no figure."""
    return [
        {
            "reference": each.reference,
            "other": each.other,
            "configuration": each.label,
            "column": each.quantity.column,
            "reference_value": _number(each.first),
            "other_value": _number(each.second),
            "ratio": _number(each.ratio),
            "ci_low": _number(each.low),
            "ci_high": _number(each.high),
            "units": each.units,
            "paired": each.paired,
            "verdict": verdict_text(each, margin),
            "reason": each.reason or None,
            "smallest_change": _number(each.smallest),
            "noise": each.noise or None,
            "differences": "; ".join(each.differences) or None,
        }
        for each in comparisons
    ]


def _as_csv(comparisons: Sequence[PointComparison], margin: float, conditions: Sequence[Condition]) -> str:
    output = io.StringIO()
    every = records(comparisons, margin)
    writer = csv.DictWriter(output, list(every[0]) if every else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: spreadsheet_cell(cell) for column, cell in row.items()} for row in every)
    return output.getvalue()


def _as_json(comparisons: Sequence[PointComparison], margin: float, conditions: Sequence[Condition]) -> str:
    judged = {"failed": _failed(conditions, comparisons), "not_judged": unjudged(conditions, comparisons)}
    return json.dumps({**judged, "comparisons": records(comparisons, margin)}, indent=2) + "\n"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(change: float) -> str:
    if change > MOST_CHANGE:
        return f"over {MOST_CHANGE:.0%}"
    return f"{change:.1%}" if change < 0.1 else f"{change:.0%}"


FORMATS: dict[str, Callable[[Sequence[PointComparison], float, Sequence[Condition]], str]] = {
    "markdown": markdown,
    "csv": _as_csv,
    "json": _as_json,
}
"""The formats besides the terminal's."""

COMPARISON_COLUMNS = {
    "reference": ("", "the first RUN, as it was written"),
    "other": ("", "the one that is compared with it"),
    "configuration": ("", "the settings that tell it from the run's others"),
    "column": ("", "the column of trials.parquet that is compared"),
    "reference_value, other_value": ("of `column`", "geometric mean over the launches"),
    "ratio": ("", "the other's over the reference's"),
    "ci_low, ci_high": ("", "95 % interval of the ratio, for all configurations at once"),
    "units": ("", "pairs of launches, or launches of the side that has fewer"),
    "paired": ("", "whether launches are paired by the replicate in which both sent the same prompts"),
    "verdict": (
        "",
        "faster, slower, equal within the margin, not told apart or not comparable, in the quantity's words",
    ),
    "reason": ("", "why it is not comparable, or has no interval"),
    "smallest_change": ("share", "that so many launches find, nine times in ten"),
    "noise": ("", "the machine's, of `--noise`"),
    "differences": ("", "settings and versions in which the engines differ"),
}
"""The columns of `sweep compare --format csv` and the comparisons of `json`, for docs/columns.md."""
