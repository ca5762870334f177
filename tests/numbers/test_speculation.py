"""Speculation, preemption and a full cache: from an engine's metrics page to the row, against counts by hand."""

import json

import pytest

from sweep.base.records import Sample
from sweep.node.telemetry import EngineMetrics
from sweep.numbers.quantities.memory import kv_cache_full_share
from sweep.numbers.quantities.speculation import acceptance_by_position, acceptance_length, acceptance_rate, preemptions

PAGE = """\
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0"} 10.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 8.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 3.0
"""
COUNTS = {  # at the start of the measured part, and at the end
    "spec_decode_drafts_total": (4.0, 14.0),
    "spec_decode_draft_tokens_total": (8.0, 28.0),
    "spec_decode_accepted_tokens_total": (2.0, 13.0),
    "preemptions_total": (1.0, 4.0),
}


def samples(**more: dict[str, tuple[float, float]]) -> list[Sample]:
    readings = [(series, "", counts) for series, counts in COUNTS.items()]
    readings += [(series, device, counts) for series, devices in more.items() for device, counts in devices.items()]
    return [
        Sample(t, series, value, device)
        for series, device, two in readings
        for t, value in zip((0, 9), two, strict=True)
    ]


def test_acceptance_of_the_measured_part() -> None:
    of_trial = samples(spec_decode_accepted_at_position_total={"0": (2.0, 10.0), "1": (0.0, 3.0)})
    assert acceptance_rate(of_trial, 0.0) == pytest.approx(11 / 20)
    assert acceptance_length(of_trial, 0.0) == pytest.approx(1 + 11 / 10)
    assert json.loads(acceptance_by_position(of_trial, 0.0) or "") == [0.8, 0.3]
    assert preemptions(of_trial, 0.0) == 3


def test_an_engine_that_shows_only_gauges_has_their_mean() -> None:
    """As SGLang: a length and a rate of its latest steps, 0 before the first draft; warm-up is no part of the mean."""
    readings = {"spec_decode_accept_length": (9.0, 2.0, 3.0), "spec_decode_accept_rate": (0.9, 0.4, 0.6)}
    of_trial = [
        Sample(t, series, value, "")
        for series, values in readings.items()
        for t, value in zip((-1, 1, 2), values, strict=True)
    ]
    of_trial += [Sample(t, "spec_decode_drafts_total", 5.0 * t, "") for t in (0, 2)]
    assert acceptance_length(of_trial, 0.0) == pytest.approx(2.5)
    assert acceptance_rate(of_trial, 0.0) == pytest.approx(0.5)
    idle = [sample._replace(value=0.0) for sample in of_trial]
    assert [acceptance_length(idle, 0.0), acceptance_rate(idle, 0.0)] == [None, None]


def test_without_speculation_there_is_none() -> None:
    assert [acceptance_rate([], 0.0), acceptance_length([], 0.0), acceptance_by_position([], 0.0)] == [None] * 3


def test_positions_are_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"drafts": "vllm:spec_decode_num_drafts_total"}
    names["at"] = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    metrics = EngineMetrics(["http://127.0.0.1:9/metrics"], names)

    class Page:
        text = PAGE

        def raise_for_status(self) -> "Page":
            return self

    monkeypatch.setattr(metrics.client, "get", lambda url: Page())
    assert metrics.read() == [("drafts", "", 10.0), ("at", "0", 8.0), ("at", "1", 3.0)]


def test_share_of_time_with_a_full_cache() -> None:
    """Full in two of the four seconds; a step between two readings counts half."""
    usage = [(0.0, 0.5), (1.0, 0.96), (2.0, 0.99), (3.0, 0.97), (4.0, 0.5)]
    of_trial = [Sample(time, "kv_cache_usage", value, "") for time, value in usage]
    assert kv_cache_full_share(of_trial, 0.0, 4.0) == pytest.approx(3 / 4)
