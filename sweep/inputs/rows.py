"""Reads the rows of files with prompts or traces: text, JSON, JSON lines, CSV, TSV and Parquet."""

import codecs
import csv
import io
import json
import re
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
LARGEST_PART = 64 << 20  # bytes of a trace whose rows are read: in memory they take up to 30 times as many
MOST_REASONS = 5  # maximum number of reasons for skipped rows that a plan lists
DIGITS = {"s": 0, "ms": -3, "us": -6, "ns": -9}  # power of ten of each unit of time, in s
_UNITS = "s sec secs seconds|ms msec millis milliseconds|us usec micros microseconds|ns nsec nanos nanoseconds"
UNIT_NAMES = {name: names.split()[0] for names in _UNITS.split("|") for name in names.split()}
UNIT_IN_NAME = re.compile(  # arrival_ms, time (s), arrivalMillis
    rf"(?:_|\W+|(?<=[a-z])(?=[A-Z]))(?i:({'|'.join(UNIT_NAMES)}))\W?$"
)
MOST_DIGITS = 21  # of a time before its decimal point
MOST_TOKENS_OF_A_TEXT = 10_000_000  # tokens of a prompt or an answer: more than any model accepts
csv.field_size_limit(1 << 30)  # a prompt may be longer than the module's limit of 128 KiB


class TraceColumns(NamedTuple):
    """The columns of a trace: arrival time, input length and output length of each request."""

    time: str
    input_tokens: str
    output_tokens: str
    unit: str  # unit of times that are given as numbers


SPEAKERS = {"role", "from", "speaker"}  # keys of a turn
CONVERSATIONS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("prompt", "text", "question", *CONVERSATIONS)  # columns that may hold a prompt, if no column is named
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
CHAT, PARENT, _ = SESSION_COLUMNS = ("chat_id", "parent_chat_id", "turn")  # of Qwen-Bailian
TRACE_LENGTHS = tuple(name for columns in TRACES for name in columns[1:3])
NULL_CELLS = ("NaN", "nan", "None", "null", "NULL", "<NA>")  # cells without a value, as libraries write them
FIRST_ROWS = 100  # rows that show which columns a file has


def simplified(name: str) -> str:
    """Return a name without case, blanks, underscores and hyphens, which differ between otherwise equal files."""
    return re.sub(r"[\W_]", "", name).lower()


KNOWN_COLUMNS = {
    simplified(name): name for name in (*PROMPT_COLUMNS, *TRACE_LENGTHS, *SESSION_COLUMNS, "hash_ids", "cluster")
}


@lru_cache(maxsize=1024)
def column_name(name: str) -> str:
    """Return the known column that a name means, e.g. output_tokens for `Output Tokens`; else the name."""
    return KNOWN_COLUMNS.get(simplified(name), name)


def _with_known_names(row: FileRow) -> FileRow:
    known = {name: other for name in row if (other := column_name(name)) not in row}
    if len({*known.values()}) < len(known):
        raise ValueError(f"columns {columns_of([known])} have the same meaning; expected different names")
    return {known.get(name, name): cell for name, cell in row.items()} if known else row


def columns_of(rows: Sequence[FileRow]) -> str:
    """Return the names of a file's columns for a message."""
    names = dict.fromkeys(name for row in rows[:FIRST_ROWS] for name in row)
    return shortened(", ".join(names).encode(errors="backslashreplace").decode() or "none")


def time_column(row: Mapping[str, Any], name: str = "timestamp") -> str:
    """Return a row's column of this name, in any case and also with a unit behind it; the name if the row has none."""
    return next((column for column in row if UNIT_IN_NAME.sub("", column).lower() == name.lower()), name)


def time_unit(column: str, default: str) -> str:
    """Return the unit in a column's name, e.g. ms of arrival_ms, or the default."""
    return UNIT_NAMES[named[1].lower()] if (named := UNIT_IN_NAME.search(column)) else default


def names_sessions(row: Mapping[str, Any]) -> bool:
    """Return whether a trace's row has the columns of Qwen-Bailian's sessions."""
    return not row.keys().isdisjoint(SESSION_COLUMNS)


