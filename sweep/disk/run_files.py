"""The files of a run: every path, every schema, and how to write them atomically.

A file is written in a hidden staging folder of OUT, under a name that does not end in .parquet, and renamed into place:
a glob over the data folders sees it complete or not at all. Times are in seconds and sizes in bytes; a value is null if
it is unknown or undefined. `sweep.numbers` defines the numbers, and the analysis package evaluates them. Every function
that reads a file raises FileNotFoundError if it is missing, and DamagedFile if it is incomplete.
"""

import itertools
import json
import math
import os
import shutil
import socket
import uuid
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from sweep.base import whole_file
from sweep.base.config import PERCENTILES, REPORT_FILE
from sweep.base.config import DamagedFile as DamagedFile
from sweep.base.masking import masked_here
from sweep.base.records import REQUEST_COLUMNS, UNKNOWN, Records, Sample
from sweep.base.whole_file import open_regular, read_bounded
from sweep.disk import row as trial_row
from sweep.disk.columns import derived_series
from sweep.disk.ledger_lines import checksums
from sweep.disk.tables import COMPACT, opened_table, read_table, write_sealed
from sweep.numbers.quantities.tokens import buffered_share
from sweep.numbers.quantity import is_buffered
from sweep.numbers.selection import measured

Row = Mapping[str, Any]

REQUEST_TYPES = {"d": pa.float64(), "i": pa.int32(), "b": pa.bool_(), "": pa.string()}  # by array type code
NULLS = {"d": math.nan, "i": UNKNOWN, "b": 0}  # the value in Records for a null in the file

PART_ROWS = 500  # trials that are converted to columns at a time

PARQUET: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list: pa.list_(pa.string()),
}

TELEMETRY_SCHEMA = pa.schema(
    [("time", pa.float64()), ("series", pa.string()), ("device", pa.string()), ("value", pa.float64())]
)


class TrialPaths:
    """The files of one trial in one attempt."""

    def __init__(self, run: "RunPaths", folder: Path) -> None:
        self.run, self.folder = run, folder
        self.requests = folder / "requests.parquet"
        self.telemetry = folder / "telemetry.parquet"
        self.trial = folder / "trial.parquet"


class RunPaths:
    """Every path of a run under its folder `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.plan = out / "plan.jsonl"
        self.ledger = out / "ledger.jsonl"
        self.status = out / "status.json"
        self.totals = out / "totals.json"
        self.trials = out / "trials.parquet"
        self.summary = out / "summary.csv"
        self.report = out / REPORT_FILE
        self.claims = out / "capacity.json"
        self.asked = out / "ask.json"
        self.figures = out / "figures"
        self.deployments = out / "deployments"
        self.compact = self.deployments / COMPACT
        self.tracking = out / "wandb"
        self.locks = out / "locks"

    def staging(self) -> Path:
        """Return a new staging folder for a file, named by host and process, since nodes share `out`."""
        return self.out / f".tmp-{socket.gethostname()}-{_pid_namespace()}-{os.getpid()}-{uuid.uuid4().hex}"

    def attempt(self, deployment_id: str, attempt: str) -> Path:
        """Return the folder of one launch of a deployment. An attempt writes only there."""
        return self.deployments / deployment_id / attempt

    def engine_log(self, deployment_id: str, attempt: str) -> Path:
        return self.attempt(deployment_id, attempt) / "engine.log"

    def trial(self, deployment_id: str, attempt: str, trial_id: str) -> TrialPaths:
        return TrialPaths(self, self.attempt(deployment_id, attempt) / trial_id)

    def clear_staging(self) -> None:
        """Remove unfinished files of killed processes on this host, but of none in another container of its name."""
        for folder in self.out.glob(f".tmp-{socket.gethostname()}-{_pid_namespace()}-*-*"):
            process = folder.name.split("-")[-2]
            if process.isdigit() and not psutil.pid_exists(int(process)):
                shutil.rmtree(folder, ignore_errors=True)


def _pid_namespace() -> int:
    """Return the number of the namespace in which a process id is unique; 0 if it is unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def write_whole(paths: RunPaths, target: Path, content: str | bytes | Callable[[Path], None]) -> None:
    """Write a file of the run atomically; `content` is text, bytes, or a function that writes to a given path."""
    whole_file.write_whole(target, content, paths.staging())


def _write_table(paths: RunPaths, target: Path, table: pa.Table, dictionary: Sequence[str] = ()) -> None:
    write_whole(paths, target, lambda staged: write_sealed([table], staged, dictionary))


# Requests ------------------------------------------------------------------------------------------------------------


def requests_table(records: Records) -> pa.Table:
    """Return one row per request: raw stamps and counts, and the series derived from them (null if undefined).

    `chunk_us` (large_list<uint32>, µs since `sent`) and `chunk_tokens` (large_list<uint16>) have one entry per chunk; a
    trial may have more chunks than a list with int32 offsets can hold.
    """
    offsets = np.frombuffer(records.offsets, np.int64)
    masked_errors = {error: error and masked_here(error) for error in set(records.error)}  # many are equal
    columns = {field: _request_column(getattr(records, field), code) for field, code in REQUEST_COLUMNS.items()}
    columns["error"] = pa.array([masked_errors[error] for error in records.error], pa.string())
    columns["chunk_us"] = _lists(offsets, np.frombuffer(records.chunk_us, np.uint32))
    columns["chunk_tokens"] = _lists(offsets, np.frombuffer(records.chunk_tokens, np.uint16))
    return pa.table(columns | _derived(records))


