"""Measures the same trial on a real vLLM server with `vllm bench serve` and with sweep, alternating; no client is
overloaded.

    python -m benchmarks.versus_vllm_bench [--runs 5] [--concurrency 1,2,4,8] [--write docs/measurements/vllm_bench.md]

One vLLM server (its CPU build, a small random-weight Llama, no prefix cache) is bound to one core, the client to
another. Both clients send random prompts of the same exact length, request the same number of tokens with EOS ignored,
and send two warm-up requests. Each run draws new prompts. Ours is the whole command of the README (`sweep run
backend=openai …`). Both values are by vLLM's definitions (`sweep.numbers.vllm_flavour`). The noise is that of the
difference of the two means: sqrt(s1² / n + s2² / n). The clients agree if the difference is below twice the noise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.base import EnvironmentChoice, Launch
from backends.launch import server
from backends.prepare import environments as environments
from backends.prepare import locks
from benchmarks.client import MARKS, VLLM_BENCH
from benchmarks.documents import markdown_table, publish
from sweep.base.config import ROOT, build, cache_directory
from sweep.base.options import load_option
from sweep.disk import run_files
from sweep.numbers.vllm_flavour import vllm_flavour

INPUT_TOKENS, OUTPUT_TOKENS = 128, 64
ENGINE_CORE, CLIENT_CORE = 0, 1
TRIES = 3  # attempts at a trial, in case another process keeps the client off its core
FIGURES = {  # vLLM's name of a quantity -> its label
    "mean_ttft_ms": "TTFT mean, ms",
    "median_ttft_ms": "TTFT median, ms",
    "mean_tpot_ms": "TPOT mean, ms",
    "mean_itl_ms": "ITL mean, ms",
    "p99_itl_ms": "ITL p99, ms",
    "mean_e2el_ms": "E2E mean, ms",
    "output_throughput": "output tokens/s",
}
Run = Mapping[str, Any]


@contextmanager
def engine(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Run a vLLM server. Yield its URL, its environment's interpreter, and its version."""
    cache = cache_directory(None)
    built = environments.prepare(
        locks.locked(environments.resolve(EnvironmentChoice(cpu="cpu"), "cpu"), cache, print), cache, print
    )
    backend: Any = build(load_option("backend", "vllm"), "backend")
    backend = backend.model_copy(update={"flags": {**backend.flags, "no-enable-prefix-caching": True}})
    model: Any = build(load_option("model", "tiny-llama"), "model")
    launch = Launch(
        model=model.prepare(cache, print),
        served_name="tiny-llama",
        workdir=folder,
        python=built.python,
        cpus=(ENGINE_CORE,),
        max_model_len=512,
    )
    with server.running(backend, launch, marker=f"versus-vllm-bench/{os.getpid()}", versions=built.versions) as running:
        yield running.url, built.python, str(running.facts()["engine_version"])


def ours(url: str, concurrency: int, requests: int, seed: int, folder: Path) -> Run:
    """Run one trial with the README's command; repeat it if the client could not keep up, as its reason advises."""
    command = [
        *(sys.executable, "-m", "sweep", "backend=openai", f"backend.url={url}", "model=tiny-llama"),
        *("workload=synthetic", f"workload.input_tokens={INPUT_TOKENS}", f"workload.output_tokens={OUTPUT_TOKENS}"),
        *(f"workload.num_requests={requests}", "load=closed", f"load.concurrency={concurrency}", f"seed={seed}"),
        "load.stagger=0",
        *("cluster=inline", "tracking=none", f"out={folder}"),
    ]
    for _ in range(TRIES):
        _execute(command, ROOT, allowed=(0, 1))
        (row,) = run_files.read_trials(folder / "trials.parquet")
        if row["outcome"] == "ok":
            break
    else:
        raise SystemExit(f"sweep: {row['outcome']}: {row['reason']}")
    requests_file = folder / "deployments" / row["deployment_id"] / str(row["attempt"]) / row["trial_id"]
    return vllm_flavour(run_files.read_requests(requests_file / "requests.parquet"))


