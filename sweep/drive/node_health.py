"""Which nodes are bad: those on which different deployments fail that fail nowhere else."""


class NodeRecord:
    """What failed where, to tell a bad node from a bad deployment."""

    def __init__(self) -> None:
        self.failed: dict[str, set[str]] = {}  # deployment -> nodes on which it failed since it last went well there

    def failure(self, deployment_id: str, node_id: str) -> None:
        self.failed.setdefault(deployment_id, set()).add(node_id)

    def success(self, node_id: str) -> None:
        """A trial went well there: what failed there before was not the node's fault."""
        for nodes in self.failed.values():
            nodes.discard(node_id)

    def blamed(self, node_id: str) -> list[str]:
        """The deployments that failed on this node and on no other."""
        return [deployment_id for deployment_id, nodes in self.failed.items() if nodes == {node_id}]

    def bad(self) -> set[str]:
        """The nodes on which two different deployments failed, and on no other."""
        nodes = set().union(*self.failed.values())
        return {node_id for node_id in nodes if len(self.blamed(node_id)) >= 2}
