"""Measures the costs of scheduling, on fake GPUs with tasks that only sleep.

    python -m benchmarks.schedule makespan [--mean 30]   launches on 4 nodes x 4 GPUs, against the lower bound
    python -m benchmarks.schedule blocks                 the policy alone: random plans of few and of many deployments
    python -m benchmarks.schedule scale                  20,000 trials: the driver's time per trial and its memory
    python -m benchmarks.schedule memory                 the driver's memory as its rows grow to 5,000, without a fault
    python -m benchmarks.schedule simulate               100,000 trials in 10,000 launches on 64 nodes x 8 GPUs, no Ray

Everything is real (compose, plan, driver, ledger, Ray's placement) except the task on the node, which sleeps for as
long as its engine and trials would take. The last line of the output is JSON.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
from rich.console import Console

from benchmarks.documents import markdown_table, publish
from sweep.base.config import ROOT, Cluster
from sweep.base.records import Outcome
from sweep.cluster import ray_environment
from sweep.disk.ledger import Ledger, ledger_entries
from sweep.disk.run_files import RunPaths
from sweep.drive.driver import Driver, RunResult
from sweep.drive.monitor.progress import Display
from sweep.node.events import Beat, Completed, Finished, Placed
from sweep.node.rows import unmeasured_row
from sweep.node.work import Work
from sweep.numbers.quantity import columns
from sweep.plan.compose import compose_run
from sweep.plan.estimate import History, expect
from sweep.plan.packing import Need, Node
from sweep.plan.pending import find_pending
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.plan.planning import Surroundings, make_plan
from sweep.plan.simulate import simulate
from tests.cluster.harness import ENVIRONMENT, RayCluster

NODES, GPUS, DEPLOYMENTS, REPLICATES = 4, 4, 200, 3
SIZES = (1, 1, 1, 2, 4)  # GPUs of a deployment; most deployments are small
BEAT = 5.0  # seconds between two heartbeats, as a real task gives them
LARGE = ("load.batch_size=range(1,11)", "replicates=10", "backend.startup_seconds=range(0,200)")


def plan_of(*arguments: str) -> Plan:
    """Return a plan of simulated engines, made as by the command line."""
    composition = compose_run(["backend=simulated", "tracking=none", *arguments], lambda cluster: "cpu")
    return make_plan(composition, Surroundings(lambda backend, platform: "", lambda backend, platform: None))


def seconds_of(deployment_id: str, mean_seconds: float) -> float:
    """Return a deployment's duration, log-normal like measured durations: a few take several times the mean."""
    sigma = 0.7
    return mean_seconds * random.Random(deployment_id).lognormvariate(-sigma * sigma / 2, sigma)


# Makespan ------------------------------------------------------------------------------------------------------------


def makespan(mean_seconds: float, deployments: int, replicates: int) -> dict[str, Any]:
    """Run deployments of mixed size and length, a launch for each replicate, with the real driver and a real Ray."""
    plan = plan_of(f"backend.startup_seconds=range(0,{deployments})", f"replicates={replicates}", "cluster=ray")
    draw = random.Random(1)
    plan.deployments[:] = [replace(deployment, gpu_count=draw.choice(SIZES)) for deployment in plan.deployments]
    seconds_by_launch = {launch.launch_key: seconds_of(launch.deployment_id, mean_seconds) for launch in plan.launches}
    history = History([])
    history.launch = lambda deployment: seconds_by_launch[deployment.launch_key]  # type: ignore[method-assign]
    history.trial = lambda row: 0.0  # type: ignore[method-assign]
    simulated = simulate(expect(plan.launches, history, plan.settings.hardware).needs, _nodes(NODES, GPUS))
    with _fake_cluster() as (ray_executor, cluster), tempfile.TemporaryDirectory() as folder:
        ray_executor._deploy_task = _sleeping(seconds_by_launch)
        executor = ray_executor.RayExecutor(cluster)
        began_cpu = time.process_time()
        with executor:
            result, seconds = _timed(plan, Path(folder), executor, history)
        cpu = time.process_time() - began_cpu
        ends = [entry["at"] for entry in _ledger(folder) if entry["event"] == "attempt_end"]
        begins = [entry["at"] for entry in _ledger(folder) if entry["event"] == "attempt"]
    assert result.unfinished == 0
    return {
        "deployments": deployments,
        "launches": len(seconds_by_launch),
        "gpus": NODES * GPUS,
        "mean_seconds": mean_seconds,
        "lower_bound_seconds": simulated.bound,
        "simulated_seconds": simulated.makespan,
        "makespan_seconds": max(ends) - min(begins),
        "driver_seconds": seconds,
        "driver_cpu_seconds_per_trial": cpu / len(plan.trials),
        "ratio": (max(ends) - min(begins)) / simulated.bound,
    }


