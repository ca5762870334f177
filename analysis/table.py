"""Tables whose columns are declared once, for the terminal, Markdown, CSV, JSON, HTML and the docs."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from sweep.base.wording import printable

if TYPE_CHECKING:
    import pandas as pd

Item = TypeVar("Item")
KEY: dict[str, Any] = {"kind": "text", "key": True}  # marks a column of text that identifies a row
NONE = "—"  # the cell of a missing value
PIPED_WIDTH = 160  # characters in a table's line outside a terminal
COLUMN_GAP = 2  # characters between two columns in the terminal
NARROWEST_WORDS = 12  # minimum characters of a column of words; below it the terminal's table breaks words
# Where a spreadsheet would see a formula: it may take a semicolon or tab for the end of a cell, and full-width signs.
FORMULA = re.compile("^(?=\ufeff*[=+@\uff1d\uff0b\uff0d\uff20-]|[\t\r\n])|(?<=[;\t])(?=[=+@\uff1d\uff0b\uff0d\uff20-])")
CODE_SPAN = re.compile(r"(`[^`]*`)")  # in Markdown


class Cell(NamedTuple):
    text: str
    detail: str = ""  # muted text next to the cell's text, e.g. an interval
    best: bool = False
    warnings: Sequence[Any] = ()  # marks in HTML
    style: str = ""  # in the terminal

    def __str__(self) -> str:
        return f"{self.text} {self.detail}" if self.detail else self.text


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column: its name and content in files, and its heading and cells for display. Either pair may be omitted."""

    name: str = ""  # key in CSV and JSON, or `low, high` for a pair of values; empty: not in files
    meaning: str = ""
    value: Callable[[Item], Any] | None = None  # in data units; a tuple for several keys
    cell: Callable[[Item], Cell | str] | None = None  # displayed cell; without it or a kind, only files get the column
    of_value: str = ""  # unit of the value
    heading: str = ""  # heading; default: the name
    unit: str = ""  # unit of the cells
    kind: str = ""  # `text` or `text wide`; otherwise numbers, which are never broken
    key: bool = False  # whether the column identifies a row, and so is repeated if the table is split

    @property
    def title(self) -> str:
        return self.heading or self.name

    def shown(self, row: Item) -> Cell:
        """Return a row's displayed cell."""
        if self.cell is None:
            value = self.value(row) if self.value else None
            return Cell(NONE if value is None else str(value))
        cell = self.cell(row)
        return cell if isinstance(cell, Cell) else Cell(cell)

    def record(self, row: Item) -> dict[str, Any]:
        """Return a row's values for files, by key; None for a missing number."""
        if not self.name or self.value is None:
            return {}
        names, value = self.name.split(", "), self.value(row)
        return dict(zip(names, map(_finite, value if len(names) > 1 else (value,)), strict=True))


def view(
    heading: str, cell: Callable[[Item], Cell | str], unit: str = "", kind: str = "", key: bool = False
) -> Column[Item]:
    """Declare a column for display only."""
    return Column(heading=heading, cell=cell, unit=unit, kind=kind, key=key)


