"""The figures of a run's points with their intervals, from the requests of all replicates of a point together.

A quantile of few requests is too low on average, and so is the mean of such quantiles. So the requests of a point's
trials are pooled. They are read for some points at a time; a point with a trial whose requests cannot be read falls
back on the trials' own figures, and has no interval of a quantile.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis import intervals
from analysis.intervals import FloatArray, Interval, PooledRequests
from analysis.load import Run, trial_folder
from sweep.disk import run_files
from sweep.numbers.quantity import Statistic, columns

REQUESTS_AT_ONCE = 400_000  # requests held at once: ten series of them are 32 MB
OF_A_TRIAL = (
    "trial_id",
    "deployment_id",
    "attempt",
    "num_requests",
    "client_stamp_source",
    "steady_begin",
    "steady_end",
)
"""The columns by which the requests of a trial are read."""
THROUGHPUTS: Mapping[str, Sequence[str]] = {
    "output_throughput": ("output_tokens",),
    "total_throughput": ("input_tokens", "output_tokens"),
    "request_throughput": (),
}
"""The throughputs over a whole run, and what each request adds to them: its tokens, or 1."""

Values = dict[str, FloatArray]  # of a trial's measured requests in the order of the sends, by column
Codes = NDArray[np.int64]
Replicates = list[tuple[FloatArray, ...]]  # arrays of each replicate of a point


class _Point(NamedTuple):
    """A point of which all requests are there."""

    number: int
    trials: list[Values]
    windows: list[tuple[float, float]]  # begin and end of the trials' steady states
    launches: list[int]


def point_figures(run: Run, measured: pd.DataFrame, point: Codes) -> dict[str, Interval]:
    """Each measured column of all points.

    Args:
        run: the measurements.
        measured: the columns of all trials, empty for those without a result.
        point: the number of the point of each.
    """
    count = int(point.max(initial=-1)) + 1
    launch: Codes = np.asarray(launches(run).reindex(measured.index, fill_value=-1), np.int64)
    figures = {
        str(name): intervals.over_replicates(measured[name].to_numpy(np.float64), point, launch, count)
        for name in measured
    }
    pooled = {name: statistic for name, statistic in pooled_columns(run).items() if name in figures}
    for name, statistic in pooled.items():
        if statistic.name != "mean":  # of few requests such an interval does not hold (docs/measurements/coverage.md)
            figures[name] = _without_intervals(figures[name])
    for points in _parts(run, pd.Series(point, measured.index)[run.ok.index], sorted(_series(pooled.values()))):
        for name, interval, chosen in _figures(points, pooled, figures.keys()):
            for column, values in zip(figures[name], interval, strict=True):
                column[[one.number for one in chosen]] = values
    if "cost_per_million_tokens" in figures and "output_throughput" in figures:
        hourly = (
            (measured["cost_per_million_tokens"] * measured["output_throughput"])
            .groupby(point)
            .mean()
            .to_numpy(np.float64)
        )
        figures["cost_per_million_tokens"] = _per(hourly, figures["output_throughput"])
    return figures


def of_endpoints(run: Run) -> "pd.Series[bool]":
    """Whether each ok trial was measured at an endpoint that others launched."""
    first = run.ok.drop_duplicates("deployment_id")
    configs = [json.loads(str(config)) if pd.notna(config) else {} for config in first["config"]]
    attached = [(config.get("backend") or {}).get("url") is not None for config in configs]
    return run.ok["deployment_id"].isin(first["deployment_id"][attached])


def launches(run: Run) -> "pd.Series[int]":
    """The launch of the engine that each ok trial ran on, as a number. An endpoint's trials are all of one launch."""
    deployment = run.ok["deployment_id"].astype(str)
    launch = (deployment + "/" + run.ok["attempt"].astype(str)).where(~of_endpoints(run), deployment)
    if "launch" in run.ok:
        launch = run.ok["launch"].fillna(launch)
    return pd.Series(pd.factorize(launch)[0], run.ok.index)


