"""Presents explanations: sentences and tables for people, records for scripts."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from analysis.explain.decomposition import NO_CHANGE, Change, Explanation, Part
from analysis.table import KEY, Column, Line, Output, Table, view
from sweep.base.wording import number

END = "all together"
GAINS = "the values are those of sweep summary; a gain is the ratio of the launches' geometric means"


def gain_sentence(explanation: Explanation) -> str:
    """Return the conclusion: the size of the total change, and the parts with the largest shares."""
    each = explanation
    largest = sorted(each.parts, key=lambda part: -abs(part.share.value))[:3]
    shares = ", ".join(f"{part.name} {share_text(part.share)}" for part in largest)
    figures = f"from {each.quantity.shown(each.first)} to {each.quantity.shown(each.final)} {each.quantity.unit}"
    total = f"{each.task}: {each.quantity.in_sentence} {figures}, {factor(each.total)} that of {each.begin}"
    if not math.isfinite(each.total.low):
        return f"{total}, with no interval"
    if each.total.low <= 1 <= each.total.high:
        return f"{total}; this may be no change, so the shares are uncertain"
    return f"{total}. Shares of the change: {shares}"


def factor(change: Change) -> str:
    """Return a factor as text, e.g. `2.31×`, or an em dash if it is missing."""
    return f"{number(change.value)}×" if math.isfinite(change.value) else "—"


def share_text(share: Change) -> str:
    """Return a share as text, e.g. `46%`, or an em dash if it is missing."""
    return _percent(share.value) if math.isfinite(share.value) else "—"


def _percent(share: float) -> str:
    """Return a percentage as text, e.g. `46%`, never `-0%`."""
    return f"{round(100 * share) + 0}%"


def _range(change: Change, text: Callable[[float], str]) -> str:
    ends = (change.low, change.high)
    return f"{text(ends[0])} to {text(ends[1])}" if all(map(math.isfinite, ends)) else "—"


def _both(change: Change) -> str:
    """Return a factor with its interval, as one cell's text."""
    interval = _range(change, number)
    return factor(change) + (f" ({interval})" if interval != "—" else "")


class PartRow(NamedTuple):
    """A row of an explanation: a part, the whole, or an interaction of two knobs."""

    explanation: Explanation
    entry: str
    part: Part


PART_COLUMNS: tuple[Column[PartRow], ...] = (
    Column("kind", "factorial or ladder", lambda row: row.explanation.kind),
    Column("task", "model, workload and load, if the run has several", lambda row: row.explanation.task),
    Column("column", "the explained column of trials.parquet", lambda row: row.explanation.quantity.column),
    Column("against", "the point from which the whole gain is measured", lambda row: row.explanation.begin),
    Column(
        "entry",
        "part (a knob, a step, the engine), whole, interaction (of two knobs) or branch (a step)",
        lambda row: row.entry,
    ),
    Column("name", "the part's name; for an interaction both knobs", lambda row: row.part.name, heading="what", **KEY),
    Column("change", "the knob's new setting; for a branch, the step below it", lambda row: row.part.change or None),
    view("set to", lambda row: row.part.change, kind="text"),
    Column("gain", "factor; the parts' factors multiply to the whole", lambda row: row.part.gain.value),
    Column("gain_ci_low, gain_ci_high", "95% interval, for all parts at once", lambda row: row.part.gain[1:]),
    view("gain", lambda row: factor(row.part.gain)),
    view("95% interval", lambda row: _range(row.part.gain, number)),
    Column("share", "share of the whole's logarithm; the parts' shares add up to 1", lambda row: row.part.share.value),
    Column("share_ci_low, share_ci_high", "likewise", lambda row: row.part.share[1:]),
    view("share", lambda row: share_text(row.part.share)),
    view("95% interval", lambda row: _range(row.part.share, _percent)),
    Column("alone", "factor of the knob with the rest off; null if not measured", lambda row: row.part.alone.value),
    Column("alone_ci_low, alone_ci_high", "95% interval, for all parts at once", lambda row: row.part.alone[1:]),
    view("alone", lambda row: _both(row.part.alone)),
    Column("last", "factor of the knob with all other knobs on; null if not measured", lambda row: row.part.last.value),
    Column("last_ci_low, last_ci_high", "likewise", lambda row: row.part.last[1:]),
    view("last", lambda row: _both(row.part.last)),
)
"""The columns of `sweep explain`."""


def parts_table(explanation: Explanation, title: str = "") -> Table[PartRow]:
    """Return a table of an explanation's parts, with the whole in the last row."""
    entries = [*(("part", part) for part in explanation.parts)]
    entries.append(("whole", Part(END, "", explanation.total, Change(1.0, math.nan, math.nan))))
    of_factorial = ("set to", "alone", "last") if explanation.kind == "ladder" else ()
    columns = [column for column in PART_COLUMNS if column.title not in of_factorial or column.value]
    return Table(columns, [PartRow(explanation, *entry) for entry in entries], title)


def remarks(explanations: Sequence[Explanation]) -> list[str]:
    """Return the notes on these explanations without repetitions."""
    return list(dict.fromkeys(note for explanation in explanations for note in explanation.notes))


def interaction_lines(explanation: Explanation) -> list[str]:
    """Return a line per pair of knobs: the factor of both together / the product of their separate factors."""
    return [f"{label}: {_both(change)}" for label, change in explanation.interactions]


def explanation_output(explanations: Sequence[Explanation]) -> Output:
    """Return the output of `sweep explain`: the answers, a table per explanation, and the notes."""
    parts: list[Line | Table[PartRow]] = [Line(gain_sentence(explanation), "bold") for explanation in explanations]
    rows: list[PartRow] = []
    for explanation in explanations:
        title = f"{explanation.task}: {explanation.quantity.label}, against {explanation.begin}"
        table = parts_table(explanation, title)
        pairs = [Part(label, "", change, NO_CHANGE) for label, change in explanation.interactions]
        rows += [*table.rows, *(PartRow(explanation, "interaction", pair) for pair in pairs)]
        parts.append(table)
        if pairs:
            parts.append(Line(f"together × each alone: {'; '.join(interaction_lines(explanation))}", "dim"))
        if explanation.branches:
            rows += [PartRow(explanation, "branch", part) for part in explanation.branches]
            beside = [f"{part.name}: {_both(part.gain)} that of {part.change}" for part in explanation.branches]
            parts.append(Line(f"not on the way to the end: {'; '.join(beside)}", "dim"))
    return Output([*parts, *(Line(note, "dim") for note in [GAINS, *remarks(explanations)])], Table(PART_COLUMNS, rows))
