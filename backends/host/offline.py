"""A trial measured inside the engine's process: all requests are here before the clock starts, no HTTP while it runs.

Each step's tokens get one stamp, taken when `step` returns, on CLOCK_MONOTONIC, which a node's processes share.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from backends.host.library import ContinuousLibrary, PromptRow

SHORTEST_SLEEP = 1e-4  # s


@dataclass(frozen=True)
class Order:
    """The conditions on which rows are released, one after the other: a row goes once all that are set hold."""

    batch_size: int | None = None  # rows that go together, when nothing else is in flight
    most_in_flight: int | None = None
    arrivals: Sequence[float] | None = None  # s from the start before which a row does not go, ascending
    duration: float | None = None  # s after which nothing new is released

    def releases(self, index: int, now: float, in_flight: int) -> bool:
        """Return whether to release row `index` now, `now` s after the start with `in_flight` rows unfinished."""
        return (
            (self.arrivals is None or self.arrivals[index] <= now)
            and (self.most_in_flight is None or in_flight < self.most_in_flight)
            and (self.batch_size is None or in_flight == 0 or index % self.batch_size != 0)
        )


@dataclass
class RowProgress:
    """The instant of the latest token (while no row is in flight, the latest look), and the counts of a trial so far.

    Another thread reads it: each count is right, and all of them together as of a step.
    """

    at: float = field(default_factory=time.monotonic)  # s of CLOCK_MONOTONIC
    begin: float | None = None  # likewise, of the measured rows; None before them
    sent: int = 0
    done: int = 0  # failed ones included
    failed: int = 0
    tokens: int = 0

    def note(self) -> None:
        self.at = time.monotonic()

    def restart(self, begin: float | None) -> None:
        """Count anew: from the warm-up on with no beginning, then from the measured rows' own."""
        self.sent, self.done, self.failed, self.tokens, self.begin = 0, 0, 0, 0, begin

    def take(self, tokens: int, ended: bool, failed: bool) -> None:
        """Take in what a step brought to a row."""
        if tokens:
            self.note()
        self.tokens, self.done, self.failed = self.tokens + tokens, self.done + ended, self.failed + failed

    def answer(self) -> dict[str, Any]:
        """The host's answer to who asks for it; counts are null before the measured rows."""
        begin, counts = self.begin, None
        if begin is not None:
            counts = {name: getattr(self, name) for name in ("sent", "done", "failed", "tokens")}
            counts |= {"in_flight": counts["sent"] - counts["done"], "seconds": time.monotonic() - begin}
        return {"seconds_since_token": time.monotonic() - self.at, "counts": counts}


@dataclass(slots=True)
class RowStamps:
    """The raw stamps of one row, s from the start of the clock; chunks in µs since the release."""

    scheduled: float | None  # None without arrivals: there is no schedule
    released: float
    chunk_us: list[int] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    error: str | None = None

    def add(self, row: PromptRow, tokens: Sequence[int], error: str | None, now: float) -> None:
        before = len(row.tokens)
        for token in tokens:
            if not row.done:
                row.take(token)
        if taken := len(row.tokens) - before:
            self.chunk_us.append(round((now - self.released) * 1e6))
            self.chunk_tokens.append(taken)
        self.error = error and f"engine: {error}"


def step_rows(
    library: ContinuousLibrary,
    rows: Sequence[PromptRow],
    order: Order,
    start: int,
    stopped: threading.Event,
    progress: RowProgress,
) -> list[RowStamps]:
    """Release the rows in order and step until all have ended; a RowStamps of each row that was released.

    `start` is what times count from, in ns of CLOCK_MONOTONIC. When `stopped` is set, what is in flight ends with the
    error "cancelled". Raises whatever the library raises.
    """
    traces: list[RowStamps] = []
    flying: dict[int, int] = {}  # identity of a row -> its index
    begin = time.monotonic_ns()

    def over() -> bool:
        return order.duration is not None and (time.monotonic_ns() - begin) / 1e9 >= order.duration

    def release() -> None:
        # Rows released together share one stamp: adding them is the engine's own time.
        now = time.monotonic_ns()
        since = (now - start) / 1e9
        while (index := len(traces)) < len(rows) and not over():
            if not order.releases(index, (now - begin) / 1e9, len(flying)):
                return
            traces.append(RowStamps(order.arrivals[index] if order.arrivals is not None else None, since))
            flying[id(rows[index])] = index
            progress.sent += 1
            library.add(rows[index])

    while not stopped.is_set():
        release()
        if not flying:
            progress.note()
            if len(traces) == len(rows) or over():
                return traces
            time.sleep(SHORTEST_SLEEP)
            continue
        steps = library.step()
        now = time.monotonic_ns()
        for row, tokens, error in steps:
            index = flying.get(id(row))
            if index is None:
                continue
            traces[index].add(row, tokens, error, (now - start) / 1e9)
            ended = row.done or error is not None
            progress.take(len(tokens), ended, error is not None)
            if ended:
                del flying[id(row)]
    for index in flying.values():
        library.drop(rows[index])
        traces[index].error = "cancelled: the trial was stopped"
    return traces


def measure_rows(
    library: ContinuousLibrary,
    warmup: Sequence[PromptRow],
    rows: Sequence[PromptRow],
    order: Order,
    stopped: threading.Event,
    progress: RowProgress,
) -> dict[str, Any]:
    """Run the warm-up rows in batches, then the rows as the order says; return the host's answer."""
    origin = time.monotonic_ns()
    progress.note()
    progress.restart(None)
    warm = step_rows(library, warmup, Order(order.batch_size or 1), origin, stopped, progress)
    start = time.monotonic_ns()
    for trace in warm:  # their times are negative: before the clock; they have no schedule
        trace.released -= (start - origin) / 1e9
    progress.restart(start / 1e9)
    traces = step_rows(library, rows, order, start, stopped, progress)
    return {"start_ns": start, "warmup": _records(warm, warmup), "records": _records(traces, rows)}


def _records(stamps: Sequence[RowStamps], rows: Sequence[PromptRow]) -> list[dict[str, Any]]:
    """Return the records of the rows that were released, which are the first ones."""
    return [
        {
            "index": index,
            **asdict(stamp),
            "input_tokens": len(row.prompt),
            "output_tokens": len(row.tokens),
            "finish_reason": row.finish_reason,
        }
        for index, (stamp, row) in enumerate(zip(stamps, rows, strict=False))
    ]
