"""What a plan says beforehand of memory and time: against arithmetic by hand, and through the whole command."""

import re

import pytest

from sweep.__main__ import main
from sweep.base.options import load_option

QUIET = ["cluster=inline", "tracking=none", "dry_run=true", "agreement=false"]


@pytest.fixture
def plan(capsys, tmp_path, monkeypatch):
    """The output of a dry run; no hub, and no GPU."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("backends.launch.host_facts.gpu_names", lambda: ())

    def dry_run(*arguments: str) -> str:
        assert main([*arguments, *QUIET, f"out={tmp_path / 'run'}"]) == 0
        return capsys.readouterr().out

    return dry_run


SYNTHETIC = ["model=random-llama-2-7b", "workload=synthetic", "workload.input_tokens=200", "workload.output_tokens=56"]


def test_the_baselines_largest_batch(plan):
    """256 tokens of 0.5 MiB: 8 GiB of cache at 64 sequences beside 12.55 GiB of weights fit 22.0 GiB, 16 do not."""
    output = plan("backend=transformers", *SYNTHETIC, "load.batch_size=64,128", "hardware=l4", "details=true")
    assert "12.6 GiB weights + 8.0 KV cache" in output
    (warning,) = (line for line in output.splitlines() if line.startswith("warning: transformers"))
    assert "batches of 128 (" in warning
    assert "batches of 64" not in warning
    assert "do not fit in 22.0 GiB: expected to end with oom_run" in warning


def test_an_engine_that_cannot_be_launched(plan):
    assert "expected to fail" not in plan("backend=vllm", *SYNTHETIC, "hardware=l4")
    output = plan("backend=vllm", *SYNTHETIC, "hardware=t4")
    assert "weights of 12.6 GiB leave a KV cache of" in output
    assert "less than the context of 4,096, in 14.6 GiB: the launch is expected to fail" in output
    slots = plan("backend=llamacpp", "backend.slots=64", *SYNTHETIC, "hardware=a100-80g")
    assert "262,144 tokens of KV cache (128.0 GiB) do not fit in 79.2 GiB" in slots
    bounded = ("model.max_model_len=512", "backend.quantization=Q4_0", "hardware=a100-80g")
    assert "expected to fail" not in plan("backend=llamacpp", "backend.slots=64", *SYNTHETIC, *bounded)


def test_the_roofline_against_the_limits(plan):
    """600 requests of 56 tokens, one by one: 600 * 56 * 13.48 GB / 300 GB/s = 25 min."""
    slow = ["backend=transformers", *SYNTHETIC, "workload.num_requests=600", "load.batch_size=1", "hardware=l4"]
    output = plan(*slow, "trial_timeout=1200")
    assert "takes at least 25 min, but trial_timeout=1200 s ends it: raise trial_timeout" in output
    assert "expected: at least 25 min of measurement on one l4 (roofline bound)" in output
    assert "ends it" not in plan(*slow)


def test_a_duration_ends_a_trial_before_its_requests_do(plan):
    """1,000 requests one by one take 42 min, but nothing is sent after the first."""
    paced = ["backend=transformers", *SYNTHETIC, "workload.num_requests=1000", "load=constant", "load.rate=1"]
    assert "takes at least 42 min, but trial_timeout=600 s ends it" in plan(*paced, "hardware=l4", "trial_timeout=600")
    assert "ends it" not in plan(*paced, "hardware=l4", "trial_timeout=600", "load.duration=60")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l4", "t4", "a100-80g", "h100", "h200"])
def test_a_profile_has_its_figures_and_their_sources(plan, name):
    output = plan("backend=vllm_offline", "model=opt-125m", "workload=synthetic", f"hardware={name}", "details=true")
    assert "GiB weights" in output
    assert "at least" in output
    profile = load_option("hardware", name)
    assert profile["price_per_hour"]
    # The study's own price, a list price with its date, or an assumption that says so.
    assert re.search(r"first study|assumed, .*set hardware.price_per_hour|rates until \d{4}-", profile["price_source"])
    assert profile["figures_source"]


def test_more_users_than_requests(plan):
    output = plan("backend=vllm", "workload=qa", "load=closed", "load.concurrency=128", "hardware=cpu")
    assert "load.concurrency=128: 64 requests for 128 users" in output


@pytest.mark.slow
def test_a_point_with_one_batch_in_all_its_replicates(plan):
    """64 requests are one batch of 128, two with two replicates; the offline engine is asked for all at once."""
    warning = "load.batch_size=128: workload.num_requests=64 is 1 batch, without variation"
    command = ["workload=synthetic", "model=opt-125m", "hardware=cpu"]
    output = plan("backend=transformers", *command, "load.batch_size=1,32,128")
    assert [line for line in output.splitlines() if "1 batch" in line] == [
        f"warning: {warning}: raise num_requests or replicates"
    ]
    for several in ("replicates=2", "workload.num_requests=129"):
        assert "1 batch" not in plan("backend=transformers", *command, "load.batch_size=128", several)
    assert "1 batch" not in plan("backend=vllm_offline", *command, "load.batch_size=128")


def test_an_8_bit_cache_holds_twice_the_tokens_and_drafts_shorten_the_least_time(plan):
    """0.9 * 22.03 GiB less weights, CUDA and a step's activations leave 6.46 GiB, or 13,220 tokens of 0.5 MiB."""
    command = ["backend=vllm", *SYNTHETIC, "workload.num_requests=2", "hardware=l4", "details=true"]

    def reserved_and_least(*arguments: str) -> tuple[int, float]:
        output = plan(*command, *arguments)
        tokens, seconds = re.search(r"reserved: ([\d,]+) tokens.*?at least ([\d.]+) s", output).groups()
        return int(tokens.replace(",", "")), float(seconds)

    tokens, seconds = reserved_and_least()
    assert tokens == pytest.approx(13_220, rel=0.005)
    assert reserved_and_least("backend.flags.kv-cache-dtype=fp8")[0] == pytest.approx(2 * tokens, abs=1)
    drafts = "backend.flags.speculative-config={method:ngram,num_speculative_tokens:4}"
    assert reserved_and_least(drafts)[1] < 0.6 * seconds
