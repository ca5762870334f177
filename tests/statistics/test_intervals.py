"""Intervals of pooled requests: by hand, in made-up runs, and by simulation."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.results import open_results
from analysis.statistics.intervals import NEW_LAUNCH_MARGIN, PooledRequests, _drain, over_replicates, t, throughput
from analysis.summary import summarise
from benchmarks.coverage import QUANTILES, Cell, steady_study, study
from benchmarks.simulated_runs import simulate
from sweep.base.records import Record, Records
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from tests.support.results import run_of, trial

INDEPENDENT = np.random.default_rng(5).lognormal(-2, 0.5, (4, 1600))  # s, of four replicates


def records_of(latencies: np.ndarray, failures: int = 0) -> Records:
    """Requests a second apart, each answered with one token after its latency; the last ones fail."""
    records = Records()
    for index, latency in enumerate(latencies):
        record = Record(
            f"r{index}", "measured", float(index), float(index), float(index), input_tokens=10, output_tokens=1
        )
        if index < len(latencies) - failures:
            record.chunk_us.append(round(latency * 1e6))
            record.chunk_tokens.append(1)
        else:
            record.error = "timed out"
            record.ended = index + 60.0
        records.append(record)
    return records


def run_with(folder: Path, replicates: np.ndarray, attempts: str = "abcd", failures: int = 0) -> None:
    """A run of one point, whose rows say what a trial alone says of its requests."""
    rows = []
    for index, latencies in enumerate(replicates):
        row = trial("a", 8, index, 10.0, attempt=attempts[index], num_requests=len(latencies), num_failed=failures)
        row |= {f"ttft_{name}": float(np.quantile(latencies, q)) for name, q in QUANTILES.items()}
        row |= {"ttft_mean": float(latencies.mean()), "request_throughput": 1.0}
        paths = RunPaths(folder).trial(row["deployment_id"], row["attempt"], row["trial_id"])
        run_files.write_requests(paths, records_of(latencies, failures))
        rows.append(row)
    run_of(folder, rows)


def point_of(folder: Path) -> "pd.Series[float]":
    return summarise(open_results(folder).run).iloc[0]


def test_a_quantile_is_of_the_pooled_requests_and_its_ends_are_of_them(tmp_path: Path) -> None:
    run_with(tmp_path, INDEPENDENT)
    point = point_of(tmp_path)
    for name, q in QUANTILES.items():
        assert point[f"ttft_{name}"] == pytest.approx(np.quantile(INDEPENDENT, q), rel=1e-4)
        low, high = (float(np.mean(point[f"ttft_{name}_ci_{end}"] >= INDEPENDENT)) for end in ("low", "high"))
        expected = 2 * math.sqrt(q * (1 - q) / INDEPENDENT.size)
        assert q - 2 * expected < low < q < high < q + 2 * expected
    assert point["ttft_p99"] != pytest.approx(np.quantile(INDEPENDENT, 0.99, axis=1).mean(), rel=1e-4)
    assert point["ttft_p99_effective_n"] == pytest.approx(INDEPENDENT.size, rel=0.25)


def test_too_few_requests_have_no_quantile_and_some_more_no_interval(tmp_path: Path) -> None:
    run_with(tmp_path, INDEPENDENT[:3, :100])
    point = point_of(tmp_path)
    assert math.isnan(point["ttft_p99"])  # three requests are beyond it
    assert point["ttft_p95"] == pytest.approx(np.quantile(INDEPENDENT[:3, :100], 0.95), rel=1e-4)
    assert math.isnan(point["ttft_p95_ci_low"])
    assert point["ttft_p50_ci_low"] < point["ttft_p50"] < point["ttft_p50_ci_high"]


def test_dependent_requests_have_a_figure_without_an_interval(tmp_path: Path) -> None:
    waves = INDEPENDENT[:3, :500] + np.sin(np.arange(500) / 60)[None, :] + 1
    run_with(tmp_path, waves)
    point = point_of(tmp_path)
    assert point["ttft_p50"] == pytest.approx(np.quantile(waves, 0.5), rel=1e-4)
    assert point["ttft_p50_effective_n"] < 300
    assert math.isnan(point["ttft_p50_ci_low"])


def test_a_new_launch_is_less_sure_than_these_and_needs_two(tmp_path: Path) -> None:
    slower = np.array([1.0, 1.05, 0.97, 1.02])[:, None]
    run_with(tmp_path / "each", INDEPENDENT * slower, "abcd")
    run_with(tmp_path / "one", INDEPENDENT * slower, "aaaa")
    each, one = point_of(tmp_path / "each"), point_of(tmp_path / "one")
    for name in ("ttft_p50", "ttft_mean"):
        assert each[f"{name}_new_launch_low"] < each[f"{name}_ci_low"]
        assert each[f"{name}_ci_high"] < each[f"{name}_new_launch_high"]
        assert one[f"{name}_ci_low"] == each[f"{name}_ci_low"]
        assert math.isnan(one[f"{name}_new_launch_low"])


def test_a_failed_request_is_slower_than_any(tmp_path: Path) -> None:
    run_with(tmp_path, INDEPENDENT[:3], failures=32)
    point = point_of(tmp_path)
    assert math.isnan(point["ttft_p99"])  # 2 % failed
    answered = INDEPENDENT[:3, :-32]
    ranks = np.sort(np.concatenate([answered.ravel(), np.full(3 * 32, np.inf)]))
    assert point["ttft_p90"] == pytest.approx(ranks[int(0.9 * ranks.size)], rel=1e-3)
    assert point["ttft_mean"] == pytest.approx(answered.mean(), rel=1e-4)


def test_without_its_requests_a_point_has_its_trials_figures_and_no_interval_of_a_quantile(tmp_path: Path) -> None:
    run_with(tmp_path, INDEPENDENT)
    next(tmp_path.rglob("requests.parquet")).unlink()
    point = point_of(tmp_path)
    assert point["ttft_p99"] == pytest.approx(np.quantile(INDEPENDENT, 0.99, axis=1).mean())
    assert math.isnan(point["ttft_p99_ci_low"])


def test_no_end_of_a_positive_figure_is_below_zero(tmp_path: Path) -> None:
    spread = [trial("a", 8, index, 10.0 * 9**index, ttft_p50=0.1 * 9**index) for index in range(3)]
    run = run_of(tmp_path, spread)
    analysis.write_all(open_results(tmp_path))
    numbers = pd.read_csv(run.paths.summary).select_dtypes("number")
    assert (numbers.min().dropna() >= 0).all()


def test_a_median_of_few_requests_has_an_interval_from_the_launches_by_hand() -> None:
    """Medians of 1, 2 and 4: their logarithms differ by log 2; Student's t of two degrees of freedom is 4.303."""
    factor = 2 ** (1.1 * 4.302653 / math.sqrt(3))
    figure = PooledRequests(np.array([[1.0, 1.0, 9.0], [2.0, 1.5, 2.5], [4.0, 4.0, 4.0]])).quantile(0.5)
    assert np.allclose(figure[:5], [2.5, 2.5 / factor, 2.5 * factor, 2.5 / factor, 2.5 * factor])
    assert figure.by_launches
    one_launch = PooledRequests(np.array([[1.0], [2.0], [4.0]]), launches=[0, 0, 0]).quantile(0.5)
    assert np.isfinite(one_launch.low)
    assert np.isnan(one_launch.new_low)
    for own in ([1.0, 1.0, 1.0], [1.0, np.inf, 2.0], [1.0, 0.0, 2.0], [1.0, 2.0]):
        assert np.isnan(PooledRequests(np.array(own)[:, None]).quantile(0.5)[1:5]).all(), own


