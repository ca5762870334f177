"""Loads: lockstep batches, a closed loop of users, or an open-loop arrival process.

A Load is a small configuration; `mode` turns it into the object that says what is sent when. Every random number comes
from a stream of its own (arrivals, think times), named after its purpose and seeded by the trial's seed, so that
changing one dimension leaves the others alone. Only `random.random()`, which Python promises to keep stable, is drawn;
all else is arithmetic on it, so that a mode can be reproduced anywhere. A drawn process is never clipped, nor rescaled
to make its total come out right: both change the process.
"""

import hashlib
import random
from array import array
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from sweep.base.config import ConfigError, Strict
from sweep.base.whole_file import read_bounded
from sweep.client.modes import ClosedLoop, Lockstep, Mode, OpenLoop
from sweep.inputs.rows import READERS, fault_of_lengths, read_rows, trace_columns

Floats = NDArray[np.float64]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DIGITS = {"s": 0, "ms": -3, "us": -6, "ns": -9}  # of a unit: its power of ten
LATEST = 100_000_000_000  # s since 1970, in the year 5138: a larger number counts parts of a second
WARMUP = 4  # requests, where nothing says how many will be in flight
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Load(Strict):
    """A name for the trials row, and a time after which nothing new is sent."""

    open_loop: ClassVar[bool] = False  # requests are due at times that do not depend on the answers

    name: str
    duration: Positive | None = None  # s; null: only the number of requests ends the trial

    @property
    def size(self) -> int | None:
        """Requests that the engine must hold at once, where a larger number can only need more memory; else None."""
        return None

    def count(self, num_requests: int) -> int:
        """The requests that a trial must have ready where the workload asks for `num_requests` measured ones."""
        return num_requests

    def warmup(self, requests: int | None) -> int:
        """The requests of the warm-up; None: enough that the engine has met the largest batch that it will have."""
        return WARMUP if requests is None else requests

    def check_pairing(self, workload: Any) -> None:
        """Raise ConfigError if the load cannot send this workload."""

    def describe(self) -> str:
        """The load in a short phrase, for people."""
        raise NotImplementedError

    def mode(self, count: int, seed: int) -> Mode:
        """The mode for `count` requests; the same for the same arguments, on every machine."""
        raise NotImplementedError


