"""The progress of a running sweep: a live view on a terminal, plain lines otherwise.

It shows the running trials with their progress, the run's progress, cost and failures, and the time left. Results are
shown by the analysis.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from sweep.base.records import LOAD_COLUMNS, Outcome, TrialProgress
from sweep.base.wording import count, duration_text, number, time_left
from sweep.drive.policy import FAILED

QUESTION = ("model", "workload", "load", *LOAD_COLUMNS)  # columns that must be equal for points to be compared


class Usage(NamedTuple):
    """How much of the cluster is in use, and its cost in this run."""

    busy: int
    capacity: int
    unit: str  # "GPU" or "node"
    spent: float | None  # USD; None if there is no price

    @property
    def text(self) -> str:
        """The usage as text: `3 of 8 GPUs busy, $0.42 spent`."""
        spent = "" if self.spent is None else f", ${number(self.spent)} spent"
        return f"{self.busy} of {count(self.capacity, self.unit)} busy{spent}"


class Display:
    """The view of one run. On a terminal it redraws itself; elsewhere each change is printed as a line."""

    def __init__(self, total: int, done: int, expected: float | None, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.total, self.done = total, done
        self.failures = 0  # trials that failed in this run
        self.usage: Usage | None = None
        self.running: dict[str, tuple[str, str, float]] = {}  # key of a launch -> label, state, time of the last change
        self.progress: dict[str, TrialProgress] = {}  # progress of the running trials, by key of the launch
        self.leaders = Leaders()
        self._left = expected  # estimated s for all pending trials, and when they were estimated
        self._estimated = time.monotonic()
        self._unavailable: dict[str, list[str]] = defaultdict(list)  # reason -> labels that have not been shown yet
        self.bar = Progress(TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self.task = self.bar.add_task("", total=total, completed=done, left="")
        self.live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.show_unavailable()
        if self.console.is_terminal:
            self.live.stop()

    def log(self, text: str) -> None:
        """Print a line that remains visible."""
        self.console.print(text, markup=False, soft_wrap=True)

    def update(self, launch: str, label: str, state: str) -> None:
        """Show the current state of a launch."""
        _, before, since = self.running.get(launch, ("", "", 0.0))
        repeated = state == before  # a waiting launch reports again; keep the time of its first report
        self.running[launch] = (label, state, since if repeated else time.monotonic())
        self.progress.pop(launch, None)
        if not self.console.is_terminal and not repeated:
            self.log(f"{_clock()} {label}: {state}")

    def measuring(self, launch: str, progress: TrialProgress) -> None:
        """Show the progress of a launch's trial."""
        if launch in self.running:
            self.progress[launch] = progress

    def remove(self, launch: str) -> None:
        """Remove a launch that has ended, at least until a retry."""
        self.running.pop(launch, None)
        self.progress.pop(launch, None)

    def finished(self, row: Mapping[str, Any], label: str, engine: str = "") -> None:
        """Show a trial's row; trials that cannot run are collected for `show_unavailable`."""
        self.done += 1
        outcome = Outcome(row["outcome"])
        self.failures += outcome in FAILED
        self.bar.update(self.task, completed=self.done)
        reason = str(row.get("reason") or "no reason given")
        if outcome is Outcome.UNAVAILABLE:
            self._unavailable[reason].append(label)
            return
        if outcome is Outcome.OK:
            self.leaders.add(row, engine or label)
        result = _key_figures(row) if outcome is Outcome.OK else f"{outcome}: {reason}"
        self.log(f"{_clock()} [{self.done}/{self.total}, {time_left(self.seconds_left())}] {label}: {result}")

    def show_unavailable(self) -> None:
        """Print one line for all trials that cannot run for the same reason."""
        for reason, labels in self._unavailable.items():
            which = labels[0] if len(labels) == 1 else f"{count(len(labels), 'trial')}, the first {labels[0]}"
            self.log(f"{_clock()} [{self.done}/{self.total}] unavailable: {reason} ({which})")
        self._unavailable.clear()

    def estimated(self, seconds: float | None) -> None:
        """Store the scheduler's estimate of the time left."""
        self._left, self._estimated = seconds, time.monotonic()

    def seconds_left(self) -> float | None:
        """Return the seconds left by the last estimate; None without an estimate."""
        return None if self._left is None else max(0.0, self._left - (time.monotonic() - self._estimated))

    def summary(self) -> str:
        """Return `3 of 8 GPUs busy, $0.42 spent, 2 failures; best so far at qa batch 8: vllm 538 tokens/s`."""
        parts = [self.usage.text] if self.usage is not None else []
        parts += [count(self.failures, "failure")] if self.failures else []
        best = self.leaders.latest()
        return ", ".join(parts) + (f"; best so far {best}" if best and parts else best)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for key, (label, state, since) in self.running.items():
            progress = self.progress.get(key)
            shown = progress_text(progress) if progress is not None else ""
            table.add_row(Text(label), Text(state), duration_text(time.monotonic() - since), Text(shown))
        self.bar.update(self.task, left=time_left(self.seconds_left()))
        summary = self.summary()
        return Group(table, *([Text(summary, style="dim")] if summary else []), self.bar)


