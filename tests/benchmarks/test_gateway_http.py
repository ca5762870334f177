"""Random HTTP at the gateway and random imports, a few of each kind."""

import pytest

from benchmarks.gateway_http import KINDS, fuzz_gateway, fuzz_import


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_random_http_is_refused_or_answered(kind):
    outcomes = fuzz_gateway(kind, cases=60, number=2)
    assert outcomes.total() >= 40
    assert {outcome for outcome in outcomes if outcome not in ("200", "closed") and outcome[0] != "4"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm_bench.json", "guidellm.json", "aiperf.json"])
def test_random_imports_are_read_or_refused(name):
    assert fuzz_import(name, cases=15, number=2).keys() <= {"imported", "refused"}
