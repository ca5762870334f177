"""The simulated engine: its timing, its limits, its own words, and the two backends that need no model."""

import json
import random
import statistics
import subprocess
import sys
from itertools import islice
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from backends.base import Host, Launch
from backends.openai import OpenAI
from backends.simulated import Simulated
from backends.simulated_server.config import Config, Faults, Timing
from backends.simulated_server.truth import read_log
from sweep.base.config import ROOT, build
from sweep.base.options import load_option
from sweep.base.records import Request, Timeouts
from sweep.client.measurement import measure
from sweep.client.modes import ClosedLoop
from sweep.client.wire import Target
from tests.support.simulated_engine import simulated
from tests.support.waiting import wait_until


def gaps(timing: Timing, count: int) -> list[float]:
    return list(islice(timing.steps(random.Random(1)), count))


def test_timings_have_the_mean_they_are_given() -> None:
    assert gaps(Timing("constant", 0.02), 3) == [0.02] * 3
    assert gaps(Timing("bursty", 0.02, burst=3), 7) == pytest.approx([0.06, 0, 0, 0.06, 0, 0, 0.06])
    drawn = gaps(Timing("lognormal", 0.02, sigma=0.8), 20_000)
    assert statistics.fmean(drawn) == pytest.approx(0.02, rel=0.05)
    assert statistics.median(drawn) < 0.017
    with pytest.raises(ValueError, match="should be 'constant', 'lognormal' or 'bursty'"):
        Timing("uniform", 0.1)


def test_tokens_are_written_when_they_are_due(tmp_path: Path) -> None:
    with simulated(ttft={"mean": 0.05}, itl={"mean": 0.01}, log=str(tmp_path / "log")) as (url, _):
        asked = [Request("a", "x", 20)]
        measure(Target(url, "m"), [], asked, ClosedLoop(1), folder=tmp_path / "job")
    truth = read_log(tmp_path / "log")["a", 0]
    late = [(write - truth.arrival) / 1e9 - (0.05 + 0.01 * number) for number, write in enumerate(truth.writes)]
    assert min(late) > -0.001
    assert statistics.median(late) < 0.005  # the loop's timer has a millisecond; lateness does not add up


def test_a_queue_and_its_limit(tmp_path: Path) -> None:
    with simulated(max_concurrency=2, max_queue=1, itl={"mean": 0.02}) as (url, _):
        asked = [Request(f"r{i}", "x", 10) for i in range(5)]
        seen = measure(Target(url, "m"), [], asked, ClosedLoop(5), folder=tmp_path)
    refused = [error for error in seen.records.error if error]
    assert len(refused) == 2
    assert all(error.startswith("status: 503 retry_after=1") for error in refused)
    ttfts = sorted(record.chunk_us[0] / 1e6 for record in seen.records if not record.error)
    assert ttfts[1] < 0.1 < ttfts[2]


def test_what_it_says_about_itself(tmp_path: Path) -> None:
    with simulated(itl={"mean": 0.02}, kv_cache_tokens=100) as (url, _):
        assert httpx.get(url + "/health").status_code == 200
        assert httpx.get(url + "/v1/models").json()["data"][0]["id"] == "simulated"
        assert httpx.get(url + "/nowhere").status_code == 404
        assert httpx.post(url + "/v1/completions", json={"max_tokens": 3}).status_code == 400
        with httpx.stream("POST", url + "/v1/completions", json={"prompt": "a b c", "max_tokens": 30}) as answer:
            samples = _metrics(httpx.get(url + "/metrics").text)
            assert samples["vllm:num_requests_running"] == 1
            assert 0.03 < samples["vllm:kv_cache_usage_perc"] <= 0.33
            answer.read()
        after = _metrics(httpx.get(url + "/metrics").text)
    assert after["vllm:num_requests_running"] == after["vllm:kv_cache_usage_perc"] == 0
    assert after["vllm:generation_tokens_total"] == 30


def _metrics(text: str) -> dict[str, float]:
    lines = [line.split("{") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(rest.split()[-1]) for name, rest in lines}


