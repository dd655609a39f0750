"""What stands in the way is told in one message with the next step, and nothing half-done stays.

Each test runs the command as a user would, against a real API server.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes import client

from llm_replicas.cluster.native import NativeCluster
from llm_replicas.load.records import read_records
from tests.cluster.gatecommand import Gate, served, wait_for, write_plan
from tests.cluster.kubectlrun import Kubectl
from tests.cluster.test_gate import account_kubeconfig

pytestmark = pytest.mark.cluster

# An API server believes a token for 10 s after it last looked it up.
TOKEN_CACHE_SECONDS = 10


@pytest.fixture
def gate(shared_cluster: NativeCluster, namespace: str, tmp_path: Path) -> Gate:
    """The gate in the test's own namespace, as the cluster's owner."""
    plan = write_plan(tmp_path / "plan.yaml", seconds=5)
    return Gate(shared_cluster.kubeconfig, namespace, tmp_path / "runs", ("--plan", str(plan)))


def with_kubeconfig(gate: Gate, change: dict[str, object], folder: Path) -> Gate:
    """The same gate with a kubeconfig whose cluster or user is changed."""
    config = json.loads(gate.kubeconfig.read_text())
    config["users"][0]["user"] = change.get("user", config["users"][0]["user"])
    config["clusters"][0]["cluster"] = change.get("cluster", config["clusters"][0]["cluster"])
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return replace(gate, kubeconfig=path)


def left_behind(cluster: NativeCluster, namespace: str) -> list[str]:
    """Helm's releases and the workloads in a namespace."""
    core, apps = client.CoreV1Api(cluster.api()), client.AppsV1Api(cluster.api())
    secrets = [each for each in core.list_namespaced_secret(namespace).items if each.type == "helm.sh/release.v1"]
    found = [*secrets, *apps.list_namespaced_deployment(namespace).items]
    found += core.list_namespaced_service(namespace).items
    return [each.metadata.name for each in found]


def test_a_quota_that_blocks_is_named(shared_cluster: NativeCluster, gate: Gate, kubectl: Kubectl) -> None:
    kubectl("create", "quota", "no-pods-today", "--hard=pods=0")

    ended = gate()

    assert ended.code == 2, ended.err
    assert "exceeded quota: no-pods-today" in ended.err
    assert "a quota, limit range or Pod Security level of the namespace stands in the way" in ended.err
    assert left_behind(shared_cluster, gate.namespace) == []
    assert gate.folders == []


def test_what_the_api_server_refuses_helm_is_told_in_its_words(
    shared_cluster: NativeCluster, gate: Gate, kubectl: Kubectl
) -> None:
    kubectl("create", "quota", "no-services", "--hard=services=0")

    ended = gate()

    assert ended.code == 2, ended.err
    assert "helm upgrade --install was refused" in ended.err
    assert "exceeded quota: no-services" in ended.err
    assert left_behind(shared_cluster, gate.namespace) == []


def test_an_image_that_is_not_there_is_told_with_the_way_to_get_it(shared_cluster: NativeCluster, gate: Gate) -> None:
    ended = gate("--set", "image.tag=forgotten", "--set", "image.pullPolicy=Never")

    assert ended.code == 2, ended.err
    assert "ErrImageNeverPull" in ended.err
    assert "localhost/llm-replicas-standin:forgotten" in ended.err
    assert "load it, or set image.pullPolicy" in ended.err
    assert left_behind(shared_cluster, gate.namespace) == []


def test_what_did_not_come_up_stays_for_a_look_when_it_is_to_be_kept(
    shared_cluster: NativeCluster, gate: Gate
) -> None:
    ended = gate("--keep", "--set", "image.tag=forgotten", "--set", "image.pullPolicy=Never")

    assert ended.code == 2, ended.err
    assert "llm-replica" in left_behind(shared_cluster, gate.namespace)


