"""A run made from the rows of other tools: no requests, price or telemetry; `client_stamp_source` says who measured."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from analysis.exchange.tools import NAMED_PARTS, ImportedRow, rows_of
from sweep.base.config import ConfigError, one_of
from sweep.base.records import LOAD_COLUMNS
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths

OF_LOAD = ("load.concurrency", "load.rate", "load.burstiness")


def import_files(files: Iterable[Path], folder: Path, settings: Mapping[str, str]) -> list[ImportedRow]:
    """Write a run of the rows in these files; `settings` are the names and axes that the files do not know."""
    for key in settings:
        if key not in NAMED_PARTS and "." not in key:  # nor may it replace a figure
            raise one_of("import", key, [*NAMED_PARTS, "an axis such as backend.flags.x"])
    paths = RunPaths(folder)
    if paths.trials.exists():
        raise ConfigError(f"{folder}: has a run; import into a folder of its own")
    rows = [row for file in files for row in rows_of(file)]
    repeated: dict[str, int] = {}
    for index, row in enumerate(rows):
        row |= settings
        row |= {"load.concurrency": row.get("concurrency"), "load.rate": row.get("rate")}
        settings_of_row = {*NAMED_PARTS, *LOAD_COLUMNS, *(key for key in row if "." in key)}
        point = repr(sorted((key, str(row.get(key))) for key in settings_of_row))
        row["replicate"] = repeated[point] = repeated.get(point, -1) + 1
        row |= {"trial_id": f"imported-{index}", "deployment_id": f"imported-{row['backend']}"}
        row.setdefault("outcome", "ok")
    keys = (*OF_LOAD, *settings, *(key for row in rows for key in row))
    axes = [key for key in dict.fromkeys(keys) if "." in key and any(row.get(key) is not None for row in rows)]
    rows = [{key: value for key, value in row.items() if "." not in key or key in axes} for row in rows]
    run_files.write_plan(paths, [{"kind": "experiment", "name": folder.name, "axes": axes, "trials": len(rows)}])
    run_files.write_trials(paths, rows)
    return rows
