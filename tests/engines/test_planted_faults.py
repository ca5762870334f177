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
