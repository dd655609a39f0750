"""The `existing` provider against a real API server with the rights of a namespaced Role."""

import json
from pathlib import Path

import pytest
from kubernetes import client

from llm_replicas.cluster.existing import ExistingCluster
from llm_replicas.cluster.native import NativeCluster
from llm_replicas.errors import EnvironmentProblem, UsageError
from tests.cluster.kubectlrun import Kubectl

pytestmark = pytest.mark.cluster


@pytest.fixture
def limited(shared_cluster: NativeCluster, namespace: str, kubectl: Kubectl, tmp_path: Path) -> Path:
    """A kubeconfig with a service account's token that may read Services of one namespace."""
    kubectl("create", "role", "reader", "--verb=get,list", "--resource=services")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:default")
    kubectl("create", "service", "nodeport", "web", "--tcp=80:8000")
    return with_token(shared_cluster, kubectl("create", "token", "default").strip(), tmp_path)


def with_token(cluster: NativeCluster, token: str, folder: Path) -> Path:
    config = json.loads(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def test_a_known_account_is_let_in(limited: Path) -> None:
    ExistingCluster(kubeconfig=limited).up()


def test_a_bad_token_is_told_to_be_renewed(shared_cluster: NativeCluster, tmp_path: Path) -> None:
    cluster = ExistingCluster(kubeconfig=with_token(shared_cluster, "expired", tmp_path))

    with pytest.raises(EnvironmentProblem, match="renew the token"):
        cluster.up()


def test_a_given_url_needs_no_rights(limited: Path, namespace: str) -> None:
    cluster = ExistingCluster(kubeconfig=limited, url="http://router.example:8080")

    assert cluster.endpoint(namespace, "web", "80-8000") == "http://router.example:8080"


def test_without_the_right_to_list_nodes_the_url_is_asked_for(limited: Path, namespace: str) -> None:
    with pytest.raises(EnvironmentProblem, match="--url http://HOST:PORT"):
        ExistingCluster(kubeconfig=limited).endpoint(namespace, "web", "80-8000")


def test_the_owner_is_given_a_node_port(shared_cluster: NativeCluster, limited: Path, namespace: str) -> None:
    cluster = ExistingCluster(kubeconfig=shared_cluster.kubeconfig)
    service = client.CoreV1Api(shared_cluster.api()).read_namespaced_service("web", namespace)
    expected = f":{service.spec.ports[0].node_port}"

    assert cluster.endpoint(namespace, "web", "80-8000").endswith(expected)


def test_a_missing_port_is_named_with_those_there_are(
    shared_cluster: NativeCluster, limited: Path, namespace: str
) -> None:
    with pytest.raises(EnvironmentProblem, match="no port 'grpc'; its ports: 80-8000"):
        ExistingCluster(kubeconfig=shared_cluster.kubeconfig).endpoint(namespace, "web", "grpc")


def test_a_wrong_context_is_answered_with_the_contexts(shared_cluster: NativeCluster) -> None:
    with pytest.raises(UsageError, match="accepted: tests"):
        ExistingCluster(kubeconfig=shared_cluster.kubeconfig, context="nowhere").up()
