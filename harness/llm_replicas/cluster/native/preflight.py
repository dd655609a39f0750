"""Whether this machine can carry a cluster; everything that stands in the way is told at once.

Each check returns what is wrong, or None: what was found, what is accepted, and the next step.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from llm_replicas.cluster.native import binaries, cgroups, hostwide
from llm_replicas.cluster.native.binaries import Binaries
from llm_replicas.errors import EnvironmentProblem

GIB = 1 << 30
# Control plane and one node's daemons, measured idle; and what images and pods of a gate need on disk.
MEMORY_CONTROL_PLANE = GIB
MEMORY_NODE = GIB // 4
DISK = 4 * GIB


def check(folder: Path, state_root: Path, nodes: int) -> Binaries:
    """Return the programs to run with, or raise one message with everything that is missing."""
    if problem := root_problem(os.geteuid()):
        raise EnvironmentProblem(f"this machine cannot carry a native cluster yet:\n  - {problem}")
    found, missing = binaries.find(folder)
    checks: list[Callable[[], str | None]] = [
        lambda: disk_problem(_existing(state_root), _free_disk(state_root)),
        lambda: memory_problem(available_memory(Path("/proc/meminfo").read_text()), nodes),
        lambda: controllers_problem(cgroups.missing_controllers(cgroups.hierarchies())),
        lambda: watchers_problem(_number(hostwide.WATCHERS), os.access(hostwide.WATCHERS, os.W_OK)),
    ]
    if "unshare" in found.paths and "mount" in found.paths:
        checks.append(lambda: overlay_problem(found["unshare"], state_root))
    if "unshare" in found.paths and "nft" in found.paths:
        checks.append(lambda: nftables_problem(found["unshare"], found["nft"]))
    if "unshare" in found.paths and "ip" in found.paths:
        checks.append(lambda: links_problem(found["unshare"], found["ip"]))
    problems = missing + [problem for problem in (one() for one in checks) if problem]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise EnvironmentProblem(f"this machine cannot carry a native cluster yet:\n{listed}")
    return found


def root_problem(user: int) -> str | None:
    """Namespaces, mounts and control groups are root's."""
    if user == 0:
        return None
    return f"running as user {user}; root is needed for namespaces, mounts and control groups: use sudo"


def disk_problem(folder: Path, free: int) -> str | None:
    """Images are unpacked once per node."""
    if free >= DISK:
        return None
    return (
        f"{free / GIB:.1f} GiB are free in {folder}; at least {DISK / GIB:.0f} GiB are needed: free some, or "
        "set "
        "LLM_REPLICAS_STATE to a folder on a larger disk"
    )


def memory_problem(available: int, nodes: int) -> str | None:
    """The control plane and each node's daemons need some before the first pod."""
    needed = MEMORY_CONTROL_PLANE + nodes * MEMORY_NODE
    if available >= needed:
        return None
    return (
        f"{available / GIB:.1f} GiB of memory are available; {nodes} nodes need {needed / GIB:.1f} GiB "
        "before the "
        "first pod: end something, or ask for fewer nodes"
    )


def controllers_problem(missing: list[str]) -> str | None:
    """Say which controllers kubelet would stop for."""
    if not missing:
        return None
    return (
        f"cgroup controllers missing: {', '.join(missing)}; kubelet needs {', '.join(cgroups.NEEDED)} (v2 "
        "also io and "
        "hugetlb): enable them in the kernel's command line (cgroup_enable=…), or run outside a container"
    )


def watchers_problem(limit: int, writable: bool) -> str | None:
    """Say whether kubelets and containerds can watch their files, now or once the limit is raised."""
    if limit >= hostwide.ENOUGH_WATCHERS or writable:
        return None
    return (
        f"fs.inotify.max_user_instances is {limit} and cannot be changed from here; at least "
        f"{hostwide.ENOUGH_WATCHERS} are needed: sysctl -w fs.inotify.max_user_instances={hostwide.ENOUGH_WATCHERS}"
    )


def overlay_problem(unshare: Path, state_root: Path) -> str | None:
    """Try an overlay mount, as containerd makes for each container, in a mount namespace of its own."""
    with tempfile.TemporaryDirectory(dir=_existing(state_root), prefix="overlay-") as folder:
        for name in ("lower", "upper", "work", "merged"):
            Path(folder, name).mkdir()
        script = (
            'cd "$1" && mount --no-mtab -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged'
            " && touch merged/file"
        )
        failure = _try([str(unshare), "--mount", "sh", "-c", script, "sh", folder])
    if failure is None:
        return None
    return (
        f"overlayfs cannot be mounted below {state_root} ({failure}); the kernel needs overlay (modprobe "
        "overlay), and "
        "the folder must not itself lie on overlayfs, as in a container: set LLM_REPLICAS_STATE to a folder "
        "on ext4, "
        "xfs or tmpfs"
    )


def nftables_problem(unshare: Path, nft: Path) -> str | None:
    """Try the rules that kube-proxy uses, in a network namespace of its own."""
    rules = (
        "add table ip probe; add chain ip probe nat { type nat hook prerouting priority -100; }; "
        "add map ip probe ports { type inet_proto . inet_service : verdict; }; "
        "add rule ip probe nat ct state new numgen random mod 2 vmap { 0 : accept, 1 : accept }"
    )
    failure = _try([str(unshare), "--net", str(nft), rules])
    if failure is None:
        return None
    return (
        f"nftables does not take NAT rules ({failure}); "
        "load nf_tables, nft_nat, nft_numgen (modprobe), or use a kernel with them"
    )


def links_problem(unshare: Path, ip: Path) -> str | None:
    """Try a bridge with a veth pair on it, as nodes hang on one, in a network namespace of its own."""
    script = '"$1" link add b0 type bridge && "$1" link add v0 type veth peer name v1 && "$1" link set v0 master b0'
    failure = _try([str(unshare), "--net", "sh", "-c", script, "sh", str(ip)])
    if failure is None:
        return None
    return f"bridge and veth links cannot be made ({failure}); load them: modprobe bridge veth"


def available_memory(meminfo: str) -> int:
    """Read MemAvailable, in bytes, from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _try(command: list[str]) -> str | None:
    """Run a probe; return None if it worked, else its own words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return "no answer in 20 s"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[0].strip() if lines else f"status {done.returncode}"


def _free_disk(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _number(path: Path) -> int:
    return int(path.read_text())
