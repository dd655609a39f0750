"""Installs the chart with Helm and watches until it serves, or says at once why it will not."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes import client

from llm_replicas.cluster.client import explain
from llm_replicas.errors import EnvironmentProblem

# Reasons that waiting does not cure, with what an operator would do next.
HOPELESS = {
    "ErrImageNeverPull": "the image is not on the node: load it, or set image.pullPolicy",
    "ImagePullBackOff": "check image.repository, image.tag and image.pullSecrets",
    "InvalidImageName": "check image.repository, image.tag and image.digest",
    "CreateContainerConfigError": "a Secret or ConfigMap that the pod names does not exist",
    "CrashLoopBackOff": "the container starts and dies: see its last log lines below",
}


@dataclass(frozen=True)
class Release:
    """One Helm release: where it goes, from which chart and values."""

    name: str
    namespace: str
    chart: Path
    helm: Path
    kubeconfig: Path | None
    context: str | None
    values: list[Path] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)

    def helm_command(self, *arguments: str) -> list[str]:
        """The helm command line for this cluster and namespace."""
        command = [str(self.helm), *arguments, "--namespace", self.namespace]
        if self.kubeconfig:
            command += ["--kubeconfig", str(self.kubeconfig)]
        if self.context:
            command += ["--kube-context", self.context]
        return command

    def install(self) -> None:
        """Run ``helm upgrade --install``; raises `EnvironmentProblem` with Helm's own words on refusal."""
        self._refuse_pending()
        command = self.helm_command("upgrade", "--install", self.name, str(self.chart))
        for path in self.values:
            command += ["--values", str(path)]
        for setting in self.settings:
            command += ["--set", setting]
        self._run(command, "helm upgrade --install")

    def uninstall(self) -> None:
        """Remove the release; one that is not there is fine."""
        self._run(self.helm_command("uninstall", self.name, "--ignore-not-found", "--wait"), "helm uninstall")

    def _refuse_pending(self) -> None:
        # `status` is spelt alike in Helm 3 and 4; `list` lost its --all on the way.
        try:
            told = self._run(self.helm_command("status", self.name, "--output", "json"), "helm status")
        except EnvironmentProblem as problem:
            if "not found" in str(problem):
                return
            raise
        status = str(json.loads(told)["info"]["status"])
        if status.startswith("pending"):
            raise EnvironmentProblem(
                f"release {self.name} in {self.namespace} is {status}: another helm run holds it or died; "
                f"wait for it, or free it with: helm rollback {self.name} -n {self.namespace}"
            )

    @staticmethod
    def _run(command: list[str], doing: str) -> str:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=180, check=False, env={**os.environ, "HELM_DEBUG": ""}
            )
        except FileNotFoundError as error:
            raise EnvironmentProblem(f"{doing}: {command[0]} is not there; install Helm 3 or 4") from error
        except subprocess.TimeoutExpired as error:
            raise EnvironmentProblem(f"{doing}: no answer in 180 s; is the cluster reachable?") from error
        if done.returncode:
            raise EnvironmentProblem(f"{doing} was refused:\n{(done.stderr or done.stdout).strip()}")
        return done.stdout


def ensure_namespace(api: client.ApiClient, name: str, enforce: str = "restricted") -> bool:
    """Make the namespace with Pod Security enforced; returns whether it was made here.

    Raises:
        EnvironmentProblem: it exists and is being deleted, or the account may neither read nor make it.
    """
    core = client.CoreV1Api(api)
    try:
        found = core.read_namespace(name, _request_timeout=10)
    except client.ApiException as error:
        if error.status == 403:
            return False  # a namespaced role may not read it; whether it exists shows at the first object
        if error.status != 404:
            raise explain(error, f"reading namespace {name}") from error
        body = client.V1Namespace(
            metadata=client.V1ObjectMeta(name=name, labels={"pod-security.kubernetes.io/enforce": enforce})
        )
        try:
            core.create_namespace(body, _request_timeout=10)
        except client.ApiException as second:
            raise explain(second, f"making namespace {name}") from second
        return True
    except Exception as error:
        raise explain(error, f"reading namespace {name}") from error
    if found.status.phase == "Terminating":
        raise EnvironmentProblem(
            f"namespace {name} is being deleted; wait until it is gone (kubectl get ns {name}) or give another "
            "with --namespace"
        )
    return False


def wait_ready(
    api: client.ApiClient,
    namespace: str,
    deployments: list[str],
    timeout_seconds: float,
    on_progress: Callable[[str], None] = lambda _text: None,
) -> None:
    """Watch until each Deployment has all replicas available and none of an older template is left.

    Raises:
        EnvironmentProblem: a pod cannot start (image, configuration, crash), quota or admission refuses pods,
            or the time is over; the message names the object, the reason and the next step.
    """
    apps = client.AppsV1Api(api)
    deadline = time.monotonic() + timeout_seconds
    said = ""
    pause = _Pause(0.5)
    while True:
        try:
            found = [apps.read_namespaced_deployment(name, namespace, _request_timeout=10) for name in deployments]
        except Exception as error:
            raise explain(error, f"waiting for {', '.join(deployments)}") from error
        states = [(d.metadata.name, d.status.available_replicas or 0, d.spec.replicas or 0, d) for d in found]
        text = ", ".join(f"{name} {ready}/{wanted}" for name, ready, wanted, _ in states)
        if text != said:
            said = text
            on_progress(text)
        if all(
            ready == wanted == (d.status.updated_replicas or 0) == (d.status.replicas or 0)
            and (d.status.observed_generation or 0) >= d.metadata.generation
            for _, ready, wanted, d in states
        ):
            return
        _refuse_hopeless(api, namespace, found)
        if time.monotonic() > deadline:
            raise EnvironmentProblem(
                f"not ready after {timeout_seconds:.0f} s ({text}); kubectl -n {namespace} describe pods says why"
            )
        pause.wait()


class _Pause:
    """Polling interval: Deployments have no 'available' watch that survives every API server's timeouts."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def wait(self) -> None:
        time.sleep(self._seconds)


def _refuse_hopeless(api: client.ApiClient, namespace: str, deployments: list[client.V1Deployment]) -> None:
    core = client.CoreV1Api(api)
    for deployment in deployments:
        for condition in deployment.status.conditions or []:
            if condition.type == "ReplicaFailure" and condition.status == "True":
                raise EnvironmentProblem(
                    f"deployment {deployment.metadata.name}: pods are refused ({condition.message}); "
                    "a quota, limit range or Pod Security level of the namespace stands in the way"
                )
        labels = deployment.spec.selector.match_labels or {}
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        for pod in core.list_namespaced_pod(namespace, label_selector=selector, _request_timeout=10).items:
            for status in pod.status.container_statuses or []:
                waiting = status.state.waiting if status.state else None
                if waiting is None or waiting.reason not in HOPELESS:
                    continue
                if waiting.reason == "CrashLoopBackOff" and status.restart_count < 3:
                    continue
                raise EnvironmentProblem(
                    f"pod {pod.metadata.name}, container {status.name}: {waiting.reason} ({waiting.message}); "
                    f"{HOPELESS[waiting.reason]}{_last_log(core, pod, status.name)}"
                )


def _last_log(core: client.CoreV1Api, pod: client.V1Pod, container: str) -> str:
    try:
        text = core.read_namespaced_pod_log(
            pod.metadata.name, pod.metadata.namespace, container=container, previous=True, tail_lines=15
        )
    except client.ApiException:
        return ""
    return f"\n--- last log lines of {pod.metadata.name}\n{text}"
