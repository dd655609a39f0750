"""The whole gate on a real cluster: it passes where the promises hold, and turns red where a protection is missing.

Everything runs through ``--cluster existing``: what these tests prove needs a kubeconfig and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, utils
from kubernetes.stream import stream

from llm_replicas.cluster.client import api_client
from llm_replicas.cluster.native import NativeCluster
from llm_replicas.places import chart_folder, helm_binary

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STANDIN = ROOT / "charts" / "llm-replicas" / "ci" / "standin-values.yaml"
# Without the native provider at hand, a native call would be an ImportError.
WITHOUT_NATIVE = (
    "import sys; sys.modules['llm_replicas.cluster.native'] = None; from llm_replicas.cli import main; main()"
)

SHORT = ("--values", str(HERE / "plans" / "short-values.yaml"))


@dataclass
class Site:
    """A namespace of the shared cluster with the gate's namespaced account in it."""

    cluster: NativeCluster
    namespace: str
    kubeconfig: Path
    http_port: int
    tmp: Path
    release: str = "llm"

    def gate(self, plan: str, *arguments: str, install: bool = True) -> tuple[int, dict[str, Any], str]:
        """Run the command as a user would; returns exit code, verdict.json, stderr."""
        address = self.cluster.control_plane_address
        helm = helm_binary(lambda _text: None)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("harness", ".")),
            "LLM_REPLICAS_HELM": str(helm),
            # No ip, nsenter, kubectl… to fall back on.
            "PATH": "/nonexistent",
        }
        done = subprocess.run(
            [
                *(sys.executable, "-c", WITHOUT_NATIVE, "gate", "--cluster", "existing"),
                *("--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace),
                *("--release", self.release, "--plan", str(HERE / "plans" / f"{plan}.yaml")),
                *("--url", f"http://{address}:{self.http_port}", "--grpc-url", f"{address}:{self.http_port + 1}"),
                *("--set", f"router.service.httpNodePort={self.http_port}"),
                *("--set", f"router.service.grpcNodePort={self.http_port + 1}"),
                *("--runs", str(self.tmp / "runs"), "--json"),
                *([] if install else ["--no-install"]),
                *arguments,
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        lines = done.stdout.strip().splitlines()
        assert lines, f"the gate said nothing on stdout; exit code {done.returncode}:\n{done.stderr}"
        said = json.loads(lines[-1])
        verdict = json.loads((Path(said["run"]) / "verdict.json").read_text(encoding="utf-8"))
        assert said["verdict"] == verdict["verdict"]
        return done.returncode, verdict, done.stderr


def account_kubeconfig(cluster: NativeCluster, namespace: str, path: Path) -> Path:
    """A kubeconfig with nothing but a token of the shipped Role's account."""
    api = api_client(cluster.kubeconfig, cluster.context)
    utils.create_from_yaml(api, str(ROOT / "ci" / "existing" / "gate-role.yaml"), namespace=namespace)
    token = client.CoreV1Api(api).create_namespaced_service_account_token(
        "llm-gate",
        namespace,
        client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600)
        ),
    )
    config = yaml.safe_load(cluster.kubeconfig.read_text(encoding="utf-8"))
    config["users"] = [{"name": "gate", "user": {"token": token.status.token}}]
    config["contexts"][0]["context"]["user"] = "gate"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
def site(serving_cluster: NativeCluster, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    name = request.node.name.replace("_", "-").removeprefix("test-")[:40].strip("-")
    namespace = f"gate-{uuid.uuid4().hex[:6]}-{name}"
    api = api_client(serving_cluster.kubeconfig, serving_cluster.context)
    core = client.CoreV1Api(api)
    core.create_namespace(
        client.V1Namespace(
            metadata=client.V1ObjectMeta(
                name=namespace, labels={"pod-security.kubernetes.io/enforce": "restricted"}
            )
        )
    )
    taken = {
        port.node_port
        for service in core.list_service_for_all_namespaces().items
        for port in service.spec.ports or []
    }
    port = next(p for p in range(30800, 30900, 2) if p not in taken and p + 1 not in taken)
    kubeconfig = account_kubeconfig(serving_cluster, namespace, tmp_path / "kubeconfig")
    yield Site(serving_cluster, namespace, kubeconfig, port, tmp_path)
    core.delete_namespace(namespace, grace_period_seconds=0)


def fault(verdict: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(row for row in verdict["faults"] if row["kind"] == kind)


def objective(verdict: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in verdict["objectives"] if name in row["name"])


def test_the_gate_passes_with_a_namespaced_role_and_no_native_call(site: Site) -> None:
    code, verdict, said = site.gate("short", *SHORT)

    assert (code, verdict["verdict"]) == (0, "pass"), said
    assert verdict["generator"]["valid"]
    deleted, killed = fault(verdict, "podDelete"), fault(verdict, "podKill")
    assert (deleted["failed_new"], deleted["cut"]) == (0, 0)
    assert killed["failed_new"] == 0
    assert killed["cut"] <= killed["in_flight"]
    # Both come from the routers' access logs, which must have been followed from the first request on.
    assert killed["ttd_s"] is not None
    assert 0 < deleted["ttd_s"] < 7


def test_both_rollouts_lose_nothing(site: Site) -> None:
    code, verdict, said = site.gate("rollouts", *SHORT)

    assert (code, verdict["verdict"]) == (0, "pass"), said
    for kind in ("replicaRollout", "routerRollout"):
        assert (fault(verdict, kind)["failed_new"], fault(verdict, kind)["cut"]) == (0, 0)


def test_without_a_drain_streams_are_cut_and_the_gate_fails(site: Site) -> None:
    code, verdict, said = site.gate("delete", "--values", str(HERE / "red" / "no-drain.yaml"))

    assert (code, verdict["verdict"]) == (1, "fail"), said
    assert fault(verdict, "podDelete")["cut"] > 0
    assert any("were cut" in reason for reason in fault(verdict, "podDelete")["reasons"])


def test_without_withdrawal_and_retries_new_requests_fail_and_the_gate_fails(site: Site) -> None:
    code, verdict, said = site.gate("delete", "--values", str(HERE / "red" / "no-retry.yaml"))

    assert (code, verdict["verdict"]) == (1, "fail"), said
    assert fault(verdict, "podDelete")["failed_new"] > 0
    assert any("new requests failed" in reason for reason in fault(verdict, "podDelete")["reasons"])


def test_one_replica_at_half_speed_fails_the_gate_by_p99(site: Site) -> None:
    values = ["--values", str(HERE / "red" / "slow.yaml")]
    install(site, values)
    slow_down_one(site)

    code, verdict, said = site.gate("steady", *values, install=False)

    assert (code, verdict["verdict"]) == (1, "fail"), said
    assert "fail" in {row["verdict"] for row in verdict["objectives"] if row["unit"] == "s"}


def install(site: Site, values: list[str]) -> None:
    from llm_replicas.cluster.release import Release, wait_ready

    release = Release(
        name=site.release,
        namespace=site.namespace,
        chart=chart_folder(),
        helm=helm_binary(lambda _text: None),
        kubeconfig=site.kubeconfig,
        context=None,
        values=[STANDIN, *(Path(value) for value in values if not value.startswith("--"))],
        settings=[
            "fullnameOverride=llm",
            f"router.service.httpNodePort={site.http_port}",
            f"router.service.grpcNodePort={site.http_port + 1}",
        ],
    )
    release.install()
    wait_ready(api_client(site.kubeconfig), site.namespace, ["llm-replica", "llm-router"], 120)


def slow_down_one(site: Site) -> None:
    api = api_client(site.cluster.kubeconfig, site.cluster.context)
    core = client.CoreV1Api(api)
    pod = core.list_namespaced_pod(site.namespace, label_selector="app.kubernetes.io/component=replica").items[0]
    own = client.CoreV1Api(client.ApiClient(api.configuration))
    stream(
        own.connect_get_namespaced_pod_exec,
        pod.metadata.name,
        site.namespace,
        container="triton",
        command=["sh", "-c", 'echo \'{"slowdown": 2}\' > /tmp/standin-control.json'],
        stdout=True,
        stderr=True,
    )
