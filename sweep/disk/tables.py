"""The Parquet files of a run: written with checksums and read part by part, even from a compact file.

The tables of many short trials are combined at the end of a run (`sweep.disk.compaction`). A trial's table keeps its
path: if the file is missing, its rows are read from the compact file. Every function that reads a file raises
FileNotFoundError if it is missing, and DamagedFile if it is incomplete.
"""

import itertools
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sweep.base.config import DamagedFile, first_line
from sweep.base.whole_file import open_regular

ROW_GROUP_BYTES = 32 << 20  # uncompressed size of a table's row group
FOOTER_SEAL = b"SWCR"  # written before the footer, followed by a checksum of four bytes
COMPACT = "compact"  # folder of compact files, next to the folders of the deployments
COMPACT_INDEX = b"trials"  # key in a compact file's footer: JSON with [trial, row group, offset, rows] for each trial
TRIAL_KEY = ("deployment_id", "attempt", "trial_id")  # extra columns of a compact file; a trial's own path has them

Contents = TypeVar("Contents")


class Place(NamedTuple):
    """The position of a trial's table in a compact file."""

    path: Path
    group: int
    offset: int
    rows: int


class TableFile:
    """A table of the run, opened for reading part by part."""

    def __init__(self, file: pq.ParquetFile, place: Place | None = None) -> None:
        self.file, self.place = file, place
        self.groups = range(file.num_row_groups) if place is None else range(place.group, place.group + 1)
        added = json.loads(file.schema_arrow.metadata[b"added"]) if place else ()
        self.names = [name for name in file.schema_arrow.names if name not in added]

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    def group(self, index: int, columns: Sequence[str] | None = None, use_threads: bool = True) -> pa.Table:
        """Return the rows of one row group, with all columns, or with the existing columns among `columns`."""
        names = [name for name in self.names if columns is None or name in columns]
        if self.place and not self.place.rows:  # it may have no row group
            return self.file.schema_arrow.empty_table().select(names).replace_schema_metadata()
        table = self.file.read_row_group(self.groups[index], names, use_threads=use_threads)
        return table if self.place is None else table.slice(self.place.offset, self.place.rows)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows, with columns as in `group`."""
        if self.place is not None:
            return self.group(0, columns).replace_schema_metadata()
        return self.file.read(columns)

    def smallest(self, index: int, column: str) -> int | None:
        """Return the smallest value of a column (its first leaf) in a row group, from the footer; None if unknown."""
        if self.place and not self.place.rows:
            return None
        group = self.file.metadata.row_group(self.groups[index])
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.split(".")[0] == column:
                statistics = chunk.statistics
                return int(statistics.min) if statistics is not None and statistics.has_min_max else None
        return None


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file of the run, with all columns, or with the existing columns among `columns`."""
    with opened_table(path) as file:
        return file.read(columns)


def warn_left_out(error: DamagedFile) -> None:
    """Warn, once per file and reason, that a damaged file is excluded from the results."""
    warnings.warn(f"left out: {error}", stacklevel=1)  # Python shows a text once per line of code


def read_if_whole(read: Callable[..., Contents], path: Path, *arguments: Any) -> Contents | None:
    """Read a file of the run with `read`; return None if it is missing or damaged, after a warning."""
    try:
        return read(path, *arguments)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        warn_left_out(error)
        return None


@contextmanager
def opened_table(path: Path) -> Iterator[TableFile]:
    """Open a table of the run for reading part by part; its footer and every page are checked."""
    source = path
    try:
        place = None if path.exists() else compact_place(path)
        try:
            file = _open(place.path if place else path)
        except FileNotFoundError:  # the table has just been moved into a compact file
            place = compact_place(path)
            file = _open(place.path if place else path)
        source = place.path if place else path
        with file:
            yield TableFile(file, place)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFile(source, first_line(error)) from error


def _open(path: Path) -> pq.ParquetFile:
    check_footer(path)
    return pq.ParquetFile(path, page_checksum_verification=True)


