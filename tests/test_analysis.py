"""From files to frames, tables, figures and the report: known answers on small made-up runs."""

import contextlib
import io
import json
import math
import re
import time
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from rich.console import Console

import analysis
from analysis import stats
from analysis.__main__ import main
from analysis.figures import memory_timeline
from analysis.load import Run, open_run
from analysis.plotting import curves, plots
from analysis.plotting.fitting import fits
from analysis.plotting.layout import MOST_LINES, arrange
from analysis.quantities import number, quantity
from analysis.report.html import html
from analysis.summary import baseline_points, best, estimate, summarise
from analysis.warnings import doubts
from sweep.disk import run_files
from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.records import Sample
from tests.synthetic_run import make_completion_batches, make_records, make_run
from tests.test_plan import planned


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "throughput_bound"
    make_run(folder, replicates=2, batches=(1, 8, 32), workloads=("qa", "reasoning"))
    return folder


@pytest.fixture(scope="module")
def printed(run_folder: Path) -> str:
    """What the command says that builds the report and the figures of that run: they take seconds, so once."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([str(run_folder)]) == 0
    return said.getvalue()


def trial(backend: str, batch: int, replicate: int, throughput: float | None, **other: Any) -> dict[str, Any]:
    """A row whose interval can be worked out with a pencil."""
    return {
        "trial_id": f"{backend}-{batch}-{replicate}-{len(other)}",
        "deployment_id": backend,
        "backend": backend,
        "model": "m",
        "workload": "qa",
        "load": "batch",
        "batch_size": batch,
        "load.batch_size": batch,
        "replicate": replicate,
        "outcome": "ok" if throughput else "hung",
        "reason": None if throughput else "not done in time",
        "output_throughput": throughput,
        "num_requests": 100,
        "num_failed": 0,
        **other,
    }


def run_of(folder: Path, rows: list[dict[str, Any]], **experiment: Any) -> Run:
    paths = RunPaths(folder)
    run_files.write_trials(paths, rows)
    axes = sorted({name for row in rows for name in row if "." in name or name == "ladder"})
    run_files.write_plan(paths, [{"kind": "experiment", "name": "x", "axes": axes, **experiment}])
    return open_run(folder)


# Loading


def test_trials_are_a_frame_with_missing_values_missing(run_folder: Path) -> None:
    trials = analysis.load(run_folder)
    assert len(trials) == 3 * 2 * 2 * 3
    lost = trials[trials["outcome"] == "oom_run"]
    assert set(lost["workload"]) == {"reasoning"}
    assert lost["output_throughput"].isna().all()
    assert trials["concurrency"].isna().all()
    assert trials["batch_size"].dtype == "Int64"


def test_requests_on_demand(run_folder: Path) -> None:
    trials = analysis.load(run_folder)
    vllm = trials[(trials["backend"] == "vllm") & (trials["batch_size"] == 8) & (trials["workload"] == "qa")].iloc[0]
    requests = analysis.requests(run_folder, vllm["trial_id"])
    assert len(requests) == 64
    assert set(requests["trial_id"]) == {vllm["trial_id"]}
    assert requests["ttft"].median() == pytest.approx(vllm["ttft_p50"], abs=2e-6)  # stamps are whole µs
    assert requests["tpot"].median() == pytest.approx(vllm["tpot_p50"], abs=2e-6)
    assert len(requests["chunk_us"].iloc[0]) == requests["output_tokens"].iloc[0] == 64
    assert len(analysis.requests(run_folder)) == 64 * (trials["outcome"] == "ok").sum()
    with pytest.raises(KeyError, match="nope"):
        analysis.requests(run_folder, "nope")


def test_requests_of_a_newer_version_keep_their_columns(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    paths = RunPaths(tmp_path)
    rows = [trial("vllm", 1, index, 10.0, attempt="1") for index in range(2)]
    run_of(tmp_path, rows)
    for index, row in enumerate(rows):
        files = paths.trial("vllm", "1", row["trial_id"])
        run_files.write_requests(files, make_records(2, 1, 3, 0.1, 0.01))
        if index:
            table = run_files.read_table(files.requests)
            pq.write_table(table.append_column("energy", [[1.5, 2.5]]), files.requests)
    found = analysis.requests(tmp_path)
    assert sorted(found["energy"].dropna()) == [1.5, 2.5]
    assert found["energy"].isna().sum() == 2


def test_a_damaged_file_is_named_or_skipped(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    rows = [trial("vllm", 1, index, 10.0, attempt="1") for index in range(2)]
    run_of(tmp_path, rows)
    files = [paths.trial("vllm", "1", row["trial_id"]) for row in rows]
    for one in files:
        run_files.write_telemetry(one, [Sample(0.0, "kv_cache_usage", 0.5)])
    files[1].telemetry.write_bytes(files[1].telemetry.read_bytes()[:50])
    with pytest.raises(DamagedFile, match=re.escape(str(files[1].telemetry))):
        analysis.telemetry(tmp_path)
    assert list(analysis.telemetry(tmp_path, damaged="skip")["trial_id"]) == [rows[0]["trial_id"]]


def test_a_folder_without_a_run_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err


# Statistics


def test_interval_of_two_values_by_hand() -> None:
    # s of {9, 11} is √2, s/√2 = 1, t(0.975, 1) = tan(0.475 π) = 12.7062
    half = stats.half_width(np.array([math.sqrt(2)]), np.array([2.0]))
    assert half[0] == pytest.approx(math.tan(0.475 * math.pi))
    assert math.isnan(stats.half_width(np.array([0.0]), np.array([1.0]))[0])


def ratio(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Of two samples, beside others that have nothing to do with them."""
    values = np.array([*above, 7.0, *below, math.nan, 5.0])
    sample = np.array([0] * len(above) + [1] + [2] * len(below) + [2, 3])
    every = stats.log_moments(values, sample, 4)
    value, low, high = stats.ratio(every.of(np.array([0])), every.of(np.array([2])))
    return float(value[0]), float(low[0]), float(high[0])


