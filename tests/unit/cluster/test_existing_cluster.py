"""A cluster that somebody else runs, without one."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from llm_replicas.cluster.existing import ExistingCluster
from llm_replicas.errors import EnvironmentProblem, UsageError


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Two contexts for a server that nobody runs."""
    path = tmp_path / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in ("one", "two")],
        "current-context": "one",
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("fault", ["kill_node", "pause_node", "resume_node", "start_node"])
def test_node_faults_are_refused_unless_allowed(fault: str) -> None:
    with pytest.raises(UsageError, match="--allow-node-faults"):
        getattr(ExistingCluster(), fault)("node-1")


def test_an_allowed_node_fault_runs_the_given_command() -> None:
    ran: list[Sequence[str]] = []
    cluster = ExistingCluster(
        allow_node_faults=True, node_commands={"kill": ["virsh", "destroy", "{node}"]}, runner=ran.append
    )

    cluster.kill_node("node-1")

    assert ran == [["virsh", "destroy", "node-1"]]


def test_an_allowed_node_fault_without_a_command_says_so() -> None:
    with pytest.raises(UsageError, match="no command is known"):
        ExistingCluster(allow_node_faults=True).pause_node("node-1")


def test_images_are_left_to_a_registry() -> None:
    with pytest.raises(UsageError, match=r"image\.repository"):
        ExistingCluster().load_image(Path("a.tar"))


def test_a_wrong_context_is_answered_with_the_contexts(kubeconfig: Path) -> None:
    with pytest.raises(UsageError, match="accepted: one, two"):
        ExistingCluster(kubeconfig=kubeconfig, context="three").up()


def test_an_unreachable_cluster_is_named(kubeconfig: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be reached"):
        ExistingCluster(kubeconfig=kubeconfig).up()


def test_down_leaves_everything(kubeconfig: Path) -> None:
    ExistingCluster(kubeconfig=kubeconfig).down()

    assert kubeconfig.exists()
