"""Replays measured rows in simulated time, so that planning, packing, searching and reporting run without engines."""

import csv
import hashlib
import heapq
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweep.base.config import LARGEST_NUMBER, NAMED_GROUPS, ConfigError, DamagedFile, Halted, first_line, shortened
from sweep.base.records import LOAD_COLUMNS, UNMEASURED, Outcome
from sweep.base.whole_file import read_bounded
from sweep.base.wording import duration_text
from sweep.cluster.inline_executor import InlineExecutor
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths, trial_schema
from sweep.node.events import Completed, End, Event, Finished, Placed, Prepared
from sweep.node.rows import replayed_row, unmeasured_row
from sweep.node.work import Work
from sweep.plan.packing import Node
from sweep.plan.plan import Deployment, Trial, config_text

POINT_COLUMNS = (*NAMED_GROUPS, *LOAD_COLUMNS, "accelerator", "gpu_count")  # in a CSV, besides dotted keys
TEXT_COLUMNS = (*NAMED_GROUPS, "accelerator", "outcome", "reason")  # of a CSV; its other texts belong to another plan
NUMBER_TYPES = (pa.float64(), pa.int64())


class MeasuredTable:
    """Measured rows by point, each with its replicates: a run's trials.parquet, or a CSV."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that cannot be read, or has no usable row."""
        self.path, self.digest = path, hashlib.sha256(read_bounded(path)).hexdigest()
        self.points: dict[Any, dict[int, dict[str, Any]]] = {}
        rows = _rows_of_csv(path) if path.suffix == ".csv" else run_files.read_trials(path)
        rows = [{key: cell for key, cell in row.items() if cell is not None} for row in rows]
        rows = [row for row in rows if row.pop("in_plan", True) is not False]
        rows = [row for row in rows if row.get("outcome", Outcome.OK) not in UNMEASURED]
        if not rows:
            raise ConfigError(f"cluster.replay={path}: no measured row")
        keys = {key for row in rows for key in row if key in POINT_COLUMNS or "." in key}
        self.keys = sorted(keys) if path.suffix == ".csv" else None
        for row in rows:
            replicates = self.points.setdefault(self._key(row), {})
            number = row.get("replicate", len(replicates))
            if number in replicates:
                point = row.get("label") or ", ".join(f"{key}={row[key]}" for key in self.keys or () if key in row)
                raise ConfigError(f"cluster.replay={path}: expected one row of replicate {number} of {point}")
            replicates[number] = row

    @property
    def replicates(self) -> int:
        """The most rows of any point."""
        return max(map(len, self.points.values()))

    def row(self, deployment: Deployment, trial: Trial) -> dict[str, Any] | None:
        """Return the row of a trial's point and replicate, if it was measured."""
        facts = deployment.facts(trial) | {"config": config_text(trial.config)}
        return self.points.get(self._key(facts), {}).get(trial.replicate)

    def _key(self, facts: Mapping[str, Any]) -> Any:
        return facts["config"] if self.keys is None else tuple(_comparable(facts.get(key)) for key in self.keys)


def _rows_of_csv(path: Path) -> list[dict[str, Any]]:
    """Return a CSV's rows. Without a throughput it is computed, for closed loops whose requests mostly decode."""
    rows, types = list[dict[str, Any]](), trial_schema()
    with path.open(newline="") as file:
        for texts in csv.DictReader(file):
            rows.append({})
            for key, text in [(key, text) for key, text in texts.items() if key and text]:
                if "." not in key and key not in types:
                    expected = "expected a column of trials.parquet, or an axis such as backend.flags.x"
                    raise ConfigError(f"cluster.replay={path}: column {key}: {expected}")
                cell = text if key in TEXT_COLUMNS else _typed_cell(text)
                if problem := _misfit(key, cell, types.get(key)):
                    raise ConfigError(f"cluster.replay={path}: {key}={shortened(text)}: {problem}")
                if key == "in_plan" or "." in key or key in TEXT_COLUMNS or types[key] in NUMBER_TYPES:
                    rows[-1][key] = int(cell) if types.get(key) == pa.int64() else cell
    if any("output_throughput" in row for row in rows):
        return rows
    usable = []
    for row in rows:
        users, length = row.get("concurrency"), row.get("workload.output_tokens")
        ttft, tpot = (row.get(f"{name}_mean") or row.get(f"{name}_p50") for name in ("ttft", "tpot"))
        if not (users and isinstance(length, int | float) and ttft and tpot):
            needed = "concurrency, workload.output_tokens, ttft_mean and tpot_mean"
            raise ConfigError(f"cluster.replay={path}: expected a column output_throughput, or {needed} in each row")
        if ttft <= tpot * length:  # else more time passes in the queue than in decoding
            usable.append(row | {"output_throughput": users * length / (ttft + tpot * (length - 1))})
    return usable