def blocks_policy() -> dict[str, Any]:
    """Simulate makespans of random plans: a launch for each replicate, in blocks, and one launch for all replicates."""
    rows = []
    designs = [(count, sizes) for count in (200, 31, 7) for sizes in ((1,), (1, 2, 4))]
    worst = {}
    for count, sizes in designs:
        ratios, against = [], []
        for seed in range(20):
            draw = random.Random(seed)
            each = [(draw.choice(sizes), draw.lognormvariate(5, 1)) for _ in range(count)]
            launches = [
                Need(f"{index}-{block}", gpus, None, seconds, block, draw.random())
                for index, (gpus, seconds) in enumerate(each)
                for block in range(REPLICATES)
            ]
            whole = [Need(str(index), gpus, None, seconds * REPLICATES) for index, (gpus, seconds) in enumerate(each)]
            spread = simulate(launches, _nodes(NODES, GPUS))
            ratios.append(spread.makespan / spread.bound)
            against.append(simulate(whole, _nodes(NODES, GPUS)).makespan / spread.makespan)
        worst[f"{count} of {sizes}"] = max(ratios)
        spread_text = f"{max(ratios):.2f} ({mean(ratios):.2f})"
        rows.append([count, ", ".join(map(str, sizes)), REPLICATES, spread_text, f"{mean(against):.2f}"])
    headings = "deployments | GPUs each | replicates | launch per replicate, worst (mean) | one launch, over that"
    publish(markdown_table(headings, rows))
    return worst


def _sleeping(seconds_by_launch: dict[str, float]) -> Callable[[int], Any]:
    """Return a task that replaces a deployment: it occupies its GPUs, sleeps, and returns rows."""
    import ray

    def deploy(work: Work, session: str) -> Iterator[Any]:
        yield Placed(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address())
        gpus = ray.get_gpu_ids()
        assert len(gpus) == work.deployment.gpu_count, gpus
        ends = time.monotonic() + seconds_by_launch[work.deployment.launch_key]
        while (remaining := ends - time.monotonic()) > 0:
            time.sleep(min(remaining, BEAT))
            yield Beat()
        yield from _rows(work)

    return lambda gpus: ray.remote(num_gpus=gpus, num_cpus=1, max_calls=1, max_retries=0)(deploy)


def _rows(work: Work) -> Iterator[Finished]:
    numbers = [name for name, statistic in columns(work.settings.percentiles).items() if statistic.type is float]
    texts = dict.fromkeys(("versions", "hardware", "engine_facts", "telemetry_sources"), "x" * 300)
    for trial in work.deployment.trials:
        figures = {name: random.random() for name in numbers}
        yield Finished(trial, unmeasured_row(work, trial, Outcome.OK, None) | figures | texts | {"wall_seconds": 11.0})


@contextmanager
def _fake_cluster() -> Iterator[Any]:
    """Run nodes on this host, each with fake GPUs."""
    with RayCluster(NODES, each=(f"--num-cpus={GPUS}", f"--num-gpus={GPUS}")) as nodes:
        os.environ.update(ENVIRONMENT)
        cluster = Cluster(name="ray", kind="ray", address=nodes.address)
        ray_environment.prepare_ray(cluster)
        from sweep.cluster import ray_executor

        yield ray_executor, cluster


# Scale ---------------------------------------------------------------------------------------------------------------


class Instant:
    """An executor that answers at once, so that only the driver's own work remains."""

    schedulable_nodes = tuple(Node(f"n{index}", 8, 64, (), f"n{index}") for index in range(8))

    def __init__(self) -> None:
        self.pending: deque[Work] = deque()

    def submit(self, work: Work, node_id: str, partners: Sequence[str] = ()) -> None:
        self.pending.append(work)

    def events(self) -> Iterator[tuple[Work, Any]]:
        work = self.pending.popleft()
        yield work, Placed("n0", "127.0.0.1")
        for event in _rows(work):
            yield work, event
        yield work, Completed()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


