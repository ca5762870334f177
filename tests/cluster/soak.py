"""The soak: one sweep of short trials on nodes of their own, under every fault of a list, at random by a seed.

The same command is issued again until every trial is measured. The storm's log has every fault, command and entry of
the ledger with the time of this process, so that a lost row can be traced.
"""

import contextlib
import heapq
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from sweep.disk.ledger_lines.shared_texts import Texts
from sweep.inputs.model import RandomModel
from sweep.inputs.weights.random_weights import Architecture
from tests.cluster.storm import FAULTS
from tests.cluster.surroundings import Surroundings
from tests.support.waiting import wait_until

TRIALS_OF_LAUNCH = 10
FINISHED = (0, 1)  # exit statuses
GOOD = ("ok", "client_limited")  # outcomes of a trial that was measured
TICK = 0.25  # s
REVIVE = 2.0  # s between two looks for nodes that are dead
LOOK = 5.0  # s between two looks at the driver's memory
LEFT_WITHIN = 30.0  # s after which nothing may be left
ARCHITECTURE = Architecture(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    head_dim=32,
    vocab_size=4096,
    max_position_embeddings=2048,
)


class Memory(NamedTuple):
    """The driver's memory at one moment."""

    at: float
    command: int
    rows: int  # in the ledger
    mib: float


class End(NamedTuple):
    """The state after a storm."""

    seed: int
    nodes: int
    trials: int
    measured: int  # trials with one row that is ok, or client_limited
    lost: int  # trials without one
    doubled: int  # trials with two good rows
    leaked: list[str]  # processes
    tracebacks: int  # commands that ended with one
    commands: int
    faults: dict[str, int]
    outcomes: dict[str, int]  # of all rows that were ever written
    lost_attempts: int
    seconds: float
    best_seconds: float  # that the best schedule in hindsight would have taken
    idle: float  # share of the nodes' time that brought no row
    best_idle: float  # of the best schedule in hindsight
    memory: list[float] | None  # the driver's: MiB at a quarter and at the end of its longest command, rows between
    complete: bool  # False: the time was over


def grid(trials: int) -> tuple[str, ...]:
    """Return the arguments of a plan of four deployments whose launches have ten trials each."""
    replicates, rest = divmod(trials, 4 * TRIALS_OF_LAUNCH)
    assert not rest, f"{trials}: not a multiple of {4 * TRIALS_OF_LAUNCH}"
    return (
        *("model=hub", "model.repo=org/first,org/second", "model.name=soak", "backend.itl.mean=0.01,0.02"),
        f"workload.output_tokens={','.join(str(n) for n in range(3, 3 + TRIALS_OF_LAUNCH))}",
        *("workload.num_requests=1", f"replicates={replicates}", "backend.launch_timeout=60", "stall_timeout=6"),
        *("patience=300", "cluster.wait_for_nodes=120"),
    )


