"""Estimates components of variance: the shares of nodes, launches, trials and requests in a quantity's spread.

A quantity's logarithm is modelled as point + node + launch + trial. MIVQUE(0) (C. R. Rao 1971) estimates the last three
variances: it equates the sums of squares of nodes, launches and trials about the points' means with their expectations.
This needs no iteration and no balanced design. Estimates below 0 become 0. The requests' part of a trial's variance is
the quantity's variance over consecutive groups of the trial's requests, or over its lockstep batches, divided by their
number. The rest of that variance is due to the trial itself. Components confounded by the design are estimated
together, which the notes mention.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.load import Run, trial_folder
from analysis.point_names import Layout
from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.intervals import FloatArray
from sweep.disk.columns import written_columns
from sweep.disk.tables import read_if_whole, read_table
from sweep.numbers.quantity import columns

SPREAD_OF = ("output_throughput", "ttft_p50", "tpot_p50")
REQUEST_GROUPS = 8  # groups of a trial's requests
MIDDLE = (0.1, 0.9)  # part of a trial without start and drain
MOST_TRIALS = 2000  # maximum trials whose spread is analysed
MOST_READ = 50  # maximum trials whose requests are read
NOT_ESTIMABLE = 1e-9  # share of a sum of squares; below it, the design does not separate this component


class Components(NamedTuple):
    """The spread of a quantity between trials at one point."""

    quantity: LabelledColumn
    deviation: float  # standard deviation of the logarithm; 0.02 means 2%
    shares: dict[str, float]  # component -> share of the variance; confounded components have one share
    notes: list[str]  # why a component has no separate share
    trials: int
    launches: int
    nodes: int


def components(run: Run, layout: Layout) -> list[Components]:
    """Return the components of variance of the quantities in SPREAD_OF, if points have replicates."""
    placed = layout.placed(run.ok)
    results: list[Components] = []
    for column in SPREAD_OF:
        labelled = labelled_column(column)
        if labelled is None or column not in placed:
            continue
        trials = placed[placed[column] > 0]
        trials = trials[trials.groupby("point")["point"].transform("size") > 1].head(MOST_TRIALS)
        if len(trials) > trials["point"].nunique():
            results.append(_components(run, labelled, trials))
    return results


def _components(run: Run, labelled: LabelledColumn, trials: pd.DataFrame) -> Components:
    nodes = trials["hardware"].map(lambda text: json.loads(text).get("node") if isinstance(text, str) else None)
    nodes = nodes.astype(object)
    factors = {"trial": np.arange(len(trials)), "launch": _codes(trials["launch"]), "node": _codes(nodes)}
    logs = np.log(trials[labelled.column].to_numpy(np.float64))
    variances, notes = _mivque(logs, _codes(trials["point"]), factors)
    confounded = next((name for name in variances if "trial" in name), "trial")
    request = min(_request_variance(run, trials, labelled.column), variances[confounded])
    if math.isnan(request):
        notes.append("request: included in the trial's share (requests are too few or missing)")
    else:
        variances = {**variances, confounded: variances[confounded] - request, "request": request}
    total = sum(variances.values())
    shares = {name: variance / total if total else 0.0 for name, variance in variances.items()}
    counts = len(trials), int(trials["launch"].nunique()), int(nodes.nunique())
    return Components(labelled, math.sqrt(total), shares, notes, *counts)


def _codes(values: "pd.Series[Any]") -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Number the distinct values. All unknown values are treated as one value."""
    return np.asarray(pd.factorize(values, use_na_sentinel=False)[0], np.int64)