def _misfit(key: str, cell: Any, type_: pa.DataType | None) -> str | None:
    """Return what was expected in a column of a CSV; None for a cell that fits."""
    if key == "outcome" and cell not in {*Outcome}:
        return f"expected one of {', '.join(Outcome)}"
    if type_ not in NUMBER_TYPES:
        return None
    if isinstance(cell, bool | str):
        return "expected a number"
    if type_ == pa.int64() and (cell != int(cell) or abs(cell) >= 2**63):
        return "expected a whole number"
    fits = 0 <= cell <= LARGEST_NUMBER or not (key.endswith("_seconds") or key == "duration")
    return None if fits else f"expected 0 to {LARGEST_NUMBER:,}"


def _typed_cell(cell: str | None) -> Any:
    if not cell:
        return None
    with suppress(ValueError, OverflowError):
        number = float(cell)
        return int(number) if number == int(number) and "." not in cell else number
    return {"true": True, "false": False}.get(cell.lower(), cell)


def _comparable(setting: Any) -> Any:
    """Return a setting for comparison: 8, 8.0 and "8" are equal."""
    if isinstance(setting, str):
        setting = _typed_cell(setting)
    return setting if isinstance(setting, bool | int | float | None) else str(setting)


class ReplayExecutor(InlineExecutor):
    """Answers launches from a table of measured rows, with their measured durations, on simulated nodes."""

    def __init__(self, table: MeasuredTable, nodes: Sequence[Node]) -> None:
        super().__init__()
        self.table, self.schedulable_nodes = table, list(nodes)
        self.began, self.clock = datetime.now(UTC), 0.0
        self.order = count()  # of events at one time
        self.pending: list[tuple[float, int, Work, Event | End]] = []

    def submit(self, work: Work, node_id: str, partners: Sequence[str] = ()) -> None:
        self._push(self.clock, work, Placed(node_id, node_id))
        self._push(self.clock, work, Prepared())
        at, launch = self.clock, uuid.uuid4().hex[:12]
        for index, trial in enumerate(work.deployment.trials):
            measured = self.table.row(work.deployment, trial) or {}
            begin = at + (0 if index else measured.get("startup_seconds") or 0.0)
            at = begin + (measured.get("wall_seconds") or measured.get("duration") or 0.0)
            self._push(at, work, Finished(trial, self._row(work, trial, measured, launch, begin, at)))
        self._push(at, work, Completed())

    def events(self) -> Iterator[tuple[Work, Event | End]]:
        """Yield the events of the next moment at which anything happens."""
        if self.pending:
            self.clock = self.pending[0][0]
        while self.pending and self.pending[0][0] <= self.clock:
            _, _, work, event = heapq.heappop(self.pending)
            yield work, event

    def cancel(self) -> None:
        """Forget the launches that have not ended."""
        self.pending.clear()

    def describe(self) -> str:
        """Return how long the replayed launches took."""
        took = f"{duration_text(self.clock)} of simulated time"
        return f"replayed from {self.table.path}: {took}; nothing was measured in this run"

    def _push(self, at: float, work: Work, event: Event | End) -> None:
        heapq.heappush(self.pending, (at, next(self.order), work, event))

    def _time(self, seconds: float) -> str:
        return (self.began + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")

    def _row(
        self, work: Work, trial: Trial, measured: Mapping[str, Any], launch: str, begin: float, end: float
    ) -> dict[str, Any]:
        """Return the table's row as this plan's trial, and copy its requests if they are next to the table."""
        times = {"started_at": self._time(begin), "ended_at": self._time(end)}
        if not measured:
            reason = f"not measured: {self.table.path.name} has no row of this point and replicate"
            return unmeasured_row(work, trial, Outcome.UNAVAILABLE, reason) | times
        self._copy_requests(work, trial, measured)
        return replayed_row(work, trial, measured, self.table.digest, times | {"launch": launch})

    def _copy_requests(self, work: Work, trial: Trial, measured: Mapping[str, Any]) -> None:
        if not measured.get("attempt"):
            return
        source = RunPaths(self.table.path.parent)
        path = source.trial(measured["deployment_id"], measured["attempt"], measured["trial_id"]).requests
        try:
            records = run_files.read_requests(path)
        except FileNotFoundError:  # the table was copied without its run
            return
        except DamagedFile as error:
            raise Halted(str(error)) from error
        target = work.paths.trial(work.deployment.deployment_id, work.attempt, trial.trial_id)
        run_files.write_requests(target, records)


def open_table(path: str) -> MeasuredTable:
    """Open a table of measured rows. Raises ConfigError if it cannot be read."""
    try:
        return MeasuredTable(Path(path))
    except (OSError, DamagedFile, UnicodeDecodeError, KeyError, csv.Error) as error:
        problem = f"{first_line(error)}; expected a run's trials.parquet, or a CSV of rows"
        raise ConfigError(f"cluster.replay={path}: {problem}") from None
