"""Faults planted into a real engine are caught by agreement or quality, and engines that are right raise no alarm.

On trained weights of the package index, against transformers in float32; each case takes a minute on an idle core.
"""

import pytest

from scripts.agreement_study import CASES, compared

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]
FAULTS = [case for case in CASES if case.name.startswith("fault")]
RIGHT = [case for case in CASES if case.fault is None and "transformers" in case.name]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_a_planted_fault_is_caught(case, tmp_path):
    (columns,) = compared(case, 1, tmp_path)
    assert columns["below_gate"], columns


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_an_engine_that_is_right_raises_no_alarm(case, tmp_path):
    (columns,) = compared(case, 1, tmp_path)
    assert columns["below_gate"] is None
    assert columns["agreement_positions"] >= 1400
    assert columns["quality_tokens"] >= 2000
    assert columns["agreement"] >= (0.985 if "float32" in case.name else 0.96)
