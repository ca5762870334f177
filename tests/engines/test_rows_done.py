"""A batch of transformers' whose rows have all ended costs no further step."""

import pytest

from tests.engines.conftest import configured, printed_by_library

pytestmark = pytest.mark.engine

GENERATE = """
import json, sys
from pathlib import Path
from backends.host.library import LibrarySettings, PromptRow
from backends.host.libraries import transformers_library
library = transformers_library.load(LibrarySettings(Path(sys.argv[1]), "cpu", "float32", 0, {}))
steps, forward = [0], library.model.forward
def counted(*arguments, **named):
    steps[0] += 1
    return forward(*arguments, **named)
library.model.forward = counted
def run(rows):
    steps[0] = 0
    def emit(tokens):
        for index, token in tokens:
            if not rows[index].done:
                rows[index].take(token)
    library.generate(rows, emit)
    return [steps[0], [row.tokens for row in rows], [row.finish_reason for row in rows]]
prompts = [[5, 6, 7], [8, 9]]
first = run([PromptRow(prompt, 6, frozenset()) for prompt in prompts])
ends = [frozenset({tokens[index]}) for index, tokens in zip((1, 0), first[1])]
print(json.dumps([first, run([PromptRow(prompt, 6, end) for prompt, end in zip(prompts, ends)])]))
"""


def test_a_batch_that_ends_by_its_end_tokens_costs_no_further_step(environments):
    python = environments(configured("backend", "transformers")).python
    by_length, by_end = printed_by_library(GENERATE, python)
    assert by_length[0] == 6
    assert by_length[2] == ["length", "length"]
    assert by_end[2] == ["stop", "stop"]
    assert by_end[0] == max(len(tokens) for tokens in by_end[1])
