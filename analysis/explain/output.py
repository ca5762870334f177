"""An explanation as people and scripts read it: a table in the terminal, Markdown, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from analysis.explain.decomposition import Change, Explanation, Part
from sweep.base.wording import number, spreadsheet_cell

PART_HEADINGS = ("what", "set to", "gain", "95 % interval", "share", "95 % interval", "alone", "last")
LADDER_HEADINGS = PART_HEADINGS[:1] + PART_HEADINGS[2:6]
END = "all together"


def gain_sentence(explanation: Explanation) -> str:
    """The answer: how much all of it changed, and the parts with the largest shares."""
    each = explanation
    largest = sorted(each.parts, key=lambda part: -abs(part.share.value))[:3]
    shares = ", ".join(f"{part.name} {share_text(part.share)}" for part in largest)
    figures = f"from {each.quantity.shown(each.first)} to {each.quantity.shown(each.final)} {each.quantity.unit}"
    total = f"{each.task}: {each.quantity.in_sentence} {figures}, {factor(each.total)} that of {each.begin}"
    if not math.isfinite(each.total.low):
        return f"{total}, without an interval"
    if each.total.low <= 1 <= each.total.high:
        return f"{total}; this may be no change, so no share is certain"
    return f"{total}. Shares of the change: {shares}"


def factor(change: Change) -> str:
    """`2.31×`; an em dash without a value."""
    return f"{number(change.value)}×" if math.isfinite(change.value) else "—"


def share_text(share: Change) -> str:
    """`46%`; an em dash without a value."""
    return _percent(share.value) if math.isfinite(share.value) else "—"


def _percent(share: float) -> str:
    """`46%`; no -0%."""
    return f"{round(100 * share) + 0}%"


def _range(change: Change, text: Callable[[float], str]) -> str:
    ends = (change.low, change.high)
    return f"{text(ends[0])} to {text(ends[1])}" if all(map(math.isfinite, ends)) else "—"


def _both(change: Change) -> str:
    """A factor with its interval, in one cell."""
    interval = _range(change, number)
    return factor(change) + (f" ({interval})" if interval != "—" else "")


def part_cells(part: Part, kind: str) -> tuple[str, ...]:
    """The cells of a part, as PART_HEADINGS or LADDER_HEADINGS."""
    gain, share = part.gain, part.share
    figures = (factor(gain), _range(gain, number), share_text(share), _range(share, _percent))
    if kind == "ladder":
        return (part.name, *figures)
    return (part.name, part.change, *figures, _both(part.alone), _both(part.last))


def rows(explanation: Explanation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The headings and the rows of an explanation's table, the whole last."""
    together = Part(END, "", explanation.total, Change(1.0, math.nan, math.nan))
    headings = LADDER_HEADINGS if explanation.kind == "ladder" else PART_HEADINGS
    return headings, [part_cells(part, explanation.kind) for part in (*explanation.parts, together)]


def remarks(explanations: Sequence[Explanation]) -> list[str]:
    """The notes on the explanations of one table or several, each once."""
    return list(dict.fromkeys(note for each in explanations for note in each.notes))


def interaction_lines(explanation: Explanation) -> list[str]:
    """Each pair of knobs with how many factor more they bring together than each alone."""
    return [f"{label}: {_both(change)}" for label, change in explanation.interactions]


def terminal_tables(explanations: Sequence[Explanation]) -> list[Any]:
    """The lines and tables that the terminal prints, the answers first."""
    parts: list[Any] = [Text(gain_sentence(each), style="bold") for each in explanations]
    for each in explanations:
        headings, table_rows = rows(each)
        title = f"{each.task}: {each.quantity.label}, against {each.begin}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
        for row in table_rows:
            table.add_row(*map(Text, row))
        parts.append(table)
        if each.interactions:
            parts.append(Text(f"together × each alone: {'; '.join(interaction_lines(each))}", style="dim"))
    return [*parts, *(Text(note, style="dim") for note in remarks(explanations))]


def as_markdown(explanations: Sequence[Explanation]) -> str:
    """The answers, a table each, and the notes."""
    lines = [f"- {gain_sentence(each)}" for each in explanations]
    for each in explanations:
        headings, table_rows = rows(each)
        lines += ["", f"{each.task}: {each.quantity.label}, against {each.begin}:", ""]
        lines += [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table_rows]
        if each.interactions:
            lines += ["", f"Together × each alone: {'; '.join(interaction_lines(each))}"]
    return "\n".join([*lines, "", *(f"{note}." for note in remarks(explanations))]).rstrip() + "\n"


def explanation_records(explanations: Sequence[Explanation]) -> list[dict[str, Any]]:
    """One record a part, the whole and the interactions included; null where there is no figure."""
    return [
        {"kind": each.kind, "task": each.task, "column": each.quantity.column, "against": each.begin, **record}
        for each in explanations
        for record in _entries(each)
    ]


def _entries(each: Explanation) -> list[dict[str, Any]]:
    none = Change(math.nan, math.nan, math.nan)
    total = Part(END, "", each.total, Change(1.0, math.nan, math.nan))
    entries = [(part, "part") for part in each.parts] + [(total, "whole")]
    entries += [(Part(label, "", change, none), "interaction") for label, change in each.interactions]
    return [
        {"entry": entry, "name": part.name, "change": part.change or None}
        | {
            f"{name}{end}": value if math.isfinite(value) else None
            for name in ("gain", "share", "alone", "last")
            for end, value in zip(("", "_ci_low", "_ci_high"), getattr(part, name), strict=True)
        }
        for part, entry in entries
    ]


def _as_csv(explanations: Sequence[Explanation]) -> str:
    output = io.StringIO()
    every = explanation_records(explanations)
    writer = csv.DictWriter(output, list(every[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: spreadsheet_cell(cell) for column, cell in row.items()} for row in every)
    return output.getvalue()


def _as_json(explanations: Sequence[Explanation]) -> str:
    return json.dumps(explanation_records(explanations), indent=2) + "\n"


EXPLANATION_FORMATS: dict[str, Callable[[Sequence[Explanation]], str]] = {
    "markdown": as_markdown,
    "csv": _as_csv,
    "json": _as_json,
}
"""The formats besides the terminal's."""

EXPLANATION_COLUMNS = {
    "kind": ("", "factorial or ladder"),
    "task": ("", "model, workload and load, as far as the run has several"),
    "column": ("", "the column of trials.parquet that is explained"),
    "against": ("", "what the whole gain is measured from"),
    "entry": ("", "part (a knob, a step, the engine), whole or interaction (of two knobs)"),
    "name": ("", "of the part; of an interaction both knobs"),
    "change": ("", "what the knob was set to"),
    "gain": ("", "times; those of the parts multiply to the whole"),
    "share": ("share", "of the whole's logarithm; those of the parts add up to 1"),
    "alone": ("", "times, of the knob with all others off; null where that was not measured"),
    "last": ("", "times, of the knob with all others on; likewise"),
    "gain_ci_low, gain_ci_high, share_ci_low, …": ("", "95 % interval of each of these four, for all parts at once"),
}
"""The columns of `sweep explain --format csv` and `json`, for docs/columns.md."""