def test_few_requests_of_which_one_is_slow_give_a_throughput_no_interval() -> None:
    """How often such a request comes is not known; nor is it of so few that there may be one in fifty."""
    even = np.random.default_rng(3).lognormal(0, 0.1, (3, 20))
    slow = even.copy()
    slow[0, 3] = 30.0
    for latency, shown in ((even, True), (slow, False), (even[:, :16], False)):
        pool, sent = PooledRequests(latency), np.cumsum(latency, -1) - latency
        assert np.isfinite(throughput(np.ones_like(latency), sent, latency).low) == shown
        assert np.isnan(pool.mean().low), "a mean rests on what a few hundred requests may not show"
        assert pool.quantile(0.5).by_launches, "a median does not rest on the slowest"


def test_the_drain_of_equal_answers_is_that_of_the_last_of_eight() -> None:
    """In batches of eight the rest of an answer is uniform, and of eight such the largest varies by 8 / 810."""
    sent, latency = np.repeat(np.arange(3.0), 8)[None], np.ones((1, 24))
    assert _drain(sent, latency, latency[0], np.array([24])) == pytest.approx(8 / 810)


def test_a_mean_over_replicates_by_hand() -> None:
    zero = np.zeros(2, np.int64)
    # s of {9, 11} is √2, s/√2 = 1, t(0.975, 1) = tan(0.475 π)
    figure = over_replicates(np.array([9.0, 11.0]), zero, zero, 1)
    assert figure.high[0] == pytest.approx(10 * math.exp(math.tan(0.475 * math.pi) / 10))
    assert math.isnan(figure.new_low[0])
    apart = over_replicates(np.array([9.0, 11.0]), zero, np.arange(2), 1)
    assert apart.new_high[0] == pytest.approx(figure.high[0])
    with_zero = over_replicates(np.array([0.0, 2.0]), zero, zero, 1)
    assert (with_zero.low[0], with_zero.value[0]) == (0.0, 1.0)


