"""What a native cluster was asked to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_replicas.cluster.native.subnet import MAX_NODES
from llm_replicas.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """Number of nodes, their zones in turn, and the extended resources of each named node."""

    nodes: int
    zones: list[str]
    extended_resources: dict[str, dict[str, int]]

    @classmethod
    def checked(
        cls, nodes: int, zones: Sequence[str], extended_resources: Mapping[str, Mapping[str, int]] | None
    ) -> "Shape":
        """Return a shape, or say what is wrong with it."""
        if not 1 <= nodes <= MAX_NODES:
            raise UsageError(f"nodes: {nodes}; accepted: 1 to {MAX_NODES}")
        shape = cls(nodes, list(zones), {node: dict(given) for node, given in (extended_resources or {}).items()})
        if strangers := sorted(set(shape.extended_resources) - set(shape.names)):
            raise UsageError(f"extended_resources: no node {', '.join(strangers)}; accepted: {', '.join(shape.names)}")
        return shape

    @property
    def names(self) -> list[str]:
        """The nodes' names, in order."""
        return [f"node-{number}" for number in range(1, self.nodes + 1)]

    def zone(self, number: int) -> str | None:
        """Zone of node 1, 2, …"""
        return self.zones[(number - 1) % len(self.zones)] if self.zones else None

    def resources(self, node: str) -> dict[str, int]:
        """Extended resources of a node."""
        return self.extended_resources.get(node, {})
