"""Measures the memory of a very long trial: a million requests of 128 chunks, actually sent, recorded and summarised.

    python -m benchmarks.memory [--requests 1000000]

Runs the command that a user would give (`sweep run backend=openai …`) against the simulated server, which answers at
once. Prints the peak memory of the command and of its measuring processes, and the size of requests.parquet.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from sweep.base.config import ROOT
from sweep.disk import run_files

TOKENS, STREAMS = 128, 64


def peak_memory(process: psutil.Process) -> int:
    """Return a process's largest resident memory so far, in bytes; 0 if the process is gone."""
    with contextlib.suppress(OSError, psutil.Error):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def watch(command: "subprocess.Popen[bytes]") -> tuple[int, int]:
    """Return the peak memory of a command and of its largest child, in bytes."""
    process = psutil.Process(command.pid)
    command_peak = children = 0
    while command.poll() is None:
        command_peak = max(command_peak, peak_memory(process))
        with contextlib.suppress(psutil.Error):
            children = max([children, *(peak_memory(child) for child in process.children(recursive=True))])
        time.sleep(0.2)
    return command_peak, children


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    requests = parser.parse_args().requests
    config = {"ttft": {"mean": 0.0}, "itl": {"mean": 0.0}, "events_per_write": 64}
    server = [sys.executable, "-m", "backends.simulated_server", "--config", json.dumps(config)]
    with (
        tempfile.TemporaryDirectory(prefix="sweep-memory-") as folder,
        subprocess.Popen(server, stdout=subprocess.PIPE, text=True, cwd=ROOT) as serving,
    ):
        assert serving.stdout is not None
        url = f"http://127.0.0.1:{serving.stdout.readline().rsplit(':', 1)[1].strip()}"
        sweep = [
            *(sys.executable, "-m", "sweep", "backend=openai", f"backend.url={url}", "model=simulated"),
            *(
                "backend.continuous_usage=false",
                "workload=synthetic",
                "workload.input_tokens=8",
                f"workload.output_tokens={TOKENS}",
            ),
            *(f"workload.num_requests={requests}", "load=closed", f"load.concurrency={STREAMS}"),
            *("cluster=inline", "tracking=none", f"out={folder}/out"),
        ]
        began = time.monotonic()
        with subprocess.Popen(sweep, cwd=ROOT) as command:
            command_peak, children = watch(command)
        wall = time.monotonic() - began
        serving.terminate()
        (row,) = run_files.read_trials(Path(folder) / "out" / "trials.parquet")
        (file,) = Path(folder).glob("out/deployments/*/*/*/requests.parquet")
        result = {
            "requests": row["num_requests"],
            "failed": row["num_failed"],
            "output_tokens": row["output_tokens"],
            "outcome": row["outcome"],
            "wall_seconds": round(wall),
            "command_peak_bytes": command_peak,
            "client_peak_bytes": children,
            "requests_parquet_bytes": file.stat().st_size,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
