"""Every values scenario of the chart is admitted by a real API server, in a namespace that enforces `restricted`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from llm_replicas.cluster.native import NativeCluster
from llm_replicas.cluster.release import ensure_namespace
from llm_replicas.places import chart_folder, helm_binary

pytestmark = pytest.mark.cluster

NAMESPACE = "admission"
SCENARIOS = sorted(path.name for path in (chart_folder() / "ci").glob("*-values.yaml"))


@pytest.fixture(scope="module")
def restricted(shared_cluster: NativeCluster) -> Iterator[str]:
    ensure_namespace(shared_cluster.api(), NAMESPACE)
    yield NAMESPACE
    client.CoreV1Api(shared_cluster.api()).delete_namespace(NAMESPACE, grace_period_seconds=0)


def apply(cluster: NativeCluster, tools: Path, objects: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(str(tools / "kubectl"), "--kubeconfig", str(cluster.kubeconfig), "--namespace", NAMESPACE),
            *("apply", "--dry-run=server", "--filename", "-"),
        ],
        input=objects,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def render(*arguments: str) -> str:
    helm = helm_binary(lambda _text: None)
    command = [str(helm), "template", "llm", str(chart_folder()), "--namespace", NAMESPACE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("values", [None, *SCENARIOS])
def test_a_scenario_is_admitted_without_a_warning(
    shared_cluster: NativeCluster, tools_folder: Path, restricted: str, values: str | None
) -> None:
    arguments = [] if values is None else ["--values", str(chart_folder() / "ci" / values)]

    done = apply(shared_cluster, tools_folder, render(*arguments))

    assert done.returncode == 0, done.stderr
    # The API server only warns of Deployments whose pods Pod Security would refuse.
    assert "Warning" not in done.stderr


def test_a_load_balancer_is_admitted(shared_cluster: NativeCluster, tools_folder: Path, restricted: str) -> None:
    done = apply(shared_cluster, tools_folder, render("--set", "router.service.type=LoadBalancer"))

    assert done.returncode == 0, done.stderr


def test_a_pod_that_runs_as_root_would_be_noticed(
    shared_cluster: NativeCluster, tools_folder: Path, restricted: str
) -> None:
    loosened = render().replace("runAsNonRoot: true", "runAsNonRoot: false")

    done = apply(shared_cluster, tools_folder, loosened)

    assert "violates PodSecurity" in done.stderr or "would violate PodSecurity" in done.stderr
