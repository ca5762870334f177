"""Tables, figures and a report from the files of a run. Reads what `sweep.disk.run_files` wrote; never starts anything.

docs/columns.md lists the frames and every column.

`analysis.load("results/throughput_bound")` is the trials as a pandas frame, `analysis.requests(folder, trial_id)` and
`analysis.telemetry(folder, trial_id)` their raw data, and `analysis.quantiles(folder)` the quantiles of any number of
requests and gaps. With `results = analysis.open_results(folder)`, `analysis.write_all(results)` rebuilds summary.csv,
the figures and report.html, `analysis.Summary(results)` is the terminal's table, `analysis.wide(results)` has the
points as columns, and `results.warnings` are the warnings. `analysis.write_several([results, others], folder)` writes
one report of several runs.
"""

from analysis.load import RunNotFound, load, requests, telemetry
from analysis.report.html import write_all
from analysis.report.several import write_several
from analysis.report.terminal import Summary
from analysis.report.vllm_flavour import render_vllm_flavour
from analysis.report.wide import render_wide, wide
from analysis.results import open_results
from analysis.statistics.request_quantiles import quantiles
from sweep.disk.run_files import DamagedFile

__all__ = [
    "DamagedFile",
    "RunNotFound",
    "Summary",
    "load",
    "open_results",
    "quantiles",
    "render_vllm_flavour",
    "render_wide",
    "requests",
    "telemetry",
    "wide",
    "write_all",
    "write_several",
]
