"""Deployments one after the other in this process: no Ray, for debugging and for single trials."""

import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from sweep.config import Halted
from sweep.node.deployment import Beat, DiskFull, Event, Lost, Work, clear_engines, stream_deployment
from sweep.plan.packing import Need, Node

POLL = 0.5  # s


class InlineExecutor:
    """The same face as `schedule.RayExecutor`, on this machine and the GPUs that this process sees."""

    def __init__(self, gpus: Sequence[str] = (), accelerators: Sequence[str] = ()) -> None:
        self.gpus = tuple(gpus)
        self.usable = [Node("this process", len(self.gpus), os.cpu_count() or 1, tuple(accelerators), "inline")]
        self.waiting: deque[Work] = deque()
        self.running: tuple[Work, Generator[Event, None, None]] | None = None
        self.stopping = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_now()

    def clear(self, marker: str) -> None:
        """Kill what an earlier driver may have left here."""
        clear_engines(marker)

    def spare(self, node_ids: set[str]) -> bool:
        return False

    def want(self, needs: Sequence[Need]) -> None:
        """There will be no other node."""

    def observe(self, row: Mapping[str, Any]) -> None:
        """There is no dashboard."""

    def submit(self, work: Work, node_id: str) -> None:
        self.waiting.append(work)

    def events(self) -> Iterator[tuple[Work, Event | Lost | None]]:
        """The next event: None when a deployment ended.

        Raises:
            Halted: when the disk is full.
        """
        if self.running is None and self.waiting:
            work = self.waiting.popleft()
            gpus = self.gpus[: work.deployment.gpu_count]
            self.running = work, stream_deployment(work, gpus, self.stopping, POLL)
        if self.running is not None:
            work, stream = self.running
            try:
                event = next(stream, None)
            except DiskFull as error:
                raise Halted(str(error)) from None
            if event is None:
                self.running = None
            if not isinstance(event, Beat):
                yield work, event

    def stop_soon(self) -> None:
        """Let the trial that runs end, and start no other."""
        self.stopping.set()

    def stop_now(self) -> None:
        """End what runs, and its engine with it."""
        if self.running is not None:
            stream = self.running[1]
            self.running = None
            stream.close()
