"""The runs that answers are drawn from: folders, names under results/, and runs in an object store."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from analysis.results import RunResults, open_results
from sweep.config import ConfigError, first_line
from sweep.disk import object_store
from sweep.disk.run_files import run_folder

RUN_FILES = r"(.*/)?(trials\.parquet|plan\.jsonl|requests(-\w+)?\.parquet)"  # not the engines' logs, nor telemetry


@contextmanager
def opened(places: Sequence[str], all_rows: bool = False) -> Iterator[list[RunResults]]:
    """The results of these runs, or all that were measured there; those of an object store lie in a temporary folder.

    Raises:
        ConfigError: if a store cannot be read.
        RunNotFound, DamagedFile: as `analysis.open_results`.
    """
    with ExitStack() as stack:
        yield [open_results(_folder(place, stack), all_rows) for place in places]


def _folder(place: str, stack: ExitStack) -> Path:
    if not object_store.is_url(place):
        return run_folder(place)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / PurePosixPath(place).name  # names the run
    try:
        object_store.copy(place, folder, lambda name: bool(re.fullmatch(RUN_FILES, name)))
    except OSError as error:
        raise ConfigError(f"{place}: {first_line(error)}") from None
    return folder
