"""Which points of an unfinished run need no more trials."""

import pytest

from analysis.quantities import compared_column
from analysis.racing import retired_trials
from tests.support.results import run_of, trial

SPEEDS = {("a", 1): 100, ("b", 1): 50, ("a", 2): 50, ("b", 2): 100}  # by backend and batch size
NOISE = (1.0, 1.01, 0.99)
BEATEN = {("b", "a", 1), ("a", "b", 2)}  # point, best and batch size
WON = {("a", "a", 1), ("b", "b", 2)}


@pytest.mark.parametrize(
    ("further", "left", "expected"),
    [
        ({}, (), BEATEN | WON),  # each load has its best
        ({"c": {"agreement": 0.1}}, (), BEATEN),  # a point that is not ranked may yet be best, so nobody has won
        ({"c": {"agreement": 0.1}}, {"c"}, BEATEN | WON),
        ({}, {"a"}, {("b", "a", 1), ("b", "b", 2)}),  # a best that left the race has not won again
    ],
)
def test_a_point_needs_no_more_trials_once_beaten_or_without_rivals(tmp_path, further, left, expected):
    speeds = SPEEDS | {(backend, batch): 75 for backend in further for batch in (1, 2)}
    rows = [
        trial(backend, batch, replicate, speed * noise, **further.get(backend, {}))
        for (backend, batch), speed in speeds.items()
        for replicate, noise in enumerate(NOISE)
    ]
    racing = {row["trial_id"] for row in rows if row["backend"] not in left}
    judged = retired_trials(run_of(tmp_path, rows), compared_column("output_throughput", ()), racing, 2)
    points = {(each.split("-")[0], best.split("-")[0], int(best.split("-")[1])) for each, best, _ in judged}
    assert points == expected
