"""Shows trials as `vllm bench serve` would print them, for comparison with published results (`metrics=vllm`)."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from analysis.results import RunResults

FIGURES = {
    "completed": "Successful requests",
    "failed": "Failed requests",
    "max_concurrency": "Maximum request concurrency",
    "request_rate": "Request rate configured (RPS)",
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
ASKED_FOR = ("max_concurrency", "request_rate")  # omitted if the load has no such value


def render_vllm_flavour(results: RunResults) -> Iterator[Table | Text]:
    """Return a table per trial with a result, in vLLM's names and definitions, and the number of trials without one.

    Raises DamagedFile if a trial's requests are truncated.
    """
    run, layout = results.run, results.layout
    for index, row in layout.placed(run.ok).iterrows():
        figures = results.vllm_figures[index]
        label = f"{row['model']} {row['load']}: {layout.describe(row)}, replicate {row['replicate']}"
        yield _trial_table(label, figures, with_latencies=row["client_stamp_source"] != "engine")
    if missing := len(run.not_ok):
        yield Text(f"not shown: {missing:,} trial{'s' if missing > 1 else ''} without a result")


def _trial_table(heading: str, figures: Mapping[str, Any], with_latencies: bool) -> Table:
    """Return one trial's table. Engine-stamped latencies are omitted: vLLM's include the path to the client."""
    note = "" if with_latencies else "; no latencies, since the engine took its own timestamps"
    title = f"{heading} (as vLLM {figures['vllm_version']} defines it{note})"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, label in FIGURES.items():
        if (name.endswith("_ms") and not with_latencies) or (name in ASKED_FOR and figures[name] is None):
            continue
        table.add_row(label, _shown(figures.get(name)))
    return table


def _shown(value: Any) -> str:
    return "unknown" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
