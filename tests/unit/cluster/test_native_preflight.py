"""What a machine is told that cannot carry a cluster; each check with a machine that can and one that "
"cannot."""

import os
import shutil
from pathlib import Path

import pytest

from llm_replicas.cluster.native import binaries, preflight
from llm_replicas.cluster.native.cgroups import NEEDED, Hierarchy, missing_controllers, parse_hierarchies
from llm_replicas.cluster.native.layout import Layout
from llm_replicas.cluster.native.preflight import GIB
from llm_replicas.cluster.native.shape import Shape
from llm_replicas.errors import EnvironmentProblem, UsageError

MOUNTINFO_V1 = """\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:7 - cgroup cgroup rw,cpuset
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684092k
"""


def fake_tool(folder: Path, name: str, script: str = "exit 0") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def full_folder(folder: Path) -> Path:
    for name in (*binaries.BUILT, *binaries.SYSTEM):
        fake_tool(folder, name)
    return folder


def test_root() -> None:
    assert preflight.root_problem(0) is None
    assert "use sudo" in (preflight.root_problem(1000) or "")


def test_disk() -> None:
    assert preflight.disk_problem(Path("/state"), preflight.DISK) is None
    assert "0.5 GiB are free in /state; at least 4 GiB" in (preflight.disk_problem(Path("/state"), GIB // 2) or "")


def test_memory() -> None:
    assert preflight.memory_problem(4 * GIB, nodes=3) is None
    assert "ask for fewer nodes" in (preflight.memory_problem(GIB, nodes=3) or "")
    assert preflight.available_memory("MemTotal: 9 kB\nMemAvailable:   2048 kB\n") == 2 << 20


def test_inotify() -> None:
    assert preflight.watchers_problem(128, writable=True) is None
    assert preflight.watchers_problem(1024, writable=False) is None
    assert "sysctl -w fs.inotify.max_user_instances=1024" in (preflight.watchers_problem(128, writable=False) or "")


def test_controllers() -> None:
    assert preflight.controllers_problem([]) is None
    assert "controllers missing: hugetlb" in (preflight.controllers_problem(["hugetlb"]) or "")


def test_cgroup_trees_are_read_from_mountinfo() -> None:
    trees = parse_hierarchies(MOUNTINFO_V1)

    assert [(tree.mount.name, tree.version) for tree in trees] == [("cpu", 1), ("cpuset", 1), ("unified", 2)]
    assert trees[0].controllers == ("cpu", "cpuacct")


def test_v1_needs_four_controllers_and_v2_two_more() -> None:
    one = Hierarchy(Path("/one"), 1, NEEDED)
    two = Hierarchy(Path("/two"), 2, NEEDED)

    assert missing_controllers([one]) == []
    assert missing_controllers([one, Hierarchy(Path("/unified"), 2, ())]) == []
    assert missing_controllers([two]) == ["io", "hugetlb"]


@pytest.mark.parametrize(
    ("check", "tool"), [("overlay_problem", "mount"), ("nftables_problem", "nft"), ("links_problem", "ip")]
)
def test_a_kernel_that_refuses_a_probe_is_quoted(tmp_path: Path, check: str, tool: str) -> None:
    refusing = fake_tool(tmp_path, "unshare", "echo 'Operation not supported' >&2; exit 1")
    willing = fake_tool(tmp_path, "willing")
    arguments = [tmp_path] if tool == "mount" else [fake_tool(tmp_path, tool)]

    assert "Operation not supported" in getattr(preflight, check)(refusing, *arguments)
    assert getattr(preflight, check)(willing, *arguments) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="probes make namespaces, which takes root")
@pytest.mark.skipif(not shutil.which("nft"), reason="nftables is not installed")
def test_the_probes_work_on_this_machine(tmp_path: Path) -> None:
    tools = {name: Path(shutil.which(name) or name) for name in ("unshare", "nft", "ip")}

    assert preflight.overlay_problem(tools["unshare"], tmp_path) is None
    assert preflight.nftables_problem(tools["unshare"], tools["nft"]) is None
    assert preflight.links_problem(tools["unshare"], tools["ip"]) is None


def test_a_full_folder_misses_nothing(tmp_path: Path) -> None:
    found, missing = binaries.find(full_folder(tmp_path))

    assert missing == []
    assert found["ip"] == tmp_path / "ip"


def test_missing_programs_are_named_with_their_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_folder(tmp_path)
    (tmp_path / "kubelet").unlink()
    (tmp_path / "runc").unlink()
    monkeypatch.setattr(shutil, "which", lambda name, path="": str(p) if (p := Path(path, name)).exists() else None)

    _, missing = binaries.find(tmp_path)

    assert len(missing) == 2
    assert "kubelet is not in" in missing[0]
    assert "apt-get install runc" in missing[1]


def test_all_problems_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_folder(tmp_path)
    (tmp_path / "kubelet").unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(preflight, "_free_disk", lambda _folder: 0)
    monkeypatch.setattr(preflight, "available_memory", lambda _text: 0)

    with pytest.raises(EnvironmentProblem, match=r"(?s)kubelet is not in.*GiB are free.*GiB of memory"):
        preflight.check(tmp_path, tmp_path, nodes=3)


def test_without_root_only_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(EnvironmentProblem, match="running as user 1000"):
        preflight.check(tmp_path, tmp_path, nodes=3)


@pytest.mark.parametrize("name", ["", "Big", "-a", "a-", "a_b", "a" * 31])
def test_a_bad_cluster_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cluster name"):
        Layout(name, tmp_path)


def test_clusters_of_one_name_in_two_state_folders_have_two_ids(tmp_path: Path) -> None:
    assert Layout("dev", tmp_path / "a").short_id != Layout("dev", tmp_path / "b").short_id


def test_link_names_fit_the_kernel(tmp_path: Path) -> None:
    assert len(f"llmr-{Layout('a' * 30, tmp_path).short_id}") <= 15


def test_a_shape_is_checked() -> None:
    assert Shape.checked(2, ["a"], {"node-2": {"x/y": 1}}).zone(2) == "a"
    with pytest.raises(UsageError, match="nodes: 0"):
        Shape.checked(0, [], None)
    with pytest.raises(UsageError, match="no node node-3; accepted: node-1, node-2"):
        Shape.checked(2, [], {"node-3": {"x/y": 1}})
