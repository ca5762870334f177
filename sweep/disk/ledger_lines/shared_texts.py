"""The long texts in a ledger's rows, each stored once and referred to by its digest.

Most of a row is text that it shares with other rows: package versions, the resolved config, the engine's facts. Each of
these texts is a separate entry before the first row that contains it. The row contains `{"text": digest}` instead.
"""

import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sweep.disk.ledger_lines.compact_row import dict_of_row

SHORTEST_TEXT = 200  # characters; shorter texts stay in their row


def digest_of(text: str) -> str:
    """Return the digest that rows use to refer to a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


class Texts:
    """The texts in a ledger, by column and digest."""

    def __init__(self, columns: Collection[str] | None = None) -> None:
        """With `columns`, keep only the texts of these columns."""
        self.columns = columns
        self._texts: dict[tuple[str, str], str] = {}

    def add(self, entry: Mapping[str, Any]) -> None:
        """Store the text of an entry."""
        column = sys.intern(entry["column"])
        if self.columns is None or column in self.columns:
            self._texts[column, entry["digest"]] = entry["text"]

    def missing(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return column and digest of each text that a stored row refers to but that has not been added."""
        named = [(column, cell["text"]) for column, cell in row.items() if type(cell) is dict]
        return [text for text in named if text not in self._texts and (self.columns is None or text[0] in self.columns)]

    def restored(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a stored row with its texts filled in and without nulls; with `columns`, only these columns.

        The row is changed in place, unless `columns` excludes some columns. Equal texts in several rows are one object
        in memory.
        """
        if self.columns is not None:
            row = {column: row[column] for column in self.columns if column in row}
        for column, cell in row.items():
            cell_type = type(cell)
            if cell_type is str:
                row[column] = sys.intern(cell)
            elif cell_type is dict:
                row[column] = self._texts[column, cell["text"]]
        for column in [column for column, cell in row.items() if cell is None]:
            del row[column]
        return row

    def entries(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the entries for a row: texts that are not stored yet, then the row. The texts are not added here."""
        stored = {}
        for column, cell in dict_of_row(row).items():
            if type(cell) is str and len(cell) >= SHORTEST_TEXT:
                digest = digest_of(cell)
                if (column, digest) not in self._texts:
                    yield {"event": "text", "column": column, "digest": digest, "text": cell}
                stored[column] = {"text": digest}
            elif cell is not None:
                stored[column] = cell
        yield {"event": "trial", "row": stored}

    def stored(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the entries for a row, and add its texts."""
        for entry in self.entries(row):
            if entry["event"] == "text":
                self.add(entry)
            yield entry