def pooled_columns(run: Run) -> dict[str, Statistic]:
    """The columns of statistics of requests, of the whole run and of the steady state."""
    return {
        name: statistic
        for name, statistic in columns(run.percentiles).items()
        if statistic.quantity.per == "request" and statistic.name != "max"
    }


def _series(statistics: Iterable[Statistic]) -> set[str]:
    return {statistic.quantity.name for statistic in statistics}


def _without_intervals(figure: Interval) -> Interval:
    nothing = np.full_like(figure.value, np.nan)
    return Interval(figure.value, nothing, nothing.copy(), nothing.copy(), nothing.copy(), figure.effective_n)


def _per(hourly: FloatArray, throughput: Interval) -> Interval:
    """A cost per token from the one per hour: its low end is where the throughput is high."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return Interval(
            hourly / throughput.value,
            hourly / throughput.high,
            hourly / throughput.low,
            hourly / throughput.new_high,
            hourly / throughput.new_low,
            throughput.effective_n,
        )


# Reading -------------------------------------------------------------------------------------------------------------


def _parts(run: Run, point: "pd.Series[int]", series: Sequence[str]) -> Iterator[list[_Point]]:
    """The points of which all requests can be read, some at a time."""
    part, held = list[_Point](), 0
    numbers = launches(run)
    ok_rows = run.ok[[name for name in OF_A_TRIAL if name in run.ok]]  # hundreds of columns would be copied for a point
    for index, ok in ok_rows.groupby(point, sort=False):
        trials = list[Values]()
        for _, row in ok.iterrows():
            values = None if pd.isna(row["attempt"]) else _read(run, row, series)
            if values is None:
                break
            trials.append(values)
        else:
            windows = ok[["steady_begin", "steady_end"]].astype("float64").itertuples(index=False, name=None)
            part.append(_Point(int(str(index)), trials, list(windows), numbers[ok.index].to_list()))
            held += sum(values["sent"].size for values in trials)
        if held > REQUESTS_AT_ONCE:
            yield part
            part, held = [], 0
    if part:
        yield part


def _read(run: Run, row: "pd.Series[Any]", series: Sequence[str]) -> Values | None:
    """The measured requests of a trial; None if they are missing or damaged, or not those that its row is about."""
    names = list(dict.fromkeys([*series, "service_e2el", "sent", "ended", "input_tokens", "output_tokens"]))
    table = None
    with suppress(FileNotFoundError, run_files.DamagedFile):
        table = run_files.read_table(trial_folder(run, row) / "requests.parquet", [*names, "phase", "batch", "error"])
    if table is None or not set(names) <= set(table.column_names):
        return None
    mask = pc.equal(table["phase"], "measured").to_numpy()
    if mask.sum() != row["num_requests"]:  # the first lockstep batch is not in the row
        mask &= table["batch"].fill_null(-1).to_numpy() != 0
    if mask.sum() != row["num_requests"]:
        return None
    values = {name: table[name].to_numpy()[mask].astype(np.float64) for name in names}
    values["failed"] = table["error"].is_valid().to_numpy()[mask].astype(np.float64)
    if row["client_stamp_source"] == "engine":  # its latencies leave out the way to the client
        values |= {name: np.full_like(values[name], np.nan) for name in series}
    order = np.argsort(values["sent"], kind="stable")
    return {name: column[order] for name, column in values.items()}


# Figures -------------------------------------------------------------------------------------------------------------


def _figures(
    points: list[_Point], pooled: Mapping[str, Statistic], names: Collection[str]
) -> Iterator[tuple[str, Interval, list[_Point]]]:
    """The figures of the points' requests: column, figure and the points that it is of."""
    groups: dict[tuple[str, bool], list[Statistic]] = defaultdict(list)
    for statistic in pooled.values():
        groups[statistic.quantity.name, statistic.steady].append(statistic)
    for (_, steady), statistics in groups.items():
        samples: list[Replicates] = [
            [(values,) for values in _replicates(point, statistics[0], steady)] for point in points
        ]
        for chosen, (values,), launch in _batches(points, samples):
            for statistic, interval in _of_requests(values, launch, statistics):
                yield statistic.column, interval, chosen
    for name in THROUGHPUTS.keys() & set(names):
        samples = [[_work(trial, name) for trial in point.trials] for point in points]
        for chosen, (counts, sent, latency), launch in _batches(points, samples):
            yield name, intervals.throughput(counts, sent, latency, launch), chosen


