"""From files to frames, labels and figures: known answers on small made-up runs."""

import math
import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

import analysis
from analysis import figures
from analysis.figures import memory_timeline
from analysis.load import Run, open_run
from analysis.plotting import chart_style, drawing
from analysis.plotting.fitting import fits
from analysis.plotting.layout import MOST_LINES, arrange
from analysis.quantities import labelled_column
from analysis.summary import summarise
from sweep.base.records import Sample
from sweep.base.wording import number
from sweep.disk import run_files
from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.disk.tables import read_table
from tests.support.results import printed, report_of, run_of, trial
from tests.support.synthetic_run import make_records, make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "throughput_bound"
    make_run(folder, replicates=2, batches=(1, 8, 32), workloads=("qa", "reasoning"))
    return folder


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
            table = read_table(files.requests)
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
    with pytest.warns(UserWarning, match=re.escape(str(files[1].telemetry))):
        assert list(analysis.telemetry(tmp_path, damaged="skip")["trial_id"]) == [rows[0]["trial_id"]]


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
    of = labelled_column(column)
    assert of is not None
    assert (of.axis, of.shown(value)) == (axis, shown)


def test_what_is_no_measurement_has_no_unit() -> None:
    names = [name for name in run_files.trial_schema((50, 90, 99)) if name.startswith(("trial", "batch_size", "seed"))]
    assert not [name for name in names if labelled_column(name)]
    assert (number(math.nan), number(0), number(0.01234), number(12345.6)) == ("—", "0", "0.0123", "12,346")


def against_load(run: Run, column: str) -> Axes:
    with chart_style.style():
        figure = drawing.against_load(run, arrange(run, summarise(run)), column)
    assert figure is not None
    return figure.axes[0]


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
    ax = against_load(run, "ttft_p50")
    assert ax.get_lines()[0].get_xydata().tolist()[:2] == [[1.0, pytest.approx(2.0)], [8.0, pytest.approx(9.0)]]
    crosses = [line for line in ax.get_lines() if line.get_marker() == "x"]
    assert crosses[0].get_xdata().tolist() == [32.0]  # no result there
    (replicates,) = (dots for dots in ax.collections if len(dots.get_offsets()) == 4)
    assert replicates.get_offsets()[:, 1].tolist() == pytest.approx([1.0, 3.0, 8.0, 10.0])


def test_a_whisker_that_is_cut_at_the_edge_ends_in_an_arrowhead(tmp_path: Path) -> None:
    """Of two launches at 10 and 30 tokens/s: it ends far beyond the panel."""
    rows = [trial("a", 8, index, speed, launch=str(index)) for index, speed in enumerate((10.0, 30.0))]
    rows += [trial("a", 1, index, speed, launch=str(index)) for index, speed in enumerate((10.0, 10.1))]
    run = run_of(tmp_path, rows)
    ax = against_load(run, "output_throughput")
    _, *cut = [each.get_offsets() for each in ax.collections if isinstance(each, PathCollection)]
    assert [arrows.tolist() for arrows in cut] == [[[8, 1]]]


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
    ax = against_load(run, "output_throughput")
    assert [label.get_text() for label in ax.get_yticklabels()] == layout.lines
    marks = [line.get_xdata().tolist() for line in ax.get_lines() if line.get_marker() in chart_style.MARKERS]
    assert marks == [[10.0], [15.0]]


@pytest.mark.slow
def test_a_single_configuration_can_be_drawn(tmp_path: Path) -> None:
    run = run_of(tmp_path, [trial("vllm", 4, 0, 10.0), trial("vllm", 4, 1, 12.0)])
    assert [one.name for one in figures.draw_all(run, arrange(run, summarise(run)))] == ["output_throughput"]


def test_a_figure_without_data_is_not_left_from_before(run_folder: Path, tmp_path: Path) -> None:
    stale = tmp_path / "figures" / "cost.svg"
    stale.parent.mkdir()
    stale.write_text("old")
    run = run_of(tmp_path, [trial("vllm", 4, 0, 10.0)])
    figures.draw_all(run, arrange(run, summarise(run)))
    assert not stale.exists()


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
    assert [(fit.line, fit.task, fit.largest, fit.detail) for fit in found] == [
        ("a", "qa", 8, "ran out at 16 (1 of 2 trials), 64; no result at 32"),
        ("b", "qa", None, "ran out at 1"),
    ]
    text = printed(open_run(tmp_path), 80)
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
    assert (fit.largest, fit.detail) == (8, told)
    assert told in report_of(run)


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


@pytest.mark.slow
def test_of_many_lines_some_are_drawn(tmp_path: Path) -> None:
    rows = [
        trial("e", batch, 0, 10.0 + seqs, **{"backend.flags.max-num-seqs": seqs})
        for seqs in range(1, 101)
        for batch in (1, 2, 4)
    ]
    run = run_of(tmp_path, rows, baseline={"backend.flags.max-num-seqs": 50})
    layout = arrange(run, summarise(run))
    assert len(layout.lines) == 100
    assert len(layout.coloured) <= MOST_LINES
    assert {"e, max-num-seqs=100", "e, max-num-seqs=50"} <= set(layout.coloured)  # the best, and the baseline
    looks = {str(chart_style.line_style(layout, line)) for line in layout.coloured}
    assert len(looks) == len(layout.coloured)
    with chart_style.style():
        figure = drawing.against_load(run, layout, "output_throughput")
    assert figure is not None
    ax = figure.axes[0]
    curves = [line for line in ax.get_lines() if line.get_marker() in chart_style.MARKERS]
    assert len(curves) == len(layout.coloured)
    assert f"({len(layout.coloured)} of 100 lines)" in figure.legends[0].get_title().get_text().replace("\n", " ")
    assert "max-num-seqs=12 and 88 others" in " ".join(printed(open_run(tmp_path), 120).split())
    assert f"Of 100 lines {len(layout.coloured)} are drawn" in report_of(run)


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
    with chart_style.style():
        figure = memory_timeline.draw(run, layout)
    assert figure is not None
    shown_as = [(one.get_color(), one.get_linestyle(), one.get_marker()) for one in figure.legends[0].get_lines()]
    drawn_as = [(one.get_color(), one.get_linestyle(), one.get_marker()) for one in figure.axes[0].get_lines()]
    assert len(set(drawn_as)) == 9
    assert sorted(drawn_as) == sorted(shown_as)


def test_the_plan_is_read_no_further_than_its_experiment(tmp_path: Path) -> None:
    run_of(tmp_path, [trial("a", 1, 0, 10.0)])
    plan = RunPaths(tmp_path).plan
    plan.write_text(plan.read_text() + '{"kind": "trial", "trial_id": 1, "deploy')
    assert open_run(tmp_path).name == "x"
    plan.write_text('{"kind": "experiment", ')
    with pytest.raises(DamagedFile, match=r"plan\.jsonl"):
        open_run(tmp_path)
