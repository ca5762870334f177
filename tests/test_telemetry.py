"""Telemetry from a page with known numbers, from a process with known memory, and summed up by pencil."""

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from sweep.records import Sample
from sweep.telemetry import EngineMetrics, Processes, Sampler, summarise_telemetry

PAGE = b"""# TYPE vllm:kv_cache_usage_perc gauge
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


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/metrics" else 500)
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def url():
    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_engine_metrics_are_read_under_our_names_and_summed_over_engines(url):
    assert set(EngineMetrics(f"{url}/metrics", NAMES).read()) == {
        ("kv_cache_usage", "", 0.25),
        ("requests_running", "", 7.0),
        ("preemptions_total", "", 6.0),
    }


def test_a_source_that_fails_is_said_and_fails_nothing(url):
    sampler = Sampler([EngineMetrics(f"{url}/broken", NAMES), Processes(lambda: [psutil.Process()])], 0.01)
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
    sampler = Sampler([EngineMetrics(f"{url}/metrics", NAMES)], 10)
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


class Engine(BaseHTTPRequestHandler):
    """One request runs from `begin` to `end` (CLOCK_MONOTONIC); the gauges are 0 before and after, as vLLM's are."""

    begin = end = 0.0

    def do_GET(self):
        running = self.begin <= time.monotonic() < self.end
        self.send_response(200)
        self.end_headers()
        page = f"vllm:num_requests_running {int(running)}\nvllm:kv_cache_usage_perc {0.125 * running}\n"
        self.wfile.write(page.encode())

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("seconds", "expected"), [(0.6, 0.125), (0.0, None)])
def test_a_trial_shorter_than_the_interval_is_seen_or_said_to_be_unseen(seconds, expected):
    server = HTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Sampler([EngineMetrics(f"http://127.0.0.1:{server.server_port}/metrics", NAMES)], interval=60.0) as sampler:
        Engine.begin = time.monotonic() + 0.5
        Engine.end = Engine.begin + seconds
        time.sleep(1.6)
    server.shutdown()
    row = summarise_telemetry(sampler.samples(Engine.begin), None, duration=max(seconds, 0.5))
    assert row["kv_cache_usage_max"] == expected
    assert (row["kv_cache_usage_mean"] is None) == (expected is None)


def test_a_mean_is_over_time_and_not_over_readings():
    """The first second is read ten times as often as the rest."""
    times = [*(n / 10 for n in range(10)), *range(1, 11)]
    samples = [Sample(t, "kv_cache_usage", 0.0 if t < 1 else 0.5) for t in times]
    samples += [Sample(t, "process_memory_bytes", 0.0 if t < 1 else 500.0) for t in times]
    row = summarise_telemetry(samples, None, duration=10.0)
    assert row["kv_cache_usage_mean"] == pytest.approx(0.45, abs=0.01)
    assert row["memory_mean_bytes"] == pytest.approx(450, abs=10)


def test_readings_come_apart_as_a_trial_grows_long():
    times = []

    class Clock:
        name = "clock"

        def read(self):
            times.append(time.monotonic())
            return []

    with Sampler([Clock()], interval=0.3):
        time.sleep(1.5)
    fine = len(times)
    assert 8 <= fine <= 18
    times.clear()
    with Sampler([Clock()], interval=0.05):
        time.sleep(0.5)
    assert len(times) >= 6, "an interval that is finer still is kept to"


def test_a_slow_source_is_read_less_often():
    times = []

    class Slow:
        name = "slow"

        def read(self):
            times.append(time.monotonic())
            time.sleep(0.05)
            return []

    with Sampler([Slow()], interval=10.0):
        time.sleep(1.5)
    assert 3 <= len(times) <= 6, "every 0.4 s, and once at the end"


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
