"""Where points stand in a figure: along the axis, as a line or as a panel, whatever varies."""

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console

from analysis.load import Run, open_run
from analysis.plotting import chart_style, drawing
from analysis.plotting.layout import arrange
from analysis.point_names import Layout
from analysis.report.vllm_flavour import render_vllm_flavour
from analysis.results import open_results
from analysis.summary import summarise
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from tests.support.synthetic_run import make_records

IDENTITY = {"backend": "vllm", "model": "m", "workload": "qa", "load": "batch", "replicate": 0, "num_requests": 100}


def run_of(folder: Path, points: list[dict[str, Any]]) -> Run:
    """A run of one ok trial a point; what no trials row has by itself is an axis."""
    rows = [
        {"trial_id": f"t{index}", "deployment_id": "d", "outcome": "ok", "output_throughput": 10.0, **IDENTITY, **point}
        for index, point in enumerate(points)
    ]
    paths = RunPaths(folder)
    run_files.write_trials(paths, rows)
    axes = sorted({name for point in points for name in point if name not in run_files.trial_schema((50, 90, 99))})
    run_files.write_plan(paths, [{"kind": "experiment", "name": "x", "axes": axes}])
    return open_run(folder)


def layout_of(run: Run) -> Layout:
    return arrange(run, summarise(run))


def test_an_axis_crossed_with_a_ladder_keeps_its_name(tmp_path: Path) -> None:
    points = [
        {"ladder": step, "backend.dtype": dtype, "backend.flags.max-num-seqs": seqs, "batch_size": batch}
        for step, seqs in (("a", 64), ("b", 128))
        for dtype in ("fp16", "fp32")
        for batch in (1, 8)
    ]
    layout = layout_of(run_of(tmp_path, points))
    assert (layout.x, layout.panels) == ("batch_size", ["qa"])
    assert sorted(layout.lines) == [
        "vllm, dtype=fp16, a",
        "vllm, dtype=fp16, b",
        "vllm, dtype=fp32, a",
        "vllm, dtype=fp32, b",
    ]


def test_a_switch_is_part_of_a_line_and_no_axis(tmp_path: Path) -> None:
    layout = layout_of(run_of(tmp_path, [{"backend.flags.enforce-eager": eager} for eager in (True, False)]))
    assert (layout.x, layout.lines) == (None, ["vllm, enforce-eager=true", "vllm, enforce-eager=false"])


def test_names_do_not_repeat_what_a_step_or_a_workload_sets(tmp_path: Path) -> None:
    """A ladder whose workloads have each a number of requests of their own, and whose last step sets a gateway."""
    points = [
        {"ladder": step, "gateway": gateway, "workload": workload, "workload.num_requests": requests}
        for step, gateway in (("a", "none"), ("b", "cache"))
        for workload, requests in (("qa", 18), ("mixed", 48))
    ]
    layout = layout_of(run_of(tmp_path, points))
    assert (layout.x, layout.panels, layout.lines) == (None, ["mixed", "qa"], ["vllm, a", "vllm, b"])


def test_an_axis_of_one_engine_in_step_with_the_load_is_one_curve(tmp_path: Path) -> None:
    points = [
        {"backend": engine, "backend.cache_tokens": 100.0 * batch if engine == "exllama" else None, "batch_size": batch}
        for engine in ("vllm", "exllama")
        for batch in (1, 4, 16)
    ]
    layout = layout_of(run_of(tmp_path, points))
    assert (layout.x, layout.lines) == ("batch_size", ["vllm", "exllama"])


def test_axes_in_step_are_one_curve(tmp_path: Path) -> None:
    """The shapes of conf/experiment sequence_length, request_count and batch_size."""
    lengths = [{"workload.input_tokens": n, "workload.output_tokens": n, "batch_size": 64} for n in (32, 64, 128)]
    layout = layout_of(run_of(tmp_path / "lengths", lengths))
    assert (layout.x, layout.lines, layout.panels) == ("workload.input_tokens", ["vllm"], ["qa"])
    assert layout.axis("qa") == "Input tokens (with output tokens)"

    counts = [{"workload.num_requests": n, "load.batch_size": n, "batch_size": n} for n in (10, 50, 100)]
    layout = layout_of(run_of(tmp_path / "counts", counts))
    assert (layout.x, layout.lines, layout.panels) == ("batch_size", ["vllm"], ["qa"])
    assert layout.axis("qa") == "Request count"

    batches = [{"load.batch_size": n, "batch_size": n} for n in (1, 2, 4)]
    layout = layout_of(run_of(tmp_path / "batches", batches))
    assert (layout.x, layout.lines, layout.panels, layout.axis("qa")) == ("batch_size", ["vllm"], ["qa"], "Batch size")


