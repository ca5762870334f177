"""The studies' arrays are those that a run's files hand over: their quick form, through the writers and readers."""

import numpy as np
import pytest

from benchmarks.coverage import ours
from benchmarks.simulated_runs import Runs, simulate
from benchmarks.written import COLUMNS, alarms, winners, written_figures


@pytest.mark.parametrize(("scenario", "requests"), [("4 users", 24), ("batches of 8", 24), ("lognormal", 64)])
def test_the_figures_of_a_summary_are_those_of_the_coverage_study(scenario: str, requests: int) -> None:
    simulated = simulate(scenario, 12, requests, seed=2)
    runs = Runs(*(values.reshape(4, 3, requests).astype(np.float64) for values in simulated))
    with np.errstate(invalid="ignore", divide="ignore"):
        written, studied = written_figures(runs), ours(runs)
    for figure in COLUMNS:
        for name, expected in studied[figure]._asdict().items():
            actual = getattr(written[figure], name)
            assert np.allclose(actual, expected, rtol=1e-3, equal_nan=True), (figure, name)  # stamps are of 1 µs
    assert np.isfinite(written["p50"].new_low).all()


@pytest.mark.slow
def test_winners_and_alarms_of_runs_on_disk() -> None:
    """Launches differ by 2 %: of three engines the one that is 10 % faster is named, and of equal ones none."""
    assert winners(3, 3, 2) == (0.0, 1.0)
    assert alarms(3, 1) == (0.0, 1.0)
