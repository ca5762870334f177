"""The rows of the files that people keep prompts and traces in: text, JSON, JSON lines, CSV, TSV and Parquet."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pyarrow import ArrowException

FileRow = dict[str, Any]
csv.field_size_limit(1 << 30)  # a prompt may be longer than the 128 KiB that the module allows


class TraceColumns(NamedTuple):
    """The columns of a trace: when a request came, how long it and its answer were."""

    time: str
    input_tokens: str
    output_tokens: str
    unit: str  # of a time that is a number


TRACES = (
    TraceColumns("timestamp", "input_tokens", "output_tokens", "s"),
    TraceColumns("TIMESTAMP", "ContextTokens", "GeneratedTokens", "s"),  # Azure's LLM inference traces, 2023 and 2024
    TraceColumns("timestamp", "input_length", "output_length", "ms"),  # Mooncake's
    TraceColumns("Timestamp", "Request tokens", "Response tokens", "s"),  # BurstGPT's
)


def trace_columns(row: Mapping[str, Any]) -> TraceColumns | None:
    """Return the columns of the trace that a row is of, by the names of its lengths; None if they are unknown."""
    return next((each for each in TRACES if {each.input_tokens, each.output_tokens} <= set(row)), None)


def read_rows(path: Path, key: str, or_else: str = "", first: int | None = None) -> list[FileRow]:
    """Return the rows of a file, its `first` ones if that is given.

    Raises ValueError, in one line that begins with `key`, for a file that is missing, empty or not what its name says;
    `or_else` are other values that are allowed in place of a path.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{key}: {_problem(path)}; expected a file ending in {', '.join(READERS)}{or_else}")
    if not path.is_file():
        raise ValueError(f"{key}: no such file; expected a file ending in {', '.join(READERS)}{or_else}")
    return _parse_rows(path, key, path.stat().st_mtime_ns, first)


def _problem(path: Path) -> str:
    return f"the ending {path.suffix} is not known" if path.suffix else "a name without an ending"


@lru_cache(maxsize=16)
def _parse_rows(path: Path, key: str, changed: int, first: int | None) -> list[FileRow]:
    try:
        rows = list(islice(READERS[path.suffix](path), first))
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {error.reason} at byte {error.start}; expected UTF-8") from None
    except (ValueError, OSError, ArrowException, csv.Error) as error:
        raise ValueError(f"{key}: {str(error).splitlines()[0]}") from None
    if not rows:
        raise ValueError(f"{key}: is empty; expected at least one line")
    return rows


def _text_lines(path: Path) -> Iterator[FileRow]:
    """One prompt a line."""
    return ({"prompt": line} for line in _lines(path) if line.strip())


def _json_lines(path: Path) -> Iterator[FileRow]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError:
            row = None
        yield from [_mapping(row, f"line {number}")] if row != {} else []


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would end lines at U+2028 in a text too


def _json(path: Path) -> Iterator[FileRow]:
    """A list of mappings, as ShareGPT's file is."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig") or "[]")
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected a list of mappings") from None
    if not isinstance(content, list):
        raise ValueError("not a list; expected a list of mappings")
    return (_mapping(row, f"entry {number}") for number, row in enumerate(content, 1))


def _mapping(value: Any, where: str) -> FileRow:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON mapping")
    return value


def _separated(path: Path, delimiter: str) -> Iterator[FileRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter=delimiter):
            yield {column: value for column, value in row.items() if column is not None}


def _parquet(path: Path) -> Iterator[FileRow]:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
        yield from batch.to_pylist()


READERS: dict[str, Callable[[Path], Iterator[FileRow]]] = {
    ".txt": _text_lines,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".parquet": _parquet,
}
