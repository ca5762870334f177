"""Makes a run from other tools' rows, without requests, price or telemetry. `client_stamp_source` names the tool."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from analysis.exchange.tools import NAMED_PARTS, ImportedRow, rows_of
from analysis.exchange.vllm_bench import SUMMARY
from analysis.load import IMPORTED
from sweep.base.config import ConfigError, one_of
from sweep.base.records import LOAD_COLUMNS
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths

OF_LOAD = ("load.concurrency", "load.rate", "load.burstiness")


def _results_in(path: Path) -> list[Path]:
    """Return the file, or the result files below a folder; a summary.json replaces the result files next to it."""
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.json"))
    summarised = {file.parent for file in files if file.name == SUMMARY}
    files = [file for file in files if file.name == SUMMARY or file.parent not in summarised]
    if not files:
        raise ConfigError(f"{path}: no result file (*.json) is in this folder")
    return files


def import_files(files: Iterable[Path], folder: Path, settings: Mapping[str, str]) -> list[ImportedRow]:
    """Write a run with the rows in these files. `settings` supplies names and axes that the files lack."""
    for key in settings:
        if key not in NAMED_PARTS and "." not in key:  # a setting must not replace a measured value
            raise one_of("import", key, [*NAMED_PARTS, "an axis such as backend.flags.x"])
    paths = RunPaths(folder)
    if paths.trials.exists():
        raise ConfigError(f"{folder}: already has a run; import into a new folder")
    rows = [row for file in files for each in _results_in(file) for row in rows_of(each)]
    repeated: dict[str, int] = {}
    for index, row in enumerate(rows):
        row |= settings
        row |= {"load.concurrency": row.get("concurrency"), "load.rate": row.get("rate")}
        settings_of_row = {*NAMED_PARTS, *LOAD_COLUMNS, *(key for key in row if "." in key)}
        point = repr(sorted((key, str(row.get(key))) for key in settings_of_row))
        row["replicate"] = repeated[point] = repeated.get(point, -1) + 1
        row |= {"trial_id": f"{IMPORTED}{index}", "deployment_id": f"{IMPORTED}{row['backend']}"}
        row.setdefault("outcome", "ok")
    keys = (*OF_LOAD, *settings, *(key for row in rows for key in row))
    axes = [key for key in dict.fromkeys(keys) if "." in key and any(row.get(key) is not None for row in rows)]
    rows = [{key: value for key, value in row.items() if "." not in key or key in axes} for row in rows]
    run_files.write_plan(paths, [{"kind": "experiment", "name": folder.name, "axes": axes, "trials": len(rows)}])
    run_files.write_trials(paths, rows)
    return rows