def _mivque(logs: FloatArray, point: Any, factors: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Return the variances of factors that the design separates from earlier factors, and notes on the rest."""
    in_points = np.bincount(point)
    residuals = logs - (np.bincount(point, logs) / in_points)[point]
    kept_factors: dict[str, Any] = {}
    notes: list[str] = []
    names: list[str] = []
    for name, codes in factors.items():
        system = _expected_squares(point, in_points, [*kept_factors.values(), codes])
        scale = np.sqrt(np.outer(np.diag(system), np.diag(system)))
        if system[-1, -1] <= NOT_ESTIMABLE:
            notes.append(f"{name}: unknown (one {name} for all replicates of a point)")
        elif len(system) > 1 and np.linalg.det(system / scale) < NOT_ESTIMABLE:
            notes.append(f"{name}: confounded with {names[-1]} (one {names[-1]} in each {name})")
            names[-1] = f"{name} and {names[-1]}"
        else:
            kept_factors[name] = codes
            names.append(name)
    squares = [float((np.bincount(codes, residuals) ** 2).sum()) for codes in kept_factors.values()]
    system = _expected_squares(point, in_points, list(kept_factors.values()))
    estimates = np.maximum(np.linalg.solve(system, squares), 0.0)
    return dict(zip(names, map(float, estimates), strict=True)), notes


def _expected_squares(point: Any, in_points: Any, factors: list[Any]) -> FloatArray:
    """Return the expected sums of squares of the factors' residuals, per unit of each factor's variance.

    This is |Z' M Z|² for their incidences Z, where M subtracts the points' means. Each product of two incidences comes
    from the counts of level x point, which are few.
    """
    tables = [pd.crosstab(codes, point).to_numpy(np.float64) for codes in factors]
    system = np.zeros((len(factors), len(factors)))
    for i, first in enumerate(factors):
        for j, second in enumerate(factors[: i + 1]):
            both = np.zeros((len(tables[i]), len(tables[j])))
            np.add.at(both, (first, second), 1.0)
            system[i, j] = system[j, i] = ((both - (tables[i] / in_points) @ tables[j].T) ** 2).sum()
    return system


def shares_text(spread: Components) -> str:
    """Return the shares as text, e.g. `launch 60%, trial 31%, request 9%`."""
    return ", ".join(f"{name} {share:.0%}" for name, share in spread.shares.items())


# Within a trial ------------------------------------------------------------------------------------------------------


def _request_variance(run: Run, trials: pd.DataFrame, column: str) -> float:
    """Return a quantity's variance due to its finite number of requests, averaged over trials; NaN if unknown."""
    chosen = trials.iloc[:: max(1, math.ceil(len(trials) / MOST_READ))]
    variances = [variance for variance in _variances(run, chosen, column) if math.isfinite(variance)]
    return float(np.mean(variances)) if variances else math.nan


def _variances(run: Run, trials: pd.DataFrame, column: str) -> Iterator[float]:
    for _, row in trials[trials["attempt"].notna()].iterrows():
        names = written_columns(["phase", "error", "batch", "sent", "e2el", "output_tokens", "ttft", "tpot"])
        table = read_if_whole(read_table, trial_folder(run, row) / "requests.parquet", names)
        if table is not None:
            requests = table.to_pandas()
            yield variance_of_log(requests[(requests["phase"] == "measured") & requests["error"].isna()], column)


def variance_of_log(requests: pd.DataFrame, column: str) -> float:
    """Return the variance of the logarithm of a trial's value, estimated from parts of the trial."""
    requests = requests.dropna(subset=["sent", "e2el"]).sort_values("sent")
    if len(requests) < 2 * REQUEST_GROUPS:
        return math.nan
    if column == "output_throughput":
        parts = _throughputs(requests)
    else:
        groups = np.array_split(requests[columns()[column].quantity.name].dropna().to_numpy(np.float64), REQUEST_GROUPS)
        parts = np.array([np.median(group) if len(group) else np.nan for group in groups])
    parts = parts[np.isfinite(parts) & (parts > 0)]
    return float(np.var(np.log(parts), ddof=1) / len(parts)) if len(parts) > 1 else math.nan


def _throughputs(requests: pd.DataFrame) -> FloatArray:
    """Return the output throughput in parts of a trial: its batches, or equal time spans between start and drain."""
    sent, tokens = requests["sent"].to_numpy(np.float64), requests["output_tokens"].to_numpy(np.float64)
    ended = sent + requests["e2el"].to_numpy(np.float64)
    batches = requests["batch"].to_numpy(np.float64)
    if (batches >= 0).all() and len(np.unique(batches)) > 1:
        groups = [batches == batch for batch in np.unique(batches)]
        return np.array([tokens[group].sum() / (ended[group].max() - sent[group].min()) for group in groups])
    begin, duration = sent.min(), ended.max() - sent.min()
    edges = begin + duration * np.linspace(*MIDDLE, REQUEST_GROUPS + 1)
    streaming = requests["e2el"] - requests["ttft"].fillna(0.0)
    first = ended - streaming.clip(lower=1e-6).to_numpy(np.float64)
    overlap = np.minimum.outer(ended, edges[1:]) - np.maximum.outer(first, edges[:-1])
    rates: FloatArray = (np.maximum(overlap, 0.0) * (tokens / (ended - first))[:, None]).sum(axis=0) / np.diff(edges)
    return rates