def test_ratio_by_hand() -> None:
    # equal spreads of ±d on the log scale, two each: s² = 2d², standard error √(2 · d²) = d√2, 2 degrees of freedom,
    # t(0.975, 2) = 4.30265
    d = 0.01
    value, low, high = ratio([2 * math.exp(d), 2 * math.exp(-d)], [math.exp(d), math.exp(-d)])
    assert value == pytest.approx(2.0)
    assert high == pytest.approx(2.0 * math.exp(4.302653 * d * math.sqrt(2)), rel=1e-6)
    assert low * high == pytest.approx(4.0)
    assert ratio([3.0], [2.0])[0] == pytest.approx(1.5)
    assert ratio([3.0, 3.0], [2.0])[0] == pytest.approx(1.5)
    assert math.isnan(ratio([3.0], [2.0])[1])
    assert math.isnan(ratio([3.0, 3.1], [2.0])[1])
    assert math.isnan(ratio([1.0, 2.0], [0.0, 1.0])[0])
    assert math.isnan(ratio([1.0, 2.0], [])[0])
    assert ratio([2.0, 2.0], [1.0, 1.0]) == pytest.approx((2.0, 2.0, 2.0))


def test_welch_agrees_with_scipy() -> None:
    from scipy.stats import ttest_ind

    above, below = [3.1, 2.9, 3.3], [1.0, 1.4]
    expected = ttest_ind(np.log(above), np.log(below), equal_var=False).confidence_interval(0.95)
    _, low, high = ratio(above, below)
    assert (math.log(low), math.log(high)) == pytest.approx((expected.low, expected.high))


# Summary


def test_summary_has_means_intervals_and_the_ratio_to_the_baseline(tmp_path: Path) -> None:
    rows = [trial("plain", 8, 0, 9.0), trial("plain", 8, 1, 11.0), trial("fast", 8, 0, 20.0), trial("fast", 8, 1, 20.0)]
    points = summarise(run_of(tmp_path, rows, baseline={"backend": "plain"})).set_index("backend")
    plain, fast = points.loc["plain"], points.loc["fast"]
    assert (plain["n"], plain["output_throughput"]) == (2, 10.0)
    assert plain["output_throughput_ci_high"] == pytest.approx(10 + 12.7062, abs=1e-4)
    assert plain["output_throughput_ci_low"] == pytest.approx(10 - 12.7062, abs=1e-4)
    assert fast["output_throughput_vs_baseline"] == pytest.approx(20 / math.sqrt(99))
    assert math.isnan(plain["output_throughput_vs_baseline"])
    assert "ttft_p50" not in points  # never measured here


def test_a_failed_trial_is_in_no_mean_but_in_the_table(tmp_path: Path) -> None:
    failed = {"output_throughput": 1e9}  # whatever it had measured by then
    rows = [
        trial("fast", 8, 0, 20.0),
        {**trial("fast", 8, 1, None), **failed},
        {**trial("fast", 16, 0, None), **failed},
    ]
    points = summarise(run_of(tmp_path, rows)).set_index("batch_size")
    assert (points.loc[8, "n"], points.loc[8, "not_ok"], points.loc[8, "output_throughput"]) == (1, 1, 20.0)
    assert math.isnan(points.loc[8, "output_throughput_ci_low"])
    assert (points.loc[16, "n"], points.loc[16, "outcomes"]) == (0, "hung 1")
    assert math.isnan(points.loc[16, "output_throughput"])


def test_points_are_told_apart_by_the_axes_and_compared_with_their_own_kind(tmp_path: Path) -> None:
    steps = [("plain", 256, 10.0), ("seqs", 128, 15.0), ("fp8", 128, 30.0)]
    rows = [
        trial("vllm", 8, replicate, value, ladder=step, **{"backend.flags.max-num-seqs": seqs})
        for step, seqs, value in steps
        for replicate in range(2)
    ]
    points = summarise(run_of(tmp_path, rows, baseline={"ladder": "plain"}))
    ratios = dict(zip(points["ladder"], points["output_throughput_vs_baseline"], strict=True))
    assert (ratios["seqs"], ratios["fp8"]) == pytest.approx((1.5, 3.0))


def test_no_ratio_where_the_baseline_is_not_one_point() -> None:
    points = pd.DataFrame(
        {
            "backend": ["plain", "plain", "fast"],
            "workload": "qa",
            "batch_size": 8,
            "backend.dtype": ["fp16", "fp32", "bf16"],
            "n": 2,
            "not_ok": 0,
            "outcomes": "",
        }
    )
    assert baseline_points(points, {"backend": "plain"})[2] is None
    points.loc[2, "backend.dtype"] = "fp32"
    assert baseline_points(points, {"backend": "plain"})[2] == 1
    assert baseline_points(points, {"backend": "plain", "backend.dtype": "fp16"})[2] == 0


def test_a_larger_batch_is_not_compared_with_a_smaller_one(tmp_path: Path) -> None:
    rows = [trial("plain", 8, 0, 10.0), trial("fast", 8, 0, 20.0), trial("fast", 16, 0, 40.0)]
    points = summarise(run_of(tmp_path, rows, baseline={"backend": "plain"}))
    ratios = points.set_index(["backend", "batch_size"])["output_throughput_vs_baseline"]
    assert ratios["fast", 8] == pytest.approx(2.0)
    assert math.isnan(ratios["fast", 16])


def test_best_knows_which_way_is_better(tmp_path: Path) -> None:
    rows = [trial("a", 1, 0, 10.0, ttft_p50=0.1), trial("b", 1, 0, 30.0, ttft_p50=0.2)]
    found = {one.quantity.column: one for one in best(summarise(run_of(tmp_path, rows)))}
    assert (found["output_throughput"].point["backend"], found["output_throughput"].estimate.value) == ("b", 30.0)
    assert (found["ttft_p50"].point["backend"], found["ttft_p50"].estimate.value) == ("a", 0.1)


