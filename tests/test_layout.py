"""Where points stand in a figure: along the axis, as a line or as a panel, whatever varies."""

from pathlib import Path
from typing import Any

from analysis.layout import Layout, arrange
from analysis.load import Run, open_run
from analysis.summary import summarise
from sweep import store
from sweep.store import RunPaths

IDENTITY = {"backend": "vllm", "model": "m", "workload": "qa", "load": "batch", "replicate": 0, "num_requests": 100}


def run_of(folder: Path, points: list[dict[str, Any]]) -> Run:
    """A run of one ok trial a point; what no trials row has by itself is an axis."""
    rows = [
        {"trial_id": f"t{index}", "deployment_id": "d", "outcome": "ok", "output_throughput": 10.0, **IDENTITY, **point}
        for index, point in enumerate(points)
    ]
    paths = RunPaths(folder)
    store.write_trials(paths, rows)
    axes = sorted({name for point in points for name in point if name not in store.TRIAL_SCHEMA})
    store.write_plan(paths, [{"kind": "experiment", "name": "x", "axes": axes}])
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
