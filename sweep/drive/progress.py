"""The progress of a running sweep: a live view on a terminal, plain lines otherwise.

It shows what runs, how much is done and how long it will take; results are the analysis' business.
"""

import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from sweep.records import Outcome
from sweep.wording import duration_text, time_left


class Display:
    """The view of one run. On a terminal it redraws itself; elsewhere each change is a line."""

    def __init__(self, total: int, done: int, expected: float | None, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.total, self.done = total, done
        self.at_start = done
        self.expected = expected  # s for all pending trials, from earlier runs
        self.began = time.monotonic()
        self.running: dict[str, tuple[str, str, float]] = {}  # key of a launch -> label, state, since
        self.bar = Progress(TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self.task = self.bar.add_task("", total=total, completed=done, left="")
        self.live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def log(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def update(self, launch: str, label: str, state: str) -> None:
        """Show the present state of a launch."""
        before = self.running.get(launch)
        self.running[launch] = (label, state, time.monotonic())
        if not self.console.is_terminal and (before is None or before[1] != state):
            self.log(f"{_clock()} {label}: {state}")

    def remove(self, launch: str) -> None:
        """Remove a launch that has ended, for good or until its retry."""
        self.running.pop(launch, None)

    def finished(self, row: Mapping[str, Any], label: str) -> None:
        """Show a trial's row."""
        self.done += 1
        outcome = Outcome(row["outcome"])
        self.bar.update(self.task, completed=self.done, left=time_left(self.seconds_left()))
        failure = f"{outcome}: {row.get('reason') or 'no reason given'}"
        result = _key_figures(row) if outcome is Outcome.OK else failure
        self.log(f"{_clock()} [{self.done}/{self.total}, {time_left(self.seconds_left())}] {label}: {result}")

    def seconds_left(self) -> float | None:
        """Return the time to the end, from the pace of this run; before its first trial, from earlier runs."""
        finished = self.done - self.at_start
        if not finished:
            return self.expected
        return (time.monotonic() - self.began) / finished * (self.total - self.done)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for label, state, since in self.running.values():
            table.add_row(Text(label), Text(state), duration_text(time.monotonic() - since))
        return Group(table, self.bar)


def _key_figures(row: Mapping[str, Any]) -> str:
    """Return the two or three figures that show at a glance whether a trial is sane."""
    figures = (
        ("output_throughput", 1, "{:.1f} tok/s"),
        ("ttft_p50", 1000, "TTFT p50 {:.1f} ms"),
        ("num_failed", 1, "{:.0f} requests failed"),
        ("cost_per_million_tokens", 1, "${:.2f}/M tokens"),
    )
    texts = [text.format(row[name] * scale) for name, scale, text in figures if row.get(name)]
    return ", ".join(texts) or "ok"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
