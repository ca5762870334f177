"""`sweep capacity` and `sweep quick` against the simulated engine, whose capacity a small queue knows."""

import json

import numpy as np
import pytest

from sweep.cli.commands import dispatch
from sweep.disk.run_files import RunPaths, read_trials
from sweep.search import capacity
from tests.support.simulated_engine import simulated

SLOTS, TTFT, ITL, OUTPUT = 4, 0.1, 0.01, 11
SERVICE = TTFT + (OUTPUT - 1) * ITL
BOUND = 0.4  # s, of the TTFT


def p90_of_ttft(rate, count=40_000):
    """The p90 of a queue with SLOTS servers and this service time."""
    free, waits = [0.0] * SLOTS, []
    for arrival in np.cumsum(np.random.default_rng(1).exponential(1 / rate, count)):
        start = max(arrival, min(free))
        free[free.index(min(free))] = start + SERVICE
        waits.append(start + TTFT - arrival)
    return np.quantile(waits, 0.9)


def true_capacity():
    low, high = 0.3 * SLOTS / SERVICE, SLOTS / SERVICE
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if p90_of_ttft(middle) <= BOUND else (low, middle)
    return low


@pytest.fixture
def url(monkeypatch, tmp_path):
    monkeypatch.setattr(capacity, "LONG_RUN", 4000)
    monkeypatch.chdir(tmp_path)
    with simulated(ttft={"mean": TTFT}, itl={"mean": ITL}, max_concurrency=SLOTS) as (url, _):
        yield url


def rows(out):
    return {row["trial_id"]: row for row in read_trials(RunPaths(out).trials)}


@pytest.mark.slow
def test_the_interval_of_a_search_holds_the_capacity_and_the_command_goes_on(url, tmp_path, capsys):
    command = ["capacity", url, "--slo", f"ttft={BOUND}s", "--budget", "20s"]
    command += ["workload.input_tokens=16", f"workload.output_tokens={OUTPUT}", "workload.spread=0"]
    command += ["out=run", "report=false"]
    for _ in range(3):
        assert dispatch(command) in (0, 1)  # a busy machine may limit the client, which ends the search
        printed = capsys.readouterr().out
        (claim,) = json.loads((tmp_path / "run" / "capacity.json").read_text()).values()
        if not claim["ended"]:
            break
    assert 0 < claim["lower"] < 1.05 * true_capacity() < 1.15 * claim["upper"]
    assert [line.partition(":")[0] for line in printed.splitlines()[-3:]] == ["capacity", "limit", "how sure"]
    measured = rows(tmp_path / "run")
    assert sum(row["outcome"] == "ok" for row in measured.values()) >= claim["probes"]
    (tmp_path / "run" / "capacity.json").unlink()
    assert dispatch([*command, "--format", "json"]) in (0, 1)
    (again,) = json.loads(capsys.readouterr().out).values()
    assert again["probes"] >= claim["probes"]
    if not claim["ended"]:
        assert again == claim
        assert rows(tmp_path / "run").keys() == measured.keys()
    dispatch(["summary", "run"])
    assert "limit:    ttft.p90 <= 0.4 s is met first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slo", "tpop=1s"], "tpop: expected ttft"),
        (["--slo", "ttft=1s", "--budget", "soon"], "capacity.budget='soon'"),
        (["--slo", "ttft=1s", "load=closed"], "load=closed: expected a load with a rate"),
    ],
)
def test_bad_input_is_refused_at_the_door(arguments, message, url):
    with pytest.raises(Exception, match=message):
        dispatch(["capacity", url, *arguments, "dry_run=true"])
