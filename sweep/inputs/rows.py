"""Reads the rows of files with prompts or traces: text, JSON, JSON lines, CSV, TSV and Parquet."""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pyarrow import ArrowException

from sweep.base.config import ConfigError, shortened
from sweep.base.whole_file import LARGEST_FILE, read_bounded
from sweep.inputs.sessions.spans import INPUT_TOKENS, OUTPUT_TOKENS, SPANS, START, span_rows

FileRow = dict[str, Any]
MOST_REASONS = 5  # maximum number of reasons for skipped rows that a plan lists
DIGITS = {"s": 0, "ms": -3, "us": -6, "ns": -9}  # power of ten of each unit of time, in s
MOST_DIGITS = 21  # of a time before its decimal point
MOST_TOKENS_OF_A_TEXT = 10_000_000  # tokens of a prompt or an answer: more than any model accepts
csv.field_size_limit(1 << 30)  # a prompt may be longer than the module's limit of 128 KiB


class TraceColumns(NamedTuple):
    """The columns of a trace: arrival time, input length and output length of each request."""

    time: str
    input_tokens: str
    output_tokens: str
    unit: str  # unit of times that are given as numbers


BURSTGPT = TraceColumns("Timestamp", "Request tokens", "Response tokens", "s")
MOONCAKE = TraceColumns("timestamp", "input_length", "output_length", "ms")
OTEL = TraceColumns(START, INPUT_TOKENS, OUTPUT_TOKENS, "ns")  # OpenTelemetry's spans of calls of a model
BAILIAN = MOONCAKE._replace(unit="s")
TRACES = (
    TraceColumns("timestamp", "input_tokens", "output_tokens", "s"),
    TraceColumns("TIMESTAMP", "ContextTokens", "GeneratedTokens", "s"),  # Azure's LLM inference traces, 2023 and 2024
    MOONCAKE,
    BURSTGPT,
    OTEL,
)


def trace_columns(row: Mapping[str, Any]) -> TraceColumns | None:
    """Return the columns of the trace that a row belongs to, recognized by the length columns; None if unknown."""
    columns = next((each for each in TRACES if {each.input_tokens, each.output_tokens} <= set(row)), None)
    bailian = columns is MOONCAKE and not row.keys().isdisjoint(("chat_id", "parent_chat_id", "turn"))
    return BAILIAN if bailian else columns


def parse_time(cell: Any) -> tuple[Decimal, bool]:
    """Return a cell's exact time (a float cannot hold a date with ns), and whether it is an ISO 8601 date.

    A date becomes s since 1970; a number has the unit of its column. Raises ValueError.
    """
    text = str(cell).strip()
    with suppress(InvalidOperation):
        if (number := Decimal(text)).is_finite() and number.adjusted() >= MOST_DIGITS:
            raise ValueError(f"{text} has more than {MOST_DIGITS} digits")
        return number, False
    moment = datetime.fromisoformat(text)
    return Decimal((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()), True


def seconds_of(cell: Any, unit: str) -> Decimal:
    """Return a cell's time in s; `unit` is the unit of numbers. Raises ValueError."""
    number, is_date = parse_time(cell)
    if not number.is_finite():
        raise ValueError(f"{cell} is not finite")
    return number if is_date else number.scaleb(DIGITS[unit])


def whole_number(cell: Any) -> int | None:
    """Return a number of tokens, at least 1, from a cell; 4.0 and "4.0" count as 4. Return None for anything else."""
    try:
        number = 0.0 if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if 1 <= number <= MOST_TOKENS_OF_A_TEXT and number.is_integer() else None


def faults_of(rows: Sequence[FileRow], columns: TraceColumns) -> dict[int, str]:
    """Return why a trace's rows cannot be sent, by row number from 1, e.g. because a request failed.

    A row without a time has a fault if any other row has a time.
    """

    def is_missing(time: Any) -> bool:
        return time in (None, "") or time != time

    faults, timed = {}, not all(is_missing(row.get(columns.time)) for row in rows)
    for number, row in enumerate(rows, 1):
        for column in (columns.input_tokens, columns.output_tokens):
            if number not in faults and whole_number(row.get(column)) is None:
                faults[number] = f"{column}={shortened(repr(row.get(column)))}; expected a whole number of at least 1"
        if timed and is_missing(time := row.get(columns.time)):
            faults.setdefault(number, f"{columns.time}={time!r}; expected a time")
    return faults


def check_faults(faults: Mapping[int, str], rows: int, key: str, skip: bool) -> None:
    """Raise ConfigError for rows that cannot be sent; with `skip`, only if no row can be sent."""
    for number, fault in list(faults.items())[:1]:
        if len(faults) == rows:
            raise ConfigError(f"{key}: none of {rows} rows can be sent: row {number}: {fault}")
        if not skip:
            remedy = "workload.skip_unsendable=true skips them"
            raise ConfigError(f"{key}: row {number}: {fault}; {len(faults)} of {rows} rows cannot be sent; {remedy}")


class TraceRows(NamedTuple):
    """The rows of a trace with their input and output tokens, and why other rows cannot be sent, by row number."""

    lengths: list[tuple[int, int]]
    faults: dict[int, str]
    rows: dict[int, FileRow]
    columns: TraceColumns


def read_trace(path: Path, key: str, skip: bool) -> TraceRows:
    """Return the lengths in a trace's rows. Raises ConfigError for rows that cannot be sent, unless `skip` is set."""
    rows = read_rows(path, key)
    columns = trace_columns(rows[0])
    if columns is None:
        expected = "; ".join(f"{each.input_tokens}, {each.output_tokens}" for each in TRACES)
        raise ConfigError(f"{key}: no columns with lengths; expected {expected}")
    faults = faults_of(rows, columns)
    check_faults(faults, len(rows), key, skip)
    sendable = {number: row for number, row in enumerate(rows, 1) if number not in faults}
    cells = ([whole_number(row.get(column)) for column in columns[1:3]] for row in sendable.values())
    lengths = [(inputs, outputs) for inputs, outputs in cells if inputs and outputs]
    return TraceRows(lengths, faults, sendable, columns)


def omissions(file: str, rows: int, faults: Mapping[int, str]) -> list[str]:
    """Return a note for the plan that counts a file's skipped rows by reason; an empty list if all are sent."""
    reasons = Counter(fault.partition(";")[0] for fault in faults.values())
    causes = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common(MOST_REASONS))
    return [f"{file}: {len(faults)} of {rows} rows skipped: {causes}"] if faults else []


