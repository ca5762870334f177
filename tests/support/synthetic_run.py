"""A run folder with plausible made-up numbers, written through sweep.disk.run_files: to try the analysis on at once.

`python -m tests.support.synthetic_run FOLDER` writes two to look at: FOLDER/throughput_bound and
FOLDER/completion_batches.
"""

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from sweep.base import code_version
from sweep.base.records import Outcome, Record, Records, Sample
from sweep.disk import run_files
from sweep.disk.ledger import Ledger
from sweep.disk.row import Observation, TrialRow, Verdict
from sweep.disk.run_files import RunPaths
from sweep.drive.monitor.progress import Display
from sweep.drive.row_writer import RowWriter
from sweep.node.rows import coordinates, identity, trial_quantities
from sweep.node.work import Work
from sweep.plan.plan import Plan

ENGINES = {  # tokens/s at batch 1, exponent of its growth with the batch, seconds to the first token
    "transformers": (17.5, 0.62, 0.064),
    "vllm": (18.1, 0.85, 0.041),
}
WORKLOADS = {"qa": 64, "reasoning": 256, "sentiment": 16, "summarization": 128}  # output tokens
BATCHES = (1, 2, 4, 8, 16, 32)
PRICE = 2.93  # USD per hour
POOL = 24 * 2**30
LIBRARIES = {  # of completion_batches: tokens/s at batch 1, number format, GiB of weights, agreement, largest batch
    "transformers": (20.0, {"dtype": "float32"}, 27.0, 1.0, 16),
    "transformers_8bit": (8.0, {"dtype": "bfloat16", "quantization": "bitsandbytes int8"}, 7.5, 0.81, 64),
    "vllm_gptq": (80.0, {"dtype": "float16", "quantization": "gptq", "quantization_method": "GPTQ"}, 5.0, 0.42, 64),
    "llamacpp": (45.0, {"dtype": "F16", "quantization": "F16"}, 13.5, 0.97, 4),
}


def make_run(
    out: Path, replicates: int = 2, batches: tuple[int, ...] = BATCHES, workloads: tuple[str, ...] = tuple(WORKLOADS)
) -> RunPaths:
    """Write a run: two engines that work, one that this host cannot run; the baseline's largest batches do not fit."""
    paths = RunPaths(out)
    rows = list(_rows(paths, replicates, batches, workloads))
    run_files.write_plan(
        paths,
        [
            {
                "kind": "experiment",
                "name": "throughput_bound",
                "baseline": {"backend": "transformers"},
                "replaced": ["model: tiny-llama instead of llama-2-7b-chat", "backend: without tgi"],
                "axes": ["backend", "load.batch_size", "workload"],
                "trials": len(rows),
                "replicates": replicates,
                "hardware": {"name": "l4", "price_per_hour": PRICE, "price_source": "the first study: L4 on demand"},
                "command": "python -m sweep +experiment=throughput_bound",
            },
            *({"kind": "trial", "trial_id": row["trial_id"], "deployment_id": row["deployment_id"]} for row in rows),
        ],
    )
    run_files.write_trials(paths, rows)
    return paths


def make_completion_batches(out: Path, replicates: int = 2) -> RunPaths:
    """Write the rows of story completions in lockstep batches: libraries in several number formats, some out of memory.

    Beyond the largest batch of a library the next runs out of memory, and those after it are not tried.
    """
    paths = RunPaths(out)
    rows = [
        _completion(library, batch, replicate)
        for library in LIBRARIES
        for replicate in range(replicates)
        for batch in (1, 4, 16, 64)
    ]
    experiment = {"kind": "experiment", "name": "completion_batches", "axes": ["backend", "load.batch_size"]}
    run_files.write_plan(paths, [{**experiment, "baseline": {"backend": "transformers"}}])
    run_files.write_trials(paths, rows)
    return paths


