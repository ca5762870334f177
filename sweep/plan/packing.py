"""The scheduling policy: which launch starts next, and on which node. It uses neither Ray nor a clock.

The driver and the simulation (`simulate`) run the same code. Launches form blocks, one for each replicate. Each block
holds every deployment once, so that a drift over the night affects all deployments alike. Earlier blocks start first,
each in random order. A block is a priority, not a barrier: no GPU is idle while any pending launch fits on it. In the
last block (the only block if each launch has all replicates) the launch with the most GPU-seconds goes first: list
scheduling by longest processing time (R. L. Graham 1969), with the GPUs as width. For mixes of 1 to 4 GPUs this
exceeded the lower bound by 0 to 8%; "most GPUs, then longest" exceeded it by up to 80%, because a long launch on one
GPU had to wait for every short launch on four. No more launches are in flight than there are slots, so that pending
launches can still be reordered or dropped.

A launch runs on one node. Only replicas that no node can hold together are divided, in equal shares, over the fewest
nodes that can hold a share.
"""

import heapq
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from backends.base import Host
from sweep.plan.plan import Deployment

SlotKind = tuple[int, str | None, int]  # GPUs of a slot, their type, and the parts that may be on different nodes

LOOKAHEAD = 32  # maximum number of pending launches for which an autoscaler adds nodes


class Node(NamedTuple):
    """A node of the cluster and its resources."""

    address: str
    gpus: int
    cpus: int
    accelerators: tuple[str, ...]
    node_id: str = ""
    facts: Host | None = None  # None: unknown, e.g. for a node that an autoscaler has not started yet


class Queue(NamedTuple):
    """The properties of a launch that determine where it may start. Launches with equal properties share a queue."""

    kind: SlotKind
    avoid: frozenset[str]
    endpoint: str | None


class Need(NamedTuple):
    """The resources that a launch needs, on one node or (for replicas) in equal shares on several."""

    key: str
    gpus: int  # 0: a whole node, since engines on the same CPU would disturb each other
    accelerator: str | None  # None: any
    seconds: float  # expected duration; affects only the order
    block: int = 0  # earlier blocks go first
    place: float = 0.0  # position in its block, unless the block is the last
    avoid: frozenset[str] = frozenset()  # ids of nodes where it failed; avoided if another node can run it
    endpoint: str | None = None  # URL of a running endpoint, used by one client at a time
    gpu_keys: tuple[str, ...] = ()  # keys to lower so that it needs fewer GPUs
    replicas: int = 1  # engines of which each may run on another node

    @property
    def kind(self) -> SlotKind:
        """The properties that determine which nodes fit."""
        return self.gpus, self.accelerator, self.replicas

    def parts(self, nodes: Iterable[Node]) -> int:
        """Return the number of nodes that the launch is divided over: the fewest of which one fits an equal share."""
        nodes = list(nodes)
        divisors = (parts for parts in range(1, self.replicas + 1) if self.replicas % parts == 0)
        return next((parts for parts in divisors if any(can_run(node, self, parts) for node in nodes)), 1)

    @property
    def queue(self) -> Queue:
        """The queue that the launch waits in."""
        return Queue(self.kind, self.avoid, self.endpoint)


class Start(NamedTuple):
    """The decision to start a launch on a node, or on several: `node_id` and those of its further replicas."""

    key: str
    node_id: str
    partners: tuple[str, ...] = ()


def need_of(launch: Deployment, seconds: float = 0.0, place: float = 0.0) -> Need:
    """Return what a launch needs if it takes so many seconds; `place` is its position in its block."""
    backend = launch.backend
    need = Need(launch.launch_key, launch.gpu_count, launch.accelerator, seconds, launch.replicate or 0, place)
    return need._replace(endpoint=backend.url, gpu_keys=backend.gpu_keys, replicas=backend.replicas)


