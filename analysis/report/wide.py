"""The wide table: a column for each point, a row for each figure, as studies publish their experiments side by side."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from analysis.quantities import setting
from analysis.report.tables import label
from analysis.report.vllm_flavour import FIGURES
from analysis.results import RunResults
from sweep.base.wording import number

ENGINE_COLUMNS = (
    "acceptance_rate",
    "acceptance_length",
    "preemptions",
    "prefix_hit_rate",
    "kv_cache_usage_mean",
    "kv_cache_usage_max",
    "kv_cache_full_share",
)
MOST_COLUMNS = 12  # columns of one table
WIDE_ROWS = (
    {"SETTING": ("", "of the engine, on an axis: its key without `backend.` and `flags.`")}
    | {title: ("", f"`{name}` of `vllm bench serve`, the mean over the replicates") for name, title in FIGURES.items()}
    | {
        f"{labelled.label} ({labelled.unit})" if labelled.unit else labelled.label: (labelled.unit, f"`{name}`")
        for name in ENGINE_COLUMNS
        if (labelled := label(name))
    }
)
"""The rows of a frame of `wide`, whose columns are the points, for docs/columns.md."""


def wide(results: RunResults) -> dict[str, pd.DataFrame]:
    """For each panel a frame of texts: its rows are settings and figures, its columns the points, in the plan's order.

    The figures have vLLM's definitions and are means over the replicates; below them are the engine's own counters.

    Raises:
        DamagedFile: if a trial's requests are truncated.
    """
    frames: dict[str, pd.DataFrame] = {}
    trials = results.layout.placed(results.run.ok).groupby("point").groups
    for panel, points in results.points.groupby("panel", sort=False):
        points = points[points["n"] > 0]
        order = {line: place for place, line in enumerate(results.layout.lines)}
        points = points.sort_values("line", key=lambda lines: lines.map(order), kind="stable")
        columns = {
            _heading(results, point): _cells(results, point, trials[index]) for index, point in points.iterrows()
        }
        frame = pd.DataFrame(columns)
        frames[str(panel)] = frame.loc[(frame != "—").any(axis="columns")]
    return frames


def _heading(results: RunResults, point: "pd.Series[Any]") -> str:
    load = results.layout.load(point)
    return f"{point['line']}, {load}" if results.layout.x and load else str(point["line"])


def _cells(results: RunResults, point: "pd.Series[Any]", trials: "pd.Index[Any]") -> dict[str, str]:
    """The settings on axes, vLLM's figures as means over replicates, and the engine's counters."""
    axes = [axis for axis in results.run.axes if axis.startswith("backend.") and axis in point]
    cells = {
        axis.removeprefix("backend.").removeprefix("flags."): point[axis]
        if isinstance(point[axis], str)
        else setting(point[axis])
        for axis in axes
    }
    figures = pd.DataFrame([results.vllm_figures[trial] for trial in trials])
    for name, title in FIGURES.items():
        values = pd.to_numeric(figures[name], errors="coerce").dropna()
        cells[title] = f"{values.mean():,.2f}" if len(values) else "—"
    for name in ENGINE_COLUMNS:
        labelled = label(name)
        title = f"{labelled.label} ({labelled.unit})" if labelled.unit else labelled.label
        cells[title] = number(point[name] * labelled.scale) if name in point and pd.notna(point[name]) else "—"
    return cells


def render_wide(results: RunResults) -> Iterator[Table | Text]:
    """The wide tables, a few points each."""
    for panel, frame in wide(results).items():
        for first in range(0, frame.shape[1], MOST_COLUMNS):
            part = frame.iloc[:, first : first + MOST_COLUMNS]
            table = Table(title=Text(panel), box=box.SIMPLE_HEAD)
            table.add_column("", no_wrap=True)
            for heading in part.columns:
                table.add_column(Text(str(heading)), justify="right", overflow="fold")
            for name, cells in part.iterrows():
                table.add_row(Text(str(name)), *(Text(str(cell)) for cell in cells))
            yield table
