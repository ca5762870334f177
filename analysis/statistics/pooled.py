"""Computes the values of a run's points with their intervals, from the pooled requests of all replicates of a point.

A quantile of a few requests is too low on average, and so is a mean of such quantiles. So the requests of a point's
trials are pooled, and so are their gaps. They are read for a few points at a time. A point with an unreadable trial
falls back to the means of its trials' values, without intervals for quantiles and with a warning.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis.load import Run, trial_folder
from analysis.statistics import intervals
from analysis.statistics.intervals import (
    FloatArray,
    Interval,
    PooledGaps,
    PooledRequests,
    quantile_alone,
    without_intervals,
)
from sweep.base.records import UNKNOWN
from sweep.disk.columns import written_columns
from sweep.disk.tables import read_if_whole, read_table
from sweep.numbers.chunks import Block
from sweep.numbers.quantity import Statistic, columns

REQUESTS_AT_ONCE = 400_000  # requests in memory at once; ten series of them take 32 MB
GAPS_OF_A_REQUEST = 20  # number of gaps that take as much memory as a request's series
MOST_GAPS = 8_000_000  # values of a point (requests x most gaps of one request); with more there is no interval
OF_A_TRIAL = (
    "trial_id",
    "deployment_id",
    "attempt",
    "num_requests",
    "client_stamp_source",
    "itl_mean",
    "steady_begin",
    "steady_end",
)
"""The columns needed to read the requests of a trial."""
OF_A_REQUEST = ("service_e2el", "scheduled", "sent", "ended", "input_tokens", "output_tokens")
THROUGHPUTS: Mapping[str, Sequence[str]] = {
    "output_throughput": ("output_tokens",),
    "total_throughput": ("input_tokens", "output_tokens"),
    "request_throughput": (),
}
"""The throughputs over a whole run, and each request's contribution: its tokens, or 1."""

GOOD_SHARE = "goodput_share"
REFERENCE_COLUMNS = ("agreement", "quality")
"""Columns compared with a reference, whose intervals are in NAME_low and NAME_high."""

Values = dict[str, FloatArray]  # a trial's measured requests in order of sending, by column
Codes = NDArray[np.int64]
Replicates = list[tuple[FloatArray, ...]]  # arrays for each replicate of a point


class _Point(NamedTuple):
    number: int
    trials: list[Values]
    windows: list[tuple[float, float]]  # start and end of each trial's steady state
    launches: list[int]


