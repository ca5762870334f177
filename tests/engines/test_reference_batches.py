"""How many prompts the reference answers at once."""

import pytest

from tests.engines.conftest import configured, printed_by_library

pytestmark = pytest.mark.engine

BATCHES = """
import json
from backends.host.library import PromptRow
from backends.host.reference_tokens import fitting_batches
rows = [PromptRow([5] * length, 48, frozenset()) for length in [1024, 20] * 20 + [30] * 20 + [9000]]
print(json.dumps([[len(row.prompt) for row in batch] for batch in fitting_batches(rows)]))
"""


def test_prompts_of_like_lengths_are_answered_together_and_no_more_than_fit(environments):
    batches = printed_by_library(BATCHES, environments(configured("backend", "transformers")).python)
    assert batches == [[20] * 20 + [30] * 12, [30] * 8, [1024] * 7, [1024] * 7, [1024] * 6, [9000]]