def test_replicates_may_differ_in_length() -> None:
    padded = INDEPENDENT.copy()
    padded[1, 900:] = np.nan
    values = padded[~np.isnan(padded)]
    figure = PooledRequests(padded).quantile(0.9)
    assert float(figure.value) == pytest.approx(np.quantile(values, 0.9))
    assert figure.low < figure.value < figure.high
    assert PooledRequests(np.ones((3, 500))).quantile(0.5)[:3] == (1.0, 1.0, 1.0)  # equal ones are no trend


def test_a_throughput_that_rests_on_where_a_slow_answer_fell_has_no_interval() -> None:
    even, slow = (simulate(scenario, 3, 100, seed=1) for scenario in ("lognormal", "2% slow"))
    steady, chance = (throughput(np.ones((3, 100)), runs.sent, runs.latency) for runs in (even, slow))
    assert float(steady.value) == pytest.approx(300 / (even.sent + even.latency).max(-1).sum())
    assert steady.low < steady.value < steady.high
    assert np.isnan(chance.low)


def records_with_gaps(gaps: np.ndarray) -> Records:
    """Requests a second apart, each with a first token after 0.1 s and then one after each gap."""
    records = Records()
    for index, row in enumerate(gaps):
        stamps = np.rint(1e6 * (0.1 + np.concatenate([[0], np.cumsum(row)]))).astype(np.uint32)
        record = Record(f"r{index}", "measured", float(index), float(index), float(index), output_tokens=len(stamps))
        record.chunk_us.extend(stamps.tolist())
        record.chunk_tokens.extend([1] * len(stamps))
        records.append(record)
    return records


def run_with_gaps(folder: Path, replicates: np.ndarray, **columns: float) -> None:
    rows = []
    for index, gaps in enumerate(replicates):
        row = trial("a", 8, index, 10.0, attempt=f"{index}", num_requests=len(gaps), **columns)
        row |= {"itl_mean": float(gaps.mean()), "itl_p50": 0.01, "itl_p99": 0.01}
        paths = RunPaths(folder).trial(row["deployment_id"], row["attempt"], row["trial_id"])
        run_files.write_requests(paths, records_with_gaps(gaps))
        rows.append(row)
    run_of(folder, rows)


