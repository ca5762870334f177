"""A trial ends by a stall, not by the clock: through the whole command on an engine that hangs, or is merely slow."""

import time

import pandas as pd
import pytest

from sweep.__main__ import main

pytestmark = pytest.mark.slow

SIMULATED = ["backend=simulated", "model=tiny-llama", "cluster=inline", "tracking=none", "agreement=false"]
SHORT = ["workload.input_tokens=16", "workload.num_requests=4", "workload.warmup_requests=0", "load.batch_size=2"]


def outcomes(tmp_path, *arguments):
    status = main([*SIMULATED, *SHORT, *arguments, f"out={tmp_path / 'run'}"])
    rows = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    return status, rows[["outcome", "reason"]].fillna("").values.tolist()


def test_an_engine_without_a_token_is_hung(tmp_path):
    began = time.monotonic()
    stalls = ("backend.faults={hang: 1.0}", "stall_timeout=1", "workload.output_tokens=4", "attempts=1")
    assert outcomes(tmp_path, *stalls) == (1, [["hung", "no token of any request for stall_timeout=1 s"]])
    assert time.monotonic() - began < 60  # far below the default of 600 s; a busy machine takes a while to start


def test_a_slow_trial_is_not_stalled(tmp_path):
    """It takes three times the stall timeout, with a token every tenth of it."""
    status, rows = outcomes(tmp_path, "backend.itl.mean=0.05", "workload.output_tokens=16", "stall_timeout=0.5")
    assert (status, rows) == (0, [["ok", ""]])