def _replicates(point: _Point, statistic: Statistic, steady: bool) -> Iterator[FloatArray]:
    """The values of each replicate, of its steady state if the statistic is of that; those of failed requests are +∞.

    The wait of a failed request for a slot is known, and the client's own delay is no latency.
    """
    quantity = statistic.quantity
    for trial, (begin, end) in zip(point.trials, point.windows, strict=True):
        values, failed = trial[quantity.name], trial["failed"] > 0
        if quantity.kind == "latency" and not np.isnan(values).all():
            values = np.where(failed & (np.isnan(values) if quantity.event == "sent" else True), np.inf, values)
        else:
            values = np.where(failed, np.nan, values)
        if steady:
            values = values[(trial["sent"] >= begin) & (trial["sent"] <= end)]
        yield values[~np.isnan(values)]


def _of_requests(
    values: FloatArray, launch: Sequence[int], statistics: Sequence[Statistic]
) -> Iterator[tuple[Statistic, Interval]]:
    """Statistics of values of shape (points, R, n); a mean is of the requests that succeeded."""
    pool = PooledRequests(values, launch)
    for statistic in statistics:
        if statistic.name != "mean":
            yield statistic, pool.quantile(float(statistic.name[1:].replace("_", ".")) / 100)
        elif np.isinf(values).any():
            finite = np.where(np.isinf(values), np.nan, values)
            yield (
                statistic,
                PooledRequests(
                    np.take_along_axis(finite, np.isnan(finite).argsort(-1, kind="stable"), -1), launch
                ).mean(),
            )
        else:
            yield statistic, pool.mean()


def _work(trial: Values, name: str) -> tuple[FloatArray, ...]:
    """What each request of a trial adds to a throughput, when it was sent, and how long it took or was tried."""
    done = np.where(trial["failed"] > 0, 0.0, 1.0)
    if THROUGHPUTS[name]:
        done = done * np.where(done > 0, sum(trial[column] for column in THROUGHPUTS[name]), 0.0)
    latency = np.where(trial["failed"] > 0, trial["ended"] - trial["sent"], trial["service_e2el"])
    there = ~np.isnan(trial["sent"]) & ~np.isnan(latency)
    if np.isnan(done).any():  # the tokens of one are unknown, and so is their sum
        there &= False
    return done[there], trial["sent"][there], latency[there]


def _batches(
    points: list[_Point], samples: Sequence[Replicates]
) -> Iterator[tuple[list[_Point], list[FloatArray], list[int]]]:
    """Points with as many replicates and launches together: their samples in arrays of shape (points, R, n).

    A replicate without a value is left out.
    """
    alike: dict[tuple[int, ...], list[tuple[_Point, Replicates]]] = defaultdict(list)
    for point, replicates in zip(points, samples, strict=True):
        present = [index for index, arrays in enumerate(replicates) if arrays[0].size]
        codes = pd.factorize(np.array([point.launches[index] for index in present], np.int64))[0]
        if present:
            alike[tuple(map(int, codes))].append((point, [replicates[index] for index in present]))
    for launch, members in alike.items():
        longest = max(arrays[0].size for _, replicates in members for arrays in replicates)
        shape = (len(members), len(launch), longest)
        filled = [np.full(shape, np.nan) for _ in members[0][1][0]]
        for row, (_, replicates) in enumerate(members):
            for column, arrays in enumerate(replicates):
                for target, values in zip(filled, arrays, strict=True):
                    target[row, column, : values.size] = values
        yield [point for point, _ in members], filled, list(launch)