def scale() -> dict[str, Any]:
    """Run 20,000 trials through the driver; the memory is that of this process, which does nothing else."""
    import ray  # noqa: F401 - the real driver has it loaded

    began = time.perf_counter()
    plan = plan_of(*LARGE)
    planned = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        began_cpu = time.process_time()
        _, seconds = _timed(plan, Path(folder), Instant(), History([]))
        cpu = time.process_time() - began_cpu
    return {
        "trials": len(plan.trials),
        "plan_seconds": planned,
        "driver_seconds_per_trial": seconds / len(plan.trials),
        "driver_cpu_seconds_per_trial": cpu / len(plan.trials),
        "driver_peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def memory() -> dict[str, Any]:
    """Run 5,000 trials through the driver. Read resident memory every 500 rows; write the table every 1,000.

    The slope is that of the last 3,000 rows, since the first rows load libraries.
    """
    import ray  # noqa: F401 - the real driver has it loaded

    plan = plan_of("load.batch_size=range(1,11)", "replicates=10", "backend.startup_seconds=range(0,50)")
    process, samples = psutil.Process(), dict[int, float]()
    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths(Path(folder))
        executor: Any = Instant()
        ledger = Ledger(paths.ledger)
        display = Display(len(plan.trials), 0, None, Console(stderr=True, quiet=True))
        pending = find_pending(plan, ledger, History([]), executor.schedulable_nodes)
        driver = Driver(plan, pending, paths, ledger, executor, display, None)
        commit = driver.rows.commit

        def counted(deployment: Deployment, trial: Trial, row: Mapping[str, Any], retryable: bool = False) -> None:
            commit(deployment, trial, row, retryable)
            rows = len(ledger.rows)
            if rows % 1000 == 0:
                driver.rows.write_table(recompute=False)
            if rows % 500 == 0:
                samples[rows] = process.memory_info().rss / 2**20

        driver.rows.commit = counted  # type: ignore[method-assign]
        driver.run()
    last = max(samples)
    slope = (samples[last] - samples[last - 3000]) / 3
    return {"resident_mib": {rows: round(mib) for rows, mib in samples.items()}, "mib_per_1000_rows": round(slope, 1)}


# Simulation ----------------------------------------------------------------------------------------------------------


def simulation() -> dict[str, Any]:
    """Run `cluster.simulate` from the command line, start-up included."""
    arguments = [
        *("backend=simulated", "tracking=none", "hardware=l4", "dry_run=true", "load.batch_size=range(1,11)"),
        *("backend.startup_seconds=range(0,2500)", "backend.gpus=1,2,4,8"),
        "cluster.simulate={nodes: 64, gpus: 8, seconds_per_trial: 90}",
    ]
    began = time.perf_counter()
    command = [sys.executable, "-m", "sweep", *arguments]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    print("\n".join(line for line in lines if line.startswith(("plan", "expected"))))
    draw = random.Random(2)
    needs = [Need(str(index), draw.choice((1, 2, 4, 8)), None, draw.lognormvariate(5, 1)) for index in range(100_000)]
    began = time.perf_counter()
    simulated = simulate(needs, _nodes(64, 8))
    return {
        "command_seconds": seconds,
        "command_cpu_seconds": used.ru_utime + used.ru_stime,
        "command_peak_memory_bytes": used.ru_maxrss * 1024,
        "deployments": len(needs),
        "simulate_seconds": time.perf_counter() - began,
        "busy": simulated.busy,
    }


# ---------------------------------------------------------------------------------------------------------------------


def _nodes(count: int, gpus: int) -> list[Node]:
    return [Node(f"n{index}", gpus, 64, (), f"n{index}") for index in range(count)]


def _timed(plan: Plan, out: Path, executor: Any, history: History) -> tuple[RunResult, float]:
    """Run the real driver quietly; return its result and the seconds from its first step to its last."""
    paths = RunPaths(out)
    display = Display(len(plan.trials), 0, None, Console(stderr=True, quiet=len(plan.trials) > 1000))
    began = time.perf_counter()
    ledger = Ledger(paths.ledger)
    pending = find_pending(plan, ledger, history, executor.schedulable_nodes)
    result = Driver(plan, pending, paths, ledger, executor, display, None).run()
    return result, time.perf_counter() - began


def _ledger(folder: str) -> Iterator[dict[str, Any]]:
    return ledger_entries((Path(folder) / "ledger.jsonl").open("rb"))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["makespan", "blocks", "scale", "memory", "simulate"])
    parser.add_argument("--mean", type=float, default=30.0, help="mean length of a launch, s")
    parser.add_argument("--deployments", type=int, default=DEPLOYMENTS)
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    chosen = parser.parse_args(arguments)
    functions = {
        "makespan": lambda: makespan(chosen.mean, chosen.deployments, chosen.replicates),
        "blocks": blocks_policy,
        "scale": scale,
        "memory": memory,
        "simulate": simulation,
    }
    print(json.dumps(functions[chosen.what]()))


if __name__ == "__main__":
    main(sys.argv[1:])
