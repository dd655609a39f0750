"""Takes a cluster off the machine, from whatever state a run left it in.

Works from the journal alone, so it also removes what a killed `up` had only begun. Every step is fine with
the thing being gone already.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from llm_replicas.cluster.native import cgroups, hostwide, network, processes
from llm_replicas.cluster.native.journal import Journal
from llm_replicas.cluster.native.layout import Layout
from llm_replicas.cluster.native.locks import host_lock
from llm_replicas.cluster.native.nodeinit import unmount
from llm_replicas.errors import EnvironmentProblem


def remove(layout: Layout) -> None:
    """Remove every process, namespace, link, route, mount, control group and file of a cluster."""
    journal = Journal(layout.journal)
    _end_processes(layout, journal)
    for entry in reversed(journal.entries("link")):
        network.remove_link(_ip(journal), entry.facts["name"])  # and with it the route
    for entry in reversed(journal.entries("netns")):
        network.remove_namespace(entry.facts["name"])
    for entry in reversed(journal.entries("cgroup")):
        cgroups.remove(Path(entry.facts["path"]))
    for entry in reversed(journal.entries("cgroup-controllers")):
        cgroups.restore_controllers(Path(entry.facts["path"]), entry.facts["controllers"])
    _unmount_below(layout.folder)
    shutil.rmtree(layout.folder, ignore_errors=True)
    if layout.folder.exists():
        shutil.rmtree(layout.folder)  # a file appeared or vanished meanwhile: once more, and say what is wrong
    with host_lock():
        hostwide.restore()


def _ip(journal: Journal) -> Path:
    """Return iproute2's tool as `up` found it, else the one in PATH."""
    for entry in reversed(journal.entries("tool")):
        if entry.facts["name"] == "ip" and Path(entry.facts["path"]).exists():
            return Path(entry.facts["path"])
    return Path(shutil.which("ip") or "ip")


def _end_processes(layout: Layout, journal: Journal, seconds: float = 30.0) -> None:
    """Kill what the journal names, then whatever else belongs to the cluster, until nothing is left."""
    recorded = processes.recorded(journal)
    for process in recorded:
        processes.kill(process)
    deadline = time.monotonic() + seconds
    while left := set(_members(layout, journal)):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _thaw_all(journal)  # frozen processes die when they thaw
        if time.monotonic() > deadline:
            raise EnvironmentProblem(
                f"processes {sorted(left)} of cluster {layout.name} do not die; those in state D (ps) wait "
                "for the "
                "disk or the kernel: run down again once they are gone"
            )
        time.sleep(0.02)  # the kernel needs a moment to take processes apart
    processes.wait_gone(recorded, seconds)


def _members(layout: Layout, journal: Journal) -> Iterator[int]:
    """Every process in the cluster's control groups or network namespaces, or started on its behalf."""
    yield from (pid for pid in cgroups.processes(layout.cgroup) if processes.start_time(pid) is not None)
    namespaces = set()
    for entry in journal.entries("netns"):
        path = hostwide.NAMESPACES / entry.facts["name"]
        if path.exists():
            namespaces.add((path.stat().st_dev, path.stat().st_ino))
    mark = f"{network.MARK}={layout.short_id}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            status = (folder / "ns" / "net").stat()
            ours = (status.st_dev, status.st_ino) in namespaces
            ours = ours or mark in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or a kernel thread
        if ours and processes.start_time(int(folder.name)) is not None:
            yield int(folder.name)


def _thaw_all(journal: Journal) -> None:
    for entry in journal.entries("cgroup"):
        for switch, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            try:
                path = Path(entry.facts["path"], switch)
                if path.exists():
                    path.write_text(word)
            except OSError:
                continue


def _unmount_below(folder: Path) -> None:
    """Unmount what lies in a folder before it is deleted, or files of somebody else would be deleted."""
    for mount in reversed(network.mounts()):
        if mount.is_relative_to(folder):
            unmount(mount)