def trace_columns(rows: Sequence[Mapping[str, Any]]) -> TraceColumns | None:
    """Return the columns of the trace that rows belong to, recognized by the length columns; None if unknown."""
    for row in rows[:FIRST_ROWS]:
        for columns in TRACES:
            if {columns.input_tokens, columns.output_tokens} <= row.keys():
                is_bailian = columns is MOONCAKE and any(map(names_sessions, rows[:FIRST_ROWS]))
                time, unit = time_column(row, columns.time), (BAILIAN if is_bailian else columns).unit
                return columns._replace(time=time, unit=time_unit(time, unit))
    return None


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
    """Return why a trace's rows cannot be sent, by row number from 1; one without a time only if others have times."""

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
    rows = read_rows(path, key, part=True)
    columns = trace_columns(rows)
    if columns is None:
        expected = "; ".join(f"{each.input_tokens}, {each.output_tokens}" for each in TRACES)
        problem = f"no columns with lengths or conversations among {columns_of(rows)}"
        raise ConfigError(f"{key}: {problem}; expected {expected}; {', '.join(CONVERSATIONS)}")
    faults = faults_of(rows, columns)
    check_faults(faults, len(rows), key, skip)
    sendable = {number: row for number, row in enumerate(rows, 1) if number not in faults}
    cells = ([whole_number(row.get(column)) for column in columns[1:3]] for row in sendable.values())
    lengths = [(inputs, outputs) for inputs, outputs in cells if inputs and outputs]
    return TraceRows(lengths, faults, sendable, columns)


def omissions(file: str, rows: int, faults: Mapping[int, str], size: int = 0) -> list[str]:
    """Return notes for the plan: the part of a trace of so many bytes that is read, and its skipped rows by reason."""
    part = [f"{file}: only its first {LARGEST_PART:,} of {size:,} bytes are read"] if size > LARGEST_PART else []
    reasons = Counter(fault.partition(";")[0] for fault in faults.values())
    causes = ", ".join(f"{reason} ({number})" for reason, number in reasons.most_common(MOST_REASONS))
    return part + ([f"{file}: {len(faults)} of {rows} rows skipped: {causes}"] if faults else [])


def read_rows(
    path: Path, key: str, or_else: str = "", first: int | None = None, any_ending: bool = False, part: bool = False
) -> list[FileRow]:
    """Return a file's rows, of a `part` those in its first bytes; with `any_ending`, unknown types are read as text."""
    if path.suffix.lower() not in READERS and not any_ending:
        problem = f"the ending {path.suffix} is unknown" if path.suffix else "a name without an ending"
        raise ConfigError(f"{key}: {problem}; expected a file ending in {', '.join(READERS)}{or_else}")
    if not path.is_file():
        raise ConfigError(f"{key}: no such file; expected a file ending in {', '.join(READERS)}{or_else}")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ConfigError(f"{key}: is {size:,} bytes long; expected at most {LARGEST_FILE:,}")
    return _parse_rows(path, key, path.stat().st_mtime_ns, first, LARGEST_PART if part else LARGEST_FILE)


@lru_cache(maxsize=16)
def _parse_rows(path: Path, key: str, changed: int, limit: int | None, most: int) -> list[FileRow]:
    try:
        rows = list(islice(READERS.get(path.suffix.lower(), _text_lines)(path, most), limit))
        rows = span_rows(rows) if rows and SPANS in rows[0] else rows
        rows = [_with_known_names(row) for row in rows]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{key}: line {line}: {error.reason} at byte {error.start}; expected UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{key}: is nested too deeply; expected a list of mappings") from None
    except (ValueError, OSError, ArrowException, csv.Error) as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from None
    if not rows:
        raise ConfigError(f"{key}: the file has no rows; expected at least one")
    return rows


def _text_lines(path: Path, most: int) -> Iterator[FileRow]:
    return ({"prompt": line} for line in _lines(_decoded_text(path, most)) if line.strip())


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice, so that a reader would silently drop one of its values."""


def _distinct(pairs: list[tuple[str, Any]]) -> FileRow:
    """Return a JSON object from its keys and values. Raises RepeatedKeyError."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RepeatedKeyError(f"key {shortened(repeated)} occurs twice in an object; expected different names")
    return content