def test_a_container_that_crashes_is_told_with_its_last_words(
    serving_cluster: NativeCluster, gate: Gate, tmp_path: Path
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text('extraEnv: {STANDIN_STAGES: "0"}')

    ended = gate("--values", str(values))

    assert ended.code == 2, ended.err
    assert "CrashLoopBackOff" in ended.err
    assert "last log lines" in ended.err
    assert "stages is 0; it must be at least 1" in ended.err
    assert left_behind(serving_cluster, gate.namespace) == []


def test_a_value_of_the_wrong_type_is_told_with_its_path(shared_cluster: NativeCluster, gate: Gate) -> None:
    ended = gate("--set", "lifecycle.drainSeconds=long", "--set", "replcias=3")

    assert ended.code == 2, ended.err
    assert "/lifecycle/drainSeconds" in ended.err
    assert "replcias" in ended.err
    assert left_behind(shared_cluster, gate.namespace) == []


def test_a_namespace_that_is_being_deleted_is_refused(shared_cluster: NativeCluster, gate: Gate) -> None:
    core = client.CoreV1Api(shared_cluster.api())
    leaving = f"{gate.namespace}-leaving"
    core.create_namespace({"metadata": {"name": leaving}})
    core.create_namespaced_config_map(
        leaving, {"metadata": {"name": "clinging", "finalizers": ["example.com/clings"]}}
    )
    core.delete_namespace(leaving)
    try:
        ended = replace(gate, namespace=leaving)()
        left = left_behind(shared_cluster, leaving)
    finally:
        core.patch_namespaced_config_map("clinging", leaving, {"metadata": {"finalizers": None}})

    assert ended.code == 2, ended.err
    assert f"namespace {leaving} is being deleted" in ended.err
    assert "--namespace" in ended.err
    assert left == []


def test_a_namespace_that_was_made_in_vain_is_taken_away(shared_cluster: NativeCluster, gate: Gate) -> None:
    fresh = replace(gate, namespace=f"{gate.namespace}-fresh")

    ended = fresh("--set", "replcias=3")

    assert ended.code == 2, ended.err
    core = client.CoreV1Api(shared_cluster.api())
    names = {each.metadata.name for each in core.list_namespace().items if each.status.phase == "Active"}
    assert fresh.namespace not in names


def test_a_token_that_is_not_valid_is_to_be_renewed(
    shared_cluster: NativeCluster, gate: Gate, tmp_path: Path
) -> None:
    ended = with_kubeconfig(gate, {"user": {"token": "expired"}}, tmp_path)()

    assert ended.code == 2, ended.err
    assert "the API server answered 401" in ended.err
    assert "renew the token in the kubeconfig" in ended.err
    assert left_behind(shared_cluster, gate.namespace) == []


def test_a_wrong_context_is_answered_with_those_there_are(gate: Gate) -> None:
    ended = gate("--context", "nowhere")

    assert ended.code == 2, ended.err
    assert "context 'nowhere' is not in" in ended.err
    assert "accepted: tests; choose one with --context" in ended.err


def test_a_cluster_that_does_not_answer_is_told_as_such(gate: Gate, tmp_path: Path) -> None:
    ended = with_kubeconfig(gate, {"cluster": {"server": "https://127.0.0.1:1"}}, tmp_path)()

    assert ended.code == 2, ended.err
    assert "the cluster cannot be reached" in ended.err
    assert "is it up, and is --context the right one?" in ended.err


def test_a_release_that_another_helm_holds_is_left_alone(shared_cluster: NativeCluster, gate: Gate) -> None:
    write_release(shared_cluster, gate.namespace, "pending-upgrade")

    ended = gate()

    assert ended.code == 2, ended.err
    assert f"release llm in {gate.namespace} is pending-upgrade" in ended.err
    assert f"helm rollback llm -n {gate.namespace}" in ended.err
    assert left_behind(shared_cluster, gate.namespace) == ["sh.helm.release.v1.llm.v2"]


def write_release(cluster: NativeCluster, namespace: str, status: str) -> None:
    """What Helm keeps of a release, as a helm that died in the middle leaves it."""
    moment = "2026-01-01T00:00:00Z"
    told = {
        "name": "llm",
        "namespace": namespace,
        "version": 2,
        "info": {"status": status, "first_deployed": moment, "last_deployed": moment, "description": ""},
        "chart": {"metadata": {"name": "llm-replicas", "version": "0.1.0", "apiVersion": "v2"}},
        "config": {},
        "manifest": "",
    }
    packed = base64.b64encode(gzip.compress(json.dumps(told).encode())).decode()
    labels = {"name": "llm", "owner": "helm", "status": status, "version": "2"}
    client.CoreV1Api(cluster.api()).create_namespaced_secret(
        namespace,
        client.V1Secret(
            metadata=client.V1ObjectMeta(name="sh.helm.release.v1.llm.v2", labels=labels),
            type="helm.sh/release.v1",
            string_data={"release": packed},
        ),
    )


# --- with a release that serves -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serving(serving_cluster: NativeCluster) -> Iterator[str]:
    """The namespace of a release that serves."""
    with served(serving_cluster, "refusals"):
        yield "refusals"


@pytest.fixture
def running(serving_cluster: NativeCluster, serving: str, tmp_path: Path) -> Gate:
    """The gate on that release as it is."""
    return Gate(serving_cluster.kubeconfig, serving, tmp_path / "runs", ("--no-install",))


def outcomes(run: Path) -> set[tuple[str, str | None]]:
    """How the requests of a run ended."""
    return {(row["outcome"], row["error_class"]) for row in read_records(run).to_pylist()}


def test_a_model_that_is_not_served_fails_the_gate_by_name(running: Gate, tmp_path: Path) -> None:
    ended = running("--plan", str(write_plan(tmp_path / "plan.yaml", seconds=5, model="nowhere")))

    assert (ended.code, ended.verdict["verdict"]) == (1, "fail"), ended.err
    assert ended.verdict["failed"] == ended.verdict["requests"] > 0
    assert {outcome for outcome, _ in outcomes(ended.run)} == {"failed"}
    assert "not one request of phase steady was answered" in ended.err
    assert "failed (http_404); are the addresses" in ended.err


def test_an_address_where_nobody_listens_fails_the_gate_by_name(running: Gate, tmp_path: Path) -> None:
    ended = running(
        *("--plan", str(write_plan(tmp_path / "plan.yaml", seconds=5))),
        *("--url", "http://127.0.0.1:1", "--grpc-url", "127.0.0.1:1"),
    )

    assert (ended.code, ended.verdict["verdict"]) == (1, "fail"), ended.err
    assert outcomes(ended.run) == {("failed", "connect")}
    assert "failed (connect); are the addresses (--url, --grpc-url) right" in ended.err


def test_a_token_that_expires_in_mid_run_is_told_and_the_records_are_kept(
    serving_cluster: NativeCluster, serving: str, running: Gate, tmp_path: Path
) -> None:
    kubeconfig = account_kubeconfig(serving_cluster, serving, tmp_path / "kubeconfig")
    fault = {"kind": "podDelete", "after_seconds": TOKEN_CACHE_SECONDS + 4.0}
    plan = write_plan(tmp_path / "plan.yaml", seconds=TOKEN_CACHE_SECONDS + 6.0, fault=fault)
    url = serving_cluster.endpoint(serving, "llm", "http")
    grpc = serving_cluster.endpoint(serving, "llm", "grpc").removeprefix("http://")
    gate = Gate(kubeconfig, serving, running.runs, ("--no-install", "--url", url, "--grpc-url", grpc))

    process = gate.start("--plan", str(plan))
    wait_for(lambda: any((folder / "started.json").exists() for folder in gate.folders))
    client.CoreV1Api(serving_cluster.api()).delete_namespaced_service_account("llm-gate", serving)
    _, said = process.communicate(timeout=120)

    assert process.returncode == 2, said
    assert "renew the token in the kubeconfig" in said
    (run,) = gate.folders
    assert f"judge {run}" in said
    assert ("ok", None) in outcomes(run)
