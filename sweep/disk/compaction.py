"""Combines the small files of many trials at the end of a run, because many files are slow to list, copy and read.

Tables with the same columns are combined into compact files, several trials to a row group. A compact file is written
atomically; a trial's original files are removed only after their rows were compared with the compact file. So every row
can be read before, during and after compaction, and if the run is killed during compaction, the next run completes it.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sweep.disk import tables
from sweep.disk.run_files import DamagedFile, RunPaths, TrialPaths, write_whole
from sweep.disk.tables import compact_place, opened_table, read_table

FEWEST_FILES = 100  # with fewer files, compaction gains nothing, and separate files are easier to find
SMALL_BYTES = 8 << 20  # size limit of a trial's file: a larger file is not combined
BYTES_TOGETHER = 128 << 20  # size of the files combined into one: the disk holds both copies for a while
GROUP_BYTES = 1 << 20  # uncompressed size of a row group, the smallest unit that is read
UNREPEATED = ("request_id",)  # text columns that a dictionary would only make larger


def compact(paths: RunPaths, fewest: int = FEWEST_FILES) -> int:
    """Combine a run's small files if there are at least `fewest`; return how many were combined.

    The caller holds the run's lock. Unreadable files are not touched; their readers report them.
    """
    trials = [TrialPaths(paths, path.parent) for path in sorted(paths.deployments.glob("*/*/*/trial.parquet"))]
    kinds = [[trial.requests for trial in trials], [trial.telemetry for trial in trials]]
    kinds.append([trial.trial for trial in trials])  # removed last: while it exists, the trial's folder is complete
    if sum(_is_small(file) for files in kinds for file in files) < fewest:  # too few: only finish a killed run's
        kinds = [[file for file in files if _is_compact(file)] for files in kinds]
    compacted = 0
    for files in kinds:
        for batch in _batches(filter(_is_small, files)):
            compacted += _compact_batch(paths, batch)
    for trial in trials:
        with suppress(OSError):  # the folder has other files
            trial.folder.rmdir()
    return compacted


def compacted_names(paths: RunPaths, names: Iterable[str]) -> list[str]:
    """Return the names of files, relative to the run, whose content is now only in a compact file."""
    kinds = ("requests.parquet", "telemetry.parquet", "trial.parquet")
    candidates = [path for path in names if path.count("/") == 4 and path.endswith(kinds)]
    return [path for path in candidates if not (paths.out / path).exists() and _is_compact(paths.out / path)]


def _is_small(file: Path) -> bool:
    with suppress(FileNotFoundError):
        return file.stat().st_size <= SMALL_BYTES
    return False


def _is_compact(file: Path) -> bool:
    with suppress(DamagedFile):
        return compact_place(file) is not None
    return False


def _batches(files: Iterable[Path]) -> Iterator[list[Path]]:
    batches: dict[pa.Schema, list[Path]] = defaultdict(list)
    sizes: dict[pa.Schema, int] = defaultdict(int)
    for file in files:
        try:
            with opened_table(file) as table:
                schema = table.file.schema_arrow
        except (DamagedFile, FileNotFoundError):
            continue
        batches[schema].append(file)
        sizes[schema] += file.stat().st_size
        if sizes[schema] > BYTES_TOGETHER:
            yield batches.pop(schema)
            del sizes[schema]
    yield from batches.values()


def _compact_batch(paths: RunPaths, files: Sequence[Path]) -> int:
    """Combine files, check the result, and remove the originals; return how many files were removed."""
    new = [file for file in files if not _is_compact(file)]
    if new:
        digest = hashlib.sha256("\n".join(_trial_of(file) for file in new).encode()).hexdigest()[:12]
        target = paths.compact / f"{new[0].stem}-{digest}.parquet"
        try:
            write_whole(paths, target, lambda staged: _write(new, staged))
        except DamagedFile:  # one of the files is damaged: combine the files one at a time
            return sum(_compact_batch(paths, [file]) for file in files) if len(files) > 1 else 0
    safe = [file for file in files if _is_compact(file) and _has_same_rows(file)]
    for file in safe:
        file.unlink()
    return len(safe)


def _has_same_rows(file: Path) -> bool:
    """Return whether the compact file and the trial's original file have equal rows; False if one is unreadable."""
    place = compact_place(file)
    assert place is not None
    try:
        with pq.ParquetFile(place.path, page_checksum_verification=True) as compact_file:
            return bool(tables.TableFile(compact_file, place).read().equals(read_table(file)))
    except (DamagedFile, pa.ArrowException, OSError):
        return False


def _trial_of(file: Path) -> str:
    return "/".join(file.parts[-4:-1])


def _write(files: Sequence[Path], target: Path) -> None:
    """Write a compact file with whole trials in each row group, and an index of the trials in the footer."""
    index: list[tuple[str, int, int, int]] = []
    with opened_table(files[0]) as table_file:
        added = [column for column in tables.TRIAL_KEY if column not in table_file.names]
        schema = table_file.file.schema_arrow.remove_metadata()
    for column in added:
        schema = schema.append(pa.field(column, pa.string()))
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name not in UNREPEATED]
    options = {"compression": "zstd", "use_dictionary": texts, "write_page_checksum": True}
    with pq.ParquetWriter(target, schema.with_metadata({"added": json.dumps(added)}), **options) as writer:
        pending: list[pa.Table] = []
        group = 0
        for file in files:
            table = read_table(file)
            key = dict(zip(tables.TRIAL_KEY, file.parts[-4:-1], strict=True))
            for column in added:
                table = table.append_column(column, pa.repeat(key[column], len(table)))
            index.append((_trial_of(file), group, sum(map(len, pending)), len(table)))
            pending.append(table)
            if sum(batch.nbytes for batch in pending) > GROUP_BYTES:
                group += _write_group(writer, pending)
                pending = []
        _write_group(writer, pending)
        writer.add_key_value_metadata({tables.COMPACT_INDEX: json.dumps(index)})
    tables.seal_footer(target)


def _write_group(writer: pq.ParquetWriter, pending: Sequence[pa.Table]) -> int:
    """Write tables as one row group; return the number of row groups written: 0 if the tables have no rows."""
    rows = sum(map(len, pending))
    if rows:
        writer.write_table(pa.concat_tables(pending).cast(writer.schema).combine_chunks(), row_group_size=rows)
    return int(rows > 0)
