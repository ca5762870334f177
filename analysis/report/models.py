"""Groups requests by requested model, if `workload.models` has several (e.g. LoRA adapters)."""

from collections.abc import Iterator
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
MODEL_FIGURES = ("ttft_p50", "ttft_p99", "tpot_p50", "e2el_p50")
ModelRow = dict[str, Any]  # heading -> cell of one model at one point


def models_table(results: RunResults) -> Table[ModelRow] | None:
    """Return the models of each point, most requests first; None if no request names a model."""
    placed = results.layout.placed(results.run.ok)
    asking = placed[placed["config"].str.contains('"models": {"', regex=False, na=False)]
    rows = [row for _, trials in asking.groupby("point", sort=True) for row in _model_rows(results, trials)]
    columns = [
        *(_cells(name, **KEY) for name in ("configuration", "task", "asked model")),
        *(_cells(name) for name in ("requests", "failed", "output tokens")),
        *(_cells(name, heading=label(name).short, unit=label(name).unit) for name in MODEL_FIGURES),
        *(_cells(f"{name} ×", heading=label(name).short, unit="× first") for name in ("ttft_p50", "tpot_p50")),
    ]
    return Table(columns, rows, points=len(rows)) if rows else None


def _cells(name: str, heading: str = "", **options: Any) -> Column[ModelRow]:
    return view(heading or name, lambda row: row[name], **options)


def _model_rows(results: RunResults, trials: pd.DataFrame) -> Iterator[ModelRow]:
    """Return the rows of one point. A failed request is treated as slower than any other."""
    names = written_columns(["phase", "model", "error", "output_tokens", *MODEL_SERIES])
    paths = [trial_folder(results.run, trial) / "requests.parquet" for _, trial in trials.iterrows()]
    tables = [table.to_pandas() for path in paths if (table := read_if_whole(read_table, path, names)) is not None]
    requests = pd.concat(tables) if tables else pd.DataFrame(columns=names)
    measured, first = requests[requests["phase"] == "measured"], dict[str, float | None]()
    for model in measured["model"].value_counts().index:
        own = measured[measured["model"] == model]
        failed, figures = own["error"].notna(), dict[str, float | None]()
        for series in MODEL_SERIES:
            latencies = np.where(failed, np.inf, own[series].to_numpy(np.float64, na_value=np.nan))
            figures |= {f"{series}_{name}": figure for name, figure in statistics(latencies, (50, 99)).items()}
        first = first or figures
        tokens = int(own.loc[~failed, "output_tokens"].sum())
        point = dict(zip(("configuration", "task"), trials.iloc[0][["line", "panel"]], strict=True))
        counted = {"requests": len(own), "failed": int(failed.sum()), "output tokens": tokens or None}
        yield {
            **point,
            "asked model": str(model),
            **{name: NONE if count is None else f"{count:,}" for name, count in counted.items()},
            **{name: label(name).shown(figures[name] or np.nan) for name in MODEL_FIGURES},
            **{f"{name} ×": _ratio_to(figures[name], first[name], figures is first) for name in MODEL_FIGURES},
        }


def _ratio_to(figure: float | None, first: float | None, is_first: bool) -> str:
    return times(figure / first) if figure and first and not is_first else NONE