def test_quantiles_of_gaps_are_pooled_and_their_unit_is_the_request(tmp_path: Path) -> None:
    """Gaps of a request that are all alike say no more than one of them, however many there are."""
    chance = np.random.default_rng(3)
    of_requests = chance.lognormal(-4, 0.3, (3, 300, 1))
    alike = np.repeat(of_requests, 20, axis=-1)
    apart = np.exp(chance.normal(-4, 0.3, (3, 300, 20)))
    widths = {}
    for name, gaps in (("alike", alike), ("apart", apart)):
        run_with_gaps(tmp_path / name, gaps)
        point = point_of(tmp_path / name)
        assert point["itl_p50"] == pytest.approx(np.quantile(gaps, 0.5), rel=1e-3)
        assert point["itl_p50_ci_low"] < point["itl_p50"] < point["itl_p50_ci_high"]
        assert point["itl_p50_new_launch_low"] <= point["itl_p50_ci_low"]
        widths[name] = point["itl_p50_ci_high"] - point["itl_p50_ci_low"]
        assert np.isnan(point["itl_p99_ci_low"]) == (name == "alike"), "nine requests are beyond it, or 180 gaps"
    assert widths["alike"] > 3 * widths["apart"]


def test_one_replicate_without_a_steady_state_leaves_its_figures_without_an_interval(tmp_path: Path) -> None:
    """Those that have one were selected."""
    for name, windows in (("all", 3), ("some", 2)):
        rows = [
            trial("a", 8, index, 10.0, steady_output_throughput=10.0 + index, launch=f"l{index}")
            | ({"steady_begin": 1.0, "steady_end": 9.0} if index < windows else {"steady_output_throughput": None})
            for index in range(3)
        ]
        point = summarise(run_of(tmp_path / name, rows)).iloc[0]
        assert np.isnan(point["steady_output_throughput_new_launch_low"]) == (name == "some")
        assert np.isnan(point["steady_output_throughput_ci_low"]), "fewer than five replicates"


def test_a_lockstep_batch_with_a_failed_request_is_slower_than_any(tmp_path: Path) -> None:
    """Batches of two, of which the second request of every eighth batch fails: the p90 does not exist, the p50 does."""
    rows = []
    for index in range(3):
        records = records_of(np.full(160, 0.5))
        for number in range(160):
            records.batch[number] = number // 2
            if number % 16 == 1:
                records.error[number] = "reset: by peer"
        row = trial("a", 2, index, 10.0, attempt="a", num_requests=160, num_failed=10, batch_latency_mean=1.5)
        row |= {"batch_latency_p50": 1.5, "batch_latency_p90": None}
        paths = RunPaths(tmp_path).trial(row["deployment_id"], row["attempt"], row["trial_id"])
        run_files.write_requests(paths, records)
        rows.append(row)
    run = run_of(tmp_path, rows)
    point = summarise(run).iloc[0]
    assert point["batch_latency_p50"] == pytest.approx(1.5)
    assert "batch_latency_p90" in point
    assert not np.isfinite(point["batch_latency_p90"])


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = [cell for name in ("lognormal", "load 0.7") for cell in study(name, [100, 1500], [3], 300, seed=2)]
        return [*whole, *steady_study("load 0.7", replicates=[3], repetitions=100, seed=2)]