class Batch(Load):
    """Lockstep: `batch_size` requests leave together, the next batch when the last token of this one has arrived."""

    name: str = "batch"
    batch_size: Count
    discard_first: bool = False  # the first batch is sent, but not summarised
    whole_warmup: bool = True  # the warm-up is of whole batches; false: of as many requests as were asked for

    def warmup(self, requests: int | None) -> int:
        if requests == 0 or (requests is not None and not self.whole_warmup):
            return requests
        return self.count(super().warmup(requests))

    @property
    def size(self) -> int | None:
        return self.batch_size

    def count(self, num_requests: int) -> int:
        """Whole batches, and one more where the first is discarded."""
        batches = -(-num_requests // self.batch_size) + self.discard_first
        return batches * self.batch_size

    def describe(self) -> str:
        return f"batches of {self.batch_size}"

    def mode(self, count: int, seed: int) -> Mode:
        return Lockstep(self.batch_size, duration=self.duration)


class Closed(Load):
    """A closed loop: each of `concurrency` users sends its next request when its last one has ended, after thinking."""

    name: str = "closed"
    concurrency: Count
    think_time: NotNegative = 0.0  # s, the mean
    think_distribution: Literal["constant", "exponential"] = "constant"
    stagger: NotNegative | None = None  # s over which the users begin, evenly spaced; 0: all at once; null: the
    # duration of one request of the warm-up, unless a user sends just one request

    def warmup(self, requests: int | None) -> int:
        return max(WARMUP, self.concurrency) if requests is None else requests

    def describe(self) -> str:
        thinking = f", thinking {self.think_time:g} s" if self.think_time else ""
        return f"{self.concurrency} users{thinking}"

    def mode(self, count: int, seed: int) -> Mode:
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
    process: ClassVar[str]  # in a short phrase with its fields
    max_concurrency: Count | None = None  # requests in flight; those due beyond it wait, and their wait is measured

    def describe(self) -> str:
        cap = f", at most {self.max_concurrency} in flight" if self.max_concurrency else ""
        return self.process.format(self=self) + cap

    def mode(self, count: int, seed: int) -> Mode:
        return OpenLoop(_doubles(self.arrivals(count, seed)), self.max_concurrency, duration=self.duration)

    def arrivals(self, count: int, seed: int) -> Floats:
        """Times in s from the start at which `count` requests are due, ascending. Shape (count,)."""
        raise NotImplementedError


class Constant(_ArrivalProcess):
    """One request every 1/rate seconds, the first at once."""

    name: str = "constant"
    process = "constant {self.rate:g}/s"
    rate: Positive  # requests/s

    def arrivals(self, count: int, seed: int) -> Floats:
        return np.arange(count) / self.rate


class Poisson(_ArrivalProcess):
    """A Poisson process: independent exponential gaps of mean 1/rate, the first one before the first request."""

    name: str = "poisson"
    process = "Poisson {self.rate:g}/s"
    rate: Positive  # requests/s, the expected one: the realised one varies by 1/sqrt(count), as it should

    def arrivals(self, count: int, seed: int) -> Floats:
        return np.cumsum(exponential(uniforms(count, seed, "arrivals")) / self.rate)


class Gamma(_ArrivalProcess):
    """Independent gamma-distributed gaps of mean 1/rate and coefficient of variation 1/sqrt(burstiness).

    `burstiness` is the shape of the gamma distribution, as in vLLM's `--burstiness`: 1 is Poisson, less is burstier,
    more is more even.
    """

    name: str = "gamma"
    process = "gamma {self.rate:g}/s of burstiness {self.burstiness:g}"
    rate: Positive  # requests/s
    burstiness: Positive

    def arrivals(self, count: int, seed: int) -> Floats:
        from scipy.special import gammaincinv  # imported where it is needed: the other loads start without scipy

        gaps = gammaincinv(self.burstiness, uniforms(count, seed, "arrivals"))
        return np.cumsum(gaps / (self.burstiness * self.rate))


class Ramp(_ArrivalProcess):
    """A Poisson process whose rate goes linearly from `rate_from` to `rate_to` and then stays there.

    It does so within `duration`; without one, within the time in which all requests of the trial are expected. Drawn by
    inversion of the integrated rate (Cinlar, Introduction to Stochastic Processes, 1975, §4.7): arrivals of a unit-rate
    process at Λ are due at the t for which ∫₀ᵗ rate = Λ.
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
        """The times by which `expected` arrivals are expected, on a ramp of `length` seconds. Any shape."""
        slope = (self.rate_to - self.rate_from) / length
        total = length * (self.rate_from + self.rate_to) / 2
        inside = np.minimum(expected, total)
        # The root of rate_from·t + slope·t²/2 = Λ in the form that does not cancel; 0 at 0 also where rate_from is 0.
        divisor = self.rate_from + np.sqrt(np.maximum(self.rate_from**2 + 2 * slope * inside, 0.0))
        on_ramp = np.divide(2 * inside, divisor, out=np.zeros_like(inside), where=divisor > 0)
        return np.asarray(on_ramp + (expected - inside) / self.rate_to, dtype=np.float64)


class Trace(_ArrivalProcess):
    """Recorded arrivals, moved so that the first is at once and otherwise unchanged.

    `path` is a text file with one time a line (# begins a comment), or a table, whose `column` holds the time: a number
    in `unit`, or a date and time in ISO 8601. Without them: those of a trace that is known by its columns, or
    `timestamp` in seconds.
    """

    name: str = "trace"
    process = "trace {self.file.name}"
    path: str
    column: str | None = None
    unit: Literal["s", "ms", "us", "ns"] | None = None
    skip_unsendable: bool = False  # leave out the rows that workload.skip_unsendable leaves out

    @property
    def file(self) -> Path:
        return Path(self.path).expanduser()

    @field_validator("path")
    @classmethod
    def _require_path(cls, path: str) -> str:
        if path == "???":  # Hydra's word for a value that the user must give
            raise ValueError("required: a file of arrival times")
        return path

    def check(self) -> None:
        """Raise ConfigError, naming the file and what is wrong with it, for a trace that cannot be replayed."""
        self._times()

    def check_pairing(self, workload: Any) -> None:
        """Raise ConfigError if times are of this file and lengths, in another order, too."""
        order, skip = (getattr(workload, key, None) for key in ("order", "skip_unsendable"))
        if order is None or workload.file != self.path:
            return
        problem = f"each length of {self.path} belongs to its time"
        if order != "file":
            raise ConfigError(f"workload.order={order}: {problem}; expected file with this load")
        if skip != (ours := self.skip_unsendable):
            raise ConfigError(f"load.skip_unsendable={ours}: {problem}; expected {skip}, as workload.skip_unsendable")

    def digest(self, cache_dir: Path) -> str:
        """Hash of the file, so that another trace under the same name is another trial."""
        try:
            return hashlib.sha256(read_bounded(self.file)).hexdigest()
        except OSError as error:
            raise ConfigError(f"load.path={self.path}: {error.strerror}") from None

    def count(self, num_requests: int) -> int:
        """The same number. Raises ConfigError if the trace has fewer arrivals: it is neither repeated nor stretched."""
        arrivals = len(self._times())
        if num_requests > arrivals:
            limit = f"workload.num_requests may be at most {arrivals}"
            raise ConfigError(f"load.path={self.path}: holds {arrivals} arrivals; {limit}")
        return num_requests

    def arrivals(self, count: int, seed: int) -> Floats:
        return self._times()[: self.count(count)]

    def _times(self) -> Floats:
        """Arrivals in s from the first one. Shape (arrivals,)."""
        instants = list(self._instants())
        if not instants:
            raise ConfigError(f"load.path={self.path}: holds no arrival times")
        times = np.array([float(instant - instants[0]) for instant in instants])
        if np.any(np.diff(times) < 0):
            raise ConfigError(f"load.path={self.path}: expected times in ascending order")
        return times

    def _instants(self) -> Iterator[Decimal]:
        """Times in s as the file has them: a float does not hold a time of day in ns."""
        column, unit, cells = self._cells()
        for number, cell in cells:
            where, text = f"load.path={self.path}: row {number}: {column}={cell!r}", str(cell).strip()
            try:
                with suppress(InvalidOperation):
                    yield self._seconds(Decimal(text), unit, where)
                    continue
                moment = datetime.fromisoformat(text)
                yield Decimal((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
            except ConfigError:
                raise
            except ValueError:
                raise ConfigError(f"{where}; expected a number or an ISO 8601 time") from None

    def _seconds(self, number: Decimal, unit: str, where: str) -> Decimal:
        """A time in s. Raises ConfigError where the unit is uncertain, lest a trace is replayed 1,000 times as fast."""
        if not number.is_finite():
            raise ConfigError(f"{where}; expected finite times")
        uncertain = abs(number) > LATEST if unit == "s" else number % 1 != 0  # Mooncake's ms are whole
        if self.unit is None and uncertain:
            raise ConfigError(f"{where}; its unit is uncertain; set load.unit to {', '.join(DIGITS)}")
        return number.scaleb(DIGITS[self.unit or unit])

    def _cells(self) -> tuple[str, str, list[tuple[int, Any]]]:
        """The name of the times, their unit if none is set, and each row's number with its time."""
        rows = read_rows(self.file, f"load.path={self.path}", any_ending=True)
        if self.file.suffix not in READERS or self.file.suffix == ".txt":
            texts = (row["prompt"].partition("#")[0].strip() for row in rows)
            return "time", "s", [(number, text) for number, text in enumerate(texts, 1) if text]
        trace = None if self.column else trace_columns(rows[0])
        column, unit = (trace.time, trace.unit) if trace else (self.column or "timestamp", "s")
        if column not in rows[0]:
            raise ConfigError(f"load.column={column}: no such column in {self.path}; expected: {', '.join(rows[0])}")
        lengths = trace_columns(rows[0]) if self.skip_unsendable else None
        numbered = [(n, row) for n, row in enumerate(rows, 1) if not (lengths and fault_of_lengths(row, lengths))]
        return column, unit, [(number, row.get(column, "")) for number, row in numbered]


def uniforms(count: int, seed: int, stream: str) -> Floats:
    """`count` uniform numbers in [0, 1) of the stream of that name. Shape (count,)."""
    draw = random.Random(f"{seed}/load/{stream}").random
    return np.fromiter((draw() for _ in range(count)), np.float64, count)


def exponential(uniform: Floats) -> Floats:
    """Exponentially distributed numbers of mean 1, by inversion of the distribution function. Any shape."""
    return -np.log1p(-uniform)


def _doubles(values: Floats) -> "array[float]":
    return array("d", values.tobytes())
