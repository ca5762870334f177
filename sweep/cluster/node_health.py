"""The health of nodes. A node is quarantined if it is broken, or if deployments fail on it and on no other node."""

from collections.abc import Callable
from typing import NamedTuple

from sweep.drive.policy import DEPLOYMENTS
from sweep.node.events import Placed


class Review(NamedTuple):
    """Changes to the quarantine, as node ids."""

    restored: set[str]
    quarantined: set[str]


class NodeHealth:
    """The failures on each node, and the nodes that are quarantined because of them."""

    def __init__(self) -> None:
        self.failures: dict[str, set[str]] = {}  # deployment -> nodes on which it failed since the node's last success
        self.quarantined: set[str] = set()
        self.broken: set[str] = set()  # nodes that an engine reported as broken, since the node's last success
        self.addresses: dict[str, str] = {}  # addresses of nodes with a failure, by id

    def record_failure(self, deployment_id: str, node: Placed, broken: bool = False) -> None:
        """Record a failure that may be the node's fault; `broken`: the engine reports the node as broken."""
        self.broken |= {node.node_id} if broken else set()
        self.failures.setdefault(deployment_id, set()).add(node.node_id)
        self.addresses[node.node_id] = node.address

    def record_success(self, node: Placed) -> None:
        """Forget the failures on a node: a trial succeeded there, so the node was not at fault."""
        self.broken.discard(node.node_id)
        for nodes in self.failures.values():
            nodes.discard(node.node_id)

    def failed_only_on(self, node_id: str) -> list[str]:
        """Return the deployments that failed on this node and on no other."""
        return [deployment_id for deployment_id, nodes in self.failures.items() if nodes == {node_id}]

    def suspects(self) -> set[str]:
        """Return the nodes to blame for deployments that failed on them and nowhere else."""
        nodes = set().union(*self.failures.values())
        failures = {node_id: len(self.failed_only_on(node_id)) for node_id in nodes}
        return {node_id for node_id, n in failures.items() if n >= DEPLOYMENTS or (n and node_id in self.broken)}

    def review(self, has_nodes_besides: Callable[[set[str]], bool]) -> Review:
        """Quarantine suspects as long as another node remains, and restore nodes that are no longer suspect."""
        suspects = self.suspects()
        before = self.quarantined
        self.quarantined = before & suspects
        for node_id in suspects - before:
            if has_nodes_besides(self.quarantined | {node_id}):
                self.quarantined.add(node_id)
        return Review(before - suspects, self.quarantined - before)
