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


def is_stored(value: Mapping[str, Any]) -> bool:
    """Return whether a mapping in a stored row names a text."""
    return value.keys() == {"text"} and isinstance(value["text"], str)


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
        named = [(column, value["text"]) for column, value in row.items() if type(value) is dict]
        return [text for text in named if text not in self._texts and (self.columns is None or text[0] in self.columns)]

    def restored(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a stored row with its texts in place, without nulls, and with `columns` only these.

        The row given is the one returned, unless `columns` leave something out. Equal texts of rows are one object in
        memory.
        """
        if self.columns is not None:
            row = {name: row[name] for name in self.columns if name in row}
        for name, value in row.items():
            kind = type(value)
            if kind is str:
                row[name] = sys.intern(value)
            elif kind is dict:
                row[name] = self._texts[name, value["text"]]
        for name in [name for name, value in row.items() if value is None]:
            del row[name]
        return row

    def entries(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the entries of a row: its texts that are not stored yet, which are not added, and then itself."""
        stored = {}
        for column, value in row.items():
            if type(value) is str and len(value) >= SHORTEST_TEXT:
                digest = digest_of(value)
                if (column, digest) not in self._texts:
                    yield {"event": "text", "column": column, "digest": digest, "text": value}
                stored[column] = {"text": digest}
            elif value is not None:
                stored[column] = value
        yield {"event": "trial", "row": stored}

    def stored(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the entries of a row, and add its texts."""
        for entry in self.entries(row):
            if entry["event"] == "text":
                self.add(entry)
            yield entry
