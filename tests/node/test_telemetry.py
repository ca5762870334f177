"""Telemetry from a page with known numbers, from a process with known memory, and summed up by pencil."""

import itertools
import os

import psutil
import pytest

from sweep.base.records import Sample
from sweep.node import telemetry
from sweep.node.telemetry import EngineMetrics, Processes, Sampler
from sweep.numbers.summarise import figures
from tests.support.http_stub import page, serving

PAGE = """# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.25
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_running{engine="1"} 4
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0"} 6
# TYPE unasked gauge
unasked 1
"""
NAMES = {
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
    "requests_running": "vllm:num_requests_running",
    "preemptions_total": "vllm:num_preemptions_total",
}


@pytest.fixture
def url():
    with serving(page("/metrics", PAGE)) as address:
        yield address


def summarise_telemetry(samples, idle_memory, duration, begin=0.0):
    inputs = {"samples": samples, "idle_memory": idle_memory, "duration": duration, "begin": begin}
    return figures({**inputs, "reserves_memory": False})


def test_engine_metrics_are_read_under_our_names_and_summed_over_engines(url):
    assert set(EngineMetrics([f"{url}/metrics"], NAMES).read()) == {
        ("kv_cache_usage", "", 0.25),
        ("requests_running", "", 7.0),
        ("preemptions_total", "", 6.0),
    }


def test_a_source_that_fails_is_said_and_fails_nothing(url):
    sampler = Sampler([EngineMetrics([f"{url}/broken"], NAMES), Processes(lambda: [psutil.Process()])], 0.01)
    with sampler:
        pass
    assert "engine (HTTPStatusError" in sampler.described
    assert {sample.series for sample in sampler.samples(0.0)} >= {"process_memory_bytes"}


def test_process_memory_counts_shared_pages_once():
    source = Processes(lambda: [psutil.Process(), psutil.Process()])
    (_, _, twice), *_ = source.read()
    memory = psutil.Process(os.getpid()).memory_info()
    assert twice == pytest.approx(2 * (memory.rss - memory.shared) + memory.shared, rel=0.05)


def test_times_count_from_the_trials_start(url):
    sampler = Sampler([EngineMetrics([f"{url}/metrics"], NAMES)], 10)
    first = sampler.read_once()[0].time
    with sampler:
        pass
    assert all(0 <= sample.time < 60 for sample in sampler.samples(first))


def test_the_summary_is_of_the_measured_time_only():
    samples = [
        Sample(-1.0, "kv_cache_usage", 0.9),
        Sample(1.0, "kv_cache_usage", 0.2),
        Sample(2.0, "kv_cache_usage", 0.4),
        Sample(9.0, "kv_cache_usage", 0.9),
        Sample(1.0, "process_memory_bytes", 100.0),
        Sample(2.0, "process_memory_bytes", 300.0),
    ]
    row = summarise_telemetry(samples, 50.0, duration=2.0)
    assert row["kv_cache_usage_mean"] == pytest.approx(0.3)
    assert row["kv_cache_usage_max"] == 0.4
    assert (row["memory_idle_bytes"], row["memory_mean_bytes"], row["memory_peak_bytes"]) == (50.0, 200.0, 300.0)
    assert row["memory_label"] == "process"


def test_memory_of_several_gpus_is_added_up_reading_by_reading():
    samples = [
        Sample(t, "gpu_memory_bytes", value, gpu)
        for t, gpu, value in [(1.0, "0", 10.0), (1.0, "1", 20.0), (2.0, "0", 30.0), (2.0, "1", 40.0)]
    ]
    row = summarise_telemetry(samples, None, 5.0)
    assert (row["memory_mean_bytes"], row["memory_peak_bytes"], row["memory_label"]) == (50.0, 70.0, "gpu")


def test_nothing_sampled_is_nothing_known():
    row = summarise_telemetry([], None, None)
    assert row["kv_cache_usage_mean"] is None
    assert row["memory_peak_bytes"] is None


class Clock:
    """Time that passes only in a reading and between two; it ends the sampler's block after `until` s."""

    def __init__(self, until: float):
        self.now, self.until = 1000.0, 1000.0 + until

    def monotonic(self):
        return self.now

    def is_set(self):
        return self.now >= self.until

    def wait(self, seconds):
        self.now = min(self.now + max(seconds, 0.0), self.until)


class Paced:
    """An engine whose page takes `took(n)` s the n-th time; one request runs from `begin` to `end` (s, the clock's)."""

    name = "paced"

    def __init__(self, clock, took, begin=0.0, end=0.0):
        self.clock, self.took, self.begin, self.end = clock, took, begin, end
        self.times = []

    def read(self):
        running = float(self.begin <= self.clock.now < self.end)
        self.times.append(self.clock.now)
        self.clock.now += self.took(len(self.times))
        return [("requests_running", "", running), ("kv_cache_usage", "", 0.125 * running)]


@pytest.fixture
def paced(monkeypatch):
    """Runs a sampler by a Clock; its source, and the sampler."""

    def run(until, interval, took=lambda n: 0.004, begin=0.0, end=0.0, told=False):
        clock = Clock(until)
        source = Paced(clock, took, clock.now + begin, clock.now + end)
        monkeypatch.setattr(telemetry, "time", clock)
        sampler = Sampler([source], interval)
        sampler._stop = clock
        if told:
            sampler.begin(source.begin)
        sampler._run()
        return source, sampler

    return run


