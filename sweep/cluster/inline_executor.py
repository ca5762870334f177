"""Runs deployments one after another in this process, without Ray: for debugging and for single trials."""

import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Self

from sweep.base.config import Halted
from sweep.disk.ledger import LedgerRow
from sweep.node.deployment import DiskFull, clear_engines, stream_deployment
from sweep.node.events import Beat, Completed, End, Event, Placed
from sweep.node.work import Work
from sweep.plan.packing import Need, Node

EVENT_POLL = 0.5  # s


class InlineExecutor:
    """Runs deployments on this machine, with the GPUs visible to this process. Same interface as `RayExecutor`."""

    def __init__(self, gpus: Sequence[str] = (), accelerators: Sequence[str] = ()) -> None:
        self.gpus = tuple(gpus)
        cores = os.cpu_count() or 1
        self.schedulable_nodes = [Node("this process", len(self.gpus), cores, tuple(accelerators), "inline")]
        self.submitted: deque[Work] = deque()
        self.running: tuple[Work, Generator[Event, None, None]] | None = None
        self.draining = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def clean_up(self, marker: str) -> None:
        """Kill engines that an earlier driver may have left running."""
        clear_engines(marker)

    def has_nodes_besides(self, node_ids: set[str]) -> bool:
        """Return False: this process is the only node."""
        return False

    def request_capacity(self, needs: Sequence[Need], left: Sequence[Node]) -> None:
        """Do nothing: no node can be added."""

    def export_metrics(self, row: LedgerRow) -> None:
        """Do nothing: there is no dashboard."""

    def submit(self, work: Work, node_id: str, partners: Sequence[str] = ()) -> None:
        self.submitted.append(work)

    def events(self) -> Iterator[tuple[Work, Event | End]]:
        """Yield the events of the submitted deployments. Raises Halted when the disk is full."""
        if self.running is None and self.submitted:
            work = self.submitted.popleft()
            gpus = self.gpus[: work.deployment.gpu_count]
            self.running = work, stream_deployment(work, gpus, self.draining, EVENT_POLL)
            node = self.schedulable_nodes[0]
            yield work, Placed(node.node_id, node.address)
        if self.running is not None:
            work, stream = self.running
            try:
                event = next(stream, None)
            except DiskFull as error:
                raise Halted(str(error)) from None
            if event is None:
                self.running = None
                yield work, Completed()
            elif not isinstance(event, Beat):
                yield work, event

    def drain(self) -> None:
        """Finish the running trial and start no more."""
        self.draining.set()

    def cancel(self) -> None:
        """Stop the running deployment and its engine."""
        if self.running is not None:
            stream = self.running[1]
            self.running = None
            stream.close()
