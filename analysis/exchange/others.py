"""The rows of another tool: the results that `vllm bench serve` saves.

A row has what the file says and nothing more: no requests, no price, no telemetry. Who measured stands in
`client_stamp_source`. That tool counts latencies from the send; `ttft` and `e2el` are given where ours count from there
too, in a closed loop. Times in s.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sweep.config import ConfigError, first_line, one_of
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths

ImportedRow = dict[str, Any]
OF_LOAD = ("load.concurrency", "load.rate", "load.burstiness")
NAMED_PARTS = ("backend", "model", "workload", "load")


def import_files(files: Iterable[Path], folder: Path, settings: Mapping[str, str]) -> list[ImportedRow]:
    """Write a run of the rows in these files; `settings` are the names and axes that the files do not know.

    Raises:
        ConfigError: if a file cannot be read, or is not of that tool, the folder has a run, or a setting is no name.
    """
    for key in settings:
        if key not in NAMED_PARTS and "." not in key:  # nor may it replace a figure
            raise one_of("import", key, [*NAMED_PARTS, "an axis such as backend.flags.x"])
    paths = RunPaths(folder)
    if paths.trials.exists():
        raise ConfigError(f"{folder}: has a run; import into a folder of its own")
    rows = [row for file in files for row in _rows(file)]
    repeated: dict[str, int] = {}
    for index, row in enumerate(rows):
        row |= settings
        row |= {"load.concurrency": row.get("concurrency"), "load.rate": row.get("rate")}
        point = repr(sorted((key, str(row.get(key))) for key in ("backend", "model", *OF_LOAD, *settings)))
        row["replicate"] = repeated[point] = repeated.get(point, -1) + 1
        row |= {"trial_id": f"imported-{index}", "deployment_id": f"imported-{row['backend']}", "outcome": "ok"}
    keys = (*OF_LOAD, *settings)
    axes = [key for key in dict.fromkeys(keys) if "." in key and any(row.get(key) is not None for row in rows)]
    rows = [{key: value for key, value in row.items() if "." not in key or key in axes} for row in rows]
    run_files.write_plan(paths, [{"kind": "experiment", "name": folder.name, "axes": axes, "trials": len(rows)}])
    run_files.write_trials(paths, rows)
    return rows


def _rows(file: Path) -> list[ImportedRow]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({first_line(error)})") from None
    results = content if isinstance(content, list) else [content]  # a summary.json of `vllm bench sweep` has several
    if not results or not all(isinstance(each, dict) and "median_ttft_ms" in each for each in results):
        raise ConfigError(f"{file}: no result of vllm bench serve (--save-result)")
    return [_imported(result) for result in results]


def _imported(result: Mapping[str, Any]) -> ImportedRow:
    rate = _positive(result.get("request_rate"))
    burstiness = float(result.get("burstiness") or 1.0) if rate else 1.0
    users = None if rate else result.get("max_concurrency")
    row: ImportedRow = {
        "backend": "openai",
        "model": str(result.get("model_id") or "unknown"),
        "workload": "imported",
        "load": "closed" if not rate else "poisson" if burstiness == 1 else "gamma",
        "concurrency": None if users is None else int(users),
        "rate": rate,
        "load.burstiness": None if burstiness == 1 else burstiness,
        "client_stamp_source": "vllm bench serve",
    }
    for name in ("ttft", "tpot", "itl", "e2el"):
        for key, statistic in (("mean", "mean"), ("median", "p50"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99")):
            _add_latency(row, name, statistic, result.get(f"{key}_{name}_ms"), rate)
    return row | {
        "duration": result.get("duration"),
        "num_requests": int(result["completed"]) + int(result.get("failed") or 0),
        "num_failed": int(result.get("failed") or 0),
        "input_tokens": result.get("total_input_tokens"),
        "output_tokens": result.get("total_output_tokens"),
        "output_throughput": result.get("output_throughput"),
        "total_throughput": result.get("total_token_throughput"),
        "request_throughput": result.get("request_throughput"),
    }


def _add_latency(row: ImportedRow, name: str, statistic: str, milliseconds: Any, rate: float | None) -> None:
    """Add a latency in s; one that counts from the send is ours too in a closed loop alone."""
    if milliseconds is None or math.isnan(float(milliseconds)):
        return
    if name in ("ttft", "e2el"):
        row[f"service_{name}_{statistic}"] = float(milliseconds) / 1e3
    if rate is None or name not in ("ttft", "e2el"):
        row[f"{name}_{statistic}"] = float(milliseconds) / 1e3


def _positive(value: Any) -> float | None:
    """A rate; None where there is none, which is written as infinite."""
    number = math.inf if value is None else float(value)
    return number if 0 < number < math.inf else None
