"""What the host reads from the queue of transformers' own continuous batching."""

import pytest

from tests.engines.conftest import configured, printed_by_library

pytestmark = pytest.mark.engine

# Reads the results of a row one by one, and those of an equal row all at once, as a host does that comes late.
READ = """
import json, sys, time
from pathlib import Path
from backends.host.library import LibrarySettings, PromptRow
from backends.host.libraries import transformers_cb_library
flags = {"attn_implementation": "sdpa", "kv_cache": {"kv_cache_gib": 0.05}, "scheduler": {"max_batch_tokens": 64}}
library = transformers_cb_library.load(LibrarySettings(Path(sys.argv[1]), "cpu", "float32", 0, flags))
def read(together):
    row, steps = PromptRow([5, 6, 7], 6, frozenset()), 0
    library.add(row)
    while together and library._outputs.qsize() < 6:
        time.sleep(0.01)
    while not row.done:
        for step in library.step():
            steps += 1
            for token in step.tokens:
                row.take(token)
    return [steps, row.tokens]
print(json.dumps([read(False), read(True)]), flush=True)
library.manager.destroy()
"""


def test_results_that_are_read_together_bring_each_token_once(environments):
    python = environments(configured("backend", "transformers_cb")).python
    one_by_one, together = printed_by_library(READ, python)
    assert together == one_by_one == [6, one_by_one[1]]