def finish_run(plan: Plan, paths: RunPaths) -> list[str]:
    """Write the run of a plan as its driver would, without an engine: made-up stamps, one trial of many out of memory.

    Returns the ids of the trials that ran.
    """
    run_files.write_plan(paths, plan.entries("sweep"))
    ledger = Ledger(paths.ledger)
    rows = RowWriter(plan, paths, ledger, Display(len(plan.trials), 0, None, Console(quiet=True)), None)
    ran = []
    for speed, deployment in enumerate(plan.deployments, start=2):
        work = Work(deployment, plan.settings, str(paths.out), "1", tuple(plan.axes))
        for index, trial in enumerate(deployment.trials):
            if deployment.unavailable:
                rows.commit_unmeasured(deployment, trial, "1", {"outcome": "unavailable", "reason": "no engine here"})
                continue
            ran.append(trial.trial_id)
            if index == 3:
                rows.commit_unmeasured(deployment, trial, "1", {"outcome": "oom_run", "reason": "out of memory"})
                continue
            batch = int(trial.load.size or 4)
            records = make_records(min(trial.workload.num_requests, 2 * batch), batch, 8, 0.05 * batch, 0.05 / speed)
            row = TrialRow(
                identity=identity(work, trial),
                verdict=Verdict(outcome=Outcome.OK, ended_at=code_version.now()),
                axes=coordinates(trial, work.axes),
                observation=Observation("kernel", "", "[]"),
                measured=trial_quantities(work, trial, records, {"shared_prefix_share": 0.5}),
            ).flat()
            run_files.write_requests(paths.trial(deployment.deployment_id, "1", trial.trial_id), records)
            rows.commit(deployment, trial, row)
    rows.write_table()
    ledger.close()
    return ran


def _completion(library: str, batch: int, replicate: int) -> dict[str, Any]:
    speed, facts, weights, agreement, largest = LIBRARIES[library]
    row = {
        "trial_id": f"{library}-{batch}-{replicate}",
        "deployment_id": library,
        "experiment": "completion_batches",
        "backend": library,
        "model": "llama-2-7b",
        "workload": "stories",
        "load": "batch",
        "batch_size": batch,
        "load.batch_size": batch,
        "replicate": replicate,
        "num_requests": 640,
        "num_failed": 0,
    }
    if batch > largest:
        first = batch == 4 * largest
        reason = "CUDA out of memory" if first else f"batch {4 * largest} ran out of memory"
        return {**row, "outcome": "oom_run" if first else "censored", "reason": reason}
    throughput = speed * batch**0.8 * random.Random(f"{library} {batch} {replicate}").gauss(1, 0.01)
    return {
        **row,
        "outcome": "ok",
        "output_tokens": 640 * 200,
        "output_length_mean": 200.0,
        "memory_mean_bytes": weights * 2**30,
        "duration": 640 * 200 / throughput,
        "output_throughput": throughput,
        **{f"batch_latency_{name}": batch * 200 / throughput for name in ("mean", "p50", "p90", "p99")},
        "batch_throughput": throughput,
        "memory_peak_bytes": (weights + 0.3 * batch) * 2**30,
        "agreement": agreement,
        "dtype": facts["dtype"],
        "engine_facts": json.dumps({**facts, "startup_seconds": 20.0 + replicate}),
    }