def _json(path: Path, most: int, by_lines: bool) -> Iterator[FileRow]:
    """Return the rows of a JSON document or of JSON lines; under either ending a file may be either."""
    text, is_part = _decoded_text(path, most), path.stat().st_size > most
    is_list = text.lstrip().startswith("[")
    if is_list and is_part:
        return (_mapping(row, f"entry {number}") for number, row in enumerate(_entries(text), 1))
    if is_part and not is_list and ("\n" not in text or text[: text.find("\n")].strip() == "{"):
        raise ValueError(f"one JSON object of over {most:,} bytes; expected a list, JSON lines or a smaller file")
    if not is_list and (by_lines or is_part):
        return _json_lines(text)
    try:
        content = json.loads(text or "[]", object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.rstrip().count("\n"):
            return _json_lines(text)
        raise ValueError(f"not JSON ({error}); expected a list of mappings") from None
    if isinstance(content, dict):
        content = [content] if SPANS in content else _only_list(content)
    if not isinstance(content, list):
        raise ValueError("not a list; expected a list of mappings")
    return (_mapping(row, f"entry {number}") for number, row in enumerate(content, 1))


def _entries(text: str) -> Iterator[Any]:
    """Yield the whole entries at the start of a list in JSON."""
    decode, end = json.JSONDecoder(object_pairs_hook=_distinct).raw_decode, 0
    try:
        while (begin := text.find("{", end)) >= 0:
            entry, end = decode(text, begin)
            yield entry
    except json.JSONDecodeError as error:  # of the entry that was cut, which only lacks its end
        if error.pos < len(text.rstrip()) and not error.msg.startswith("Unterminated"):
            raise ValueError(f"not JSON ({error}); expected a list of mappings") from None


def _only_list(content: FileRow) -> list[Any]:
    """Return an object's only list of mappings or, of one conversation, the object itself. Raises ValueError."""
    lists = {name: entry for name, entry in content.items() if isinstance(entry, list)}
    lists = {name: entry for name, entry in lists.items() if entry and isinstance(entry[0], dict)}
    if any(column_name(name) in CONVERSATIONS and not SPEAKERS.isdisjoint(lists[name][0]) for name in lists):
        return [content]
    if len(lists) != 1:
        problem = f"{len(lists)} lists of mappings in an object with the keys {columns_of([content])}"
        raise ValueError(f"{problem}; expected a list of mappings, or one such list in an object")
    return next(iter(lists.values()))


def _json_lines(text: str) -> Iterator[FileRow]:
    for number, line in enumerate(_lines(text), 1):
        try:
            row = json.loads(line, object_pairs_hook=_distinct) if line.strip() else {}
        except RepeatedKeyError as error:
            raise ValueError(f"line {number}: {error}") from None
        except (ValueError, RecursionError):  # also raised by a number with thousands of digits
            row = None
        yield from [_mapping(row, f"line {number}")] if row != {} else []


def _lines(text: str) -> list[str]:
    # splitlines() would also split at U+2028; joined files have a byte order mark each
    return [line.removeprefix("\ufeff") for line in text.split("\n")]


def _decoded_text(path: Path, most: int, newline: str | None = None) -> str:
    """Return the text of a file's first `most` bytes, in UTF-8 or, with their byte order mark, in UTF-16 or UTF-32."""
    content = read_bounded(path, LARGEST_FILE, most)
    if path.stat().st_size > most:  # it ends with a line or, in one long line of JSON, with an object
        content = content[: content.rfind(b"\n") + 1] or content[: content.rfind(b"}") + 1]
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in content[:4]:
        raise ValueError("a binary file, or UTF-16 without a byte order mark; expected UTF-8")
    return io.TextIOWrapper(io.BytesIO(content), encoding, newline=newline).read()


def _mapping(entry: Any, where: str) -> FileRow:
    """Return a row; a bare text is a prompt, and a bare list of turns a conversation. Raises ValueError."""
    if isinstance(entry, str):
        return {"prompt": entry}
    if isinstance(entry, list) and entry and all(isinstance(turn, dict) for turn in entry):
        return {"messages": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a JSON object")
    return entry


def _separated(path: Path, most: int, delimiter: str) -> Iterator[FileRow]:
    with io.StringIO(_decoded_text(path, most, newline="").lstrip("\r\n"), newline="") as file:
        header = file.readline()
        file.seek(0)
        if delimiter not in header:  # e.g. a semicolon, of spreadsheets in countries with a decimal comma
            delimiter = next((mark for mark in (";", "\t", ",", "|") if mark in header), delimiter)
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
                    problem = f"row {number}: more cells than columns"
                    raise ValueError(f"{problem}; expected quotes around a cell's {delimiter!r}")
                yield {column: None if cell in NULL_CELLS else cell for column, cell in row.items()}
        except csv.Error as error:
            if path.stat().st_size > most and "unexpected end" in str(error):  # of a cell that was cut
                return
            raise ValueError(f"row {number + 1}: {error}; expected each quote closed before the next cell") from None


def _parquet(path: Path, most: int) -> Iterator[FileRow]:
    file, share = pq.ParquetFile(path), min(1.0, most / path.stat().st_size)
    rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
    return islice(rows, int(share * file.metadata.num_rows))


READERS: dict[str, Callable[[Path, int], Iterator[FileRow]]] = {
    ".txt": _text_lines,
    ".jsonl": partial(_json, by_lines=True),
    ".ndjson": partial(_json, by_lines=True),
    ".json": partial(_json, by_lines=False),
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".parquet": _parquet,
}
