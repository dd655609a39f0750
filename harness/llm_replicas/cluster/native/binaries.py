"""Where the programs are that a cluster runs on: in one folder, some of them else in PATH."""

import shutil
from dataclasses import dataclass
from pathlib import Path

# Built by this project's tool pins; versions matter, so PATH is not searched.
BUILT = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "coredns",
    "ptp",
    "host-local",
    "loopback",
    "portmap",
)
# Taken from the folder first, so that a packed folder works on a machine without a package manager.
SYSTEM = {
    "etcd": "etcd-server",
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "umount": "mount",
}
# Nothing of the cluster calls these itself: kube-proxy speaks netlink, a human wants them for looking.
OPTIONAL = frozenset({"conntrack"})


@dataclass(frozen=True)
class Binaries:
    """A folder of binaries and what was found in it and in PATH."""

    folder: Path
    paths: dict[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]

    def folders(self) -> list[Path]:
        """Return the folders in which programs and their libraries lie, links followed."""
        found = {self.folder} | {self.paths[name].resolve().parent for name in BUILT}
        # A packed folder holds wrappers that call what lies beside it.
        beside = (self.folder.parent / name for name in ("programs", "lib"))
        return sorted(found | {folder for folder in beside if (self.folder / "etcd").exists() and folder.is_dir()})

    @property
    def search_path(self) -> str:
        """PATH for the cluster's processes: the folder, then the usual places."""
        return f"{self.folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(folder: Path) -> tuple[Binaries, list[str]]:
    """Look for every program; returns what was found and one line for each that is missing."""
    paths: dict[str, Path] = {}
    missing: list[str] = []
    for name in (*BUILT, *SYSTEM):
        found = shutil.which(name, path=str(folder))
        if found is None and name in SYSTEM:
            found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
        if found is not None:
            paths[name] = Path(found).absolute()
        elif name in SYSTEM and name not in OPTIONAL:
            missing.append(
                f"{name} is neither in {folder} nor in PATH; install the package {SYSTEM[name]} "
                f"(apt-get install {SYSTEM[name]}) or put the program into the folder"
            )
        elif name in BUILT:
            missing.append(f"{name} is not in {folder}; build the tools first (ci/llm-replicas tools does)")
    return Binaries(folder.absolute(), paths), missing
