"""Trials as `vllm bench serve` would print them, for comparison with other people's figures (`metrics=vllm`)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from analysis.load import open_run, trial_folder
from sweep import metrics, store

FIGURES = {
    "completed": "Successful requests",
    "failed": "Failed requests",
    "duration": "Benchmark duration (s)",
    "total_input_tokens": "Total input tokens",
    "total_output_tokens": "Total generated tokens",
    "request_throughput": "Request throughput (req/s)",
    "output_throughput": "Output token throughput (tok/s)",
    "max_output_tokens_per_s": "Peak output token throughput (tok/s)",
    "max_concurrent_requests": "Peak concurrent requests",
    "total_token_throughput": "Total token throughput (tok/s)",
    **{
        f"{statistic}_{name}_ms": f"{statistic.capitalize()} {name.upper()} (ms)"
        for name in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "median", "p99")
    },
}


def render_vllm_flavour(folder: str | Path) -> Iterator[Table]:
    """A table for each trial that is a result, by vLLM's definitions and under its names.

    Raises:
        RunNotFound: if there is no trials.parquet.
        DamagedFile: if a trial's requests are not whole.
    """
    run = open_run(folder)
    for _, row in run.ok.iterrows():
        found = metrics.vllm_flavour(store.read_requests(trial_folder(run, row) / "requests.parquet"))
        yield _table(row, found)


def _table(row: Any, found: Mapping[str, Any]) -> Table:
    title = f"{row['backend']} {row['model']} {row['workload']} {row['load']} replicate {row['replicate']}"
    table = Table(title=f"{title} (as vLLM {found['vllm_version']} defines it)", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, label in FIGURES.items():
        value = found.get(name)
        shown = "unknown" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        table.add_row(label, shown)
    return table