def point_figures(run: Run, measured: pd.DataFrame, point: Codes) -> tuple[dict[str, Interval], list[str]]:
    """Return every measured column for all points, and for each point the columns that could not be pooled.

    `measured` has the columns of all trials, empty if a trial has no result; `point` is the point of each trial.
    """
    count = int(point.max(initial=-1)) + 1
    ok_launches = launches(run)
    launch: Codes = np.asarray(ok_launches.reindex(measured.index, fill_value=-1), np.int64)
    pooled = pooled_columns(run)
    rates = {name for name, statistic in columns(run.percentiles).items() if statistic.steady and name not in pooled}
    figures = {
        str(name): intervals.over_replicates(
            measured[name].to_numpy(np.float64),
            point,
            launch,
            count,
            intervals.FEWEST_FOR_STEADY_RATES if name in rates else intervals.FEWEST_REPLICATES,
        )
        for name in measured
    }
    pooled = {name: statistic for name, statistic in pooled.items() if name in figures}
    for name, statistic in pooled.items():
        figure = figures[name]  # the mean of the trials' values until the requests are read
        if statistic.name not in ("mean", "p50"):  # unreliable for few requests (docs/measurements/coverage.md)
            figure = without_intervals(figure)
        figures[name] = figure._replace(by_launches=np.isfinite(figure.low))
    unpooled = {name: np.isfinite(figures[name].value) for name in [*pooled, *(THROUGHPUTS.keys() & figures.keys())]}
    unbelieved = np.ones(count, np.bool_)  # points whose trials' input tokens do not match their prompts
    if "total_throughput" in measured:
        unbelieved[point[measured["total_throughput"].notna().to_numpy()]] = False
    for points in _parts(run, pd.Series(point, measured.index)[run.ok.index], ok_launches, pooled):
        for name, interval, chosen in _figures(points, pooled, figures.keys()):
            positions = [point.number for point in chosen]
            unpooled[name][positions] = False
            without = unbelieved[positions] if name == "total_throughput" else np.zeros(len(positions), np.bool_)
            for column, values in zip(figures[name], interval, strict=True):
                missing = False if column.dtype == np.bool_ else np.nan
                column[positions] = np.where(without, missing, values)
    unsettled = np.zeros(count, np.bool_)
    unsettled[point[measured.index.get_indexer(run.ok.index[run.ok["steady_begin"].isna()])]] = True
    for name in rates & figures.keys() | {name for name, statistic in pooled.items() if statistic.steady}:
        figures[name] = without_intervals(figures[name], unsettled)  # only trials with a steady state were selected
    if "cost_per_million_tokens" in figures and "output_throughput" in figures:
        hourly = (measured["cost_per_million_tokens"] * measured["output_throughput"]).groupby(point).mean()
        figures["cost_per_million_tokens"] = _per(hourly.to_numpy(np.float64), figures["output_throughput"])
    if GOOD_SHARE in figures and "e2el_p50" in figures:
        point_of_ok = point[measured.index.get_indexer(run.ok.index)]
        requests = run.ok["num_requests"].astype("float64").groupby(point_of_ok).sum()
        all_requests = requests.reindex(range(count)).to_numpy(np.float64)
        independent = np.fmin(figures["e2el_p50"].effective_n, all_requests)
        figures[GOOD_SHARE] = intervals.of_share(figures[GOOD_SHARE], independent)
    for name in REFERENCE_COLUMNS:
        if {name, f"{name}_low", f"{name}_high"} <= {*measured}:
            ends = measured[[f"{name}_low", f"{name}_high"]].groupby(point).mean().to_numpy(np.float64).T
            figures[name] = _with_comparison_interval(figures[name], *ends)
    return figures, [", ".join(name for name in unpooled if unpooled[name][number]) for number in range(count)]


def _with_comparison_interval(figure: Interval, low: FloatArray, high: FloatArray) -> Interval:
    """Return a value with the interval of its trials' comparisons instead of an interval over trials.

    All launches compare the same sample, so the choice of the sample shifts all values equally. The spread between
    trials does not include this effect, but the comparison's interval does. For a new launch both vary independently,
    so half the interval is the root of the sum of the two halves' squares. An engine's noise within a comparison is
    included in both, so the interval is slightly too wide, never too narrow. `low` and `high` are means over trials.
    """
    new_low = np.maximum(figure.value - np.hypot(figure.value - figure.new_low, figure.value - low), 0)
    new_high = figure.value + np.hypot(figure.new_high - figure.value, high - figure.value)
    return figure._replace(low=low, high=high, new_low=new_low, new_high=new_high)


def of_endpoints(run: Run) -> "pd.Series[bool]":
    """Return, for each ok trial, whether it was measured at an endpoint, which sweep did not launch."""
    deployments = run.ok.drop_duplicates("deployment_id")
    configs = [json.loads(str(config)) if pd.notna(config) else {} for config in deployments["config"]]
    attached = [(config.get("backend") or {}).get("url") is not None for config in configs]
    return run.ok["deployment_id"].isin(deployments["deployment_id"][attached])


def launches(run: Run) -> "pd.Series[int]":
    """Return the number of the launch on which each ok trial ran. All trials at an endpoint share one launch."""
    deployment = run.ok["deployment_id"].astype(str)
    launch = (deployment + "/" + run.ok["attempt"].astype(str)).where(~of_endpoints(run), deployment)
    if "launch" in run.ok:
        launch = run.ok["launch"].fillna(launch)
    return pd.Series(pd.factorize(launch)[0], run.ok.index)


def pooled_columns(run: Run) -> dict[str, Statistic]:
    """Return the columns that pool a point's requests (all but the maximum), batches or gaps (only quantiles)."""
    return {column: statistic for column, statistic in columns(run.percentiles).items() if _is_pooled(statistic)}


