"""Loads: lockstep batches, a closed loop of users, or an open-loop arrival process.

A Load is a small configuration; its `mode` method makes the object that schedules the requests. Every purpose
(arrivals, think times) has a separate random stream, seeded by the trial's seed, so that changing one dimension does
not affect the rest. All numbers derive by plain arithmetic from `random.random()`, which Python promises to keep
stable, so a mode can be reproduced anywhere. A random process is never clipped, nor rescaled to reach an exact total,
since both would change the process.
"""

import random
from array import array
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from backends.prepare.checkpoints import file_digest
from sweep.base.config import ConfigError, Strict
from sweep.client.modes import ClosedLoop, Lockstep, Mode, OpenLoop
from sweep.inputs import rows as files

Floats = NDArray[np.float64]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LATEST = 100_000_000_000  # s since 1970, i.e. the year 5138: a larger number must be in a smaller unit
EARLIEST_DATE = 1_000_000_000  # s since 1970, i.e. the year 2001: a smaller number is a time since a start
RARE, DENSE = 10, 0.01  # s between requests, on average, above and below which the unit of numbers is uncertain
DISTINCT = 1  # s, likewise, of whole numbers: those of a trace in s mostly share a second
WARMUP = 4  # requests, if it is unknown how many will be in flight
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Load(Strict):
    """The base of all loads: a name, and the time after which no new request is sent."""

    open_loop: ClassVar[bool] = False  # whether requests are due at times that do not depend on the answers

    name: str
    duration: Positive | None = None  # s; null: only the number of requests ends the trial

    @property
    def size(self) -> int | None:
        """The number of requests in flight, if memory use grows with it; otherwise None."""
        return None

    def count(self, num_requests: int) -> int:
        """Return how many requests a trial must prepare for `num_requests` measured requests."""
        return num_requests

    def warmup(self, requests: int | None) -> int:
        """Return the number of warm-up requests: `requests`, or if None, enough to reach the engine's largest batch."""
        return WARMUP if requests is None else requests

    def notes(self) -> list[str]:
        """Return what the plan must say about the load's file."""
        return []

    def check_pairing(self, workload: Any) -> None:
        """Raise ConfigError if the load cannot send this workload."""

    def describe(self) -> str:
        """Return a short phrase that describes the load."""
        raise NotImplementedError

    def mode(self, count: int, seed: int, starts: Sequence[int] | None = None) -> Mode:
        """Return the mode for `count` requests; equal arguments give equal modes on every machine.

        `starts` are the indices of the requests that begin a session; None: all of them.
        """
        raise NotImplementedError


