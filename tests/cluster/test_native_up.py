"""A native cluster is a Kubernetes like any other: nodes, logs, exec, DNS, NodePorts, port-forward, RBAC."""

import contextlib
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from kubernetes import client

from llm_replicas.cluster.native import NativeCluster
from llm_replicas.errors import UsageError
from tests.cluster.tinyimage import NAME as IMAGE

pytestmark = pytest.mark.cluster

READY_SECONDS = 30
REPLICAS = 3

WEB = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {REPLICAS}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
        - {{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule,
           labelSelector: {{matchLabels: {{app: web}}}}}}
      containers:
        - name: web
          image: {IMAGE}
          command:
            - sh
            - -c
            - mkdir /www; hostname > /www/index.html; echo serving; exec httpd -f -p 8000 -h /www
          readinessProbe: {{tcpSocket: {{port: 8000}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: NodePort, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8000}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web-pods}}
spec: {{clusterIP: None, selector: {{app: web}}, ports: [{{name: http, port: 8000}}]}}
"""


@pytest.fixture
def web(kubectl: Callable[..., str]) -> list[str]:
    """Names of the pods of a small web server, one in each zone."""
    kubectl("apply", "-f", "-", stdin=WEB)
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    return kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}").split()


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return str(answer.read().decode().strip())


def test_three_nodes_are_ready_in_time_with_their_zones(
    tools_folder: Path, pause_archive: Path, tmp_path: Path
) -> None:
    cluster = NativeCluster(
        "quick",
        bin_dir=tools_folder,
        pause_archive=pause_archive,
        state_root=tmp_path,
        nodes=3,
        zones=["a", "b"],
    )
    try:
        began = time.monotonic()
        cluster.up()
        took = time.monotonic() - began

        nodes = client.CoreV1Api(cluster.api()).list_node().items
        zones = {node.metadata.name: node.metadata.labels["topology.kubernetes.io/zone"] for node in nodes}
        assert zones == {"node-1": "a", "node-2": "b", "node-3": "a"}
        assert took < READY_SECONDS
    finally:
        cluster.down()


def test_up_keeps_a_healthy_cluster(shared_cluster: NativeCluster) -> None:
    before = shared_cluster.kubeconfig.read_text()

    shared_cluster.up()

    assert shared_cluster.kubeconfig.read_text() == before


def test_up_refuses_another_shape_of_a_running_cluster(
    shared_cluster: NativeCluster, tools_folder: Path, pause_archive: Path
) -> None:
    other = NativeCluster("tests", bin_dir=tools_folder, pause_archive=pause_archive, nodes=2)

    with pytest.raises(UsageError, match="take it down first"):
        other.up()


def test_logs_and_exec_reach_the_pod(web: list[str], kubectl: Callable[..., str]) -> None:
    assert kubectl("logs", web[0]).strip() == "serving"
    assert kubectl("exec", web[0], "--", "hostname").strip() == web[0]


def test_names_of_services_resolve_and_others_do_not(
    web: list[str], kubectl: Callable[..., str], namespace: str
) -> None:
    found = kubectl("exec", web[0], "--", "nslookup", f"web-pods.{namespace}.svc.cluster.local")
    by_service = kubectl("exec", web[0], "--", "wget", "-qO-", "http://web")

    assert found.count("Address:") == REPLICAS + 1  # and the name server's own
    assert by_service.strip() in web
    with pytest.raises(AssertionError, match=r"NXDOMAIN|can't find"):
        kubectl("exec", web[0], "--", "nslookup", "example.com")


def test_the_endpoint_of_a_node_port_reaches_every_pod(
    web: list[str], shared_cluster: NativeCluster, kubectl: Callable[..., str], namespace: str
) -> None:
    url = shared_cluster.endpoint(namespace, "web", "http")

    # kube-proxy learns of an endpoint a moment after the Deployment calls itself available, and refuses till then.
    answers: set[str] = set()
    deadline = time.monotonic() + 10
    while answers != set(web) and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError):
            answers.add(get(url))

    assert answers == set(web)


def test_port_forward_reaches_the_pod(
    web: list[str],
    shared_cluster: NativeCluster,
    kubectl: Callable[..., str],
    tools_folder: Path,
    namespace: str,
) -> None:
    command = [str(tools_folder / "kubectl"), "--kubeconfig", str(shared_cluster.kubeconfig)]
    command += ["-n", namespace, "port-forward", web[0], ":8000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            port = forward.stdout.readline().split("->")[0].rpartition(":")[2].strip()

            assert get(f"http://127.0.0.1:{port}") == web[0]
        finally:
            forward.kill()


def test_no_packet_leaves_the_machine(web: list[str], kubectl: Callable[..., str]) -> None:
    with pytest.raises(AssertionError, match=r"unreachable|timed out|terminated|exit code"):
        kubectl("exec", web[0], "--", "wget", "-T", "2", "-qO-", "http://192.88.99.1")


def test_a_node_may_not_change_another_node(shared_cluster: NativeCluster, tools_folder: Path) -> None:
    kubeconfig = shared_cluster.kubeconfig.parent / "nodes" / "node-1" / "kubelet.kubeconfig"
    command = [str(tools_folder / "kubectl"), "--kubeconfig", str(kubeconfig), "label", "node"]

    other = subprocess.run([*command, "node-2", "a=b"], capture_output=True, text=True, check=False)

    assert other.returncode != 0
    assert "Forbidden" in other.stderr or "forbidden" in other.stderr


def test_a_restricted_namespace_refuses_a_privileged_pod(kubectl: Callable[..., str], namespace: str) -> None:
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")

    with pytest.raises(AssertionError, match="violates PodSecurity"):
        kubectl("run", "root", f"--image={IMAGE}", "--privileged", "--command", "--", "sleep", "1")


def test_a_loaded_image_is_not_loaded_again(shared_cluster: NativeCluster, tiny_archive: Path) -> None:
    began = time.monotonic()

    shared_cluster.load_image(tiny_archive)

    assert time.monotonic() - began < 2