def _request_column(figures: Any, code: str) -> pa.Array:
    if not code:
        return pa.array(figures, pa.string())
    numbers = np.asarray(figures)
    unknown = numbers == UNKNOWN if code == "i" else np.isnan(numbers) if code == "d" else None
    return pa.array(numbers.astype(np.bool_) if code == "b" else numbers, REQUEST_TYPES[code], mask=unknown)


def _derived(records: Records) -> dict[str, pa.Array]:
    buffered = is_buffered(buffered_share(records, measured(records)))
    nothing = np.full(len(records), math.nan)
    return {
        series.name: _request_column(nothing if series.spaced and buffered else series.function(records), "d")
        for series in derived_series()
    }


def _lists(offsets: Any, entries: Any) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(entries))


def write_requests(paths: TrialPaths, records: Records) -> None:
    texts = [column for column, code in REQUEST_COLUMNS.items() if not code and column != "request_id"]
    _write_table(paths.run, paths.requests, requests_table(records), texts)


def read_requests(path: Path) -> Records:
    """Read the Records of a requests.parquet; derived columns are not read, since they are computed from Records."""
    records = Records()
    with opened_table(path) as file:
        for group in range(file.num_groups):
            _append(records, file.group(group).combine_chunks())
    return records


def _append(records: Records, table: pa.Table) -> None:
    for field, code in REQUEST_COLUMNS.items():
        buffer = getattr(records, field)
        if field in table.column_names:
            column = table[field]
        else:  # an older version did not write it
            column = pa.chunked_array([pa.nulls(table.num_rows, REQUEST_TYPES[code])])
        if code:
            _extend(buffer, column.cast(pa.int8() if code == "b" else column.type).fill_null(NULLS[code]), code)
        else:
            buffer += column.to_pylist() if field == "request_id" else _repeated(column)
    chunks = table["chunk_us"].combine_chunks()
    _extend(records.offsets, records.offsets[-1] + np.cumsum(chunks.value_lengths().to_numpy()), "q")
    _extend(records.chunk_us, chunks.flatten(), "I")
    _extend(records.chunk_tokens, table["chunk_tokens"].combine_chunks().flatten(), "H")


def _repeated(texts: pa.ChunkedArray) -> list[str | None]:
    encoded = texts.combine_chunks().dictionary_encode()
    words = encoded.dictionary.to_pylist()
    return [None if index is None else words[index] for index in encoded.indices.to_pylist()]


def _extend(buffer: "array[Any]", figures: Any, code: str) -> None:
    buffer.frombytes(np.ascontiguousarray(figures, code).view(np.uint8).data)


# Telemetry -----------------------------------------------------------------------------------------------------------


def write_telemetry(paths: TrialPaths, samples: Sequence[Sample]) -> None:
    table = pa.Table.from_pylist([sample._asdict() for sample in samples], TELEMETRY_SCHEMA)
    _write_table(paths.run, paths.telemetry, table, ["series", "device"])


def read_telemetry(path: Path) -> list[Sample]:
    """Read the Samples of a telemetry.parquet, in the order in which they were taken."""
    return [Sample(**row) for row in read_table(path, TELEMETRY_SCHEMA.names).to_pylist()]


# Trials --------------------------------------------------------------------------------------------------------------


def trial_schema(percentiles: Iterable[float] = PERCENTILES) -> dict[str, pa.DataType]:
    """Return the columns that every trials row has, in order. The experiment's axes follow under their dotted keys."""
    return {column: PARQUET[type_] for column, type_ in trial_row.schema(percentiles).items()}


def trials_table(rows: Collection[Row]) -> pa.Table:
    """Return rows as schema columns, then axes. Raises ValueError, naming the column, for a value of the wrong type."""
    return pa.concat_tables(trials_parts(rows))


def trials_parts(rows: Collection[Row]) -> Iterator[pa.Table]:
    """Yield the table of trials in parts of a few hundred rows.

    `rows` is iterated three times and may create rows lazily: as dicts they need many times the table's memory.
    """
    percentiles, names = set[str | None](), dict[str, None]()
    for row in rows:
        percentiles.add(row.get("percentiles"))
        names |= dict.fromkeys(row)
    schema = trial_schema(trial_row.merged_percentiles(percentiles) if percentiles else PERCENTILES)
    axes = {axis: list[Any]() for axis in names if axis not in schema}
    for row in rows:
        for axis, cells in axes.items():
            cells.append(row.get(axis))
    typed = {axis: _column(axis, cells) for axis, cells in axes.items()}  # the type depends on all values
    walk = iter(rows)
    for begin in range(0, max(1, len(rows)), PART_ROWS):
        batch = list(itertools.islice(walk, PART_ROWS))
        columns = {name: _column(name, [row.get(name) for row in batch], type_) for name, type_ in schema.items()}
        yield pa.table(columns | {axis: cells[begin : begin + len(batch)] for axis, cells in typed.items()})


