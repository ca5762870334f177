"""Tables, figures and a report from the files of a run. Reads what `sweep.disk.run_files` wrote; never starts anything.

`analysis.load("results/throughput_bound")` is the trials as a pandas frame, `analysis.requests(folder, trial_id)` and
`analysis.telemetry(folder, trial_id)` what is behind them. `analysis.write_all(folder)` rebuilds summary.csv, the
figures and report.html; `analysis.render_summary(folder)` is the table that the terminal shows.
"""

from analysis.load import RunNotFound, load, open_run, requests, telemetry
from analysis.report.html import write_all
from analysis.report.terminal import render_summary
from analysis.report.vllm_flavour import render_vllm_flavour
from sweep.disk.run_files import DamagedFile

__all__ = [
    "DamagedFile",
    "RunNotFound",
    "load",
    "open_run",
    "render_summary",
    "render_vllm_flavour",
    "requests",
    "telemetry",
    "write_all",
]
