"""The figures of a trial's requests, read from its file a row group at a time: what quantiles of any number need.

It imports no pandas and nothing of the analysis, so that a process that only reads starts in a second.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sweep.disk.run_files import DamagedFile, opened_table
from sweep.numbers.gap_histogram import GAP_BINS, Counts, count_gaps

SERIES = ("ttft", "e2el", "tpot")


@dataclass
class RequestFigures:
    """A trial's measured requests: their latencies in s, +∞ of those that failed, and a histogram of their gaps."""

    series: dict[str, NDArray[np.float64]]
    gaps: Counts = field(default_factory=lambda: np.zeros(GAP_BINS, np.int64))
    requests: int = 0


def read_figures(path: Path) -> "RequestFigures | DamagedFile":
    """The figures in a requests.parquet; the error, which names the file, if it cannot be read."""
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in SERIES}
    figures = RequestFigures({})
    try:
        with opened_table(path) as file:
            for group in range(file.num_row_groups):
                _add_group(file, group, figures, parts)
    except FileNotFoundError:
        return DamagedFile(path, "there is no such file")
    except DamagedFile as error:
        return error
    figures.series = {name: np.concatenate(values) if values else np.empty(0) for name, values in parts.items()}
    return figures


def _add_group(
    file: pq.ParquetFile, group: int, figures: RequestFigures, parts: dict[str, list[NDArray[np.float64]]]
) -> None:
    """Add a row group. A column that an older version did not write is unknown."""
    available = set(file.schema_arrow.names)
    columns = ["phase", "error", "chunk_us", *SERIES]
    if not _all_have_tokens(file, group):
        columns.append("chunk_tokens")
    table = file.read_row_group(group, [name for name in columns if name in available], use_threads=False)
    measured = pc.equal(table["phase"], "measured")
    if not pc.all(measured).as_py():
        table = table.filter(measured)
    failed = pc.is_valid(table["error"]).to_numpy()
    for name, values in parts.items():
        known = table[name].fill_null(np.nan).to_numpy() if name in available else np.full(len(table), np.nan)
        values.append(np.where(failed, np.inf, known))
    figures.requests += len(table)
    if "chunk_us" in available:
        for index, chunk in enumerate(table["chunk_us"].chunks):
            tokens = table["chunk_tokens"].chunks[index] if "chunk_tokens" in table.column_names else None
            figures.gaps += _count(chunk, tokens)


def _all_have_tokens(file: pq.ParquetFile, group: int) -> bool:
    """Return whether no chunk of a row group is without a token, by the statistics in the file's footer."""
    columns = file.metadata.row_group(group)
    for index in range(columns.num_columns):
        column = columns.column(index)
        if column.path_in_schema.startswith("chunk_tokens"):
            return bool(column.statistics and column.statistics.has_min_max and column.statistics.min > 0)
    return True


def _count(stamps: pa.LargeListArray, tokens: pa.LargeListArray | None) -> Counts:
    offsets = stamps.offsets.to_numpy()
    values = stamps.flatten().to_numpy()
    if tokens is not None:  # chunks without a token are no arrivals
        arrivals = tokens.flatten().to_numpy() > 0
        offsets = np.concatenate([[0], np.cumsum(arrivals)])[offsets - offsets[0]]
        values = values[arrivals]
    return count_gaps(values, offsets)
