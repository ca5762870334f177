"""A row in the driver's memory: column numbers, and floats in one array, in a third of a dict's memory."""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any

_NUMBERS: dict[str, int] = {}  # names of all columns of all rows, in order of appearance
_COLUMNS: list[str] = []


class CompactRow(Mapping[str, Any]):
    """A row without nulls that is never changed."""

    __slots__ = ("_cells", "_float_numbers", "_floats", "_numbers")

    def __init__(self, row: Mapping[str, Any]) -> None:
        for column in row.keys() - _NUMBERS.keys():
            _NUMBERS[sys.intern(column)] = len(_COLUMNS)
            _COLUMNS.append(sys.intern(column))
        cells = sorted(zip([_NUMBERS[column] for column in row], row.values(), strict=True), key=itemgetter(0))
        self._floats = array("d", [cell for _, cell in cells if type(cell) is float])
        self._float_numbers = array("I", [number for number, cell in cells if type(cell) is float])
        self._cells = tuple([cell for _, cell in cells if type(cell) is not float])
        self._numbers = array("I", [number for number, cell in cells if type(cell) is not float])

    def __getitem__(self, column: str) -> Any:
        number = _NUMBERS[column]
        for numbers, cells in ((self._numbers, self._cells), (self._float_numbers, self._floats)):
            place = bisect_left(numbers, number)
            if place < len(numbers) and numbers[place] == number:
                return cells[place]
        raise KeyError(column)

    def __iter__(self) -> Iterator[str]:
        return (_COLUMNS[number] for number in (*self._numbers, *self._float_numbers))

    def __len__(self) -> int:
        return len(self._cells) + len(self._floats)


def dict_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row as a dict; for a CompactRow in a tenth of the time of reading it cell by cell."""
    if not isinstance(row, CompactRow):
        return dict(row)
    numbers, cells = [*row._numbers, *row._float_numbers], [*row._cells, *row._floats]
    return {_COLUMNS[number]: cell for number, cell in zip(numbers, cells, strict=True)}