class Leaders:
    """The highest mean throughput so far among points with the same task and load, never across tasks or loads.

    Points below saturation are skipped, since the load determines their throughput; so are points without a rival.
    """

    def __init__(self) -> None:
        self.figures: dict[tuple[Any, ...], dict[str, list[float]]] = {}

    def add(self, row: Mapping[str, Any], label: str) -> None:
        """Add the row of a trial with a result."""
        if not row.get("output_throughput") or row.get("below_saturation"):
            return
        question = tuple(row.get(column) for column in QUESTION)
        engines = self.figures.pop(question, {})
        self.figures[question] = engines  # the latest is last
        engines.setdefault(label, []).append(row["output_throughput"])

    def latest(self) -> str:
        """Return the latest task's leader: `at qa batch 8: vllm 538 tokens/s`; "" if it has no rivals."""
        return "".join(self.best(most=1))

    def best(self, most: int) -> list[str]:
        """Return the leaders of the latest tasks with rivals, at most `most`, oldest first."""
        compared = [(question, engines) for question, engines in self.figures.items() if len(engines) > 1]
        return [_leader(question, engines) for question, engines in compared[-most:]]


def _leader(question: tuple[Any, ...], engines: Mapping[str, list[float]]) -> str:
    means = {name: sum(values) / len(values) for name, values in engines.items()}
    name = max(means, key=means.__getitem__)
    size = next((f" {value:g}" for value in question[3:] if value is not None), "")
    return f"at {question[1]} {question[2]}{size}: {name} {number(means[name])} tokens/s"


def progress_text(progress: TrialProgress) -> str:
    """Describe a trial's progress: `120 of 400 requests done, 128 sent, 8 in flight, 2 failed, 1,230 tokens/s`."""
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    rate = f", {number(progress.tokens / progress.seconds)} tokens/s" if progress.seconds > 0 else ""
    return (
        f"{progress.done:,} of {progress.total:,} requests done, {progress.sent:,} sent, "
        f"{progress.in_flight:,} in flight{failed}{rate}"
    )


def _key_figures(row: Mapping[str, Any]) -> str:
    """Return the two or three numbers that show at a glance whether a trial's result is plausible."""
    figures = (
        ("output_throughput", 1, "{} tokens/s"),
        ("ttft_p50", 1000, "TTFT p50 {} ms"),
        ("num_failed", 1, "{} requests failed"),
        ("cost_per_million_tokens", 1, "${}/M tokens"),
    )
    texts = [text.format(number(row[name] * scale)) for name, scale, text in figures if row.get(name)]
    return ", ".join(texts) or "ok"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
