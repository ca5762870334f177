"""The figures of `vllm bench serve`, by pencil."""

from typing import Any

import pytest

from sweep.numbers.quantities.throughput import concurrency_max
from sweep.numbers.selection import measured
from sweep.numbers.vllm_flavour import vllm_flavour
from tests.numbers.test_metrics import ALL, gather, record


def test_vllm_flavour_by_pencil() -> None:
    """By `calculate_metrics` of vLLM 0.32.0, on A and B: from the send, per chunk, in ms, and buckets from 0.25."""
    found = vllm_flavour(ALL)
    assert found.pop("vllm_version") == "0.32.0"
    expected: dict[str, Any] = {
        "completed": 2,
        "failed": 1,
        "duration": 2.75,  # from the start of the load to the last token of a success
        "total_input_tokens": 16,
        "total_output_tokens": 5,
        "request_throughput": 2 / 2.75,
        "output_throughput": 5 / 2.75,
        "total_token_throughput": 21 / 2.75,
        "max_output_tokens_per_s": 2.0,  # chunks: at 1.25 and 1.75 in one second, at 2.75 twice in the next
        "max_concurrent_requests": 2,
        "mean_ttft_ms": 750.0,
        "median_ttft_ms": 750.0,
        "std_ttft_ms": 250.0,
        "p99_ttft_ms": 995.0,
        "mean_tpot_ms": 500.0,
        "median_tpot_ms": 500.0,
        "std_tpot_ms": 0.0,
        "p99_tpot_ms": 500.0,
        "mean_itl_ms": 750.0,
        "median_itl_ms": 750.0,
        "std_itl_ms": 250.0,
        "p99_itl_ms": 995.0,
        "mean_e2el_ms": 1500.0,
        "median_e2el_ms": 1500.0,
        "std_e2el_ms": 1000.0,
        "p99_e2el_ms": 2480.0,
    }
    assert found == pytest.approx(expected, rel=1e-9)


def test_vllm_counts_requests_by_whole_seconds() -> None:
    """Two requests after each other in one second are two at once to vLLM, and one to us."""
    records = gather(record(0.0, [(0.25, 1)]), record(0.5, [(0.25, 1)]))
    assert vllm_flavour(records)["max_concurrent_requests"] == 2
    assert concurrency_max(records, measured(records)) == 1


def test_vllm_counts_an_answer_in_one_chunk_as_infinitely_fast() -> None:
    at_once = record(0.0, [(0.5, 8)])
    assert vllm_flavour(gather(at_once))["mean_tpot_ms"] == 0.0
    assert vllm_flavour(gather(at_once, record(1.0, [(0.5, 1), (1.0, 5)])))["mean_tpot_ms"] == pytest.approx(50)
