"""Prints a benchmark's output, and writes it into a document between two marks."""

from collections.abc import Iterable
from pathlib import Path

from analysis.table import text_table

MARKS = ("<!-- table: begin -->", "<!-- table: end -->")


def markdown_table(headings: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """Return the lines of a table in Markdown; `headings` are separated by ` | `."""
    return text_table(headings.split(" | "), map(list, rows)).markdown()


def publish(lines: Iterable[str], document: Path | None = None, marks: tuple[str, str] = MARKS) -> None:
    """Print these lines, and write them between two marks of a document, which keeps the marks.

    Raises:
        ValueError: if the document lacks one of the marks.
    """
    lines = list(lines)
    print("\n".join(lines))
    if document is not None:
        write_section(document, marks, lines)


def write_section(document: Path, marks: tuple[str, str], lines: Iterable[str]) -> None:
    """Write these lines between two marks of a document. Raises ValueError if it lacks one of the marks."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise ValueError(f"{document}: lacks {marks[0]} with {marks[1]} after it")
    document.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")
