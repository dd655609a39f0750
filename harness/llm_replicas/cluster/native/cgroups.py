"""Control groups of a cluster, on machines with cgroup v1, v2 or both."""

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_replicas.cluster.native.journal import Journal
from llm_replicas.errors import EnvironmentProblem

# What kubelet insists on.
NEEDED = ("cpu", "cpuset", "memory", "pids")
# With v2 it also asks for these, and stops when one is missing.
NEEDED_V2 = (*NEEDED, "io", "hugetlb")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup tree. v1 has one for each controller, v2 one for all of them."""

    mount: Path
    version: int
    controllers: tuple[str, ...]


def parse_hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Read the cgroup trees from the text of /proc/self/mountinfo."""
    found: dict[Path, Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mount = Path(before.split()[4])
        if kind == "cgroup2":
            found[mount] = Hierarchy(mount, 2, ())
        elif kind == "cgroup":
            found[mount] = Hierarchy(mount, 1, tuple(o for o in options.split(",") if o not in ("rw", "ro")))
    return list(found.values())


def hierarchies() -> list[Hierarchy]:
    """Return this machine's cgroup trees."""
    trees = []
    for tree in parse_hierarchies(Path("/proc/self/mountinfo").read_text()):
        offered = tree.mount / "cgroup.controllers"
        if tree.version == 2 and offered.exists():
            trees.append(Hierarchy(tree.mount, 2, tuple(offered.read_text().split())))
        else:
            trees.append(tree)
    return trees


def missing_controllers(trees: list[Hierarchy]) -> list[str]:
    """Return the controllers that kubelet needs and this machine does not offer."""
    offered = {name for tree in trees for name in tree.controllers}
    needed = NEEDED_V2 if all(tree.version == 2 for tree in trees) else NEEDED
    return [name for name in needed if name not in offered]


def make(name: str, journal: Journal) -> list[Path]:
    """Make the group /NAME in every tree, with its parents; returns the folders."""
    return [_make_in(tree, Path(name), journal) for tree in hierarchies()]


def _make_in(tree: Hierarchy, name: Path, journal: Journal) -> Path:
    folder = tree.mount
    for part in name.parts:
        if tree.version == 2:
            _hand_down(folder, tree, journal)
        folder /= part
        if not folder.exists():
            journal.record("cgroup", path=str(folder))
            folder.mkdir()
        if tree.version == 1 and "cpuset" in tree.controllers:
            for setting in ("cpuset.cpus", "cpuset.mems"):
                (folder / setting).write_text((folder.parent / setting).read_text())
    return folder


def _hand_down(folder: Path, tree: Hierarchy, journal: Journal) -> None:
    """Let the groups below a v2 folder use the controllers that kubelet needs."""
    switch = folder / "cgroup.subtree_control"
    lacking = [c for c in NEEDED_V2 if c in tree.controllers and c not in switch.read_text().split()]
    if not lacking:
        return
    if folder == tree.mount:
        journal.record("cgroup-controllers", path=str(folder), controllers=lacking)
    try:
        switch.write_text(" ".join(f"+{name}" for name in lacking))
    except OSError as error:
        raise EnvironmentProblem(
            f"{switch} does not take {', '.join(lacking)}: {error.strerror}; the group holds processes "
            "itself, as in a "
            "container without a cgroup namespace of its own: run on the machine itself, or with "
            "--cgroupns=private"
        ) from error


def below(name: str, folder: str) -> list[Path]:
    """Make a group FOLDER below /NAME in every tree, for processes; returns the folders."""
    groups = []
    for tree in hierarchies():
        group = tree.mount / name / folder
        group.mkdir(exist_ok=True)
        if tree.version == 1 and "cpuset" in tree.controllers:
            for setting in ("cpuset.cpus", "cpuset.mems"):
                (group / setting).write_text((group.parent / setting).read_text())
        groups.append(group)
    return groups


def remove_everywhere(name: str) -> None:
    """Remove /NAME and everything below it from every tree; its processes must be dead."""
    for tree in hierarchies():
        remove(tree.mount / name)


def processes(name: str) -> set[int]:
    """Return every process in /NAME and below, in any tree."""
    found: set[int] = set()
    for tree in hierarchies():
        for members in (tree.mount / name).glob("**/cgroup.procs"):
            try:
                found.update(int(word) for word in members.read_text().split())
            except OSError:
                continue  # the group went away, or is a threaded one whose processes its parent lists
    return found


def freeze(name: str, seconds: float = 10.0) -> None:
    """Stop everything in /NAME and below, and wait until it has stopped."""
    _set_frozen(name, frozen=True, seconds=seconds)


def thaw(name: str, seconds: float = 10.0) -> None:
    """Let everything in /NAME and below run again."""
    _set_frozen(name, frozen=False, seconds=seconds)


def _set_frozen(name: str, *, frozen: bool, seconds: float) -> None:
    switch = next(_freezers(name), None)
    if switch is None:
        raise EnvironmentProblem("this machine has no cgroup freezer; nodes cannot be paused on it")
    if switch.name == "cgroup.freeze":
        switch.write_text("1" if frozen else "0")
        report, wanted = switch.parent / "cgroup.events", f"frozen {int(frozen)}"
    else:
        switch.write_text("FROZEN" if frozen else "THAWED")
        report, wanted = switch, "FROZEN" if frozen else "THAWED"
    deadline = time.monotonic() + seconds
    while wanted not in report.read_text():
        if time.monotonic() > deadline:
            raise EnvironmentProblem(f"{report} does not say {wanted!r} after {seconds:.0f} s; look at it and at dmesg")
        time.sleep(0.01)  # the kernel stops a process when it next leaves the kernel


def _freezers(name: str) -> Iterator[Path]:
    trees = hierarchies()
    for tree in trees:
        if tree.version == 1 and "freezer" in tree.controllers:
            yield tree.mount / name / "freezer.state"
    for tree in trees:
        if tree.version == 2 and (tree.mount / name / "cgroup.freeze").exists():
            yield tree.mount / name / "cgroup.freeze"


def remove(folder: Path, seconds: float = 10.0) -> None:
    """Remove a group and all groups below it; their processes must be dead."""
    deadline = time.monotonic() + seconds
    while folder.exists():
        try:
            for child in sorted(folder.glob("**/"), reverse=True):
                child.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise EnvironmentProblem(f"control group {folder} cannot be removed: {error.strerror}") from error
            time.sleep(0.02)  # dead processes leave their group a moment after they are gone from /proc


def restore_controllers(folder: Path, controllers: list[str]) -> None:
    """Take back what was handed down from a v2 root; one that others use by now stays."""
    for name in controllers:
        try:
            (folder / "cgroup.subtree_control").write_text(f"-{name}")
        except OSError:
            continue
