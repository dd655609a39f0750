"""Nodes of a native cluster lose power, freeze and come back."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client

from llm_replicas.cluster.native import NativeCluster, cgroups
from llm_replicas.errors import UsageError
from tests.cluster.kubectlrun import kubectl_for
from tests.cluster.tinyimage import NAME as IMAGE

pytestmark = pytest.mark.cluster

RESOURCE = "example.com/accelerator"


@pytest.fixture(scope="module")
def pair(
    tools_folder: Path, pause_archive: Path, tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NativeCluster]:
    """Two nodes, the second with devices; with a state folder where nodes see a folder of their own."""
    cluster = NativeCluster(
        "pair",
        bin_dir=tools_folder,
        pause_archive=pause_archive,
        state_root=tmp_path_factory.mktemp("state"),
        nodes=2,
        extended_resources={"node-2": {RESOURCE: 2}},
    )
    cluster.up()
    try:
        cluster.load_image(tiny_archive)
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def pod(pair: NativeCluster, tools_folder: Path) -> Callable[[], dict[str, object]]:
    """A pod on node-2 that holds a device; returns how its container is now."""
    kubectl = kubectl_for(pair, "default", tools_folder)
    container = {
        "name": "main",
        "image": IMAGE,
        "command": ["sleep", "1000"],
        "resources": {"limits": {RESOURCE: "1"}},
    }
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "holder"},
        "spec": {"containers": [container]},
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(body))
    kubectl("wait", "pod/holder", "--for=condition=Ready", "--timeout=60s")

    def now() -> dict[str, object]:
        return json.loads(kubectl("get", "pod", "holder", "-o", "json"))["status"]["containerStatuses"][0]

    return now


def group(cluster: NativeCluster, node: str) -> str:
    return f"{cluster.cgroup}/{node}"


def until(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.1)


def allocatable(cluster: NativeCluster, node: str) -> str | None:
    return client.CoreV1Api(cluster.api()).read_node(node).status.allocatable.get(RESOURCE)


def test_a_killed_node_is_dark_and_empty_and_comes_back_with_its_pods(
    pair: NativeCluster, pod: Callable[[], dict[str, object]]
) -> None:
    restarts = int(str(pod()["restartCount"]))

    pair.kill_node("node-2")

    assert cgroups.processes(group(pair, "node-2")) == set()
    assert os.system(f"ping -c1 -W1 {pair.node_address('node-2')} >/dev/null 2>&1") != 0

    pair.start_node("node-2")

    until(lambda: int(str(pod()["restartCount"])) == restarts + 1 and bool(pod()["ready"]))
    assert allocatable(pair, "node-2") == "2"


def test_a_paused_node_stands_still_until_it_is_resumed(
    pair: NativeCluster, pod: Callable[[], dict[str, object]]
) -> None:
    pair.pause_node("node-2")

    members = cgroups.processes(group(pair, "node-2"))
    used = cpu_ticks(members)
    time.sleep(0.5)  # standing still is seen by time passing
    assert members
    assert cpu_ticks(members) == used

    pair.resume_node("node-2")

    until(lambda: cpu_ticks(members) > used)
    assert bool(pod()["ready"])


def test_a_paused_node_can_lose_its_power(pair: NativeCluster, pod: Callable[[], dict[str, object]]) -> None:
    pair.pause_node("node-2")

    pair.kill_node("node-2")
    pair.start_node("node-2")

    until(lambda: bool(pod()["ready"]))


def test_a_node_with_power_is_not_started_again(pair: NativeCluster) -> None:
    with pytest.raises(UsageError, match="has power already"):
        pair.start_node("node-1")


def test_a_node_that_does_not_exist_is_named_with_those_that_do(pair: NativeCluster) -> None:
    with pytest.raises(UsageError, match=r"no node 'node-9'.*node-1, node-2"):
        pair.kill_node("node-9")


def cpu_ticks(processes: set[int]) -> int:
    total = 0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total
