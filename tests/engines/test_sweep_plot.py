"""vLLM's own plot command reads what `sweep export` writes."""

import subprocess

import pytest
from uv import find_uv_bin

from backends.installed import configured
from sweep.__main__ import main
from tests.support.synthetic_run import make_run

pytestmark = pytest.mark.engine

PLOTTING = ("pandas", "matplotlib", "seaborn")  # of vLLM's extra "bench", which an environment for serving leaves out
PLOT = """
import argparse, sys
sys.path.append(sys.argv.pop(1))
from vllm.benchmarks.sweep.plot import SweepPlotArgs, main
main(SweepPlotArgs.add_cli_args(argparse.ArgumentParser()).parse_args())
"""


def test_vllm_plots_an_export(environments, tmp_path):
    python = environments(configured("vllm")).python
    extra, files = tmp_path / "extra", tmp_path / "files"
    subprocess.run(
        [find_uv_bin(), "pip", "install", "-q", "--python", python, "--target", extra, *PLOTTING], check=True
    )
    run = make_run(tmp_path / "run", batches=(1, 8), workloads=("qa",)).out
    assert main(["export", str(run), str(files)]) == 0
    axes = ["--var-x", "output_throughput", "--var-y", "median_ttft_ms", "--curve-by", "backend"]
    command = [python, "-c", PLOT, str(extra), str(files), *axes, "--fig-dir", "figures"]
    plotted = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert plotted.returncode == 0, plotted.stderr[-2000:]
    figures = [path for path in files.rglob("*.png") if path.stat().st_size > 5_000]
    assert figures, plotted.stdout[-2000:]