def _is_pooled(statistic: Statistic) -> bool:
    if statistic.quantity.per in ("gap", "batch"):
        return statistic.name not in ("mean", "max") and not statistic.steady
    return statistic.quantity.per == "request" and statistic.name != "max"


def _per(hourly: FloatArray, throughput: Interval) -> Interval:
    """Return the cost per token, from the throughput. A high throughput gives the low end of the cost."""
    value, low, high, new_low, new_high, effective_n, by_launches = throughput
    with np.errstate(invalid="ignore", divide="ignore"):
        ends = (hourly / high, hourly / low, hourly / new_high, hourly / new_low)
        return Interval(hourly / value, *ends, effective_n, by_launches)


# Reading -------------------------------------------------------------------------------------------------------------


def _parts(
    run: Run, point: "pd.Series[int]", launch: "pd.Series[int]", pooled: Mapping[str, Statistic]
) -> Iterator[list[_Point]]:
    """Yield the points whose requests can all be read, a few at a time."""
    quantities = {statistic.quantity.name: statistic.quantity for statistic in pooled.values()}
    series = {name: quantity.request_column for name, quantity in quantities.items() if quantity.per == "request"}
    latencies = [name for name in series if quantities[name].kind == "latency"]
    of_gaps = {name: quantity.function for name, quantity in quantities.items() if quantity.per == "gap"}
    batch, requests = list[_Point](), 0
    ok_rows = run.ok[[name for name in OF_A_TRIAL if name in run.ok]]  # or hundreds of columns are copied each time
    ok_rows = ok_rows.astype(object).where(ok_rows.notna(), None)  # taking a row across many column types takes 1 ms
    for index, ok in ok_rows.groupby(point, sort=False):
        trials = list[Values]()
        for _, trial in ok.iterrows():
            arrays = None if pd.isna(trial["attempt"]) else _read(run, trial, series, latencies, of_gaps)
            if arrays is None:
                break
            trials.append(arrays)
        else:
            windows = ok[["steady_begin", "steady_end"]].astype("float64").itertuples(index=False, name=None)
            batch.append(_Point(int(str(index)), trials, list(windows), launch[ok.index].to_list()))
            gaps = sum(arrays[name].size for arrays in trials for name in of_gaps if name in arrays)
            requests += sum(arrays["sent"].size for arrays in trials) + gaps // GAPS_OF_A_REQUEST
        if requests > REQUESTS_AT_ONCE:
            yield batch
            batch, requests = [], 0
    if batch:
        yield batch


def _read(
    run: Run, trial: "pd.Series[Any]", series: Mapping[str, str], latencies: Sequence[str], of_gaps: Mapping[str, Any]
) -> Values | None:
    """Return a trial's measured requests; None if they are missing, damaged, or do not match its row.

    The series of gaps have the shape (requests with a gap, most gaps of one request), NaN after a request's last gap.
    """
    chunks = ["chunk_us", "chunk_tokens"] if of_gaps and pd.notna(trial["itl_mean"]) else []
    needed = written_columns([*series.values(), *OF_A_REQUEST, *chunks, "phase", "batch", "error"])
    table = read_if_whole(read_table, trial_folder(run, trial) / "requests.parquet", needed)
    if table is None or not set(needed) <= set(table.column_names):  # damaged, or from an older version
        return None
    mask, batch = _measured(table)
    if mask.sum() != trial["num_requests"]:  # the first lockstep batch is not in the row
        mask &= batch != 0
    if mask.sum() != trial["num_requests"]:
        return None
    sources = {**series, **{field: field for field in OF_A_REQUEST}}
    arrays = {field: table[column].to_numpy()[mask].astype(np.float64) for field, column in sources.items()}
    arrays |= {"took": arrays["service_e2el"], "batch": batch[mask].astype(np.float64)}
    arrays["failed"] = table["error"].is_valid().to_numpy()[mask].astype(np.float64)
    if trial["client_stamp_source"] == "engine":  # its latencies exclude the path to the client
        arrays |= {field: np.full_like(arrays[field], np.nan) for field in latencies}
    order = np.argsort(arrays["sent"], kind="stable")
    arrays = {field: column[order] for field, column in arrays.items()}
    if chunks:
        measured = table.filter(mask).take(order)
        arrays |= {field: _gaps(measured, function) for field, function in of_gaps.items()}
    return arrays


