"""Installs the chart with Helm and watches until it serves, or says at once why it will not."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import urllib3.exceptions
from kubernetes import client

from llm_replicas.cluster.client import explain
from llm_replicas.errors import EnvironmentProblem

HELM_SECONDS = 180
# Triton says why a model did not load above a table of all its options.
LOG_LINES = 60

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

    def install(self) -> bool:
        """Run ``helm upgrade --install``; returns whether the release is new.

        Raises:
            EnvironmentProblem: another helm run holds the release, or Helm refused, in its own words; of a new
                release nothing is left then.
        """
        status = self.status()
        self._refuse_pending(status)
        command = self.helm_command("upgrade", "--install", self.name, str(self.chart))
        for path in self.values:
            command += ["--values", str(path)]
        for setting in self.settings:
            command += ["--set", setting]
        try:
            _helm(command, "helm upgrade --install")
        except BaseException:
            if status is None:
                self.discard()
            raise
        return status is None

    def uninstall(self) -> None:
        """Remove the release; one that is not there is fine."""
        _helm(self.helm_command("uninstall", self.name, "--ignore-not-found", "--wait"), "helm uninstall")

    def discard(self) -> None:
        """Take away a release that did not come about, without waiting; why it did not is told by the caller."""
        with contextlib.suppress(EnvironmentProblem):
            _helm(self.helm_command("uninstall", self.name, "--ignore-not-found"), "helm uninstall")

    def status(self) -> str | None:
        """What Helm says of the release (``deployed``, ``failed``, ``pending-upgrade``…); None: there is none."""
        # `status` is spelt alike in Helm 3 and 4; `list` lost its --all on the way.
        try:
            told = _helm(self.helm_command("status", self.name, "--output", "json"), "helm status")
        except EnvironmentProblem as problem:
            if "release: not found" in str(problem):
                return None
            raise
        return str(json.loads(told)["info"]["status"])

    def _refuse_pending(self, status: str | None) -> None:
        if status is None or not status.startswith("pending"):
            return
        # A first revision has nothing to be rolled back to.
        way_out = "uninstall" if status == "pending-install" else "rollback"
        raise EnvironmentProblem(
            f"release {self.name} in {self.namespace} is {status}: another helm run holds it or died; "
            f"wait for it, or free it with: helm {way_out} {self.name} -n {self.namespace}"
        )


def _helm(command: list[str], doing: str) -> str:
    """Run Helm and return what it said on stdout; raises with what it said on stderr."""
    environment = {**os.environ, "HELM_DEBUG": ""}
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
    except OSError as error:
        raise EnvironmentProblem(
            f"{doing}: {command[0]} cannot be run ({error.strerror}); install Helm 3 or 4, and name it with "
            "LLM_REPLICAS_HELM if it is not on PATH"
        ) from error
    try:
        said, complained = process.communicate(timeout=HELM_SECONDS)
    except subprocess.TimeoutExpired as error:
        _end(process)
        raise EnvironmentProblem(f"{doing}: no answer in {HELM_SECONDS} s; is the cluster reachable?") from error
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        raise EnvironmentProblem(f"{doing} was refused:\n{(complained or said).strip()}")
    return said


def _end(process: subprocess.Popen[str]) -> None:
    """Ask Helm to stop: it then marks the release as failed; killed at once, it would leave it pending."""
    process.terminate()
    try:
        process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


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


def remove_namespace(api: client.ApiClient, name: str) -> None:
    """Take away a namespace that was made here in vain; why it was is told by the caller."""
    with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError):
        client.CoreV1Api(api).delete_namespace(name, _request_timeout=10)


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
                f"not ready after {timeout_seconds:.0f} s ({text}){_unready_pods(api, namespace, found)}\n"
                "cure what the pods say, or allow more time with lifecycle.startupBudgetSeconds"
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
        for pod in _pods(core, namespace, deployment):
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


def _pods(core: client.CoreV1Api, namespace: str, deployment: client.V1Deployment) -> list[client.V1Pod]:
    labels = deployment.spec.selector.match_labels or {}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    try:
        found: list[client.V1Pod] = core.list_namespaced_pod(
            namespace, label_selector=selector, _request_timeout=10
        ).items
    except Exception as error:
        raise explain(error, f"listing the pods of {deployment.metadata.name}") from error
    return found


def _unready_pods(api: client.ApiClient, namespace: str, deployments: list[client.V1Deployment]) -> str:
    """One line for each pod that is not Ready: what it says of itself."""
    core = client.CoreV1Api(api)
    lines = []
    for deployment in deployments:
        for pod in _pods(core, namespace, deployment):
            conditions = {each.type: each for each in pod.status.conditions or []}
            ready, scheduled = conditions.get("Ready"), conditions.get("PodScheduled")
            if ready is not None and ready.status == "True":
                continue
            why = scheduled if scheduled is not None and scheduled.status != "True" else ready
            told = f"{why.reason}: {why.message}" if why is not None else "nothing yet"
            lines.append(f"\n  pod {pod.metadata.name} ({pod.status.phase}): {told}")
    return "".join(lines)


def _last_log(core: client.CoreV1Api, pod: client.V1Pod, container: str) -> str:
    try:
        text = core.read_namespaced_pod_log(
            pod.metadata.name, pod.metadata.namespace, container=container, previous=True, tail_lines=LOG_LINES
        )
    except client.ApiException:
        return ""
    return f"\n--- last log lines of {pod.metadata.name}\n{text}"


def fullname_of(api: client.ApiClient, namespace: str, release: str) -> str:
    """The prefix of a release's object names, read from the Deployment that the chart labels as its replicas."""
    selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=replica"
    try:
        found = client.AppsV1Api(api).list_namespaced_deployment(
            namespace, label_selector=selector, _request_timeout=10
        ).items
    except Exception as error:
        raise explain(error, f"looking for release {release} in {namespace}") from error
    if not found:
        raise EnvironmentProblem(
            f"no replicas of release {release} in namespace {namespace}: expected a Deployment with the labels "
            f"{selector}; check --release and --namespace, or install the chart first"
        )
    name: str = found[0].metadata.name
    return name.removesuffix("-replica")


def progress_deadline(api: client.ApiClient, namespace: str, fullname: str) -> float:
    """Seconds that the release gives its replicas to come up; the chart computes them from the start-up budget."""
    try:
        found = client.AppsV1Api(api).read_namespaced_deployment(
            f"{fullname}-replica", namespace, _request_timeout=10
        )
    except Exception as error:
        raise explain(error, f"reading deployment {fullname}-replica in {namespace}") from error
    return float(found.spec.progress_deadline_seconds or 600)
