"""How right the shares of `sweep explain` are, on engines whose knobs have planted costs.

    python -m benchmarks.decomposition FOLDER [--seed 1]

The simulated engine's scheduler takes longer for each step while a knob is off, and longer still while two are; its
launches differ by SPREAD. `sweep run` measures all 16 combinations of four knobs, LAUNCHES times, and `sweep explain`
divides the gain without seeing a cost: into shares, and what each knob brings alone and last and each pair together.
The truth is worked out from the costs, over all orders of the knobs. Two sets of costs: one that is written here, and
one drawn from the seed. The last line of the output is JSON.
"""

import argparse
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, NamedTuple

from sweep.base.config import ROOT

KNOBS = ("batching", "caching", "chunking", "graphs")
TTFT, ITL, TOKENS, USERS, REQUESTS = 0.08, 0.02, 16, 4, 16
SPREAD, LAUNCHES, TRIES = 0.02, 3, 4
Costs = dict[str, dict[str, float]]  # knobs joined by + -> factors of the scheduler's times while all of them are off
WRITTEN: Costs = {
    "batching": {"ttft": 1.2, "itl": 1.6},
    "caching": {"ttft": 2.0, "itl": 1.0},
    "chunking": {"ttft": 1.15, "itl": 0.95},  # costs a little where there is nothing to gain
    "graphs": {"ttft": 1.0, "itl": 1.3},
    "batching+graphs": {"ttft": 1.0, "itl": 1.2},
}


class Row(NamedTuple):
    """One knob's share of the gain in one quantity."""

    costs: str
    column: str
    knob: str
    planted: float
    estimated: float
    low: float
    high: float


class Gain(NamedTuple):
    """What one knob brings with all others off (alone) or on (last), or two together: times, of one quantity."""

    costs: str
    column: str
    kind: str
    name: str
    planted: float
    estimated: float
    low: float
    high: float

    @property
    def is_inside(self) -> bool:
        return self.low <= self.planted <= self.high


def drawn_costs(seed: int) -> Costs:
    """Costs of each knob and of one pair of them."""
    chance = random.Random(seed)
    pair = "+".join(sorted(chance.sample(KNOBS, 2)))
    return {name: {key: round(chance.uniform(1, 1.8), 3) for key in ("ttft", "itl")} for name in (*KNOBS, pair)}


def measure(costs: Costs, out: Path) -> list[dict[str, Any]]:
    """Run all combinations; the records of `sweep explain`."""
    times = (f"backend.ttft.mean={TTFT}", f"backend.itl.mean={ITL}", f"backend.launch_spread={SPREAD}")
    lengths = ("workload.input_tokens=16", f"workload.output_tokens={TOKENS}", f"workload.num_requests={REQUESTS}")
    written = ",".join(f"{name}:{{ttft:{each['ttft']},itl:{each['itl']}}}" for name, each in costs.items())
    knobs = (*(f"backend.knobs.{knob}=false,true" for knob in KNOBS), f"backend.knob_costs={{{written}}}")
    load = ("workload=synthetic", "load=closed", f"load.concurrency={USERS}", f"replicates={LAUNCHES}", *lengths)
    run = ("backend=simulated", "model=tiny-llama", *times, *knobs, *load, "cluster=inline", "tracking=none")
    for _ in range(TRIES):  # a busy machine limits the client: such trials are measured again
        command = [sys.executable, "-m", "sweep", *run, f"out={out}"]
        if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode == 0:
            break
    explain = [sys.executable, "-m", "sweep", "explain", str(out), "--format", "json"]
    records: list[dict[str, Any]] = json.loads(subprocess.check_output(explain, cwd=ROOT, text=True))
    return records


def seconds(costs: Costs, on: frozenset[str], column: str) -> float:
    """The logarithm of the time of a request, or of its first token, with some knobs on."""
    off = [each for names, each in costs.items() if not on & set(names.split("+"))]
    ttft, itl = (math.prod(each[key] for each in off) * base for key, base in (("ttft", TTFT), ("itl", ITL)))
    return math.log(ttft if column == "ttft_p50" else ttft + (TOKENS - 1) * itl)


def true_shares(costs: Costs, column: str) -> dict[str, float]:
    """Each knob's share of the whole logarithm, averaged over all orders in which the knobs are turned on."""
    orders = list(permutations(KNOBS))
    gains = dict.fromkeys(KNOBS, 0.0)
    for order in orders:
        for index, knob in enumerate(order):
            before = frozenset(order[:index])
            gains[knob] += (seconds(costs, before | {knob}, column) - seconds(costs, before, column)) / len(orders)
    whole = sum(gains.values())
    return {knob: gain / whole for knob, gain in gains.items()}