@pytest.mark.parametrize(("seconds", "expected"), [(0.6, 0.125), (0.0, None)])
@pytest.mark.parametrize(
    ("warm_up", "interval"), [(0.0, 60.0), (0.1, 60.0), (0.5, 60.0), (1.77, 60.0), (30.1, 0.5), (100.3, 0.5)]
)
def test_a_short_trial_is_seen_or_said_to_be_unseen(paced, warm_up, interval, seconds, expected):
    source, sampler = paced(warm_up + 1.6, interval, begin=warm_up, end=warm_up + seconds)
    row = summarise_telemetry(sampler.samples(source.begin), None, duration=max(seconds, 0.5))
    assert row["kv_cache_usage_max"] == expected
    assert (row["kv_cache_usage_mean"] is None) == (expected is None)


@pytest.mark.parametrize("page", [0.004, 0.05, 0.3])
@pytest.mark.parametrize("warm_up", [0.01, 0.7, 30.1])
def test_a_short_trial_is_seen_however_dear_a_reading_is(paced, warm_up, page):
    source, sampler = paced(warm_up + 3, 60.0, lambda n: page, begin=warm_up, end=warm_up + 0.6, told=True)
    assert summarise_telemetry(sampler.samples(source.begin), None, duration=0.6)["kv_cache_usage_max"] == 0.125


def test_a_mean_is_over_time_and_not_over_readings():
    """The first second is read ten times as often as the rest."""
    times = [*(n / 10 for n in range(10)), *range(1, 11)]
    samples = [Sample(t, "kv_cache_usage", 0.0 if t < 1 else 0.5) for t in times]
    samples += [Sample(t, "process_memory_bytes", 0.0 if t < 1 else 500.0) for t in times]
    row = summarise_telemetry(samples, None, duration=10.0)
    assert row["kv_cache_usage_mean"] == pytest.approx(0.45, abs=0.01)
    assert row["memory_mean_bytes"] == pytest.approx(450, abs=10)


def gaps(source):
    return [later - earlier for earlier, later in itertools.pairwise(source.times[:-1])]  # the last is of the end


def test_readings_come_apart_as_a_trial_grows_long(paced):
    apart = gaps(paced(until=100.0, interval=2.0)[0])
    assert apart[0] == pytest.approx(0.25)
    assert apart[-1] == pytest.approx(2.0)
    assert apart == pytest.approx(sorted(apart)), "never closer again"
    assert len({round(gap, 3) for gap in apart}) > 10, "by and by"


@pytest.mark.parametrize("interval", [0.02, 0.5, 10.0])
@pytest.mark.parametrize("page", [0.004, 0.05, 0.3])
def test_readings_take_two_hundredths_of_the_time_at_most(paced, page, interval):
    source, _ = paced(until=200.0, interval=interval, took=lambda n: page)
    assert page * len(source.times[:-1]) <= 0.02 * 200.0 + page
    assert min(gaps(source)) >= 50 * page


def test_a_finer_interval_is_kept_to_where_reading_costs_next_to_nothing(paced):
    assert gaps(paced(until=5.0, interval=0.05, took=lambda n: 0.0001)[0])[-1] == pytest.approx(0.05)


def test_one_late_page_does_not_blind_the_sampler(paced):
    """It waited for a busy engine, which is no work; pages that are all late are rare all the same."""
    apart = gaps(paced(until=30.0, interval=0.5, took=lambda n: 1.0 if n == 6 else 0.004)[0])
    assert max(apart) < 1.5
    apart = gaps(paced(until=300.0, interval=0.5, took=lambda n: 1.0 if n >= 6 else 0.004)[0])
    assert apart[-1] == pytest.approx(51.0)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([Sample(0.5, "kv_cache_usage", 0.0), Sample(0.5, "requests_running", 0.0)], None),
        ([Sample(0.5, "kv_cache_usage", 0.0)], None),
        ([Sample(0.5, "kv_cache_usage", 0.0), Sample(0.5, "requests_running", 2.0)], 0.0),
        ([Sample(-0.5, "kv_cache_usage", 0.4), Sample(1.5, "kv_cache_usage", 0.4)], None),
    ],
    ids=["no request ran", "nothing known of requests", "the engine's own zero", "warm-up and after"],
)
def test_an_idle_engines_gauge_is_no_measurement(samples, expected):
    assert summarise_telemetry(samples, None, duration=1.0)["kv_cache_usage_max"] == expected


def test_the_measured_time_begins_with_the_first_send() -> None:
    """Of a load whose first request comes late, e.g. a recorded one, neither the wait counts nor is the end cut off."""
    samples = [Sample(t, name, value) for t, value in ((1.0, 0.0), (6.0, 0.4), (9.0, 0.8)) for name in KV]
    found = summarise_telemetry(samples, None, duration=4.0, begin=5.5)
    assert (found["kv_cache_usage_max"], found["kv_cache_usage_mean"]) == (0.8, pytest.approx(0.6))


KV = ("kv_cache_usage", "requests_running")