def _rows(
    paths: RunPaths, replicates: int, batches: tuple[int, ...], workloads: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    for backend in (*ENGINES, "tgi"):
        for replicate in range(replicates):
            for workload in workloads:
                for batch in batches:
                    yield _trial(paths, backend, workload, WORKLOADS[workload], batch, replicate)


def _trial(
    paths: RunPaths, backend: str, workload: str, output_tokens: int, batch: int, replicate: int
) -> dict[str, Any]:
    identity = {
        "trial_id": f"{backend[:2]}{workload[:2]}{batch}r{replicate}",
        "deployment_id": f"dep-{backend}",
        "experiment": "throughput_bound",
        "backend": backend,
        "model": "tiny-llama",
        "workload": workload,
        "load": "batch",
        "batch_size": batch,
        "load.batch_size": batch,
        "replicate": replicate,
        "seed": 1000 * replicate + batch,
        "num_requests": 64,
        "config": json.dumps({"backend": {"name": backend}, "load": {"name": "batch", "batch_size": batch}}),
    }
    if backend == "tgi":
        return {**identity, "outcome": "unavailable", "reason": "needs docker: install it, or set backend.env.binary"}
    identity["attempt"] = "1"
    log = paths.engine_log(identity["deployment_id"], "1")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("INFO: started\ntorch.OutOfMemoryError: CUDA out of memory.\n")
    if backend == "transformers" and batch * output_tokens > 4096:
        tail = (
            "Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
        )
        return {
            **identity,
            "outcome": "oom_run",
            "reason": "the engine's log says: CUDA out of memory",
            "log_tail": tail,
        }
    return {**identity, **_measured(paths, identity, output_tokens)}


def _measured(paths: RunPaths, identity: dict[str, Any], output_tokens: int) -> dict[str, Any]:
    chance = random.Random(str(sorted(identity.items())))
    base, exponent, first = ENGINES[identity["backend"]]
    batch = identity["batch_size"]
    throughput = base * batch**exponent * chance.gauss(1, 0.02)
    ttft = first * (1 + 0.11 * batch**0.9) * chance.gauss(1, 0.03)
    duration = identity["num_requests"] * output_tokens / throughput
    tpot = (batch * output_tokens / throughput - ttft) / (output_tokens - 1)
    trial = paths.trial(identity["deployment_id"], identity["attempt"], identity["trial_id"])
    records = make_records(identity["num_requests"], batch, output_tokens, ttft, tpot)
    run_files.write_requests(trial, records)
    telemetry = list(_telemetry(identity["backend"], batch, output_tokens, duration, chance))
    run_files.write_telemetry(trial, telemetry)
    usage = [sample.value for sample in telemetry if sample.series == "kv_cache_usage"]
    memory = [sample.value for sample in telemetry if sample.series == "gpu_memory_bytes"]
    row = {
        "outcome": "ok",
        "engine_version": {"vllm": "0.32.0", "transformers": "5.19.0"}[identity["backend"]],
        "num_failed": 0,
        "input_tokens": 64 * 110,
        "output_tokens": 64 * output_tokens,
        "duration": duration,
        "output_throughput": throughput,
        "total_throughput": throughput * (1 + 110 / output_tokens),
        "request_throughput": 64 / duration,
        **{f"ttft_{name}": ttft * by for name, by in {"mean": 1.02, "p50": 1.0, "p90": 1.2, "p99": 1.5}.items()},
        **{f"tpot_{name}": tpot * by for name, by in {"mean": 1.0, "p50": 1.0, "p90": 1.03, "p99": 1.1}.items()},
        **{f"e2el_{name}": ttft + tpot * output_tokens for name in ("mean", "p50", "p90", "p99")},
        "kv_cache_usage_mean": sum(usage) / len(usage) if usage else None,
        "kv_cache_usage_max": max(usage, default=None),
        "memory_idle_bytes": memory[0],
        "memory_mean_bytes": sum(memory) / len(memory),
        "memory_peak_bytes": max(memory),
        "memory_label": "gpu",
        "price_per_hour": PRICE,
        "cost_per_million_tokens": PRICE / 3600 / throughput * 1e6,
        "accelerator": "NVIDIA L4",
        "gpu_count": 1,
        "dtype": "float16",
        "client_cpu": 0.12,
        "client_stamp_source": "kernel",
        "batch_form": "list",
        "commit": "c9dd7f2",
        "versions": json.dumps({"vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.19.0"}),
        "hardware": json.dumps(
            {"host": "node-1", "cpu": "Xeon", "cores": 8, "load_average": 0.5, "gpus": ["NVIDIA L4"]}
        ),
        "driver": "570.86",
        "started_at": "2026-11-20T23:10:00+00:00",
        "ended_at": "2026-11-20T23:11:00+00:00",
        "startup_seconds": 24.0,
    }
    run_files.write_trial(trial, {**identity, **row})
    return row


def make_records(count: int, batch: int, output_tokens: int, ttft: float, tpot: float) -> Records:
    """Lockstep batches of requests that all take exactly `ttft` and `tpot`."""
    records = Records()
    latency = ttft + tpot * (output_tokens - 1)
    for index in range(count):
        sent = (index // batch) * (latency + 0.001)
        record = Record(f"r{index}", "measured", sent, sent, sent, input_tokens=110, output_tokens=output_tokens)
        record.batch = index // batch
        for token in range(output_tokens):
            record.chunk_us.append(round((ttft + tpot * token) * 1e6))
            record.chunk_tokens.append(1)
        record.finish_reason = "length"
        records.append(record)
    return records


def _telemetry(
    backend: str, batch: int, output_tokens: int, duration: float, chance: random.Random
) -> Iterator[Sample]:
    """Use rises within a batch and falls at its end; vLLM reserves its pool, the baseline's memory follows its use."""
    step = max(0.5, duration / 200)
    for index in range(math.ceil(duration / step)):
        time = index * step
        within = (time / duration * 64 / batch) % 1
        use = min(1.0, batch * (110 + output_tokens * within) / 60_000 * chance.gauss(1, 0.02))
        if backend == "vllm":
            yield Sample(time, "kv_cache_usage", use)
            yield Sample(time, "requests_running", float(batch))
            yield Sample(time, "requests_waiting", float(batch // 2))
            yield Sample(time, "gpu_memory_bytes", 0.9 * POOL, "0")
        else:
            yield Sample(time, "kv_cache_bytes", use * 0.3 * POOL)
            yield Sample(time, "gpu_memory_bytes", 0.56 * POOL + use * 0.4 * POOL, "0")


if __name__ == "__main__":
    make_run(Path(sys.argv[1]) / "throughput_bound", replicates=3)
    make_completion_batches(Path(sys.argv[1]) / "completion_batches")
