"""The figures that are drawn request by request, and those of settings and ratios."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.figures import (
    kv_cache_bytes,
    latency_distribution,
    output_throughput,
    pareto,
    ratio_forest,
    requests_timeline,
    session_hits,
    throughput_timeline,
    ttft,
    ttft_by_turn,
    two_knobs,
)
from analysis.load import Run
from analysis.plotting.chart_style import INK
from analysis.point_names import Layout
from analysis.report.page_data import as_block
from analysis.results import RunResults, open_results
from sweep.base.records import UNKNOWN, Sample
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from tests.support.results import run_of, trial
from tests.support.synthetic_run import make_records, make_run

SLOW, FAILED = 5, (7, 9)  # of 64 requests
TOKENS = 64


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    folder = tmp_path_factory.mktemp("runs") / "run"
    paths = make_run(folder, replicates=1, batches=(1,), workloads=("qa",))
    records = make_records(64, 1, TOKENS, 0.05, 0.01)
    for chunk in range(SLOW * TOKENS, (SLOW + 1) * TOKENS):
        records.chunk_us[chunk] += 10_000_000
    for index in FAILED:
        records.error[index] = "status: 500"
    run_files.write_requests(paths.trial("dep-vllm", "1", "vlqa1r0"), records)
    return open_results(folder)


def test_a_curve_ends_at_the_share_that_was_answered(results: RunResults) -> None:
    figure = latency_distribution.draw(results.run, results.layout)
    assert figure is not None
    ends = {
        (ax.get_xlabel(), float(np.asarray(line.get_ydata())[-1]))
        for ax in figure.axes
        if ax.lines
        for line in ax.lines
    }
    assert ends == {(name, share) for name in latency_distribution.DRAWN_LATENCIES for share in (100.0, 100 * 62 / 64)}


def test_ttft_by_turn_is_the_median_of_each_turn(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "run", replicates=1, batches=(1,), workloads=("qa",))
    records = make_records(64, 1, TOKENS, 0.05, 0.01)
    for index in range(64):
        records.turn[index] = index % 4
        records.chunk_us[index * TOKENS] += 1000 * (index % 4)
    assert ttft_by_turn.draw(*_opened(tmp_path / "run")) is None, "no trial has sessions yet"
    run_files.write_requests(paths.trial("dep-vllm", "1", "vlqa1r0"), records)
    figure = ttft_by_turn.draw(*_opened(tmp_path / "run"))
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert list(zip(*line.get_data(), strict=True)) == [(turn, pytest.approx(49 + turn)) for turn in (1, 2, 3, 4)]


def test_cached_input_by_turn_stands_beside_the_ideal_and_the_engines_counter(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "run", replicates=1, batches=(1,), workloads=("qa",))
    records = make_records(64, 1, TOKENS, 0.05, 0.01)
    for index in range(64):
        records.turn[index], records.input_tokens[index], records.asked_input_tokens[index] = index % 4, 100, 100
        records.ideal_cached_tokens[index] = 20 * (index % 4)
        records.cached_tokens[index] = 10 * (index % 4) if index else UNKNOWN
    run_files.write_requests(paths.trial("dep-vllm", "1", "vlqa1r0"), records)
    run, layout = _opened(tmp_path / "run")
    figure = session_hits.draw(run, layout)
    assert figure is not None
    cached, ideal = figure.axes[0].lines
    assert list(cached.get_ydata()) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert list(ideal.get_ydata()) == pytest.approx([0, 0.2, 0.4, 0.6])
    run.ok["prefix_hit_rate"] = 0.25
    figure = session_hits.draw(run, layout)
    assert figure is not None
    assert list(figure.axes[0].lines[2].get_ydata()) == [0.25, 0.25]


def _opened(folder: Path) -> tuple[Run, Layout]:
    results = open_results(folder)
    return results.run, results.layout


def test_tokens_over_time_add_up(results: RunResults) -> None:
    figure = throughput_timeline.draw(results.run, results.layout)
    assert figure is not None
    line = figure.axes[0].lines[0]  # transformers: all 64 requests were answered
    times, rates = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert np.sum(rates) * (times[1] - times[0]) == pytest.approx(64 * TOKENS, rel=0.05)


def test_a_map_has_a_cell_for_each_pair_of_settings(tmp_path: Path) -> None:
    rows = [
        trial("vllm", 8, 0, 10.0 * (1 + sequences), **{"backend.flags.seqs": sequences, "backend.flags.tokens": tokens})
        for sequences, tokens in ((1, 2), (1, 4), (2, 2))
    ]
    run = run_of(tmp_path, rows)
    results = RunResults(run)
    figure = two_knobs.draw(run, results.layout)
    assert figure is not None
    (ax,) = figure.axes
    labels = [label.get_text() for label in (*ax.get_yticklabels(), *ax.get_xticklabels())]
    assert labels == ["1", "2", "2", "4"]
    cells = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "20.0", (0, 1): "20.0", (1, 0): "30.0", (1, 1): "—"}
    (missing,) = (text for text in ax.texts if text.get_text() == "—")
    assert missing.get_color() == INK, "which the page replaces in dark mode, as it does the ground of that cell"
    one_knob = run_of(tmp_path, rows[:2])
    assert two_knobs.draw(one_knob, RunResults(one_knob).layout) is None


def test_ratios_stand_around_one(tmp_path: Path) -> None:
    rows = [trial(name, 8, n, speed + n) for name, speed in (("plain", 10.0), ("fast", 20.0)) for n in (0, 1)]
    run = run_of(tmp_path, rows, baseline={"backend": "plain"})
    figure = ratio_forest.draw(run, RunResults(run).layout)
    assert figure is not None
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fast"]
    mark = next(line for line in ax.lines if line.get_marker() not in ("None", None, ""))
    assert float(np.asarray(mark.get_xdata())[0]) == pytest.approx(np.sqrt(20 * 21 / 110), rel=1e-6)
    assert ax.get_xlabel() == "times plain"
    alone = run_of(tmp_path, rows)
    assert ratio_forest.draw(alone, RunResults(alone).layout) is None


def test_each_task_of_a_forest_names_its_own_rows(tmp_path: Path) -> None:
    """One of two tasks has a second load: tasks side by side once had the names of the last."""
    sizes = {"qa": (1, 8), "chat": (8,)}
    rows = [
        trial(name, size, index, speed + index, workload=task) | {"trial_id": f"{name}{task}{size}{index}"}
        for name, speed in (("plain", 10.0), ("fast", 20.0))
        for task in sizes
        for size in sizes[task]
        for index in (0, 1)
    ]
    run = run_of(tmp_path, rows, baseline={"backend": "plain"})
    figure = ratio_forest.draw(run, RunResults(run).layout)
    assert figure is not None
    names = {ax.get_title(): [label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes}
    assert names == {"chat": ["fast, batch size 8"], "qa": ["fast, batch size 1", "fast, batch size 8"]}


GIB = 2**30


def test_bytes_of_kv_cache_are_read_or_a_share_of_a_pool(tmp_path: Path) -> None:
    """Half of 3 GiB that are set on a CPU; half of 10 GiB on each of two GPUs; 2 GiB as reported; a pool not known."""
    backends = {
        "set": ({"cpu_kv_cache_gib": 3}, {}, 0, "kv_cache_usage", 0.5),
        "logged": ({"cpu_kv_cache_gib": 1}, {"chosen": {"kv_cache_gib": "10.0"}}, 2, "kv_cache_usage", 0.5),
        "reported": ({}, {}, 0, "kv_cache_bytes", 2.0 * GIB),
        "unknown": ({}, {}, 1, "kv_cache_usage", 0.5),
    }
    paths, rows = RunPaths(tmp_path), []
    for name, (backend, facts, gpus, series, value) in backends.items():
        for size in (1, 8):
            row_facts = {
                "config": json.dumps({"backend": backend}),
                "engine_facts": json.dumps(facts),
                "gpu_count": gpus,
            }
            rows.append(trial(name, size, 0, 10.0, attempt="1", **row_facts))
            samples = [Sample(-1.0, series, 9 * value), *(Sample(at, series, value * at) for at in (0.5, 1.0))]
            run_files.write_telemetry(paths.trial(name, "1", rows[-1]["trial_id"]), samples)
    run = run_of(tmp_path, rows)
    figure = kv_cache_bytes.draw(run, RunResults(run).layout)
    assert figure is not None
    (ax,) = figure.axes
    peaks = [list(map(float, np.asarray(line.get_ydata()))) for line in ax.lines]
    drawn = dict(zip(_legend(figure), peaks, strict=True))
    assert drawn == {"set": [1.5, 1.5], "logged": [10.0, 10.0], "reported": [2.0, 2.0]}
    assert [float(tick) for tick in ax.get_xticks()] == [1, 8]
    assert ax.get_ylabel() == "KV cache (GiB)"


def test_a_queue_that_was_read_once_is_drawn(tmp_path: Path) -> None:
    """A line of one reading has no length: it is a dot, and so are a few."""
    paths, rows = RunPaths(tmp_path), [trial(name, 8, 0, 10.0, attempt="1") for name in ("short", "long")]
    for row, readings in zip(rows, (1, 30), strict=True):
        samples = [Sample(0.5 + at, "requests_running", 4.0) for at in range(readings)]
        run_files.write_telemetry(paths.trial(row["backend"], "1", row["trial_id"]), samples)
    run = run_of(tmp_path, rows)
    figure = requests_timeline.draw(run, RunResults(run).layout)
    assert figure is not None
    (ax,) = figure.axes
    assert {len(line.get_xydata()): line.get_marker() for line in ax.lines} == {1: ".", 30: ""}
    assert ax.get_ylim() == (0, 4 * 1.08)


def test_a_mark_without_an_interval_has_no_whisker_and_the_legend_says_so(tmp_path: Path) -> None:
    """Two trials a point, of which one alone has latencies: only the throughput has an interval."""
    rows = [
        trial("a", size, index, size + 0.1 * index, **({} if index else {"ttft_p50": 0.1, "tpot_p50": 0.01 * size}))
        for size in (8, 16)
        for index in (0, 1)
    ]
    run = run_of(tmp_path, rows)
    layout = RunResults(run).layout
    modules = (output_throughput, pareto, ttft)
    without = [module for module in modules if "without whiskers: no interval" in _legend(module.draw(run, layout))]
    assert without == [pareto, ttft]
    drawn = pareto.draw(run, layout)
    assert drawn is not None
    across, upright = drawn.axes[0].collections
    assert [np.isfinite(path.vertices).all() for path in across.get_paths()] == [False, False]
    assert [np.isfinite(path.vertices).all() for path in upright.get_paths()] == [True, True]
    svg = io.StringIO()
    drawn.savefig(svg, format="svg")
    assert "nan" not in svg.getvalue().lower()


def _legend(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [entry.get_text() for entry in figure.legends[0].get_texts()]


def test_no_text_ends_the_block_of_data() -> None:
    hostile = {"name": "</script><!--<script>&'\u2028"}
    block = as_block(hostile)
    assert not set("<>&'\u2028") & set(block)
    assert json.loads(block) == hostile
