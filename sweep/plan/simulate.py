"""A simulated run of a plan on a cluster: the scheduler's policy (`packing`) with a simulated clock."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from sweep.plan.packing import Need, Node, Packer


class Span(NamedTuple):
    """The time and node of one launch, in seconds from the start."""

    key: str
    node_id: str
    begin: float
    end: float
    after: str | None  # the launch whose end let this one start


class SimulatedRun(NamedTuple):
    """The course of a run on a cluster."""

    spans: list[Span]  # in starting order
    makespan: float  # s
    gpu_seconds: float  # used by launches; on nodes without GPUs, node-seconds
    capacity: int  # number of GPUs, or of nodes without GPUs

    @property
    def bound(self) -> float:
        """The lower bound on the duration, in seconds: all GPUs busy until the end, or the longest launch."""
        longest = max((span.end - span.begin for span in self.spans), default=0.0)
        return max(self.gpu_seconds / max(1, self.capacity), longest)

    @property
    def busy(self) -> float:
        """The fraction of the cluster's GPU time that is used, 0..1."""
        return self.gpu_seconds / (self.makespan * self.capacity) if self.makespan else 1.0

    def critical_path(self) -> list[Span]:
        """Return the chain of launches that sets the end: the last to finish, the launch it waited for, and so on."""
        by_key = {span.key: span for span in self.spans}
        path: list[Span] = []
        last = max(self.spans, key=lambda span: span.end, default=None)
        while last is not None:
            path.insert(0, last)
            last = by_key[last.after] if last.after else None
        return path


def simulate(needs: Sequence[Need], nodes: Sequence[Node]) -> SimulatedRun:
    """Simulate launches that take exactly their expected time; launches that fit on no node are skipped."""
    packer = Packer(needs)
    packer.drop(packer.unschedulable(nodes))
    seconds = {need.key: need.seconds for need in needs}
    spans: list[Span] = []
    ends: list[tuple[float, str]] = []
    now, ended = 0.0, None
    while True:
        for key, node_id, _ in packer.start(nodes):
            spans.append(Span(key, node_id, now, now + seconds[key], ended))
            heapq.heappush(ends, (now + seconds[key], key))
        if not ends:
            break
        now, ended = heapq.heappop(ends)
        packer.release(ended)
    placed = {span.key for span in spans}
    gpu_seconds = sum(max(1, need.gpus) * need.seconds for need in needs if need.key in placed)
    capacity = sum(node.gpus for node in nodes) if any(need.gpus for need in needs) else len(nodes)
    return SimulatedRun(spans, now, gpu_seconds, capacity)
