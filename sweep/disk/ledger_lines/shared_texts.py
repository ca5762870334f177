"""The bulky texts of a ledger's rows, stored once and named by their digests.

Most of a row is text that others have too: the versions of its environment's packages, the resolved config, the
engine's facts. Each such text is an entry of its own, before the first row that has it; a row has `{"text": digest}` in
its place.
"""

import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

SHORTEST_TEXT = 200  # characters of a text that is stored by itself
TEXT_ENTRY = {"column": str, "digest": str, "text": str}  # what the entry of a text has


def digest_of(text: str) -> str:
    """Return the name of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def is_stored(cell: Mapping[str, Any]) -> bool:
    """Return whether a mapping in a stored row names a text."""
    return cell.keys() == {"text"} and isinstance(cell["text"], str)


class Texts:
    """The texts that a ledger has, by column and digest."""

    def __init__(self, columns: Collection[str] | None = None) -> None:
        """With `columns` only the texts of these are kept."""
        self.columns = columns
        self._texts: dict[tuple[str, str], str] = {}

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keep the text of an entry."""
        column = sys.intern(entry["column"])
        if self.columns is None or column in self.columns:
            self._texts[column, entry["digest"]] = entry["text"]

    def missing(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return column and digest of each text that a stored row names and nobody has added."""
        named = [(column, cell["text"]) for column, cell in row.items() if type(cell) is dict]
        return [text for text in named if text not in self._texts and (self.columns is None or text[0] in self.columns)]

    def restored(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a stored row with its texts in place, without nulls, and with `columns` only these.

        The row given is the one returned, unless `columns` leave something out. Equal texts of rows are one object in
        memory.
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
        """Yield the entries of a row: its texts that are not stored yet, which are not added, and then itself."""
        stored = {}
        for column, cell in row.items():
            if type(cell) is str and len(cell) >= SHORTEST_TEXT:
                digest = digest_of(cell)
                if (column, digest) not in self._texts:
                    yield {"event": "text", "column": column, "digest": digest, "text": cell}
                stored[column] = {"text": digest}
            elif cell is not None:
                stored[column] = cell
        yield {"event": "trial", "row": stored}

    def stored(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the entries of a row, and add its texts."""
        for entry in self.entries(row):
            if entry["event"] == "text":
                self.add(entry)
            yield entry
