"""Trials as `vllm bench serve` would print them, for comparison with other people's figures (`metrics=vllm`)."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from analysis.load import trial_folder
from analysis.results import Results
from sweep.disk import run_files
from sweep.numbers.vllm_flavour import vllm_flavour

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


def render_vllm_flavour(results: Results) -> Iterator[Table | Text]:
    """A table for each trial that is a result, by vLLM's definitions and under its names; how many others there are.

    Raises:
        DamagedFile: if a trial's requests are not whole.
    """
    run, layout = results.run, results.layout
    for _, row in layout.placed(run.ok).iterrows():
        found = vllm_flavour(run_files.read_requests(trial_folder(run, row) / "requests.parquet"))
        words = f"{row['model']} {row['load']}: {layout.describe(row)}, replicate {row['replicate']}"
        yield _table(words, found, with_latencies=row["client_stamp_source"] != "engine")
    if others := len(run.not_ok):
        yield Text(f"left out: {others:,} trial{'s' if others > 1 else ''} without a result")


def _table(words: str, found: Mapping[str, Any], with_latencies: bool) -> Table:
    """Latencies that the engine stamped itself leave out the way to the client, which vLLM's count."""
    told = "" if with_latencies else "; no latencies: the engine took its own stamps"
    title = f"{words} (as vLLM {found['vllm_version']} defines it{told})"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, label in FIGURES.items():
        if name.endswith("_ms") and not with_latencies:
            continue
        value = found.get(name)
        shown = "unknown" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        table.add_row(label, shown)
    return table