class Batch(Load):
    """Lockstep: `batch_size` requests are sent together; the next batch follows the last token of this batch."""

    name: str = "batch"
    batch_size: Count
    discard_first: bool = False  # whether the first batch is sent but excluded from the results
    whole_warmup: bool = True  # whether the warm-up is rounded up to whole batches

    def warmup(self, requests: int | None) -> int:
        if requests == 0 or (requests is not None and not self.whole_warmup):
            return requests
        return self.count(super().warmup(requests))

    @property
    def size(self) -> int | None:
        return self.batch_size

    def count(self, num_requests: int) -> int:
        """Return the number of requests in whole batches, plus one batch if the first is discarded."""
        batches = -(-num_requests // self.batch_size) + self.discard_first
        return batches * self.batch_size

    def describe(self) -> str:
        return f"batches of {self.batch_size}" if self.batch_size > 1 else "single requests"

    def check_pairing(self, workload: Any) -> None:
        """Raise ConfigError for sessions, since the requests of a batch cannot wait for each other."""
        if len(workload.starts(workload.num_requests)) < workload.num_requests:
            problem = "its sessions have turns that follow each other"
            raise ConfigError(f"workload={workload.name}: {problem}; expected load=closed, or any load except batch")

    def mode(self, count: int, seed: int, starts: Sequence[int] | None = None) -> Mode:
        return Lockstep(self.batch_size, duration=self.duration)


class Closed(Load):
    """A closed loop: each of `concurrency` users begins a session once the last one has ended, after thinking."""

    name: str = "closed"
    concurrency: Count
    think_time: NotNegative = 0.0  # mean think time, in s
    think_distribution: Literal["constant", "exponential"] = "constant"
    stagger: NotNegative | None = None  # s over which the users start, evenly spaced; 0: all at once; null: the
    # duration of one request of the warm-up, unless a user sends just one request

    def warmup(self, requests: int | None) -> int:
        return max(WARMUP, self.concurrency) if requests is None else requests

    def describe(self) -> str:
        thinking = f", thinking {self.think_time:g} s" if self.think_time else ""
        return f"{self.concurrency} user{'s' * (self.concurrency > 1)}{thinking}"

    def mode(self, count: int, seed: int, starts: Sequence[int] | None = None) -> Mode:
        count = count if starts is None else len(starts)
        think = np.full(count, self.think_time)
        if self.think_distribution == "exponential":
            think *= exponential(uniforms(count, seed, "think"))
        shares = np.arange(self.concurrency, dtype=np.float64) / self.concurrency
        if self.stagger is None and count >= 2 * self.concurrency:
            offsets, unknown = shares, 0.0
        else:
            offsets, unknown = shares * (self.stagger or 0.0), None
        return ClosedLoop(self.concurrency, _doubles(think), _doubles(offsets), unknown, duration=self.duration)


class _ArrivalProcess(Load):
    """An open loop: requests are due at times that do not depend on the answers."""

    open_loop = True
    process: ClassVar[str]  # template of a short description
    max_concurrency: Count | None = None  # maximum in flight; further due requests wait, and the wait is measured

    def describe(self) -> str:
        cap = f", at most {self.max_concurrency} in flight" if self.max_concurrency else ""
        return self.process.format(self=self) + cap

    def mode(self, count: int, seed: int, starts: Sequence[int] | None = None) -> Mode:
        arrivals = self.session_arrivals(range(count) if starts is None else starts, seed)
        return OpenLoop(_doubles(arrivals), self.max_concurrency, duration=self.duration)

    def session_arrivals(self, starts: Sequence[int], seed: int) -> Floats:
        """Return when the sessions are due that begin with these requests. Shape (sessions,)."""
        return self.arrivals(len(starts), seed)

    def arrivals(self, count: int, seed: int) -> Floats:
        """Return the times, in s from the start, at which `count` requests are due, ascending. Shape (count,)."""
        raise NotImplementedError


class Constant(_ArrivalProcess):
    """One request every 1/rate seconds, the first at once."""

    name: str = "constant"
    process = "constant {self.rate:g}/s"
    rate: Positive  # requests/s

    def arrivals(self, count: int, seed: int) -> Floats:
        return np.arange(count) / self.rate


class Poisson(_ArrivalProcess):
    """A Poisson process: independent exponential gaps of mean 1/rate, including one before the first request."""

    name: str = "poisson"
    process = "Poisson {self.rate:g}/s"
    rate: Positive  # expected requests/s; the actual rate varies by 1/sqrt(count), as it should

    def arrivals(self, count: int, seed: int) -> Floats:
        return np.cumsum(exponential(uniforms(count, seed, "arrivals")) / self.rate)


class Gamma(_ArrivalProcess):
    """Independent gamma-distributed gaps with mean 1/rate and coefficient of variation 1/sqrt(burstiness).

    `burstiness` is the shape of the gamma distribution, as in vLLM's `--burstiness`: 1 is Poisson, smaller values are
    burstier, larger values more even.
    """

    name: str = "gamma"
    process = "gamma {self.rate:g}/s of burstiness {self.burstiness:g}"
    rate: Positive  # requests/s
    burstiness: Positive

    def arrivals(self, count: int, seed: int) -> Floats:
        from scipy.special import gammaincinv  # imported here because the other loads do not need scipy

        gaps = gammaincinv(self.burstiness, uniforms(count, seed, "arrivals"))
        return np.cumsum(gaps / (self.burstiness * self.rate))


class Ramp(_ArrivalProcess):
    """A Poisson process whose rate changes linearly from `rate_from` to `rate_to` and then stays constant.

    The ramp takes `duration` or, if not set, the expected time for all requests of the trial. Arrivals are drawn by
    inverting the integrated rate (Cinlar, Introduction to Stochastic Processes, 1975, §4.7): the arrival that a
    unit-rate process has at Λ is due at the t for which ∫₀ᵗ rate = Λ.
    """

    name: str = "ramp"
    process = "Poisson ramp {self.rate_from:g} to {self.rate_to:g}/s"
    rate_from: NotNegative  # requests/s
    rate_to: Positive  # requests/s

    def arrivals(self, count: int, seed: int) -> Floats:
        expected = np.cumsum(exponential(uniforms(count, seed, "arrivals")))
        length = self.duration if self.duration is not None else 2 * count / (self.rate_from + self.rate_to)
        return self.inverse(expected, length)

    def inverse(self, expected: Floats, length: float) -> Floats:
        """Return the times at which the integrated rate reaches `expected` on a ramp of `length` seconds. Any shape."""
        slope = (self.rate_to - self.rate_from) / length
        total = length * (self.rate_from + self.rate_to) / 2
        inside = np.minimum(expected, total)
        # The root of rate_from·t + slope·t²/2 = Λ in a form without cancellation; 0 at 0 even if rate_from is 0.
        divisor = self.rate_from + np.sqrt(np.maximum(self.rate_from**2 + 2 * slope * inside, 0.0))
        on_ramp = np.divide(2 * inside, divisor, out=np.zeros_like(inside), where=divisor > 0)
        return np.asarray(on_ramp + (expected - inside) / self.rate_to, dtype=np.float64)


class Trace(_ArrivalProcess):
    """Recorded arrivals, shifted to start at 0 and otherwise unchanged.

    `path` is a text file with one time per line (# begins a comment), or a table whose `column` holds the time: a
    number in `unit`, or a date and time in ISO 8601. By default, known traces are recognized by their columns; other
    tables need the column `timestamp`, in seconds.
    """

    name: str = "trace"
    process = "trace {self.file.name}"
    path: str
    column: str | None = None
    unit: Literal["s", "ms", "us", "ns"] | None = None
    skip_unsendable: bool = False  # skip the same rows as workload.skip_unsendable
    speed: Positive = 1.0  # at 2, times are half as long
    repeat: Annotated[int, Field(ge=1)] = 1  # times that the file is sent, one after another

    @property
    def file(self) -> Path:
        return Path(self.path).expanduser()

    @field_validator("path")
    @classmethod
    def _require_path(cls, path: str) -> str:
        if path == "???":  # Hydra's marker for a required value
            raise ValueError("required: a file of arrival times")
        return path

    def check(self) -> None:
        """Raise ConfigError, naming the file and the problem, for a trace that cannot be replayed."""
        self.times()

    def check_pairing(self, workload: Any) -> None:
        """Raise ConfigError if the workload takes its lengths from this file too, but in a different order."""
        if workload.replays and not workload.needs_token_ids and not workload.is_timed:
            problem = f"load={self.name}: conversations have no recorded times"
            raise ConfigError(f"{problem}; expected load=closed, or an arrival process such as load=poisson")
        if started := getattr(workload, "started", 0):
            problem = f"sessions begin at the times in {self.path}"
            raise ConfigError(f"workload.started={started}: {problem}; expected 0, or load=closed")
        order, skip = (getattr(workload, key, None) for key in ("order", "skip_unsendable"))
        if order is None or workload.file != self.path:
            return
        unit = self._cells()[1]
        has_gaps = len(workload.starts(workload.num_requests)) < workload.num_requests
        if has_gaps and self.unit not in (None, unit):
            raise ConfigError(f"load.unit={self.unit}: the gaps in {self.path} are in {unit}; expected {unit}")
        problem = f"lengths and times in {self.path} belong together"
        if order != "file":
            raise ConfigError(f"workload.order={order}: {problem}; expected workload.order=file with this load")
        for key in ("speed", "repeat"):
            if (ours := getattr(self, key)) != (theirs := getattr(workload, key)):
                raise ConfigError(f"load.{key}={ours:g}: {problem}; expected {theirs:g}, like workload.{key}")
        if skip != (ours := self.skip_unsendable):
            raise ConfigError(f"load.skip_unsendable={ours}: {problem}; expected {skip}, like workload.skip_unsendable")

    def digest(self, cache_dir: Path) -> str:
        """Return a hash of the file, so that a different trace under the same name gives a different trial."""
        try:
            return file_digest(self.file)
        except OSError as error:
            raise ConfigError(f"load.path={self.path}: {error.strerror}") from None

    def count(self, num_requests: int) -> int:
        """Return `num_requests`. Raises ConfigError if the trace has fewer arrivals."""
        arrivals = len(self.times())
        if num_requests > arrivals:
            limit = f"workload.num_requests may be at most {arrivals}"
            raise ConfigError(f"load.path={self.path}: contains {arrivals} arrivals; {limit}")
        return num_requests

    def arrivals(self, count: int, seed: int) -> Floats:
        return self.times()[: self.count(count)]

    def session_arrivals(self, starts: Sequence[int], seed: int) -> Floats:
        return self.arrivals(starts[-1] + 1, seed)[starts]

    @property
    def mean_rate(self) -> float:
        """The mean rate at this speed, in requests/s. Raises ConfigError if all requests arrive at once."""
        times = self.times()
        if not times[-1]:
            raise ConfigError(f"load.path={self.path}: all requests arrive at once; expected times that differ")
        return float((len(times) - 1) / times[-1])

    def at_rate(self, rate: float, count: int) -> Self:
        """Return the trace with this mean rate, in requests/s, repeated until it has `count` arrivals."""
        once = self.model_copy(update={"repeat": 1})
        scaled = {"speed": self.speed * rate / once.mean_rate, "repeat": -(-count // len(once.times()))}
        return once.model_copy(update=scaled)

    def notes(self) -> list[str]:
        rows = files.read_rows(self.file, f"load.path={self.path}", any_ending=True, part=True)
        return files.omissions(self.path, len(rows), self._faults(rows), self.file.stat().st_size)

    def _faults(self, rows: Sequence[files.FileRow]) -> dict[int, str]:
        """Return why rows are skipped, by row number."""
        lengths = files.trace_columns(rows) if self.skip_unsendable else None
        return files.faults_of(rows, lengths) if lengths else {}

    def times(self) -> Floats:
        """Return the arrivals in s since the first arrival, of all repetitions. Shape (arrivals,).

        A repetition begins after the last arrival of the one before, at their mean distance.
        """
        times = self._recorded_times()
        period = times[-1] * len(times) / max(len(times) - 1, 1)
        return np.asarray((np.arange(self.repeat)[:, None] * period + times).ravel() / self.speed)

    def _recorded_times(self) -> Floats:
        column, unit, cells = self._cells()
        instants = list(self._instants(column, unit, cells))
        if not instants:
            raise ConfigError(f"load.path={self.path}: contains no arrival times")
        times = np.array([float(instant - instants[0]) for instant in instants])
        if np.any(np.diff(times) < 0):
            number = cells[int(np.argmax(np.diff(times) < 0)) + 1][0]
            raise ConfigError(f"load.path={self.path}: row {number}: {column}: expected times in ascending order")
        self._check_unit(instants, column, unit)
        return times

    def _check_unit(self, instants: Sequence[Decimal], column: str, unit: str) -> None:
        """Raise ConfigError if numbers in the default unit, s or ms, may be in another unit."""
        gap = (instants[-1] - instants[0]) / max(len(instants) - 1, 1)
        rarest = DISTINCT if all(instant % 1 == 0 for instant in instants) else RARE
        columns = files.trace_columns(files.read_rows(self.file, f"load.path={self.path}", any_ending=True, part=True))
        is_published = columns and self.column is None and columns[1:] in (files.BURSTGPT[1:], files.BAILIAN[1:])
        rare = unit == "s" and not is_published and gap > rarest and instants[0] < EARLIEST_DATE
        if (rare or (unit == "ms" and 0 < gap < DENSE)) and not self._has_unit(column):
            problem = f"times are {float(gap.scaleb(-files.DIGITS[unit])):g} apart on average; their unit is uncertain"
            raise ConfigError(f"load.path={self.path}: {problem}; set load.unit to {', '.join(files.DIGITS)}")

    def _has_unit(self, column: str) -> bool:
        """Return whether the unit is set, or part of the column's name."""
        return self.unit is not None or files.UNIT_IN_NAME.search(column) is not None

    def _instants(self, column: str, unit: str, cells: Sequence[tuple[int, Any]]) -> Iterator[Decimal]:
        """Yield the exact times of a column's cells, in s."""
        certain = self._has_unit(column)
        for number, cell in cells:
            where = f"load.path={self.path}: row {number}: {column}={cell!r}"
            try:
                time, is_date = files.parse_time(cell)
            except ValueError:
                raise ConfigError(f"{where}; expected a number or an ISO 8601 time") from None
            yield time if is_date else self._seconds(time, unit, where, certain)

    def _seconds(self, number: Decimal, unit: str, where: str, certain: bool) -> Decimal:
        """Return a time in s. Raises ConfigError if the unit is uncertain: a replay could be 1,000 times as fast."""
        if not number.is_finite():
            raise ConfigError(f"{where}; expected finite times")
        uncertain = abs(number) > LATEST if unit == "s" else number % 1 != 0  # Mooncake's ms are whole
        if uncertain and not certain:
            raise ConfigError(f"{where}; its unit is uncertain; set load.unit to {', '.join(files.DIGITS)}")
        return number.scaleb(files.DIGITS[self.unit or unit])

    def _cells(self) -> tuple[str, str, list[tuple[int, Any]]]:
        """Return the time column's name, its default unit, and each row's number with its time."""
        rows = files.read_rows(self.file, f"load.path={self.path}", any_ending=True, part=True)
        if self.file.suffix.lower() not in files.READERS or self.file.suffix.lower() == ".txt":
            texts = (row["prompt"].partition("#")[0].strip() for row in rows)
            return "time", "s", [(number, text) for number, text in enumerate(texts, 1) if text]
        trace = None if self.column else files.trace_columns(rows)
        column, unit = (trace.time, trace.unit) if trace else (self.column or files.time_column(rows[0]), "s")
        unit = files.time_unit(column, unit)
        if not any(column in row for row in rows):
            problem = f"load.column={column}: no such column in {self.path}"
            raise ConfigError(f"{problem}; expected: {files.columns_of(rows)}")
        faults = self._faults(rows)
        numbered = [(number, row) for number, row in enumerate(rows, 1) if number not in faults]
        return column, unit, [(number, row.get(column, "")) for number, row in numbered]


def uniforms(count: int, seed: int, stream: str) -> Floats:
    """Return `count` uniform random numbers in [0, 1) from the stream with this name. Shape (count,)."""
    draw = random.Random(f"{seed}/load/{stream}").random
    return np.fromiter((draw() for _ in range(count)), np.float64, count)


def exponential(uniform: Floats) -> Floats:
    """Return exponentially distributed numbers of mean 1, by inverting the distribution function. Any shape."""
    return -np.log1p(-uniform)


def _doubles(values: Floats) -> "array[float]":
    return array("d", values.tobytes())