def read_rows(
    path: Path, key: str, or_else: str = "", first: int | None = None, any_ending: bool = False
) -> list[FileRow]:
    """Return the rows of a file, or only the `first` rows; with `any_ending`, unknown file types are read as text."""
    if path.suffix.lower() not in READERS and not any_ending:
        problem = f"the ending {path.suffix} is unknown" if path.suffix else "a name without an ending"
        raise ConfigError(f"{key}: {problem}; expected a file ending in {', '.join(READERS)}{or_else}")
    if not path.is_file():
        raise ConfigError(f"{key}: no such file; expected a file ending in {', '.join(READERS)}{or_else}")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ConfigError(f"{key}: is {size:,} bytes long; expected at most {LARGEST_FILE:,}")
    return _parse_rows(path, key, path.stat().st_mtime_ns, first)


@lru_cache(maxsize=16)
def _parse_rows(path: Path, key: str, changed: int, limit: int | None) -> list[FileRow]:
    try:
        rows = list(islice(READERS.get(path.suffix.lower(), _text_lines)(path), limit))
        rows = span_rows(rows) if rows and SPANS in rows[0] else rows
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{key}: line {line}: {error.reason} at byte {error.start}; expected UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{key}: is nested too deeply; expected a list of mappings") from None
    except (ValueError, OSError, ArrowException, csv.Error) as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from None
    if not rows:
        raise ConfigError(f"{key}: the file is empty; expected at least one line")
    return rows


def _text_lines(path: Path) -> Iterator[FileRow]:
    return ({"prompt": line} for line in _lines(path) if line.strip())


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice, so that a reader would silently drop one of its values."""


def _distinct(pairs: list[tuple[str, Any]]) -> FileRow:
    """Return a JSON object from its keys and values. Raises RepeatedKeyError."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RepeatedKeyError(f"key {shortened(repeated)} occurs twice in an object; expected different names")
    return content


def _json_lines(path: Path) -> Iterator[FileRow]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line, object_pairs_hook=_distinct) if line.strip() else {}
        except RepeatedKeyError as error:
            raise ValueError(f"line {number}: {error}") from None
        except (ValueError, RecursionError):  # also raised by a number with thousands of digits
            row = None
        yield from [_mapping(row, f"line {number}")] if row != {} else []


def _lines(path: Path) -> list[str]:
    lines = _decoded_text(path).split("\n")  # splitlines() would also split at U+2028
    return [line.removeprefix("\ufeff") for line in lines]  # joined files have a byte order mark each


def _decoded_text(path: Path, newline: str | None = None) -> str:
    """Return a file's whole text, in UTF-8 or, if it begins with that byte order mark, in UTF-16."""
    content = read_bounded(path)
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return io.TextIOWrapper(io.BytesIO(content), encoding, newline=newline).read()


def _json(path: Path) -> Iterator[FileRow]:
    try:
        content = json.loads(_decoded_text(path) or "[]", object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected a list of mappings") from None
    content = [content] if isinstance(content, dict) and SPANS in content else content
    if not isinstance(content, list):
        raise ValueError("not a list; expected a list of mappings")
    return (_mapping(row, f"entry {number}") for number, row in enumerate(content, 1))


def _mapping(entry: Any, where: str) -> FileRow:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a JSON object")
    return entry


def _separated(path: Path, delimiter: str) -> Iterator[FileRow]:
    with io.StringIO(_decoded_text(path, newline=""), newline="") as file:
        header = file.readline()
        file.seek(0)
        if delimiter not in header and ";" in header:  # spreadsheets use it in countries with a decimal comma
            delimiter = ";"
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)  # strict: an open quote would hide rows
        number = 0
        try:
            columns = [column.strip() for column in reader.fieldnames or ()]
            repeated = (column for column, number in Counter(columns).items() if column and number > 1)
            if twice := next(repeated, None):
                raise ValueError(f"column {twice} occurs twice; expected different names")
            reader.fieldnames = columns
            for number, row in enumerate(reader, 1):
                if any(row.pop(None, ())):  # the cells beyond the last column
                    raise ValueError(
                        f"row {number}: more cells than columns; expected quotes around a cell's {delimiter!r}"
                    )
                yield dict(row)
        except csv.Error as error:
            raise ValueError(f"row {number + 1}: {error}; expected each quote closed before the next cell") from None


def _parquet(path: Path) -> Iterator[FileRow]:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
        yield from batch.to_pylist()


READERS: dict[str, Callable[[Path], Iterator[FileRow]]] = {
    ".txt": _text_lines,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".parquet": _parquet,
}