class LedgerWatch:
    """What is appended to a ledger, with the time of this process: the clocks of the driver jump."""

    def __init__(self, path: Path, log: Callable[..., None]) -> None:
        self.path, self.log = path, log
        self.position, self.inode = 0, 0
        self.repeated = 0  # of a ledger that was written anew: up to here it repeats what it keeps, bytes
        self.texts = Texts()
        self.known: set[tuple[str, ...]] = set()
        self.rows: list[tuple[float, str, str, str]] = []  # time, attempt, trial, outcome
        self.placed: dict[str, tuple[float, str]] = {}  # attempt -> time, node
        self.ended: dict[str, tuple[float, str]] = {}  # attempt -> time, end

    def look(self) -> None:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            status = self.path.stat()
            if status.st_ino != self.inode or status.st_size < self.position:
                self.inode, self.position, self.repeated = status.st_ino, 0, status.st_size
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"}\n"):
                    break
                self.position += len(line)
                self._take(json.loads(line))

    def _take(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "text":
            self.texts.add(entry)
            return
        source = self.texts.restored(entry["row"]) if "row" in entry else entry
        attempt = f"{source.get('deployment_id')}/{source.get('attempt')}"
        key = (entry["event"], attempt, source.get("trial_id", ""), source.get("outcome", ""))
        if key in self.known and self.position <= self.repeated:
            return
        self.known.add(key)
        now = time.monotonic()
        match entry["event"]:
            case "trial":
                self.rows.append((now, attempt, source["trial_id"], source["outcome"]))
            case "attempt_placed":
                self.placed[attempt] = now, entry["node"]
            case "attempt_end":
                self.ended[attempt] = now, entry["end"]
        detail = {key: source[key] for key in ("trial_id", "outcome", "reason", "node", "end") if key in source}
        self.log("ledger", entry=entry["event"], attempt=attempt, **detail)

    def doubled(self) -> int:
        good = Counter(trial for _, _, trial, outcome in self.rows if outcome == "ok")
        return sum(count > 1 for count in good.values())

    def useful(self) -> dict[str, float]:
        """Return the seconds of each attempt that brought a row: its launch, and its trials."""
        seconds: dict[str, float] = defaultdict(float)
        last = {attempt: at for attempt, (at, _) in self.placed.items()}
        for at, attempt, _, _ in self.rows:
            if attempt in last:  # a trial that was never started has a row too
                seconds[attempt] += at - last[attempt]
                last[attempt] = at
        return seconds


class Soak:
    """One storm."""

    def __init__(self, surroundings: Surroundings, seed: int, trials: int, every: float, log: Path) -> None:
        self.on, self.seed, self.trials, self.every = surroundings, seed, trials, every
        self.chance, self.struck = random.Random(seed), Counter[str]()
        self.pending: list[tuple[float, int, str, Callable[[], None]]] = []  # what ends a fault, and when
        self.begin, self.memory = time.monotonic(), list[Memory]()
        self.down: dict[int, float] = {}  # node -> since when it is dead or cut off
        self.away: list[tuple[int, float, float]] = []  # node, from, until
        self.tracebacks, self.revived_at = 0, 0.0
        self.file = log.open("w")
        self.watch = LedgerWatch(surroundings.sweep.out / "ledger.jsonl", self.log)

    def log(self, event: str, **detail: Any) -> None:
        line = {"at": round(time.monotonic() - self.begin, 2), "event": event, **detail}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def run(self, most_seconds: float, most_commands: int) -> End:
        """Issue the command until every trial is measured, or the time is over."""
        until = self.begin + most_seconds
        next_strike, commands = self.begin + self.every, 0
        sweep, status = self.on.sweep, -1
        while status not in FINISHED and commands < most_commands and time.monotonic() < until:
            commands += 1
            sweep.start()
            self.log("command", number=commands)
            while sweep.running() and time.monotonic() < until:
                time.sleep(TICK)
                self._tick(commands)
                if time.monotonic() >= next_strike:
                    self._strike()
                    next_strike = time.monotonic() + self.chance.expovariate(1 / self.every)
            if sweep.running():
                self.log("time is over")
                break
            status = sweep.wait()
            status = status if self._measured() else -1
            self.log("exit", status=sweep.wait(), said=sweep.said()[-300:] if status else "")
            if "Traceback" in sweep.said():
                self.tracebacks += 1
                self.log("traceback", said=sweep.said().partition("Traceback")[2][:4000])
            self._wait(2.0, commands)
        return self._end(commands, complete=not sweep.running())

    def _wait(self, seconds: float, command: int) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(TICK)
            self._tick(command)

    def _tick(self, command: int) -> None:
        while self.pending and self.pending[0][0] <= time.monotonic():
            self._end_next()
        self._revive()
        self.watch.look()
        now = time.monotonic()
        if not self.memory or now - self.memory[-1].at >= LOOK:
            with contextlib.suppress(psutil.NoSuchProcess, AttributeError):
                resident = psutil.Process(self.on.sweep.process.pid).memory_info().rss
                self.memory.append(Memory(now, command, len(self.watch.rows), resident / (1 << 20)))

    def _revive(self) -> None:
        """Bring back dead nodes, and note which are away."""
        if time.monotonic() - self.revived_at < REVIVE:
            return
        self.revived_at = time.monotonic()
        cut = any(name == "partition" for _, _, name, _ in self.pending)
        for node in self.on.cluster.revive() if not cut else ():  # a node that starts is not to be cut off as well
            self.log("node comes back", node=node.address)
        for index, node in enumerate(self.on.cluster.nodes):
            away = node.raylet() is None or not node.joined() or index in self.on.network.cut_off
            if away:
                self.down.setdefault(index, time.monotonic())
            elif index in self.down:
                self.away.append((index, self.down.pop(index), time.monotonic()))

    def _strike(self) -> None:
        (fault,) = self.chance.choices(FAULTS, [fault.weight for fault in FAULTS])
        strike = None
        if fault.name not in {name for _, _, name, _ in self.pending}:  # one of a kind at a time
            with contextlib.suppress(OSError, psutil.NoSuchProcess):  # what was to be hit has just ended
                strike = fault.strike(self.on, self.chance)
        self.log("fault", name=fault.name, target=strike.target if strike else None)
        if strike is None:
            return
        self.struck[fault.name] += 1
        if strike.end is not None:
            at = time.monotonic() + strike.seconds
            heapq.heappush(self.pending, (at, self.struck.total(), fault.name, strike.end))

    def _end_next(self) -> None:
        _, _, name, end = heapq.heappop(self.pending)
        with contextlib.suppress(OSError):  # its node has gone meanwhile
            end()
        self.log("fault ends", name=name)

    def _measured(self) -> bool:
        self.watch.look()
        last = {trial: outcome for _, _, trial, outcome in self.watch.rows}
        return sum(outcome in GOOD for outcome in last.values()) >= self.trials

    def calm(self) -> None:
        """End all faults, and the command if it runs."""
        while self.pending:
            self._end_next()
        process = self.on.sweep.process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    def _end(self, commands: int, complete: bool) -> End:
        seconds, sweep = time.monotonic() - self.begin, self.on.sweep
        self.calm()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.on.leftovers(), LEFT_WITHIN, "nothing is left", poll=1.0)
        self.watch.look()
        rows = {row["trial_id"]: row["outcome"] for row in sweep.committed()}
        measured = sum(outcome in GOOD for outcome in rows.values())
        if complete and measured == self.trials:
            sweep.check_rows()
        best, idle, best_idle = self._schedule(seconds)
        outcomes = Counter(outcome for _, _, _, outcome in self.watch.rows)
        return End(
            self.seed,
            self.on.size,
            self.trials,
            measured,
            self.trials - measured if complete else 0,
            self.watch.doubled(),
            self.on.leftovers(),
            self.tracebacks,
            commands,
            dict(self.struck),
            dict(outcomes),
            sum(end not in ("done", "stopped") for _, end in self.watch.ended.values()),
            seconds,
            best,
            idle,
            best_idle,
            self._memory(),
            complete,
        )

    def _schedule(self, seconds: float) -> tuple[float, float, float]:
        """Return the best schedule's duration in hindsight, and the idle shares of the real one and of that one.

        The best schedule has the launches that brought rows, as long as they really took, and the nodes whenever they
        were there, and starts the longest first on the node that ends it soonest.
        """
        useful = list(self.watch.useful().values())
        absences = [sorted((max(0.0, a - self.begin), b - self.begin) for i, a, b in self.away if i == index)
                    for index in range(self.on.size)]  # fmt: skip
        free = [0.0] * self.on.size
        for duration in sorted(useful, reverse=True):
            ends = [_ends_at(begin, duration, absent) for begin, absent in zip(free, absences, strict=True)]
            soonest = int(np.argmin(ends))
            free[soonest] = ends[soonest]
        best = max(free)

        def there(until: float) -> float:
            away = sum(max(0.0, min(b, until) - a) for absent in absences for a, b in absent if a < until)
            return self.on.size * until - away

        return best, 1 - sum(useful) / there(seconds), 1 - sum(useful) / there(best) if best else 0.0

    def _memory(self) -> list[float] | None:
        """Return the driver's memory at a quarter and at the end of its longest command, and the rows between."""
        commands = Counter(look.command for look in self.memory)
        longest = [look for look in self.memory if look.command == commands.most_common(1)[0][0]] if commands else []
        if len(longest) < 8:
            return None
        first, last = longest[len(longest) // 4], longest[-1]
        return [first.mib, last.mib, float(last.rows - first.rows)]


def _ends_at(begin: float, duration: float, absences: Sequence[tuple[float, float]]) -> float:
    """Return when a launch that begins then ends on a node with these absences, in which it stands still."""
    at, left = begin, duration
    for away, back in absences:
        if back <= at:
            continue
        if at + left <= away:
            break
        left -= max(0.0, away - at)
        at = back
    return at + left


@contextlib.contextmanager
def soak(folder: Path, seed: int, nodes: int, trials: int, every: float, outage: float) -> Iterator[Soak]:
    """A storm on nodes that are there for the block. `every`: mean s between faults; `outage`: a hub's longest, s."""
    folder.mkdir(parents=True, exist_ok=True)
    model = RandomModel(name="soak", architecture=ARCHITECTURE).prepare(folder / "model", lambda text: None)
    surroundings = Surroundings(folder, nodes, grid(trials), model, outage)
    with surroundings.running():
        storm = Soak(surroundings, seed, trials, every, folder / "storm.jsonl")
        try:
            yield storm
        finally:
            storm.calm()
