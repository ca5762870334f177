"""The progress of a running sweep: a live view on a terminal, one line per trial otherwise.

It shows what is running and how far its requests are, the run's progress, cost and failures, the time left and the best
so far. The analysis shows results.
"""

import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from sweep.base.records import LOAD_COLUMNS, Outcome, TrialProgress
from sweep.base.wording import count, duration_text, number, time_left
from sweep.drive.policy import FAILED, without_numbers

SLOW_STATE = 30.0  # s after which, without a terminal, a launch's state is printed
LEAST_COST = 0.01  # USD; less is not shown
BAR = 24  # width of the run's bar, in columns; a trial's bar is half as wide
QUESTION = ("model", "workload", "load", *LOAD_COLUMNS)  # columns of a row in which points must agree to be compared


class Usage(NamedTuple):
    """How much of the cluster is in use, and its cost in this run."""

    busy: int
    capacity: int
    unit: str  # "GPU" or "node"
    spent: float | None  # USD; None if there is no price

    @property
    def text(self) -> str:
        """Return the usage, e.g. `3 of 8 GPUs busy, $0.42 spent`; omits a single node, and costs below a cent."""
        busy = f"{self.busy} of {count(self.capacity, self.unit)} busy" if self.capacity > 1 else ""
        spent = f"${number(self.spent)} spent" if self.spent is not None and self.spent >= LEAST_COST else ""
        return ", ".join(filter(None, (busy, spent)))


