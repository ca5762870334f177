"""Groups requests by requested model, if `workload.models` has several (e.g. LoRA adapters)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import ASKED_MODELS, MODEL_SERIES, MODELS_SET, REQUESTS_BY_MODEL, requests_by_model
from analysis.report.tables import label, times
from analysis.results import RunResults
from analysis.table import KEY, NONE, Column, Table, view
from sweep.numbers.quantile import statistics

MODEL_FIGURES = ("ttft_p50", "ttft_p99", "tpot_p50", "e2el_p50")
ModelRow = dict[str, Any]  # heading -> cell of one model at one point


def models_table(results: RunResults) -> Table[ModelRow] | None:
    """Return the models of each point, most requests first; None if no request names a model."""
    placed = results.layout.placed(results.run.ok)
    asks = placed["config"].str.contains(MODELS_SET, regex=False, na=False)
    asks |= placed[ASKED_MODELS].notna() if ASKED_MODELS in placed else False
    rows = [row for _, trials in placed[asks].groupby("point", sort=True) for row in _model_rows(results, trials)]
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
    read = (requests_by_model(results.run, trial) for _, trial in trials.iterrows())
    tables = [table for table in read if table is not None]
    measured = pd.concat(tables) if tables else pd.DataFrame(columns=REQUESTS_BY_MODEL)
    first = dict[str, float | None]()
    for model in measured["model"].value_counts().index:
        own = measured[measured["model"] == model]
        failed, figures = own["failed"].astype(bool), dict[str, float | None]()
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
