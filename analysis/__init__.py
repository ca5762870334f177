"""Makes tables, figures and a report from a run's files. It only reads the files written by `sweep.disk.run_files`.

docs/library.md shows every call, and docs/columns.md lists the frames and every column.
"""

from analysis.load import RunNotFound, load, requests, telemetry
from analysis.report.html import write_all
from analysis.report.several import write_several
from analysis.report.terminal import Summary
from analysis.report.vllm_flavour import render_vllm_flavour
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
    "requests",
    "telemetry",
    "write_all",
    "write_several",
]
