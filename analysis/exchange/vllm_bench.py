"""Writes results as `vllm bench serve` does, in the folder layout that the plot command of `vllm bench sweep` reads."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.exchange.tools import EXPORTED, NAMED_PARTS
from analysis.load import ASKED_MODELS, Run, requests_by_model
from analysis.point_names import Layout
from analysis.vllm_figures import VLLMFigures
from sweep.base import whole_file
from sweep.base.records import LOAD_COLUMNS
from sweep.numbers.quantity import columns

SUMMARY, FAILED = "summary.json", "failed"  # a file of each point, and the folder of trials without a result
BURSTINESS = {"poisson": 1.0, "closed": 1.0, "batch": 1.0}  # vLLM's value for Poisson; it has none for other arrivals


def write_results(run: Run, layout: Layout, figures: VLLMFigures, folder: Path) -> list[Path]:
    """Write a folder per point, with run=N.json for each replicate and a summary.json; and one for failed trials."""
    placed = layout.placed(run.ok)
    written = []
    for number, (_, trials) in enumerate(placed.groupby("point", sort=True)):
        results = [
            {**_exported_settings(run, row), **_result(row, figures[index]), "run_number": place}
            for place, (index, row) in enumerate(trials.iterrows())
        ]
        target = folder / f"point-{number}"
        for result in results:
            whole_file.write_whole(target / f"run={result['run_number']}.json", json.dumps(result))
        whole_file.write_whole(target / SUMMARY, json.dumps(results))
        written.append(target)
    for number, (_, row) in enumerate(run.not_ok.iterrows()):  # without a summary.json, so that vLLM plots no zeros
        counts = {"completed": 0, "failed": _present(row, ["num_failed"]).get("num_failed", 0), "median_ttft_ms": None}
        result = {**_exported_settings(run, row), **_result(row, counts), "run_number": number}
        whole_file.write_whole(folder / FAILED / f"run={number}.json", json.dumps(result))
    return written


def _exported_settings(run: Run, row: Any) -> dict[str, Any]:
    """Return the axes' values under the last part of their keys (as in vLLM's sweep), and keys for `sweep import`."""
    axes = {axis.rpartition(".")[2].replace("-", "_"): value for axis, value in _present(row, run.axes).items()}
    ours = _present(row, (*NAMED_PARTS, *LOAD_COLUMNS, *run.axes, "outcome", "reason", *columns(run.percentiles)))
    if isinstance(row["warnings"], Iterable):
        ours["warnings"] = list(row["warnings"])
    if (requests := requests_by_model(run, row)) is not None:
        ours[ASKED_MODELS] = requests.astype(object).where(requests.notna(), None).to_dict("list")
    return {**axes, **{f"{EXPORTED}{key}": value for key, value in ours.items()}}


def _present(row: Any, keys: Iterable[str]) -> dict[str, Any]:
    cells = {key: row[key] for key in keys if key in row and pd.api.types.is_scalar(row[key]) and pd.notna(row[key])}
    plain = {key: cell.item() if hasattr(cell, "item") else cell for key, cell in cells.items()}
    return {key: cell for key, cell in plain.items() if not isinstance(cell, float) or math.isfinite(cell)}


def _result(row: Any, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the result with vLLM's keys and units."""
    load = json.loads(row["config"]).get("load", {}) if isinstance(row["config"], str) else {}
    rate = figures.get("request_rate")
    return {
        "date": str(row["started_at"] or "").replace("-", "").replace(":", "").replace("T", "-")[:15],
        "endpoint_type": "openai",
        "backend": row["backend"],
        "label": f"sweep {row['trial_id']}",
        "model_id": row["model"],
        "tokenizer_id": row["model"],
        "num_prompts": None if pd.isna(row["num_requests"]) else int(row["num_requests"]),
        "request_rate": "inf" if rate is None else rate,
        "burstiness": load.get("burstiness", BURSTINESS.get(row["load"])),
        "max_concurrency": figures.get("max_concurrency"),
        **{key: value for key, value in figures.items() if key not in ("request_rate", "max_concurrency")},
    }
