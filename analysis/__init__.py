"""Makes tables, charts and a report from a run's files. It only reads the files written by `sweep.disk.run_files`.

docs/library.md shows every call, and docs/columns.md lists the frames and every column.
"""

import importlib
from typing import TYPE_CHECKING, Any

from analysis.load import RunNotFound, load, requests, telemetry
from analysis.report.terminal import Summary
from analysis.results import open_results
from analysis.statistics.request_quantiles import quantiles
from sweep.disk.run_files import DamagedFile

if TYPE_CHECKING:
    from analysis.report.html import write_all
    from analysis.report.several import write_several
    from analysis.report.vllm_flavour import render_vllm_flavour

REPORTS = {"write_all": "html", "write_several": "several", "render_vllm_flavour": "vllm_flavour"}
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


def __getattr__(name: str) -> Any:
    """Import a report's module when it is first used: Matplotlib takes as long as all other imports of a summary."""
    if name not in REPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"analysis.report.{REPORTS[name]}"), name)
