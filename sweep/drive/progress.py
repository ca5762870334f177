"""What the user sees while a sweep runs: a live view on a terminal, plain lines otherwise.

The numbers of the result are the analysis' business; here is what runs where, how much is done and how long it takes.
"""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from sweep.records import Outcome
from sweep.wording import duration, time_left


class Display:
    """The view of one run. On a terminal it redraws itself; without one each change is a line."""

    def __init__(self, total: int, done: int, expected: float | None, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.total, self.done = total, done
        self.at_start = done
        self.expected = expected  # s for all that is left, as estimated from earlier runs
        self.began = time.monotonic()
        self.running: dict[str, tuple[str, str, float]] = {}  # deployment id -> what, state, since
        self.bar = Progress(TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self.task = self.bar.add_task("", total=total, completed=done, left="")
        self.live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def state(self, deployment_id: str, what: str, state: str) -> None:
        """What a deployment is doing now."""
        before = self.running.get(deployment_id)
        self.running[deployment_id] = (what, state, time.monotonic())
        if not self.console.is_terminal and (before is None or before[1] != state):
            self.say(f"{_clock()} {what}: {state}")

    def ended(self, deployment_id: str) -> None:
        """A deployment is gone, for good or to be tried again."""
        self.running.pop(deployment_id, None)

    def finished(self, row: Mapping[str, Any], what: str) -> None:
        """A trial has its row."""
        self.done += 1
        outcome = Outcome(row["outcome"])
        self.bar.update(self.task, completed=self.done, left=time_left(self.left()))
        failure = f"{outcome}: {row.get('reason') or 'no reason given'}"
        result = _figures(row) if outcome is Outcome.OK else failure
        self.say(f"{_clock()} [{self.done}/{self.total}, {time_left(self.left())}] {what}: {result}")

    def left(self) -> float | None:
        """Seconds until the end, from the pace of this run; before there is one, from earlier runs."""
        finished = self.done - self.at_start
        if not finished:
            return self.expected
        return (time.monotonic() - self.began) / finished * (self.total - self.done)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for what, state, since in self.running.values():
            table.add_row(what, state, duration(time.monotonic() - since))
        return Group(table, self.bar)


def _figures(row: Mapping[str, Any]) -> str:
    """The two or three figures that tell at a glance whether a trial is sane."""
    parts = []
    if row.get("output_throughput") is not None:
        parts.append(f"{row['output_throughput']:.1f} tok/s")
    if row.get("ttft_p50") is not None:
        parts.append(f"TTFT p50 {row['ttft_p50'] * 1000:.1f} ms")
    if row.get("cost_per_million_tokens") is not None:
        parts.append(f"${row['cost_per_million_tokens']:.2f}/M tokens")
    return ", ".join(parts) or "ok"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