class Display:
    """The view of one run. On a terminal it redraws itself; elsewhere each trial's end is printed as a line."""

    def __init__(self, total: int, done: int, expected: float | None, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.total, self.done = total, done
        self.to_retry: set[str] = set()  # trials that failed and are retried in this run; not done
        self.failures = 0  # trials that failed in this run
        self.usage: Usage | None = None
        self.running: dict[str, tuple[str, str, float]] = {}  # key of a launch -> label, state, time of the last change
        self.progress: dict[str, TrialProgress] = {}  # progress of the running trials, by key of the launch
        self.leaders = Leaders()
        self._left = expected  # estimated s for all pending trials, and when they were estimated
        self._estimated = time.monotonic()
        self._not_run: dict[tuple[Outcome, str], list[str]] = defaultdict(
            list
        )  # outcome, reason -> labels not shown yet
        self._reasons: dict[Outcome, str] = {}  # the last reason shown for each outcome, without numbers
        self._slow: set[str] = set()  # launches whose current state was printed
        self.live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.show_held_back()
        if self.console.is_terminal:
            self.live.stop()

    def log(self, text: str) -> None:
        """Print a line that remains visible."""
        self.console.print(text, markup=False, soft_wrap=True)

    def update(self, launch: str, label: str, state: str) -> None:
        """Show the current state of a launch."""
        _, before, since = self.running.get(launch, ("", "", 0.0))
        if state != before:  # a waiting launch reports again; keep the time of its first report
            self._slow.discard(launch)
            since = time.monotonic()
        self.running[launch] = (label, state, since)
        self.progress.pop(launch, None)

    def measuring(self, launch: str, progress: TrialProgress) -> None:
        """Show the progress of a launch's trial."""
        if launch in self.running:
            self.progress[launch] = progress

    def remove(self, launch: str) -> None:
        """Remove a launch that has ended, at least until a retry."""
        self.running.pop(launch, None)
        self.progress.pop(launch, None)
        self._slow.discard(launch)

    def finished(self, row: Mapping[str, Any], label: str, engine: str = "", retried: bool = False) -> None:
        """Show a trial's row; rows of trials that will not run are held back for `show_held_back`.

        A failed trial that is retried in this run is not done. A reason that was shown before is not repeated.
        """
        outcome = Outcome(row["outcome"])
        self.failures += outcome in FAILED
        if retried:
            self.to_retry.add(row["trial_id"])
        else:
            self.done += 1
        reason = str(row.get("reason") or "no reason given")
        if outcome in (Outcome.UNAVAILABLE, Outcome.DROPPED):
            self._not_run[outcome, reason].append(label)
            return
        if outcome is Outcome.OK:
            self.leaders.add(row, engine or label)
            self._log_trial("✓", label, _key_figures(row))
            return
        unnumbered = without_numbers(reason)
        is_known = self._reasons.get(outcome) == unnumbered
        self._reasons[outcome] = unnumbered
        self._log_trial("✗", label, f"{outcome} for the same reason as before" if is_known else f"{outcome}: {reason}")

    def settle(self, trial_ids: Collection[str]) -> None:
        """Count these trials as done although they failed: their launch is not retried in this run."""
        settled = self.to_retry & set(trial_ids)
        self.to_retry -= settled
        self.done += len(settled)

    def retry(self, trial_ids: Collection[str]) -> None:
        """Count these trials as not done, although they have a row."""
        self.done -= len(set(trial_ids) - self.to_retry)
        self.to_retry -= set(trial_ids)

    def _log_trial(self, mark: str, label: str, ending: str) -> None:
        if self.console.is_terminal:
            self.log(f"{mark} {label}: {ending}")
        else:
            self.log(f"{_clock()} [{self.counts()}, {time_left(self.seconds_left())}] {mark} {label}: {ending}")

    def show_held_back(self) -> None:
        """Print one line for all trials that will not run for the same reason, and, without a terminal, slow states."""
        for (outcome, reason), labels in self._not_run.items():
            which = labels[0] if len(labels) == 1 else f"{count(len(labels), 'trial')}, the first {labels[0]}"
            self._log_trial("–" if outcome is Outcome.DROPPED else "✗", which, f"{outcome}: {reason}")
        self._not_run.clear()
        if self.console.is_terminal:
            return
        for launch, (label, state, since) in self.running.items():
            if launch not in self._slow | self.progress.keys() and time.monotonic() - since > SLOW_STATE:
                self._slow.add(launch)
                self.log(f"{_clock()} {label}: {state}")

    def estimated(self, seconds: float | None) -> None:
        """Store the scheduler's estimate of the time left."""
        self._left, self._estimated = seconds, time.monotonic()

    def seconds_left(self) -> float | None:
        """Return the seconds left according to the last estimate; None if there is no estimate."""
        return None if self._left is None else max(0.0, self._left - (time.monotonic() - self._estimated))

    def counts(self) -> str:
        """Return how many trials are done: `8/27`, `8/27, 1 to retry`."""
        return f"{self.done}/{self.total}" + (f", {len(self.to_retry)} to retry" if self.to_retry else "")

    def summary(self) -> str:
        """Return e.g. `3 of 8 GPUs busy, $0.42 spent, 2 failures; best so far at qa batch 8: vllm 538 tokens/s`."""
        usage = self.usage.text if self.usage is not None else ""
        failures = count(self.failures, "failure") if self.failures else ""
        best = self.leaders.latest()
        parts = [", ".join(filter(None, (usage, failures))), f"best so far {best}" if best else ""]
        return "; ".join(filter(None, parts))

    def _render(self) -> RenderableType:
        """Draw a line per running launch, the summary, and the run's bar, each at most as wide as the terminal."""
        table = Table.grid(
            Column(), *(Column(no_wrap=True) for _ in range(3)), padding=(0, 1)
        )  # only the first column shrinks
        for key, (label, state, since) in self.running.items():
            progress = self.progress.get(key)
            cells = _progress_cells(progress) if progress is not None else ("", "")
            what = Text(f"▸ {label}: {state}", no_wrap=True, overflow="ellipsis")
            table.add_row(what, *cells, duration_text(time.monotonic() - since))
        total = Table.grid(padding=(0, 1))
        left = Text(f"{self.counts()}, {time_left(self.seconds_left())}")
        total.add_row("trials", ProgressBar(self.total, self.done, width=BAR), left)
        summary = self.summary()
        return Group(table, *([Text(summary, style="dim")] if summary else []), total)


def _progress_cells(progress: TrialProgress) -> tuple[ProgressBar, Text]:
    """Return a running trial's bar and its progress in short: `5/8, 1 failed, 9.10 tok/s`."""
    failed = f"{progress.failed:,} failed" if progress.failed else ""
    rate = f"{number(progress.tokens / progress.seconds)} tok/s" if progress.seconds > 0 else ""
    texts = filter(None, (f"{progress.done:,}/{progress.total:,}", failed, rate))
    return ProgressBar(progress.total, progress.done, width=BAR // 2), Text(", ".join(texts))


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
        """Return the latest task's leader: `at qa batch 8: vllm 538 tokens/s`; "" if the leader has no rivals."""
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
        ("cost_per_million_tokens", 1, "${}/M tokens"),
    )
    texts = [text.format(number(row[name] * scale)) for name, scale, text in figures if row.get(name)]
    texts += [f"{count(row['num_failed'], 'request')} failed"] if row.get("num_failed") else []
    return ", ".join(texts) or "ok"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