def _measured(table: pa.Table) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return which requests were measured, and their lockstep batches."""
    return pc.equal(table["phase"], "measured").to_numpy(), table["batch"].fill_null(UNKNOWN).to_numpy()


def lack_requests(run: Run, trials: pd.DataFrame) -> bool:
    """Return whether the requests of some of these trials are missing, damaged, or do not match the trial's row.

    Imported rows never had any, and a run in a store is compared without fetching them.
    """
    if run.copy is not None or "attempt" not in trials:
        return False
    for _, trial in trials[trials["attempt"].notna()].iterrows():
        path = trial_folder(run, trial) / "requests.parquet"
        table = read_if_whole(read_table, path, ["phase", "batch"])
        if table is None:
            return True
        mask, batch = _measured(table)
        if trial["num_requests"] not in (mask.sum(), (mask & (batch != 0)).sum()):
            return True
    return False


def _gaps(requests: pa.Table, function: Callable[[Block], NDArray[Any]]) -> FloatArray:
    """Return a series of gaps in seconds, as 4-byte floats. Shape (requests with a gap, most gaps of one request)."""
    us, tokens = (requests[column].combine_chunks() for column in ("chunk_us", "chunk_tokens"))
    request = np.repeat(np.arange(len(us)), us.value_lengths().to_numpy())
    tokens = tokens.flatten().to_numpy()
    arrived = tokens > 0
    block = Block(request[arrived], us.flatten().to_numpy()[arrived].astype(np.int64), tokens[arrived])
    sizes = np.bincount(block.request[1:][block.inside()])
    sizes = sizes[sizes > 0]
    filled = np.full((sizes.size, sizes.max(initial=0)), np.nan, np.float32)
    filled[np.arange(filled.shape[1]) < sizes[:, None]] = function(block) / 1e6
    return filled


# Figures -------------------------------------------------------------------------------------------------------------


def _figures(
    points: list[_Point], pooled: Mapping[str, Statistic], names: Collection[str]
) -> Iterator[tuple[str, Interval, list[_Point]]]:
    """Yield (column, interval, points): each column that is pooled over requests, with the points that it covers."""
    groups: dict[tuple[str, bool], list[Statistic]] = defaultdict(list)
    for statistic in pooled.values():
        groups[statistic.quantity.name, statistic.steady].append(statistic)
    for (figure, steady), statistics in groups.items():
        if statistics[0].quantity.per == "gap":
            yield from _figures_of_gaps(points, figure, statistics)
            continue
        samples: list[Replicates] = [[(one,) for one in _replicates(point, statistics[0], steady)] for point in points]
        for chosen, (sample,), launch in _batches(points, samples):
            for statistic, interval in _of_requests(sample, launch, statistics):  # or batches, treated as requests
                yield statistic.column, interval, chosen
    for figure in THROUGHPUTS.keys() & set(names):
        samples = [[_work(trial, figure) for trial in point.trials] for point in points]
        for chosen, (counts, sent, latency), launch in _batches(points, samples):
            yield figure, intervals.throughput(counts, sent, latency, launch), chosen


def _figures_of_gaps(
    points: list[_Point], name: str, statistics: Sequence[Statistic]
) -> Iterator[tuple[str, Interval, list[_Point]]]:
    for point in points:
        launched = [
            (launch, trial[name])
            for launch, trial in zip(point.launches, point.trials, strict=True)
            if name in trial and trial[name].size
        ]
        if not launched:
            continue
        replicates = [gaps for _, gaps in launched]
        shape = (1, len(replicates), *np.max([gaps.shape for gaps in replicates], axis=0))
        if np.prod(shape) > MOST_GAPS:
            pooled_gaps = np.concatenate([gaps[~np.isnan(gaps)] for gaps in replicates])
            for statistic in statistics:
                yield statistic.column, quantile_alone(pooled_gaps, _rank(statistic)), [point]
            continue
        filled = np.full(shape, np.nan, np.float32)
        for index, gaps in enumerate(replicates):
            filled[0, index, : gaps.shape[0], : gaps.shape[1]] = gaps
        pool = PooledGaps(filled, list(pd.factorize(np.array([launch for launch, _ in launched]))[0]))
        for statistic in statistics:
            yield statistic.column, pool.quantile(_rank(statistic)), [point]


def _rank(statistic: Statistic) -> float:
    """Return a percentile's quantile level, e.g. 0.99 for p99."""
    return float(statistic.name[1:].replace("_", ".")) / 100


