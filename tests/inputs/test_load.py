"""Loads: the processes are what they are called, reproducible, neither clipped nor rescaled. Seeds are fixed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sweep.base.config import CONF, ConfigError, build
from sweep.client.modes import ClosedLoop, OpenLoop
from sweep.inputs.load import Batch, Closed, Constant, Gamma, Load, Poisson, Ramp, Trace

MANY = 20_000
SEEDS = range(5)


def gaps(load: Any, seed: int, count: int = MANY) -> np.ndarray[Any, Any]:
    due = np.asarray(load.mode(count, seed).arrivals)
    assert due.size == count
    assert np.all(np.diff(due) >= 0)
    return np.diff(due, prepend=0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_poisson_gaps_are_exponential_and_independent(seed: int) -> None:
    found = gaps(Poisson(rate=50), seed)
    assert found.mean() == pytest.approx(1 / 50, rel=3 / np.sqrt(MANY))
    assert found.std() / found.mean() == pytest.approx(1, abs=0.03)
    assert stats.kstest(found, stats.expon(scale=1 / 50).cdf).pvalue > 0.001
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 4 / np.sqrt(MANY)


def test_poisson_total_varies_as_it_should() -> None:
    """Rescaling to the nominal total, as vLLM does, makes this variance 0; clipping, as vidur does, the mean wrong."""
    ends = np.array([Poisson(rate=1).mode(400, seed).arrivals[-1] for seed in range(300)])
    assert ends.mean() == pytest.approx(400, abs=4 * 20 / np.sqrt(300))
    assert ends.std() == pytest.approx(np.sqrt(400), rel=0.15)
    longest = max(gaps(Poisson(rate=1), seed, 1000).max() for seed in SEEDS)
    assert longest > 6  # of 5,000 exponential gaps; the chance of none is below 1e-5


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps(burstiness: float) -> None:
    found = gaps(Gamma(rate=20, burstiness=burstiness), 7)
    cv = 1 / np.sqrt(burstiness)
    assert found.mean() == pytest.approx(1 / 20, rel=4 * cv / np.sqrt(MANY))
    assert found.std() / found.mean() == pytest.approx(cv, rel=0.05)
    assert stats.kstest(found, stats.gamma(burstiness, scale=1 / (20 * burstiness)).cdf).pvalue > 0.001


def test_gamma_of_burstiness_one_is_the_poisson_process() -> None:
    np.testing.assert_allclose(gaps(Gamma(rate=3, burstiness=1), 1), gaps(Poisson(rate=3), 1), rtol=1e-9)


def test_constant_is_constant() -> None:
    mode = Constant(rate=4, max_concurrency=2, duration=9).mode(5, seed=1)
    assert isinstance(mode, OpenLoop)
    assert mode.arrivals.tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert (mode.most_in_flight(), mode.duration, mode.last_arrival()) == (2, 9, 1.0)


def test_ramp_inverts_its_integral() -> None:
    """From 2/s to 10/s in 4 s: after 1 s ∫(2 + 2t) = 3 are expected, after 4 s 24; from there on 10/s."""
    ramp = Ramp(rate_from=2, rate_to=10)
    expected = np.array([0.0, 3.0, 8.0, 24.0, 34.0])
    assert ramp.inverse(expected, 4.0) == pytest.approx([0.0, 1.0, 2.0, 4.0, 5.0])
    down = Ramp(rate_from=10, rate_to=2)
    assert down.inverse(np.array([9.0, 24.0, 26.0]), 4.0) == pytest.approx([1.0, 4.0, 5.0])
    assert Ramp(rate_from=0, rate_to=8).inverse(np.array([0.0, 1.0]), 4.0) == pytest.approx([0.0, 1.0])
    level = Ramp(rate_from=5, rate_to=5)
    assert level.inverse(np.array([5.0, 40.0]), 4.0) == pytest.approx([1.0, 8.0])


def test_ramp_is_a_poisson_process_of_that_rate() -> None:
    """With its integrated rate as the clock, arrivals are Poisson; and the second half holds 3/4 of them."""
    due = np.asarray(Ramp(rate_from=0, rate_to=100).mode(MANY, 3).arrivals)
    length = 2 * MANY / 100
    integral = 100 * due**2 / (2 * length)
    inside = due <= length
    assert stats.kstest(np.diff(integral[inside], prepend=0.0), stats.expon.cdf).pvalue > 0.001
    assert np.mean(due[inside] > length / 2) == pytest.approx(0.75, abs=0.01)


def test_ramp_within_its_duration() -> None:
    due = np.asarray(Ramp(rate_from=10, rate_to=30, duration=100).mode(3000, 1).arrivals)
    assert np.sum(due <= 100) == pytest.approx(2000, abs=4 * np.sqrt(2000))
    assert np.sum((due > 100) & (due <= 110)) == pytest.approx(300, abs=4 * np.sqrt(300))


def test_closed_loop() -> None:
    mode = Closed(concurrency=4, think_time=0.5, stagger=2, duration=60).mode(6, seed=0)
    assert isinstance(mode, ClosedLoop)
    assert (mode.concurrency, mode.duration, mode.last_arrival()) == (4, 60, None)
    assert mode.offsets is not None
    assert mode.offsets.tolist() == [0, 0.5, 1.0, 1.5]
    assert mode.think is not None
    assert mode.think.tolist() == [0.5] * 6
    exponential = Closed(concurrency=4, think_time=0.5, think_distribution="exponential").mode(MANY, seed=0)
    assert stats.kstest(np.asarray(exponential.think), stats.expon(scale=0.5).cdf).pvalue > 0.001
    assert Closed(concurrency=2).mode(3, 0).start_spread() == 0, "one wave stays one"
    spread = Closed(concurrency=4, duration=60).mode(8, 0)
    assert [spread.after_warm_up(seconds).start_spread() for seconds in (0, 2, 20)] == [0, 1.5, 4.5]  # of 6 s at most


@given(st.integers(1, 500), st.integers(1, 64), st.booleans())
def test_lockstep_counts_whole_batches(requests: int, size: int, discard: bool) -> None:
    load = Batch(batch_size=size, discard_first=discard)
    count = load.count(requests)
    assert count % size == 0
    left = count - size * discard  # what is summarised
    assert requests <= left < requests + size
    assert load.size == size
    mode = load.mode(count, seed=0)
    assert (mode.batch(), mode.most_in_flight(), mode.last_arrival()) == (size, size, None)


STREAMS = [
    Poisson(rate=5),
    Gamma(rate=5, burstiness=0.5),
    Ramp(rate_from=1, rate_to=5, duration=20),
    Closed(concurrency=3, think_time=1, think_distribution="exponential"),
]


@pytest.mark.parametrize("load", STREAMS, ids=lambda load: load.name)
@given(seed=st.integers(0, 2**32 - 1))
def test_same_seed_same_mode(load: Load, seed: int) -> None:
    assert load.mode(50, seed) == load.mode(50, seed)
    assert load.mode(50, seed) != load.mode(50, seed + 1)


def test_known_numbers() -> None:
    """What seed 1 came to when this was written: another machine or library must come to the same."""
    poisson = Poisson(rate=10).mode(3, 1).arrivals
    gamma = Gamma(rate=10, burstiness=0.5).mode(3, 1).arrivals
    assert poisson is not None
    assert gamma is not None
    assert poisson.tolist() == pytest.approx([0.03976902310655547, 0.06368715743339781, 0.07486457988746353], rel=1e-12)
    assert gamma.tolist() == pytest.approx([0.0179422366875479, 0.025224388097518615, 0.026991514237460525], rel=1e-9)


def test_streams_are_separate() -> None:
    """More requests extend the arrivals and leave its beginning alone; think times are not the arrivals again."""
    assert gaps(Poisson(rate=5), 3, 100).tolist() == gaps(Poisson(rate=5), 3, 200)[:100].tolist()
    think = Closed(concurrency=1, think_time=0.2, think_distribution="exponential").mode(100, 3).think
    assert abs(np.corrcoef(np.asarray(think), gaps(Poisson(rate=5), 3, 100))[0, 1]) < 0.4


# Traces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("t.txt", "# seconds\n10.0\n10.5  # a comment\n\n12\n", {}),
        ("t.csv", "id,at\n1,10000\n2,10500\n3,12000\n", {"column": "at", "unit": "ms"}),
        ("t.jsonl", '{"timestamp": 10000}\n{"timestamp": 10500}\n{"timestamp": 12000}\n', {"unit": "ms"}),
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.5000000,1\n2023-11-16 18:15:47.0000000,2\n"
            "2023-11-16 18:15:48.5000000,3\n",
            {"column": "TIMESTAMP"},
        ),
    ],
)
def test_trace_is_replayed_as_it_is(tmp_path: Path, name: str, text: str, fields: dict[str, Any]) -> None:
    path = tmp_path / name
    path.write_text(text)
    load = Trace(path=str(path), **fields)
    load.check()
    assert load.count(2) == 2
    assert load.mode(3, seed=9).arrivals.tolist() == pytest.approx([0, 0.5, 2.0])
    assert load.mode(2, seed=1).arrivals.tolist() == pytest.approx([0, 0.5])


def test_trace_in_nanoseconds_keeps_its_precision(tmp_path: Path) -> None:
    """Times of day in ns exceed what a float holds exactly; the first is taken off before they become seconds."""
    path = tmp_path / "t.txt"
    path.write_text("1700000000000000001\n1700000000000001001\n")
    due = Trace(path=str(path), unit="ns").mode(2, 0).arrivals
    assert due is not None
    assert due[1] == pytest.approx(1e-6, rel=1e-9)


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("1\n2\n")
    before = Trace(path=str(path)).digest(tmp_path)
    path.write_text("1\n3\n")
    assert Trace(path=str(path)).digest(tmp_path) != before


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((CONF / "load").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_loads_are_valid(path: Path, tmp_path: Path) -> None:
    fields = yaml.safe_load(path.read_text())
    if fields.get("path") in ("???", "${workload.file}"):
        trace = tmp_path / "t.txt"
        trace.write_text("".join(f"{i}\n" for i in range(20)))
        fields |= {"path": str(trace), "skip_unsendable": False, "speed": 1, "repeat": 1}
    load = build(fields, "load")
    assert isinstance(load, Load)
    assert load.name == path.stem
    assert load.describe()
    assert load.mode(load.count(10), 1).split(0, 1).most_in_flight() != 0
    assert set(type(load).model_fields) == set(fields) - {"_target_"}  # the YAML shows every knob there is


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"_target_": "sweep.inputs.load.Batch", "batch_size": -1}, "load.batch_size=-1"),
        ({"_target_": "sweep.inputs.load.Batch", "batch_size": 1.5}, "load.batch_size=1.5"),
        ({"_target_": "sweep.inputs.load.Closed", "concurrency": 0}, "load.concurrency=0"),
        ({"_target_": "sweep.inputs.load.Poisson", "rate": float("inf")}, "load.rate=inf"),
        ({"_target_": "sweep.inputs.load.Poisson", "rate": 1, "max_concurrency": 0}, "load.max_concurrency=0"),
        ({"_target_": "sweep.inputs.load.Gamma", "rate": 1, "burstiness": 0}, "load.burstiness=0"),
        ({"_target_": "sweep.inputs.load.Ramp", "rate_from": 1, "rate_to": 0}, "load.rate_to=0"),
        ({"_target_": "sweep.inputs.load.Poisson", "rate": 1, "duration": 0}, "load.duration=0"),
        ({"_target_": "sweep.inputs.load.Trace", "path": "???"}, "required: a file of arrival times"),
        ({"_target_": "sweep.inputs.load.Poisson", "rate": 1, "qps": 2}, "load.qps=2: unknown key; expected: .*rate"),
    ],
)
def test_bad_values_are_refused_in_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build(fields, "load")
    assert "\n" not in str(caught.value)


def test_the_warm_up_fills_the_load() -> None:
    """So that the engine has met the batch sizes that are measured; a number of the workload's own is kept."""
    closed, batches = Closed(concurrency=32), Batch(batch_size=24, discard_first=True)
    assert (closed.warmup(None), closed.warmup(1), closed.warmup(0)) == (32, 1, 0)
    assert Closed(concurrency=1).warmup(None) == 4
    assert (batches.warmup(None), batches.warmup(0)) == (48, 0)
    assert Poisson(rate=3.0, max_concurrency=500).warmup(None) == 4
