"""What a launch's claim says in words, and of a fresh launch; the limits that an engine's flags set."""

import math
from types import SimpleNamespace

import pytest

from sweep.search.capacity import Claim
from sweep.search.claim_details import with_fresh_launch
from sweep.search.launch_search import claim_lines
from sweep.search.probes import limits_of
from sweep.search.twin import UNLIMITED, Limits
from tests.support.results import claim_record


def test_a_fresh_launch_is_predicted_from_the_lower_ends_of_all_launches():
    lowers, t = [10.0, 10.5, 11.0], 2.9200  # 95% with two degrees of freedom
    first, _, last = with_fresh_launch([claim_record(low, 12) for low in lowers])
    logs = [math.log(low) for low in lowers]
    mean = sum(logs) / 3
    spread = math.sqrt(sum((log - mean) ** 2 for log in logs) / 2)
    expected = math.exp(mean - t * spread * math.sqrt(4 / 3))
    assert first["fresh_launch"]["lower"] == last["fresh_launch"]["lower"] == pytest.approx(expected, rel=1e-4)
    assert len(first["lines"]) == 3
    assert last["lines"][3] == (
        "fresh launch: at least 8.93 requests/s, at a risk of 5%; 3 launches, whose lower ends differ by 4.8%"
    )
    again = with_fresh_launch([first, last])
    assert len(again[1]["lines"]) == 4


@pytest.mark.parametrize("lowers", [[10.0], [10.0, 0.0]])
def test_one_launch_or_one_without_a_capacity_says_nothing_of_a_fresh_launch(lowers):
    records = with_fresh_launch([claim_record(low, 12) for low in lowers])
    assert [record["fresh_launch"] for record in records] == [None] * len(lowers)


def test_saturation_is_no_bound():
    _, limit, _ = claim_lines(Claim("interval", 5.0, 8.0, "saturation"))
    assert limit == "limit:    the deployment is saturated before a bound is exceeded"


@pytest.mark.parametrize(
    ("replicas", "flags", "limits"),
    [
        (1, {"max-num-seqs": 8, "max_num_batched_tokens": 512}, Limits(8, UNLIMITED, 512)),
        (2, {"max-num-seqs": 8, "max_num_batched_tokens": 512}, Limits(16, UNLIMITED, 1024)),
        (3, {}, Limits(UNLIMITED, UNLIMITED, 3 * Limits().step_tokens)),
    ],
)
def test_the_limits_of_a_launch_are_those_of_all_its_replicas(replicas, flags, limits):
    backend = SimpleNamespace(launches=True, replicas=replicas, flags_for=lambda platform: flags)
    assert limits_of(backend, "cuda") == limits
