"""Faults planted into a real engine are caught by agreement or quality, and engines that are right raise no alarm.

On trained weights of the package index, against transformers in float32. The gate has two of the faults and an engine
that is right, on the sample that 30 s allow; with all of it each case takes minutes. docs/measurements/agreement.md has
every case.
"""

from dataclasses import replace

import pytest

from scripts.agreement_study import CASES, FLOAT32, Case, compared

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]
SHORT = ("comparison_limit=30",)
OF_GATE = ("swapped", "truncated", "float32")
FAULTS = [case for case in CASES if case.name.startswith("fault")]
NAMED = {case.name: case for case in CASES}
RIGHT = [case for case in CASES if case.fault is None and "transformers" in case.name]


def cases(every: list[Case]) -> list:
    """Some cases on a short sample, in float32, in which any CPU computes; for the full set, all cases as they are."""
    short = [case for case in every if any(word in case.name for word in OF_GATE)]
    quick = [replace(case, overrides=(*FLOAT32, *SHORT)) for case in short]
    return [
        *(pytest.param(case, id=f"{case.name}, short") for case in quick),
        *(pytest.param(case, id=case.name, marks=pytest.mark.full) for case in every),
    ]


@pytest.mark.parametrize("case", cases(FAULTS))
def test_a_planted_fault_is_caught(case, tmp_path):
    (columns,) = compared(case, 1, tmp_path)
    assert columns["below_gate"], columns


@pytest.mark.parametrize("case", cases(RIGHT))
def test_an_engine_that_is_right_raises_no_alarm(case, tmp_path):
    (columns,) = compared(case, 1, tmp_path)
    assert columns["below_gate"] is None
    assert columns["agreement"] >= (0.985 if "float32" in case.name else 0.96)
    if SHORT[0] not in case.overrides:
        assert columns["agreement_positions"] >= 1400
        assert columns["quality_tokens"] >= 2000


@pytest.mark.full
def test_the_agreement_of_a_coarser_format_lies_below_that_of_bfloat16_by_more_than_both_intervals(tmp_path):
    coarser, right = "coarser: 4 bits, round to nearest, groups of 64", "transformers, bfloat16"
    (low,) = compared(NAMED[coarser], 1, tmp_path / "coarser")
    (high,) = compared(NAMED[right], 1, tmp_path / "right")
    assert min(low["agreement_positions"], high["agreement_positions"]) >= 1400
    assert low["agreement_high"] < high["agreement_low"]
