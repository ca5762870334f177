"""The latencies of a trial's requests, read from its file by row groups, for exact quantiles."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sweep.base.config import DamagedFile
from sweep.disk.columns import written_columns
from sweep.disk.tables import TableFile, opened_table
from sweep.numbers.gap_histogram import GAP_BINS, Counts, count_gaps

SERIES = ("ttft", "e2el", "tpot")


@dataclass
class RequestFigures:
    """A trial's measured requests: latencies in seconds (+∞ for failed requests) and a histogram of token gaps."""

    series: dict[str, NDArray[np.float64]]
    gaps: Counts = field(default_factory=lambda: np.zeros(GAP_BINS, np.int64))
    requests: int = 0


def read_figures(path: Path) -> "RequestFigures | DamagedFile":
    """Return the latencies in a requests.parquet; if it cannot be read, return the error, which names the file."""
    parts: dict[str, list[NDArray[np.float64]]] = {series: [] for series in SERIES}
    figures = RequestFigures({})
    try:
        with opened_table(path) as file:
            for group in range(file.num_groups):
                _add_group(file, group, figures, parts)
    except FileNotFoundError:
        return DamagedFile(path, "the file is missing")
    except DamagedFile as error:
        return error
    figures.series = {series: np.concatenate(trials) if trials else np.empty(0) for series, trials in parts.items()}
    return figures


def _add_group(
    file: TableFile, group: int, figures: RequestFigures, parts: dict[str, list[NDArray[np.float64]]]
) -> None:
    """Add the requests of a row group; values are unknown in columns that an older version did not write."""
    available = set(file.names)
    columns = written_columns(["phase", "error", "chunk_us", *SERIES])
    if "chunk_tokens" in available and not file.smallest(group, "chunk_tokens"):  # some chunks may have 0 tokens
        columns.append("chunk_tokens")
    table = file.group(group, columns, use_threads=False)
    measured = pc.equal(table["phase"], "measured")
    if not pc.all(measured).as_py():
        table = table.filter(measured)
    failed = pc.is_valid(table["error"]).to_numpy()
    for series, trials in parts.items():
        latencies = table[series].fill_null(np.nan).to_numpy() if series in available else np.full(len(table), np.nan)
        trials.append(np.where(failed, np.inf, latencies))
    figures.requests += len(table)
    if "chunk_us" in available:
        for index, chunk in enumerate(table["chunk_us"].chunks):
            tokens = table["chunk_tokens"].chunks[index] if "chunk_tokens" in table.column_names else None
            figures.gaps += _count(chunk, tokens)


def _count(stamps: pa.LargeListArray, tokens: pa.LargeListArray | None) -> Counts:
    offsets = stamps.offsets.to_numpy()
    arrival_us = stamps.flatten().to_numpy()
    if tokens is not None:  # chunks without a token are not arrivals
        arrivals = tokens.flatten().to_numpy() > 0
        offsets = np.concatenate([[0], np.cumsum(arrivals)])[offsets - offsets[0]]
        arrival_us = arrival_us[arrivals]
    return count_gaps(arrival_us, offsets)