def test_latencies_by_the_engines_own_stamps_do_not_compete(tmp_path: Path) -> None:
    inside = {"client_stamp_source": "engine"}
    rows = [trial("a", 1, 0, 10.0, ttft_p50=0.2), trial("b", 1, 0, 30.0, ttft_p50=0.1, **inside)]
    found = {one.quantity.column: one for one in best(summarise(run_of(tmp_path, rows)))}
    assert found["output_throughput"].point["backend"] == "b"
    assert found["ttft_p50"].point["backend"] == "a"


def test_ten_thousand_points_take_seconds(tmp_path: Path) -> None:
    rows = [trial(f"e{index % 4}", index // 4, 0, 10.0 + index) for index in range(10_000)]
    run = run_of(tmp_path, rows, baseline={"backend": "e0"})
    started = time.monotonic()
    points = summarise(run)
    assert len(points) == 10_000
    assert points["output_throughput_vs_baseline"].notna().sum() == 7_500
    assert time.monotonic() - started < 20  # 2 s on an idle machine


# Labels


@pytest.mark.parametrize(
    ("column", "axis", "value", "shown"),
    [
        ("ttft_p50", "TTFT p50 (ms)", 0.0712, "71.2"),
        ("output_throughput", "Output throughput (tokens/s)", 1142.8, "1,143"),
        ("memory_peak_bytes", "Memory peak (GiB)", 3 * 2.0**30, "3.00"),
        ("kv_cache_usage_max", "KV-cache use max (%)", 0.985, "98.5"),
        ("cost_per_million_tokens", "Cost ($/M tok)", 0.712, "0.712"),
        ("request_throughput", "Request throughput (requests/s)", 6.43, "6.43"),
    ],
)
def test_units_are_on_the_label_only(column: str, axis: str, value: float, shown: str) -> None:
    of = quantity(column)
    assert of is not None
    assert (of.axis, of.shown(value)) == (axis, shown)


def test_what_is_no_measurement_has_no_unit() -> None:
    assert [
        name
        for name in run_files.trial_schema((50, 90, 99))
        if name.startswith(("trial", "batch_size", "seed")) and quantity(name)
    ] == []
    assert (number(math.nan), number(0), number(0.01234), number(12345.6)) == ("—", "0", "0.0123", "12,346")


# Figures


def test_figures_are_written_twice_and_well_formed(run_folder: Path, printed: str) -> None:
    names = ["output_throughput", "ttft", "cost", "tpot", "memory_timeline"]
    assert {path.stem for path in (run_folder / "figures").iterdir()} == set(names)
    report = (run_folder / "report.html").read_text()
    places = [report.index(f'id="{name}-figure_1"') for name in names]
    assert places == sorted(places)
    for name in names:
        root = xml.etree.ElementTree.parse(run_folder / "figures" / f"{name}.svg").getroot()
        words = " ".join(root.itertext())
        assert "vllm" in words
        assert "transformers" in words
        assert "reasoning" in words
        assert (run_folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "TTFT p50 (ms)" in (run_folder / "figures" / "ttft.svg").read_text()


def test_lines_show_the_means_in_the_unit_of_the_label(tmp_path: Path) -> None:
    rows = [
        trial("a", batch, replicate, 10.0, ttft_p50=batch / 1000 + replicate / 1000)
        for batch in (1, 8)
        for replicate in (0, 2)
    ]
    rows.append(trial("a", 32, 0, None))
    run = run_of(tmp_path, rows)
    layout = arrange(run, summarise(run))
    assert (layout.x, layout.lines, layout.panels) == ("batch_size", ["a"], ["qa"])
    with plots.style():
        figure = curves.against_load(run, layout, "ttft_p50")
    assert figure is not None
    ax = figure.axes[0]
    assert ax.get_lines()[0].get_xydata().tolist()[:2] == [[1.0, pytest.approx(2.0)], [8.0, pytest.approx(9.0)]]
    crosses = [line for line in ax.get_lines() if line.get_marker() == "x"]
    assert crosses[0].get_xdata().tolist() == [32.0]  # no result there
    assert ax.collections[-1].get_offsets()[:, 1].tolist() == pytest.approx([1.0, 3.0, 8.0, 10.0])  # the replicates


def test_settings_that_vary_become_lines_and_prompts_become_panels(tmp_path: Path) -> None:
    rows = [
        trial("vllm", batch, 0, 10.0, **{"backend.flags.max-num-seqs": seqs, "workload.input_tokens": tokens})
        for batch in (1, 2, 4)
        for seqs in (128, 256)
        for tokens in (32, 64)
    ]
    run = run_of(tmp_path, rows)
    layout = arrange(run, summarise(run))
    assert layout.x == "batch_size"
    assert layout.lines == ["vllm, max-num-seqs=128", "vllm, max-num-seqs=256"]
    assert layout.panels == ["qa, input tokens=32", "qa, input tokens=64"]


def test_steps_of_a_ladder_go_by_their_name(tmp_path: Path) -> None:
    rows = [
        trial("vllm", 4, 0, value, ladder=step, **{"backend.flags.max-num-seqs": seqs})
        for step, seqs, value in (("256/auto", 256, 10.0), ("128/auto", 128, 15.0))
    ]
    run = run_of(tmp_path, rows)
    layout = arrange(run, summarise(run))
    assert layout.lines == ["vllm, 256/auto", "vllm, 128/auto"]
    assert layout.x is None
    with plots.style():
        figure = curves.against_load(run, layout, "output_throughput")
    assert figure is not None
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == layout.lines
    assert [line.get_xdata().tolist() for line in ax.get_lines() if line.get_marker() in plots.MARKERS] == [
        [10.0],
        [15.0],
    ]


def test_a_single_configuration_can_be_drawn(tmp_path: Path) -> None:
    run = run_of(tmp_path, [trial("vllm", 4, 0, 10.0), trial("vllm", 4, 1, 12.0)])
    assert [one.name for one in plots.draw_all(run, arrange(run, summarise(run)))] == ["output_throughput"]


def test_a_figure_without_data_is_not_left_from_before(run_folder: Path, tmp_path: Path) -> None:
    stale = tmp_path / "figures" / "cost.svg"
    stale.parent.mkdir()
    stale.write_text("old")
    run = run_of(tmp_path, [trial("vllm", 4, 0, 10.0)])
    plots.draw_all(run, arrange(run, summarise(run)))
    assert not stale.exists()


# Report and table


class _Reader(HTMLParser):
    """Collects what would load from elsewhere, unclosed tags and duplicate ids."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [value for key, value in attrs if key == "id" and value]
        links = [values.get(key) for key in ("src", "href", "xlink:href")]
        self.outside += [link for link in links if link and not link.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_report_is_one_file_that_says_what_it_must(run_folder: Path, printed: str) -> None:
    text = (run_folder / "report.html").read_text()
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.outside == []  # nothing from the network or beside the file
    assert len(reader.ids) == len(set(reader.ids))
    words = " ".join(reader.text)
    for said in (
        *("throughput_bound", "vllm 0.32.0", "model: tiny-llama instead of llama-2-7b-chat", "2.93 USD per hour"),
        *("oom_run", "Tried to allocate 2 GiB", "needs docker", "c9dd7f2", "NVIDIA L4", "node-1"),
        *("python -m sweep +experiment=throughput_bound", "first token − scheduled", "as few as 64 requests"),
    ):
        assert said in words, said
    assert len(text) < 2_000_000
    assert "best throughput" in printed
    assert "oom_run x2 transformers" in printed
    assert "dep-transformers/1/engine.log" in printed.replace("\n", "")
    summary = pd.read_csv(run_folder / "summary.csv")
    trials = analysis.load(run_folder)
    vllm = trials[(trials["backend"] == "vllm") & (trials["workload"] == "qa") & (trials["batch_size"] == 8)]
    row = summary[(summary["backend"] == "vllm") & (summary["workload"] == "qa") & (summary["batch_size"] == 8)]
    assert row["output_throughput"].item() == pytest.approx(vllm["output_throughput"].mean())


def test_markup_in_a_log_is_text(tmp_path: Path) -> None:
    rows = [trial("a", 1, 0, 10.0), trial("a", 2, 0, None, log_tail="<script>alert(1)</script>", reason="<b>x</b>")]
    run_of(tmp_path, rows)
    analysis.write_all(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert "<b>x</b>" not in text


def test_a_run_without_any_result_says_so(tmp_path: Path) -> None:
    run_of(tmp_path, [trial("a", 1, 0, None, attempt="1")])
    analysis.write_all(tmp_path)
    assert "No trial has a result" in (tmp_path / "report.html").read_text()
    console = Console(width=80)
    with console.capture() as printed:
        console.print(analysis.render_summary(tmp_path))
    assert "no trial has a result" in printed.get()
    assert "hung x1 a: not done in time" in printed.get()


def shown(folder: Path, width: int) -> str:
    """The terminal's summary, checked to fit."""
    console = Console(width=width)
    with console.capture() as said:
        console.print(analysis.render_summary(folder))
    assert max(map(len, said.get().splitlines())) <= width
    assert "…" not in said.get()
    return said.get()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_table_fits_the_terminal(run_folder: Path, width: int) -> None:
    text = shown(run_folder, width)
    assert "reasons for doubt, with their remedies in report.html: " in " ".join(text.split())
    assert text.count(" engine  ") == {60: 3, 80: 2}.get(width, 1)
    for said in ("TTFT", "$/M tok", "KV", "Memory", "baseline"):
        assert said in text, said  # nothing is left out of eleven points: it follows below


def test_metrics_of_many_points_without_room_are_named(tmp_path: Path) -> None:
    one = dict.fromkeys(("ttft_p50", "tpot_p50", "ttft_p99", "cost_per_million_tokens"), 0.1)
    memory = {"memory_peak_bytes": 2.0**30, "kv_cache_usage_max": 0.5}
    rows = [trial("a-rather-long-name-of-an-engine", batch, 0, 10.0, **one, **memory) for batch in range(1, 31)]
    run_of(tmp_path, rows)
    assert "in report.html, or a wider terminal: KV use max %, Memory peak GiB" in shown(tmp_path, 80)
    assert "or a wider terminal" not in shown(tmp_path, 120)


@pytest.mark.parametrize("width", [80, 160])
def test_names_are_broken_between_words_only(tmp_path: Path, width: int) -> None:
    flags = [{"backend.flags.max-num-batched-tokens": value} for value in (2048, 8192)]
    other = dict.fromkeys(("ttft_p50", "tpot_p50", "ttft_p99", "cost_per_million_tokens"), 0.1)
    rows = [trial("transformers", batch, 0, 10.0, **flag, **other) for batch in (1, 8) for flag in flags]
    run_of(tmp_path, rows)
    text = shown(tmp_path, width)
    assert re.search(r"\bmax-num-batched-tokens=2048\b", text)
    assert ("transformers, max-num-batched-tokens=2048 " in text.partition("best")[0]) == (width == 160)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lockstep_batches_show_what_a_batch_took(tmp_path: Path, width: int) -> None:
    make_completion_batches(tmp_path)
    text = shown(tmp_path, width)
    if width > 60:  # else in two tables
        units = next(line for line in text.splitlines() if line.startswith(" engine"))
        assert " ".join(units.split()).startswith("engine size tokens/s ms per trial GiB %")
        row = next(line for line in text.splitlines() if line.split()[:2] == ["vllm_gptq", "64"])
        assert row.split()[4:8] == ["5,792", "128,000", "24.2", "42.0"]
    for said in ("latency", "Output", "Memory", "Agreement"):
        assert said in text, said
    for said in (
        "float32: transformers\n",
        "bfloat16, bitsandbytes int8: transformers_8bit",
        "float16, gptq (made by GPTQ): vllm_gptq",
        "F16: llamacpp",
    ):
        assert said in text, said
    for said in (
        "transformers, stories: batch 16 (ran out at 64)",
        "llamacpp, stories: batch 4 (ran out at 16; not tried at 64)",
    ):
        assert said in " ".join(text.split()), said  # the second is longer than 60 characters


def test_the_largest_batch_that_fitted_is_one_where_no_replicate_ran_out(tmp_path: Path) -> None:
    oom = {"outcome": "oom_run", "reason": "CUDA out of memory"}
    rows = [
        *(trial("a", batch, replicate, 10.0) for batch in (1, 8) for replicate in (0, 1)),
        trial("a", 16, 0, 10.0),
        {**trial("a", 16, 1, None), **oom},
        trial("a", 32, 0, None),  # hung: nobody knows
        {**trial("a", 64, 0, None), **oom},
        {**trial("b", 1, 0, None), "outcome": "oom_load"},
        trial("c", 64, 0, 10.0),
    ]
    run = run_of(tmp_path, rows)
    found = fits(run, arrange(run, summarise(run)))
    assert [(fit.line, fit.task, fit.largest, fit.told) for fit in found] == [
        ("a", "qa", 8, "ran out at 16 (1 of 2 trials), 64; no result at 32"),
        ("b", "qa", None, "ran out at 1"),
    ]
    text = shown(tmp_path, 80)
    assert "b, qa: none" in text
    assert "a, qa: batch 8 (ran out at 16 (1 of 2 trials), 64; no result at 32)" in text


def test_a_batch_that_was_not_tried_did_not_run_out_and_did_not_fit(tmp_path: Path) -> None:
    censored = {"outcome": "censored", "reason": "batch 16 already ran out of memory"}
    rows = [
        *(trial("a", 8, replicate, 10.0) for replicate in (0, 1)),
        {**trial("a", 16, 0, None), "outcome": "oom_run"},
        trial("a", 16, 1, 10.0),
        {**trial("a", 32, 0, None), **censored},
        trial("a", 32, 1, 10.0),  # another replicate came through: 32 is no more certain than 16
        *({**trial("a", 64, replicate, None), **censored} for replicate in (0, 1)),
    ]
    run = run_of(tmp_path, rows)
    (fit,) = fits(run, arrange(run, summarise(run)))
    told = "ran out at 16 (1 of 2 trials); not tried at 32 (1 of 2 trials), 64"
    assert (fit.largest, fit.told) == (8, told)
    assert told in html(run, arrange(run, summarise(run)), [])


def test_the_largest_batch_is_told_of_each_length(tmp_path: Path) -> None:
    rows = [
        {**trial("a", 8, 0, 10.0 if tokens < 64 else None, **{"workload.input_tokens": tokens})}
        | ({} if tokens < 64 else {"outcome": "oom_run"})
        for tokens in (16, 32, 64)
    ]
    run = run_of(tmp_path, rows)
    layout = arrange(run, summarise(run))
    assert layout.x == "workload.input_tokens"
    assert [(fit.task, fit.largest) for fit in fits(run, layout)] == [("qa, input tokens 64", None)]


def test_of_many_lines_some_are_told_apart_and_all_are_drawn(tmp_path: Path) -> None:
    rows = [
        trial("e", batch, 0, 10.0 + seqs, **{"backend.flags.max-num-seqs": seqs})
        for seqs in range(1, 101)
        for batch in (1, 2, 4)
    ]
    run = run_of(tmp_path, rows, baseline={"backend.flags.max-num-seqs": 50})
    layout = arrange(run, summarise(run))
    assert len(layout.lines) == 100
    assert len(layout.distinct) <= MOST_LINES
    assert {"e, max-num-seqs=100", "e, max-num-seqs=50"} <= set(layout.distinct)  # the best, and the baseline
    looks = {str(plots.look(layout, line)) for line in layout.distinct}
    assert len(looks) == len(layout.distinct)
    with plots.style():
        figure = curves.against_load(run, layout, "output_throughput")
    assert figure is not None
    ax = figure.axes[0]
    lines = [one for one in ax.collections if isinstance(one, LineCollection)]
    grey = [len(one.get_segments()) for one in lines if to_hex(one.get_edgecolor()[0]) == curves.GREY]
    assert grey == [100 - len(layout.distinct)]
    assert f"{100 - len(layout.distinct)} others" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "max-num-seqs=12 and 88 others" in " ".join(shown(tmp_path, 120).split())
    assert f"Of 100 lines {len(layout.distinct)} have a colour" in html(run, layout, [])


def test_a_grey_line_of_one_point_is_seen(tmp_path: Path) -> None:
    rows = [
        trial("e", batch, 0, 10.0 + seqs, **{"backend.flags.max-num-seqs": seqs})
        for seqs in range(1, 101)
        for batch in ((1, 2, 4) if seqs % 2 else (2,))
    ]
    run = run_of(tmp_path, rows)
    layout = arrange(run, summarise(run))
    expected = sorted(10.0 + seqs for seqs in range(2, 101, 2) if f"e, max-num-seqs={seqs}" not in layout.distinct)
    assert len(expected) > 30
    with plots.style():
        figure = curves.against_load(run, layout, "output_throughput")
    assert figure is not None
    dots = [one for one in figure.axes[0].collections if isinstance(one, PathCollection)]
    grey = [one.get_offsets() for one in dots if to_hex(one.get_facecolor()[0]) == curves.GREY]
    assert np.concatenate(grey).tolist() == [[2.0, value] for value in expected]


def test_memory_over_time_is_drawn_as_its_legend_says(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    rows = [
        trial("e", batch, 0, 10.0, attempt="1", **{"backend.flags.max-num-seqs": seqs})
        | {"trial_id": f"{seqs}-{batch}"}
        for seqs in range(1, 10)
        for batch in (1, 2)
    ]
    run = run_of(tmp_path, rows)
    for row in rows:
        files = paths.trial("e", "1", row["trial_id"])
        run_files.write_telemetry(files, [Sample(float(t), "process_memory_bytes", 2.0**30) for t in range(30)])
    layout = arrange(run, summarise(run))
    with plots.style():
        figure = memory_timeline.draw(run, layout)
    assert figure is not None
    shown_as = [(one.get_color(), one.get_linestyle(), one.get_marker()) for one in figure.legends[0].get_lines()]
    drawn_as = [(one.get_color(), one.get_linestyle(), one.get_marker()) for one in figure.axes[0].get_lines()]
    assert len(set(drawn_as)) == 9
    assert sorted(drawn_as) == sorted(shown_as)


def test_a_thousand_ways_to_fail_are_counted(tmp_path: Path) -> None:
    rows = [{**trial("a", 1, index, None), "reason": f"failed at {index}"} for index in range(1000)]
    rows += [{**trial("a", 2, index, None), "reason": "failed alike"} for index in range(5)]
    run_of(tmp_path, rows)
    text = shown(tmp_path, 120)
    assert "1,005 trials have no result" in text
    assert "hung x5 a: failed alike" in text
    assert "reasons for doubt" not in text  # of numbers, of which there are none
    assert "and 961 trials more, in 961 other ways" in text


def test_the_plan_is_read_no_further_than_its_experiment(tmp_path: Path) -> None:
    run_of(tmp_path, [trial("a", 1, 0, 10.0)])
    plan = RunPaths(tmp_path).plan
    plan.write_text('{"kind": "trial", "config": {"experiment": 1}}\n' + plan.read_text() + "{cut sho")
    assert open_run(tmp_path).name == "x"
    plan.write_text('{"kind": "experiment", ')
    with pytest.raises(DamagedFile, match=r"plan\.jsonl"):
        open_run(tmp_path)


def test_doubts_are_told_with_their_remedy(tmp_path: Path) -> None:
    rows = [
        trial("a", 1, 0, 10.0, num_requests=16, commit="abc", client_cpu=0.8),
        trial("a", 8, 0, 10.0, commit="def+", num_failed=3),
        trial(
            "b", 8, 0, 10.0, commit="def+", agreement=0.42, startup_transient=True, offered_rate=10.0, realised_rate=5.0
        ),
        {**trial("b", 16, 0, None), "outcome": "client_limited"},
    ]
    run = run_of(tmp_path, rows, replaced=["model: tiny"], baseline={"backend": "c"})
    sentences = " ".join(doubts(run, arrange(run, summarise(run))))
    for said in (
        *(
            "model: tiny",
            "baseline (backend = c)",
            "3 of 4 points have one replicate",
            "replicates=3",
            "as few as 16 requests",
        ),
        *(
            "up to 3.0%",
            "80% of a core",
            "steady_*",
            "50% of the rate",
            "client was the bottleneck",
            "2 versions of this code",
            "of other answers (agreement: b 42%)",
        ),
    ):
        assert said in sentences, said


def told(folder: Path, rows: list[dict[str, Any]]) -> str:
    run = run_of(folder, rows)
    return " ".join(doubts(run, arrange(run, summarise(run))))


def test_a_mean_of_survivors_is_doubted(tmp_path: Path) -> None:
    rows = [trial("a", 8, 0, 10.0), trial("a", 8, 1, 10.1), trial("a", 8, 2, None), trial("b", 8, 0, None)]
    assert "At 1 of 2 points only some of the replicates have a result" in told(tmp_path, rows)


def test_answers_of_unequal_length_are_doubted(tmp_path: Path) -> None:
    long, short = {"output_tokens": 20_000}, {"output_tokens": 12_500}
    rows = [trial("a", 8, 0, 10.0, **long), trial("b", 8, 0, 10.0, **short, num_failed=0)]
    assert "up to 1.6 times as many tokens" in told(tmp_path, rows)
    failed = {**trial("b", 8, 0, 10.0, output_tokens=10_000), "num_failed": 50}  # as long, of half the requests
    assert "times as many" not in told(tmp_path, [rows[0], failed])
    assert "times as many" not in told(tmp_path, [rows[0], trial("b", 16, 0, 10.0, **short)])  # asked another thing


def test_unlike_kinds_of_memory_are_doubted(tmp_path: Path) -> None:
    pool, used = ({"memory_peak_bytes": 2.0**30, "memory_label": label} for label in ("reserved", "process"))
    rows = [trial("a", 8, 0, 10.0, **pool), trial("b", 8, 0, 10.0, **used)]
    assert "what it reserved (a); the memory of its processes (b)" in told(tmp_path, rows)
    assert "not of one kind" not in told(tmp_path, [rows[0], trial("b", 8, 0, 10.0, **pool)])


def test_stamps_that_tokens_share_are_doubted(tmp_path: Path) -> None:
    bursts, few = ({"output_tokens": 10_000, "client_multi_event_reads": reads} for reads in (320, 100))
    unknown = trial("c", 8, 0, 10.0)
    said = told(tmp_path, [trial("a", 8, 0, 10.0, **bursts), trial("b", 8, 0, 10.0, **few), unknown])
    assert "In 1 trial" in said
    assert "3.2%" in said
    assert "ITL p99" in said
    assert "ITL p99" not in told(tmp_path, [trial("b", 8, 0, 10.0, **few), unknown])


def test_stamps_that_are_not_the_kernels_are_doubted(tmp_path: Path) -> None:
    rows = [trial("a", 8, 0, 10.0, client_stamp_source="user"), trial("b", 8, 0, 10.0, client_stamp_source="kernel")]
    assert "In 1 trial the client stamped arrivals itself" in told(tmp_path, rows)
    assert "arrivals" not in told(tmp_path, rows[1:])


def test_agreement_of_random_weights_prices_no_quantisation(tmp_path: Path) -> None:
    def row(model: dict[str, Any], quantization: str | None) -> dict[str, Any]:
        facts = {"engine_facts": json.dumps({"quantization": quantization}), "agreement": 1.0}
        return trial("a", 8, 0, 10.0, **facts) | {"config": json.dumps({"model": model})}

    said = "not what a quantisation costs"
    assert said in told(tmp_path, [row({"architecture": {}}, "gptq")])
    assert said not in told(tmp_path, [row({"architecture": {}}, None)])
    assert said not in told(tmp_path, [row({"repo": "org/m"}, "gptq")])


def test_an_interval_counts_the_replicates_that_have_the_figure(tmp_path: Path) -> None:
    rows = [trial("a", 8, index, 10.0 + index, ttft_p50=0.1 * (index + 1) if index < 2 else None) for index in range(3)]
    point = summarise(run_of(tmp_path, rows)).iloc[0]
    assert (estimate(point, "output_throughput").n, estimate(point, "ttft_p50").n) == (3, 2)


def test_a_sound_run_raises_no_doubt(tmp_path: Path) -> None:
    rows = [trial(name, 8, index, 10.0 + index / 100) for name in "ab" for index in range(3)]
    run = run_of(tmp_path, rows)
    assert doubts(run, arrange(run, summarise(run))) == []


# Cards and ratios


def report_of(run: Run) -> str:
    return html(run, arrange(run, summarise(run)), [])


def test_a_loss_is_no_gain(tmp_path: Path) -> None:
    rows = [trial("plain", 8, 0, 20.0, ttft_p50=0.1), trial("slow", 8, 0, 10.0, ttft_p50=0.2)]
    text = report_of(run_of(tmp_path, rows, baseline={"backend": "plain"}))
    assert text.count("No engine beat the baseline") == 2
    assert "Closest, at 0.500×" in text
    assert "of baseline</i>" not in text
    faster = [*rows, trial("fast", 8, 0, 40.0, ttft_p50=0.05)]
    text = report_of(run_of(tmp_path, faster, baseline={"backend": "plain"}))
    assert "No engine beat" not in text
    assert "<b>2.00× <i>of baseline</i>" in text


def test_a_ratio_without_an_interval_says_whose_replicate_is_alone(tmp_path: Path) -> None:
    twice = [trial("fast", 8, index, 40.0 + index) for index in range(2)]
    text = report_of(run_of(tmp_path, [trial("plain", 8, 0, 20.0), *twice], baseline={"backend": "plain"}))
    assert "one replicate of the baseline, no interval" in text
    assert "<small>one replicate, no interval" not in text


# A sweep that was stopped


def test_planned_trials_that_have_not_run_are_told(tmp_path: Path) -> None:
    rows = [trial("a", batch, index, 10.0 + index) for batch in (1, 8) for index in range(3)]
    run = run_of(tmp_path, rows[:1])
    plan = [
        {"kind": "experiment", "name": "x", "axes": ["load.batch_size"], "trials": 6, "replicates": 3},
        {"kind": "deployment", **{key: rows[0][key] for key in ("deployment_id", "backend", "model")}},
        *({**row, "kind": "trial", "coordinates": {"load.batch_size": row["batch_size"]}} for row in rows),
    ]
    run_files.write_plan(run.paths, plan)
    analysis.write_all(tmp_path)
    summary = pd.read_csv(run.paths.summary)
    assert summary[["batch_size", "n", "not_ok", "planned", "outcomes"]].to_numpy().tolist() == [
        [1, 1, 0, 3, "not run 2, ok 1"],
        [8, 0, 0, 3, "not run 3"],
    ]
    text = (tmp_path / "report.html").read_text()
    assert "1 of 6 trials and 1 of 2 points have a result" in text
    assert "5 of 6 planned trials have not run" in text
    assert "set replicates=3" not in text
    assert "5 of 6 planned trials have not run" in shown(tmp_path, 80)
    run_files.write_trials(run.paths, rows)
    analysis.write_all(tmp_path)
    assert "not run" not in (tmp_path / "report.html").read_text()
    run_files.write_trials(run.paths, [])
    analysis.write_all(tmp_path)
    assert "0 of 6 trials and 0 of 2 points" in (tmp_path / "report.html").read_text()
    experiment, _, first, *others = planned().entries("python -m sweep")
    assert experiment["trials"] == len(others) + 1
    assert {"batch_size", "concurrency", "rate", "coordinates", "workload", "load", "trial_id"} <= set(first)


# Steady state


def test_the_steady_state_is_in_the_summary_and_the_report(tmp_path: Path) -> None:
    window = {"steady_begin": 1.0, "steady_output_throughput": 40.0, "steady_ttft_p50": 0.1, "steady_ttft_p99": 0.3}
    rows = [
        trial("a", 8, 0, 30.0, **window),
        trial("a", 8, 1, 30.0, **{**window, "steady_output_throughput": 44.0}),
        trial("a", 8, 2, 30.0, steady_method="none: too short"),
        trial("b", 8, 0, 30.0, steady_method="none: too short"),
    ]
    run = run_of(tmp_path, rows)
    points = summarise(run).set_index("backend")
    assert points.loc["a", "steady_output_throughput"] == 42.0
    assert points["steady_share"].tolist() == [pytest.approx(2 / 3), 0.0]
    text = report_of(run)
    assert "<h2>Steady state</h2>" in text
    assert '<td class="text">a</td><td class="text">qa</td><td class="">67%</td><td class="">42.0 ±61%</td>' in text
    text = report_of(run_of(tmp_path, rows[3:]))
    assert "No trial has a steady-state window: all figures are of whole runs. Most often: too short." in text


# The best


def test_the_best_carries_its_caveats(tmp_path: Path) -> None:
    rows = [
        trial("a", 8, 0, 40.0, agreement=0.42),
        trial("a", 8, 1, None, agreement=0.42),
        trial("b", 8, 0, 10.0, agreement=1.0, ttft_p50=0.1),
        trial("b", 8, 1, 10.0, agreement=1.0, ttft_p50=0.1),
    ]
    run = run_of(tmp_path, rows)
    text = " ".join(shown(tmp_path, 120).split())
    assert "best throughput 40.0 tokens/s a, qa, 1 of 2 replicates, agreement 42%" in text
    assert text.count("agreement ") == 1
    assert "<small>1 of 2 replicates</small><small>agreement 42%</small>" in report_of(run)


def test_models_do_not_compete(tmp_path: Path) -> None:
    rows = [{**trial("a", 8, index, 100.0 / size), "model": f"{size}b"} for index in (0, 1) for size in (1, 7)]
    run = run_of(tmp_path, rows)
    assert [one.point["model"] for one in best(summarise(run))] == ["1b", "7b"]
    assert report_of(run).count("Best throughput") == 2


def test_unknown_agreement_is_told_beside_known_ones(tmp_path: Path) -> None:
    unknown = trial("b", 8, 0, 10.0, agreement_reference="none: the engine's answer: timed out")
    rows = [trial("a", 8, 0, 10.0, agreement=1.0), unknown, trial("c", 8, 0, 10.0)]
    said = told(tmp_path, rows)
    assert "not of b (none: the engine's answer: timed out), c (no reason was noted)" in said
    assert "known of some only" not in told(tmp_path, [unknown])


# Other points than meet the eye


def test_replicates_on_different_gpus_are_not_averaged(tmp_path: Path) -> None:
    speeds = {"NVIDIA L4": {"plain": 10.0, "fast": 30.0}, "NVIDIA A100": {"plain": 50.0}}
    rows = [
        trial(name, 8, index, speed, accelerator=gpu)
        for gpu, engines in speeds.items()
        for name, speed in engines.items()
        for index in range(2)
    ]
    points = summarise(run_of(tmp_path, rows, baseline={"backend": "plain"})).set_index(["backend", "accelerator"])
    assert points["output_throughput"].to_dict() == {
        ("plain", "NVIDIA A100"): 50.0,
        ("plain", "NVIDIA L4"): 10.0,
        ("fast", "NVIDIA L4"): 30.0,
    }
    assert points.loc[("fast", "NVIDIA L4"), "output_throughput_vs_baseline"] == pytest.approx(3.0)
    same = summarise(run_of(tmp_path, [{**row, "accelerator": "NVIDIA L4"} for row in rows]))
    assert "accelerator" not in same


def test_a_baseline_may_name_a_key_of_the_load(tmp_path: Path) -> None:
    rows = [trial(name, batch, 0, speed * batch) for name, speed in (("a", 10.0), ("b", 20.0)) for batch in (1, 8)]
    run = run_of(tmp_path, rows, baseline={"load.batch_size": 1})
    points = summarise(run).set_index(["backend", "batch_size"])
    ratios = points["output_throughput_vs_baseline"].dropna().to_dict()
    assert ratios == {("a", 8): pytest.approx(8.0), ("b", 8): pytest.approx(8.0)}
    assert "Nothing could be compared" not in " ".join(doubts(run, arrange(run, summarise(run))))


def test_a_ratio_that_may_be_none_is_marked(tmp_path: Path) -> None:
    speeds = {"plain": (10.0, 11.0), "alike": (10.2, 11.2), "fast": (30.0, 30.1)}
    rows = [trial(name, 8, index, speed) for name, both in speeds.items() for index, speed in enumerate(both)]
    run_of(tmp_path, rows, baseline={"backend": "plain"})
    text = shown(tmp_path, 120)
    assert " ≈1.02×" in text
    assert " 2.87×" in text
    assert "≈ the interval includes 1: may be no difference from the baseline" in text
    run_of(tmp_path, [row for row in rows if row["backend"] != "alike"], baseline={"backend": "plain"})
    assert "≈" not in shown(tmp_path, 120)


def test_a_load_that_a_point_does_not_have_is_a_dash(tmp_path: Path) -> None:
    open_loop = {**trial("a", 8, 1, 10.0), "load": "open", "batch_size": None, "load.batch_size": None}
    run = run_of(tmp_path, [trial("a", 8, 0, 10.0), trial("a", 16, 0, 10.0), open_loop])
    text, document = shown(tmp_path, 120), report_of(run)
    assert re.search(r"open\s+—\s+10.0", text), text
    assert "<NA>" not in text
    assert "<NA>" not in document


def test_each_step_of_a_ladder_is_compared_with_its_parent(tmp_path: Path) -> None:
    steps = [("plain", None, 10.0), ("seqs", "plain", 15.0), ("fp8", "seqs", 30.0), ("other", "plain", None)]
    steps += [("late", "other", 20.0)]
    rows = [
        trial(engine, 8, replicate, value and value * factor, ladder=step, ladder_parent=parent)
        for engine, factor in (("vllm", 1), ("tgi", 2))
        for step, parent, value in steps
        for replicate in range(2)
    ]
    run = run_of(tmp_path, rows)
    points = summarise(run).set_index(["backend", "ladder"])
    assert points["ladder_parent"].dropna().to_dict()["tgi", "fp8"] == "seqs"
    ratios = points["output_throughput_vs_parent"].dropna().to_dict()
    assert ratios == pytest.approx({(e, s): v for e in ("vllm", "tgi") for s, v in (("seqs", 1.5), ("fp8", 2.0))})
    text = report_of(run)
    cells = '<td class="text">vllm, {}</td><td class="text">{}</td><td class="text">qa</td><td class="">{}'
    for step in (("fp8", "seqs", "2.00× "), ("late", "other", "the parent has no result"), ("other", "plain", "no r")):
        assert cells.format(*step) in text, step


def test_a_p99_says_of_how_many_requests_it_is_and_how_sure(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    alone = [trial(name, 8, 0, 10.0, attempt="1", ttft_p99=0.2) for name in ("a", "b", "lost")]
    twice = [trial("two", 8, index, 10.0, attempt="1", ttft_p99=0.2) for index in (0, 1)]
    for row, count in zip([*alone[:2], *twice], (1000, 100, 100, 100), strict=True):
        records = make_records(count, 1, 2, 0.2, 0.01)
        run_files.write_requests(paths.trial(row["deployment_id"], "1", row["trial_id"]), records)
    text = report_of(run_of(tmp_path, [*alone, *twice]))
    cells = dict(re.findall(r'<tr><td class="text">(\w+)</td>.*<td class="">(?:<b>)?200 <span>(.*?)</span>', text))
    assert cells == {"a": "[200–200]", "b": "[200 or more]", "lost": "", "two": "±&lt;1%"}
    assert '<td class="text">two</td><td class="">2</td><td class="">200</td>' in text
    assert "of one replicate has the interval over its requests" in text
