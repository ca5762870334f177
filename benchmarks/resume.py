"""Time of a run that finds 20,000 trials done, and the driver's memory with 20,000 planned.

    python -m benchmarks.resume [TRIALS]

The command itself plans that many trials (dry run); then a ledger with a row for each is written, copied from one that
was measured; the time is that of the same command, which has nothing to do, from start to exit. Prints one JSON object:
seconds, and peak resident memory in MiB of the resumed run and of a new one.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sweep.config import ROOT
from sweep.disk.ledger import Ledger
from sweep.disk.lines import sealed
from sweep.disk.run_files import read_plan


def command(out: Path, trials: int) -> list[str]:
    means = ",".join(f"{0.001 + index * 1e-6:.6f}" for index in range(trials // 100))
    point = ("backend=simulated", "model=tiny-llama", "workload=qa", "workload.num_requests=1", "tracking=none")
    grid = (f"backend.itl.mean={means}", "load.batch_size=1,2,3,4,5,6,7,8,9,10", "replicates=10", "cluster=inline")
    return [sys.executable, "-m", "sweep", *point, *grid, f"out={out}"]


def measure(arguments: list[str], interrupt_after: str | None = None) -> tuple[float, float, str]:
    """Run a command; return (seconds, peak MiB, output). After a line with `interrupt_after` it is interrupted."""
    begin, output = time.monotonic(), ""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            if interrupt_after and interrupt_after in line:
                process.send_signal(signal.SIGTERM)
                interrupt_after = None
        _, _, usage = os.wait4(process.pid, 0)
    return time.monotonic() - begin, usage.ru_maxrss / 1024, output


def done_row(sample: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """A row of realistic size for this trial of the plan."""
    return sample | {
        "trial_id": entry["trial_id"],
        "deployment_id": entry["deployment_id"],
        "replicate": entry["replicate"],
        "seed": entry["seed"],
        "config": json.dumps(entry["config"]),
        **entry["coordinates"],
    }


def main(trials: int) -> None:
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        out = Path(folder) / "out"
        begun = measure(command(out, trials), interrupt_after=f"[1/{trials}")
        sample = next(iter(Ledger(out / "ledger.jsonl", write=False).rows.values()))
        entries = [entry for entry in read_plan(out / "plan.jsonl") if entry["kind"] == "trial"]
        with (out / "ledger.jsonl").open("ab") as ledger:
            ledger.writelines(sealed({"event": "trial", "row": done_row(sample, entry)}) for entry in entries)
        planned = measure([*command(out, trials), "dry_run=true"])[2]
        assert ", 0 to run" in planned, planned  # or the next command would measure all trials
        measure(command(out, trials))  # makes trials.parquet and the report, as the run that did the trials would have
        resumed = measure(command(out, trials))
        assert ", 0 to run" in resumed[2], resumed[2]
        result = {
            "trials": len(entries),
            "ledger_mib": round((out / "ledger.jsonl").stat().st_size / 2**20),
            "resume_seconds": round(resumed[0], 1),
            "resume_peak_mib": round(resumed[1]),
            "begin_peak_mib": round(begun[1]),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
