"""Which deployment starts next, and on which node: the policy, free of Ray and of clocks.

The driver and the simulation (`simulate`) run this very code. No GPU idles while a deployment that fits it waits; of
those that fit, the one that takes the most GPU-seconds goes first (list scheduling by longest processing time, R. L.
Graham 1969, with the GPUs as width). Over mixes of 1 to 4 GPUs that ended 0 to 8 % after the lower bound where
"most GPUs, then longest" took up to 80 % more: a long deployment of one GPU must not wait for every short one of four.
Only so much is in flight as there are places: what waits can still be reordered or dropped.
"""

import heapq
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

Kind = tuple[int, str | None]  # of place: GPUs on one node, and their type

AHEAD = 32  # waiting deployments that an autoscaler is told of


class Node(NamedTuple):
    """What a node of the cluster offers."""

    address: str
    gpus: int
    cpus: int
    accelerators: tuple[str, ...]
    node_id: str = ""


class Need(NamedTuple):
    """What a deployment takes, all of it on one node."""

    key: str
    gpus: int  # 0: a node that it has to itself, since engines beside each other on a CPU would measure each other
    accelerator: str | None  # None: any
    seconds: float  # expected; only the order depends on it

    @property
    def kind(self) -> Kind:
        """What of it decides which nodes could hold it."""
        return self.gpus, self.accelerator


class Start(NamedTuple):
    """Start this deployment on this node."""

    key: str
    node_id: str


class Unbegun(NamedTuple):
    """A node that lives has not begun what it was given to start: other jobs of the same cluster keep it busy."""

    reason: str  # one line


def could_hold(node: Node, need: Need) -> bool:
    """Whether the node would do if nothing ran on it."""
    return node.gpus >= need.gpus and (need.accelerator is None or need.accelerator in node.accelerators)


def infeasible(need: Need, nodes: Sequence[Node]) -> str | None:
    """Why none of these nodes can ever hold it, with the remedy, in one line; None if one can."""
    if any(could_hold(node, need) for node in nodes):
        return None
    if need.accelerator and not any(need.accelerator in node.accelerators for node in nodes):
        there = ", ".join(sorted({name for node in nodes for name in node.accelerators})) or "none"
        return f"no node has an accelerator {need.accelerator} (there: {there}): add one, or set hardware.accelerator"
    most = max((node.gpus for node in nodes), default=0)
    kind = f" {need.accelerator}" if need.accelerator else ""
    return f"needs {need.gpus}{kind} GPUs on one node and no node has more than {most}: add one, or lower backend.gpus"


def by_rank(needs: Iterable[Need]) -> list[Need]:
    """The order in which needs are to start: most GPU-seconds first; most GPUs where nothing tells them apart."""
    return sorted(needs, key=lambda need: (-max(1, need.gpus) * need.seconds, -need.gpus, need.key))


class Packer:
    """Who waits, who runs where, and who is next."""

    def __init__(self, needs: Iterable[Need]) -> None:
        self.waiting: dict[Kind, list[tuple[int, Need]]] = {}  # a heap for each kind of place
        self.running: dict[str, tuple[str, Need]] = {}  # key -> node id
        self.used: Counter[str] = Counter()  # GPUs in use, by node id
        self.tenants: Counter[str] = Counter()  # deployments running, by node id
        self.front = 0
        for rank, need in enumerate(by_rank(needs), start=1):
            self._push(rank, need)

    def _push(self, rank: int, need: Need) -> None:
        heapq.heappush(self.waiting.setdefault(need.kind, []), (rank, need))

    def put_back(self, need: Need) -> None:
        """It was lost: it starts again before all others."""
        self.front -= 1
        self._push(self.front, need)

    def start(self, nodes: Sequence[Node], kinds: Container[Kind] | None = None) -> list[Start]:
        """What starts now on these living nodes, of any of `kinds` (None: all); it counts as running until `ended`."""
        starts: list[Start] = []
        while found := self._first(nodes, kinds):
            kind, node = found
            _, need = heapq.heappop(self.waiting[kind])
            self.running[need.key] = (node.node_id, need)
            self.used[node.node_id] += need.gpus
            self.tenants[node.node_id] += 1
            starts.append(Start(need.key, node.node_id))
        return starts

    def _first(self, nodes: Sequence[Node], kinds: Container[Kind] | None) -> tuple[Kind, Node] | None:
        """The kind whose first need ranks highest among those for which there is a place, and the place."""
        for kind, heap in sorted(self.waiting.items(), key=lambda item: item[1][0][0] if item[1] else 0):
            if heap and (kinds is None or kind in kinds) and (node := self._place(heap[0][1], nodes)):
                return kind, node
        return None

    def _place(self, need: Need, nodes: Sequence[Node]) -> Node | None:
        """The tightest place, so that room for the large ones stays together."""
        if need.gpus:
            fitting = [n for n in nodes if n.gpus - self.used[n.node_id] >= need.gpus and could_hold(n, need)]
            return min(fitting, key=lambda node: node.gpus - self.used[node.node_id], default=None)
        plain = [node for node in nodes if not node.gpus] or nodes
        return next((node for node in plain if not self.tenants[node.node_id] and could_hold(node, need)), None)

    def ended(self, key: str) -> None:
        """It runs no longer, for whatever reason."""
        node_id, need = self.running.pop(key)
        self.used[node_id] -= need.gpus
        self.tenants[node_id] -= 1

    def stranded(self, nodes: Sequence[Node]) -> list[Need]:
        """Those waiting that none of these nodes could hold even if it were idle."""
        return [need for heap in self.waiting.values() if heap and infeasible(heap[0][1], nodes) for _, need in heap]

    def heads(self) -> list[Need]:
        """The next of each kind that waits."""
        return [heap[0][1] for heap in self.waiting.values() if heap]

    def ahead(self, nodes: Sequence[Node]) -> list[Need]:
        """The next that wait, as many as it is worth having a cluster grow for.

        First one of each kind that none of these nodes could hold: for those there is no other hope.
        """
        stranded = sorted(heap[0] for heap in self.waiting.values() if heap and infeasible(heap[0][1], nodes))
        heaps = [heapq.nsmallest(AHEAD, heap) for heap in self.waiting.values()]
        others = heapq.nsmallest(AHEAD, (entry for heap in heaps for entry in heap if entry not in stranded))
        return [need for _, need in [*stranded, *others][:AHEAD]]

    def drop(self, needs: Iterable[Need]) -> None:
        """They wait no longer."""
        keys = {need.key for need in needs}
        for kind, heap in self.waiting.items():
            self.waiting[kind] = [entry for entry in heap if entry[1].key not in keys]
            heapq.heapify(self.waiting[kind])

    def __len__(self) -> int:
        return sum(len(heap) for heap in self.waiting.values())
