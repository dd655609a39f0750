"""What every part of a running cluster needs to know about its place on the machine."""

from dataclasses import dataclass

from llm_replicas.cluster.native.binaries import Binaries
from llm_replicas.cluster.native.journal import Journal
from llm_replicas.cluster.native.layout import Layout
from llm_replicas.cluster.native.network import MARK, Network


@dataclass(frozen=True)
class Site:
    """A cluster's files, programs, journal and network."""

    layout: Layout
    binaries: Binaries
    journal: Journal
    network: Network

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the cluster's processes: nothing of the caller's, least of all its proxies."""
        return {
            "PATH": self.binaries.search_path,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            MARK: self.layout.short_id,
        }
