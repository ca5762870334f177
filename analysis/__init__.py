"""Makes tables, charts and a report from a run's files. It only reads the files written by `sweep.disk.run_files`.

docs/library.md shows every call, and docs/columns.md lists the frames and every column.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.load import RunNotFound, load, requests, telemetry
    from analysis.report.html import write_all
    from analysis.report.several import write_several
    from analysis.report.terminal import screen_of
    from analysis.report.vllm_flavour import render_vllm_flavour
    from analysis.results import open_results
    from analysis.statistics.request_quantiles import quantiles
    from sweep.base.config import DamagedFile

HOMES = {
    **dict.fromkeys(("RunNotFound", "load", "requests", "telemetry"), "analysis.load"),
    "DamagedFile": "sweep.base.config",
    "open_results": "analysis.results",
    "quantiles": "analysis.statistics.request_quantiles",
    "render_vllm_flavour": "analysis.report.vllm_flavour",
    "screen_of": "analysis.report.terminal",
    "write_all": "analysis.report.html",
    "write_several": "analysis.report.several",
}
__all__ = [
    "DamagedFile",
    "RunNotFound",
    "load",
    "open_results",
    "quantiles",
    "render_vllm_flavour",
    "requests",
    "screen_of",
    "telemetry",
    "write_all",
    "write_several",
]


def __getattr__(name: str) -> Any:
    """Import a call's module when it is first used: pandas, SciPy and Matplotlib take most of a command's time."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `analysis.load` a function, although the import of a submodule of that name sets this attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.load if name == "load" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