@pytest.mark.slow
def test_intervals_hold_the_truth(cells: list[Cell]) -> None:
    """A corner of docs/measurements/coverage.md: 0.90 is five standard errors of 300 repetitions below what is seen."""
    shown = [cell for cell in cells if cell.rule == "ours" and cell.counts]
    figures = {(cell.figure, cell.requests) for cell in shown if cell.scenario == "load 0.7"}
    assert {("p50", 100), ("mean", 1500), ("throughput", 100), ("p90", 1500), ("p99", 1500)} <= figures
    assert {("itl p50", 1500), ("itl p99", 1500), ("steady p50", 1500), ("steady p99", 1500)} <= figures
    assert min(cell.coverage for cell in shown) > 0.90
    assert max(cell.width for cell in shown) < 1.7


def test_replicates_that_refute_the_batches_leave_the_interval_of_a_new_launch() -> None:
    """Alike within a replicate and not between: three values, so Student's t over them, with its margin."""
    within = np.random.default_rng(1).normal(1.0, 0.01, (1, 3, 400))
    factors = np.array([0.9, 1.0, 1.1])[:, None]
    narrow, wide = (PooledRequests(values).mean() for values in (within, within * factors))
    assert np.isnan(wide.high)
    half = np.log(wide.new_high / wide.value)
    assert half == pytest.approx(t(2.0) * 0.1 / np.sqrt(3) * NEW_LAUNCH_MARGIN, rel=0.05)
    assert np.log(narrow.high / narrow.value) < 0.01


@pytest.mark.parametrize(("scenario", "shown"), [("lognormal", True), ("Pareto 1.5", False)])
def test_a_heavy_tail_has_no_interval_of_a_mean_or_a_throughput(scenario: str, shown: bool) -> None:
    runs = simulate(scenario, 120, 1000, seed=3)
    latency, sent = (values.reshape(40, 3, 1000).astype(np.float64) for values in (runs.latency, runs.sent))
    figures = PooledRequests(latency).mean(), throughput(np.ones_like(latency), sent, latency)
    for figure in figures:
        assert (np.isfinite(figure.low).mean() > 0.9) == shown == (np.isfinite(figure.low).mean() > 0.5)


def shown_and_covered(scenario: str, replicates: int, n: int, figure: str) -> tuple[float, float]:
    """Return the share of 100 repetitions with an interval, and the share of all whose interval lacks the truth."""
    cells = study(scenario, [n], [replicates], 100, seed=5, rival_rules=False)
    cell = next(cell for cell in cells if (cell.rule, cell.figure) == ("ours", figure))
    return cell.shown, cell.misleading


@pytest.mark.parametrize(
    ("scenario", "replicates", "n", "figure"),
    [
        ("stalls", 2, 500, "mean"),
        ("stalls", 3, 500, "p95"),
        ("stalls", 5, 500, "throughput"),
        ("Pareto 2.5", 3, 500, "throughput"),
        ("bursts 0.5", 3, 100, "throughput"),
        ("bursts 0.7", 5, 100, "throughput"),
    ],
)
def test_a_figure_that_rests_on_few_events_has_no_interval(scenario: str, replicates: int, n: int, figure: str) -> None:
    """A few stalls, bursts or slow answers do not show how often they come. Of steady requests as many are enough."""
    assert shown_and_covered(scenario, replicates, n, figure)[0] < 0.5
    assert shown_and_covered("load 0.5", replicates, n, figure)[0] > 0.7


def test_two_replicates_allow_for_what_outlasts_them() -> None:
    """At a speed that wanders for 300 requests, intervals without an allowance lack the truth in 10% and more."""
    shown, misleading = shown_and_covered("wandering speed", 2, 1500, "throughput")
    assert shown > 0.5
    assert misleading < 0.1


@pytest.mark.slow
def test_intervals_of_a_new_launch_hold_the_truth_and_those_over_requests_do_not(cells: list[Cell]) -> None:
    assert min(cell.coverage for cell in cells if cell.rule == "new launch, 5%" and cell.counts) > 0.90
    theirs = {(cell.rule, cell.figure, cell.requests): cell for cell in cells if cell.scenario == "lognormal"}
    assert theirs["AIPerf", "p99", 100].coverage < 0.90
