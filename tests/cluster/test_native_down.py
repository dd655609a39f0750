"""After `down` the machine is as it was before `up`, whatever became of `up`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_replicas.cluster.native import NativeCluster
from llm_replicas.cluster.native.journal import Journal
from llm_replicas.cluster.native.layout import Layout
from tests.cluster.machinestate import differences, picture

pytestmark = pytest.mark.cluster

UP = """
import sys
from pathlib import Path
from llm_replicas.cluster.native import NativeCluster
name, tools, pause, state = sys.argv[1:]
NativeCluster(name, bin_dir=Path(tools), pause_archive=Path(pause), state_root=Path(state), nodes=2).up()
"""


class Attempt:
    """An `up` in a process of its own, and what it has written down so far."""

    def __init__(self, name: str, tools: Path, pause: Path, state: Path) -> None:
        self.layout = Layout(name, state)
        self.cluster = NativeCluster(name, bin_dir=tools, pause_archive=pause, state_root=state, nodes=2)
        command = [sys.executable, "-c", UP, name, str(tools), str(pause), str(state)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    def recorded(self, kind: str, name: str) -> Callable[[], bool]:
        def seen() -> bool:
            entries = Journal(self.layout.journal).entries(kind)
            return any(str(entry.facts["name"]).endswith(name) for entry in entries)

        return seen

    def wait(self, seen: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not seen():
            assert self.process.poll() is None, "up ended before that"
            assert time.monotonic() < deadline
            time.sleep(0.002)


@pytest.fixture
def attempt(tools_folder: Path, pause_archive: Path, tmp_path: Path) -> Callable[[], Attempt]:
    return lambda: Attempt("crash", tools_folder, pause_archive, tmp_path / "state")


def own_ids(tmp_path: Path) -> tuple[str, ...]:
    return (Layout("crash", tmp_path / "state").short_id,)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("netns", "-cp"),
        ("link", ""),
        ("process", "etcd"),
        ("netns", "-node-2"),
        ("process", "node-1"),
        ("process", "kube-scheduler"),
        ("process", "kube-proxy"),
    ],
)
def test_a_killed_up_leaves_nothing_after_down(
    attempt: Callable[[], Attempt], tmp_path: Path, kind: str, name: str
) -> None:
    before = picture(own_ids(tmp_path))
    up = attempt()
    up.wait(up.recorded(kind, name))

    up.process.kill()
    up.process.wait()
    up.cluster.down()

    assert differences(before, picture(own_ids(tmp_path))) == []
    assert not (tmp_path / "state").exists()


def test_an_interrupted_up_cleans_up_after_itself(attempt: Callable[[], Attempt], tmp_path: Path) -> None:
    before = picture(own_ids(tmp_path))
    up = attempt()
    up.wait(up.recorded("process", "node-2"))

    up.process.send_signal(signal.SIGINT)
    _, said = up.process.communicate(timeout=60)

    assert b"KeyboardInterrupt" in said
    assert differences(before, picture(own_ids(tmp_path))) == []
    assert not up.layout.folder.exists()


def test_up_recovers_from_a_dead_run_and_down_leaves_nothing(attempt: Callable[[], Attempt], tmp_path: Path) -> None:
    before = picture(own_ids(tmp_path))
    up = attempt()
    up.wait(up.layout.api_ready.exists)
    up.process.kill()
    up.process.wait()

    up.cluster.up()
    nodes = up.cluster.node_names
    up.cluster.down()

    assert nodes == ["node-1", "node-2"]
    assert differences(before, picture(own_ids(tmp_path))) == []
    assert not (tmp_path / "state").exists()


def test_the_picture_shows_what_a_running_cluster_has_changed(attempt: Callable[[], Attempt], tmp_path: Path) -> None:
    """Red twin: if the picture could not see a cluster, the tests above would prove nothing."""
    before = picture(own_ids(tmp_path))
    up = attempt()
    try:
        up.wait(up.recorded("process", "node-2"))
        changed = {line.split(":")[0] for line in differences(before, picture(own_ids(tmp_path)))}
    finally:
        up.process.kill()
        up.process.wait()
        up.cluster.down()

    assert {"namespaces", "links", "addresses", "routes", "mounts", "cgroups", "processes"} <= changed


def test_two_clusters_stand_side_by_side(
    shared_cluster: NativeCluster, tools_folder: Path, pause_archive: Path, tmp_path: Path
) -> None:
    beside = NativeCluster("beside", bin_dir=tools_folder, pause_archive=pause_archive, state_root=tmp_path, nodes=1)
    try:
        beside.up()

        subnets = {c.control_plane_address.rsplit(".", 2)[0] for c in (beside, shared_cluster)}
        assert len(subnets) == 2
    finally:
        beside.down()
    shared_cluster.up()  # would make it anew, with another kubeconfig, were it not healthy

    assert shared_cluster.node_names == ["node-1", "node-2", "node-3"]
