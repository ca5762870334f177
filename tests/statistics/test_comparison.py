"""Who won: paired by replicate, corrected for the number of engines, with the launch as the unit."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.comparison import PRIOR_FREEDOM, BlockModel, Trials, comparison_blocks, contest, fit
from analysis.statistics.contests import Standing
from analysis.summary import summarise
from benchmarks import winners
from tests.support.results import printed, run_of, trial, warnings_of


def trials_of(engines: int, replicates: int, shared: bool = False) -> Trials:
    """One trial of each engine in each replicate, in launches of their own, or in one for each engine."""
    point = np.repeat(np.arange(engines), replicates)
    replicate = np.tile(np.arange(replicates), engines)
    launch = [f"{a}" if shared else f"{a}-{b}" for a, b in zip(point, replicate, strict=True)]
    return Trials(point, replicate, np.array(launch, object))


def differences(model: BlockModel, above: list[int], below: list[int]) -> tuple[Any, Any]:
    return model.contrasts(model.pairs(above, below), model.sidak(len(above)))


def test_two_engines_are_compared_by_the_paired_t_test() -> None:
    above, below = np.array([10.0, 20.0, 40.0]), np.array([9.0, 19.0, 35.0])
    model = fit(np.concatenate([above, below]), trials_of(2, 3), 2)
    difference, half = differences(model, [0], [1])
    expected = stats.ttest_rel(np.log(above), np.log(below)).confidence_interval(0.95)
    assert (difference - half, difference + half) == pytest.approx((expected.low, expected.high))


def test_pairing_removes_what_a_replicate_has_in_common() -> None:
    """Replicates that differ by a factor of two tell nothing against a steady lead of 3 %."""
    values = np.array([10.0, 20.0, 40.0, 10.3, 20.7, 41.1])
    model = fit(values, trials_of(2, 3), 2)
    assert contest(model, "higher").won
    assert not contest(fit(values[[0, 1, 2, 4, 5, 3]], trials_of(2, 3), 2), "higher").won


def test_intervals_against_one_engine_are_corrected_for_their_number() -> None:
    """Sidak's: each of m intervals is at 0.95^(1/m), with the variance of all engines, if the pair's is no larger."""
    values = np.exp(np.random.default_rng(1).normal(0, 0.02, 12) * np.repeat([1, 1, 1, 9], 3))
    alone = differences(fit(values[:6], trials_of(2, 3), 2), [1], [0])[1][0]
    model = fit(values, trials_of(4, 3), 4)
    half = differences(model, [1, 2, 3], [0, 0, 0])[1]
    logs = np.log(values).reshape(4, 3)
    residuals = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0) + logs.mean()
    assert model.freedom == 6
    assert model.variance == pytest.approx((residuals**2).sum() / 6)
    own = ((residuals**2).sum(axis=1) * 4 / 3 + PRIOR_FREEDOM * model.variance) / (2 + PRIOR_FREEDOM)
    both = own[1:] + own[0]
    freedom = both**2 / ((own[1:] ** 2 + own[0] ** 2) / (2 + PRIOR_FREEDOM))
    pooled = stats.t.ppf((1 + 0.95 ** (1 / 3)) / 2, 6) * math.sqrt(2 * model.variance / 3)
    assert half == pytest.approx(np.maximum(pooled, stats.t.ppf(0.975, freedom) * np.sqrt(both / 3)))
    assert half.min() == pytest.approx(pooled), "at least one by the pooled variance"
    assert half.max() > 1.1 * pooled, "at least one by its own"
    assert alone == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(2 * (np.var(logs[1] - logs[0], ddof=1) / 2) / 3))


def test_without_all_replicates_the_rest_still_counts() -> None:
    """A failed trial: the others of its block are compared, and the block's effect is not mistaken for an engine's."""
    values = np.array([10.0, 20.0, 40.0, 11.0, 22.0, np.nan, 12.0, 24.0, 48.0])
    model = fit(values, trials_of(3, 3), 3)
    difference, _ = differences(model, [1, 2], [0, 0])
    assert np.exp(difference) == pytest.approx([1.1, 1.2])
    apart = Trials(np.array([0, 1]), np.array([0, 1]), np.array(["a", "b"], object))
    assert np.isnan(differences(fit(np.array([1.0, 2.0]), apart, 2), [1], [0])[1]).all(), "no block in common"


def test_replicates_of_one_launch_are_one_block() -> None:
    """Two replicates of engine 0 share a launch: these two blocks are one. With one launch each there is one block."""
    mixed = trials_of(2, 3)
    mixed.launch[1] = mixed.launch[0]
    assert len(set(comparison_blocks(mixed))) == 2
    assert len(set(comparison_blocks(trials_of(2, 3, shared=True)))) == 1
    values = np.array([10.0, 10.1, 9.9, 20.0, 20.2, 20.1])
    assert contest(fit(values, trials_of(2, 3, shared=True), 2), "higher").tied(1).tolist() == [True, False]
    assert contest(fit(values, trials_of(2, 3), 2), "higher").won
    endpoints = trials_of(2, 3)._replace(launch=np.full(6, None, object))
    assert len(set(comparison_blocks(endpoints))) == 3, "what is not launched here is measured by replicates"


def test_settings_of_one_engine_measured_in_the_same_launches_are_paired_within_them() -> None:
    """Its luck at launch is the same for both."""
    same = Trials(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array(["x", "x", "x", "x"], object))
    assert len(set(comparison_blocks(same))) == 2


@pytest.mark.parametrize(("engines", "replicates"), [(2, 3), (7, 2), (7, 3), (31, 3)])
def test_equal_engines_have_no_winner_and_a_faster_one_is_named(engines: int, replicates: int) -> None:
    """The study of docs/measurements/winners.md in short: 5 % of 200 sweeps, give or take two standard errors."""
    cell = winners.study(engines, replicates, sweeps=200, seed=1)
    assert cell.false_winners <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
    assert cell.false_ratios <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
    if (engines, replicates) == (7, 3):
        assert cell.named >= 0.9


@pytest.mark.parametrize(("engines", "replicates"), [(7, 2), (7, 3), (31, 3)])
def test_an_engine_that_is_less_steady_than_the_others_is_not_named_for_its_luck(engines: int, replicates: int) -> None:
    """Five times as noisy: with the pooled variance alone, or a pair's of one or two degrees, 14 to 19 %."""
    cell = winners.study(engines, replicates, sweeps=400, seed=1, uneven=5.0)
    assert max(cell.false_winners, cell.false_of_two) <= 0.08 + math.sqrt(0.08 * 0.92 / 400)


