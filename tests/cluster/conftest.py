"""What the cluster tests share: the tools, one cluster for all of them, and a namespace for each."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from llm_replicas.cluster.native import NativeCluster
from tests.cluster.kubectlrun import Kubectl, kubectl_for
from tests.cluster.tinyimage import write_tiny_archive


def tell(text: str) -> None:
    print(text, flush=True)


@pytest.fixture(scope="session", autouse=True)
def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("cluster tests make namespaces, mounts and control groups, which takes root")


@pytest.fixture(scope="session")
def tools_folder(root_only: None) -> Path:
    from llm_replicas.places import build_tools

    return build_tools(tell)


@pytest.fixture(scope="session")
def pause_archive(root_only: None) -> Path:
    from llm_replicas.cluster.images import build_image

    return build_image("pause")


@pytest.fixture(scope="session")
def tiny_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_archive(tmp_path_factory.mktemp("images") / "tiny.tar")


@pytest.fixture(scope="session")
def shared_cluster(tools_folder: Path, pause_archive: Path, tiny_archive: Path) -> Iterator[NativeCluster]:
    """Three nodes in three zones, for all tests of the session. LLM_REPLICAS_KEEP=1 leaves it up for the next."""
    cluster = NativeCluster(
        "tests", bin_dir=tools_folder, pause_archive=pause_archive, nodes=3, zones=["a", "b", "c"], say=tell
    )
    cluster.up()
    try:
        cluster.load_image(tiny_archive)
        yield cluster
    finally:
        if not os.environ.get("LLM_REPLICAS_KEEP"):
            cluster.down()


@pytest.fixture(scope="session")
def serving_cluster(shared_cluster: NativeCluster) -> NativeCluster:
    """The shared cluster with the gate's images on its nodes."""
    from llm_replicas.places import build_images

    for archive in build_images(tell):
        shared_cluster.load_image(archive)
    return shared_cluster


@pytest.fixture
def namespace(shared_cluster: NativeCluster) -> Iterator[str]:
    core = client.CoreV1Api(shared_cluster.api())
    name = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name, grace_period_seconds=0)


@pytest.fixture
def kubectl(shared_cluster: NativeCluster, namespace: str, tools_folder: Path) -> Kubectl:
    """Run kubectl in the test's namespace and return what it says."""
    return kubectl_for(shared_cluster, namespace, tools_folder)