def can_run(node: Node, need: Need, parts: int = 1) -> bool:
    """Return whether the launch, or one of its equal parts, fits on the node if the node is idle."""
    return node.gpus * parts >= need.gpus and (need.accelerator is None or need.accelerator in node.accelerators)


def preferred(need: Need, nodes: Sequence[Node]) -> Sequence[Node]:
    """Return the nodes that a launch may start on; nodes where it failed only if no other node could run it."""
    if not need.avoid:
        return nodes
    parts = need.parts(nodes)
    others = [node for node in nodes if node.node_id not in need.avoid and can_run(node, need, parts)]
    return others if len(others) >= parts else nodes


def infeasible(need: Need, nodes: Sequence[Node]) -> str | None:
    """Return why a launch fits none of these nodes, even if idle, with the remedy, in one line; None if it fits."""
    parts = need.parts(nodes)
    able = [node for node in nodes if can_run(node, need, parts)]
    if len(able) >= parts or any(not node.node_id for node in able):  # an autoscaler starts as many as are needed
        return None
    if need.accelerator and not any(need.accelerator in node.accelerators for node in nodes):
        there = ", ".join(sorted({name for node in nodes for name in node.accelerators})) or "none"
        return f"no node has an accelerator {need.accelerator} (found: {there}): add one, or set hardware.accelerator"
    most = max((node.gpus for node in nodes), default=0)
    kind = f" {need.accelerator}" if need.accelerator else ""
    remedy = f"add one, or lower {' or '.join(need.gpu_keys)}" if need.gpu_keys else "add one"
    if parts > 1:
        have = "only 1 has" if len(able) == 1 else f"only {len(able)} have"
        share = f"{need.gpus // parts} on each of {parts} nodes, and {have} that many"
        return f"needs {need.gpus}{kind} GPUs on one node, or {share}: {remedy.replace('one', 'nodes', 1)}"
    engine = f", {need.gpus // need.replicas} for each engine," if need.replicas > 1 else ""
    return f"needs {need.gpus}{kind} GPUs on one node{engine} and no node has more than {most}: {remedy}"


def start_order(needs: Iterable[Need]) -> list[Need]:
    """Return the needs by priority: block by block; in the last block, most GPU-seconds first, then most GPUs."""
    needs = list(needs)
    last = max((need.block for need in needs), default=0)

    def priority(need: Need) -> tuple[float, ...]:
        return need.block, need.place if need.block < last else -max(1, need.gpus) * need.seconds, -need.gpus

    return sorted(needs, key=lambda need: (*priority(need), need.key))


