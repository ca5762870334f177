"""Requests by the model that they asked for, where `workload.models` names several, e.g. LoRA adapters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import trial_folder
from analysis.report.tables import label, times
from analysis.results import RunResults
from analysis.table import KEY, NONE, Column, Table, view
from sweep.disk.columns import written_columns
from sweep.disk.tables import read_if_whole, read_table
from sweep.numbers.quantile import statistics

MODEL_SERIES = ("ttft", "tpot", "e2el")
READ = written_columns(["phase", "model", "error", "output_tokens", *MODEL_SERIES])
MODEL_FIGURES = ("ttft_p50", "ttft_p99", "tpot_p50", "e2el_p50")
MODEL_RATIOS = ("ttft_p50", "tpot_p50")


@dataclass(frozen=True)
class ModelRow:
    """The measured requests of a point that asked for one model, of all its trials with a result."""

    line: str
    panel: str
    model: str
    requests: int
    failed: int
    output_tokens: int  # of the requests that succeeded, as far as they were counted
    figures: dict[str, float | None]  # s; a failed request is slower than any other
    first: "ModelRow | None"  # the point's model of most requests, which the others are compared with; None: this one

    def ratio(self, figure: str) -> str:
        """This model's figure over the first one's."""
        own, base = self.figures[figure], self.first and self.first.figures[figure]
        return times(own / base) if own and base else NONE


def models_table(results: RunResults) -> Table[ModelRow] | None:
    """The models of each point, most requests first; None for a run whose requests name none."""
    placed = results.layout.placed(results.run.ok)
    asking = placed[placed["config"].str.contains('"models": {"', regex=False, na=False)]
    rows = [row for _, trials in asking.groupby("point", sort=True) for row in _model_rows(results, trials)]
    columns: list[Column[ModelRow]] = [
        view("configuration", lambda row: row.line, **KEY),
        view("task", lambda row: row.panel, **KEY),
        view("asked model", lambda row: row.model, **KEY),
        view("requests", lambda row: f"{row.requests:,}"),
        view("failed", lambda row: f"{row.failed:,}"),
        view("output tokens", lambda row: f"{row.output_tokens:,}" if row.output_tokens else NONE),
        *(_figure(name) for name in MODEL_FIGURES),
        *(_over_the_first(name) for name in MODEL_RATIOS),
    ]
    return Table(columns, rows, points=len(rows)) if rows else None


def _figure(name: str) -> Column[ModelRow]:
    def cell(row: ModelRow) -> str:
        figure = row.figures[name]
        return NONE if figure is None else label(name).shown(figure)

    return view(label(name).short, cell, label(name).unit)


def _over_the_first(name: str) -> Column[ModelRow]:
    return view(label(name).short, lambda row: row.ratio(name), "× first")


def _model_rows(results: RunResults, trials: pd.DataFrame) -> Iterator[ModelRow]:
    """The rows of one point."""
    paths = [trial_folder(results.run, trial) / "requests.parquet" for _, trial in trials.iterrows()]
    tables = [table.to_pandas() for path in paths if (table := read_if_whole(read_table, path, READ)) is not None]
    first, (line, panel) = None, trials.iloc[0][["line", "panel"]]
    requests = pd.concat(tables) if tables else pd.DataFrame(columns=READ)
    measured = requests[requests["phase"] == "measured"]
    for model in measured["model"].value_counts().index:
        own = measured[measured["model"] == model]
        failed = own["error"].notna()
        figures: dict[str, Any] = {}
        for series in MODEL_SERIES:
            latencies = own[series].to_numpy(np.float64, na_value=np.nan)
            of_series = statistics(np.where(failed, np.inf, latencies), (50, 99))
            figures |= {f"{series}_{name}": figure for name, figure in of_series.items()}
        tokens = int(own.loc[~failed, "output_tokens"].sum())
        row = ModelRow(line, panel, str(model), len(own), int(failed.sum()), tokens, figures, first)
        first = first or row
        yield row
