"""Deployments one after the other in this process: no Ray, for debugging and for single trials."""

from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from sweep.deployment import Event, Lost, Work, stream_deployment


class InlineExecutor:
    """The same face as `schedule.RayExecutor`, on this machine and the GPUs that this process sees."""

    capacity = 1

    def __init__(self, gpus: Sequence[str] = ()) -> None:
        self.gpus = tuple(gpus)
        self.waiting: deque[Work] = deque()
        self.running: tuple[Work, Iterator[Event]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_now()

    def submit(self, work: Work) -> None:
        self.waiting.append(work)

    def events(self) -> Iterator[tuple[Work, Event | Lost | None]]:
        """The next event: None when a deployment ended."""
        if self.running is None and self.waiting:
            work = self.waiting.popleft()
            self.running = work, stream_deployment(work, self.gpus[: work.deployment.gpu_count])
        if self.running is not None:
            work, stream = self.running
            event = next(stream, None)
            if event is None:
                self.running = None
            yield work, event

    def stop_now(self) -> None:
        """End what runs, and its engine with it."""
        if self.running is not None:
            stream = self.running[1]
            self.running = None
            stream.close()  # type: ignore[attr-defined]