def test_names_stay_names_though_they_change_with_the_load(tmp_path: Path) -> None:
    points = [{"backend.dtype": dtype, "batch_size": batch} for dtype, batch in (("fp16", 1), ("fp32", 8))]
    assert layout_of(run_of(tmp_path, points)).lines == ["vllm, dtype=fp16", "vllm, dtype=fp32"]


def kinds_of_load(folder: Path) -> Run:
    loads: list[dict[str, Any]] = [
        *({"load": "batch", "batch_size": n, "load.batch_size": n, "workload.num_requests": n} for n in (1, 8)),
        *({"load": "closed", "concurrency": n, "load.concurrency": n} for n in (2, 16)),
        {"load": "trace"},
    ]
    return run_of(folder, [{**load, "backend": backend} for load in loads for backend in ("vllm", "sglang")])


def test_each_kind_of_load_has_its_own_abscissa(tmp_path: Path) -> None:
    run = kinds_of_load(tmp_path)
    layout = layout_of(run)
    assert layout.lines == ["vllm", "sglang"]
    assert layout.panels == ["qa, load=batch", "qa, load=closed", "qa, load=trace"]
    assert [layout.axis(panel) for panel in layout.panels] == ["Batch size (with num requests)", "Concurrency", ""]
    assert {layout.describe(point) for _, point in layout.points.iterrows() if point["line"] == "vllm"} == {
        "vllm, qa, load=batch, batch size 1",
        "vllm, qa, load=batch, batch size 8",
        "vllm, qa, load=closed, concurrency 2",
        "vllm, qa, load=closed, concurrency 16",
        "vllm, qa, load=trace",
    }
    with chart_style.style():
        figure = drawing.against_load(run, layout, "output_throughput")
    assert figure is not None
    for ax, expected in zip(figure.axes, [[1, 8], [2, 16], None], strict=False):
        drawn = [line.get_xdata() for line in ax.lines if line.get_linestyle() == "-"]
        assert len(drawn) == 2, ax.get_title()  # one an engine
        for x in drawn:
            assert np.isfinite(x).all()
            assert expected is None or list(x) == expected


def test_two_loads_of_one_size_each_are_panels(tmp_path: Path) -> None:
    layout = layout_of(run_of(tmp_path, [{"load": "batch", "batch_size": 8}, {"load": "closed", "concurrency": 8}]))
    assert (layout.x, layout.lines, len(layout.panels)) == (None, ["vllm"], 2)


def test_a_setting_that_only_one_engine_has_is_no_abscissa(tmp_path: Path) -> None:
    points = [*({"backend.flags.max-num-seqs": n} for n in (64, 128)), {"backend": "tgi"}]
    layout = layout_of(run_of(tmp_path, points))
    assert layout.x is None
    assert layout.lines == ["vllm, max-num-seqs=64", "vllm, max-num-seqs=128", "tgi"]


def test_goodput_by_the_engines_own_stamps_is_left_out(tmp_path: Path) -> None:
    stamped = [{"backend": name, "goodput": 2.0, "client_stamp_source": name} for name in ("engine", "kernel")]
    assert list(run_of(tmp_path, stamped).ok["goodput"].isna()) == [True, False]


def test_trials_in_vllms_terms_say_which_they_are(tmp_path: Path) -> None:
    points: list[dict[str, Any]] = [
        {"load": "poisson", "rate": 1.0, "client_stamp_source": "kernel"},
        {"load": "poisson", "rate": 2.0, "client_stamp_source": "engine"},
        {"load": "poisson", "rate": 4.0, "outcome": "hung"},
    ]
    run = run_of(tmp_path, [{**point, "attempt": "1"} for point in points])
    for trial_id in run.ok["trial_id"]:
        run_files.write_requests(run.paths.trial("d", "1", trial_id), make_records(4, 2, 8, ttft=0.1, tpot=0.01))
    first, second, left_out = map(shown, render_vllm_flavour(open_results(tmp_path)))
    assert "request rate (requests/s) 1, replicate 0" in first
    assert "Mean TTFT (ms)" in first
    assert "request rate (requests/s) 2, replicate 0" in second
    assert "TTFT" not in second
    assert "Output token throughput" in second
    assert left_out == "not shown: 1 trial without a result"


def shown(what: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(what)
    return " ".join(cast(io.StringIO, console.file).getvalue().split())  # a title may be broken


def test_an_axis_of_one_kind_of_load_is_told_once(tmp_path: Path) -> None:
    """load.batch_size is null where the load is a closed loop; what it says stands in batch_size all the same."""
    points = [{"load": "batch", "batch_size": size, "load.batch_size": size} for size in (1, 8)]
    points += [{"load": "closed", "concurrency": 4, "load.batch_size": None}]
    summary = summarise(run_of(tmp_path, points))
    assert "load.batch_size" not in summary.columns
    assert summary.batch_size.dropna().tolist() == [1, 8]