def theirs(python: str, url: str, concurrency: int, requests: int, seed: int, folder: Path) -> Run:
    """Run the same trial with `vllm bench serve`."""
    arguments = {
        "backend": "openai",
        "base-url": url,
        "endpoint": "/v1/completions",
        "model": "tiny-llama",
        "tokenizer": str(ROOT / "sweep" / "inputs" / "data" / "tokenizer"),
        "dataset-name": "random",
        "random-input-len": INPUT_TOKENS,
        "random-output-len": OUTPUT_TOKENS,
        "num-prompts": requests,
        "num-warmups": 2,
        "temperature": 0,
        "max-concurrency": concurrency,
        "seed": seed,
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "result-dir": str(folder),
        "result-filename": "result.json",
        "ready-check-timeout-sec": 0,
    }
    folder.mkdir()
    flags = ["--ignore-eos", "--save-result", "--disable-tqdm"]
    _execute([python, "-c", VLLM_BENCH, *flags, *(f"--{name}={value}" for name, value in arguments.items())], folder)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    if result["completed"] != requests:
        raise SystemExit(f"vllm bench serve: {result['completed']} of {requests} requests completed")
    return result


def _execute(command: Sequence[str], folder: Path, allowed: tuple[int, ...] = (0,)) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    bound = ["taskset", "-c", str(CLIENT_CORE), *command]
    result = subprocess.run(bound, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode not in allowed:
        raise SystemExit(f"{command[:3]} failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")


def table(runs: Mapping[int, tuple[list[Run], list[Run]]]) -> list[str]:
    """Return lines of Markdown: each quantity by both clients, their difference, and the difference's noise."""
    rows = []
    for concurrency, both in runs.items():
        for name, label in FIGURES.items():
            mine, other = ([run[name] for run in runs_of_client] for runs_of_client in both)
            mean = statistics.mean(other)
            difference = statistics.mean(mine) - mean
            noise = (statistics.variance(mine) / len(mine) + statistics.variance(other) / len(other)) ** 0.5
            texts = f"{difference:+.2f} ({difference / mean:+.1%})", f"{noise:.2f} ({noise / mean:.1%})"
            agrees = "yes" if abs(difference) <= 2 * noise else "no"
            rows.append([concurrency, label, _spread(mine), _spread(other), *texts, agrees])
    return markdown_table("users | figure | sweep | vllm bench serve | difference | its noise | agree", rows)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="by each client at each concurrency, in turns")
    parser.add_argument("--concurrency", default="1,2,4,8")
    parser.add_argument("--requests", type=int, default=8, help="per user")
    parser.add_argument("--write", type=Path, help="also put the table into this file, between its two marks")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error(f"--runs={options.runs}: expected at least 2, since the noise is the spread of the runs")
    runs: dict[int, tuple[list[Run], list[Run]]] = {}
    with tempfile.TemporaryDirectory(prefix="sweep-versus-") as name, engine(Path(name) / "engine") as running:
        url, python, version = running
        for concurrency in map(int, options.concurrency.split(",")):
            both: tuple[list[Run], list[Run]] = ([], [])
            requests = options.requests * concurrency
            for run in range(options.runs):
                folder, seed = Path(name) / f"{concurrency}-{run}", concurrency * 1000 + run
                both[0].append(ours(url, concurrency, requests, seed, folder / "ours"))
                both[1].append(theirs(python, url, concurrency, requests, seed, folder / "theirs"))
            runs[concurrency] = both
            print("\n".join(table({concurrency: both})), flush=True)
    lines = [*table(runs), "", f"vLLM {version}, {options.runs} runs of each, {options.requests} requests per user."]
    publish(lines, options.write, MARKS)


if __name__ == "__main__":
    main()
