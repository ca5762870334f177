"""Computes the trials' metrics by the definitions of `vllm bench serve`, and the requested rates and limits."""

import json
from collections.abc import Hashable
from typing import Any

import pandas as pd

from analysis.load import Run, trial_folder
from sweep.disk import run_files
from sweep.numbers.vllm_flavour import vllm_flavour

VLLMFigures = dict[Hashable, dict[str, Any]]  # by the index of the run's ok trials


def vllm_figures(run: Run) -> VLLMFigures:
    """Return the metrics of all trials with a result. Latencies are None if the engine took the timestamps.

    Raises DamagedFile if a trial's requests are truncated.
    """
    return {index: _figures(run, row) for index, row in run.ok.iterrows()}


def _figures(run: Run, row: "pd.Series[Any]") -> dict[str, Any]:
    load = json.loads(row["config"] if isinstance(row["config"], str) else "{}").get("load", {})
    limits = {
        "max_concurrency": load.get("max_concurrency") or load.get("concurrency"),
        "request_rate": load.get("rate"),
    }
    figures = vllm_flavour(run_files.read_requests(trial_folder(run, row) / "requests.parquet"))
    if row["client_stamp_source"] == "engine":  # its timestamps exclude the path to the client
        figures |= {name: None for name in figures if name.endswith("_ms")}
    return limits | figures
