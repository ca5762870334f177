"""The part of a document that a benchmark writes, between two marks."""

from collections.abc import Iterable
from pathlib import Path


def write_section(document: Path, marks: tuple[str, str], lines: Iterable[str]) -> None:
    """Write these lines between two marks of a document, which stay. Raises ValueError if it lacks one of them."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise ValueError(f"{document}: lacks {marks[0]} with {marks[1]} after it")
    document.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")