@dataclass(frozen=True)
class Table(Generic[Item]):
    """Rows under declared columns."""

    columns: Sequence[Column[Item]]
    rows: Sequence[Item]
    title: str = ""
    points: int = 0  # total number of points, if the rows are only the first of them

    @cached_property
    def _visible(self) -> list[tuple[Column[Item], list[Cell]]]:
        """Return the displayed columns with their cells, without columns that are empty in every row."""
        columns = [column for column in self.columns if column.cell or column.kind]
        cells = [[column.shown(row) for row in self.rows] for column in columns]
        shown = zip(columns, cells, strict=True)
        return [(column, texts) for column, texts in shown if not texts or any(cell.text != NONE for cell in texts)]

    @property
    def headings(self) -> list[Column[Item]]:
        """The displayed columns."""
        return [column for column, _ in self._visible]

    @property
    def body(self) -> list[list[Cell]]:
        """The displayed cells, row by row."""
        return [[cells[index] for _, cells in self._visible] for index in range(len(self.rows))]

    def first(self, rows: int) -> "Table[Item]":
        """Return the table with only its first rows."""
        return replace(self, rows=self.rows[:rows])

    def condensed(self) -> tuple["Table[Item]", str]:
        """Return the table without columns whose cells are all equal, and a text that describes these columns."""
        if len(self.rows) < 2:
            return self, ""
        equal = [(column, cells[0]) for column, cells in self._visible if len({str(cell) for cell in cells}) == 1]
        texts = [" ".join(filter(None, (column.title, str(cell), column.unit))) for column, cell in equal]
        varying = [column for column, _ in self._visible if all(column is not each for each, _ in equal)]
        return replace(self, columns=varying), ", ".join(texts)

    def brief(self) -> "Table[Item]":
        """Return the table without the cells' details."""

        def shortened(column: Column[Item]) -> Column[Item]:
            return replace(column, cell=lambda row: column.shown(row)._replace(detail=""))

        return replace(self, columns=list(map(shortened, self.headings)))

    def within(self, width: int) -> "Table[Item]":
        """Return the table without the last columns that do not fit in a terminal of this width.

        A column that would make the keys wrap does not fit either, unless it is the first after the keys.
        """
        sizes = self._sizes()
        shown = len(next(_panels(sizes, width), ([], []))[0])
        fewest = 1 + sum(size.key for size in sizes)
        while shown > fewest and _total([size.most for size in sizes[:shown]]) > width:
            shown -= 1
        return replace(self, columns=self.headings[:shown])

    def records(self) -> list[dict[str, Any]]:
        """Return the records for files, one per row."""
        return [{key: value for each in self.columns for key, value in each.record(row).items()} for row in self.rows]

    def csv(self) -> str:
        """Return the records as CSV without formulas."""
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(name for column in self.columns if column.name for name in column.name.split(", "))
        writer.writerows(map(csv_cell, record.values()) for record in self.records())
        return output.getvalue()

    def json(self) -> str:
        return json_text(self.records())

    def markdown(self) -> list[str]:
        """Return the table's lines in Markdown, with units after the headings."""
        names = [f"{column.title} ({column.unit})" if column.unit else column.title for column in self.headings]
        cells = ([str(cell) for cell in row] for row in self.body)
        head, *rows = (f"| {' | '.join(map(markdown_cell, row))} |" for row in [names, *cells])
        return [head, "|" + "---|" * len(names), *rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table. Columns that do not fit are in further tables below it, with the same keys."""
        if self.title:
            yield Text(one_line(self.title), style="bold")
        rows = [[Text(one_line(str(cell)), style=cell.style) for cell in row] for row in self.body]
        heads, sizes = self._heads, self._sizes()
        for panel, widths in _panels(sizes, options.max_width):
            columns = [(index, width, sizes[index].words) for index, width in zip(panel, widths, strict=True)]
            yield from _text_lines([Text("\n".join(head), style="bold") for head in heads], columns, console, head=True)
            for row in rows:
                yield from _text_lines(row, columns, console)

    @property
    def _heads(self) -> list[list[str]]:
        """Return the lines above each column in the terminal: heading and unit."""
        return [[one_line(text) for text in (column.title, column.unit) if text] for column in self.headings]

    def _sizes(self) -> list["_Size"]:
        return [
            _Size(bool(column.kind), column.key, head, [one_line(str(cell)) for cell in cells])
            for (column, cells), head in zip(self._visible, self._heads, strict=True)
        ]


def _text_lines(
    cells: Sequence[Text], columns: Sequence[tuple[int, int, bool]], console: Console, head: bool = False
) -> Iterator[Text]:
    """Yield a row's lines. `columns` has each index, width, and whether it holds words. A head is bottom-aligned."""
    wrapped = [cells[index].wrap(console, width, overflow="fold") for index, width, _ in columns]
    height = max(map(len, wrapped))
    for number in range(height):
        line = Text()
        for (_, width, words), lines in zip(columns, wrapped, strict=True):
            place = number - (height - len(lines) if head else 0)
            piece = lines[place] if 0 <= place < len(lines) else Text()
            piece.rstrip()
            space = " " * (width - piece.cell_len)
            line = Text.assemble(line, *((piece, space) if words else (space, piece)), " " * COLUMN_GAP)
        line.rstrip()
        yield line


class _Size:
    """The possible widths of a column in the terminal: from `least` to `most`; at `unbroken` no word is broken."""

    def __init__(self, words: bool, key: bool, head: Sequence[str], cells: Sequence[str]) -> None:
        self.words, self.key = words, key
        longest = max((cell_len(word) for text in (*head, *cells) for word in text.split()), default=1)
        self.most = max(longest, *map(cell_len, [*head, *cells] if words else cells), 1)
        self.unbroken = longest if words else self.most
        self.least = self.unbroken if key or not words else min(longest, NARROWEST_WORDS)


def _panels(sizes: Sequence[_Size], width: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield groups of columns that fit side by side, with their widths."""
    keys = [index for index, size in enumerate(sizes) if size.key]
    pending = [index for index, size in enumerate(sizes) if not size.key]
    while pending or keys:
        fitting = len(pending)
        while fitting > 1 and _total([sizes[index].least for index in keys + pending[:fitting]]) > width:
            fitting -= 1
        panel = sorted(keys + pending[:fitting])
        yield panel, _widths([sizes[index] for index in panel], width)
        pending = pending[fitting:]
        if not pending:
            return


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + COLUMN_GAP * (len(widths) - 1)


def _widths(sizes: Sequence[_Size], width: int) -> list[int]:
    """Return the widths of columns: wide enough for words if possible, and for whole lines if there is room."""
    widths = [size.least for size in sizes]
    while _total(widths) > width and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    for targets in ([size.unbroken for size in sizes], [size.most for size in sizes]):
        while _total(widths) < width and (short := [i for i, most in enumerate(targets) if widths[i] < most]):
            widths[min(short, key=widths.__getitem__)] += 1
    return widths


class Line(NamedTuple):
    """A sentence before or after a table."""

    text: str
    style: str = ""  # in the terminal; bold also applies to Markdown

    def __rich__(self) -> Text:
        return Text(one_line(self.text), style=self.style)


OutputPart = Line | Table[Any]  # a part of a command's output


@dataclass(frozen=True)
class Output:
    """A command's output: lines and tables for people, and one table for files."""

    parts: Sequence[OutputPart]
    table: Table[Any]
    data: Any = None  # data for JSON; default: the table's records

    def written(self, form: str) -> str:
        """Return the output in one of FORMATS."""
        match form:
            case "text":
                console = Console(file=io.StringIO(), highlight=False, width=PIPED_WIDTH)
                print_parts(self.parts, console)
                return str(console.file.getvalue())  # type: ignore[attr-defined]
            case "markdown":
                return "\n".join(markdown_lines(self.parts)).strip("\n") + "\n"
            case "csv":
                return self.table.csv()
        return json_text(self.table.records() if self.data is None else self.data)

    def print(self, form: str, console: Console) -> None:
        """Print the output in one of FORMATS."""
        if form == "text":
            print_parts(self.parts, console)
        else:
            print(self.written(form), end="")


def print_parts(parts: Iterable[OutputPart], console: Console) -> None:
    """Print lines and tables. Outside a terminal, lines are not broken."""
    above: OutputPart | None = None
    for part in (each for each in parts if isinstance(each, Line) or each.rows):
        if isinstance(part, Table) or isinstance(above, Table):
            console.print()
        console.print(part, soft_wrap=isinstance(part, Line) and not console.is_terminal)
        above = part


def markdown_lines(parts: Iterable[OutputPart]) -> Iterator[str]:
    """Yield sentences as a list, and tables with their titles."""
    for part in parts:
        if isinstance(part, Line):
            text = _without_html(one_line(part.text))
            yield f"- **{text}**" if "bold" in part.style else f"- {text}"
        elif part.rows:
            yield from (
                "",
                *([f"{_without_html(one_line(part.title))}:", ""] if part.title else []),
                *part.markdown(),
                "",
            )


def text_table(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table[Sequence[object]]:
    def column(index: int, heading: str) -> Column[Sequence[object]]:
        return view(heading or " ", lambda row: str(row[index]), kind="text")

    return Table([column(*pair) for pair in enumerate(headings)], list(rows), title)


def meanings(columns: Iterable[Column[Any]]) -> dict[str, tuple[str, str]]:
    """Return name -> (unit, meaning) for the columns in files."""
    return {column.name: (column.of_value, column.meaning) for column in columns if column.name}


def one_line(text: str) -> str:
    """Return a text in one line with control characters escaped, so that it cannot control a terminal."""
    return printable(" ".join(re.split("[\n\r\t]+", text)))


def markdown_cell(text: str) -> str:
    """Escape a cell, so that it neither ends a column nor begins HTML."""
    return _without_html(re.sub(r"(\\*)\|", r"\1\1\\|", one_line(text)))


def _without_html(text: str) -> str:
    parts = CODE_SPAN.split(text)
    return "".join(part if part.startswith("`") else re.sub("<(?=[a-zA-Z/!?])", "&lt;", part) for part in parts)


def csv_cell(value: Any) -> Any:
    """Return a value for CSV, with an apostrophe before a text that a spreadsheet would compute."""
    if not isinstance(value, str):
        return value
    return printable(re.sub("\r\n?", "\n", value if _is_number(value) else FORMULA.sub("'", value)))


def csv_of(frame: "pd.DataFrame") -> str:
    """Return a frame as CSV without formulas."""
    return frame.map(csv_cell).to_csv(index=False)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def json_text(data: Any) -> str:
    """Return data as JSON in ASCII without control characters."""
    return json.dumps(data, indent=2).replace("\x7f", "\\u007f") + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
