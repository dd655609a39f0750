"""What every fault has: a target, a precondition, an injection and a healing, each with its moment.

All moments are epoch seconds of this machine's clock, the clock of the load records, so that cause and
effect can be laid side by side; a node's own clock is never used.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import urllib3.exceptions
from kubernetes import client, watch

from llm_replicas.cluster.client import FROM_CACHE, explain
from llm_replicas.errors import InvalidRun


@dataclass(frozen=True)
class Target:
    """The release that is broken: its namespace and the names that the chart gives its parts."""

    api: client.ApiClient
    namespace: str
    fullname: str
    release: str

    @property
    def core(self) -> client.CoreV1Api:
        """Core API of the target's cluster."""
        return client.CoreV1Api(self.api)

    @property
    def apps(self) -> client.AppsV1Api:
        """Apps API of the target's cluster."""
        return client.AppsV1Api(self.api)

    def selector(self, component: str) -> str:
        """Label selector of a component's pods (``replica`` or ``router``)."""
        return f"app.kubernetes.io/instance={self.release},app.kubernetes.io/component={component}"

    def pods(self, component: str) -> list[client.V1Pod]:
        """All pods of a component, terminating ones included."""
        try:
            items: list[client.V1Pod] = self.core.list_namespaced_pod(
                self.namespace, label_selector=self.selector(component), _request_timeout=10
            ).items
        except Exception as error:
            raise explain(error, f"listing the {component} pods in {self.namespace}") from error
        return items

    def ready_pods(self, component: str) -> list[client.V1Pod]:
        """Pods that are Ready and not being deleted."""
        return [pod for pod in self.pods(component) if is_ready(pod)]


@dataclass
class FaultRecord:
    """One injected fault as it goes into ``faults.json``; the moments are epoch seconds.

    ``t0_wall`` is the moment the effect was observed, not the moment of the API call, which is
    ``requested_wall``.
    """

    kind: str
    phase: str
    requested_wall: float
    t0_wall: float | None = None
    healed_wall: float | None = None
    target: dict[str, Any] = field(default_factory=dict)
    observations: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def is_ready(pod: client.V1Pod) -> bool:
    """Whether the pod is Ready and not being deleted."""
    if pod.metadata.deletion_timestamp is not None:
        return False
    conditions = (pod.status.conditions if pod.status else None) or []
    return any(condition.type == "Ready" and condition.status == "True" for condition in conditions)


class Fault(ABC):
    """One kind of fault.

    `inject` breaks something and returns once the effect was observed; `wait_healed` watches until the
    release is whole again. Both fill the record as they go, so that a crash in between keeps what is known.
    """

    kind: ClassVar[str]
    component: ClassVar[str] = "replica"

    def __init__(self, target: Target, phase: str, clock: Callable[[], float] = time.time) -> None:
        self.target = target
        self.clock = clock
        self.record = FaultRecord(kind=self.kind, phase=phase, requested_wall=clock())

    def precondition(self) -> None:
        """Raise `InvalidRun` unless every wanted pod is Ready and none is on its way out."""
        deployment = self._deployment()
        wanted = deployment.spec.replicas or 0
        pods = self.target.pods(self.component)
        ready = [pod for pod in pods if is_ready(pod)]
        if len(ready) < wanted or len(pods) != len(ready):
            states = ", ".join(f"{pod.metadata.name}: {_state(pod)}" for pod in pods)
            raise InvalidRun(
                f"{self.kind}: {wanted} ready {self.component} pods and no others were expected before the "
                f"fault, found {len(ready)} ready of {len(pods)} ({states}); give the phase before it more time"
            )

    @abstractmethod
    def inject(self) -> None:
        """Break it; returns when the effect was observed, with ``record.t0_wall`` set."""

    def wait_healed(self, timeout_seconds: float) -> None:
        """Watch until all wanted pods are Ready and none is terminating; sets ``record.healed_wall``.

        Raises:
            InvalidRun: the release was not whole again within the time; the record says what was missing.
        """
        deadline = time.monotonic() + timeout_seconds
        last = ""
        for pods in self._pod_sets(deadline):
            deployment = self._deployment()
            wanted = deployment.spec.replicas or 0
            ready = [pod for pod in pods if is_ready(pod)]
            last = ", ".join(f"{pod.metadata.name}: {_state(pod)}" for pod in pods)
            self.observe(pods)
            if len(ready) == wanted and len(pods) == wanted and self.whole(deployment):
                self.record.healed_wall = self.clock()
                return
        self.record.error = f"not whole again after {timeout_seconds:.0f} s: {last}"
        raise InvalidRun(f"{self.kind}: {self.record.error}; look at kubectl describe pod -n {self.target.namespace}")

    def observe(self, pods: list[client.V1Pod]) -> None:  # noqa: B027 - optional hook
        """Note what a fault wants to know of each state of the pods on the way to healing."""

    def whole(self, deployment: client.V1Deployment) -> bool:
        """Whether the workload itself says that it has arrived; rollouts say more than pods do."""
        status = deployment.status
        return (status.observed_generation or 0) >= deployment.metadata.generation and (
            (status.updated_replicas or 0) == (status.available_replicas or 0) == (deployment.spec.replicas or 0)
        )

    def _deployment(self) -> client.V1Deployment:
        name = f"{self.target.fullname}-{self.component}"
        try:
            return self.target.apps.read_namespaced_deployment(name, self.target.namespace, _request_timeout=10)
        except Exception as error:
            raise explain(error, f"reading deployment {name} in {self.target.namespace}") from error

    def _pod_sets(self, deadline: float) -> Iterator[list[client.V1Pod]]:
        """Yield the component's pods now and after each change, until the deadline."""
        yield self.target.pods(self.component)
        while (left := deadline - time.monotonic()) > 0:
            # A watch may end early (its own limit, an API server that is behind its own versions); the loop starts it
            # anew. Its short limit covers changes of the Deployment's status, which no pod event announces.
            try:
                for _event in watch.Watch().stream(
                    self.target.core.list_namespaced_pod,
                    self.target.namespace,
                    label_selector=self.target.selector(self.component),
                    resource_version=FROM_CACHE,
                    timeout_seconds=max(1, min(2, int(left))),
                ):
                    yield self.target.pods(self.component)
                    if time.monotonic() > deadline:
                        return
            except (client.ApiException, urllib3.exceptions.HTTPError):
                time.sleep(0.2)  # an API server that refuses watches answers at once; do not hammer it
            yield self.target.pods(self.component)


def _state(pod: client.V1Pod) -> str:
    if pod.metadata.deletion_timestamp is not None:
        return "terminating"
    if is_ready(pod):
        return "ready"
    statuses = (pod.status.container_statuses if pod.status else None) or []
    for status in statuses:
        if status.state and status.state.waiting and status.state.waiting.reason:
            return str(status.state.waiting.reason)
    return str(pod.status.phase).lower() if pod.status and pod.status.phase else "unknown"