class Packer:
    """The pending and running launches, and the choice of the launch that starts next."""

    def __init__(self, needs: Iterable[Need]) -> None:
        self.pending: dict[Queue, list[tuple[int, Need]]] = {}  # a heap for each queue
        self.running: dict[str, tuple[tuple[str, ...], Need]] = {}  # key -> ids of its nodes
        self.used: Counter[str] = Counter()  # GPUs in use, by node id
        self.tenants: Counter[str] = Counter()  # number of running launches, by node id
        self.front = 0
        ranked = start_order(needs)
        self.needs = {need.key: need for need in ranked}
        for rank, need in enumerate(ranked, start=1):
            self._push(rank, need)

    def _push(self, rank: int, need: Need) -> None:
        heapq.heappush(self.pending.setdefault(need.queue, []), (rank, need))

    def requeue(self, key: str, avoid: frozenset[str] = frozenset()) -> None:
        """Put a launch first; it avoids the nodes in `avoid` if another node could run it."""
        self.front -= 1
        self.needs[key] = self.needs[key]._replace(avoid=avoid)
        self._push(self.front, self.needs[key])

    def start(
        self, nodes: Sequence[Node], kinds: Container[SlotKind] | None = None, most: int | None = None
    ) -> list[Start]:
        """Choose up to `most` launches of `kinds` (None: all) to start now on these nodes; they run until `release`."""
        starts: list[Start] = []
        while (most is None or len(starts) < most) and (slot := self._next_slot(nodes, kinds)):
            queue, chosen = slot
            _, need = heapq.heappop(self.pending[queue])
            self.running[need.key] = (chosen, need)
            for node_id in chosen:
                self.used[node_id] += need.gpus // len(chosen)
                self.tenants[node_id] += 1
            starts.append(Start(need.key, chosen[0], chosen[1:]))
        return starts

    def _next_slot(
        self, nodes: Sequence[Node], kinds: Container[SlotKind] | None
    ) -> tuple[Queue, tuple[str, ...]] | None:
        """Return the queue with the highest-priority need whose nodes are free, and the nodes' ids."""
        busy = {need.endpoint for _, need in self.running.values()} - {None}
        for queue, heap in sorted(self.pending.items(), key=lambda item: item[1][0][0] if item[1] else 0):
            if heap and (kinds is None or queue.kind in kinds) and queue.endpoint not in busy:
                first = heap[0][1]
                if chosen := self._free_nodes(first, preferred(first, nodes)):
                    return queue, tuple(node.node_id for node in chosen)
        return None

    def _free_nodes(self, need: Need, nodes: Sequence[Node]) -> Sequence[Node]:
        """Return the fitting nodes with the fewest free GPUs (best fit), which keeps room for large launches."""
        if need.gpus:
            parts = need.parts(nodes)
            candidates = [node for node in self.left(nodes) if can_run(node, need, parts)]
            fullest = sorted(candidates, key=lambda node: node.gpus)
            return fullest[:parts] if len(fullest) >= parts else []
        cpu_nodes = [node for node in nodes if not node.gpus] or nodes
        return [node for node in cpu_nodes if not self.tenants[node.node_id] and can_run(node, need)][:1]

    def left(self, nodes: Iterable[Node]) -> list[Node]:
        """Return the nodes with only the GPUs that no running launch uses."""
        return [node._replace(gpus=node.gpus - self.used[node.node_id]) for node in nodes]

    def add(self, need: Need) -> None:
        """Queue a launch that was not planned, after all others."""
        self.needs[need.key] = need
        self._push(len(self.needs), need)

    def has_room(self, need: Need, nodes: Sequence[Node]) -> bool:
        """Return whether a launch could start on these nodes now."""
        busy = {other.endpoint for _, other in self.running.values()} - {None}
        return need.endpoint not in busy and bool(self._free_nodes(need, nodes))

    def release(self, key: str) -> None:
        """Free the slot of a running launch."""
        chosen, need = self.running.pop(key)
        for node_id in chosen:
            self.used[node_id] -= need.gpus // len(chosen)
            self.tenants[node_id] -= 1

    def unschedulable(self, nodes: Sequence[Node]) -> list[Need]:
        """Return the pending needs that fit none of these nodes, even if idle."""
        return [need for heap in self.pending.values() if heap and infeasible(heap[0][1], nodes) for _, need in heap]

    def first_of_each_kind(self) -> list[Need]:
        """Return the next pending need of each kind."""
        return [heap[0][1] for heap in self.pending.values() if heap]

    def next_needs(self, nodes: Sequence[Node]) -> list[Need]:
        """Return the next pending needs, as many as an autoscaler should add nodes for."""
        unschedulable = sorted(heap[0] for heap in self.pending.values() if heap and infeasible(heap[0][1], nodes))
        heaps = [heapq.nsmallest(LOOKAHEAD, heap) for heap in self.pending.values()]
        rest = heapq.nsmallest(LOOKAHEAD, (entry for heap in heaps for entry in heap if entry not in unschedulable))
        return [need for _, need in [*unschedulable, *rest][:LOOKAHEAD]]

    def drop(self, needs: Iterable[Need]) -> None:
        """Remove pending launches."""
        keys = {need.key for need in needs}
        for queue, heap in self.pending.items():
            self.pending[queue] = [entry for entry in heap if entry[1].key not in keys]
            heapq.heapify(self.pending[queue])

    def __len__(self) -> int:
        return sum(len(heap) for heap in self.pending.values())
