"""The screen that ends a run, and its copy in the run's folder, from which `sweep summary` shows it at once.

The copy holds texts, and belongs to the exact files of the run and of this code from which it was made. Reading and
showing it imports neither pandas nor SciPy.
"""

import hashlib
import json
import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult

from analysis.table import Cell, Line, OutputPart, Table, view
from sweep.base.config import REPORT_FILE, ROOT
from sweep.base.whole_file import read_bounded, write_whole
from sweep.base.wording import count

LINES = 23  # lines of a screen, before the report's path
FEWEST_ROWS = 3  # rows of each table
MOST_DOUBTS = 3  # lines about failures and warnings
KEPT = ".answer.json"
TABLES = ("points", "winners", "models")
WRITTEN_LATER = (REPORT_FILE, "figures", "summary.csv", "wandb", "status.json", "totals.json", "__pycache__")


@dataclass(frozen=True)
class Screen:
    """A run's result on one screen: each task's winner, the values that decide, warnings, and where to read more."""

    heading: str
    points: Table[Any]
    ranks: Sequence[int]  # the points' order where not all fit: each task's winner first; empty: their own order
    winners: Table[Any]
    models: Table[Any]  # no rows unless requests name models
    doubts: Sequence[tuple[str, str, int]]  # text, style and maximum lines of each warning, the most severe first
    log: str  # of the first failure, in the run's folder
    dropped: int  # trials that a race dropped
    answer: str
    with_slo: bool  # whether the answer is within an SLO, or could not have one
    is_explained: bool = False  # whether sweep explain divides a gain among several settings or steps
    claims: Sequence[str] = ()  # lines of a capacity search
    others: int = 0  # rows of other plans in the folder
    advice: str = ""  # how to break a tie
    marks: Mapping[str, str] = field(default_factory=dict)  # meanings of marks in cells
    place: str = ""  # the run, as the user gave it
    lines: int = LINES

    def above(self, lines: Sequence[str], width: int) -> "Screen":
        """Return a screen that leaves room for these lines below its report's path."""
        return replace(self, lines=LINES - sum(max(1, -(-len(line) // width)) for line in lines))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield as many warnings, then rows, as fit on the screen, and at least a few."""
        for most in range(MOST_DOUBTS, -1, -1):  # at last one warning without hints
            parts = list(self._parts(most, console, options))
            if sum(len(console.render_lines(part, options)) for part in parts) <= self.lines:
                break
        yield from parts

    def _parts(self, most: int, console: Console, options: ConsoleOptions) -> Iterator[OutputPart]:
        width = options.max_width
        heading = Line(self.heading, "bold")
        doubtful = list(self.doubtful(width, max(most, 1)))
        below = [Line(""), Line(self.answer or "no trial has a result", "bold green"), *self._further(most)]
        lines = [*([Line(""), *doubtful] if doubtful else []), *below]
        room = self.lines - sum(len(console.render_lines(part, options)) for part in (heading, *lines))
        points, equal = self.points, ""
        if points.points == len(points.rows):  # otherwise points on other rows might differ
            points, equal = points.condensed()
        winners = min(  # of a tie between names that would wrap, the verdict alone
            (table.within(width) for table in (self.winners, self.winners.brief())),
            key=lambda table: len(console.render_lines(table, options)),
        )
        winning = list(_fitted_rows(winners, "", room - FEWEST_ROWS - 5, console, options))
        room -= sum(len(console.render_lines(part, options)) for part in winning)
        fitting, brief = points.within(width), points.brief().within(width)
        fitting = fitting if len(fitting.headings) >= len(brief.headings) else brief
        cells = " ".join(str(cell) for row in [*fitting.body, *self.winners.body] for cell in row)
        meanings = [meaning for mark, meaning in self.marks.items() if mark in cells]
        note = "; ".join([*([f"in all rows: {equal}"] if equal else []), *meanings])
        shown = list(_fitted_rows(fitting, note, room, console, options))
        if self.ranks and any(isinstance(part, Table) and len(part.rows) < len(points.rows) for part in shown):
            ranked = replace(fitting, rows=[fitting.rows[index] for index in self.ranks])
            shown = list(_fitted_rows(ranked, note, room, console, options))
        yield heading
        yield from shown
        yield from _fitted_rows(self.models.within(width), "", FEWEST_ROWS, console, options)
        yield from lines[: len(lines) - len(below)]
        yield from (*winning, *below)

    def doubtful(self, width: int, most: int = MOST_DOUBTS) -> Iterator[Line]:
        """Yield failures and warnings, severe first, with the first failure's log."""
        for number, (text, style, lines) in enumerate(self.doubts[:most]):
            shown = textwrap.wrap(text, width)
            cut = [*shown[: lines - 1], f"{shown[lines - 1][: width - 1]}…"] if len(shown) > lines else shown
            yield Line(" ".join(cut), style)
            if self.log and number == 0:
                yield Line(f"log: {self.place}/{self.log}", "dim")
        if self.dropped:
            yield Line(dropped_text(self.dropped), "dim")

    def _further(self, most: int) -> Iterator[Line]:
        """Yield where to read more."""
        if self.advice and most:
            yield Line(f"tie: {self.advice}", "dim")
        left_out = len(self.doubts) - max(most, 1)
        details = f" ({count(left_out, 'more warning')})" if left_out > 0 else ""
        yield Line(f"more: sweep summary {self.place} --table, or --all{details}", "dim")
        if self.is_explained and most:
            yield Line(f"gain: sweep explain {self.place}", "dim")
        elif not self.with_slo and most:
            yield Line(f"slo: sweep summary {self.place} --slo ttft=200ms", "dim")


def dropped_text(trials: int) -> str:
    """Say how many trials a race dropped."""
    return f"race: {count(trials, 'trial')} dropped, since the answer does not need them"


def _fitted_rows(
    table: Table[Any], note: str, lines: int, console: Console, options: ConsoleOptions
) -> Iterator[OutputPart]:
    """Yield the rows that fit in this many lines (at least a few), the note, and the number of rows not shown."""
    if not table.rows:
        return
    points = max(table.points, len(table.rows))

    def below(rows: int) -> list[Line]:
        left_out = [f"{points - rows:,} more: --table"] if rows < points else []
        return [Line("; ".join(texts), "dim")] if (texts := [*([note] if note else []), *left_out]) else []

    def shown(rows: int) -> list[OutputPart]:
        return [table.first(rows), *below(rows)]

    def size(rows: int) -> int:
        return 1 + sum(len(console.render_lines(part, options)) for part in shown(rows))

    rows = min(len(table.rows), max(FEWEST_ROWS, lines))
    while rows > FEWEST_ROWS and size(rows) > lines:
        rows -= 1
    rows += not note and rows == len(table.rows) - 1  # a line about one more row takes as much space as the row
    yield from [Line(""), *shown(rows)]


def is_stale(folder: Path) -> bool:
    """Return whether a run's report is missing or outdated, e.g. because the run was killed before writing it."""
    report = folder / REPORT_FILE
    tables = [*folder.glob("trials.parquet"), *folder.glob("deployments/*/*.parquet")]  # also the combined ones
    return not report.exists() or any(report.stat().st_mtime_ns < table.stat().st_mtime_ns for table in tables)


def report_line(folder: Path) -> str:
    """Return where a run's report is, or how to write it."""
    return f"report: {f'out of date; sweep report {folder} rewrites it' if is_stale(folder) else folder / REPORT_FILE}"


# The copy ------------------------------------------------------------------------------------------------------------


@contextmanager
def keeping(folder: Path, is_refreshed: bool = False) -> Iterator[list[Screen]]:
    """Keep the screen that the `with` block appends, unless a file changed meanwhile or a warning was shown.

    With `is_refreshed`, keep it only if a screen was kept before.
    """
    before, screens = _state_of(folder), list[Screen]()
    try:
        with warnings.catch_warnings(record=True) as shown:
            yield screens
    finally:
        for each in {str(each.message): each for each in shown}.values():  # e.g. a file left out: to be said each time
            warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    is_wanted = screens and not shown and (not is_refreshed or (folder / KEPT).exists())
    if not is_wanted or not before or before != _state_of(folder):
        return
    record = vars(screens[0]) | {name: _as_texts(getattr(screens[0], name)) for name in TABLES} | {"place": ""}
    with suppress(OSError):  # a folder that is read-only, or has just been removed
        write_whole(folder / KEPT, json.dumps({"state": before, "screen": record}))


def kept_screen(folder: Path) -> Screen | None:
    """Return the kept screen of a run; None without one, or after any change of the run's files or of this code."""
    try:
        kept = json.loads(read_bounded(folder / KEPT))
        if kept["state"] != (_state_of(folder) or None):
            return None
        tables = {name: _of_texts(*kept["screen"][name]) for name in TABLES}
        return Screen(**{**kept["screen"], **tables, "place": str(folder)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state_of(folder: Path) -> str:
    """Return a digest of names, inodes, sizes and times of change in a run and this code; empty if not all known."""
    digest = hashlib.sha256()
    try:
        for place in (folder, ROOT / "analysis", ROOT / "sweep"):
            for name, facts in _files(str(place)):
                times = f"{facts.st_mtime_ns} {facts.st_ctime_ns}"
                digest.update(os.fsencode(f"{name}\0{facts.st_ino} {facts.st_size} {times}\n"))
    except OSError:
        return ""
    return digest.hexdigest()


def _files(folder: str, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files in a folder, sorted, without hidden ones and what is written after an answer."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name in WRITTEN_LATER:
                continue
            name = f"{below}/{entry.name}"
            if entry.is_dir():
                yield from _files(entry.path, name)
            else:
                yield name, entry.stat()


def of_texts(table: Table[Any]) -> Table[Any]:
    """Return a table with the cells as they are now, which costs nothing to show at another width."""
    return _of_texts(*_as_texts(table))


def _as_texts(table: Table[Any]) -> list[Any]:
    columns = [[column.title, column.unit, column.kind, column.key] for column in table.headings]
    rows = [[[cell.text, cell.detail, cell.style] for cell in row] for row in table.body]
    return [columns, rows, table.points]


def _of_texts(columns: Sequence[Any], rows: Sequence[Any], points: int) -> Table[Any]:
    heads = [view(head, itemgetter(index), unit, kind, key) for index, (head, unit, kind, key) in enumerate(columns)]
    return Table(heads, [[Cell(text, detail, style=style) for text, detail, style in row] for row in rows], "", points)
