"""A simulated engine for the length of a `with` block, for tests."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def simulated(**config: Any) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Its URL and process; after the block it has ended and its log is complete."""
    config = {"ttft": {"mean": 0.02}, "itl": {"mean": 0.002}} | config
    command = [sys.executable, "-m", "backends.simulated_server", "--config", json.dumps(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield f"http://127.0.0.1:{line.rsplit(':', 1)[-1].strip()}", process
    finally:
        process.terminate()
        process.communicate()