SPEEDS = {"fast": (30.0, 30.3, 30.1), "alike": (29.9, 30.4, 29.8), "slow": (20.0, 20.3, 20.1)}


def rows_of_three(**other: Any) -> list[dict[str, Any]]:
    return [
        trial(name, 8, index, speed, launch=f"{name}{index}", **other)
        for name, speeds in SPEEDS.items()
        for index, speed in enumerate(speeds)
    ]


def test_the_best_is_never_of_another_load_or_task(tmp_path: Path) -> None:
    """A larger batch has a higher throughput, and is no better."""
    rows = [
        trial(name, batch, index, speed * batch + index / 10, launch=f"{name}{index}", workload=task)
        for task in ("qa", "stories")
        for batch in (1, 8)
        for name, speed in (("a", 10.0), ("b", 12.0))
        for index in range(3)
    ]
    run = run_of(tmp_path, rows)
    points = summarise(run)
    best = points[points["output_throughput_standing"] == Standing.BEST]
    assert sorted(zip(best["workload"], best["batch_size"], strict=True)) == [
        ("qa", 1), ("qa", 8), ("stories", 1), ("stories", 8)
    ]  # fmt: skip
    assert set(best["backend"]) == {"b"}
    assert printed(run, 120).startswith("b is the fastest at 4 of 4 tasks")


@pytest.mark.slow
def test_with_one_launch_each_nothing_is_told_apart(tmp_path: Path) -> None:
    run = run_of(tmp_path, [{**row, "launch": row["backend"]} for row in rows_of_three()])
    assert warnings_of(run)["shared-launches"].startswith("3 replicates on 1 launch: the comparison is a tie")
    assert summarise(run).set_index("backend").loc["slow", "output_throughput_standing"] == Standing.TIED
