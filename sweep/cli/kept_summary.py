"""The summary that a command prints at its end, kept for the next one: nothing is computed again for the same results.

It is kept beside the results (`.summary.json`), with what it was made from: the trials, the plan, the program, the
folder's name and the form of the terminal. If any of these differs, it is made anew.
"""

import warnings
import zlib
from collections.abc import Callable
from typing import Any

from rich.console import Console

from sweep.base import provenance
from sweep.disk.entries.lines import sealed, unsealed
from sweep.disk.run_files import RunPaths, write_whole

KEPT_SUMMARY = ".summary.json"


def print_summary(
    paths: RunPaths, console: Console, metrics: str, make: Callable[[], None], rebuild: bool = False
) -> None:
    """Print what `make` prints on the console, and keep it; with `rebuild` also where it is kept already."""
    source = _source(paths, console, metrics)
    kept = None if rebuild or source is None else _kept(paths)
    if kept is not None and kept.get("source") == source:
        console.file.write(kept["text"])
        return
    with warnings.catch_warnings(record=True) as caught, console.capture() as capture:
        make()
    console.file.write(capture.get())
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if source is not None and not caught:  # a warning belongs to the files as they were when they were read
        write_whole(paths, paths.out / KEPT_SUMMARY, sealed({"source": source, "text": capture.get()}))


def _kept(paths: RunPaths) -> dict[str, Any] | None:
    try:
        content, vouched = unsealed((paths.out / KEPT_SUMMARY).read_bytes())
    except (FileNotFoundError, ValueError):  # it is only a copy
        return None
    return content if vouched else None


def _source(paths: RunPaths, console: Console, metrics: str) -> list[Any] | None:
    """Return all that the summary is made from; None if it is not known, e.g. if files differ from their commit."""
    program = provenance.program_version()
    if program is None:
        return None
    try:
        results = [zlib.crc32(path.read_bytes()) for path in (paths.trials, paths.plan)]
    except FileNotFoundError:
        return None
    tables = sorted([path.name, path.stat().st_size] for path in paths.compact.glob("*.parquet"))
    return [program, str(paths.out), *results, tables, metrics, console.width, console.color_system, console.encoding]
