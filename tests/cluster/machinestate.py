"""A picture of everything on this machine that a cluster could leave behind."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from llm_replicas.cluster.native.cgroups import hierarchies
from llm_replicas.cluster.native.network import MARK, mounts

Picture = dict[str, list[str]]

SYSCTLS = ("kernel", "vm", "fs", "net/ipv4", "net/core", "net/netfilter", "user")
# Settings that the kernel moves by itself; counters that nobody can write are not compared at all.
ROLLING = ("random/", "ns_last_pid", "sched_domain", "stat_refresh", "min_free", "lowmem")
# Folders whose direct content tells that somebody wrote where he should not.
FOLDERS = (
    "/run",
    "/run/lock",
    "/var/lib",
    "/var/log",
    "/tmp",
    "/opt",
    "/etc/cni",
    "/var/lib/cni",
    "/var/lib/kubelet",
)
# Image builds and other programs of the machine come and go on their own.
OTHERS = (
    "buildah",
    "containers",
    "pytest-",
    "tmp",
    "apt",
    "dpkg",
    "/run/mount",
    "/run/lock/",
    "python-",
    "uv-",
    "go-",
)
# What the first cluster changes for all of them and the last one puts back
# (tests/unit/cluster/test_native_hostwide.py);
# other clusters may stand while these tests run.
SHARED = ("/run/llm-replicas", "/run/netns", "inotify/max_user_instances")


def picture(own_ids: tuple[str, ...] = ()) -> Picture:
    """Take a picture. `own_ids` are the clusters under test; others that run meanwhile are left out."""
    found = {
        "namespaces": sorted(_names(Path("/run/netns"))),
        "links": sorted(link["ifname"] for link in _ip("link", "show")),
        "addresses": sorted(
            f"{a.get('local')} {link['ifname']}" for link in _ip("addr", "show") for a in link.get("addr_info", [])
        ),
        "routes": sorted(f"{r.get('dst')} {r.get('gateway', '')} {r.get('dev')}" for r in _routes()),
        "mounts": sorted(str(mount) for mount in mounts()),
        "cgroups": sorted(_groups()),
        "controllers": sorted(
            f"{tree.mount} {(tree.mount / 'cgroup.subtree_control').read_text()}"
            for tree in hierarchies()
            if tree.version == 2
        ),
        "settings": sorted(_settings()),
        "files": sorted(name for folder in FOLDERS for name in _names(Path(folder), full=True)),
        "rules": sorted(_rules()),
        "processes": sorted(_processes(own_ids)),
    }
    return {kind: [line for line in lines if not _of_others(line, own_ids)] for kind, lines in found.items()}


def differences(before: Picture, after: Picture) -> list[str]:
    return [
        f"{kind}: {sign} {line}"
        for kind in before
        for sign, lines in (
            ("+", set(after[kind]) - set(before[kind])),
            ("-", set(before[kind]) - set(after[kind])),
        )
        for line in sorted(lines)
    ]


def _of_others(line: str, own_ids: tuple[str, ...]) -> bool:
    if any(own in line for own in own_ids):
        return False
    return "llmr-" in line or any(word in line for word in (*OTHERS, *SHARED))


def _names(folder: Path, full: bool = False) -> list[str]:
    try:
        return [str(path) if full else path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _ip(*arguments: str) -> list[dict[str, object]]:
    said = subprocess.run(["ip", "-j", *arguments], capture_output=True, text=True, check=True).stdout
    return json.loads(said or "[]")


def _routes() -> list[dict[str, object]]:
    return _ip("-4", "route", "show", "table", "all") + _ip("-6", "route", "show")


def _groups() -> Iterator[str]:
    for tree in hierarchies():
        yield from (str(entry) for entry in tree.mount.iterdir() if entry.is_dir())


def _settings() -> Iterator[str]:
    for area in SYSCTLS:
        for path in Path("/proc/sys", area).rglob("*"):
            name = str(path)
            # A link brings its own folder of settings; links are compared by name.
            if "/conf/" in name or "/neigh/" in name or any(word in name for word in ROLLING):
                continue
            if path.is_dir() or not path.stat().st_mode & 0o222:
                continue
            try:
                yield f"{name} = {path.read_text().strip()}"
            except (OSError, UnicodeDecodeError):
                continue


def _rules() -> list[str]:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout.splitlines()


def _processes(own_ids: tuple[str, ...]) -> Iterator[str]:
    """Processes that bear the mark of a cluster under test, or sit in its control groups."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            groups = (folder / "cgroup").read_text()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        for own in own_ids:
            if f"{MARK}={own}" in environment or f"llmr-{own}" in groups:
                yield f"{own} {folder.name} {command}"