def _replicates(point: _Point, statistic: Statistic, steady: bool) -> Iterator[FloatArray]:
    """Return each replicate's values, within its steady state for a steady statistic. Failed requests are +∞.

    However, a failed request's wait for a slot is known, and the client's delay is not a latency.
    """
    quantity = statistic.quantity
    for trial, (begin, end) in zip(point.trials, point.windows, strict=True):
        if quantity.per == "batch":
            yield _batch_latencies(trial)
            continue
        sample, failed = trial[quantity.name], trial["failed"] > 0
        if quantity.kind == "latency" and not np.isnan(sample).all():
            sample = np.where(failed & (np.isnan(sample) if quantity.event == "sent" else True), np.inf, sample)
        else:
            sample = np.where(failed, np.nan, sample)
        if steady:
            sent = np.where(np.isnan(trial["sent"]), trial["scheduled"], trial["sent"])  # never sent: until it was due
            sample = sample[(sent >= begin) & (sent <= end)]
        yield sample[~np.isnan(sample)]


def _batch_latencies(trial: Values) -> FloatArray:
    """Return the time from sending each lockstep batch to its last token; +∞ if a request failed."""
    ends = trial["sent"] + trial["took"]
    ends[(trial["failed"] > 0) | np.isnan(ends)] = np.inf
    frame = pd.DataFrame({"batch": trial["batch"], "sent": trial["sent"], "end": ends})
    batches = frame[frame["batch"] != UNKNOWN].groupby("batch")
    return np.asarray(batches["end"].max() - batches["sent"].min(), np.float64)


def _of_requests(
    sample: FloatArray, launch: Sequence[int], statistics: Sequence[Statistic]
) -> Iterator[tuple[Statistic, Interval]]:
    """Yield statistics of values of shape (points, R, n). A mean covers the successful requests."""
    pool = PooledRequests(sample, launch)
    for statistic in statistics:
        if statistic.name != "mean":
            yield statistic, pool.quantile(_rank(statistic))
        elif np.isinf(sample).any():
            finite = np.where(np.isinf(sample), np.nan, sample)
            finite = np.take_along_axis(finite, np.isnan(finite).argsort(-1, kind="stable"), -1)
            yield statistic, PooledRequests(finite, launch).mean()
        else:
            yield statistic, pool.mean()


def _work(trial: Values, name: str) -> tuple[FloatArray, ...]:
    """Return each request's contribution to a throughput, its send time, and its duration until end or failure."""
    done = np.where(trial["failed"] > 0, 0.0, 1.0)
    if THROUGHPUTS[name]:
        done = done * np.where(done > 0, sum(trial[column] for column in THROUGHPUTS[name]), 0.0)
    latency = np.where(trial["failed"] > 0, trial["ended"] - trial["sent"], trial["took"])
    there = ~np.isnan(trial["sent"]) & ~np.isnan(latency)
    if np.isnan(done).any():  # one request's tokens are unknown, so the sum is unknown
        there &= False
    return done[there], trial["sent"][there], latency[there]


def _batches(
    points: list[_Point], samples: Sequence[Replicates]
) -> Iterator[tuple[list[_Point], list[FloatArray], list[int]]]:
    """Yield together the points that have equal numbers of replicates and launches, in arrays of shape (points, R, n).

    Replicates without a value are excluded.
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
        for member, (_, replicates) in enumerate(members):
            for column, arrays in enumerate(replicates):
                for target, sample in zip(filled, arrays, strict=True):
                    target[member, column, : sample.size] = sample
        yield [point for point, _ in members], filled, list(launch)