def write_sealed(parts: Iterable[pa.Table], path: Path, dictionary: Sequence[str] = ()) -> None:
    """Write a table given in one or more parts, with checksums.

    A row group is held in memory while it is written, so each part is one row group, or several if its rows are long.
    Dictionaries are used only for columns with repeated values; for timestamps they cost more than they save.
    """
    first, others = next(parts := iter(parts)), parts
    options = {"compression": "zstd", "use_dictionary": list(dictionary), "write_page_checksum": True}
    with pq.ParquetWriter(path, first.schema, **options) as writer:
        for part in itertools.chain([first], others):
            rows = max(1, part.num_rows * ROW_GROUP_BYTES // max(ROW_GROUP_BYTES, part.nbytes))
            writer.write_table(part, row_group_size=rows)
    seal_footer(path)


# Footers -------------------------------------------------------------------------------------------------------------


def seal_footer(path: Path) -> None:
    """Insert a checksum of a Parquet file's footer before the footer, where readers ignore it.

    The checksums of pages do not cover the footer. A reader finds the footer from the file's end, and the pages from
    its start.
    """
    with path.open("r+b") as file:
        begin = _footer_begin(file)
        file.seek(begin)
        footer = file.read()
        file.seek(begin)
        file.write(FOOTER_SEAL + zlib.crc32(footer).to_bytes(4, "little") + footer)


def check_footer(path: Path) -> None:
    """Raise DamagedFile if a Parquet file's footer has changed; a footer from an older version has no checksum."""
    with open_regular(path) as file:
        begin = _footer_begin(file)
        file.seek(max(0, begin - 8))
        seal, crc, footer = file.read(4), file.read(4), file.read()
    if seal == FOOTER_SEAL and zlib.crc32(footer).to_bytes(4, "little") != crc:
        raise DamagedFile(path, "the checksum of its footer does not match")


def _footer_begin(file: BinaryIO) -> int:
    """Return the position of the footer, or 0 if the last bytes are not a footer's length and "PAR1"."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    return max(0, size - 8 - int.from_bytes(file.read(4), "little"))


# Compact files -------------------------------------------------------------------------------------------------------

_INDEXES: dict[Path, dict[str, Place]] = {}  # the contents of compact files, which never change


def compact_place(path: Path) -> Place | None:
    """Return the position of a trial's table (given by its path) in a compact file, or None.

    Raises DamagedFile if no readable compact file has it and another compact file cannot be read.
    """
    if len(path.parts) < 5:
        return None
    trial, folder = "/".join(path.parts[-4:-1]), path.absolute().parents[3] / COMPACT
    damage: list[DamagedFile] = []
    for _ in range(2):  # another process may have just moved the table
        for file, index in list(_INDEXES.items()):
            if trial in index and file.parent == folder and file.name.startswith(f"{path.stem}-"):
                return index[trial]
        damage = _read_indexes(folder)
    if damaged := [error for error in damage if error.path.name.startswith(f"{path.stem}-")]:
        raise damaged[0]
    return None


def compact_trials(folder: Path, stem: str) -> tuple[set[str], bool]:
    """Return the keys (deployment/attempt/trial) of the tables in a folder's compact files of one kind.

    Also return whether any of these files is damaged, so that its content is unknown.
    """
    folder, kind = folder.absolute(), f"{stem}-"
    damage = _read_indexes(folder)
    indexes = [index for file, index in _INDEXES.items() if file.parent == folder and file.name.startswith(kind)]
    return set().union(*indexes), any(error.path.name.startswith(kind) for error in damage)


def _read_indexes(folder: Path) -> list[DamagedFile]:
    damage = []
    for file in sorted(folder.glob("*.parquet")):
        if file in _INDEXES:
            continue
        try:
            check_footer(file)
            entries = json.loads(pq.read_metadata(file).metadata[COMPACT_INDEX])
            _INDEXES[file] = {trial: Place(file, *numbers) for trial, *numbers in entries}
        except DamagedFile as error:
            damage.append(error)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            damage.append(DamagedFile(file, first_line(error)))
    return damage
