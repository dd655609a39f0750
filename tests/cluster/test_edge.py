"""What the router lets through, and what the namespace lets in, on a running release."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc
import pytest
from kubernetes import client
from tritonclient.grpc import service_pb2, service_pb2_grpc

from llm_replicas.cluster.native import NativeCluster
from llm_replicas.cluster.release import Release, ensure_namespace, wait_ready
from llm_replicas.places import chart_folder, helm_binary

pytestmark = pytest.mark.cluster

NAMESPACE = "edge"
# The admin surface of Triton (src/http_server.cc): loading a model is running code.
NEVER = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/ensemble/load"),
    ("POST", "/v2/repository/models/ensemble/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("GET", "/v2/models/ensemble/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/models/ensemble/config"),
    ("GET", "/v2/models/ensemble/stats"),
    ("GET", "/v2/models/stats"),
    ("GET", "/v2"),
    ("GET", "/v2/models/ensemble"),
    ("GET", "/metrics"),
    ("POST", "/v2/models/unlisted/generate"),
    ("GET", "/v2/models/ensemble/generate"),
    ("POST", "//v2//repository/index"),
    ("POST", "/v2/models/../repository/index"),
    ("POST", "/v2/models/ensemble/generate/../../../repository/index"),
    ("POST", "/v2%2Frepository%2Findex"),
    ("POST", "/v2/models%2f..%2frepository/index"),
]


@dataclass
class Served:
    """A release that serves."""

    cluster: NativeCluster
    http_url: str
    grpc_address: str


@pytest.fixture(scope="module")
def served(serving_cluster: NativeCluster) -> Iterator[Served]:
    api = serving_cluster.api()
    ensure_namespace(api, NAMESPACE)
    chart = chart_folder()
    Release(
        name="llm",
        namespace=NAMESPACE,
        chart=chart,
        helm=helm_binary(lambda _text: None),
        kubeconfig=serving_cluster.kubeconfig,
        context=serving_cluster.context,
        values=[chart / "ci" / "standin-values.yaml"],
        settings=["fullnameOverride=llm"],
    ).install()
    wait_ready(api, NAMESPACE, ["llm-replica", "llm-router"], 120)
    http_url = serving_cluster.endpoint(NAMESPACE, "llm", "http")
    grpc_url = serving_cluster.endpoint(NAMESPACE, "llm", "grpc")
    yield Served(serving_cluster, http_url, grpc_url.removeprefix("http://"))
    client.CoreV1Api(api).delete_namespace(NAMESPACE, grace_period_seconds=0)


def ask(url: str, method: str, path: str, body: str | None = None) -> int:
    """Status of one request; the path goes out exactly as written."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        data = (body or "").encode()
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "path"), NEVER)
def test_the_admin_surface_is_not_routed(served: Served, method: str, path: str) -> None:
    assert ask(served.http_url, method, path) in {400, 404, 405}


def test_the_same_paths_do_answer_behind_the_router(served: Served) -> None:
    pod = client.CoreV1Api(served.cluster.api()).list_namespaced_pod(
        NAMESPACE, label_selector="app.kubernetes.io/component=replica"
    ).items[0]

    answers = {path: ask(f"http://{pod.status.pod_ip}:8000", method, path) for method, path in NEVER}

    assert 200 in answers.values(), f"nothing answered, so the denial proves nothing: {answers}"


def test_listed_models_answer(served: Served) -> None:
    body = json.dumps({"text_input": "a b c", "max_tokens": 3})

    assert ask(served.http_url, "POST", "/v2/models/ensemble/generate", body) == 200


def test_grpc_admin_methods_are_denied_at_the_edge(served: Served) -> None:
    with grpc.insecure_channel(served.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as denied:
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10)
        with pytest.raises(grpc.RpcError) as loading:
            stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="ensemble"), timeout=10)

    # UNAVAILABLE is what a pod that drains would say; a denial must not look like that, or it would be retried.
    assert denied.value.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND}
    assert loading.value.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND}


def test_the_namespace_enforces_the_restricted_profile(served: Served) -> None:
    pod = {
        "metadata": {"name": "privileged"},
        "spec": {"containers": [{"name": "c", "image": "x", "securityContext": {"privileged": True}}]},
    }

    with pytest.raises(client.ApiException, match="violates PodSecurity"):
        client.CoreV1Api(served.cluster.api()).create_namespaced_pod(NAMESPACE, pod)