def true_gains(costs: Costs, column: str) -> dict[tuple[str, str], float]:
    """The factors of `alone` and `last` by knob, and of the interactions by pair, as `sweep explain` defines them."""
    every = frozenset(KNOBS)
    combination_sets = [frozenset(each) for size in range(len(KNOBS) + 1) for each in combinations(KNOBS, size)]
    sign = -1 if column == "output_throughput" else 1
    logs = {on: sign * seconds(costs, on, column) for on in combination_sets}
    gains = {}
    for knob in KNOBS:
        gains["alone", knob] = logs[frozenset([knob])] - logs[frozenset()]
        gains["last", knob] = logs[every] - logs[every - {knob}]
    for one, other in combinations(KNOBS, 2):
        rest = [on for on in combination_sets if not on & {one, other}]
        both = [logs[on | {one, other}] - logs[on | {one}] - logs[on | {other}] + logs[on] for on in rest]
        gains["interaction", f"{one} × {other}"] = sum(both) / len(both)
    return {key: math.exp(gain) for key, gain in gains.items()}


def compared_gains(name: str, costs: Costs, records: list[dict[str, Any]]) -> list[Gain]:
    """The gains that were found beside the planted ones."""
    rows = []
    for record in records:
        planted = true_gains(costs, record["column"])
        found = [(kind, record["name"], kind) for kind in ("alone", "last")] if record["entry"] == "part" else []
        found += [("interaction", record["name"], "gain")] if record["entry"] == "interaction" else []
        for kind, label, key in found:
            figures = (record[key], record[f"{key}_ci_low"], record[f"{key}_ci_high"])
            rows.append(Gain(name, record["column"], kind, label, planted[kind, label], *figures))
    return rows


def gains_table(gains: Sequence[Gain]) -> Iterator[str]:
    """A row of Markdown for each gain; the cost's are those of throughput, turned over."""
    yield "| costs | figure | what | of | planted | found | 95 % interval |"
    yield "|---|---|---|---|---|---|---|"
    for each in (gain for gain in gains if gain.column != "cost_per_million_tokens"):
        figures = f"{each.planted:.3f}× | {each.estimated:.3f}× | {each.low:.3f} to {each.high:.3f}"
        yield f"| {each.costs} | {each.column} | {each.kind} | {each.name} | {figures} |"
    worst = max(abs(each.estimated / each.planted - 1) for each in gains)
    yield f"\nlargest error: {worst:.1%}; in its interval: {sum(each.is_inside for each in gains)} of {len(gains)}"


def compared(name: str, costs: Costs, records: list[dict[str, Any]]) -> list[Row]:
    rows = []
    for column in dict.fromkeys(record["column"] for record in records):
        planted = true_shares(costs, column)
        parts = [record for record in records if record["column"] == column and record["entry"] == "part"]
        total = sum(part["share"] for part in parts)
        assert abs(total - 1) < 1e-9, f"{column}: the shares add up to {total}"
        for part in parts:
            ends = (part["share_ci_low"], part["share_ci_high"])
            rows.append(Row(name, column, part["name"], planted[part["name"]], part["share"], *ends))
    return rows


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    sets = {"written": WRITTEN, f"seed-{options.seed}": drawn_costs(options.seed)}
    records = {name: measure(costs, options.folder / name) for name, costs in sets.items()}
    rows = [row for name, costs in sets.items() for row in compared(name, costs, records[name])]
    gains = [gain for name, costs in sets.items() for gain in compared_gains(name, costs, records[name])]
    print("| costs | figure | knob | planted share | found | 95 % interval | off by (points) |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        found, interval = f"{row.estimated:.1%}", f"{row.low:.1%} to {row.high:.1%}"
        error = 100 * (row.estimated - row.planted)
        print(f"| {row.costs} | {row.column} | {row.knob} | {row.planted:.1%} | {found} | {interval} | {error:+.1f} |")
    worst = max(abs(row.estimated - row.planted) for row in rows)
    inside = sum(row.low <= row.planted <= row.high for row in rows)
    print(f"\nlargest error: {100 * worst:.1f} points; in its interval: {inside} of {len(rows)}")
    print("\n".join(["", *gains_table(gains)]))
    printed = {"costs": sets, "rows": [row._asdict() for row in rows], "gains": [gain._asdict() for gain in gains]}
    print(json.dumps({**printed, "worst": worst}))


if __name__ == "__main__":
    main(sys.argv[1:])