def test_a_client_that_leaves_makes_room(tmp_path: Path) -> None:
    with simulated(ttft={"mean": 0.2}) as (url, _):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + "/v1/completions", json={"prompt": "a", "max_tokens": 3}, timeout=0.05)
        wait_until(lambda: _metrics(httpx.get(url + "/metrics").text)["vllm:num_requests_running"] == 0)


def test_all_500(tmp_path: Path) -> None:
    with simulated(always_500=True) as (url, _):
        assert httpx.get(url + "/health").status_code == 200
        seen = measure(Target(url, "m"), [], [Request("a", "x", 5)], ClosedLoop(1), folder=tmp_path)
    assert seen.records.error == ["status: 500 500 simulated failure"]


def test_running_out_of_memory_is_said_and_deadly(tmp_path: Path) -> None:
    with simulated(memory_limit=2) as (url, process):
        asked = [Request(f"r{i}", "x", 50) for i in range(3)]
        mode, timeouts = ClosedLoop(3), Timeouts(connect=1)
        seen = measure(Target(url, "m"), [], asked, mode, folder=tmp_path, timeouts=timeouts)
        assert process.wait(5) == 1
        _, log = process.communicate()
    assert all(seen.records.error)
    assert Simulated(name="simulated").log.ran_out_of_memory(log)
    assert "3 sequences, the limit is 2" in log


@pytest.mark.parametrize(("how", "memory"), [("error", False), ("out_of_memory", True)])
def test_dying_at_launch(how: str, memory: bool) -> None:
    command = [sys.executable, "-m", "backends.simulated_server", "--config", json.dumps({"die_at_launch": how})]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1
    assert Simulated(name="simulated").log.ran_out_of_memory(ended.stderr) is memory


def test_the_backend_tells_the_server_everything(tmp_path: Path) -> None:
    backend = Simulated(name="simulated", truth_log=True, startup_seconds=0.5, faults=Faults(reset=0.25))
    command = backend.command(Launch(model=tmp_path, served_name="m", port=1234, workdir=tmp_path, python="python"))
    told = dict(zip(command[3::2], command[4::2], strict=True))
    config = Config.model_validate_json(told["--config"])
    assert (config.startup_seconds, config.faults.reset, config.ttft.mean) == (0.5, 0.25, 0.05)
    assert config.log == str(tmp_path / "truth.log")
    assert (told["--port"], told["--model"]) == ("1234", "m")


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValidationError, match="add up to 1.2: expected 1"):
        Simulated.model_validate({"name": "simulated", "faults": {"reset": 0.6, "hang": 0.6}})
    with pytest.raises(ValidationError, match=r"faults\.resets"):
        Simulated.model_validate({"name": "simulated", "faults": {"resets": 0.6}})
    with pytest.raises(ValidationError, match=r"ttft\.kind"):
        Simulated.model_validate({"name": "simulated", "ttft": {"kind": "uniform"}})
    with pytest.raises(ValidationError, match="memory_limits"):
        Simulated(name="simulated", memory_limits=3)
    with pytest.raises(ValidationError, match="NAME of an environment variable"):
        OpenAI(name="openai", url="http://h", api_key_env="sk-12")
    with pytest.raises(ValidationError, match="credentials"):
        OpenAI(name="openai", url="http://a:b@h")
    with pytest.raises(ValidationError, match="http"):
        OpenAI(name="openai", url="h:8000")


def test_an_endpoint_without_its_key_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OpenAI(name="openai", url="http://h", api_key_env="THE_KEY")
    monkeypatch.delenv("THE_KEY", raising=False)
    assert "THE_KEY" in (backend.unavailable(Host()) or "")
    monkeypatch.setenv("THE_KEY", "x")
    assert backend.unavailable(Host()) is None


@pytest.mark.parametrize("name", ["simulated", "openai"])
def test_the_shipped_configurations_build(name: str) -> None:

    built = build(load_option("backend", name), "backend")
    assert built.model_dump()["name"] == name