def _column(column: str, cells: Sequence[Any], type_: pa.DataType | None = None) -> pa.Array:
    """Return a column of a given type. Without a type: null, numbers or booleans if all values fit, otherwise text.

    This is stricter than pyarrow, which silently turns 1.5 into an integer and True into a number.
    """
    if any(PARQUET.get(plain) != type_ for plain in {type(cell) for cell in cells} - {type(None)}):  # this is rare
        cells = [_plain(cell) for cell in cells]
    kinds = {type(cell) for cell in cells} - {type(None)}
    if type_ is None:
        type_ = PARQUET[kinds.pop()] if len(kinds) == 1 else pa.float64() if kinds == {int, float} else pa.string()
    if pa.types.is_string(type_):
        cells = [cell if cell is None else str(cell) for cell in cells]
    fitting = {plain for plain, parquet in PARQUET.items() if parquet == type_ or (plain, type_) == (int, pa.float64())}
    try:
        if pa.types.is_string(type_) or kinds <= fitting:
            return pa.array(cells, type_, from_pandas=True)  # NaN becomes null
        wrong = next(cell for cell in cells if cell is not None and type(cell) not in fitting)
    except (OverflowError, pa.ArrowInvalid):
        wrong = max((cell for cell in cells if cell is not None), key=abs)
    raise ValueError(f"{column}={wrong!r}: expected a value of type {type_}")


def _plain(cell: Any) -> Any:
    """Return a value as plain Python or Parquet data: no numpy scalars, no NaN, nested data as JSON."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, float) and math.isnan(cell):
        return None
    if isinstance(cell, Mapping | list | tuple):
        return json.dumps(cell, default=str)
    return cell


def write_trial(paths: TrialPaths, row: Row) -> None:
    """Write the row of one trial. Call it last: the file exists only if the trial's other files do."""
    _write_table(paths.run, paths.trial, trials_table([row]))


def write_trials(paths: RunPaths, rows: Collection[Row]) -> bool:
    """Write exactly these rows to trials.parquet; return False if the file already holds them."""
    dictionary = ["experiment", "backend", "model", "workload", "outcome"]

    def write(staged: Path) -> None:
        write_sealed(trials_parts(rows), staged, dictionary)

    return whole_file.write_whole(paths.trials, write, paths.staging(), keep_equal=True)


def read_trials(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a trials.parquet, or the single row of a trial.parquet, with the columns that they have."""
    return list(read_table(path).to_pylist())


def read_claims(paths: RunPaths) -> dict[str, dict[str, Any]]:
    """Return the claims of a search for a capacity, by point; none without a search. Raises DamagedFile."""
    return _read_records(paths.claims)


def read_questions(paths: RunPaths) -> dict[str, dict[str, Any]]:
    """Return the answers of a run's questions, by name; none without a question. Raises DamagedFile."""
    return _read_records(paths.asked)


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads(read_bounded(path))) if path.exists() else {}
    except (TypeError, ValueError) as error:
        raise DamagedFile(path, str(error)) from None


def all_claim_lines(claims: Mapping[str, Mapping[str, Any]], run: str = "") -> list[str]:
    """Return the lines of a run's claims, below the run's name, and below each point's if there are several."""
    lines = [run] if run and claims else []
    for point, claim in claims.items():
        lines += [*([point] if len(claims) > 1 else []), *claim["lines"]]
    return lines


# Plan ----------------------------------------------------------------------------------------------------------------


def write_plan(paths: RunPaths, entries: Iterable[Row]) -> None:
    """Write plan.jsonl, one JSON object per line; `Plan.entries` defines the content."""
    first, *others = entries
    lines = [checksums.sealed({**first, "lines": 1 + len(others)}), *map(checksums.sealed, others)]
    write_whole(paths, paths.plan, b"".join(lines))


def read_plan(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a plan.jsonl."""
    return list(plan_entries(path))


def plan_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a plan.jsonl, one at a time."""
    with open_regular(path) as file:
        yield from _plan_entries(path, file)


def read_experiment(path: Path) -> dict[str, Any]:
    """Return the first entry of a plan.jsonl, which describes the experiment as a whole, without reading the rest."""
    with open_regular(path) as file:
        return next(_plan_entries(path, file), {})


def _plan_entries(path: Path, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the entries of a plan. Raises DamagedFile if a line is damaged or missing."""

    def refuse(number: int, line: bytes, problem: str) -> None:
        raise DamagedFile(path, f"line {number}: {problem}")

    expected, number = None, 0
    for entry in checksums.entries(lines, on_damage=refuse):
        number += 1
        expected = expected or entry.pop("lines", None)
        yield entry
    if number == 0 or number != (expected or number):
        raise DamagedFile(path, f"{number} lines, expected {expected or 'at least one'}")
