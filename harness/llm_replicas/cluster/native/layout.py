"""Where a cluster keeps its files, and the names it gives to things on the machine."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from llm_replicas.errors import UsageError

# Also a DNS label, because contexts and nodes are named after it.
NAME = re.compile(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?")


@dataclass(frozen=True)
class Layout:
    """Paths and names of one cluster."""

    name: str
    root: Path

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"cluster name {self.name!r}: accepted are 1 to 30 lower-case letters, digits and hyphens, "
                "beginning with a letter"
            )

    @property
    def short_id(self) -> str:
        """Six characters that tell this cluster from every other on the machine, also from other users'."""
        return hashlib.sha256(f"{self.root.resolve()}/{self.name}".encode()).hexdigest()[:6]

    @property
    def folder(self) -> Path:
        """Everything that this cluster writes."""
        return self.root / "clusters" / self.name

    @property
    def lock(self) -> Path:
        """The lock of whoever changes this cluster."""
        return self.root / "clusters" / f"{self.name}.lock"

    @property
    def journal(self) -> Path:
        """What the cluster has put on the machine outside its folder."""
        return self.folder / "journal.jsonl"

    @property
    def settings(self) -> Path:
        """How the cluster was asked for; written last, so it also says that `up` came to its end."""
        return self.folder / "settings.json"

    @property
    def kubeconfig(self) -> Path:
        """The owner's kubeconfig."""
        return self.folder / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.folder / "pki"

    @property
    def logs(self) -> Path:
        """One log for each process."""
        return self.folder / "log"

    @property
    def api_ready(self) -> Path:
        """Appears when the API server answers; nodes start their kubelet then."""
        return self.folder / "api-ready"

    def node(self, name: str) -> Path:
        """The files of one node."""
        return self.folder / "nodes" / name

    @property
    def cgroup(self) -> str:
        """The control group of the whole cluster."""
        return f"llmr-{self.short_id}"
